"""`strop verify-resume`: real processes killed outright at random moments, and a verdict that can be no."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from faults import told
from strop import disk, verify_resume
from strop.config import Recipe
from strop.record import UserError, read_rollouts, replace, write_rollouts
from strop.verify_resume import same, strikes
from strop.watch import Watch
from test_train import SMALL, STROP, recipe

PHASES = ("generation", "update", "checkpoint write", "rename of a checkpoint")


def job(folder: Path, tiny_model: Path, steps: int) -> Recipe:
    """SFT, RL with a curriculum and a dev split, and two evaluations with samples."""
    rl = SMALL | {"heldout_every": 2, "curriculum": {"easy": 1, "medium": 1, "hard": 1}}
    made = recipe(folder, tiny_model, steps=steps, rl=rl, kl="loss", kl_coef=0.1)
    return verify_resume.shortened(made, steps, evaluate=True)


def verify(made: Recipe, out: Path, kills: int) -> dict:
    return verify_resume.run(made, out=out, kills=kills, watch=Watch(open("/dev/null", "w"), live=False))


@pytest.fixture(scope="module")
def verdict(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("verify")
    return verify(job(folder, tiny_model, 4), folder / "out", 6), folder / "out"


def test_a_run_killed_at_random_equals_the_undisturbed_one(verdict):
    found, out = verdict
    assert found["equal"], found["first_difference"]
    assert len(found["kills"]) == 6
    assert {name: part["compared"] for name, part in found["parts"].items() if not part["compared"]} == {}
    assert found["parts"]["optimizer"]["compared"] == 2
    assert len(list((out / "killed" / "attempts").iterdir())) in (6, 7)  # one may die before it has a number
    assert len(list((out / "whole" / "attempts").iterdir())) == 1
    assert verify_resume.lines(found)[-1].startswith("A run killed 6 times and resumed equals the undisturbed one")


def test_every_kind_of_difference_is_found_and_named(verdict, tmp_path):
    whole = verdict[1] / "whole"

    def changed(change) -> dict[str, str]:
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(whole, other)
        change(other)
        return {name: p["first_difference"] for name, p in same.parts(whole, other).items() if not p["equal"]}

    def weights(out: Path) -> None:
        def write(folder: Path) -> None:
            tensors = load_file(whole / "checkpoints/rl/final/model.safetensors")
            first = next(iter(tensors))
            tensors[first] = np.nextafter(tensors[first], np.float32(9))
            save_file(tensors, folder / "model.safetensors")

        disk.save_folder(out / "checkpoints/rl/final", write)

    def optimizer(out: Path) -> None:
        summary = json.loads((out / "summary.json").read_text())
        summary["stages"]["rl"]["optimizer"] = "0"
        (out / "summary.json").write_text(json.dumps(summary))

    def rollout(out: Path) -> None:
        path = out / "rollouts/rl/step_000003.parquet"
        first, *rest = read_rollouts(path)
        write_rollouts(
            path, [replace(first, sampler_logprobs=np.nextafter(first.sampler_logprobs, np.float32(0))), *rest]
        )

    def row(out: Path) -> None:
        lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
        (out / "metrics.jsonl").write_text("".join(lines[:-1]))

    assert changed(lambda out: None) == {}
    assert changed(weights)["parameters"].startswith("rl/final/model.safetensors: ")
    assert changed(optimizer)["optimizer"].startswith("optimizer of rl: ")
    assert changed(rollout) == {"rollouts": "rollouts/rl/step_000003.parquet: `sampler_logprobs` of rollout 0"}
    assert "is only in the undisturbed run" in changed(row)["metrics"]


@pytest.mark.slow
def test_a_reward_that_draws_lots_is_caught(tiny_model, tmp_path):
    """What depends on more than the recipe cannot be resumed: exit 1, and the first difference has a name."""
    (tmp_path / "own.py").write_text(
        "import os\n\ndef lots(completions):\n    return [os.urandom(1)[0] for _ in completions]\n"
    )
    made = recipe(tmp_path, tiny_model, steps=2, rl=SMALL | {"rewards": [{"name": "own.py:lots"}]})
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    command = [str(STROP), "verify-resume", "recipe.yaml", "--kills", "1", "--steps", "2", "--json"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1, done.stderr
    assert not found["equal"]
    assert found["first_difference"].startswith("rl/final/model.safetensors: ")
    assert found["parts"]["tasks"]["equal"]
    assert "recipe-verify-resume" in done.stderr.splitlines()[-1]  # both runs are there to be looked at


def test_what_cannot_be_verified_is_refused(tiny_model, tmp_path):
    made = recipe(tmp_path, tiny_model, steps=2)
    only = made.model_copy(update={"stages": [s for s in made.stages if s.do == "evaluate"]})
    with pytest.raises(UserError, match="trains nothing"):
        verify_resume.shortened(only, 4)
    with pytest.raises(UserError, match="name a new folder with --out"):
        verify(made, tmp_path, 1)
    missing = made.model_copy(update={"model": made.model.model_copy(update={"name": str(tmp_path / "nowhere")})})
    with pytest.raises(UserError, match="no such folder"):
        verify(missing, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_a_shortened_recipe_keeps_everything_else(tiny_model, tmp_path):
    made = recipe(tmp_path, tiny_model, steps=24, preset="ppo", critic={"pretrain_steps": 5})
    short = verify_resume.shortened(made, 3)
    assert [s.name for s in short.stages] == ["sft", "rl"]
    sft, rl = short.stages
    assert (sft.max_steps, sft.eval_every, rl.steps, rl.heldout_every, rl.checkpoint_every) == (3, 2, 3, 0, 2)
    assert rl.algorithm.critic.pretrain_steps == 2
    assert rl.optim == made.stages[2].optim
    assert rl.prompts_per_step == made.stages[2].prompts_per_step
    assert (short.tasks, short.model, short.seed) == (made.tasks, made.model, made.seed)


def test_limits_that_would_not_move_in_so_few_steps_are_left_out(tiny_model, tmp_path):
    moves = {"limits": [2, 4], "window_steps": 4}
    made = recipe(tmp_path, tiny_model, steps=24, rl={"moves": moves})
    assert verify_resume.shortened(made, 4).stages[-1].moves.limits == []
    assert verify_resume.shortened(made, 5).stages[-1].moves.limits == [2, 4]


def test_a_run_that_somebody_else_kills_is_no_proof(tiny_model, tmp_path):
    child = strikes._Child(job(tmp_path, tiny_model, 4), tmp_path, tmp_path / "out", resume=False)
    child._process.kill()
    child.end()
    assert child.failed == "the process ended with -9 and said nothing"


@pytest.mark.slow
@pytest.mark.faults
def test_fifty_kills(tiny_model, tmp_path):
    found = verify(job(tmp_path, tiny_model, 40), tmp_path / "out", 50)
    hits = found["kills_by_phase"]
    print(hits)
    assert all(hits.get(phase, 0) >= 3 for phase in PHASES), hits
    for phase in PHASES:
        told(f"SIGKILL in {phase}", injected=hits[phase], survived=hits[phase] if found["equal"] else 0)
    others = sum(num for phase, num in hits.items() if phase not in PHASES)
    told("SIGKILL elsewhere", injected=others, survived=others if found["equal"] else 0)
    assert found["equal"], found["first_difference"]
    assert sum(hits.values()) == 50
