"""Length against correctness: every number by hand, and against slow loops over many random answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from strop import lengths, stats
from strop.metrics import pass_bin
from strop.record import Reason, Rollout
from test_metrics import CUT, LATE, RIGHT, WRONG, attempt

# Three tasks: one with a gap of 10 - 5, one of 2 - 3, one without a right answer; and a task answered by one rollout.
ANSWERS = [
    attempt(0, 4, RIGHT), attempt(0, 6, RIGHT), attempt(0, 10, CUT),
    attempt(1, 3, RIGHT), attempt(1, 2, WRONG), attempt(1, 5, LATE),
    attempt(2, 7, WRONG), attempt(2, 9, WRONG),
    attempt(3, 1, RIGHT),
]  # fmt: skip


def many(seed: int, num_tasks: int = 60, num_samples: int = 8, max_tokens: int = 64) -> list[Rollout]:
    """Hard tasks are longer and more often wrong; within a task wrong answers are half as long again."""
    rng = np.random.default_rng(seed)
    out = []
    for task in range(num_tasks):
        ease = rng.random()
        for _ in range(num_samples):
            right = rng.random() < ease
            length = int((40 - 30 * ease) * (1.0 if right else 1.5) * rng.lognormal(0, 0.3)) + 1
            reason = CUT if length >= max_tokens else RIGHT if right else WRONG
            out.append(attempt(task, min(length, max_tokens), reason))
    return out


def by_task(rollouts: list[Rollout]) -> dict[int, tuple[list[int], list[int]]]:
    """Lengths of the right and of the wrong answers, by group."""
    out: dict[int, tuple[list[int], list[int]]] = {}
    for r in rollouts:
        out.setdefault(r.group, ([], []))[0 if r.correct else 1].append(r.num_sampled)
    return out


# --- lengths by difficulty --------------------------------------------------------------------------------------------


def test_cells_by_hand() -> None:
    cells = {(c.pass_bin, c.outcome): c for c in lengths.by_difficulty(ANSWERS)}
    assert list(cells) == [
        ("0", "wrong"), ("25-50", "right"), ("25-50", "wrong"), ("50-75", "right"), ("50-75", "truncated"), ("100", "right"),
    ]  # fmt: skip
    assert sum(c.num_answers for c in cells.values()) == 8  # all but the one that could not be graded
    hard = cells["0", "wrong"]
    assert (hard.num_answers, hard.mean_tokens, hard.median_tokens) == (2, 8.0, 8.0)
    assert hard.p90_tokens == pytest.approx(7 + 0.9 * 2)
    assert cells["50-75", "right"].mean_tokens == 5.0
    assert cells["50-75", "truncated"].mean_tokens == 10.0


def test_a_right_answer_that_was_cut_after_it_was_given_is_right() -> None:
    late = attempt(0, 5, CUT)
    right = lengths.replace(late, verdict=ANSWERS[0].verdict)
    assert (lengths.outcome(late), lengths.outcome(right)) == ("truncated", "right")
    assert right.truncated


def test_cells_against_a_loop() -> None:
    rollouts = many(1)
    rates = {g: len(right) / (len(right) + len(wrong)) for g, (right, wrong) in by_task(rollouts).items()}
    for cell in lengths.by_difficulty(rollouts):
        own = [r for r in rollouts if pass_bin(rates[r.group]) == cell.pass_bin]
        mine = {
            "right": [r for r in own if r.correct],
            "wrong": [r for r in own if not r.correct and not r.truncated],
            "truncated": [r for r in own if not r.correct and r.truncated],
        }[cell.outcome]
        sizes = sorted(r.num_sampled for r in mine)
        assert cell.num_answers == len(sizes)
        assert cell.mean_tokens == pytest.approx(sum(sizes) / len(sizes))
        assert sizes[0] <= cell.median_tokens <= cell.p90_tokens <= sizes[-1]


# --- the gap within tasks ---------------------------------------------------------------------------------------------


def test_the_gap_by_hand() -> None:
    found = lengths.gap(ANSWERS)
    assert found is not None
    assert found.num_tasks == 2  # one task has nothing right, one nothing wrong
    assert found.tokens.value == (5 - 1) / 2
    assert found.longer_frac == 0.5
    assert found.auc.value == (1.0 + 0.0) / 2
    # Within task 0: x = (-1/3, -1/3, 2/3), y = logs of 4, 6, 10; within task 1: x = (-1/2, 1/2), logs of 3 and 2.
    xy = -math.log(4) / 3 - math.log(6) / 3 + 2 * math.log(10) / 3 + (math.log(2) - math.log(3)) / 2
    xx = 1 / 9 + 1 / 9 + 4 / 9 + 1 / 2
    assert found.times.value == pytest.approx(math.exp(xy / xx))


def test_a_tie_counts_half() -> None:
    found = lengths.gap([attempt(0, 5, RIGHT), attempt(0, 5, WRONG), attempt(0, 5, WRONG), attempt(0, 6, WRONG)])
    assert found is not None
    assert found.auc.value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found.auc.low == found.auc.high == found.auc.value  # one task: every resample is that task


def test_the_gap_against_loops_and_least_squares() -> None:
    rollouts = many(2)
    found = lengths.gap(rollouts)
    both = [(right, wrong) for right, wrong in by_task(rollouts).values() if right and wrong]
    gaps = [sum(wrong) / len(wrong) - sum(right) / len(right) for right, wrong in both]
    aucs = [
        sum(1.0 if w > r else 0.5 if w == r else 0.0 for w in wrong for r in right) / len(right) / len(wrong)
        for right, wrong in both
    ]
    assert found is not None
    assert found.num_tasks == len(both)
    assert found.tokens.value == pytest.approx(sum(gaps) / len(gaps))
    assert found.longer_frac == pytest.approx(sum(g > 0 for g in gaps) / len(gaps))
    assert found.auc.value == pytest.approx(sum(aucs) / len(aucs))
    design, y = [], []  # one column a task, and one for being wrong
    for task, (right, wrong) in enumerate(both):
        for is_wrong, sizes in ((0.0, right), (1.0, wrong)):
            for size in sizes:
                design.append([float(task == t) for t in range(len(both))] + [is_wrong])
                y.append(math.log(size))
    effect = np.linalg.lstsq(np.array(design), np.array(y), rcond=None)[0][-1]
    assert found.times.value == pytest.approx(math.exp(effect))


def test_the_effect_is_found_and_difficulty_does_not_pass_for_one() -> None:
    found = lengths.gap(many(3, num_tasks=200, max_tokens=10_000))
    assert found is not None
    assert found.times.low < 1.5 < found.times.high
    assert found.times.high - found.times.low < 0.2
    assert found.auc.low > 0.7
    hard, easy = (
        [attempt(0, 50, WRONG)] * 3 + [attempt(0, 50, RIGHT)],
        [attempt(1, 5, RIGHT)] * 3 + [attempt(1, 5, WRONG)],
    )
    none = lengths.gap(hard + easy)
    assert none is not None
    assert (none.tokens.value, none.times.value, none.auc.value) == (0.0, pytest.approx(1.0), 0.5)


def test_intervals_hold_what_a_bootstrap_of_the_gaps_says() -> None:
    rollouts = many(4)
    gaps = [np.mean(wrong) - np.mean(right) for right, wrong in by_task(rollouts).values() if right and wrong]
    found = lengths.gap(rollouts)
    assert found is not None
    low, high = stats.bootstrap(gaps, seed=9)
    assert (found.tokens.low, found.tokens.high) == (pytest.approx(low, abs=0.4), pytest.approx(high, abs=0.4))
    assert lengths.gap(rollouts) == found
    assert lengths.gap(rollouts, seed=1) != found


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_lower_limit_cuts_and_makes_wrong() -> None:
    short, long = lengths.cut([attempt(0, 4, RIGHT), attempt(0, 6, RIGHT)], 5)
    assert (short.num_sampled, short.correct, short.truncated) == (4, True, False)
    assert (long.num_sampled, long.correct, long.truncated) == (5, False, True)
    assert long.verdict is not None
    assert long.verdict.reason is Reason.TRUNCATED


def test_views_tell_gaps_with_and_without_what_was_cut_at_two_limits() -> None:
    found = {(v.cap_tokens, v.with_truncated): v.gap for v in lengths.views(ANSWERS, 10)}
    assert list(found) == [(10, True), (10, False), (5, True), (5, False)]
    assert found[10, True] == lengths.gap(ANSWERS)
    at_10 = found[10, False]  # the cut answer of task 0 is gone, and with it the task
    assert at_10 is not None
    assert (at_10.num_tasks, at_10.tokens.value) == (1, 2 - 3)
    at_5 = found[5, True]  # task 0: 4 right, and 6 and 10 cut at 5
    assert at_5 is not None
    assert (at_5.tokens.value, at_5.auc.value) == (((5 - 4) + (2 - 3)) / 2, 0.5)
    assert lengths.views([attempt(0, 1, RIGHT)], 1)[0].gap is None


# --- what an answer costs ---------------------------------------------------------------------------------------------


def test_tokens_per_right_answer() -> None:
    one_each = [attempt(0, 4, RIGHT), attempt(1, 10, WRONG), attempt(2, 6, RIGHT)]
    found = lengths.tokens_per_right(one_each)
    assert found is not None
    assert found.value == pytest.approx(20 / 2)
    assert found.low == 4.0  # the cheapest resample of the three, drawn once in 27
    assert found.high == math.inf  # nothing right in one resample of 27
    assert lengths.tokens_per_right([attempt(0, 4, WRONG)]) is None
    assert lengths.tokens_per_right([]) is None


def test_accuracy_at_budgets_by_hand_and_by_wilson() -> None:
    one_each = [attempt(0, 16, RIGHT), attempt(1, 17, RIGHT), attempt(2, 5, WRONG), attempt(3, 40, LATE)]
    found = lengths.at_budgets(one_each, 40)
    assert [(b.budget_tokens, b.acc.value) for b in found] == [(16, 0.25), (32, 0.5), (40, 0.5)]
    assert (found[0].acc.low, found[0].acc.high) == stats.wilson(1, 4)
    assert lengths.at_budgets([], 40) == []


def test_accuracy_at_budgets_against_a_loop_ends_at_the_accuracy() -> None:
    rollouts = many(5)
    found = lengths.at_budgets(rollouts, 64)
    for point in found:
        right = [r for r in rollouts if r.correct and r.num_sampled <= point.budget_tokens]
        assert point.acc.value == pytest.approx(len(right) / len(rollouts))
        assert point.acc.low <= point.acc.value <= point.acc.high
    assert [b.budget_tokens for b in found] == [16, 32, 64]
    assert found[-1].acc.value == pytest.approx(np.mean([r.correct for r in rollouts]))
    accs = [np.mean([r.correct for r in rollouts if r.group == g]) for g in range(60)]
    assert (found[-1].acc.low, found[-1].acc.high) == pytest.approx(stats.bootstrap(accs), abs=0.01)


def test_the_shortest_right_answer_of_a_task() -> None:
    assert lengths.shortest_right(ANSWERS) == (3, 3.0)  # 4, 3 and 1
    assert lengths.shortest_right([attempt(0, 4, WRONG)]) is None
