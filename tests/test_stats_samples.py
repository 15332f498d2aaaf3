"""Curves over several samples of a task: by hand, by counting every draw, and by resampling tasks one by one."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest

from strop.stats import crossover, doubling, majority_at_k, majority_curve, pass_at_k, pass_curve


def test_pass_at_k_equals_the_share_of_draws_with_a_correct_one():
    for n, k in [(1, 1), (4, 1), (4, 2), (6, 3), (6, 6)]:
        draws = list(itertools.combinations(range(n), k))
        expected = [np.mean([any(i < c for i in draw) for draw in draws]) for c in range(n + 1)]
        assert pass_at_k(n, range(n + 1), k) == pytest.approx(expected)
    assert pass_at_k(1024, [3], 128)[0] == pytest.approx(1 - math.comb(1021, 128) / math.comb(1024, 128))
    for n, c, k in [(4, [2], 5), (4, [2], 0), (4, [5], 1)]:
        with pytest.raises(ValueError, match=r"pass@|num_correct"):
            pass_at_k(n, c, k)


def test_pass_at_k_equals_the_published_product():
    """human-eval multiplies 1 - k / j over j = n - c + 1 .. n; ours are the same fractions, other factors."""
    for n, c, k in [(200, 7, 10), (200, 150, 100), (64, 1, 64), (1024, 0, 8)]:
        published = 1.0 if n - c < k else 1 - math.prod(1 - k / j for j in range(n - c + 1, n + 1))
        assert pass_at_k(n, [c], k)[0] == pytest.approx(published, abs=1e-12)


def test_the_curve_holds_the_mean_over_tasks_with_intervals_from_a_slow_loop():
    rng = np.random.default_rng(3)
    correct = rng.binomial(16, rng.beta(0.4, 1.0, 60))
    curve = pass_curve(16, correct)
    assert [p.k for p in curve] == [1, 2, 4, 8, 16] == doubling(16)
    for p in curve:
        per_task = pass_at_k(16, correct, p.k)
        means = [rng.choice(per_task, 60).mean() for _ in range(4000)]
        assert p.value == pytest.approx(per_task.mean())
        assert (p.low, p.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1.01 / 60)  # one task
    assert pass_curve(16, correct) == curve != pass_curve(16, correct, seed=1)
    (point,) = pass_curve(16, correct, [3])
    assert (point.k, point.value) == (3, pytest.approx(pass_at_k(16, correct, 3).mean()))
    with pytest.raises(ValueError, match="no tasks"):
        pass_curve(16, [])


def test_a_curve_of_nothing_is_not_of_no_width():
    assert [round(p.high, 4) for p in pass_curve(4, [0] * 30)] == [0.1135] * 3  # Wilson's, 0 of 30
    assert [round(p.low, 4) for p in majority_curve([["7"] * 4] * 30, [[True] * 4] * 30)] == [0.8865] * 3


def test_the_crossover_is_where_a_loop_over_k_finds_it():
    rng = np.random.default_rng(5)
    base = rng.binomial(32, rng.beta(0.8, 3, 80))
    trained = np.where(rng.random(80) < 0.45, rng.binomial(64, 0.9, 80), 0)
    found = crossover(base, 32, trained, 64)
    ahead = [k for k in range(2, 33) if pass_at_k(32, base, k).mean() >= pass_at_k(64, trained, k).mean()]
    assert found.k == ahead[0]
    assert found.low <= found.k <= found.high
    gap = np.array([pass_at_k(32, base, k) - pass_at_k(64, trained, k) for k in range(2, 33)])
    draws = []
    for _ in range(300):
        gaps = (gap[:, rng.integers(80, size=80)].mean(axis=1) >= 0).tolist()
        draws.append(gaps.index(True) + 2 if True in gaps else 99)
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=1)
    assert found.never_frac == pytest.approx(np.mean(np.array(draws) == 99), abs=0.05)


def test_curves_that_do_not_cross_and_curves_that_are_equal():
    never = crossover([1, 2, 0] * 10, 8, [8, 8, 8] * 10, 8)
    assert (never.k, never.low, never.high, never.never_frac) == (None, None, None, 1.0)
    assert crossover([3] * 9, 8, [3] * 9, 8).k == 2, "equal is no lead; k = 1 is not asked"
    assert crossover([1] * 9, 1, [1] * 9, 1).k is None, "with one sample there is no k above 1"
    half = crossover([0] * 5 + [4] * 5, 4, [2] * 10, 4)  # base: 5 tasks for sure; whether it leads is a toss of tasks
    assert 0 < half.never_frac < 1
    with pytest.raises(ValueError, match="base has 2 tasks, trained has 1"):
        crossover([1, 1], 2, [1], 2)


def test_curves_of_500_tasks_and_1024_samples_take_seconds_at_most():
    correct = np.random.default_rng(0).binomial(1024, 0.1, 500)
    start = time.process_time()
    pass_curve(1024, correct)
    crossover(correct, 1024, correct + 1, 1024, num_resamples=1000)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_majority_at_k_equals_every_ordered_draw_counted(k):
    answers = ["7", None, "7", "5", "5", "1"]
    correct = [True, False, True, False, False, False]
    draws = list(itertools.permutations(range(6), k))
    votes = [Counter(answers[i] for i in draw if answers[i] is not None).most_common(1) for draw in draws]
    exact = np.mean([bool(vote) and vote[0][0] == "7" for vote in votes])  # of tied ones the first, over all orders
    found = majority_at_k([answers], [correct], k, num_draws=20_000)[0]
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))


def test_majority_curve_is_accuracy_at_1_and_the_vote_at_all():
    rng = np.random.default_rng(1)
    chance = rng.random((40, 1))
    correct = rng.random((40, 16)) < chance
    answers = np.where(correct, "right", rng.choice(["a", "b", "c"], (40, 16))).tolist()
    curve = majority_curve(answers, correct.tolist())
    assert [p.k for p in curve] == [1, 2, 4, 8, 16]
    assert curve[0].value == pytest.approx(correct.mean(), abs=0.01)
    assert all(p.low < p.value < p.high for p in curve)
    alone = [majority_at_k(answers, correct.tolist(), 16, seed=s) for s in (0, 1)]
    assert (alone[0] == alone[1]).all(), "all samples: nothing is drawn"
    with pytest.raises(ValueError, match="maj@17"):
        majority_at_k(answers, correct.tolist(), 17)
    assert majority_at_k([[None, None]], [[False, False]], 1)[0] == 0.0
