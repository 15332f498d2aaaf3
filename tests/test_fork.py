"""Forks of a run: equal to their parent without --set, other from the forked step on with it, and refused by name."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from strop import fork
from strop.config import Recipe, load_recipe, parse_recipe
from strop.record import UserError
from strop.verify_resume import same
from test_train import SMALL, STROP, Killed, killed_at, recipe, rows, run


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Path]:
    """The recipe, its run to the end, and one that was killed after step 5 of 7, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("parent")
    rl = SMALL | {"checkpoint_every": 2, "heldout_every": 3}
    job = recipe(folder, tiny_model, steps=7, rl=rl, kl="loss", kl_coef=0.1)
    run(job, folder / "whole")
    with pytest.raises(Killed):
        run(job, folder / "killed", stop_requested=killed_at(folder / "killed", "train", 5))
    return job, folder / "whole", folder / "killed"


def equal(one: Path, other: Path) -> dict[str, str]:
    return {name: part["first_difference"] for name, part in same.parts(one, other).items() if not part["equal"]}


@pytest.mark.parametrize(
    ("of", "replayed"),
    [
        ("killed", 1), ("whole:sft:7", 7),
        *(pytest.param(*of, marks=pytest.mark.slow) for of in (("killed:rl:4", 0), ("killed:rl:3", 1), ("whole:rl:5", 5), ("whole:before", 0))),
    ],
)  # fmt: skip
def test_a_fork_with_the_same_settings_ends_as_its_parent_bit_for_bit(runs, tmp_path, of, replayed):
    job, whole, killed = runs
    name, colon, place = of.partition(":")
    parent = whole if name == "whole" else killed
    before = {p: p.read_bytes() for p in parent.rglob("*") if p.is_file()}
    made = fork.run(f"{parent}{colon}{place}", out=tmp_path / "fork")
    assert made["replayed"] == replayed
    assert run(job, tmp_path / "fork", resume=True)["finished"]
    assert equal(whole, tmp_path / "fork") == {}
    forked = json.loads((tmp_path / "fork" / "summary.json").read_text())["forked_from"]
    assert (forked["run"], forked["recipe_hash"]) == (str(parent), job.hash)
    assert (tmp_path / "fork" / "recipe.yaml").read_text().startswith(f"# forked from {parent}:")
    assert {p: p.read_bytes() for p in parent.rglob("*") if p.is_file()} == before


def test_a_fork_of_a_fork_never_makes_the_first_ones_steps_again_with_the_seconds_settings(runs, tmp_path):
    _, _, killed = runs
    first = tmp_path / "first"
    fork.run(f"{killed}:rl:4", out=first, overrides=["stages.rl.optim.lr=1e-4"])
    made = fork.run(f"{first}:rl:4", out=tmp_path / "second")
    assert made["replayed"] == 0
    told = json.loads((tmp_path / "second" / "summary.json").read_text())["forked_from"]
    assert told["needs_checkpoint_from"] == 4
    shutil.rmtree(first / "checkpoints" / "rl" / "step_000004")
    with pytest.raises(
        UserError, match=r"the steps up to 4 came from .* fork from a later checkpoint, or from that run"
    ):
        fork.run(f"{first}:rl:4", out=tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.slow
def test_other_settings_act_from_the_forked_step_on_also_after_a_kill(runs, tmp_path):
    _, whole, killed = runs
    out = tmp_path / "fork"
    made = fork.run(f"{killed}:rl:4", out=out, overrides=["stages.rl.optim.lr=1e-4", "stages.rl.steps=9"])
    job = load_recipe(out / "recipe.yaml")
    assert shlex.split(made["next"]) == ["strop", "run", str(out / "recipe.yaml"), "--out", str(out), "--resume"]
    again = tmp_path / "again"
    shutil.copytree(out, again)
    assert run(job, out, resume=True)["finished"]
    lrs = [row["learning_rate"] for row in rows(out, "train")]
    assert lrs[:4] == [row["learning_rate"] for row in rows(whole, "train")][:4]
    assert lrs[4:] == [1e-4] * 5
    with pytest.raises(Killed):
        run(job, again, resume=True, stop_requested=killed_at(again, "train", 5))
    assert run(job, again, resume=True)["finished"]
    assert equal(out, again) == {}


def test_a_forks_first_checkpoint_is_not_replaced_by_updates_with_other_settings(runs, tmp_path):
    _, _, killed = runs
    out = tmp_path / "fork"
    fork.run(f"{killed}:rl:4", out=out, overrides=["stages.rl.optim.lr=1e-4"])
    (out / "checkpoints/rl/step_000004/model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no whole checkpoint of .* from step 4 on is left.*fork that run again"):
        run(load_recipe(out / "recipe.yaml"), out, resume=True)


@pytest.mark.parametrize(
    ("of", "sets", "says"),
    [
        ("killed:rl:5", ["stages.rl.optim.lr=1e-4"], "no checkpoint of step 5.*checkpoints of steps 2, 4"),
        ("whole:rl:5", ["seed=3"], "no checkpoint of the stage is left"),
        ("killed:rl:6", [], "has committed 5 steps; name one of them, not 6"),
        ("killed:rl:0", [], "has committed 5 steps"),
        ("killed:grpo", [], "has no stage 'grpo'; it has sft, before, rl, after"),
        ("killed:before:1", [], "before is an evaluation"),
        ("killed:rl:4", ["tasks.parity.dev=9"], r"tasks\.parity\.dev was 8 .* cannot have 9"),
        ("killed:rl:4", ["stages.sft.batch=8"], r"stages\.sft\.batch was 32"),
        ("killed:rl:4", ["stages.rl.steps=3"], "fewer than the 4 steps"),
        (
            "killed:rl:4",
            ["stages.rl.algorithm={preset: ppo}"],
            "cannot go on with critic.kind=head from .* made with none",
        ),
        ("whole", [], "is finished, so its fork would have nothing to do"),
        ("none", [], "is not a run directory"),
    ],
)
def test_what_cannot_be_forked_is_refused(runs, tmp_path, of, sets, says):
    folder = runs[1].parent
    with pytest.raises(UserError, match=says):
        fork.run(f"{folder}/{of}", out=tmp_path / "fork", overrides=sets)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_what_to_type(runs, tmp_path):
    _, whole, _ = runs
    command = [str(STROP), "fork", f"{whole}:sft", "--out", str(tmp_path / "fork"), "--set", "stages.rl.steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "begins at" in done.stdout
    assert done.stdout.splitlines()[-1].strip().endswith(f"--out {tmp_path / 'fork'} --resume")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "name a new folder with --out" in again.stderr
    job = load_recipe(tmp_path / "fork" / "recipe.yaml")
    assert [s.name for s in job.stages] == ["sft", "before", "rl", "after"]
    assert job == parse_recipe(job.model_dump(mode="json", by_alias=True))
