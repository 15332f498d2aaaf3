"""What a distillation leaves: `train.parquet`, a task set with worked solutions, and `fates.jsonl`, a line for every answer.

Knows columns. `tasks/files.py` reads them back: a row is a task, with its first solution, all of them, and what judges it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from strop.disk import guard, write_rows
from strop.distill.choose import Chosen
from strop.record import Rollout, Task, write_table

__all__ = ["SCHEMA", "fates", "train"]

SCHEMA = pa.schema([
    ("id", pa.string()), ("problem", pa.string()), ("answer", pa.string()), ("answer_alternates", pa.list_(pa.string())),
    ("solution", pa.string()), ("solutions", pa.list_(pa.string())), ("verifier", pa.string()),
    ("entry", pa.string()), ("tasks", pa.string()), ("source", pa.string()), ("teacher", pa.string()), ("level", pa.string()),
    ("pass_rate", pa.float64()),
])  # fmt: skip
"""`solution` is the first of `solutions`; `tasks` the task set it was asked in; `entry` what reasoning-gym's scorer reads."""


def train(
    path: Path,
    kept: Sequence[Sequence[Rollout]],
    names: Mapping[str, str],
    teacher: str,
    rates: Mapping[str, float | None],
) -> None:
    """Every task with its answers; `names` are the task sets by task id."""
    rows = [_row(answers, names[answers[0].task.id], teacher, rates[answers[0].task.id]) for answers in kept]
    with guard(path):
        write_table(path, pa.Table.from_pylist(rows, schema=SCHEMA))


def _row(answers: Sequence[Rollout], name: str, teacher: str, rate: float | None) -> dict[str, Any]:
    task: Task = answers[0].task
    level, entry, others = task.meta.get("level"), task.meta.get("entry"), task.meta.get("answer_alternates")
    return {
        "id": task.id, "problem": task.prompt, "answer": task.answer, "verifier": task.verifier,
        "solution": answers[0].text, "solutions": [r.text for r in answers], "tasks": name, "source": task.source,
        "teacher": teacher, "level": None if level is None else str(level), "pass_rate": rate,
        "entry": None if entry is None else json.dumps(entry, ensure_ascii=False),
        "answer_alternates": [str(other) for other in others] if isinstance(others, list) else None,
    }  # fmt: skip


def fates(path: Path, rollouts: Sequence[Rollout], chosen: Chosen, names: Mapping[str, str]) -> None:
    """A line for every answer, in the order in which they were asked for. The answers themselves are in `rollouts/`."""
    rows = []
    for r, fate in zip(rollouts, chosen.fates, strict=True):
        verdict = None if r.verdict is None else r.verdict.reason.value
        rows.append({
            "tasks": names[r.task.id], "id": r.task.id, "sample": r.sample, "fate": fate.value, "verdict": verdict,
            "tokens": r.num_sampled, "pass_rate": chosen.rates[r.task.id],
        })  # fmt: skip
    write_rows(path, rows)
