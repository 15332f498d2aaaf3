"""Schedules: the rules by hand, on made-up courses, and as properties; that a run keeps to them is in test_train."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.config import Curriculum, Moves, TrainStage
from strop.record import Reason, Rollout, Task, Verdict
from strop.schedule import curriculum_row, estimates, moved, pass_rates, pick, shares_of, token_limit, turns
from strop.stats import trend

MOVES = Moves(limits=[256, 512, 1024], window_steps=4)


def row(limit: int = 256, *, cut: float = 0.4, accuracy: float = 0.3, entropy: float | None = 0.5) -> dict:
    return {"max_tokens": limit, "completions/clipped_ratio": cut, "accuracy": accuracy, "entropy": entropy}


# --- trends -----------------------------------------------------------------------------------------------------------


def test_trend_equals_the_normal_equations() -> None:
    values = np.random.default_rng(0).normal(size=30) + 0.1 * np.arange(30)
    x = np.stack([np.ones(30), np.arange(30)], axis=1)
    beta = np.linalg.solve(x.T @ x, x.T @ values)
    noise = ((values - x @ beta) ** 2).sum() / 28
    slope, error = trend(values)
    assert slope == pytest.approx(beta[1])
    assert error == pytest.approx(np.sqrt(noise * np.linalg.inv(x.T @ x)[1, 1]))


def test_trend_errors_cover_as_stated() -> None:
    """Of 2,000 flat noisy courses of 20 steps, 5% of slopes lie beyond t's 2.10 errors (18 degrees of freedom)."""
    rng = np.random.default_rng(1)
    found = [trend(rng.normal(size=20)) for _ in range(2000)]
    assert 0.035 < np.mean([abs(slope) > 2.101 * error for slope, error in found]) < 0.065


# --- the token limit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "limit"),
    [
        ([row()] * 3, 256),  # the window is not full
        ([row()] * 4, 512),  # cut and flat
        ([row(cut=0.25)] * 4, 256),  # not above the share
        ([row(cut=0.1)] * 3 + [row(cut=0.9)] * 4, 512),  # the last window counts
        ([row(cut=0.9)] * 4 + [row(cut=0.1)] * 4, 256),
        ([row(accuracy=0.3 + 0.1 * i) for i in range(4)], 256),  # cut, and it learns all the same
        ([row(accuracy=a) for a in (0.3, 0.5, 0.2, 0.4)], 512),  # slope 0 beneath its error
        ([row(256)] * 4 + [row(512)] * 3, 512),  # a new limit lasts a window
        ([row(256)] * 4 + [row(512)] * 4, 1024),
        ([row(1024)] * 40, 1024),  # nowhere to go
        ([row(512, cut=0, entropy=e) for e in (0.8,) * 4 + (0.39,) * 4], 256),  # below half of what it was
        ([row(512, cut=0, entropy=e) for e in (0.8,) * 4 + (0.41,) * 4], 512),
        ([row(512, cut=0, entropy=e) for e in (0.8,) * 4 + (0.1,) * 3], 512),  # the two windows would share a step
        ([row(512, cut=0, entropy=e) for e in (0.8,) * 4 + (None,) * 4], 512),  # no gradient, no entropy
        ([row(256, cut=0, entropy=e) for e in (0.8,) * 4 + (0.1,) * 4], 256),  # nowhere to go
        ([row(1024)] * 8 + [row(512)] * 4, 512),  # left downwards: not entered again
    ],
)
def test_the_limit_after_these_rows(rows: list[dict], limit: int) -> None:
    assert token_limit(MOVES, rows) == limit


def test_entropy_below_zero_never_moves_down() -> None:
    moves = MOVES.model_copy(update={"entropy_below": 0.0})
    assert token_limit(moves, [row(512, cut=0, entropy=e) for e in (0.8,) * 4 + (0.0,) * 9]) == 512


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_course_has_one_top_and_every_limit_lasts(data: st.DataObject) -> None:
    rows: list[dict] = [row(256)]
    share, number = st.floats(0, 1), st.floats(0.01, 1)
    for _ in range(60):
        limit = token_limit(MOVES, rows)
        rows.append(row(limit, cut=data.draw(share), accuracy=data.draw(share), entropy=data.draw(number)))
    limits = [r["max_tokens"] for r in rows]
    spans = [len(list(same)) for _, same in groupby(limits)]
    assert min(spans[:-1], default=MOVES.window_steps) >= MOVES.window_steps
    changes = np.sign(np.diff(limits))
    changes = changes[changes != 0].tolist()
    assert changes == sorted(changes, reverse=True)  # up, up, down, never up again
    assert set(np.abs(np.diff([MOVES.limits.index(limit) for limit in limits]))) <= {0, 1}


def test_the_course_of_fastcurl_comes_about_by_itself() -> None:
    """At 8k a half is cut, at 16k a third, at 24k little, and there entropy falls: 8, 16, 24, 16."""
    moves, rows = Moves(limits=[8, 16, 24], window_steps=5), [row(8, cut=0.45, entropy=0.6)]
    for _ in range(60):
        limit = token_limit(moves, rows)
        fall = 0.9 ** sum(r["max_tokens"] == 24 for r in rows)
        rows.append(row(limit, cut={8: 0.45, 16: 0.3, 24: 0.05}[limit], entropy=0.6 * (fall if limit == 24 else 1)))
    limits = [r["max_tokens"] for r in rows]
    assert [limit for limit, _ in groupby(limits)] == [8, 16, 24, 16]


def test_moved_changes_the_limit_and_nothing_else() -> None:
    plain = TrainStage(name="rl", do="train", tasks={"a": 1.0})
    assert moved(plain, [row()] * 50) is plain
    stage = TrainStage(name="rl", do="train", tasks={"a": 1.0}, moves=MOVES)
    assert moved(stage, []) is stage
    later = moved(stage, [row()] * 4)
    assert later.max_tokens == 512
    assert later.model_copy(update={"max_tokens": 256}) == stage


# --- turns ------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 10), min_size=1), st.integers(1, 200))
def test_nobodys_turn_is_long_in_coming(shares: dict[str, float], num: int) -> None:
    drawn = Counter(turns(shares, num))
    for name, share in shares.items():
        assert drawn[name] > share / sum(shares.values()) * num - len(shares)
    assert turns(shares, num) == turns(shares, num + 5)[:num]  # a counter is all it needs


# --- the curriculum ---------------------------------------------------------------------------------------------------


def make_pool(num: int, levels: int = 1) -> list[Task]:
    return [
        Task.make(source="s", prompt=f"Compute {i} + 1.", answer=str(i + 1), verifier="math", meta={"level": i % levels})
        for i in range(num)
    ]  # fmt: skip


def answered(task: Task, right: int, wrong: int, late: int = 0) -> list[Rollout]:
    reasons = [Reason.CORRECT] * right + [Reason.WRONG] * wrong + [Reason.TIMEOUT] * late
    mask = np.array([False, True])
    return [
        Rollout(task=task, group=0, sample=i, token_ids=np.array([1, 2], np.int32), sampled=mask, trained=mask,
                verdict=Verdict(correct=reason is Reason.CORRECT, extracted=None, reason=reason))
        for i, reason in enumerate(reasons)
    ]  # fmt: skip


def test_running_pass_rates_by_hand() -> None:
    rows = [{"passes": {"a": [0, 4], "b": [3, 4], "c": [0, 0]}}, {"passes": {"a": [2, 4]}}, {"passes": {"a": [4, 4]}}]
    rates = pass_rates(rows)
    assert rates == {"a": (0 / 4 + 2 / 2 + 4) / (4 / 4 + 4 / 2 + 4), "b": 0.75}  # c was never judged
    assert pass_rates([]) == {}


def test_an_untried_task_counts_like_its_level_then_like_its_set() -> None:
    pool = make_pool(7, levels=3)  # levels 0 1 2 0 1 2 0
    rates = {pool[0].id: 1.0, pool[3].id: 0.5, pool[1].id: 0.0}
    assert estimates(pool, rates) == [1.0, 0.0, 0.5, 0.5, 0.0, 0.5, 0.75]  # level 2: the mean of 1, 1/2 and 0
    assert estimates(pool, {}) == [0.5] * 7
    assert estimates(pool, {"elsewhere": 1.0}) == [0.5] * 7


def test_a_row_of_the_curriculum_by_hand() -> None:
    pool = make_pool(4)
    rollouts = answered(pool[0], 3, 1) + answered(pool[1], 0, 2, late=2)
    rates = {pool[0].id: 0.9, pool[1].id: 0.25, pool[2].id: 0.75}  # and the last: their mean, 0.63
    found = curriculum_row([pool], rates, rollouts)
    assert found == {
        "easy_frac": 0.25, "medium_frac": 0.5, "hard_frac": 0.25, "passes": {pool[0].id: [3, 4], pool[1].id: [0, 2]},
    }  # fmt: skip
    assert pass_rates([found]) == {pool[0].id: 0.75, pool[1].id: 0.0}


def kind(rate: float) -> str:
    return "hard" if rate <= 0.25 else "easy" if rate > 0.75 else "medium"


def test_shares_are_kept_over_the_steps() -> None:
    pool = make_pool(90)
    rates = {task.id: (0.1, 0.5, 0.9)[i % 3] for i, task in enumerate(pool)}
    shares = shares_of(Curriculum(easy=0.1, medium=0.6, hard=0.3))
    drawn = [
        task for step in range(25) for task in pick(pool, rates, shares, 4, begin=4 * step, seed=step)
    ]  # 4 a step: 0.4 of an easy one
    assert Counter(kind(rates[task.id]) for task in drawn) == {"easy": 10, "medium": 60, "hard": 30}


def test_what_is_not_there_is_stood_in_for_by_its_neighbour() -> None:
    pool = make_pool(12)
    hard_and_medium = {task.id: (0.0, 0.5)[i % 2] for i, task in enumerate(pool)}
    for wanted, found in (("easy", "medium"), ("medium", "medium"), ("hard", "hard")):
        chosen = pick(pool, hard_and_medium, {wanted: 1.0}, 6, begin=0, seed=0)
        assert {kind(hard_and_medium[task.id]) for task in chosen} == {found}
    only_easy = {task.id: 1.0 for task in pool}
    assert len(pick(pool, only_easy, {"hard": 1.0}, 12, begin=0, seed=0)) == 12


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=30),
    st.dictionaries(st.sampled_from(["easy", "medium", "hard"]), st.floats(0.01, 1), min_size=1),
    st.data(),
)
def test_a_draw_is_of_different_tasks_and_repeats_itself(
    known: list[float | None], shares: dict[str, float], data: st.DataObject
) -> None:
    pool = make_pool(len(known))
    rates = {task.id: rate for task, rate in zip(pool, known, strict=True) if rate is not None}
    num, begin, seed = data.draw(st.integers(1, len(pool))), data.draw(st.integers(0, 50)), data.draw(st.integers(0, 9))
    chosen = pick(pool, rates, shares, num, begin=begin, seed=seed)
    assert len({task.id for task in chosen}) == num
    assert chosen == pick(pool, rates, shares, num, begin=begin, seed=seed)


def test_every_task_of_a_kind_has_its_chance() -> None:
    pool = make_pool(20)
    drawn = Counter(task.id for seed in range(400) for task in pick(pool, {}, {"medium": 1.0}, 2, begin=0, seed=seed))
    assert len(drawn) == 20
    assert max(drawn.values()) < 3 * min(drawn.values())  # 40 each, and 4 standard deviations are 24


def test_a_policy_that_improves_is_given_harder_tasks() -> None:
    """Task i is passed surely once skill exceeds i / 100; the curriculum's medium tasks follow the skill."""
    pool, rng, rows, middle = make_pool(100), np.random.default_rng(0), [], []
    place = {task.id: i for i, task in enumerate(pool)}
    for step in range(120):
        skill = 0.2 + 0.6 * step / 120
        chosen = pick(pool, pass_rates(rows), {"easy": 0.2, "medium": 0.6, "hard": 0.2}, 10, begin=10 * step, seed=step)
        rollouts = []
        for task in chosen:
            right = int(rng.binomial(8, 1 / (1 + np.exp(-20 * (skill - place[task.id] / 100)))))
            rollouts += answered(task, right, 8 - right)
        rates = pass_rates(rows)
        middle.append([place[t.id] for t in chosen if kind(rates.get(t.id, 0.5)) == "medium" and t.id in rates])
        rows.append(curriculum_row([pool], rates, rollouts))
    early, late = (np.mean([i for found in part for i in found]) for part in (middle[20:50], middle[90:]))
    assert late > early + 15
    assert rows[-1]["easy_frac"] > rows[40]["easy_frac"]
