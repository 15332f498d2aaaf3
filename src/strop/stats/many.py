"""Many looks, one of which is shown: several comparisons at once, the best of several checkpoints.

Knows p-values and shares. Read by `compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["BestOf", "best_of", "chance_of_best", "holm", "sidak"]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (S. Holm, 1979).

    Below 0.05 holds for any of them where there is no difference with probability 5% at most, however they depend on
    each other.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def sidak(p: float, num_tries: int) -> float:
    """p of the best of so many tries, each of which was tested: 1 - (1 - p)^m (Z. Sidak, 1967).

    Exact for independent tries; checkpoints of one run resemble each other, so that it asks for more than need be.

    >>> round(sidak(0.01, 21), 3)
    0.19
    """
    return float(-np.expm1(num_tries * np.log1p(-p))) if p < 1 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """Tasks that the best of several equal tries has right."""

    median: int
    low: int  # of the range that holds 95 of 100 cases
    high: int


def best_of(acc: float, num_tasks: int, num_tries: int) -> BestOf:
    """What the best of `num_tries` reaches by chance when each answers each task once and is right with probability `acc`.

    The maximum of independent binomials: P(max <= x) = P(one <= x)^m. Tries that resemble each other (checkpoints of one
    run) and tasks of unequal difficulty vary less, so that it is on the high side.

    >>> best_of(0.30, 30, 21)  # a model that solves 30% of AIME's 30 problems, evaluated once at 21 checkpoints
    BestOf(median=14, low=11, high=17)
    """
    below = stats.binom.cdf(np.arange(num_tasks + 1), num_tasks, acc) ** num_tries
    median, low, high = (int(np.searchsorted(below, q)) for q in (0.5, 0.025, 0.975))
    return BestOf(median=median, low=low, high=high)


def chance_of_best(num_correct: int, num_tasks: int, acc: float, num_tries: int) -> float:
    """The probability that the best of `num_tries` has at least `num_correct` right by chance (as in `best_of`).

    >>> [round(chance_of_best(14, 30, 0.287, num_tries), 3) for num_tries in (1, 21)]
    [0.028, 0.447]
    """
    return sidak(float(stats.binom.sf(num_correct - 1, num_tasks, acc)), num_tries)
