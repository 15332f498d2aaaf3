"""A mean or a share over tasks together with its interval: what a table or a picture shows.

Knows one value, or several samples, per task. Read by the probes, by `lengths` and by the report.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from strop.stats.intervals import (
    NUM_RESAMPLES,
    bootstrap,
    bounds,
    hierarchical_bootstrap,
    per_task,
    tail,
    task_counts,
    wilson,
)

__all__ = ["Estimate", "average", "difference", "mean", "price", "ratio", "share", "widened"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95% interval over tasks like these."""

    value: float
    low: float
    high: float


def mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of one value a task (of samples, columns, first within the task) with its bootstrap interval.

    Where all tasks have one value that interval has no width (`share` and `difference` know how far it can move).
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


def average(right: ArrayLike, *, seed: int = 0) -> Estimate:
    """avg@k: the mean of 0/1 samples, tasks as rows. One sample a task: Wilson's interval, else `hierarchical_bootstrap`.

    >>> average([[1, 0], [0, 0]] * 20).value, average([[1], [0]] * 20) == share([1, 0] * 20)
    (0.25, True)
    """
    right_PK = np.asarray(right, np.float64)
    if right_PK.ndim == 1 or right_PK.shape[1] == 1:
        return share(right_PK, seed=seed)
    interval = hierarchical_bootstrap(right_PK, seed=seed)
    return widened(float(right_PK.mean()), interval, len(right_PK))


def difference(values: ArrayLike, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """Mean of differences in [-1, 1], one a task, with the paired bootstrap interval.

    Where all tasks differ alike nothing can be resampled: a new one differs otherwise at most as often as Wilson allows.

    >>> found = difference([0.5])
    >>> found.value, round(found.low, 2), round(found.high, 2)
    (0.5, -0.29, 1.0)
    """
    values_P = per_task(values)
    low, high = bootstrap(values_P, seed=seed, num_resamples=num_resamples)
    if low == high:
        other = wilson(0, len(values_P))[1]
        low, high = max(-1.0, low - other), min(1.0, high + other)
    return Estimate(value=float(values_P.mean()), low=low, high=high)


def ratio(part: ArrayLike, whole: ArrayLike, *, seed: int = 0) -> Estimate | None:
    """Share of all `whole` (counts, one a task) that is `part`, tasks resampled; None where there is nothing.

    >>> found = ratio([1, 0, 3], [2, 0, 4])
    >>> round(found.value, 4), ratio([0], [0])
    (0.6667, None)
    """
    part_P, whole_P = (np.asarray(counts, np.float64) for counts in (part, whole))
    part_P, whole_P = part_P[whole_P > 0], whole_P[whole_P > 0]  # a task without any is not drawn
    if not len(whole_P):
        return None
    counts_RP = task_counts(np.random.default_rng(seed), len(whole_P), NUM_RESAMPLES)
    interval = bounds((counts_RP @ part_P) / (counts_RP @ whole_P), len(whole_P))
    return widened(float(part_P.sum() / whole_P.sum()), interval, len(whole_P))


def price(cost: ArrayLike, right: ArrayLike, *, seed: int = 0) -> Estimate:
    """What one of `right` costs: the sum of `cost` over that of `right`, both one a task, tasks resampled; infinite where none is.

    A resample without any `right` is infinite too, so `high` may be. Unlike `ratio`, a task with nothing right has its cost.

    >>> found = price([2.0, 4.0], [1.0, 0.0])
    >>> found.value, found.high
    (6.0, inf)
    """
    cost_P, right_P = (np.asarray(values, np.float64) for values in (cost, right))
    counts_RP = task_counts(np.random.default_rng(seed), len(cost_P), NUM_RESAMPLES)
    with np.errstate(divide="ignore"):
        prices_R = np.sort((counts_RP @ cost_P) / (counts_RP @ right_P))
        value = float(np.divide(cost_P.sum(), right_P.sum()))
    outside = round(tail(len(cost_P)) * (NUM_RESAMPLES - 1))  # by rank: infinity has no quantile between
    return Estimate(value=value, low=float(prices_R[outside]), high=float(prices_R[-1 - outside]))


def widened(value: float, interval: tuple[float, float], num_tasks: int) -> Estimate:
    """A share over tasks; where all tasks agree, which leaves a bootstrap without width, with Wilson's interval.

    >>> round(widened(0.0, (0.0, 0.0), 30).high, 3), widened(0.5, (0.4, 0.6), 30).high
    (0.114, 0.6)
    """
    agree = interval[0] == interval[1] and value in (0.0, 1.0)
    low, high = wilson(round(value * num_tasks), num_tasks) if agree else interval
    return Estimate(value=value, low=low, high=high)
