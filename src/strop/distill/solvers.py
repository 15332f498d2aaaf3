r"""The teacher that needs no model: exact worked solutions, each from what a task was made of.

A family is a function from a task to its worked solution, or None where it cannot say; the last line of a solution is
\boxed{} with the answer in the form that the task's verifier reads. Nothing is trusted for being computed: what a solver
writes is verified and filtered like any other answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strop.distill import countdown, knights
from strop.record import Task
from strop.tasks.puzzles import equations, work_out

__all__ = ["SOLVERS", "family", "worked_out"]


def _arithmetic(task: Task) -> str | None:
    """The generator's own solution, in the style that its settings ask for; of reasoning-gym's sums an equation a step."""
    if task.source.startswith("arithmetic@"):
        return task.meta["solution"]
    words = str(_metadata(task).get("expression", "")).split()
    numbers, ops = words[::2], words[1::2]
    if len(numbers) != len(ops) + 1 or not all(re.fullmatch(r"-?\d+", n) for n in numbers) or set(ops) - set("+-*"):
        return None
    steps = work_out([int(n) for n in numbers], ops)
    written = [f"{equation}." for step in steps for equation in equations(step, "steps")]
    return " ".join([*written, f"\\boxed{{{task.answer}}}"])


def _knights(task: Task) -> str | None:
    metadata = _metadata(task)
    statements: Any = metadata.get("statements", task.meta.get("statements"))
    names: Any = metadata.get("names", task.meta.get("names")) or [
        p.partition(":")[0].strip() for p in task.answer.split(",")
    ]
    if not isinstance(statements, list) or not isinstance(names, list) or not 0 < len(names) <= knights.MOST_PEOPLE:
        return None
    if len(statements) != len(names) or not all(knights.is_statement(s, len(names)) for s in statements):
        return None
    terms = metadata.get("knight_knave_terms", {})
    roles = (str(terms.get("a_knight", "a knight")), str(terms.get("a_knave", "a knave")))
    if (lines := knights.explain(statements, [str(name) for name in names], roles)) is None:
        return None
    answer = re.sub(r"\s*\(\d+\)\s*", ", ", task.answer).strip(", ")  # "(1) A is a knight (2) ..." in one line
    return "\n".join([*lines, f"\\boxed{{{answer}}}"])


def _countdown(task: Task) -> str | None:
    numbers, target = _metadata(task).get("numbers"), _metadata(task).get("target")
    if not isinstance(numbers, list) or len(numbers) < 2 or not all(type(n) is int for n in numbers):
        return None
    if not isinstance(target, int):
        return None
    if (chain := countdown.find(numbers, target)) is None:
        return None
    return "\n".join([*countdown.explain(chain, numbers), f"\\boxed{{{chain.expression}}}"])


def _metadata(task: Task) -> Mapping[str, Any]:
    """What reasoning-gym says of how it made a task; nothing of any other task."""
    entry = task.meta.get("entry")
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    return metadata if isinstance(metadata, dict) else {}


SOLVERS: dict[str, Callable[[Task], str | None]] = {
    "arithmetic": _arithmetic,
    "knights": _knights,
    "gym:chain_sum": _arithmetic,
    "gym:knights_knaves": _knights,
    "gym:countdown": _countdown,
}


def family(task: Task) -> str | None:
    """The key into SOLVERS of whoever can solve the task; None where nobody can.

    >>> family(Task.make(source="own.jsonl@0", prompt="p", answer="a", verifier="knights", meta={"statements": []}))
    'knights'
    """
    if (dataset := _metadata(task).get("source_dataset")) is not None:
        return f"gym:{dataset}" if f"gym:{dataset}" in SOLVERS else None
    if task.source.startswith("arithmetic@"):
        return "arithmetic"
    return "knights" if task.verifier == "knights" and "statements" in task.meta else None


def worked_out(tasks: Sequence[Task]) -> list[str]:
    """A worked solution of each; empty where no solver knows the task, or it turns out to have none."""
    return [SOLVERS[name](task) or "" if (name := family(task)) is not None else "" for task in tasks]
