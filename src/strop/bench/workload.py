"""The same work for every competitor: prompts of an exact length, rollouts of random tokens, models of random weights.

Knows how a bench asks Strop for a policy, an engine and a learner; competitors are handed token ids and folders.
Heavy libraries are imported inside the functions, so that `strop bench --table` starts at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from strop import config
from strop.chat import Chat
from strop.record import Rollout, Stop, Task, UserError, seed_of

__all__ = [
    "Matmul", "endless", "engine", "folder", "needs", "num_prompt_tokens", "peer_model", "policy", "random_model",
    "random_rollouts", "tasks", "tokenizer",
]  # fmt: skip

Matmul = Literal["float32", "bfloat16"]  # how float32 weights are multiplied, as `model.matmul` in a recipe

SYSTEM = r"Solve step by step. End with \boxed{answer}."
ENDINGS = ("", ".", " now", " now.", " please now", " please now.", "?", " .", " ..", " ...", "..")


def needs(package: str, extra: str = "dev") -> None:
    """Raises UserError with the install line if a peer is not installed."""
    if find_spec(package) is None:
        raise UserError(f"this bench compares with {package}, which is not installed: pip install 'strop[{extra}]'")


def folder(name: str) -> Path:
    """The folder of a model that is named as in a recipe; the demo model is fetched the first time."""
    from strop import model

    if name == model.DEMO:
        return model.demo_folder()
    if not (Path(name) / "config.json").is_file():
        raise UserError(f"--set model={name}: there is no model folder; write {model.DEMO} or the path of one")
    return Path(name)


def policy(name: str, matmul: Matmul = "float32") -> Any:
    """A `Policy` on the CPU with float32 weights."""
    from strop import model

    return model.load(config.Model(name=str(folder(name)), device="cpu", matmul=matmul))


def peer_model(name: str) -> Any:
    """The model as its own library loads it, in float32."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32)


def num_prompt_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that must be encoded if what all prompts begin with is encoded once.

    >>> num_prompt_tokens([[1, 2, 3], [1, 2, 4, 5]])
    5
    """
    columns = zip(*prompts, strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return shared + sum(len(ids) - shared for ids in prompts)


def engine(policy: Any, chat: Chat, rows: int, int8: Literal["never", "training"] = "never") -> Any:
    from strop.engine.native import NativeEngine

    return NativeEngine(policy, chat, max_batch=rows, int8=int8)


def endless(tokenizer: Any, system: str = SYSTEM) -> Chat:
    """A chat in which no token ends a turn, so that every completion has exactly the length that was asked for."""
    chat = Chat(tokenizer, config.Chat(system=system), [tokenizer.eos_token_id])
    chat.stop_ids = ()
    return chat


def tokenizer(name: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder(name))


def tasks(chat: Chat, num: int, num_tokens: int) -> list[Task]:
    """Distinct additions whose encoded prompts (template and system prompt included) have exactly `num_tokens`."""
    rng = np.random.default_rng(seed_of("bench", "prompts", num_tokens))
    return [_task(chat, rng, num_tokens) for _ in range(num)]


def _task(chat: Chat, rng: np.random.Generator, num_tokens: int) -> Task:
    terms = rng.integers(1, 10, size=num_tokens).tolist()
    for num_terms in range(2, num_tokens):
        text = "Compute " + " + ".join(map(str, terms[:num_terms]))
        for ending in ENDINGS:
            if len(chat.encode_prompt(text + ending)) == num_tokens:
                answer = str(sum(terms[:num_terms]))
                return Task.make(source="bench", prompt=text + ending, answer=answer, verifier="math")
    shortest = len(chat.encode_prompt("Compute 1 + 2"))
    raise UserError(f"no prompt has exactly {num_tokens} tokens here; ask for more than {shortest}")


def random_rollouts(
    *, prompts: int, group_size: int, prompt_tokens: int, completion_tokens: int, vocab: int, seed: int = 0
) -> list[Rollout]:
    """Rollouts as a step leaves them, of random tokens, in groups that all have signal."""
    rng = np.random.default_rng(seed_of("bench", "rollouts", seed))
    task = Task.make(source="bench", prompt="", answer="0", verifier="math")
    out = []
    for group in range(prompts):
        shared = rng.integers(vocab, size=prompt_tokens)
        for sample in range(group_size):
            ids = np.concatenate([shared, rng.integers(vocab, size=completion_tokens)]).astype(np.int32)
            sampled = np.arange(len(ids)) >= prompt_tokens
            logprobs = np.where(sampled, -np.log(vocab), np.nan).astype(np.float32)
            advantages = np.where(sampled, 1.0 - 2.0 * (sample % 2), 0.0).astype(np.float32)
            out.append(Rollout(
                task=task, group=group, sample=sample, token_ids=ids, sampled=sampled, trained=sampled.copy(),
                sampler_logprobs=logprobs, advantages=advantages, stop=Stop.LENGTH, reward=float(sample % 2),
            ))  # fmt: skip
    return out


def random_model(target: Path, like: str, shape: Mapping[str, Any]) -> Path:
    """A folder with a model of random weights ("model_type" llama or qwen2, and sizes) and the tokenizer of `like`."""
    import torch
    import transformers

    words = tokenizer(like)
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    settings = transformers.AutoConfig.for_model(**{**shape, **ids})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Any = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    made.save_pretrained(target)
    words.save_pretrained(target)
    return target
