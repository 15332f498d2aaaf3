"""Alarms: each rings on what it is for, keeps silent on a healthy run, and says what to do."""

from __future__ import annotations

import math
from typing import Any

import pytest

from strop.monitor import AGAIN, ALARMS, STEPS, Alarm, check

HEALTHY = {
    "stage": "rl", "kind": "train", "reward": 0.4, "reward_std": 0.3, "accuracy": 0.4, "completions/max_length": 200,
    "completions/clipped_ratio": 0.02, "frac_reward_zero_std": 0.5, "entropy": 0.6, "loss": 0.01, "grad_norm": 0.4, "kl": None,
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
        ("not_finite", {"grad_norm": math.inf, "loss": math.nan}, 1, "^loss, grad_norm not finite"),
        ("verifier_errors", {"verdict/verifier_error": 3}, 1, "failed on 3 of 99 completions"),
        ("verifier_errors", {"verdict/timeout": 6}, 1, "on 6 of 102 .* raise checks.timeout_s"),
        ("mismatch", {"sampling/mismatch_kl": 0.02}, 1, "0.02 nats a token .* model.dtype=float32"),
        ("mismatch", {"sampling/mismatch_kl": -0.02}, 1, "-0.02 nats"),
    ],
)
def test_what_rings(name: str, changes: dict[str, Any], steps: int, says: str) -> None:
    import re

    alarms = ring(changes, steps)
    assert [alarm.name for alarm in alarms] == [name]  # and no other one
    assert alarms[0].step == 10 + steps
    assert re.search(says, alarms[0].text), alarms[0].text
    if steps > 1:
        assert ring(changes, steps - 1) == []


def test_every_alarm_is_rung_by_a_test() -> None:
    tested = {mark.args[1][i][0] for mark in test_what_rings.pytestmark for i in range(len(mark.args[1]))}  # type: ignore[attr-defined]
    assert tested == set(ALARMS)


def test_thresholds() -> None:
    assert ring({"completions/clipped_ratio": 0.49}, 1) == []
    assert ring({"verdict/timeout": 5}, 1) == []  # 5 of 101 is under 5%
    assert ring({"entropy": 0.13}, 5) == []  # relative: 0.12 is a fifth of 0.6
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
