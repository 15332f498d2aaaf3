"""What stays of a run's checkpoints: the last, the best, and no more than the disk may hold."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from strop.config import Recipe, parse_recipe
from strop.disk import DiskFull
from strop.keep import num_bytes
from strop.record import UserError
from strop.run import Run, StageLog
from test_run import commit, weights
from test_train import SMALL, STROP, Killed, recipe, rows, run, same_weights
from test_train import weights as saved


def kept(**keep: object) -> Recipe:
    stages = [
        {"do": "train", "name": "rl", "tasks": {"easy": 1}, "steps": 50},
        {"do": "evaluate", "name": "after", "tasks": ["easy"]},
    ]
    return parse_recipe({"tasks": {"easy": {"source": "arithmetic"}}, "stages": stages, "keep": keep})


def names(log: StageLog) -> list[str]:
    return sorted(path.name for path in log.checkpoints.iterdir())


@pytest.mark.parametrize(("last", "left"), [(1, [6]), (2, [5, 6]), (4, [3, 4, 5, 6])])
def test_the_last_ones_stay(tmp_path, last, left):
    with Run.open(tmp_path / "a", kept(last=last), resume=False) as opened:
        log = opened.stage("rl")
        for step in range(1, 7):
            commit(log, step)
            log.save_checkpoint(step, weights(step))
        assert names(log) == [f"step_{step:06d}" for step in left]


def test_the_best_stays_until_a_better_one_and_after_the_end(tmp_path):
    with Run.open(tmp_path / "a", kept(last=1, best=True), resume=False) as opened:
        log, seen = opened.stage("rl"), []
        for step, accuracy in enumerate((0.2, 0.6, 0.5, 0.6, 0.7, 0.1, 0.3), 1):
            commit(log, step)
            log.log({"kind": "heldout", "step": step, "accuracy": accuracy})
            log.save_checkpoint(step, weights(step))
            seen.append([int(name[-1]) for name in names(log)])
        assert seen == [[1], [2], [2, 3], [2, 4], [5], [5, 6], [5, 7]]
        log.save_final(weights(9))
        log.finish({})
        assert names(log) == ["final", "step_000005"]
        assert log.final.name == "final"


def test_what_a_fork_cannot_make_again_stays(tmp_path):
    with Run.open(tmp_path / "a", kept(last=1), resume=False) as opened:
        opened.summary["forked_from"] = {"stage": "rl", "needs_checkpoint_from": 2, "run": "x"}
        log = opened.stage("rl")
        for step in range(1, 6):
            commit(log, step)
            log.save_checkpoint(step, weights(step))
        assert names(log) == ["step_000002", "step_000005"]


def test_what_is_kept_is_no_other_recipe(tmp_path):
    Run.open(tmp_path / "a", kept(), resume=False).close()
    with Run.open(tmp_path / "a", kept(last=5, disk_gb=1.5), resume=True) as opened:
        assert opened.recipe.keep.last == 5
    assert kept().hash == kept(best=True).hash


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heldout_every": 0}, "keep.best goes by the dev accuracy"),
        ({"do": "evaluate", "tasks": ["easy"]}, "keep.last has no effect"),
    ],
)
def test_a_policy_that_would_do_nothing_is_refused(changes, says):
    rl = {"do": "train", "name": "rl", "tasks": {"easy": 1}} | changes
    keep = {"best": True} if "heldout_every" in changes else {"last": 3}
    with pytest.raises(UserError, match=says):
        parse_recipe({"tasks": {"easy": {"source": "arithmetic"}}, "stages": [rl], "keep": keep})


# --- a quota


def test_within_a_quota_the_oldest_go_first_and_then_the_run_stops(tmp_path):
    """Checkpoints of 100 kB in 400 kB: with the best kept, the newest two others make room; then there is none."""
    out, job = tmp_path / "a", kept(last=9, best=True, disk_gb=400e-6)
    with Run.open(out, job, resume=False) as opened:
        log, seen = opened.stage("rl"), []
        for step in range(1, 7):
            commit(log, step)
            log.log({"kind": "heldout", "step": step, "accuracy": 0.9 if step == 2 else 0.1})
            log.save_checkpoint(step, weights(step, 100_000))
            seen.append([int(name[-1]) for name in names(log)])
            assert num_bytes(out) <= 400_000
        assert seen == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
        (out / "rollouts" / "large").write_bytes(b"x" * 200_000)
        with pytest.raises(
            DiskFull, match=r"holds 0\.000\d+ GB, and 0\.0001 GB more .* than keep\.disk_gb=0\.0004; .* --resume"
        ):
            log.save_checkpoint(6, weights(6, 100_000))
        assert names(log) == ["step_000002", "step_000006"]  # the best and the newest never go
        (out / "rollouts" / "larger").write_bytes(b"x" * 200_000)
        with pytest.raises(DiskFull, match=r"holds .* GB, which is more than keep\.disk_gb"):
            commit(log, 7)
    with Run.open(out, kept(disk_gb=1), resume=True) as opened:
        log = opened.stage("rl")
        assert log.last_step == 6
        assert log.latest_checkpoint() == (6, log.checkpoints / "step_000006")
        commit(log, 7)


@pytest.mark.slow
def test_a_quota_stops_the_command_with_3_and_more_of_it_goes_on_to_the_same_end(tiny_model, tmp_path):
    job = recipe(tmp_path, tiny_model, steps=4, rl=SMALL | {"checkpoint_every": 1})
    run(job, tmp_path / "whole")
    (tmp_path / "recipe.yaml").write_text(job.to_yaml())
    command = [str(STROP), "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    tight = num_bytes(tmp_path / "whole" / "checkpoints" / "sft") * 1.6 / 1e9
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--set", f"keep.disk_gb={tight}"], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "--set keep.disk_gb and --resume" in done.stderr.splitlines()[-1]
    done = subprocess.run(
        [*command, "--set", "keep.disk_gb=1", "--resume"], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    assert same_weights(saved(tmp_path / "whole"), saved(tmp_path / "run"))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


# --- in training


@pytest.mark.slow
def test_the_best_weights_of_a_stage_stay_also_when_a_kill_came_before_they_were_saved(
    tiny_model, tmp_path, monkeypatch
):
    rl = SMALL | {"checkpoint_every": 100, "heldout_every": 1}
    job = recipe(tmp_path, tiny_model, steps=6, rl=rl)
    job = Recipe.model_validate(job.model_dump(mode="json", by_alias=True) | {"keep": {"best": True}})
    run(job, tmp_path / "whole")
    looks = [row for row in rows(tmp_path / "whole", "heldout") if row["stage"] == "rl" and row["step"]]
    best = max(looks, key=lambda row: row["accuracy"])["step"]
    assert best < 6, "the last is the best: the test needs another seed"
    assert names_of(tmp_path / "whole") == ["final", f"step_{best:06d}"]
    append = Run.append

    def killing(self: Run, row: dict) -> None:
        append(self, row)
        if (row["stage"], row["kind"], row["step"]) == ("rl", "heldout", best):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", killing)
        with pytest.raises(Killed):
            run(job, tmp_path / "killed")
    run(job, tmp_path / "killed", resume=True)
    assert names_of(tmp_path / "killed") == names_of(tmp_path / "whole")
    for step in (f"step_{best:06d}", "final"):
        assert same_weights(saved(tmp_path / "whole", step=step), saved(tmp_path / "killed", step=step))


def names_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints" / "rl").iterdir())


# --- adapters, and a disk that is full


def test_with_lora_a_checkpoint_holds_the_adapter_alone(tiny_model, tmp_path):
    """Its weights, and twice as much for the optimizer; nothing of the base, in no file."""
    job = recipe(tmp_path, tiny_model, steps=4, rl=SMALL | {"checkpoint_every": 2})
    data = job.model_dump(mode="json", by_alias=True)
    data["model"]["lora"] = {"rank": 2, "alpha": 4}
    data["stages"] = data["stages"][:1]
    run(Recipe.model_validate(data), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "sft" / "final"
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*.safetensors")}
    assert sizes.keys() == {"adapter_model.safetensors", "adamw.safetensors"}
    base = (tiny_model / "model.safetensors").stat().st_size
    adapter = (
        4 * sum(2 * (a + b) for a, b in ((64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64))) * 2
    )
    assert adapter <= sizes["adapter_model.safetensors"] < adapter + 8_000  # the rest are names
    assert 2 * adapter <= sizes["adamw.safetensors"] < 2 * adapter + 16_000
    assert sum(sizes.values()) < base / 2


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="may not mount a file system here")
def test_a_command_on_a_full_disk_stops_with_3_and_goes_on_to_the_same_end(tiny_model, tmp_path):
    """A file system that fills up in a checkpoint write: one sentence, the last good checkpoint whole; more room, the same end."""
    job = recipe(tmp_path, tiny_model, steps=4, rl=SMALL | {"checkpoint_every": 1})
    run(job, tmp_path / "whole")
    one = num_bytes(tmp_path / "whole" / "checkpoints" / "sft")
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={2 * one}", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    try:
        (tmp_path / "recipe.yaml").write_text(job.to_yaml())
        command = [str(STROP), "run", str(tmp_path / "recipe.yaml"), "--out", str(where / "run")]
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 3, done.stderr
        assert "no space left on device" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        left = json.loads((where / "run" / "summary.json").read_text())
        assert not left["finished"]
        assert not list((where / "run").rglob(".*.tmp"))
        subprocess.run(["mount", "-o", f"remount,size={20 * one}", str(where)], check=True)
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        assert same_weights(saved(tmp_path / "whole"), saved(where / "run"))
        assert rows(where / "run") == rows(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(where)], check=True)
