"""The budget a person writes, when a run stops for it, and when a stage no longer pays."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from strop import budget, gain
from strop.record import UserError
from test_train import SMALL, STROP, check_equals, recipe, rows, run, unchecked_shapes, weights


@dataclass(frozen=True)
class Spent:
    wall_s: float
    usd: float | None = None
    kwh: float | None = None


@pytest.mark.parametrize(
    ("text", "seconds", "usd", "kwh"),
    [
        ("90s", 90.0, None, None),
        ("1.5 min", 90.0, None, None),
        ("2h", 7200.0, None, None),
        ("1d", 86400.0, None, None),
        ("42usd", None, 42.0, None),
        ("$42", None, 42.0, None),
        ("42 $", None, 42.0, None),
        ("42 USD", None, 42.0, None),
        (".5kWh", None, None, 0.5),
        ("500 wh,2h", 7200.0, None, 0.5),
    ],
)
def test_units(text: str, seconds: float | None, usd: float | None, kwh: float | None) -> None:
    assert budget.parse(text) == budget.Budget(seconds=seconds, usd=usd, kwh=kwh)


@pytest.mark.parametrize(
    "text", ["", "42", "h", "-2h", "0h", "2 hours", "2h,", "2h 30min", "1e400usd", "$2h", "42eur", "$", "nan h", "2h,3min", "１h"]
)  # fmt: skip
def test_nonsense_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^budget ") as caught:
        budget.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "2", "h", "0/h", "2/hour", "-1/h", "1/h/h", "1/eur"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^stop_below "):
        budget.rate(text)


def test_a_run_stops_before_the_step_that_would_go_beyond() -> None:
    asked = [3.0, 13.0, 23.0, 33.0]  # after loading, then after steps of 10 s each
    now = iter(asked)
    spent = iter([Spent(wall_s=s) for s in asked])
    limit = budget.Limit("40s", lambda: next(spent), clock=lambda: next(now))
    assert [limit.is_spent() for _ in asked] == [False, False, False, True]
    assert limit.reached == "33 s of 40 s are spent, and the next step would take 10 s more"


def test_a_run_that_has_spent_it_all_does_nothing() -> None:
    limit = budget.Limit("1h", lambda: Spent(wall_s=4000.0), clock=lambda: 0.0)
    assert limit.is_spent()
    assert limit.reached == "1:06 h of 1:00 h are spent"


@pytest.mark.parametrize(("text", "spent"), [("2usd", Spent(90.0, usd=1.9)), ("2kwh,5h", Spent(90.0, kwh=1.9))])
def test_money_and_energy_go_on_as_they_went(text: str, spent: Spent) -> None:
    now = iter([80.0, 90.0])
    limit = budget.Limit(text, lambda: spent, clock=lambda: next(now))
    assert not limit.is_spent()
    assert limit.is_spent()  # 10 of 90 s more would be 2.11


@pytest.mark.parametrize("text", ["1usd", "2h,1kwh"])
def test_a_budget_of_what_nobody_can_tell_is_refused(text: str) -> None:
    """It would never stop the run."""
    with pytest.raises(UserError, match="nothing on this machine tells how much is spent"):
        budget.Limit(text, lambda: Spent(wall_s=1e9), clock=lambda: 0.0)
    budget.Limit("2h", lambda: Spent(wall_s=1.0))


def looks(*accuracies: float, num_tasks: int = 10**9) -> list[dict[str, object]]:
    return [
        {"kind": "heldout", "step": i, "accuracy": a, "num_tasks": num_tasks, "eval_s": 0.0}
        for i, a in enumerate(accuracies)
    ]


def steps(num: int, seconds: float) -> list[dict[str, object]]:
    return [{"kind": "train", "step": i + 1, "step_s": seconds} for i in range(num)]


def test_a_gain_by_hand() -> None:
    rows = looks(0.5, 0.52, 0.51, 0.54, 0.53)
    # points 0 2 1 4 3 over -2..2: slope 8/10; residuals -.4 .8 -1 1.2 -.6 -> 3.6 of squares / 3 / 10
    slope, error = 0.8, math.sqrt(3.6 / 3 / 10)
    quantile = 3.1824463  # Student's t, 3 degrees of freedom, 97.5%
    found = gain.at_best(rows, 1 / 3600, [*rows, *steps(4, 900.0)])  # 4 steps of a quarter of an hour
    assert found == pytest.approx((slope + quantile * error) * 4 / 1.0, rel=1e-6)


def test_few_looks_say_nothing() -> None:
    rows = looks(0.5, 0.5, 0.5, 0.5)
    assert gain.at_best(rows, 1.0, [*rows, *steps(3, 60.0)]) == math.inf


def test_a_flat_curve_of_few_tasks_may_still_rise_by_less_than_a_task() -> None:
    rows = looks(*[0.5] * 5, num_tasks=64)
    found = gain.at_best(rows, 1.0, [*rows, *steps(4, 1.0)])
    assert found == pytest.approx(3.1824463 * 100 / 64 / math.sqrt(12) / math.sqrt(10), rel=1e-6)


def test_only_the_last_looks_count() -> None:
    rows = looks(0.0, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert gain.at_best(rows, 1.0, [*rows, *steps(6, 1.0)]) == pytest.approx(0.0, abs=1e-6)


# --- real runs --------------------------------------------------------------------------------------------------------


def test_a_budget_stops_a_run_and_more_of_it_ends_like_a_whole_one(tmp_path: Path, tiny_model: Path) -> None:
    job = recipe(tmp_path, tiny_model, steps=3, rl=SMALL)
    whole, out = tmp_path / "whole", tmp_path / "run"
    with unchecked_shapes():
        run(job, whole)
    (tmp_path / "recipe.yaml").write_text(job.to_yaml())
    command = [str(STROP), "run", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    for more in (["--budget", "0.5s"], ["--resume", "--budget", "0.0000001usd,1h"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        assert "--resume and a higher --budget" in done.stderr.strip().splitlines()[-1]
        summary = json.loads((out / "summary.json").read_text())
        assert not summary["finished"]
        assert "are spent" in summary["stopped_by_budget"]
        assert summary["stopped_by_budget"] in (out / "report.html").read_text()
    done = subprocess.run([*command, "--resume", "--budget", "1h"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "% of 1:00 h" in done.stderr  # on the bar
    assert json.loads((out / "summary.json").read_text())["stopped_by_budget"] == ""
    check_equals(whole, out)


def test_a_stage_ends_where_it_gains_too_little(tmp_path: Path, tiny_model: Path) -> None:
    job = recipe(tmp_path, tiny_model, steps=30, rl=SMALL | {"heldout_every": 2, "stop_below": "1000/s"})
    with unchecked_shapes():
        summary = run(job, tmp_path / "run")
    assert summary["finished"]
    (ended,) = rows(tmp_path / "run", "ended")
    assert ended["step"] == summary["stages"]["rl"]["steps"] == 2 * (gain.LOOKS - 1)  # the first look is at step 0
    assert weights(tmp_path / "run")
    assert summary["stages"]["after"]["greedy_acc"] is not None


@pytest.mark.slow
def test_a_gain_that_is_large_enough_ends_nothing(tmp_path: Path, tiny_model: Path) -> None:
    job = recipe(tmp_path, tiny_model, steps=10, rl=SMALL | {"heldout_every": 2, "stop_below": "0.000001/d"})
    with unchecked_shapes():
        assert run(job, tmp_path / "run")["stages"]["rl"]["steps"] == 10
