"""The answers of one evaluation, task by task, and what share of them is so or so.

Knows what can be told of one answer by looking at it (MEASURES) and how a share gets its interval: over tasks, because
the samples of one task are alike. Does not know where evaluations lie or what follows from a share. Read by the rest of
this room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from strop import stats
from strop.record import Reason, Rollout, Stop, UserError
from strop.rewards import extract
from strop.stats import Estimate

__all__ = ["MEASURES", "by_task", "in_percent", "in_points", "right"]

UNANSWERED = (Reason.NO_ANSWER, Reason.EMPTY, Reason.TRUNCATED)


def _answered(r: Rollout) -> bool:
    return r.verdict is not None and r.verdict.reason not in UNANSWERED


def _boxed(r: Rollout) -> bool:
    found = extract.boxes(r.text)
    return bool(found) and found[-1].content is not None


# What a whole report says of answers, and what templates are compared by.
MEASURES: dict[str, Callable[[Rollout], bool]] = {
    "answered": _answered,  # the verifier found an answer: right or wrong, but not missing or cut off
    "marked": lambda r: extract.find(r.text).marked,  # a box, <answer>, ####, "the answer is"
    "boxed": _boxed,
    "ended": lambda r: r.stop is Stop.EOS,
    "truncated": lambda r: r.truncated,
    "right": lambda r: r.correct,  # an answer whose verifier failed counts as not right
}


def by_task(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """The samples of each task, tasks in their first order, samples by number; a task of two sets counts once.

    Raises UserError where tasks do not all have the same number of samples, or fewer than two.
    """
    found: dict[str, dict[int, Rollout]] = {}
    for r in rollouts:
        found.setdefault(r.task.id, {})[r.sample] = r
    counts = {len(samples) for samples in found.values()}
    if len(counts) != 1 or min(counts) < 2:
        numbers = " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "no"
        raise UserError(f"the tasks have {numbers} samples; a probe needs the same number of each, 2 or more")
    return [[samples[i] for i in sorted(samples)] for samples in found.values()]


def right(answers: Sequence[Sequence[Rollout]]) -> Float64[np.ndarray, "P K"]:
    """1.0 where sample k of task p is right."""
    return np.array([[float(r.correct) for r in samples] for samples in answers])


# --- as they are written


def in_percent(found: Estimate | stats.PassAt) -> str:
    """
    >>> in_percent(Estimate(value=0.41, low=0.36, high=0.462))
    '41.0% (36.0 to 46.2)'
    """
    return f"{100 * found.value:.1f}% ({100 * found.low:.1f} to {100 * found.high:.1f})"


def in_points(found: Estimate) -> str:
    """
    >>> in_points(Estimate(value=0.06, low=-0.031, high=0.0894))
    '+6.0 points (-3.1 to +8.9)'
    """
    return f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
