"""How many samples does a gain need, and how small a gain would show? Before a run from a guess, after it from the spread.

Knows differences b - a of accuracies on the same tasks, as two variances (`Spread`). Everything is the normal
approximation for a two-sided test at 5%: good from some 30 tasks on, a little optimistic below. Read by `compare` and by
what prints a plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy.typing import ArrayLike
from scipy import stats

from strop.stats.intervals import paired_samples

__all__ = ["POWER", "Spread", "detectable", "guess", "power", "samples_needed", "spread", "tasks_needed"]

POWER = 0.8  # the share of runs in which a gain that is there ought to show
LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What makes the mean difference uncertain: it varies by (between + within / k) / P with P tasks and k samples of each.

    >>> Spread(between=0.04, within=0.32).error(num_tasks=100, num_samples=8)
    0.0282842712474619
    """

    between: float  # variance over tasks of the true difference; more samples do not help against it
    within: float  # variance of one sample of b minus one of a on the same task, mean over tasks

    def error(self, num_tasks: int, num_samples: int = 1) -> float:
        """Standard error of the mean difference."""
        return math.sqrt((self.between + self.within / num_samples) / num_tasks)


def spread(a: ArrayLike, b: ArrayLike) -> Spread:
    """The spread that two evaluations of the same tasks show (rows tasks, columns samples; numbers of columns may differ).

    One column on either side (greedy answers) says nothing about the noise within a task: then all counts as between,
    and only more tasks would help. The variance between is what the averages show less what the samples explain, at least 0.
    """
    a_PK, b_PK = paired_samples(a, b)
    total = float((b_PK.mean(axis=1) - a_PK.mean(axis=1)).var(ddof=1)) if len(a_PK) > 1 else 0.0
    if min(a_PK.shape[1], b_PK.shape[1]) < 2:
        return Spread(between=total, within=0.0)
    within_a, within_b = (float(x.var(axis=1, ddof=1).mean()) for x in (a_PK, b_PK))
    explained = within_a / a_PK.shape[1] + within_b / b_PK.shape[1]
    return Spread(between=max(0.0, total - explained), within=within_a + within_b)


def guess(acc: float) -> Spread:
    """The spread before anything was run: as if all tasks were equally hard and gained alike.

    Tasks of unequal difficulty make it smaller (one pass over AIME24 by a 1.5B model with 28.7% spreads by 8.3 points
    under this guess and by 4.8 in ten measured seeds, arXiv 2504.07086), unequal gains larger.
    """
    if not 0 <= acc <= 1:
        raise ValueError(f"an accuracy lies in 0..1, not {acc}")
    return Spread(between=0.0, within=2 * acc * (1 - acc))


def power(effect: float, num_tasks: int, num_samples: int = 1, *, spread: Spread) -> float:
    """The probability that a true mean difference of `effect` (a share: 0.02 is 2 points) comes out significant.

    >>> [round(power(gain, 500, 8, spread=guess(0.3)), 2) for gain in (0.0, 0.02, 0.03)]
    [0.05, 0.5, 0.83]
    """
    error = spread.error(num_tasks, num_samples)
    z, shift = stats.norm.ppf(1 - LEVEL / 2), abs(effect) / error if error else math.inf if effect else 0.0
    return float(stats.norm.sf(z - shift) + stats.norm.cdf(-z - shift))


def samples_needed(effect: float, num_tasks: int, *, spread: Spread, power: float = POWER) -> int | None:
    """Samples of each task, from each model, at which `effect` shows with this power; None where no number is enough.

    None because the difference varies so much between these few tasks: then more tasks are needed (`tasks_needed`).

    >>> [samples_needed(0.02, 500, spread=Spread(between=between, within=0.3)) for between in (0.0, 0.02, 0.2)]
    [12, 55, None]
    """
    left = num_tasks * _variance_allowed(effect, power) - spread.between
    return max(1, math.ceil(spread.within / left)) if left > 0 else None


def tasks_needed(effect: float, num_samples: int = 1, *, spread: Spread, power: float = POWER) -> int:
    """Tasks like these, with so many samples of each from each model, at which `effect` shows with this power.

    >>> tasks_needed(0.5, spread=Spread(between=1.0, within=0.0))  # textbook: (1.96 + 0.84)^2 / 0.5^2 = 31.4
    32
    """
    return math.ceil((spread.between + spread.within / num_samples) / _variance_allowed(effect, power))


def detectable(num_tasks: int, num_samples: int, acc: float, *, between: float = 0.0, power: float = POWER) -> float:
    """The smallest gain, as a share, that would show at this power if the accuracy is near `acc`: to be told before a run.

    `guess` says what is assumed; `between` is the variance of the gain over tasks where something is known of it.

    >>> [round(detectable(n, k, 0.287), 3) for n, k in ((30, 1), (30, 10), (500, 4))]
    [0.327, 0.103, 0.04]
    """
    assumed = Spread(between=between, within=guess(acc).within)
    return _sum_of_quantiles(power) * assumed.error(num_tasks, num_samples)


def _variance_allowed(effect: float, power: float) -> float:
    """Of the mean difference, so that `effect` shows with this power."""
    if not effect:
        raise ValueError("no number of samples shows a difference of 0")
    return (effect / _sum_of_quantiles(power)) ** 2


def _sum_of_quantiles(power: float) -> float:
    return float(stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(power))
