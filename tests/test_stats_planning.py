"""Power and corrections: against textbook formulas, scipy, and simulated evaluations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from strop.stats import (
    Spread,
    best_of,
    best_of_in_words,
    bootstrap,
    chance_of_best,
    detectable,
    guess,
    holm,
    permutation_test,
    power,
    samples_needed,
    sidak,
    spread,
    tasks_needed,
    would_show,
)


def evaluations(
    rng: np.random.Generator, num_tasks: int, num_samples: int, gain: float
) -> tuple[np.ndarray, np.ndarray]:
    """a and b with tasks of all difficulties; b gains on half of the tasks, twice `gain` each."""
    chance = rng.uniform(0.1, 0.9 - 2 * gain, (num_tasks, 1))
    gains = np.where(rng.random((num_tasks, 1)) < 0.5, 2 * gain, 0.0)
    shape = (num_tasks, num_samples)
    return (rng.random(shape) < chance) * 1.0, (rng.random(shape) < chance + gains) * 1.0


# --- calibration ------------------------------------------------------------------------------------------------------


def no_effect(num_tasks: int, num_samples: int, runs: int) -> np.ndarray:
    """Differences per task of so many pairs of sampled evaluations of one and the same model."""
    rng = np.random.default_rng(11)
    pairs = (evaluations(rng, num_tasks, num_samples, 0.0) for _ in range(runs))
    return np.array([b.mean(axis=1) - a.mean(axis=1) for a, b in pairs])


@pytest.mark.parametrize(("num_tasks", "num_samples", "runs"), [(30, 8, 3000), (100, 4, 1500)])  # 30: AIME
def test_without_an_effect_5_in_100_intervals_exclude_0(num_tasks, num_samples, runs):
    """5%, give or take one point. The interval decides the words."""
    intervals = [
        bootstrap(d, seed=i, num_resamples=1000) for i, d in enumerate(no_effect(num_tasks, num_samples, runs))
    ]
    assert np.mean([not low <= 0 <= high for low, high in intervals]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("num_tasks", "num_samples"), [(30, 8), (100, 4)])
def test_without_an_effect_5_in_100_permutation_tests_are_significant(num_tasks, num_samples):
    """Sampled scores. (One greedy answer a task has the exact McNemar test, which stays below 5%: test_stats.)"""
    differences = no_effect(num_tasks, num_samples, 6000)
    significant = [permutation_test(d, seed=i, num_resamples=399) <= 0.05 for i, d in enumerate(differences)]
    assert np.mean(significant) == pytest.approx(0.05, abs=0.01)


def test_the_stated_power_holds():
    """The spread is known here: the share of significant pairs is what `power` says, and 80% at the samples it asks for."""
    gain, num_tasks = 0.06, 120
    chance = np.linspace(0.1, 0.9 - 2 * gain, 10_001)
    within = np.mean([p * (1 - p) for p in chance]) + np.mean([p * (1 - p) for p in (*chance, *(chance + 2 * gain))])
    known = Spread(between=gain**2, within=float(within))  # gains are 0 or twice the mean: variance = mean squared
    asked = samples_needed(gain, num_tasks, spread=known)
    rng, runs = np.random.default_rng(12), 1000
    for num_samples in (2, asked):
        found = 0
        for run in range(runs):
            a, b = evaluations(rng, num_tasks, num_samples, gain)
            low, _ = bootstrap(b.mean(axis=1) - a.mean(axis=1), seed=run, num_resamples=400)
            found += low > 0
        assert found / runs == pytest.approx(power(gain, num_tasks, num_samples, spread=known), abs=0.04)
    assert power(gain, num_tasks, asked, spread=known) >= 0.8 > power(gain, num_tasks, asked - 1, spread=known)


def test_the_spread_of_two_evaluations_is_estimated_without_bias():
    rng = np.random.default_rng(13)
    found = [spread(*evaluations(rng, 400, 6, 0.1)) for _ in range(60)]
    chance = np.linspace(0.1, 0.7, 10_001)
    within = (chance * (1 - chance)).mean() * 1.5 + ((chance + 0.2) * (0.8 - chance)).mean() * 0.5
    assert np.mean([s.within for s in found]) == pytest.approx(within, rel=0.02)
    assert np.mean([s.between for s in found]) == pytest.approx(0.01, rel=0.15)
    a, b = evaluations(rng, 400, 6, 0.1)
    seen = (b.mean(axis=1) - a.mean(axis=1)).std(ddof=1) / 20
    assert spread(a, b).error(400, 6) == pytest.approx(seen)
    greedy = spread(a[:, 0], b[:, 0])
    assert (greedy.within, greedy.between) == (0.0, pytest.approx((b[:, 0] - a[:, 0]).var(ddof=1)))


# --- power by formula -------------------------------------------------------------------------------------------------


def test_power_is_that_of_a_z_test():
    spread_ = Spread(between=1.0, within=0.0)
    for effect, tasks in [(0.5, 32), (0.2, 197), (0.0, 10), (1.0, 5)]:
        shift = effect * math.sqrt(tasks)
        expected = scipy_stats.norm.cdf(shift - 1.959964) + scipy_stats.norm.cdf(-shift - 1.959964)
        assert power(effect, tasks, spread=spread_) == pytest.approx(expected, abs=1e-6)
        assert power(-effect, tasks, spread=spread_) == power(effect, tasks, spread=spread_)
    # Cohen's table for d = 0.2 and 0.5 with one sample and the normal in place of t: 196.2 and 31.4.
    assert [tasks_needed(d, spread=spread_) for d in (0.2, 0.5)] == [197, 32]


def test_power_agrees_with_students_t_where_tasks_are_many():
    """What statsmodels' TTestPower computes: the non-central t."""
    effect, sd, tasks = 0.02, 0.25, 1000
    shift, cut = effect / sd * math.sqrt(tasks), scipy_stats.t.ppf(0.975, tasks - 1)
    exact = scipy_stats.nct.sf(cut, tasks - 1, shift) + scipy_stats.nct.cdf(-cut, tasks - 1, shift)
    assert power(effect, tasks, spread=Spread(between=sd**2, within=0.0)) == pytest.approx(exact, abs=0.002)


def test_what_is_needed_is_the_least_that_suffices():
    for between, within, effect in itertools.product((0.0, 0.01), (0.1, 0.4), (0.02, 0.05)):
        s = Spread(between=between, within=within)
        k, tasks = samples_needed(effect, 400, spread=s), tasks_needed(effect, 4, spread=s)
        assert power(effect, tasks, 4, spread=s) >= 0.8 > power(effect, tasks - 1, 4, spread=s)
        if k is None:
            assert power(effect, 400, 10**9, spread=s) < 0.8
        else:
            assert power(effect, 400, k, spread=s) >= 0.8
            assert k == 1 or power(effect, 400, k - 1, spread=s) < 0.8
    with pytest.raises(ValueError, match="difference of 0"):
        tasks_needed(0.0, spread=guess(0.5))


def test_what_is_detectable_has_the_stated_power():
    for tasks, samples, acc in [(30, 10, 0.287), (500, 4, 0.85)]:
        gain = detectable(tasks, samples, acc)
        assert power(gain, tasks, samples, spread=guess(acc)) == pytest.approx(0.8, abs=0.001)
        assert detectable(tasks, samples, acc, between=0.02) > gain > detectable(tasks, 2 * samples, acc)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        detectable(30, 1, 28.7)


def test_words_name_the_cheapest_way_to_know():
    assert (
        would_show(Spread(between=0.0, within=0.3), 500, 4) == "about 4,000 more samples from each would show 2 points"
    )
    assert would_show(Spread(between=0.3, within=0.3), 500, 4, 0.05) == "about 680 more tasks would show 5 points"
    assert would_show(Spread(between=0.0, within=0.3), 500, 64) == "2 points would have shown (power 100%)"
    assert would_show(Spread(between=0.0, within=0.0), 500, 4) is None, "nothing varied: nothing is known"


# --- many looks -------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_keeps_the_error_of_a_family_at_5_in_100():
    rng, runs = np.random.default_rng(3), 4000
    wrong = sum(min(holm(rng.random(6).tolist())) < 0.05 for _ in range(runs))
    assert wrong / runs == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=0.012)


def test_the_best_of_equal_tries_against_draws():
    rng = np.random.default_rng(4)
    best = rng.binomial(30, 0.3, (40_000, 21)).max(axis=1)
    found = best_of(0.30, 30, 21)
    assert (found.median, found.low, found.high) == tuple(np.quantile(best, [0.5, 0.025, 0.975]).astype(int))
    for reached in (10, 14, 18):
        assert chance_of_best(reached, 30, 0.30, 21) == pytest.approx((best >= reached).mean(), abs=0.01)
    assert chance_of_best(14, 30, 0.287, 1) == pytest.approx(
        scipy_stats.binomtest(14, 30, 0.287, alternative="greater").pvalue
    )
    assert sidak(0.05, 1) == pytest.approx(0.05)
    assert (sidak(1.0, 3), sidak(0.0, 3)) == (1.0, 0.0)


def test_the_headline_of_14_in_30_is_what_the_best_of_21_checkpoints_reaches_by_chance():
    """Open-RS: 14/30 on AIME24 from 21 evaluated checkpoints; the base model, measured again over ten seeds, has 28.7%."""
    assert chance_of_best(14, 30, 0.287, 1) == pytest.approx(0.028, abs=5e-4)
    assert chance_of_best(14, 30, 0.287, 21) == pytest.approx(0.45, abs=5e-3)
    assert chance_of_best(32, 40, 0.715, 21) == pytest.approx(0.97, abs=5e-3)  # the same for its 80% on AMC23
    assert best_of(0.30, 30, 21).median == 14
    assert "best of 21 tries reaches 14/30 by chance" in best_of_in_words(14, 30, 0.30, 21)
