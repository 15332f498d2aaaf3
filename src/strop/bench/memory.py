"""`memory`: peak memory of a learner's update against completion length and vocabulary, and proof of where it ends.

Each point is a process of its own. After the update that is measured, a second one (and a generation) is watched
operation by operation: no tensor with a vocabulary in its shape may have more rows than one chunk of the head, or
than one decoding batch. The model is small, so that what grows is what the bench is about.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from strop.bench import ceiling, workload
from strop.bench.alternate import alternate
from strop.bench.result import Result, seconds_of
from strop.bench.worker import Link, Side, command, peak_rss_mb
from strop.config import Algorithm, Optim, Section
from strop.process import give_back_memory

__all__ = ["Settings", "peak", "run", "widest_rows"]


class Settings(Section):
    model: str = "smollm2-135m"
    """Whose tokenizer the random models carry, and at whose shapes the ceilings are measured."""
    lengths: tuple[int, ...] = (256, 1024, 4096)
    """Tokens of a completion."""
    vocabs: tuple[int, ...] = (49_152, 151_936)
    """Sizes of the vocabulary."""
    group_size: int = 4
    """Rollouts of the one prompt."""
    prompt_tokens: int = 64
    """Tokens of the prompt."""
    hidden: int = 256
    """Width of the random model."""
    layers: int = 4
    """Its layers."""


def run(settings: Settings, *, pairs: int, say: Callable[[str], None]) -> Result:
    """A row for every length and vocabulary; `update_mb` is what the update needed above weights and optimizer.

    A peak does not vary like a time, so each point is measured once, whatever `pairs` is.
    """
    rows, samples = [], {}
    for vocab in settings.vocabs:
        for length in settings.lengths:
            values = {"settings": settings.model_dump(), "vocab": vocab, "length": length}
            with Side("strop", command("strop.bench.memory:peak", values)) as side:
                plain, watched = side.ask(), side.ask(watch=True)
            assert plain is not None
            assert watched is not None
            say(f"vocabulary {vocab}, {length} tokens: {plain['peak_rss_mb']:.0f} MB, {plain['seconds']:.3g} s")
            samples[f"{vocab}/{length}"] = [plain]
            rows.append({
                "vocab": vocab, "completion_tokens": length, "peak_rss_mb": plain["peak_rss_mb"],
                "update_mb": plain["peak_rss_mb"] - plain["before_mb"],
                "all_logits_mb": 4e-6 * vocab * length * settings.group_size,
                "most_logit_rows": watched["update_rows"], "chunk_rows": watched["chunk_rows"],
                "most_decode_rows": watched["decode_rows"], "decode_batch": watched["decode_batch"],
            })  # fmt: skip
    with ceiling.side(settings.model) as machine:
        found = alternate([ceiling.bandwidth(machine)], pairs=pairs, say=say, title="memory")
    worst = [r for r in rows if r["most_logit_rows"] > r["chunk_rows"] or r["most_decode_rows"] > r["decode_batch"]]
    notes = [f"More logits than one chunk existed at once in {len(worst)} of {len(rows)} points."] if worst else []
    return Result(rows=rows, samples=seconds_of(samples), ceilings=ceiling.figures(found), notes=notes)


def peak(values: Mapping[str, Any], link: Link) -> None:
    """The side: first an update that is only measured, then an update and a generation that are watched."""
    from strop.head import CHUNK_TOKENS
    from strop.learner import Learner

    settings = Settings.model_validate(values["settings"])
    vocab, length = values["vocab"], values["length"]
    with tempfile.TemporaryDirectory() as scratch:
        made = workload.random_model(Path(scratch), settings.model, _shape(settings, vocab, length))
        policy = workload.policy(str(made))
    learner = Learner(policy, Optim(lr=1e-9))

    def update(prompt_tokens: int, length: int) -> None:
        rollouts = workload.random_rollouts(
            prompts=1,
            group_size=settings.group_size,
            prompt_tokens=prompt_tokens,
            completion_tokens=length,
            vocab=vocab,
        )
        learner.update(rollouts, Algorithm(), num_updates=1, max_tokens=length, seed=0)

    update(8, 8)  # AdamW's moments and the gradients exist from here on
    give_back_memory()  # what was freed and kept would hide a part of the update
    before_mb = resident_mb()
    while (request := link.wait()) is not None:
        if not request.get("watch"):
            update(settings.prompt_tokens, length)
            link.done(before_mb=before_mb)
            continue
        update_rows = widest_rows(lambda: update(settings.prompt_tokens, length), vocab, settings.hidden)
        link.done(update_rows=update_rows, chunk_rows=CHUNK_TOKENS, **_decode_rows(settings, policy, vocab))


def _decode_rows(settings: Settings, policy: Any, vocab: int) -> dict[str, int]:
    """Most rows of logits in a generation of more rollouts than are decoded at once, and how many are."""
    from strop.engine import Sampling
    from strop.engine.native import MIN_ROWS

    chat = workload.endless(policy.tokenizer)
    engine = workload.engine(policy, chat, settings.group_size)
    tasks = workload.tasks(chat, 2, settings.prompt_tokens)
    sampling, num = Sampling(max_tokens=4), 2 * MIN_ROWS
    rows = widest_rows(
        lambda: engine.generate(tasks, num_samples=num, sampling=sampling, seed_path=("bench",)), vocab, settings.hidden
    )
    return {"decode_rows": rows, "decode_batch": max(MIN_ROWS, settings.group_size)}


def _shape(settings: Settings, vocab: int, length: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": settings.hidden, "num_hidden_layers": settings.layers,
        "intermediate_size": 2 * settings.hidden, "num_attention_heads": max(1, settings.hidden // 64),
        "num_key_value_heads": 1, "max_position_embeddings": settings.prompt_tokens + length, "tie_word_embeddings": True,
    }  # fmt: skip


def widest_rows(work: Callable[[], Any], vocab: int, hidden: int) -> int:
    """Most rows of any tensor that has the vocabulary in its shape, made while `work` runs; weights do not count.

    Every operation is seen, also those of the backward pass, which runs in this thread on a CPU.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    most = 0

    class Watcher(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                shape = tuple(getattr(leaf, "shape", ()))
                if vocab in shape and sorted(shape) != sorted((vocab, hidden)):
                    most = max(most, math.prod(shape) // vocab)
            return out

    with Watcher():
        work()
    return most


def resident_mb() -> float:
    """Memory this process holds now."""
    import psutil

    return min(psutil.Process().memory_info().rss / 1e6, peak_rss_mb())
