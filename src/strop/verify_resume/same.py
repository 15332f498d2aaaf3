"""Whether two runs of one recipe left the same behind: weights, optimizer, rollouts, metrics, tasks, results.

Everything is compared bit for bit but what a clock, a meter or a memory gauge measured. Knows the run directory's
layout. Read by `verify_resume`, and by the tests of forks and resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from strop import disk
from strop.record import Rollout, read_rollouts, read_tasks

__all__ = ["parts"]

# How the name of a measured figure ends: seconds, energy, money, memory.
MEASURED = ("_s", "_wh", "_j", "_usd", "_mb", "tok/s")
TIMED_ONLY = {"pass"}  # rows that hold nothing but how long each attempt at an evaluation took


def parts(one: Path, other: Path) -> dict[str, dict[str, Any]]:
    """By what is compared: `equal`, `what` (how much was compared, in words) and the `first_difference`, or None."""
    a, b = (json.loads((out / "summary.json").read_text(encoding="utf-8"))["stages"] for out in (one, other))
    return {
        "parameters": _part(_finals(one), _finals(other), "files of final weights"),
        "optimizer": _part(_optimizers(a), _optimizers(b), "stages' moments and counts"),
        "rollouts": _rollouts(one, other),
        "metrics": _part(_rows(one), _rows(other), "rows"),
        "tasks": _part(_tasks(one), _tasks(other), "tasks"),
        "results": _part(_results(a), _results(b), "figures of stages"),
    }


def _part(one: dict[str, Any], other: dict[str, Any], what: str) -> dict[str, Any]:
    """Two dicts of what is comparable by name."""
    return _told(len(one), what, next(_differences(one, other), None))


def _told(num: int, what: str, first: str | None) -> dict[str, Any]:
    return {"equal": first is None, "what": f"{num:,} {what}", "compared": num, "first_difference": first}


def _differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for name in [*one, *(name for name in other if name not in one)]:
        if name not in one or name not in other:
            yield f"{name} is only in the {'undisturbed' if name in one else 'killed'} run"
        elif one[name] != other[name]:
            yield f"{name}: {_brief(one[name])} in the undisturbed run, {_brief(other[name])} in the killed one"


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else text[:77] + "..."


def _finals(out: Path) -> dict[str, str]:
    """sha256 by file of all final weights; what does not fit its manifest is no weights."""
    found = {}
    for folder in sorted(out.glob("checkpoints/*/final")):
        wrong = disk.what_is_wrong(folder)
        assert wrong is None, f"{folder}: {wrong}"
        listed = json.loads((folder / disk.MANIFEST).read_text(encoding="utf-8"))["files"]
        found |= {
            f"{folder.parent.name}/final/{name}": facts["sha256"]
            for name, facts in listed.items()
            if name.endswith(".safetensors")
        }
    return found


def _optimizers(stages: dict[str, Any]) -> dict[str, str]:
    return {f"optimizer of {name}": stage["optimizer"] for name, stage in stages.items() if "optimizer" in stage}


def _results(stages: dict[str, Any]) -> dict[str, Any]:
    return {f"stages.{name}.{key}": v for name, stage in stages.items() for key, v in _unmeasured(stage).items()}


def _rows(out: Path) -> dict[str, Any]:
    rows, _ = disk.read_lines(out / "metrics.jsonl")
    kept = [row for row in rows if row["kind"] not in TIMED_ONLY]
    return {
        f"row {i} of metrics.jsonl ({row['stage']}, {row['kind']}, step {row['step']})": _unmeasured(row)
        for i, row in enumerate(kept, 1)
    }


def _unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith(MEASURED)}


def _tasks(out: Path) -> dict[str, Any]:
    return {f"task {i} of {name}": task for name, ts in read_tasks(out / "tasks.parquet").items() for i, task in enumerate(ts)}  # fmt: skip


def _rollouts(one: Path, other: Path) -> dict[str, Any]:
    """File by file: a run may have more of them than fit into memory."""
    names = [sorted(str(p.relative_to(out)) for p in out.glob("rollouts/*/*.parquet")) for out in (one, other)]
    first = next(_differences(dict.fromkeys(names[0]), dict.fromkeys(names[1])), None)
    num = 0
    for name in names[0] if first is None else ():
        a, b = read_rollouts(one / name), read_rollouts(other / name)
        num += len(a)
        if len(a) != len(b):
            first = f"{name}: {len(a)} rollouts in the undisturbed run, {len(b)} in the killed one"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            if first is None and (field := _unlike(x, y)) is not None:
                first = f"{name}: `{field}` of rollout {i}"
    return _told(num, f"rollouts in {len(names[0])} files", first)


def _unlike(one: Rollout, other: Rollout) -> str | None:
    """The first field in which two rollouts differ, but for their seconds; NaN equals NaN."""
    for field in fields(Rollout):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "seconds":
            continue
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            if a.dtype != b.dtype or a.tobytes() != b.tobytes():
                return field.name
        elif a is not b and repr(a) != repr(b):
            return field.name
    return None
