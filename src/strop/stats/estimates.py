"""A mean or a share over tasks together with its interval: what a table or a picture shows.

Knows one value, or several samples, per task. Read by the probes, by `lengths` and by the report.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from strop.stats.intervals import bootstrap, per_task, wilson

__all__ = ["Estimate", "mean", "share", "widened"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95% interval over tasks like these."""

    value: float
    low: float
    high: float


def mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of one value a task (of samples, columns, first within the task) with its bootstrap interval.

    Of differences task by task it is the paired one.
    """
    low, high = bootstrap(values, seed=seed)
    return Estimate(value=float(per_task(values).mean()), low=low, high=high)


def share(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of shares in [0, 1], or of 0/1 samples (columns): Wilson's interval of one 0/1 value a task, else a bootstrap.

    >>> share([[1, 0], [0, 0]]).value, round(share([0.0] * 30).high, 4), round(share([[0, 0]] * 30).high, 4)
    (0.25, 0.1135, 0.1135)
    """
    values_P = per_task(values)
    if np.isin(values_P, (0.0, 1.0)).all():
        low, high = wilson(int(values_P.sum()), len(values_P))
        return Estimate(value=float(values_P.mean()), low=low, high=high)
    return mean(values_P, seed=seed)


def widened(value: float, interval: tuple[float, float], num_tasks: int) -> Estimate:
    """A share over tasks; where all tasks agree, which leaves a bootstrap without width, with Wilson's interval.

    >>> round(widened(0.0, (0.0, 0.0), 30).high, 3), widened(0.5, (0.4, 0.6), 30).high
    (0.114, 0.6)
    """
    agree = interval[0] == interval[1] and value in (0.0, 1.0)
    low, high = wilson(round(value * num_tasks), num_tasks) if agree else interval
    return Estimate(value=value, low=low, high=high)
