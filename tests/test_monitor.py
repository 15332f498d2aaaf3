"""Alarms: each rings on what it is for, keeps silent on healthy runs, and says what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from strop.monitor import AGAIN, ALARMS, COURSE_STEPS, STEPS, Alarm, check

HEALTHY = {
    "stage": "rl", "kind": "train", "reward": 0.4, "reward_std": 0.3, "accuracy": 0.4, "completions/max_length": 200,
    "completions/clipped_ratio": 0.02, "frac_reward_zero_std": 0.5, "entropy": 0.6, "loss": 0.01, "grad_norm": 0.4, "kl": None,
    "completions/mean_length": 100.0, "completions/foreign_frac": 0.01,
    "sampling/mismatch_kl": 1e-7, "verdict/correct": 38, "verdict/wrong": 56, "verdict/truncated": 2, "verdict/verifier_error": 0,
}  # fmt: skip


def ring(changes: dict[str, Any], steps: int, *, after: int = 10) -> list[Alarm]:
    """Every alarm of a run of `after` healthy steps and then `steps` changed ones."""
    rows: list[dict[str, Any]] = []
    alarms: list[Alarm] = []
    for step in range(1, after + steps + 1):
        row = HEALTHY | {"step": step} | (changes if step > after else {})
        alarms += check(row, rows)
        rows.append(row)
    return alarms


def test_a_healthy_run_is_silent() -> None:
    assert ring({}, 30) == []
    assert ring({"reward": 0.9, "entropy": 0.2, "frac_reward_zero_std": 0.95}, 30) == []
    assert check({"stage": "rl", "step": 1, "kind": "train"}, []) == []  # a row that lacks everything


@pytest.mark.parametrize(
    ("name", "changes", "steps", "says"),
    [
        (
            "no_reward",
            {"reward": 0.0, "accuracy": 0.0, "verdict/correct": 0, "verdict/no_answer": 90},
            STEPS,
            "mostly 'no_answer'",
        ),
        (
            "no_reward",
            {"reward": 0.1, "reward_std": 0.2, "accuracy": 0.0},
            STEPS,
            "easier tasks",
        ),  # paid for format alone
        ("no_reward", {"reward": 0, "reward_std": 0.0, "accuracy": None}, STEPS, "SFT stage"),
        ("no_signal", {"frac_reward_zero_std": 1.0}, STEPS, "harder tasks, or raise stages.rl.group_size"),
        (
            "truncated",
            {"completions/clipped_ratio": 0.97},
            1,
            "97% .* raise stages.rl.max_tokens.* stages.rl.max_tokens=400",
        ),
        ("entropy_collapse", {"entropy": 0.05}, STEPS, "0.05 nats a token from 0.6 .* stages.rl.optim.lr"),
        ("entropy_blowup", {"entropy": 2.0}, STEPS, "rose to 2 nats a token from 0.6 .* stages.rl.optim.lr"),
        ("repetition", {"completions/repetition_frac": 0.45}, STEPS, "45% of what completions say"),
        ("language", {"completions/foreign_frac": 0.3}, STEPS, "30% of the words .* reward language"),
        ("length_blowup", {"completions/mean_length": 201.0}, STEPS, "grew to 201 tokens from 100"),
        ("kl_blowup", {"kl": 1.5}, STEPS, "1.5 nats a token from its reference: raise stages.rl.algorithm.kl_coef"),
        ("not_finite", {"grad_norm": math.inf, "loss": math.nan}, 1, "^loss, grad_norm not finite"),
        ("verifier_errors", {"verdict/verifier_error": 3}, 1, "failed on 3 of 99 completions"),
        ("verifier_errors", {"verdict/timeout": 6}, 1, "on 6 of 102 .* raise checks.timeout_s"),
        ("mismatch", {"sampling/mismatch_kl": 0.02}, STEPS, "0.02 nats a token .* model.dtype=float32"),
        ("mismatch", {"sampling/mismatch_kl": -0.02}, STEPS, "-0.02 nats"),
    ],
)
def test_what_rings(name: str, changes: dict[str, Any], steps: int, says: str) -> None:
    alarms = ring(changes, steps)
    assert [alarm.name for alarm in alarms] == [name]  # and no other one
    assert alarms[0].step == 10 + steps
    assert re.search(says, alarms[0].text), alarms[0].text
    if steps > 1:
        assert ring(changes, steps - 1) == []


def test_every_alarm_is_rung_by_a_test() -> None:
    tested = {mark.args[1][i][0] for mark in test_what_rings.pytestmark for i in range(len(mark.args[1]))}  # type: ignore[attr-defined]
    assert tested | set(PATHOLOGIES) == set(ALARMS)


def test_thresholds() -> None:
    assert ring({"completions/clipped_ratio": 0.49}, 1) == []
    assert ring({"verdict/timeout": 5}, 1) == []  # 5 of 101 is under 5%
    assert ring({"entropy": 0.13}, 5) == []  # relative: 0.12 is a fifth of 0.6
    assert ring({"entropy": 1.79}, 5) == []  # and 1.8 three times
    assert ring({"completions/repetition_frac": 0.3}, 5) == []
    assert ring({"completions/foreign_frac": 0.1}, 5) == []
    assert ring({"completions/mean_length": 200.0}, 5) == []
    assert ring({"completions/mean_length": 400.0, "accuracy": 0.41}, 5) == []  # longer, and right more often
    assert ring({"frac_reward_zero_std": 1.0, "accuracy": 0.0}, STEPS)[0].name == "no_reward"  # one alarm, not two


def test_a_lasting_state_is_not_said_at_every_step() -> None:
    steps = [alarm.step for alarm in ring({"completions/clipped_ratio": 1.0}, 2 * AGAIN + 1)]
    assert steps == [11, 11 + AGAIN, 11 + 2 * AGAIN]
    assert [alarm.step for alarm in ring({"completions/clipped_ratio": 1.0}, 1, after=0)] == [1]  # said at the start


def test_each_text_is_one_sentence() -> None:
    for changes in ({"accuracy": 0.0}, {"frac_reward_zero_std": 1.0}, {"entropy": 0.01}, {"loss": math.nan}):
        for alarm in ring(changes, STEPS):
            assert "\n" not in alarm.text
            assert ". " not in alarm.text
            assert len(alarm.text) < 240


# --- courses: ten runs with the noise of real ones, and what becomes of them ---------------------------------------------

SEEDS = range(10)
NUM_STEPS, TURN = 120, 60  # where a course is spoilt, it is from step 61 on
Course = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # "train" rows and "heldout" rows


def healthy(seed: int) -> Course:
    """A run that learns: reward from 0.1-0.4 up by 0.2-0.4 with a step's noise, lengths that grow, stay or shrink for right
    and wrong alike, some cut at first, entropy that falls to a half; 16 groups of 8 a step, 64 dev tasks every 5 steps."""
    rng = np.random.default_rng(seed)
    start, gain, tau = rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.4), rng.uniform(15, 60)
    growth, cut, entropy = rng.uniform(-0.4, 1.0), rng.uniform(0.0, 0.4), rng.uniform(0.1, 1.0)
    rows, looks = [], [{"kind": "heldout", "step": 0, "accuracy": float(rng.binomial(64, start) / 64)}]
    for step in range(1, NUM_STEPS + 1):
        up = 1 - math.exp(-step / tau)
        skill = start + gain * up
        accuracy = float(np.clip(skill + rng.normal(0, 0.06), 0.01, 1))
        right = 200 * (1 + growth * up)
        rows.append(HEALTHY | {
            "step": step, "reward": accuracy, "accuracy": accuracy, "reward_std": 0.8 * math.sqrt(accuracy * (1 - accuracy)),
            "completions/mean_right_length": right * rng.normal(1, 0.05),
            "completions/mean_wrong_length": right * (1.2 + 0.1 * up) * rng.normal(1, 0.07),  # hard tasks are left over
            "completions/length_gap": right * rng.normal(0.1, 0.05),
            "completions/clipped_ratio": max(0.0, cut * math.exp(-step / 20) + rng.normal(0.03, 0.02)),
            "completions/repetition_frac": abs(rng.normal(0.04, 0.02)), "completions/foreign_frac": abs(rng.normal(0.01, 0.01)),
            "completions/mean_length": 1.1 * right * rng.normal(1, 0.05), "kl": 0.002 * step * rng.lognormal(0, 0.3),
            "entropy": entropy * (1 - 0.5 * up) * rng.lognormal(0, 0.15), "frac_reward_zero_std": rng.uniform(0.2, 0.7),
            "grad_norm": rng.lognormal(-1, 0.5), "sampling/mismatch_kl": 1e-4 * rng.random(),
        })  # fmt: skip
        if step % 5 == 0:
            looks.append({"kind": "heldout", "step": step, "accuracy": float(rng.binomial(64, skill) / 64)})
    return rows, looks


def listen(course: Course) -> list[Alarm]:
    """Every alarm of a course, as the loop would hear it: at each step only what is known by then."""
    rows, looks = course
    return [
        alarm
        for i, row in enumerate(rows)
        for alarm in check(row, rows[:i], [look for look in looks if look["step"] <= row["step"]])
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_courses_are_silent(seed: int) -> None:
    assert [f"{alarm.step}: {alarm.text}" for alarm in listen(healthy(seed))] == []


def spoilt(seed: int, change: Callable[[dict[str, Any], int], dict[str, Any]]) -> Course:
    """A healthy course, and from the turn on every row with `change(row, steps since the turn)`."""
    rows, looks = healthy(seed)
    rows = [row if row["step"] <= TURN else row | change(row, row["step"] - TURN) for row in rows]
    return rows, looks


def collapsing(seed: int) -> Course:
    return spoilt(seed, lambda row, since: {"reward": row["reward"] * 0.7**since + 0.02, "accuracy": 0.02})


def drifting(seed: int) -> Course:
    """Wrong answers 3% longer with every step, right ones as they were."""
    return spoilt(seed, lambda row, since: {
        "completions/mean_wrong_length": row["completions/mean_wrong_length"] * 1.03**since,
        "completions/length_gap": row["completions/length_gap"] + row["completions/mean_wrong_length"] * (1.03**since - 1),
    })  # fmt: skip


def held_up(seed: int) -> Course:
    """Two in five are cut from the turn on, and the reward stays what it was then."""
    rng = np.random.default_rng(seed)
    rows, _ = healthy(seed)
    return spoilt(seed, lambda row, since: {
        "completions/clipped_ratio": 0.4 + rng.normal(0, 0.04), "reward": rows[TURN]["reward"] - 0.01 * since / TURN,
    })  # fmt: skip


def hacking(seed: int) -> Course:
    """The reward goes on to rise, to 0.5 more; the dev split says what it said at the turn, and a little less."""
    course, looks = spoilt(seed, lambda row, since: {"reward": row["reward"] + 0.5 * min(1.0, since / 30)})
    now = next(look["accuracy"] for look in looks if look["step"] == TURN)
    return course, [
        look | ({"accuracy": now - 0.001 * (look["step"] - TURN)} if look["step"] > TURN else {}) for look in looks
    ]


def forgetting(seed: int) -> Course:
    """Rewards go on as if nothing were; of the dev split a fifth of what was right stays so."""
    course, looks = healthy(seed)
    return course, [look | ({"accuracy": look["accuracy"] / 5} if look["step"] > TURN else {}) for look in looks]


PATHOLOGIES: dict[str, tuple[Callable[[int], Course], str]] = {
    "collapse": (collapsing, r"reward fell to 0\.\d+ from 0\.\d+ at its best .* stages\.rl\.optim\.lr"),
    "forgetting": (forgetting, r"dev accuracy fell to \d+\.\d% from \d+\.\d% at its best: .* stages\.rl\.optim\.lr"),
    "drift": (
        drifting,
        r"wrong answers grow by \d.* tokens a step \(\d.* to \d.*\) and right ones .*aggregate=constant",
    ),
    "stuck": (held_up, r"(3[5-9]|4\d)% of completions were cut over the last 20 steps.* stages\.rl\.max_tokens"),
    "hacking": (
        hacking,
        r"reward rose from 0\.\d+ to \d\.?\d* over 30 steps while dev accuracy went from \d.*% to \d.*%",
    ),
}


@pytest.mark.parametrize("seed", SEEDS[:3])
@pytest.mark.parametrize("name", PATHOLOGIES)
def test_a_spoilt_course_is_heard_in_time(name: str, seed: int) -> None:
    make, says = PATHOLOGIES[name]
    alarms = listen(make(seed))
    assert min(alarm.step for alarm in alarms) > TURN
    found = [alarm for alarm in alarms if alarm.name == name]
    assert found, f"of {[alarm.name for alarm in alarms]}"
    assert found[0].step <= TURN + 2 * COURSE_STEPS
    assert re.search(says, found[0].text), found[0].text


def test_a_collapse_that_was_one_bad_step_is_none() -> None:
    rows, looks = healthy(0)
    rows[TURN] = rows[TURN] | {"reward": 0.0}
    assert listen((rows, looks)) == []


def test_longer_answers_are_no_drift_when_right_ones_grow_too() -> None:
    def grow(row: dict[str, Any], since: int) -> dict[str, Any]:
        keys = ("completions/mean_wrong_length", "completions/mean_right_length", "completions/length_gap")
        return {key: row[key] * 1.03**since for key in keys}

    assert "drift" not in {alarm.name for seed in SEEDS[:3] for alarm in listen(spoilt(seed, grow))}


def test_wrong_answers_to_longer_tasks_are_no_drift() -> None:
    """They grow because only the long tasks stay wrong: within a task nothing has changed."""

    def grow(row: dict[str, Any], since: int) -> dict[str, Any]:
        return {"completions/mean_wrong_length": row["completions/mean_wrong_length"] * 1.02**since}

    rung = [{alarm.name for alarm in listen(spoilt(seed, grow))} for seed in SEEDS[:5]]
    assert sum("drift" in names for names in rung) <= 1  # the gap is known with an error of its own


def test_the_bounds_of_a_drift_hold_its_slope() -> None:
    rows = [
        HEALTHY | {"step": step, "completions/mean_wrong_length": 100.0 + 3 * step + (-1) ** step,
                   "completions/mean_right_length": 90.0} for step in range(1, COURSE_STEPS + STEPS)
    ]  # fmt: skip
    (alarm,) = listen((rows, []))
    slope, low, high = map(float, re.findall(r"by ([\d.]+) tokens a step \(([\d.]+) to ([\d.]+)\)", alarm.text)[0])
    assert low < 3.0 < high
    assert low < slope < high


def test_texts_of_courses_are_one_sentence() -> None:
    for make, _ in PATHOLOGIES.values():
        for alarm in listen(make(0)):
            assert not re.search(r"\n|\. ", alarm.text)
            assert len(alarm.text) < 260
