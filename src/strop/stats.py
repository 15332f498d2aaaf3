"""Is the gain real? Intervals, paired tests, trends, pass@k, majority.

Knows arrays of scores per task, and one number a step. Does not know models, rollouts or stages. Read by `evaluate`,
`compare`, the report, the alarms and the schedules.

The unit is the task: two models answer the same tasks, so their difference is taken task by task, and it is tasks that
are resampled. Everything random takes a seed and gives the same numbers again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import stats

__all__ = [
    "Comparison",
    "bootstrap",
    "compare",
    "hierarchical_bootstrap",
    "majority",
    "mcnemar",
    "one_answer_for_all",
    "pass_at_k",
    "permutation_test",
    "trend",
    "verdict_in_words",
    "wilson",
]

NUM_RESAMPLES = 10_000
FEW = 20  # tasks; below, nothing is said about answers that coincide
CHUNK = 1 << 17  # random numbers drawn at once: 1 MB as floats, which stays in the cache

PerTask = Float64[np.ndarray, " P"]  # one value per task


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """b compared with a on the same tasks; shares, not per cent."""

    delta: float  # mean of b minus mean of a
    ci95: tuple[float, float]  # of delta, over tasks like these
    p: float  # two-sided, of no difference
    num_tasks: int


def compare(a: ArrayLike, b: ArrayLike, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Comparison:
    """b minus a, with a paired 95% bootstrap interval over tasks and a paired p-value.

    Row i of both speaks of task i: one score each, or several samples a task (columns; their numbers may differ).
    Samples are first averaged per task: the spread of those averages already holds the noise of sampling, so that
    resampling tasks alone covers as stated (see `hierarchical_bootstrap`). p is exact McNemar where both have one 0/1
    score per task, else the paired permutation test.

    >>> before = np.array([0, 0, 0, 0, 1, 1] * 20)
    >>> after = np.array([1, 1, 0, 0, 1, 0] * 20)
    >>> c = compare(before, after)
    >>> round(c.delta, 4), [round(x, 4) for x in c.ci95], round(c.p, 4), c.num_tasks
    (0.1667, [0.0417, 0.2833], 0.0135, 120)
    """
    a_P, b_P = _per_task(a), _per_task(b)
    if len(a_P) != len(b_P):
        raise ValueError(f"paired on tasks: a has {len(a_P)} tasks, b has {len(b_P)}")
    difference_P = b_P - a_P
    binary = bool(np.isin(a_P, (0.0, 1.0)).all() and np.isin(b_P, (0.0, 1.0)).all())
    return Comparison(
        delta=float(difference_P.mean()),
        ci95=bootstrap(difference_P, seed=seed, num_resamples=num_resamples),
        p=mcnemar(a_P, b_P) if binary else permutation_test(difference_P, seed=seed, num_resamples=num_resamples),
        num_tasks=len(difference_P),
    )


def verdict_in_words(comparison: Comparison, a: str = "before", b: str = "after") -> str:
    """One sentence for a report: the difference in points, and what the interval allows one to say.

    >>> verdict_in_words(Comparison(delta=0.125, ci95=(0.082, 0.168), p=0.00002, num_tasks=512), "sft", "rl")
    'rl is better than sft: +12.5 points (95% interval +8.2 to +16.8, p < 0.001, 512 tasks).'
    >>> verdict_in_words(Comparison(delta=-0.004, ci95=(-0.03, 0.022), p=0.81, num_tasks=512), "rl", "shuffled")
    'No difference shown between rl and shuffled: -0.4 points (95% interval -3.0 to +2.2, p = 0.81, 512 tasks).'
    """
    low, high = comparison.ci95
    if low > 0:
        claim = f"{b} is better than {a}"
    elif high < 0:
        claim = f"{b} is worse than {a}"
    else:
        claim = f"No difference shown between {a} and {b}"
    p = "p < 0.001" if comparison.p < 0.001 else f"p = {comparison.p:.2g}"
    points = f"{100 * comparison.delta:+.1f} points"
    return f"{claim}: {points} (95% interval {100 * low:+.1f} to {100 * high:+.1f}, {p}, {comparison.num_tasks} tasks)."


def one_answer_for_all(acc: float, num_tasks: int, constant_acc: float, commonest_frac: float) -> str | None:
    """What to hold against an accuracy that the same answer to every task would reach too; None where nothing is.

    `constant_acc` is the share of tasks whose right answer is the commonest one, `commonest_frac` the share of answers
    given that are the commonest of them. Silent below FEW tasks, where the accuracy is shown to be higher, and where no
    constant is worth much (below 0.1) and none is given. A mix of two constants is not found out.

    >>> one_answer_for_all(0.1875, 256, 0.1875, 1.0)
    '100.0% of the answers are one and the same; the commonest right answer, given to all, would score 18.8%.'
    >>> one_answer_for_all(0.3, 256, 0.27, 0.54)
    'Not shown to be better than one answer for all: the commonest right answer, given to all, would score 27.0%.'
    >>> [one_answer_for_all(*x) for x in ((0.97, 1000, 0.85, 0.905), (0.01, 256, 0.02, 0.03), (0.5, 19, 0.5, 1.0))]
    [None, None, None]
    """
    if num_tasks < FEW or wilson(round(acc * num_tasks), num_tasks)[0] > constant_acc:
        return None
    would = f"the commonest right answer, given to all, would score {100 * constant_acc:.1f}%"
    if commonest_frac > 0.9:
        return f"{100 * commonest_frac:.1f}% of the answers are one and the same; {would}."
    return f"Not shown to be better than one answer for all: {would}." if constant_acc >= 0.1 else None


# --- intervals --------------------------------------------------------------------------------------------------------


def wilson(num_correct: int, num_tasks: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927). No tasks: (0, 1).

    >>> [round(x, 4) for x in wilson(0, 10)], [round(x, 4) for x in wilson(128, 256)]
    ([0.0, 0.2775], [0.4392, 0.5608])
    """
    if num_tasks == 0:
        return 0.0, 1.0
    z = stats.norm.ppf(0.5 + level / 2)
    share, shrink = num_correct / num_tasks, 1 + z * z / num_tasks
    centre = (share + z * z / (2 * num_tasks)) / shrink
    half = z * np.sqrt(share * (1 - share) / num_tasks + z * z / (4 * num_tasks**2)) / shrink
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap(
    values: ArrayLike, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value per task (B. Efron, 1979).

    Give differences for a paired interval, accuracies over several samples for `mean_acc`. Columns are averaged first.
    """
    values_P = _per_task(values)
    means = _resampled_means(len(values_P), num_resamples, seed, lambda rng, tasks_RP: values_P[tasks_RP])
    return _percentiles(means, level)


def hierarchical_bootstrap(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean difference b - a: tasks are resampled, then the samples within each drawn task.

    Tasks are rows, samples columns. It is wider than `bootstrap` of the task averages, and conservative: with k
    samples a task the averages already vary by (between tasks) + (within a task) / k, and the second stage adds
    (k - 1) / k^2 of the variance within once more. With no true difference and 4 samples a task it excludes 0 in about
    1 case of 100 where 5 are due (`bootstrap`: 5). Use it as a bound, not as the estimate.
    """
    a_PK, b_PK = _samples(a), _samples(b)
    if len(a_PK) != len(b_PK):
        raise ValueError(f"paired on tasks: a has {len(a_PK)} tasks, b has {len(b_PK)}")

    def difference(rng: np.random.Generator, tasks_RP: np.ndarray) -> np.ndarray:
        return _drawn_means(rng, b_PK, tasks_RP) - _drawn_means(rng, a_PK, tasks_RP)

    return _percentiles(_resampled_means(len(a_PK), num_resamples, seed, difference), level)


def _resampled_means(
    num_tasks: int, num_resamples: int, seed: int, values: Callable[[np.random.Generator, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Mean over tasks of `values(rng, drawn tasks)` in each resample, in chunks that bound memory."""
    if num_tasks == 0:
        raise ValueError("no tasks to resample")
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // num_tasks)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, rows):
        stop = min(start + rows, num_resamples)
        tasks_RP = rng.integers(num_tasks, size=(stop - start, num_tasks), dtype=np.int32)
        means[start:stop] = values(rng, tasks_RP).mean(axis=1)
    return means


def _drawn_means(rng: np.random.Generator, values_PK: np.ndarray, tasks_RP: np.ndarray) -> np.ndarray:
    """For each drawn task, the mean of as many of its samples as it has, drawn with replacement."""
    num_samples = values_PK.shape[1]
    total = np.zeros(tasks_RP.shape)
    for _ in range(num_samples):
        total += values_PK[tasks_RP, rng.integers(num_samples, size=tasks_RP.shape, dtype=np.int32)]
    return total / num_samples


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


# --- paired tests -----------------------------------------------------------------------------------------------------


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact McNemar test of two 0/1 scores per task: are tasks won and tasks lost equally many?

    It is the paired permutation test with all its permutations counted, by a binomial (Q. McNemar, 1947).

    >>> mcnemar([0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1])  # won 5, lost 0: 2 / 2^5
    0.0625
    """
    a_P, b_P = np.asarray(a, bool), np.asarray(b, bool)
    won, lost = int((b_P & ~a_P).sum()), int((a_P & ~b_P).sum())
    return min(1.0, 2 * float(stats.binom.cdf(min(won, lost), won + lost, 0.5)))


def permutation_test(differences: ArrayLike, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> float:
    """Two-sided paired permutation test of a zero mean: the sign of each task's difference is tossed.

    p = (1 + tosses at least as extreme) / (1 + tosses), which is never 0 (Phipson and Smyth, 2010).
    """
    values_P = _per_task(differences)
    values_P = values_P[values_P != 0]  # a zero has no sign to toss
    observed = abs(values_P.sum()) * (1 - 1e-12)  # equal sums in another order of addition are equal
    rng = np.random.default_rng(seed)
    rows, extreme = max(8, CHUNK // max(1, len(values_P))), 0
    for start in range(0, num_resamples, rows):
        count = min(rows, num_resamples - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes(count * -(-len(values_P) // 8)), np.uint8))
        heads = bits.reshape(count, -1)[:, : len(values_P)]
        extreme += int((np.abs(values_P.sum() - 2 * (heads @ values_P)) >= observed).sum())
    return (1 + extreme) / (1 + num_resamples)


# --- one number a step ------------------------------------------------------------------------------------------------


def trend(values: ArrayLike) -> tuple[float, float]:
    """Slope a step of the straight line through values one step apart (least squares), and its standard error.

    The error takes the noise around the line to be independent from step to step, with n - 2 as divisor. It is infinite
    below three values, through which a line can always be laid.

    >>> trend([1.0, 2.0, 3.0, 4.0]), trend([5.0, 9.0])
    ((1.0, 0.0), (0.0, inf))
    >>> slope, error = trend([1.0, 2.0, 2.0])
    >>> round(slope, 6), round(error, 6)  # residuals -1/6, 1/3, -1/6: sqrt((1/6) / 1 / 2)
    (0.5, 0.288675)
    """
    values_N = np.asarray(values, np.float64)
    if len(values_N) < 3:
        return 0.0, math.inf
    step_N = np.arange(len(values_N)) - (len(values_N) - 1) / 2
    square = float((step_N**2).sum())
    slope = float((step_N * (values_N - values_N.mean())).sum()) / square
    residual_N = values_N - values_N.mean() - slope * step_N
    return slope, math.sqrt(float((residual_N**2).sum()) / (len(values_N) - 2) / square)


# --- several samples per task -----------------------------------------------------------------------------------------


def pass_at_k(num_samples: int, num_correct: ArrayLike, k: int) -> PerTask:
    """Unbiased probability, per task, that k samples hold a correct one: 1 - C(n - c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, eq. 1, as the stable product over j = n - c + 1 .. n of 1 - k / j.

    >>> pass_at_k(4, [0, 1, 2, 4], 2)
    array([0.        , 0.5       , 0.83333333, 1.        ])
    """
    correct_P = np.asarray(num_correct)
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= num_samples = {num_samples}")
    if correct_P.size and (correct_P.min() < 0 or correct_P.max() > num_samples):
        raise ValueError(f"num_correct must lie in 0..{num_samples}")
    j = np.arange(1, num_samples + 1)
    factors = np.where(j > num_samples - correct_P[:, None], 1 - k / j, 1.0)
    # Where n - c < k no draw of k can miss; the product then holds the factor 1 - k / k = 0, or j passes below k.
    return np.where(num_samples - correct_P < k, 1.0, 1 - factors.prod(axis=1))


def majority(answers: Sequence[str | None], scores: Sequence[float] | None = None) -> str | None:
    """The most frequent answer. Ties: the higher mean score (for example log-probability) if given, then the first.

    None (no answer) has no vote. No votes: None.

    >>> majority(["12", None, "7", "7", None, None]), majority(["3", "4"]), majority(["3", "4"], [-2.0, -1.0])
    ('7', '3', '4')
    """
    scores = [0.0] * len(answers) if scores is None else scores
    votes, totals = Counter[str](), Counter[str]()
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            votes[answer] += 1
            totals[answer] += score  # pyright: ignore[reportArgumentType]
    return max(votes, key=lambda answer: (votes[answer], totals[answer] / votes[answer]), default=None)


def _samples(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    return values[:, None] if values.ndim == 1 else values


def _per_task(scores: ArrayLike) -> PerTask:
    return _samples(scores).mean(axis=1)
