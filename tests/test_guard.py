"""The guard: harm is undone and not much else, whatever kills the process on the way; and it gives up where it must."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from strop import fork, guard
from strop.config import TrainStage, load_recipe
from strop.monitor import MEAN_STEPS, STEPS, Alarm
from strop.record import read_rollouts
from test_train import (
    SFT_STEPS,
    SMALL,
    STROP,
    Killed,
    check_equals,
    killed_at,
    recipe,
    rows,
    run,
    unchecked_shapes,
    weights,
)

RUINOUS = {"optim": {"lr": 3e-2, "warmup_steps": 0}, "heldout_every": 1, **SMALL}  # thirty times what it learns with
HOPELESS = RUINOUS | {"optim": {"lr": 0.3, "warmup_steps": 0}}
STEPS_MADE = 14


# --- what is decided, by hand ---------------------------------------------------------------------------------------------


def stage(**settings: object) -> TrainStage:
    return TrainStage.model_validate({"name": "rl", "do": "train", "tasks": {"easy": 1.0}, **settings})


def looks(*accuracy: float, every: int = 5) -> list[dict]:
    return [{"step": every * i, "accuracy": a, "num_tasks": 100} for i, a in enumerate(accuracy)]


def course(*accuracy: float, **more: float) -> list[dict]:
    return [{"step": i, "accuracy": a, **more} for i, a in enumerate(accuracy, 1)]


def ring(name: str, step: int) -> list[Alarm]:
    return [Alarm(name=name, step=step, text=f"{name} at {step}")]


def test_the_healthy_step_is_the_last_good_look_before_the_trouble():
    """Best look 50% of 100 tasks, error 5 points: 46% is within it, 44% is not; step 25 is part of the trouble."""
    seen = looks(0.30, 0.42, 0.50, 0.46, 0.44, 0.02)
    found = guard.decide(stage(), ring("entropy_blowup", 25), course(*[0.4] * 25), seen, [])
    assert found is not None
    assert (found.step, found.from_step, found.number, found.remedy) == (15, 25, 1, "lower_lr")
    early = guard.decide(stage(), ring("entropy_blowup", 4), course(*[0.4] * 4), seen[:1], [])
    assert early is not None
    assert early.step == 0


def test_a_step_that_was_gone_back_to_is_not_healthy_again():
    seen, before = looks(0.30, 0.42, 0.50, 0.49), {"step": 15, "number": 1, "remedies": ["lower_lr"]}
    found = guard.decide(stage(), ring("forgetting", 20), course(*[0.4] * 20), seen, [before])
    assert found is not None
    assert (found.step, found.number, found.remedies) == (10, 2, ["lower_lr", "lower_lr"])


def test_without_looks_it_goes_back_beyond_the_trouble():
    found = guard.decide(stage(), ring("collapse", 30), course(*[0.4] * 30), [], [])
    assert found is not None
    assert found.step == 30 - (MEAN_STEPS + STEPS) - STEPS


def test_it_gives_up_after_as_many_times_as_the_recipe_says():
    settings = {"guard": {"times": 1, "remedies": ["kl"]}}
    before = {"step": 15, "number": 1, "remedies": ["kl"]}
    found = guard.decide(stage(**settings), ring("forgetting", 20), course(*[0.4] * 20), looks(0.4), [before])
    assert found is not None
    assert found.remedy is None
    assert guard.decide(stage(guard={"times": 0}), ring("forgetting", 20), course(0.4), looks(0.4), []) is None


@pytest.mark.parametrize(
    ("name", "rows", "harm"),
    [
        ("entropy_collapse", course(*[0.2] * 5, *[0.6] * 5), False),  # sure of itself, and right
        ("entropy_collapse", course(*[0.4] * 5, *[0.1] * 5), True),
        ("language", course(*[0.0] * 8), True),
        ("language", [{"step": i, "teacher_kl": 4.0 - 0.2 * i} for i in range(1, 9)], False),  # as its teacher speaks
        ("language", [{"step": i, "teacher_kl": 2.0 + 0.2 * i} for i in range(1, 9)], True),
        ("no_reward", course(*[0.0] * 8), False),  # a format or a verifier
        ("no_reward", course(*[0.4] * 5, *[0.0] * 3), True),
        ("truncated", course(0.3, **{"completions/clipped_ratio": 0.9}), False),  # a limit
        (
            "truncated",
            [{"step": i, "completions/clipped_ratio": c} for i, c in enumerate((0.0, 0.0, 0.1, 0.9), 1)],
            True,
        ),
        ("repetition", course(*[0.4] * 3, **{"completions/repetition_frac": 0.4}), False),  # it came so
        (
            "repetition",
            [{"step": i, "completions/repetition_frac": f} for i, f in enumerate((0.1, 0.4, 0.4, 0.4), 1)],
            True,
        ),
        ("entropy_blowup", course(*[0.2] * 5, *[0.6] * 5), False),
        ("entropy_blowup", course(*[0.6] * 5, *[0.2] * 5), True),
        ("no_signal", course(*[1.0] * 8), False),
        ("verifier_errors", course(0.4), False),
        ("not_finite", [], True),
    ],
)
def test_what_is_harm(name: str, rows: list[dict], harm: bool):
    assert (guard.decide(stage(), ring(name, len(rows) or 1), rows, [], []) is not None) == harm


def test_what_the_recipe_asks_for_is_no_harm():
    falls = course(*[0.6] * 5, *[0.25] * 8)
    assert guard.decide(stage(), ring("collapse", 13), falls, [], []) is not None
    assert guard.decide(stage(curriculum={"hard": 1}), ring("collapse", 13), falls, [], []) is None
    opens = [row | {"entropy": 0.33} for row in course(*[0.4] * 8)]
    towards = stage(algorithm={"entropy_coef": 0.01, "entropy_target": 0.5})
    assert guard.decide(towards, ring("entropy_blowup", 8), opens, [], []) is None
    assert guard.decide(stage(), ring("entropy_blowup", 8), opens, [], []) is not None


def test_a_reward_that_rises_is_harm_only_where_the_dev_split_falls():
    rows, flat, fallen = course(*[0.9] * 30), looks(*[0.9] * 7), looks(*[0.9] * 4, *[0.7] * 3)
    assert guard.decide(stage(), ring("hacking", 30), rows, flat, []) is None
    assert guard.decide(stage(), ring("hacking", 30), rows, fallen, []) is not None


def test_where_the_verifier_fails_accuracy_is_no_evidence():
    alarms = [*ring("forgetting", 20), *ring("verifier_errors", 20)]
    assert guard.decide(stage(), alarms, course(*[0.4] * 20), looks(0.4), []) is None


def test_a_state_that_lasts_began_where_it_was_first_said():
    """Said at steps 10, 30 and 50: harm only at 50, but the trouble is as old as step 7."""
    said = [{"step": step, "alarm": "entropy_collapse"} for step in (10, 30, 50)]
    rows = course(*[0.4] * 47, *[0.1] * 3)
    found = guard.decide(stage(), ring("entropy_collapse", 50), rows, looks(*[0.4] * 10), [], said)
    assert found is not None
    assert found.step == 5


def test_no_step_is_gone_back_to_that_cannot_be_made_again():
    found = guard.decide(stage(), ring("collapse", 24), course(*[0.4] * 24), [], [], floor=20)
    assert found is not None
    assert found.step == 20


def test_every_step_has_the_remedies_of_the_ways_back_before_it():
    given = stage(
        optim={"lr": 1e-4}, algorithm={"clip_low": 0.2, "clip_high": 0.28}, guard={"remedies": ["tighter_clip", "kl"]}
    )
    rollbacks = [
        {"step": 10, "number": 1, "remedies": ["lower_lr"]},
        {"step": 5, "number": 2, "remedies": ["lower_lr", "tighter_clip", "kl", "kl"]},
    ]
    assert guard.at_step(given, 5, rollbacks) == given
    late = guard.at_step(given, 6, rollbacks)
    assert late.optim.lr == pytest.approx(2e-5)
    assert (late.algorithm.clip_low, late.algorithm.clip_high) == (0.1, 0.14)
    assert (late.algorithm.kl, late.algorithm.kl_coef) == ("loss", pytest.approx(0.2))
    assert guard.at_step(given, 11, rollbacks[:1]).optim.lr == pytest.approx(2e-5)


# --- real runs, driven into ruin ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ruined(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One recipe with a learning rate that destroys the model, without a guard and with it."""
    out = {}
    with unchecked_shapes():
        for times in (0, 2):
            folder = tmp_path_factory.mktemp(f"ruined{times}")
            out[times] = folder / "run"
            run(recipe(folder, tiny_model, steps=STEPS_MADE, rl=RUINOUS | {"guard": {"times": times}}), out[times])
    return out


def after(out: Path) -> float:
    return json.loads((out / "summary.json").read_text())["stages"]["after"]["greedy_acc"]


def test_a_collapse_is_undone(ruined):
    assert after(ruined[0]) < 0.1
    assert after(ruined[2]) > 0.7
    undone = rows(ruined[2], "rollback")
    assert len(undone) == 1
    assert rows(ruined[2], "train")[-1]["learning_rate"] == pytest.approx(3e-2 / 5)
    assert [row["step"] for row in rows(ruined[2], "train")] == list(range(1, STEPS_MADE + 1))
    evidence = ruined[2] / "rolled_back" / "rl" / "1"
    kept = [json.loads(line) for line in (evidence / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "heldout", "alarm"} <= {row["kind"] for row in kept}
    assert len(read_rollouts(evidence / f"step_{undone[0]['from_step']:06d}.parquet")) == 64


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 8])
def test_a_kill_before_or_after_a_way_back_changes_nothing(tmp_path, tiny_model, ruined, step):
    """Step 3 is undone later, step 8 was made after it."""
    job, out = recipe(tmp_path, tiny_model, steps=STEPS_MADE, rl=RUINOUS | {"guard": {"times": 2}}), tmp_path / "run"
    with unchecked_shapes():
        with pytest.raises(Killed):
            run(job, out, stop_requested=killed_at(out, "train", step))
        assert run(job, out, resume=True)["finished"]
    check_equals(ruined[2], out)


@pytest.mark.parametrize("place", ["keep_rows", pytest.param("_drop_beyond", marks=pytest.mark.slow)])
def test_a_kill_inside_the_way_back_changes_nothing(tmp_path, tiny_model, ruined, monkeypatch, place):
    """When the evidence is kept and the rows are still there; when they are gone and the files are still there."""
    from strop.run import Run, StageLog

    job, out = recipe(tmp_path, tiny_model, steps=STEPS_MADE, rl=RUINOUS | {"guard": {"times": 2}}), tmp_path / "run"
    owner = Run if place == "keep_rows" else StageLog
    genuine = getattr(owner, place)

    def strike(self: Run | StageLog, *args: object) -> object:
        if (out / "rolled_back" / "rl" / "1").is_dir():
            raise Killed
        return genuine(self, *args)

    with unchecked_shapes():
        with monkeypatch.context() as patch:
            patch.setattr(owner, place, strike)
            with pytest.raises(Killed):
                run(job, out)
        assert run(job, out, resume=True)["finished"]
    check_equals(ruined[2], out)


def test_a_gradient_that_is_no_number_is_undone_and_its_batch_kept(tmp_path, tiny_model, monkeypatch):
    from strop.learner import Learner

    genuine, calls = Learner._step, []

    def poisoned(self: Learner, value: float) -> float:
        calls.append(value)
        if len(calls) == SFT_STEPS + 11:  # the first of the two updates of step 6
            next(p for p in self.parameters.values() if p.grad is not None).grad[:] = math.nan
        return genuine(self, value)

    monkeypatch.setattr(Learner, "_step", poisoned)
    job = recipe(tmp_path, tiny_model, steps=8, rl=SMALL | {"heldout_every": 2, "guard": {"remedies": ["skip"]}})
    with unchecked_shapes():
        assert run(job, tmp_path / "run")["finished"]
    (undone,) = rows(tmp_path / "run", "rollback")
    assert (undone["alarm"], undone["from_step"]) == ("not_finite", 5)
    assert undone["step"] in (0, 2, 4)
    kept = tmp_path / "run" / "rolled_back" / "rl" / "1"
    assert len(read_rollouts(kept / "nonfinite_000006.parquet")) == 64
    assert not (tmp_path / "run" / "rollouts" / "rl" / "nonfinite_000006.parquet").exists()
    assert len(rows(tmp_path / "run", "train")) == 8
    assert all(np.isfinite(array).all() for array in weights(tmp_path / "run").values())


def test_from_the_healthy_step_a_fork_goes_on_with_other_settings(tmp_path, tiny_model, monkeypatch):
    from strop.learner import Learner

    genuine, calls = Learner._step, []

    def poisoned(self: Learner, value: float) -> float:
        calls.append(value)
        if len(calls) > SFT_STEPS and self.num_updates >= 10:  # from step 6 on, whenever it is made
            next(p for p in self.parameters.values() if p.grad is not None).grad[:] = math.nan
        return genuine(self, value)

    job = recipe(
        tmp_path, tiny_model, steps=8, rl=SMALL | {"heldout_every": 1, "guard": {"times": 1, "remedies": ["skip"]}}
    )
    out, forked = tmp_path / "run", tmp_path / "forked"
    with unchecked_shapes(), monkeypatch.context() as patch:
        patch.setattr(Learner, "_step", poisoned)
        with pytest.raises(guard.Collapsed, match="strop fork"):
            run(job, out)
    healthy = rows(out, "rollback")[-1]["step"]
    assert 0 < healthy == len(rows(out, "train"))
    fork.run(f"{out}:rl:{healthy}", out=forked, overrides=["stages.rl.optim.lr=1.0e-6"])
    with unchecked_shapes():
        assert run(load_recipe(forked / "recipe.yaml"), forked, resume=True)["finished"]
    assert len(rows(forked, "train")) == 8


def test_the_stage_may_end_where_it_was_healthy(tmp_path, tiny_model):
    job = recipe(tmp_path, tiny_model, steps=STEPS_MADE, rl=RUINOUS | {"guard": {"remedies": ["end_stage"]}})
    with unchecked_shapes():
        summary = run(job, tmp_path / "run")
    assert summary["finished"]
    assert summary["stages"]["rl"]["steps"] == rows(tmp_path / "run", "rollback")[0]["step"] < STEPS_MADE
    assert summary["stages"]["after"]["greedy_acc"] >= summary["stages"]["before"]["greedy_acc"] - 0.15


def test_the_command_stops_with_3_where_nothing_helps(tmp_path, tiny_model):
    """Other samples do not help against a learning rate. The run rests at a healthy step, and says so."""
    job = recipe(tmp_path, tiny_model, steps=STEPS_MADE, rl=HOPELESS | {"guard": {"times": 1, "remedies": ["skip"]}})
    (tmp_path / "recipe.yaml").write_text(job.to_yaml())
    out = tmp_path / "run"
    command = [str(STROP), "run", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "The stage rests at step" in last
    assert str(out / "rolled_back" / "rl" / "2") in last
    assert "Traceback" not in done.stderr
    rests = rows(out, "rollback")[-1]["step"]
    assert len(rows(out, "train")) == rests
    assert not json.loads((out / "summary.json").read_text())["finished"]
    assert weights(out, "sft")  # what was there before is there
    assert "What was undone" in (out / "report.html").read_text()


def test_the_report_shows_what_was_undone(ruined):
    page = (ruined[2] / "report.html").read_text()
    assert "What was undone" in page
    assert "Taken back to step 0" in page
    assert "lower_lr" in page
    assert "What was undone" not in (ruined[0] / "report.html").read_text()
