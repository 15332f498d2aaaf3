"""Several samples of one task: pass@k and its curve, where two curves cross, how often the majority is right.

Knows how many of a task's samples are right, or what they answered. Does not know which model they are from. All
estimates are unbiased over draws of k out of the n samples at hand; all intervals resample tasks. Read by the probes and
the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from strop.stats.estimates import widened
from strop.stats.intervals import CHUNK, NUM_RESAMPLES, PerTask, bootstrap, tail, task_counts

__all__ = [
    "Crossover",
    "PassAt",
    "crossover",
    "doubling",
    "majority_at_k",
    "majority_curve",
    "pass_at_k",
    "pass_curve",
]

EQUAL = 1e-12  # differences of pass@k below it are rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAt:
    """One point of a curve over k: the mean over tasks with its 95% interval, as shares."""

    k: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """From how many samples on the base model solves as many tasks as the trained one; None: not within the samples."""

    k: int | None
    low: int | None  # of the 95% interval over tasks
    high: int | None
    never_frac: float  # of the resamples, those in which the curves do not meet


# --- pass@k -----------------------------------------------------------------------------------------------------------


def pass_at_k(num_samples: int, num_correct: ArrayLike, k: int) -> PerTask:
    """Unbiased probability, per task, that k samples hold a correct one: 1 - C(n - c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, eq. 1, as a stable product (`_curves`).

    >>> pass_at_k(4, [0, 1, 2, 4], 2)
    array([0.        , 0.5       , 0.83333333, 1.        ])
    """
    return _curves(num_samples, num_correct, k)[:, -1]


def pass_curve(
    num_samples: int,
    num_correct: ArrayLike,
    ks: Sequence[int] | None = None,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[PassAt]:
    """Mean pass@k over tasks at each of `ks` (1, 2, 4, ... up to num_samples), with 95% bootstrap intervals over tasks.

    The same resamples serve all k, so the bounds of one curve are comparable. Where all tasks are solved, or none, it is
    Wilson's (`widened`).

    >>> for point in pass_curve(4, [0, 1, 2, 4] * 10):
    ...     print(point.k, round(point.value, 3), round(point.low, 2), round(point.high, 2))
    1 0.438 0.32 0.56
    2 0.583 0.45 0.7
    4 0.75 0.6 0.88
    """
    ks = doubling(num_samples) if ks is None else ks
    curves_PK = _curves(num_samples, num_correct, max(ks))[:, [k - 1 for k in ks]]
    means_RK = np.concatenate(list(_resampled_curves(curves_PK, seed, num_resamples)))
    outside = tail(len(curves_PK))
    lows, highs = np.quantile(means_RK, [outside, 1 - outside], axis=0)
    return [
        _point(k, float(value), (float(low), float(high)), len(curves_PK))
        for k, value, low, high in zip(ks, curves_PK.mean(axis=0), lows, highs, strict=True)
    ]


def _point(k: int, value: float, interval: tuple[float, float], num_tasks: int) -> PassAt:
    found = widened(value, interval, num_tasks)
    return PassAt(k=k, value=value, low=found.low, high=found.high)


def doubling(num_samples: int) -> list[int]:
    """1, 2, 4, ... up to num_samples.

    >>> doubling(8), doubling(10)
    ([1, 2, 4, 8], [1, 2, 4, 8])
    """
    return [1 << i for i in range(num_samples.bit_length())]


def crossover(
    base_correct: ArrayLike,
    base_samples: int,
    trained_correct: ArrayLike,
    trained_samples: int,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Crossover:
    """The smallest k above 1 at which the base model's mean pass@k is at least the trained model's.

    Entry i of both counts speaks of task i; every k up to the smaller number of samples is looked at. The interval
    resamples tasks in pairs and counts resamples without a crossover as above every k, so `high` (and `low`, in the
    worst case) is None where too many have none. Yue et al., arXiv 2504.13837, show the curves; the interval is ours.

    >>> base, trained = [1, 2, 1, 0, 3, 2] * 10, [4, 8, 0, 0, 8, 7] * 10  # of 8 samples
    >>> crossover(base, 8, trained, 8)
    Crossover(k=5, low=5, high=7, never_frac=0.0)
    """
    max_k = min(base_samples, trained_samples)
    base_PK, trained_PK = _curves(base_samples, base_correct, max_k), _curves(trained_samples, trained_correct, max_k)
    if len(base_PK) != len(trained_PK):
        raise ValueError(f"paired on tasks: base has {len(base_PK)} tasks, trained has {len(trained_PK)}")
    ahead_PK = (base_PK - trained_PK)[:, 1:]  # k = 2, 3, ...
    found = np.concatenate([_first(means_RK) for means_RK in _resampled_curves(ahead_PK, seed, num_resamples)])
    outside = tail(len(ahead_PK))
    low, high = np.quantile(found, [outside, 1 - outside], method="inverted_cdf")
    (k,) = _first(ahead_PK.mean(axis=0, keepdims=True))
    whole = [None if np.isinf(x) else int(x) for x in (k, low, high)]
    return Crossover(k=whole[0], low=whole[1], high=whole[2], never_frac=float(np.isinf(found).mean()))


def _first(ahead_RK: np.ndarray) -> np.ndarray:
    """For each row the smallest k (the first column is k = 2) at which base is not behind; infinite where there is none."""
    there_RK = np.pad(ahead_RK >= -EQUAL, ((0, 0), (0, 1)), constant_values=True)  # a last column that always holds
    first_R = there_RK.argmax(axis=1)
    return np.where(first_R < ahead_RK.shape[1], first_R + 2.0, np.inf)


def _curves(num_samples: int, num_correct: ArrayLike, max_k: int) -> Float64[np.ndarray, "P K"]:
    """pass@k of each task for k = 1 .. max_k.

    C(n - c, k) / C(n, k), the chance that k draws miss all c, is the product over i < k of 1 - c / (n - i); a factor is 0
    from where on no draw can miss.
    """
    correct_P = np.asarray(num_correct)
    if not 1 <= max_k <= num_samples:
        raise ValueError(f"pass@{max_k} needs 1 <= k <= num_samples = {num_samples}")
    if correct_P.size and (correct_P.min() < 0 or correct_P.max() > num_samples):
        raise ValueError(f"num_correct must lie in 0..{num_samples}")
    left_K = num_samples - np.arange(max_k)
    return 1 - np.cumprod(np.maximum(0.0, 1 - correct_P[:, None] / left_K), axis=1)


def _resampled_curves(curves_PK: np.ndarray, seed: int, num_resamples: int) -> Iterator[np.ndarray]:
    """The mean curve of each resample of the tasks, in chunks that bound memory."""
    num_tasks, num_ks = curves_PK.shape
    rng, rows = np.random.default_rng(seed), max(1, CHUNK // max(1, num_tasks, num_ks))
    for start in range(0, num_resamples, rows):
        yield task_counts(rng, num_tasks, min(rows, num_resamples - start)) @ curves_PK / num_tasks


# --- the majority -----------------------------------------------------------------------------------------------------


def majority_at_k(
    answers: Sequence[Sequence[str | None]],
    correct: Sequence[Sequence[bool]],
    k: int,
    *,
    seed: int = 0,
    num_draws: int = 1000,
) -> PerTask:
    """Probability, per task, that the majority of k samples is right; the mean over random draws of k out of all samples.

    Row i holds the extracted answers of task i (None: no answer, no vote) and whether each is right. Samples are drawn
    without replacement, so that the estimate is unbiased as pass@k's is; a tie counts for the share of the tied answers
    that are right, as if one of them were taken at random. k = all samples leaves nothing to chance.

    >>> answers = [["7", "7", "5", None], ["1", "2", "3", "3"]]
    >>> majority_at_k(answers, [[True, True, False, False], [True, False, False, False]], 4)
    array([1., 0.])
    """
    rng = np.random.default_rng(seed)
    return np.array([
        _majority_right(rng, said, right, k, num_draws) for said, right in zip(answers, correct, strict=True)
    ])  # fmt: skip


def majority_curve(
    answers: Sequence[Sequence[str | None]],
    correct: Sequence[Sequence[bool]],
    ks: Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> list[PassAt]:
    """Mean maj@k over tasks at each of `ks` (1, 2, 4, ... up to the samples of every task), with intervals over tasks."""
    points = []
    for k in doubling(min(len(said) for said in answers)) if ks is None else ks:
        right_P = majority_at_k(answers, correct, k, seed=seed)
        points.append(_point(k, float(right_P.mean()), bootstrap(right_P, seed=seed), len(right_P)))
    return points


def _majority_right(
    rng: np.random.Generator, answers: Sequence[str | None], correct: Sequence[bool], k: int, num_draws: int
) -> float:
    """One task: the votes of a draw without replacement are multivariate hypergeometric."""
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs 1 <= k <= the number of samples = {len(answers)}")
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0.0
    right = {answer for answer, is_right in zip(answers, correct, strict=True) if is_right}
    right_A = np.array([answer in right for answer in counts])
    silent = len(answers) - counts.total()
    votes_DA = rng.multivariate_hypergeometric([*counts.values(), silent], k, size=num_draws)[:, :-1]
    top_D1 = votes_DA.max(axis=1, keepdims=True)
    winners_DA = (votes_DA == top_D1) & (top_D1 > 0)
    return float(((winners_DA & right_A).sum(axis=1) / np.maximum(1, winners_DA.sum(axis=1))).mean())
