"""The run directory: what is committed survives anything, and what is not leaves no trace."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from strop import disk
from strop.config import Recipe, parse_recipe
from strop.ledger import Ledger
from strop.record import Rollout, Task, UserError
from strop.run import DiskFull, Run, StageLog


def recipe(**changes: object) -> Recipe:
    rl = {"do": "train", "name": "rl", "tasks": {"easy": 1}, "steps": 50} | changes
    stages = [
        {"do": "sft", "name": "sft", "tasks": ["easy"]},
        rl,
        {"do": "evaluate", "name": "after", "tasks": ["easy"]},
    ]
    return parse_recipe({"tasks": {"easy": {"source": "arithmetic"}}, "stages": stages})


def rollout(step: int, num_tokens: int = 6) -> Rollout:
    task = Task.make(source="s", prompt="Compute 2 + 3.", answer="5", verifier="math", meta={"level": 1})
    mask = np.arange(num_tokens) >= 2
    logprobs = np.where(mask, -0.5 * step, np.nan).astype(np.float32)
    ids = np.random.default_rng(step).integers(0, 50_000, num_tokens, dtype=np.int32)
    return Rollout(
        task=task, group=0, sample=step, token_ids=ids, sampled=mask, trained=mask, sampler_logprobs=logprobs, text="5"
    )


def start(out: Path, resume: bool = False, said: list[str] | None = None) -> Run:
    return Run.open(out, recipe(), resume=resume, say=(said if said is not None else []).append)


def commit(log: StageLog, *steps: int) -> None:
    for step in steps:
        log.commit(step, [rollout(step)], {"reward": step / 10})


def weights(fill: int, num_bytes: int = 1000):
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([fill]) * num_bytes)
        (folder / "strop_state").mkdir()
        (folder / "strop_state" / "adam.bin").write_bytes(b"moments")

    return write


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- opening


def test_new_run_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    with start(out) as run:
        assert run.summary["stages"] == {}
        assert run.stage("rl").last_step == 0
        assert run.stage("rl").done is None
    summary = json.loads((out / "summary.json").read_text())
    assert summary["recipe_hash"] == recipe().hash
    assert summary["finished"] is False
    assert summary["peak_rss_mb"] > 10
    assert summary["machine"]["cores"] >= 1
    assert summary["machine"]["strop"]
    assert files(out) == {
        ".lock", "recipe.yaml", "summary.json", "attempts/1/machine.json", "attempts/1/argv.json",
    }  # fmt: skip
    with start(out, resume=True) as run:
        assert run.attempt == out / "attempts" / "2"
    assert json.loads((out / "attempts" / "1" / "argv.json").read_text()) == sys.argv


def test_folders_that_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with pytest.raises(UserError, match="no run to resume"):
        start(out, resume=True)
    assert not out.exists()
    start(out).close()
    with pytest.raises(UserError, match=r"--resume, or name another folder with --out"):
        start(out)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("x")
    with pytest.raises(UserError, match="other files"):
        start(foreign)
    assert files(foreign) == {"chapter1.tex"}
    with pytest.raises(UserError, match="is a file"):
        start(foreign / "chapter1.tex")
    (tmp_path / "empty").mkdir()
    start(tmp_path / "empty").close()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (recipe(steps=60), r"stages\.rl\.steps was 50 and is now 60"),
        (recipe(optim={"lr": 0.5}), r"stages\.rl\.optim\.lr was 1e-05 and is now 0\.5"),
        (recipe(tasks={"easy": 2}), r"stages\.rl\.tasks\.easy was 1(\.0)? and is now 2"),
        (recipe(name="grpo"), r"stages\.rl was there and is now absent"),
    ],
)
def test_resume_with_another_recipe_names_the_key(tmp_path: Path, changed: Recipe, says: str) -> None:
    start(tmp_path / "a").close()
    with pytest.raises(UserError, match=says):
        Run.open(tmp_path / "a", changed, resume=True)
    assert not (tmp_path / "a" / "attempts" / "2").exists()


def test_the_advice_for_another_recipe_is_the_original_file(tmp_path: Path) -> None:
    """The copy in the run lies in another folder, where reward files beside the recipe are not found."""
    start(tmp_path / "a").close()
    with pytest.raises(UserError) as caught:
        Run.open(tmp_path / "a", recipe(steps=60), resume=True)
    assert "resume with the recipe file" in str(caught.value)
    assert "recipe.yaml" not in str(caught.value)
    assert "attempts/1/argv.json" in str(caught.value)


def test_a_resume_keeps_the_machine_of_the_first_start(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        run.summary["machine"] = {"cpu": "another"}
        run.write_summary()
    start(tmp_path / "a", resume=True).close()
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["machine"] == {"cpu": "another"}
    assert json.loads((tmp_path / "a" / "attempts" / "2" / "machine.json").read_text())["cores"] >= 1


def test_another_machine_is_named_once_and_stands_in_every_checkpoint(tmp_path: Path) -> None:
    here = {"threads": 2, "torch": "2.13.0"}
    with start(tmp_path / "a") as run:
        run.note_machine(here)
        run.stage("rl").save_final(weights(1))
    manifest = json.loads((tmp_path / "a/checkpoints/rl/final/manifest.json").read_text())
    assert manifest["made_on"] == here
    heard, there = [], {"threads": 4, "torch": "2.14.0"}
    for now in (here, there, there, here):
        said: list[str] = []
        with start(tmp_path / "a", resume=True, said=said) as run:
            run.note_machine(now)
            run.write_summary()
        heard.append(said)
    assert [len(said) for said in heard] == [0, 1, 0, 1]
    assert heard[1][0].endswith("continues, not bit-exact: threads 2 then, 4 now; torch 2.13.0 then, 2.14.0 now")
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["made_on"] == [here, there, here]


def test_a_checkpoint_saves_what_was_spent(tmp_path: Path) -> None:
    """Nothing else writes the summary in the middle of a stage, and a SIGKILL asks nobody."""
    with start(tmp_path / "a") as run:
        run.ledger = Ledger()
        run.ledger.add_tokens("generate", 640)
        commit(run.stage("rl"), 1)
        assert json.loads((tmp_path / "a" / "summary.json").read_text())["ledger"] == {}
        run.stage("rl").save_checkpoint(1, weights(1))
        assert json.loads((tmp_path / "a" / "summary.json").read_text())["ledger"]["tokens_sampled"] == 640


def test_a_recipe_edited_in_comments_only_still_resumes(tmp_path: Path) -> None:
    start(tmp_path / "a").close()
    path = tmp_path / "a" / "recipe.yaml"
    path.write_text("# a note to self\n" + path.read_text())
    start(tmp_path / "a", resume=True).close()


def test_reading_takes_no_lock_and_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with start(out) as run:
        commit(run.stage("rl"), 1, 2)
        with open(out / "metrics.jsonl", "a") as file:
            file.write('{"stage": "rl", "ki')
        before = {name: (out / name).read_bytes() for name in files(out)}
        reader = Run.read(out)
        assert [row["step"] for row in reader.stage("rl").rows("train")] == [1, 2]
        assert {name: (out / name).read_bytes() for name in files(out)} == before
        with pytest.raises(AssertionError):
            reader.stage("rl").commit(3, [], {})
    with pytest.raises(UserError, match="not a run"):
        Run.read(tmp_path)


# --- the lock

HOLDER = """
import sys, time
sys.path[:0] = {path!r}
from test_run import start, commit, weights
from pathlib import Path
run = start(Path(sys.argv[1]), resume=len(sys.argv) > 2)
print("open", flush=True)
log = run.stage("rl")
step = log.last_step
while True:
    step += 1
    commit(log, step)
    log.save_checkpoint(step, weights(step % 256, 200_000))
"""


def holder(out: Path, *more: str) -> subprocess.Popen[str]:
    """Another process that commits steps as fast as it can until it is killed."""
    code = HOLDER.format(path=[str(Path(__file__).parent)])
    process = subprocess.Popen([sys.executable, "-c", code, str(out), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_killed_processes_leave_a_run_that_goes_on(tmp_path: Path) -> None:
    """SIGKILL at arbitrary moments: a second writer is refused while it lives, and the run is whole after it died."""
    out, before, resumes = tmp_path / "a", 0, []
    for wait_s in (0.001, 0.0053, 0.0117):
        process = holder(out, *resumes)
        with pytest.raises(UserError, match=f"written by process {process.pid}"):
            start(out, resume=True)
        while not (out / "metrics.jsonl").exists() or len(Run.read(out).rows) < before + 2:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(wait_s)  # now anywhere within the next few commits and checkpoints
        process.send_signal(signal.SIGKILL)
        process.wait()
        resumes = ["--resume"]
        with start(out, resume=True) as run:
            log = run.stage("rl")
            assert [row["step"] for row in log.rows("train")] == list(range(1, log.last_step + 1))
            assert log.last_step > before
            before = log.last_step
            for step in range(1, log.last_step + 1):
                assert np.array_equal(log.rollouts(step)[0].token_ids, rollout(step).token_ids)
            assert len(list(log.rollout_folder.iterdir())) == log.last_step
            step, folder = log.latest_checkpoint() or (0, out)
            assert log.last_step - 1 <= step <= log.last_step
            assert (folder / "model.safetensors").read_bytes() == bytes([step % 256]) * 200_000
        assert not [name for name in files(out) if name.endswith(".tmp")]


def test_one_of_many_starters_wins(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from test_run import *\nsys.stdin.readline()\ntry:\n run = start(Path(sys.argv[1]))\n"
        " print('won', flush=True); sys.stdin.readline()\nexcept UserError as e: print(e, flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    several = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in several:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in several if process.stdout is not None]
    for process in several:
        process.communicate("\n")
    assert said.count("won\n") == 1, said
    assert files(tmp_path / "a" / "attempts") == {"1/machine.json", "1/argv.json"}


# --- steps


def test_committed_steps_come_back(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        log = run.stage("rl")
        log.log({"kind": "heldout", "step": 0, "accuracy": 0.25})
        log.commit(1, [rollout(1), rollout(7)], {"reward": np.float32(0.5), "loss": float("nan"), "n": np.int64(3)})
        log.commit(2, [], {"kl": float("-inf"), "parts": (1, 2.5)})
        run.stage("sft").commit(1, None, {"loss": 2.0})
        with pytest.raises(AssertionError):
            log.commit(4, [], {})
        with pytest.raises(AssertionError):
            log.commit(2, [], {})
    with start(tmp_path / "a", resume=True) as run:
        log = run.stage("rl")
        assert log.last_step == 2
        assert run.stage("sft").last_step == 1
        assert log.rows("train") == [
            {"stage": "rl", "kind": "train", "reward": 0.5, "loss": None, "n": 3, "step": 1},
            {"stage": "rl", "kind": "train", "kl": None, "parts": [1, 2.5], "step": 2},
        ]
        assert [row["kind"] for row in log.rows()] == ["heldout", "train", "train"]
        first, second = log.rollouts(1)
        assert (first.sample, second.sample) == (1, 7)
        assert log.rollouts(2) == []
        np.testing.assert_array_equal(first.sampler_logprobs, rollout(1).sampler_logprobs)
        (log.rollout_folder / "step_000002.parquet").unlink()
        with pytest.raises(UserError, match="step 2 of stage rl are gone"):
            log.rollouts(2)


def test_what_was_not_committed_is_dropped_and_said(tmp_path: Path) -> None:
    out, said = tmp_path / "a", []
    with start(out) as run:
        log = run.stage("rl")
        commit(log, 1, 2)
        log.log({"kind": "heldout", "step": 2, "accuracy": 0.5})
        log.log({"kind": "heldout", "step": 3, "accuracy": 0.9})  # evaluated before step 3 was committed
        log.save_rollouts("step_000003", [rollout(3)])  # written, then killed before the row
        log.save_checkpoint(3, weights(3))
    (log.rollout_folder / ".step_000004.parquet.tmp").write_bytes(b"half")
    (log.checkpoints / ".step_000004.tmp").mkdir()
    whole = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(whole + b'{"stage": "rl", "kind": "train", "st')
    with start(out, resume=True, said=said) as run:
        log = run.stage("rl")
        assert log.last_step == 2
        assert [row["step"] for row in log.rows("heldout")] == [2]
        assert log.latest_checkpoint() is None
        assert [path.name for path in sorted(log.rollout_folder.iterdir())] == [
            "step_000001.parquet",
            "step_000002.parquet",
        ]
        assert list(log.checkpoints.iterdir()) == []
        commit(log, 3)
    assert len(said) == 2
    assert "never finished" in said[0]
    assert "after step 2" in said[1]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2, 3]


def test_a_row_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with start(out) as run:
        commit(run.stage("rl"), 1, 2, 3)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text(lines[0] + "}" + lines[1] + lines[2])
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is not JSON"):
        start(out, resume=True)
    (out / "metrics.jsonl").write_text(
        lines[0] + lines[1] + "\0" * 40 + "\n"
    )  # what some file systems make of a power cut
    with start(out, resume=True) as run:
        assert run.stage("rl").last_step == 2


def test_rewind(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        log, other = run.stage("sft"), run.stage("rl")
        for step in (1, 2, 3, 4):
            log.commit(step, None, {"loss": float(step)})
            log.log({"kind": "heldout", "step": step, "accuracy": 0.1})
        commit(other, 1, 2, 3)
        log.save_checkpoint(2, weights(2))
        log.save_checkpoint(4, weights(4))
        log.rewind(2)
        assert log.last_step == 2
        assert log.latest_checkpoint() == (2, log.checkpoints / "step_000002")
        log.commit(3, None, {"loss": 30.0})
    with start(tmp_path / "a", resume=True) as run:
        assert [row["loss"] for row in run.stage("sft").rows("sft")] == [1.0, 2.0, 30.0]
        assert len(run.stage("sft").rows("heldout")) == 2
        assert run.stage("rl").last_step == 3


def test_finished_stages_are_skipped(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with start(out) as run:
        log = run.stage("rl")
        commit(log, 1)
        log.save_checkpoint(1, weights(1))
        log.save_final(weights(9))
        log.finish({"wall_s": 1.5, "best": float("nan")})
        run.stage("after").log({"kind": "evaluation", "step": 1, "greedy_acc": 0.5})
        run.stage("after").finish({"greedy_acc": 0.5})
        run.summary["ledger"] = {"wall_s": 2.0}
        run.write_summary()
    with start(out, resume=True) as run:
        log = run.stage("rl")
        assert log.done == {"kind": "train", "wall_s": 1.5, "best": None}
        assert run.stage("sft").done is None
        assert len(run.stage("after").rows("evaluation")) == 1  # what a finished stage logged is never dropped
        assert run.summary["ledger"] == {"wall_s": 2.0}
        assert [path.name for path in log.checkpoints.iterdir()] == ["final"]
        assert (log.final / "model.safetensors").read_bytes()[:1] == b"\x09"


def test_a_run_killed_before_its_first_summary_resumes(tmp_path: Path) -> None:
    start(tmp_path / "a").close()
    (tmp_path / "a" / "summary.json").unlink()
    with start(tmp_path / "a", resume=True) as run:
        assert run.summary["recipe_hash"] == recipe().hash
    (tmp_path / "a" / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is not JSON"):
        start(tmp_path / "a", resume=True)


# --- checkpoints


def test_checkpoints_keep_two_and_the_final(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        log = run.stage("rl")
        with pytest.raises(UserError, match="no saved weights"):
            _ = log.final
        for step in range(1, 6):
            commit(log, step)
            log.save_checkpoint(step, weights(step))
        assert sorted(path.name for path in log.checkpoints.iterdir()) == ["step_000004", "step_000005"]
        assert log.latest_checkpoint() == (5, log.checkpoints / "step_000005")
        assert log.final == log.checkpoints / "step_000005"
        manifest = json.loads((log.final / "manifest.json").read_text())
        assert manifest["step"] == 5
        assert manifest["stage"] == "rl"
        assert manifest["recipe_hash"] == recipe().hash
        assert set(manifest["files"]) == {"model.safetensors", "strop_state/adam.bin"}
        log.save_final(weights(7))
        assert log.final == log.checkpoints / "final"


def flip_a_byte(folder: Path) -> str:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "content of model.safetensors has changed"


def shorten(folder: Path) -> str:
    os.truncate(folder / "model.safetensors", 999)
    return "999 bytes in place of 1000"


def lose_a_file(folder: Path) -> str:
    (folder / "strop_state" / "adam.bin").unlink()
    return "strop_state/adam.bin is missing"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json is missing"


def tear_the_manifest(folder: Path) -> str:
    os.truncate(folder / "manifest.json", 40)
    return "manifest.json is damaged"


def lose_a_hash(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("sha256", "sha25", 1))
    return "manifest.json is damaged"


DAMAGES = [flip_a_byte, shorten, lose_a_file, lose_the_manifest, tear_the_manifest, lose_a_hash]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, damage) -> None:
    with start(tmp_path / "a") as run:
        log = run.stage("rl")
        commit(log, 1, 2, 3)
        log.save_checkpoint(2, weights(2))
        log.save_checkpoint(3, weights(3))
        log.save_final(weights(4))
    said: list[str] = []
    with start(tmp_path / "a", resume=True, said=said) as run:
        log = run.stage("rl")
        what = damage(log.checkpoints / "step_000003")
        assert log.latest_checkpoint() == (2, log.checkpoints / "step_000002")
        assert len(said) == 1
        assert "step_000003 is damaged" in said[0]
        assert what in said[0]
        log.save_checkpoint(3, weights(3))
        assert log.latest_checkpoint() == (3, log.checkpoints / "step_000003")
        damage(log.checkpoints / "final")
        with pytest.raises(UserError, match="final is damaged"):
            _ = log.final


def test_a_checkpoint_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise ZeroDivisionError

    with start(tmp_path / "a") as run:
        log = run.stage("rl")
        commit(log, 1)
        log.save_checkpoint(1, weights(1))
        with pytest.raises(ZeroDivisionError):
            log.save_checkpoint(1, fails)
        assert [path.name for path in log.checkpoints.iterdir()] == ["step_000001"]
        assert log.latest_checkpoint() is not None


# --- a full disk


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to make any file of this process longer (EFBIG): the full disk that needs no privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB (ENOSPC)."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """A file that leaves about so many bytes free."""
    path = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    path.write_bytes(b"x" * max(0, free - leave_bytes))
    return path


def check_intact(run: Run) -> None:
    """What was committed is there in memory, on disk and after a resume, and no temporary file is."""
    out, log = run.out, run.stage("rl")
    assert log.last_step == 1
    assert log.latest_checkpoint() is not None
    assert not [name for name in files(out) if name.endswith(".tmp")]
    assert (out / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert json.loads((out / "summary.json").read_text())["finished"] is False


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        log = run.stage("rl")
        commit(log, 1)
        log.save_checkpoint(1, weights(1))
        with (
            files_limited_to(20_000),
            pytest.raises(DiskFull, match=r"step_000002\.parquet could not be written: file too"),
        ):
            log.commit(2, [rollout(2, num_tokens=50_000)], {})
        check_intact(run)
        size = (run.out / "metrics.jsonl").stat().st_size
        with files_limited_to(size + 100), pytest.raises(DiskFull, match=r"metrics\.jsonl could not be written"):
            log.log({"kind": "heldout", "step": 1, "text": "x" * 200})
        assert (run.out / "metrics.jsonl").stat().st_size == size
        assert log.rows("heldout") == []
        with files_limited_to(20_000), pytest.raises(DiskFull, match="continue with --resume"):
            log.save_checkpoint(2, weights(2, 100_000))
        with files_limited_to(1_000), pytest.raises(DiskFull, match=r"summary\.json"):
            run.write_summary()
        check_intact(run)
        commit(log, 2)


def test_a_full_disk(tiny_disk: Path) -> None:
    import torch  # here, because other processes import this file and have no use for it
    from safetensors.torch import save_file

    with start(tiny_disk / "a") as run:
        log = run.stage("rl")
        commit(log, 1)
        log.save_checkpoint(1, weights(1))
        ballast = fill(tiny_disk, leave_bytes=40_000)
        with pytest.raises(DiskFull, match="no space left on device"):
            log.commit(2, [rollout(2, num_tokens=100_000)], {})
        check_intact(run)
        with pytest.raises(DiskFull, match="no space left on device"):
            log.save_checkpoint(1, weights(1, 100_000))
        with pytest.raises(DiskFull, match=r"step_000002 could not be written: no space left"):  # raised from Rust
            log.save_checkpoint(2, lambda folder: save_file({"w": torch.ones(30_000)}, folder / "model.safetensors"))
        check_intact(run)
        ballast.unlink()
        fill(tiny_disk, leave_bytes=0)
        with pytest.raises(DiskFull):
            run.stage("rl").log({"kind": "heldout", "step": 1, "text": "x" * 10_000})
        with pytest.raises(DiskFull):
            run.write_summary()
        check_intact(run)
        ballast.unlink()
    with start(tiny_disk / "a", resume=True) as run:
        check_intact(run)
        commit(run.stage("rl"), 2)


def test_a_folder_that_may_not_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: permission denied"), disk.guard(tmp_path / "a"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(FileNotFoundError), disk.guard(tmp_path / "a"):
        (tmp_path / "nothing").read_text()
