"""Rewards about length: the papers' values, the signs, tokens and not characters, and what siblings do to each other."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.config import DENSE_REWARDS, RewardSpec
from strop.record import Reason, Rollout, Stop, Task, UserError, Verdict, replace
from strop.rewards import load_rewards
from strop.rewards.adapters import DENSE, OWN
from strop.rewards.length import (
    CosineSettings,
    LcpoExactSettings,
    LcpoMaxSettings,
    LeadSettings,
    ShortRlSettings,
    SigmoidSettings,
    cosine,
    kimi,
    lcpo_exact,
    lcpo_max,
    lead,
    short_rl,
    sigmoid,
)
from strop.settings import NoSettings

TASK = Task.make(source="test", prompt="Compute 2 + 3.", answer="5", verifier="math")
RIGHT = Verdict(correct=True, extracted="5", reason=Reason.CORRECT)
WRONG = Verdict(correct=False, extracted="4", reason=Reason.WRONG)
FAILED = Verdict(correct=False, extracted=None, reason=Reason.TIMEOUT)
MAX_TOKENS = 100
LENGTH_REWARDS = ("cosine", "lcpo_exact", "lcpo_max", "kimi", "short_rl", "lead", "sigmoid")


def attempt(num_tokens: int, verdict: Verdict | None = RIGHT, group: int = 0, **fields: Any) -> Rollout:
    sampled = np.arange(num_tokens + 3) >= 3  # the prompt's three tokens are nobody's length
    return Rollout(
        task=TASK, group=group, sample=0, token_ids=np.arange(num_tokens + 3, dtype=np.int32), sampled=sampled,
        trained=sampled.copy(), verdict=verdict, **fields,
    )  # fmt: skip


def values(name: str, rollouts: list[Rollout], **settings: Any) -> list[float | None]:
    return load_rewards([RewardSpec(name=name, settings=settings)], max_tokens=MAX_TOKENS)[0].values(rollouts)


# --- cosine -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "num_tokens", "value"),
    [
        (True, 0, 2.0),
        (True, 7168, 1.5),
        (True, 14336, 1.0),
        (True, 14337, -10.0),
        (True, 28672, -10.0),  # a cosine that goes on would be back at 2
        (False, 0, -10.0),
        (False, 7168, -5.0),
        (False, 14336, 0.0),
        (False, 14337, -10.0),
        (False, 28672, -10.0),
    ],
)
def test_cosine_with_the_numbers_of_the_paper(right: bool, num_tokens: int, value: float) -> None:
    settings = CosineSettings(max_tokens=14336)  # what the authors let their models write
    assert cosine([attempt(num_tokens, RIGHT if right else WRONG)], settings) == [pytest.approx(value)]


def test_cosine_is_that_formula() -> None:
    """The constants of Open-RS: 1.0 to 0.5 for right answers, and -1.0 to -0.5, as its paper means it, for wrong ones."""
    settings = CosineSettings(
        max_tokens=3584, correct_short=1.0, correct_long=0.5, wrong_short=-1.0, wrong_long=-0.5, exceed=-1.0
    )
    for num in (0, 1, 896, 1792, 3000, 3584):
        curve = 0.5 * (1 + math.cos(math.pi * num / 3584))
        assert cosine([attempt(num), attempt(num, WRONG)], settings) == [
            pytest.approx(0.5 + 0.5 * curve),
            pytest.approx(-0.5 - 0.5 * curve),
        ]


@given(st.integers(0, 2 * MAX_TOKENS), st.integers(0, 2 * MAX_TOKENS))
def test_cosine_is_clamped_and_runs_the_right_way(a: int, b: int) -> None:
    short, long = sorted((a, b))
    settings = CosineSettings(max_tokens=MAX_TOKENS)
    right_short, right_long = cosine([attempt(short), attempt(long)], settings)
    wrong_short, wrong_long = cosine([attempt(short, WRONG), attempt(long, WRONG)], settings)
    assert right_short is not None
    assert right_long is not None
    assert wrong_short is not None
    assert wrong_long is not None
    assert -10 <= right_long <= right_short <= 2
    if long <= MAX_TOKENS:
        assert right_long >= 1
        assert -10 <= wrong_short <= wrong_long <= 0  # a longer try is held less against it
    else:
        assert right_long == wrong_long == -10


def test_a_sign_turned_round_is_refused() -> None:
    for settings, says in (
        ({"wrong_short": 0.0, "wrong_long": -0.5}, "wrong_short is above wrong_long"),  # what Open-RS shipped
        ({"correct_short": 0.5, "correct_long": 1.0}, "correct_long is above correct_short"),
    ):
        with pytest.raises(UserError, match=rf"rewards\.cosine\.settings: {says}"):
            values("cosine", [], **settings)


def test_cosine_ends_at_the_limit_of_the_stage_unless_set() -> None:
    assert values("cosine", [attempt(100)]) == [pytest.approx(1.0)]
    assert values("cosine", [attempt(100)], max_tokens=200) == [pytest.approx(1.5)]
    assert values("cosine", [attempt(100)], max_tokens=50) == [-10.0]
    with pytest.raises(UserError, match=r"set settings\.max_tokens"):
        load_rewards([RewardSpec(name="cosine")])


# --- LCPO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "verdict", "exact", "most"),
    [
        (1000, RIGHT, 1.0, 0.5),
        (500, RIGHT, 0.85, 0.65),
        (1500, RIGHT, 0.85, 0.35),
        (3000, RIGHT, 0.4, 0.0),  # 0.5 - 0.6 is below 0
        (1000, WRONG, 0.0, 0.0),
        (500, WRONG, -0.15, 0.0),
        (3000, WRONG, -0.6, 0.0),
    ],
)
def test_lcpo_by_hand(num_tokens: int, verdict: Verdict, exact: float, most: float) -> None:
    rollout = attempt(num_tokens, verdict, budget_tokens=1000)
    assert lcpo_exact([rollout], LcpoExactSettings()) == [pytest.approx(exact)]
    assert lcpo_max([rollout], LcpoMaxSettings()) == [pytest.approx(most)]


def test_lcpo_max_is_never_above_what_being_right_is_worth() -> None:
    assert lcpo_max([attempt(10, budget_tokens=4000)], LcpoMaxSettings()) == [1.0]


def test_without_a_length_asked_for_lcpo_does_not_apply() -> None:
    assert lcpo_exact([attempt(5)], LcpoExactSettings()) == [None]
    assert lcpo_max([attempt(5)], LcpoMaxSettings()) == [None]


@given(st.integers(0, 5000), st.integers(1, 4000), st.booleans())
def test_lcpo_is_highest_at_its_budget(num: int, budget: int, right: bool) -> None:
    rollouts = [attempt(n, RIGHT if right else WRONG, budget_tokens=budget) for n in (budget, num, num + 1)]
    at_budget, here, longer = lcpo_exact(rollouts, LcpoExactSettings())
    assert at_budget == float(right)
    assert here is not None
    assert longer is not None
    assert here <= at_budget
    assert (longer < here) == (num >= budget)
    most = lcpo_max(rollouts, LcpoMaxSettings())
    assert all(value is not None and 0 <= value <= 1 for value in most)
    assert most[2] <= most[1]  # type: ignore[operator]


# --- siblings -----------------------------------------------------------------------------------------------------------


def test_kimi_by_hand() -> None:
    group = [attempt(100), attempt(150), attempt(200), attempt(100, WRONG), attempt(200, WRONG)]
    assert kimi(group, NoSettings()) == [0.5, 0.0, -0.5, 0.0, -0.5]
    assert kimi([attempt(70), attempt(70, WRONG)], NoSettings()) == [0.0, 0.0]
    assert kimi([attempt(70)], NoSettings()) == [0.0]


def test_short_rl_by_hand() -> None:
    group = [attempt(300), attempt(400), attempt(401), attempt(700), attempt(50, WRONG), attempt(900, WRONG)]
    # Between the shortest and the longest right one, 300 and 700: what wrong ones wrote does not move them.
    assert short_rl(group, ShortRlSettings()) == [0.5, 0.5, pytest.approx(0.2475), -0.5, 0.0, 0.0]
    assert short_rl(group, ShortRlSettings(tolerance_tokens=0))[:2] == [0.5, 0.25]
    assert short_rl(group, ShortRlSettings(tolerance_tokens=400)) == [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    assert short_rl([attempt(9, WRONG)], ShortRlSettings()) == [0.0]


def test_lead_by_hand() -> None:
    group = [attempt(100), attempt(200), attempt(300), attempt(999, WRONG)]
    expected = [math.exp(0.05), 1.0, math.exp(-0.05), -1.0]  # mean 200, standard deviation 100 (n - 1)
    assert lead(group, LeadSettings()) == [pytest.approx(v) for v in expected]
    assert lead(group, LeadSettings(alpha=0.2, wrong=0.0))[0] == pytest.approx(math.exp(0.2))
    assert lead([attempt(100), attempt(50, WRONG)], LeadSettings()) == [1.0, -1.0]  # one right answer has no spread
    assert lead([attempt(50, WRONG)], LeadSettings()) == [-1.0]


def test_lead_may_wait_until_answers_are_long() -> None:
    """As the authors' code does, by the three shortest of the group, right or wrong."""
    group = [attempt(n) for n in (4000, 4001, 4002, 9000)]
    assert lead(group, LeadSettings(min_tokens=4001)) == [1.0] * 4
    assert lead(group, LeadSettings(min_tokens=4000)) == lead(group, LeadSettings())
    assert len(set(lead(group, LeadSettings()))) == 4


def test_sigmoid_by_hand() -> None:
    group = [attempt(100), attempt(200), attempt(300), attempt(10, WRONG)]
    expected = [1 - 0.1 / (1 + math.e), 0.95, 1 - 0.1 / (1 + 1 / math.e), 0.0]
    assert sigmoid(group, SigmoidSettings()) == [pytest.approx(v) for v in expected]
    assert sigmoid(group, SigmoidSettings(alpha=0.0)) == [1.0, 1.0, 1.0, 0.0]
    assert sigmoid([attempt(5)], SigmoidSettings(alpha=0.4)) == [pytest.approx(0.8)]


def slow(name: str, rollouts: list[Rollout], i: int) -> float | None:
    """Each formula once more, one rollout at a time, as findings and papers print it."""
    rollout = rollouts[i]
    if rollout.verdict is None or not rollout.verdict.scorable:
        return None
    siblings = [r for r in rollouts if r.group == rollout.group and r.verdict is not None and r.verdict.scorable]
    num = int(rollout.sampled.sum())
    right = rollout.verdict.correct and rollout.stop is not Stop.LENGTH
    lengths = [int(r.sampled.sum()) for r in siblings]
    good = [int(r.sampled.sum()) for r in siblings if r.correct and r.stop is not Stop.LENGTH]
    spread = statistics.stdev(good) if len(good) > 1 else 0.0
    z = (num - sum(good) / len(good)) / spread if spread else 0.0
    if name == "kimi":
        if max(lengths) == min(lengths):
            return 0.0
        place = 0.5 - (num - min(lengths)) / (max(lengths) - min(lengths))
        return place if right else min(0.0, place)
    if name == "short_rl":
        if not right:
            return 0.0
        return 0.5 if num <= min(good) + 100 else 0.5 - (num - min(good)) / (max(good) - min(good))
    if name == "lead":
        return math.exp(-0.05 * z) if right else -1.0
    return 1 - 0.1 / (1 + math.exp(-z)) if right else 0.0


verdicts = st.sampled_from([RIGHT, RIGHT, WRONG, FAILED, None])
steps = st.lists(
    st.builds(
        lambda num, verdict, group, cut: attempt(
            num, verdict, group, budget_tokens=60, stop=Stop.LENGTH if cut else Stop.EOS
        ),
        st.integers(0, MAX_TOKENS), verdicts, st.integers(0, 2), st.sampled_from([False, False, False, True]),
    ),
    max_size=12,
)  # fmt: skip


@given(steps, st.sampled_from(["kimi", "short_rl", "lead", "sigmoid"]))
def test_group_rewards_equal_a_slow_loop(step: list[Rollout], name: str) -> None:
    expected = [slow(name, step, i) for i in range(len(step))]
    assert values(name, step) == [None if v is None else pytest.approx(v) for v in expected]


BOUNDS = {
    "cosine": (-10.0, 2.0), "lcpo_exact": (-0.03, 1.0), "lcpo_max": (0.0, 1.0), "kimi": (-0.5, 0.5), "short_rl": (-0.5, 0.5),
    # z of n numbers is at most (n - 1) / sqrt(n) from 0
    "lead": (-1.0, math.exp(0.05 * 11 / math.sqrt(12)) + 1e-9), "sigmoid": (0.0, 1.0),
}  # fmt: skip


@given(steps, st.sampled_from(LENGTH_REWARDS), st.randoms(use_true_random=False))
def test_every_length_reward_is_bounded_and_blind_to_order(step: list[Rollout], name: str, rng: Any) -> None:
    found = values(name, step)
    low, high = BOUNDS[name]
    assert all(low <= value <= high for value in found if value is not None)
    assert [value is None for value in found] == [not r.scorable for r in step]
    order = rng.sample(range(len(step)), len(step))
    assert values(name, [step[i] for i in order]) == [found[i] for i in order]  # to the last bit


@given(steps, st.sampled_from(LENGTH_REWARDS))
def test_lengths_are_tokens_and_never_characters(step: list[Rollout], name: str) -> None:
    told = [replace(r, text="a very long story " * (7 * i + 1)) for i, r in enumerate(step)]
    assert values(name, told) == values(name, step)


@pytest.mark.parametrize("name", LENGTH_REWARDS)
def test_more_tokens_in_as_many_characters_are_more(name: str) -> None:
    short, long = values(name, [attempt(n, text="x" * 50, budget_tokens=10) for n in (10, 90)], **(
        {"tolerance_tokens": 0} if name == "short_rl" else {}
    ))  # fmt: skip
    assert short is not None
    assert long is not None
    assert long < short


@given(
    st.lists(st.integers(0, MAX_TOKENS), min_size=2, max_size=8),
    st.sampled_from(["kimi", "short_rl", "lead", "sigmoid"]),
)
def test_among_right_siblings_the_shorter_is_never_worth_less(lengths: list[int], name: str) -> None:
    found = values(name, [attempt(n) for n in sorted(lengths)])
    assert all(a >= b for a, b in itertools.pairwise(found))  # type: ignore[operator]


@given(steps, st.integers(0, MAX_TOKENS), st.sampled_from(["kimi", "short_rl", "lead", "sigmoid"]))
def test_other_groups_and_failed_verdicts_change_nothing(step: list[Rollout], num: int, name: str) -> None:
    alone = values(name, step)
    assert values(name, [*step, attempt(num, group=9), attempt(num, FAILED, group=0)])[: len(step)] == alone


def test_what_the_limit_cut_is_not_right() -> None:
    """Even where it had stated its answer by then, for which `accuracy` still pays."""
    cut = attempt(MAX_TOKENS, RIGHT, stop=Stop.LENGTH, budget_tokens=MAX_TOKENS)
    assert [values(name, [cut]) for name in LENGTH_REWARDS] == [[-10.0], [0.0], [0.0], [0.0], [0.0], [-1.0], [0.0]]
    assert values("accuracy", [cut]) == [1.0]
    ended = attempt(MAX_TOKENS, RIGHT, budget_tokens=MAX_TOKENS)
    assert values("cosine", [ended]) == [pytest.approx(1.0)]  # it needed all of the room, and came to an end
    assert kimi([attempt(50), cut], NoSettings()) == [0.5, -0.5]


# --- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("cosine", {"max_tokns": 5}, r"rewards\.cosine\.settings\.max_tokns.*did you mean 'max_tokens'"),
        ("cosine", {"max_tokens": 0}, r"rewards\.cosine\.settings\.max_tokens.*greater than or equal to 1"),
        ("lcpo_exact", {"alpha": 0}, r"rewards\.lcpo_exact\.settings\.alpha.*greater than 0"),
        ("lcpo_max", {"delta": 1.5}, r"rewards\.lcpo_max\.settings\.delta.*less than or equal to 1"),
        ("short_rl", {"tolerance": 5}, "did you mean 'tolerance_tokens'"),
        ("lead", {"alpha": -1}, "greater than or equal to 0"),
        ("sigmoid", {"alpha": 1.0}, "less than 1"),
        ("sigmoid", {"alpha": "much"}, "valid number"),
        ("repetition", {"max_penalty": 1.0}, "less than or equal to 0"),
        ("kimi", {"alpha": 1.0}, r"rewards\.kimi has no settings; leave out 'alpha'"),
        ("accuracy", {"alpha": 1.0}, "has no settings"),
        (
            "language",
            {"language": "english"},
            r"rewards\.language\.settings: language is 'english'.*did you mean|none of",
        ),
        ("my_rewards.py:f", {"alpha": 1.0}, "takes no settings"),
    ],
)
def test_a_setting_that_is_wrong_is_named(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        values(name, [], **settings)


def test_the_recipe_knows_which_rewards_pay_token_by_token() -> None:
    assert set(DENSE_REWARDS) == set(DENSE)


def test_every_setting_has_its_sentence() -> None:
    for name, (_, section) in (OWN | DENSE).items():
        assert all(field.description for field in section.model_fields.values()), name
