"""Which checkpoints stay, and what goes when a run may take no more of the disk.

Pure rules over steps and sizes, and the one walk that measures a folder; knows no run. Read by `run`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.config import Keep
from strop.disk import DiskFull, guard, remove

__all__ = ["best_step", "make_room", "num_bytes", "to_go"]


def best_step(heldout: Sequence[Mapping[str, Any]]) -> int | None:
    """The step whose dev accuracy is the highest, the first of equals; None before the first look after a step.

    >>> best_step([{"step": 0, "accuracy": 0.9}, {"step": 5, "accuracy": 0.5}, {"step": 10, "accuracy": 0.5}])
    5
    """
    looked = [row for row in heldout if row["step"] > 0]
    return max(looked, key=lambda row: (row["accuracy"], -row["step"]))["step"] if looked else None


def to_go(steps: Sequence[int], keep: Keep, best: int | None) -> list[int]:
    """The steps, oldest first, whose checkpoints are neither among the last nor the best.

    >>> to_go([10, 20, 30, 40], Keep(last=2, best=True), best=10)
    [20]
    """
    return [step for step in steps[: -keep.last] if not (keep.best and step == best)]


def make_room(out: Path, may_go: Sequence[Path], need_bytes: int, limit_gb: float) -> None:
    """Removes folders of `may_go`, the first first, until `out` may grow by so much. Raises DiskFull where that is not enough."""
    used, limit = num_bytes(out), limit_gb * 1e9
    for folder in may_go:
        if used + need_bytes <= limit:
            break
        used -= num_bytes(folder)
        with guard(folder):
            remove(folder)
    if used + need_bytes > limit:
        what = f"and {need_bytes / 1e9:.3g} GB more are about to be written, " if need_bytes else ""
        raise DiskFull(
            f"{out} holds {used / 1e9:.3g} GB, {what}which is more than keep.disk_gb={limit_gb:g}; nothing committed is lost: "
            "continue with a higher --set keep.disk_gb and --resume"
        )


def num_bytes(folder: Path) -> int:
    """Of all files in a folder, as long as they are."""
    return sum(
        os.stat(os.path.join(where, name), follow_symlinks=False).st_size
        for where, _, names in os.walk(folder)
        for name in names
    )
