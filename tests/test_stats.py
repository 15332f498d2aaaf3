"""Intervals and tests: by hand, against scipy, and calibrated on simulated pairs."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from scipy import stats as scipy_stats

from strop.stats import (
    Comparison,
    average,
    bootstrap,
    compare,
    hierarchical_bootstrap,
    mcnemar,
    paired_shares,
    permutation_test,
    ratio,
    verdict_in_words,
    wilson,
)
from strop.stats.intervals import tail


@pytest.mark.parametrize(("correct", "tasks"), [(0, 10), (10, 10), (3, 7), (128, 256), (1, 1)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_equals_scipy(correct, tasks, level):
    expected = scipy_stats.binomtest(correct, tasks).proportion_ci(level, method="wilson")
    assert wilson(correct, tasks, level) == pytest.approx(tuple(expected), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_by_hand():
    # z = 1.959964, 4 of 10: centre (0.4 + 0.192073) / 1.384146, half 1.959964 sqrt(0.024 + 0.0096036) / 1.384146
    assert wilson(4, 10) == pytest.approx((0.168180, 0.687326), abs=1e-5)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 0), (12, 3), (7, 7), (40, 61)])
def test_mcnemar_equals_the_binomial_test(won, lost):
    a = np.array([0] * won + [1] * lost + [1] * 9 + [0] * 4)
    b = np.array([1] * won + [0] * lost + [1] * 9 + [0] * 4)
    expected = scipy_stats.binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected)


def test_permutation_test_equals_all_permutations_counted():
    values = np.array([0.5, 0.25, -0.25, 0.75, 0.0, 0.5, -0.25, 1.0, 0.25])
    signs = itertools.product([1, -1], repeat=len(values))
    exact = np.mean([abs(np.dot(s, values)) >= abs(values.sum()) - 1e-9 for s in signs])
    assert permutation_test(values, num_resamples=100_000) == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))


def test_permutation_test_agrees_with_scipy_and_with_mcnemar():
    rng = np.random.default_rng(0)
    values = rng.normal(0.12, 1, 300)
    theirs = scipy_stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert permutation_test(values, num_resamples=20_000) == pytest.approx(theirs.pvalue, abs=0.01)
    a, b = rng.random(200) < 0.4, rng.random(200) < 0.5
    assert permutation_test(b.astype(float) - a, num_resamples=100_000) == pytest.approx(mcnemar(a, b), abs=0.01)
    assert permutation_test(np.zeros(20)) == 1.0
    assert permutation_test(np.ones(100)) == pytest.approx(1 / 10_001)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=200) - 0.8
    ours = bootstrap(values, num_resamples=20_000)
    level = 1 - 2 * scipy_stats.norm.cdf(scipy_stats.t.ppf(0.025, 199) * math.sqrt(200 / 199))  # what `tail` says
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", confidence_level=level, rng=2
    )
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    narrower = bootstrap(values, level=0.5)
    assert ours[0] < narrower[0] < values.mean() < narrower[1] < ours[1]


def test_bootstrap_of_one_value_and_of_none():
    assert bootstrap([0.5] * 9) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no tasks"):
        bootstrap([])


def test_hierarchical_bootstrap_has_the_two_stage_variance():
    rng = np.random.default_rng(0)
    right = (rng.random((150, 4)) < rng.beta(1, 1, 150)[:, None]).astype(float)
    low, high = hierarchical_bootstrap(right)
    between, within = right.mean(1).var(), right.var(axis=1).mean() / 4
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt((between + within) / 150), rel=0.04)
    one_stage = bootstrap(right)
    assert one_stage[1] - one_stage[0] == pytest.approx(2 * 1.96 * math.sqrt(between / 150), rel=0.04)
    assert (low + high) / 2 == pytest.approx(right.mean(), abs=0.01)
    # With one sample a task there is nothing below the tasks.
    assert hierarchical_bootstrap(right[:, 0])[1] == pytest.approx(bootstrap(right[:, 0])[1], abs=0.01)
    with pytest.raises(ValueError, match="1 or 0"):
        hierarchical_bootstrap([[0.5, 1.0]])


def test_hierarchical_bootstrap_against_a_loop_over_tasks_and_samples():
    rng = np.random.default_rng(3)
    right = (rng.random((12, 3)) < 0.4).astype(float)
    draws = [np.mean([rng.choice(right[t], 3) for t in rng.integers(12, size=12)]) for _ in range(4000)]
    outside = tail(12)
    assert hierarchical_bootstrap(right) == pytest.approx(np.quantile(draws, [outside, 1 - outside]), abs=0.03)


def test_avg_at_k_is_wilsons_for_single_samples_and_over_both_for_several():
    rng = np.random.default_rng(4)
    right = (rng.random((40, 8)) < 0.3).astype(float)
    assert (lambda e: (e.low, e.high))(average(right)) == hierarchical_bootstrap(right)
    one = average(right[:, :1])
    assert (one.value, (one.low, one.high)) == (right[:, 0].mean(), wilson(int(right[:, 0].sum()), 40))
    assert average(np.zeros((30, 4))).high == pytest.approx(wilson(0, 30)[1])


def test_a_ratio_resamples_the_tasks_that_have_any():
    rng = np.random.default_rng(5)
    whole = rng.integers(0, 5, 60)
    part = rng.binomial(whole, 0.3)
    found = ratio(part, whole)
    some = np.flatnonzero(whole)
    draws = [(part[i].sum() / whole[i].sum()) for i in (rng.choice(some, len(some)) for _ in range(4000))]
    assert found.value == pytest.approx(part.sum() / whole.sum())
    assert (found.low, found.high) == pytest.approx(
        np.quantile(draws, [tail(len(some)), 1 - tail(len(some))]), abs=0.01
    )
    assert ratio([0, 0], [3, 4]).high == pytest.approx(wilson(0, 2)[1])


def test_compare_uses_the_pairing_and_the_seed():
    rng = np.random.default_rng(0)
    difficulty = rng.random(300) < 0.5
    a = difficulty.copy()
    b = difficulty | (rng.random(300) < 0.05)  # never worse, a little better
    c = compare(a, b, seed=3)
    assert c == compare(a, b, seed=3)
    assert c.ci95 != compare(a, b, seed=4).ci95 or c.ci95[0] > 0
    assert c.delta == pytest.approx(b.mean() - a.mean())
    assert c.num_tasks == 300
    assert c.p == mcnemar(a, b) < 0.05
    assert 0 < c.ci95[0] < c.delta < c.ci95[1]
    unpaired = compare(a, rng.permutation(b))
    assert unpaired.ci95[1] - unpaired.ci95[0] > 3 * (c.ci95[1] - c.ci95[0])
    back = compare(b, a, seed=3)
    assert back.delta == -c.delta
    assert back.p == c.p


def test_compare_averages_samples_per_task():
    a = np.array([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]] * 30)
    b = np.array([[1, 1], [1, 1], [0, 1]] * 30)
    c = compare(a, b)
    assert c.delta == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert c.ci95 == bootstrap(b.mean(1) - a.mean(1))
    assert c.p == permutation_test(b.mean(1) - a.mean(1))
    with pytest.raises(ValueError, match="a has 3 tasks, b has 2"):
        compare([0, 1, 1], [0, 1])


@pytest.mark.parametrize(("num_tasks", "num_samples"), [(256, 1), (128, 4)])
def test_without_an_effect_about_5_in_100_are_significant(num_tasks, num_samples):
    """Two arms with the same chance on each task, tasks easy and hard. 400 runs: 5% is 20, give or take 4.4."""
    rng = np.random.default_rng(7)
    outside, small_p, runs = 0, 0, 400
    for run in range(runs):
        chance = rng.beta(0.7, 1.2, (num_tasks, 1))
        a, b = (rng.random((num_tasks, num_samples)) < chance for _ in range(2))
        c = compare(a, b, seed=run, num_resamples=1000)
        outside += not c.ci95[0] <= 0 <= c.ci95[1]
        small_p += c.p < 0.05
    assert scipy_stats.binomtest(outside, runs, 0.05).pvalue > 0.01
    # Exact tests of few discordant tasks are a little conservative (3 to 5%): not above 5%, not far below.
    assert scipy_stats.binomtest(small_p, runs, 0.05, alternative="greater").pvalue > 0.01
    assert small_p >= 6


def test_known_effects_are_found_and_covered():
    """From 40% to 55% on 256 independent tasks: z = 0.15 / sqrt((0.24 + 0.2475) / 256) = 3.4, so power 0.93."""
    rng = np.random.default_rng(8)
    found, covered, runs = 0, 0, 200
    for run in range(runs):
        c = compare(rng.random(256) < 0.40, rng.random(256) < 0.55, seed=run, num_resamples=1000)
        found += c.ci95[0] > 0
        covered += c.ci95[0] <= 0.15 <= c.ci95[1]
    assert scipy_stats.binomtest(found, runs, 0.93).pvalue > 0.01
    assert scipy_stats.binomtest(covered, runs, 0.95).pvalue > 0.01


def test_ten_thousand_resamples_of_512_tasks_take_a_fraction_of_a_second():
    rng = np.random.default_rng(0)
    a, b = rng.random((512, 4)) < 0.4, rng.random((512, 4)) < 0.5
    fastest = math.inf
    for _ in range(5):
        start = time.process_time()
        compare(a, b)
        fastest = min(fastest, time.process_time() - start)
    assert fastest < 0.2


def test_verdicts_in_words_follow_the_interval():
    better = Comparison(delta=0.1, ci95=(0.02, 0.18), p=0.012, num_tasks=256)
    assert verdict_in_words(better, "sft", "rl", num_seeds=8, needed="100 tasks would show 2 points") == (
        "rl beats sft by 10.0 points (95% interval 2.0 to 18.0), p = 0.012, 256 tasks, 8 seeds."
    )
    worse = Comparison(delta=-0.1, ci95=(-0.18, -0.02), p=0.012, num_tasks=256)
    assert verdict_in_words(worse, "sft", "rl", p_adjusted=0.036) == (
        "rl is worse than sft by 10.0 points (95% interval 2.0 to 18.0), p = 0.012 (p = 0.036 corrected), 256 tasks."
    )
    for ci95 in [(-0.01, 0.2), (0.0, 0.2), (-0.2, 0.0)]:
        text = verdict_in_words(Comparison(delta=0.1, ci95=ci95, p=0.06, num_tasks=9), needed="100 tasks would show it")
        assert text.startswith("No difference could be shown between before and after: +10.0 points")
        assert text.endswith("; 100 tasks would show it.")


def test_a_verdict_heeds_the_corrected_p():
    better = Comparison(delta=0.1, ci95=(0.02, 0.18), p=0.012, num_tasks=256)
    assert "beats" in verdict_in_words(better, p_adjusted=0.049)
    assert "No difference could be shown" in verdict_in_words(better, p_adjusted=0.05)


def test_an_interval_of_few_wins_has_width_and_a_claim_needs_both_interval_and_p() -> None:
    """Five tasks, all won: the interval lies above 0, but half of a coin's 32 tosses in a row prove little (p = 0.0625)."""
    won = compare([0] * 5, [1] * 5)
    assert won.p == 0.0625
    assert won.claim() == "none"
    assert compare([0], [1]).claim() == "none"
    assert compare([0] * 6, [1] * 6).claim() == "gain"
    assert compare([0] * 6, [1] * 6).claim(p_adjusted=0.06) == "none"
    same = compare([[1, 0]] * 30, [[1, 0]] * 30)  # sampled, and no difference anywhere
    assert same.ci95[0] < 0 < same.ci95[1]


def test_paired_shares_cover_a_gain_on_few_tasks() -> None:
    rng, gain, covered = np.random.default_rng(0), 0.03, 0
    for _ in range(1000):
        low, high = paired_shares(np.zeros(30), rng.random(30) < gain)
        covered += low <= gain <= high
    assert covered >= 950
