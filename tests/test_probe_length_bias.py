"""The length-bias laboratory: the exact toy against closed forms and a simulation, and the same in recorded rollouts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from run_directory import make_recipe
from strop.config import PRESETS, Algorithm
from strop.probe import length_bias
from strop.record import Reason, Rollout, Stop, Task, UserError, Verdict, write_rollouts


@pytest.fixture(scope="module")
def found() -> dict[str, length_bias.Push]:
    return {row.name: row for row in length_bias.pushes(0.1, 64)}


def test_every_preset_is_there_and_ppo_with_more_than_one_critic(found):
    assert {name for name, row in PRESETS.items() if "credit" not in row} - {"ppo"} <= set(found)
    assert sum(name.startswith("ppo") for name in found) >= 2


def test_the_toy_equals_the_closed_forms(found):
    """The means of answers and lambda below 1 to five digits, all tokens of an update to first order in 1 / rollouts."""
    for row in found.values():
        assert row.right == pytest.approx(-row.wrong, rel=1e-9, abs=1e-9)
        if row.closed is not None:
            assert row.wrong == pytest.approx(row.closed, abs=5e-3)
    # E[1/T] / s - 1 = -ln 0.1 / 0.9 - 1 = 1.558428
    assert found["grpo"].wrong == pytest.approx(-1.558428, abs=1e-5)
    assert found["gspo"].wrong == pytest.approx(-1.558428, abs=1e-5)
    assert found["dr_grpo"].wrong == pytest.approx(0, abs=1e-9)
    assert found["rloo"].wrong == pytest.approx(0, abs=1e-9)
    one, below = found["ppo, lambda 1"].wrong, found["ppo, lambda 0.95"].wrong
    assert abs(one) < 0.02
    assert below - one == pytest.approx(-0.31034, abs=5e-3)  # (1 - s)(1 - l) / (1 - (1 - s) l) = 0.045 / 0.145


def test_a_token_mean_leaves_one_over_the_rollouts(found):
    for rollouts in (8, 64):
        pushed = length_bias.push(Algorithm(preset="dapo"), 0.1, -1.0, rollouts)
        assert pushed == pytest.approx(-0.9 / rollouts, rel=0.15)


def test_the_expectation_is_what_sampling_gives():
    """400,000 updates of 4 rollouts: the mean over answers and the mean over tokens, by numpy alone."""
    s, rng = 0.2, np.random.default_rng(0)
    lengths = rng.geometric(s, size=(400_000, 4)).astype(float)
    score = 1 - lengths * s  # d log P / d theta of a whole answer
    grpo = -(score[:, 0] / lengths[:, 0]).mean() / s
    assert length_bias.push(Algorithm(preset="grpo"), s, -1.0, 4) == pytest.approx(grpo, rel=0.01)
    dapo = -(score[:, 0] / lengths.sum(1)).mean() * 4 / s
    assert length_bias.push(Algorithm(preset="dapo"), s, -1.0, 4) == pytest.approx(dapo, rel=0.02)


def test_kl_and_entropy_are_left_out():
    held = Algorithm(preset="grpo", kl_coef=0.1, entropy_coef=0.01, entropy_target=1.0)
    assert length_bias.push(held, 0.1, -1.0, 8) == length_bias.push(Algorithm(preset="grpo"), 0.1, -1.0, 8)


def test_what_is_said_of_it(found):
    assert found["grpo"].meaning == "wrong answers grow, right ones shrink"
    assert found["dr_grpo"].meaning == "length is left alone"
    text = "\n".join(length_bias.lines(list(found.values()), []))
    assert "ppo, lambda 0.95" in text
    assert math.isfinite(length_bias.as_json(list(found.values()), [])["push"][0]["wrong"])


@pytest.mark.parametrize(
    ("stop", "rollouts", "words"), [(0.0, 8, "0.005 to 0.9"), (1.0, 8, "0.005"), (0.1, 1, "at least 2")]
)
def test_refusals(stop, rollouts, words):
    with pytest.raises(UserError, match=words):
        length_bias.pushes(stop, rollouts)


# --- a run's recorded rollouts ----------------------------------------------------------------------------------------


def attempt(correct: bool, num_tokens: int, stop: Stop = Stop.EOS) -> Rollout:
    task = Task.make(source="s", prompt="Compute 1 + 1.", answer="2", verifier="math")
    mask = np.arange(num_tokens + 2) >= 2
    return Rollout(
        task=task, group=0, sample=0, token_ids=np.zeros(num_tokens + 2, np.int32), sampled=mask, trained=mask, stop=stop,
        verdict=Verdict(correct=correct, extracted=None, reason=Reason.CORRECT if correct else Reason.WRONG),
    )  # fmt: skip


def test_drift_of_recorded_answers(tmp_path):
    """Wrong ones grow by 2 tokens a step, right ones stay at 20; cut ones would hide it and are left out."""
    (tmp_path / "recipe.yaml").write_text(make_recipe(task_sets=("easy", "hard")).to_yaml())
    for step in range(1, 31):
        rollouts = [attempt(True, 20), attempt(True, 20), attempt(False, 20 + 2 * step + step % 3)]
        write_rollouts(
            tmp_path / "rollouts" / "rl" / f"step_{step:06d}.parquet", [*rollouts, attempt(False, 99, Stop.LENGTH)]
        )
    right, wrong = sorted(length_bias.measured(tmp_path), key=lambda d: d.outcome)
    assert (right.stage, right.outcome, right.num_steps) == ("rl", "right", 30)
    assert (right.slope, right.low, right.high) == pytest.approx((0, 0, 0), abs=1e-9)
    assert wrong.low < wrong.slope < wrong.high
    assert wrong.slope == pytest.approx(200, rel=0.03)
    assert wrong.first_tokens == pytest.approx(28, abs=1)
    assert wrong.last_tokens == pytest.approx(77, abs=1)
    assert "wrong answers 28.0 -> 76.0 tokens in 30 steps" in "\n".join(length_bias.lines([], [right, wrong]))


def test_a_run_without_rl_has_no_drift(tmp_path):
    (tmp_path / "recipe.yaml").write_text(make_recipe().to_yaml())
    with pytest.raises(UserError, match="no RL stage"):
        length_bias.measured(tmp_path)
