"""Sampled answers by hand, for tests of what reads an evaluation: one character a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strop.record import Reason, Rollout, Stop, Task, Verdict

TASKS = [Task.make(source="s", prompt=f"{i} + 1?", answer=str(i + 1), verifier="math") for i in range(60)]
REASONS = {"+": Reason.CORRECT, "-": Reason.WRONG, "0": Reason.NO_ANSWER, "/": Reason.TRUNCATED, "!": Reason.TIMEOUT}


def answer(task: Task, sample: int, kind: str, text: str | None = None, num_tokens: int = 10) -> Rollout:
    """`kind` is one of REASONS; a right answer is boxed, a wrong one says another number."""
    said = {"+": task.answer, "-": str(int(task.answer) + 1)}.get(kind)
    ids = np.arange(2 + num_tokens, dtype=np.int32)
    mask = ids >= 2
    written = f"So \\boxed{{{said}}}." if said is not None else "No idea"
    return Rollout(
        task=task, group=0, sample=sample, token_ids=ids, sampled=mask, trained=np.zeros_like(mask), temperature=1.0,
        text=written if text is None else text, stop=Stop.LENGTH if kind == "/" else Stop.EOS,
        verdict=Verdict(correct=kind == "+", extracted=said, reason=REASONS[kind]),
    )  # fmt: skip


def sampled(rows: Sequence[str], tasks: Sequence[Task] = TASKS) -> list[Rollout]:
    """A row for each task, a character for each of its samples."""
    return [answer(task, k, kind) for task, row in zip(tasks, rows, strict=False) for k, kind in enumerate(row)]
