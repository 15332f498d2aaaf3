"""Length against correctness: are wrong answers longer, by how much, and what accuracy does a budget of tokens buy?

Functions over the rollouts of one evaluation, greedy or several a task; every interval is 95%, over tasks. Knows records
and how groups split into right and wrong; does not know where an evaluation lies or how a figure looks. Read by the report.

One mean says little: hard tasks have longer answers that are more often wrong. So lengths are told by difficulty, and
right and wrong are compared within a task. An answer that was cut is wrong and as long as the limit, both by the limit's
doing: `views` tells every gap with those answers and without them, at the limit and at half of it. What could not be
graded is neither right nor wrong, but its tokens were spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from strop import stats
from strop.metrics import PASS_BINS, by_outcome, groups_of, length_gap, pass_bin
from strop.record import Reason, Rollout, Stop, Verdict, replace
from strop.stats import Estimate
from strop.stats.intervals import tail, task_counts

__all__ = [
    "OUTCOMES", "AtBudget", "Cell", "Gap", "View", "at_budgets", "by_difficulty", "cut", "gap", "outcome", "shortest_right", "tokens_per_right", "views",
]  # fmt: skip

Outcome = Literal["right", "wrong", "truncated"]
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "truncated")
NUM_RESAMPLES = 2000
SMALLEST_BUDGET = 16  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The lengths of one outcome among the tasks of one difficulty."""

    pass_bin: str  # per cent of a task's answers that are right, one of PASS_BINS
    outcome: Outcome
    num_answers: int
    mean_tokens: float
    median_tokens: float
    p90_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Wrong answers against right ones of the same task, over the tasks that have both."""

    num_tasks: int
    tokens: Estimate  # mean length of the wrong ones minus that of the right ones
    longer_frac: float  # tasks in which that is above 0
    times: Estimate  # wrong answers are so many times as long: exp of the effect in log length = task + wrong
    auc: Estimate  # probability that a random wrong answer is longer than a random right one; 0.5 is no difference


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The gap under one reading of the answers that a limit cuts."""

    cap_tokens: int
    with_truncated: bool
    gap: Gap | None  # None where no task has both right and wrong answers


@dataclass(frozen=True, slots=True, kw_only=True)
class AtBudget:
    """Accuracy if no answer may use more than `budget_tokens`."""

    budget_tokens: int
    acc: Estimate


def outcome(rollout: Rollout) -> Outcome:
    """Right wherever the verifier said so; else truncated if the limit cut it, else wrong."""
    return "right" if rollout.correct else "truncated" if rollout.truncated else "wrong"


def by_difficulty(rollouts: Sequence[Rollout]) -> list[Cell]:
    """Lengths by pass rate of the task and by outcome, in that order; cells without an answer are left out.

    A task's pass rate is that of its own answers here, so with one answer a task the bins only say right or wrong.
    """
    lengths: dict[tuple[str, Outcome], list[int]] = {}
    for group in groups_of([r for r in rollouts if r.scorable]):
        bin_ = pass_bin(float(np.mean([r.correct for r in group])))
        for r in group:
            lengths.setdefault((bin_, outcome(r)), []).append(r.num_sampled)
    keys: list[tuple[str, Outcome]] = [(b, o) for b in PASS_BINS for o in OUTCOMES if (b, o) in lengths]
    return [
        Cell(
            pass_bin=b, outcome=o, num_answers=len(n), mean_tokens=float(np.mean(n)),
            median_tokens=float(np.median(n)), p90_tokens=float(np.quantile(n, 0.9)),
        )
        for b, o in keys
        for n in [lengths[b, o]]
    ]  # fmt: skip


def views(rollouts: Sequence[Rollout], max_tokens: int, *, seed: int = 0) -> list[View]:
    """The gap at the limit and at half of it, each with the cut answers and without them."""
    return [
        View(cap_tokens=cap, with_truncated=keep, gap=gap([r for r in at_cap if keep or not r.truncated], seed=seed))
        for cap in (max_tokens, max_tokens // 2)
        for at_cap in [cut(rollouts, cap)]
        for keep in (True, False)
        if cap > 0
    ]


def cut(rollouts: Sequence[Rollout], cap_tokens: int) -> list[Rollout]:
    """What a lower limit would have left of them, for measuring lengths: what is longer is cut there, and wrong."""
    verdict = Verdict(correct=False, extracted=None, reason=Reason.TRUNCATED)
    return [
        r
        if r.num_sampled <= cap_tokens
        else replace(r, sampled=r.sampled & (np.cumsum(r.sampled) <= cap_tokens), stop=Stop.LENGTH, verdict=verdict)
        for r in rollouts
    ]


def gap(rollouts: Sequence[Rollout], *, seed: int = 0) -> Gap | None:
    """The gap within tasks; None where no task has both right and wrong answers.

    `times` is least squares of log length on an effect of the task and one of being wrong: on values centred within the
    task, sum(x y) / sum(x x). It weighs a task by its number of right-wrong pairs, `tokens` and `auc` weigh tasks alike.
    """
    both = [(g, *by_outcome(g)) for g in groups_of(rollouts)]
    both = [(g, right, wrong) for g, right, wrong in both if right and wrong]
    if not both:
        return None
    columns_PC = np.array([[length_gap(g), *_log_sums(right, wrong), _auc(right, wrong)] for g, right, wrong in both])
    means_RC = _resampled(columns_PC, seed)
    tokens, xy, xx, auc = columns_PC.mean(axis=0)
    return Gap(
        num_tasks=len(both),
        tokens=_estimate(tokens, means_RC[:, 0], len(both)),
        longer_frac=float(np.mean(columns_PC[:, 0] > 0)),
        times=_estimate(np.exp(xy / xx), np.exp(means_RC[:, 1] / means_RC[:, 2]), len(both)),
        auc=_estimate(auc, means_RC[:, 3], len(both)),
    )


def tokens_per_right(rollouts: Sequence[Rollout], *, seed: int = 0) -> Estimate | None:
    """All tokens spent, divided by the number of right answers: what a right answer costs. None where none is right.

    The upper end is infinite where some resample of the tasks has no right answer.
    """
    per_task = [[np.mean([r.num_sampled for r in g]), np.mean([r.correct for r in g])] for g in groups_of(rollouts)]
    columns_P2 = np.array(per_task).reshape(-1, 2)
    if not columns_P2[:, 1].any():
        return None
    means_R2 = _resampled(columns_P2, seed)
    tokens, right = columns_P2.mean(axis=0)
    with np.errstate(divide="ignore"):
        return _estimate(tokens / right, means_R2[:, 0] / means_R2[:, 1], len(columns_P2))


def at_budgets(rollouts: Sequence[Rollout], max_tokens: int, *, seed: int = 0) -> list[AtBudget]:
    """Accuracy at 16, 32, 64 ... tokens and at `max_tokens`: an answer counts if it is right and no longer than that.

    The interval is Wilson's where every task has one answer, else a bootstrap over tasks. No rollouts: an empty list.
    """
    groups, budgets = groups_of(rollouts), _budgets(max_tokens)
    if not groups:
        return []
    accs_PB = np.array([
        [np.mean([r.correct and r.num_sampled <= budget for r in g]) for budget in budgets] for g in groups
    ])  # fmt: skip
    if all(len(g) == 1 for g in groups):
        intervals = [stats.wilson(int(right), len(groups)) for right in accs_PB.sum(axis=0)]
    else:
        outside = tail(len(groups))
        intervals = np.quantile(_resampled(accs_PB, seed), [outside, 1 - outside], axis=0).T
    return [
        AtBudget(budget_tokens=budget, acc=stats.widened(float(acc), (float(low), float(high)), len(groups)))
        for budget, acc, (low, high) in zip(budgets, accs_PB.mean(axis=0), intervals, strict=True)
    ]


def shortest_right(rollouts: Sequence[Rollout]) -> tuple[int, float] | None:
    """Tasks with a right answer, and the median over them of the shortest one's tokens; None where there is none."""
    rights = [right for g in groups_of(rollouts) if (right := by_outcome(g)[0])]
    shortest = [min(r.num_sampled for r in right) for right in rights]
    return (len(shortest), float(np.median(shortest))) if shortest else None


# --- parts ------------------------------------------------------------------------------------------------------------


def _budgets(max_tokens: int) -> list[int]:
    """
    >>> _budgets(100), _budgets(64), _budgets(8)
    ([16, 32, 64, 100], [16, 32, 64], [8])
    """
    doubled = [SMALLEST_BUDGET << i for i in range(max_tokens.bit_length())]
    return [budget for budget in doubled if budget < max_tokens] + [max_tokens]


def _log_sums(right: Sequence[Rollout], wrong: Sequence[Rollout]) -> tuple[float, float]:
    """sum(x y) and sum(x x) of one task, both centred within it: x is 1 where wrong, y the log of the length."""
    # An empty answer, which the engine never returns, would have no logarithm.
    y = np.log([max(1, r.num_sampled) for r in (*right, *wrong)])
    x = np.repeat([0.0, 1.0], [len(right), len(wrong)])
    x -= x.mean()
    return float(x @ y), float(x @ x)


def _auc(right: Sequence[Rollout], wrong: Sequence[Rollout]) -> float:
    """Share of the pairs in which the wrong one is longer; a tie counts half."""
    rights, wrongs = (np.array([r.num_sampled for r in rs]) for rs in (right, wrong))
    longer = wrongs[:, None] - rights
    return float(np.mean(longer > 0) + np.mean(longer == 0) / 2)


def _resampled(columns_PC: Float64[np.ndarray, "P C"], seed: int) -> Float64[np.ndarray, "R C"]:
    """Means of the columns over tasks drawn with replacement, all columns by the same draw."""
    counts_RP = task_counts(np.random.default_rng(seed), len(columns_PC), NUM_RESAMPLES)
    return counts_RP @ columns_PC / len(columns_PC)


def _estimate(value: float, resampled_R: Float64[np.ndarray, " R"], num_tasks: int) -> Estimate:
    # Not interpolated: between a number and infinity lies nothing.
    outside = tail(num_tasks)
    low, high = np.quantile(resampled_R, [outside, 1 - outside], method="closest_observation")
    return Estimate(value=float(value), low=float(low), high=float(high))
