"""The whole loop on a tiny model: it learns, its controls do not, and a stopped or killed run ends where a whole one does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from strop import pipeline
from strop.config import Recipe, parse_recipe
from strop.record import Rollout, UserError, read_rollouts
from strop.watch import Watch

STROP = Path(sys.executable).with_name("strop")
SFT_STEPS = 12
SMALL = {"prompts_per_step": 8, "group_size": 8, "updates_per_step": 2}  # where nothing needs to be learned


def write_tasks(folder: Path) -> tuple[Path, Path]:
    """Is the number, written in base 4, even or odd? And a file that teaches the form alone: its answers are drawn.

    Solutions are in small letters, answers in capitals (the verifier does not mind), so that neither gives the other.
    """
    rng = random.Random(0)
    parity = [{"problem": np.base_repr(n, 4), "answer": "EO"[n % 2]} for n in range(1024, 1624)]
    form = [
        {"problem": np.base_repr(n, 4), "answer": (x := rng.choice("EO")), "solution": x.lower()}
        for n in range(256, 1024)
    ]
    for name, listed in (("parity", parity), ("form", form)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return folder / "parity.jsonl", folder / "form.jsonl"


def recipe(
    tmp_path: Path, tiny_model: Path, *, seed: int = 0, steps: int = 24, rl: dict | None = None, then: list[dict] | None = None,
    **algorithm: object,
) -> Recipe:  # fmt: skip
    """SFT for the form, an evaluation, RL (with the settings `rl` changed), an evaluation, and the stages `then`."""
    settings = {"verifier": "exact", "prompt_column": "problem", "answer_column": "answer"}
    parity, form = write_tasks(tmp_path)
    return parse_recipe({
        "seed": seed,
        "model": {"name": str(tiny_model)},
        "chat": {"template": "{{ messages[0].content }}"},  # the last digit is right before the answer: easy for two layers
        "tasks": {
            "parity": {"source": str(parity), "heldout": 48, "dev": 8, "settings": settings},
            "form": {"source": str(form), "heldout": 0, "dev": 8, "settings": settings},
        },
        "stages": [
            {"name": "sft", "do": "sft", "tasks": ["form"], "max_steps": SFT_STEPS, "batch": 32, "eval_every": 100,
             "max_tokens": 2, "optim": {"lr": 3e-3}},
            evaluation("before"),
            train("rl", steps=steps, algorithm={"preset": "dapo", **algorithm}, **(rl or {})),
            evaluation("after"),
            *(then or []),
        ],
        "checks": {"workers": 1},
    })  # fmt: skip


def train(name: str, **settings: object) -> dict:
    """256 rollouts a step in four updates: with fewer the policy gives one letter to all before it has seen a rule."""
    return {
        "name": name, "do": "train", "tasks": {"parity": 1.0}, "prompts_per_step": 32, "group_size": 8,
        "updates_per_step": 4, "max_tokens": 2, "optim": {"lr": 1e-3, "warmup_steps": 3}, "heldout_every": 0,
        "checkpoint_every": 7, **settings,
    }  # fmt: skip


def evaluation(name: str, **settings: object) -> dict:
    return {"name": name, "do": "evaluate", "tasks": ["parity"], "max_tokens": 2, "samples": 4, **settings}


def quiet() -> Watch:
    return Watch(open("/dev/null", "w"), live=False)


def run(recipe: Recipe, out: Path, **options: object) -> dict:
    return pipeline.run(recipe, out=out, watch=quiet(), **options)  # type: ignore[arg-type]


def weights(out: Path, stage: str = "rl", step: str = "final") -> dict[str, np.ndarray]:
    return load_file(out / "checkpoints" / stage / step / "model.safetensors")


def same_weights(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def rows(out: Path, kind: str | None = None) -> list[dict]:
    """Metrics without what a clock or a meter measured."""
    kept = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.endswith(("_s", "_j"))} for row in kept if kind in (None, row["kind"])
    ]


def rollouts(out: Path, step: int) -> list[Rollout]:
    return read_rollouts(out / "rollouts" / "rl" / f"step_{step:06d}.parquet")


# --- learning, and not learning -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arms(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict]]:
    """For three seeds: from one SFT, RL, RL with shuffled rewards, and RL with advantages of zero."""
    controls = [
        train("shuffled", steps=24, algorithm={"advantages": "shuffled"}, **{"from": "sft"}),
        evaluation("after_shuffled"),
        train("zero", steps=1, algorithm={"advantages": "zero"}, **{"from": "sft"}),
    ]
    runs = []
    with unchecked_shapes():
        for seed in range(3):
            folder = tmp_path_factory.mktemp(f"arms{seed}")
            runs.append((folder / "run", run(recipe(folder, tiny_model, seed=seed, then=controls), folder / "run")))
    return runs


@contextlib.contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Checking the shapes of 50,000 rollouts would take more than half of the time, and the other tests do it."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_a_toy_task(arms, seed):
    _, summary = arms[seed]
    before, after = (summary["stages"][name] for name in ("before", "after"))
    assert 0.2 < before["mean_acc"] < 0.7  # SFT taught the form: its answers are letters, and a coin's
    assert before["greedy_acc"] < 0.8
    assert after["greedy_acc"] > 0.9
    assert after["mean_acc"] > 0.9
    assert summary["finished"]
    gain = next(c for c in summary["comparisons"] if (c["a"], c["b"], c["metric"]) == ("before", "after", "greedy_acc"))
    assert gain["delta"] == pytest.approx(after["greedy_acc"] - before["greedy_acc"])


def test_shuffled_rewards_do_not_teach(arms):
    after = [summary["stages"]["after_shuffled"] for _, summary in arms]
    assert np.mean([stage["mean_acc"] for stage in after]) < 0.65  # where each reward is its rollout's own, above 0.9
    assert np.mean([stage["greedy_acc"] for stage in after]) < 0.8
    for out, summary in arms:
        assert summary["stages"]["shuffled"]["tokens_trained"] > 0
        assert not same_weights(weights(out, "sft"), weights(out, "shuffled"))  # it moved, and led nowhere


def test_zero_advantages_leave_every_bit(arms):
    for out, summary in arms:
        assert same_weights(weights(out, "sft"), weights(out, "zero"))
        assert not same_weights(weights(out, "sft"), weights(out, "rl"))
        assert summary["stages"]["zero"]["tokens_trained"] == 0


# --- stopped, killed, resumed -------------------------------------------------------------------------------------------


def reached(out: Path, kind: str, step: int) -> Callable[[], bool]:
    """Asks to stop once this step is in the metrics."""
    return lambda: (out / "metrics.jsonl").exists() and any(row["step"] == step for row in rows(out, kind))


class Killed(BaseException):
    """Raised where a kill would strike."""


def killed_at(out: Path, kind: str, step: int) -> Callable[[], bool]:
    asked = reached(out, kind, step)

    def stop_requested() -> bool:
        if asked():
            raise Killed
        return False

    return stop_requested


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run that nothing disturbed, with a reference model: that has to be the stage's first weights, not a resume's."""
    folder = tmp_path_factory.mktemp("whole")
    job = recipe(folder, tiny_model, steps=12, rl=SMALL, kl="loss", kl_coef=0.1)
    run(job, folder / "run")
    return job, folder / "run"


def check_equals(whole: Path, out: Path) -> None:
    assert same_weights(weights(whole), weights(out))
    assert rows(out) == rows(whole)
    last = max(row["step"] for row in rows(whole, "train"))
    assert [r.text for r in rollouts(out, last)] == [r.text for r in rollouts(whole, last)]
    a, b = (json.loads((folder / "summary.json").read_text())["stages"]["after"] for folder in (whole, out))
    assert a["by_tasks"] == b["by_tasks"]


def spent(out: Path) -> dict[str, tuple[int, int]]:
    """Tokens out and in of every phase but those that only a resume has, once phases are known to add up to the whole."""
    ledger = json.loads((out / "summary.json").read_text())["ledger"]
    assert sum(p["wall_s"] for p in ledger["phases"].values()) == pytest.approx(ledger["wall_s"], rel=0.01)
    for name, source in ledger["energy"].items():
        assert sum(p["joules"].get(name, 0.0) for p in ledger["phases"].values()) == pytest.approx(source["joules"])
    return {name: (p["tokens"], p["tokens_in"]) for name, p in ledger["phases"].items() if name != "replay"}


@pytest.mark.slow
def test_a_resume_after_stops_equals_a_whole_run(tmp_path, whole):
    job, undisturbed = whole
    out = tmp_path / "run"
    assert not run(job, out, stop_requested=reached(out, "sft", 5))["finished"]
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5]
    assert (out / "checkpoints" / "sft" / "step_000005").is_dir()
    summary = run(job, out, resume=True, stop_requested=reached(out, "train", 5))
    assert not summary["finished"]
    assert summary["stages"].keys() == {"sft", "before"}
    assert [row["step"] for row in rows(out, "train")] == [1, 2, 3, 4, 5]
    assert (out / "checkpoints" / "rl" / "step_000005").is_dir()  # it saved, though none was due
    assert run(job, out, resume=True)["finished"]
    check_equals(undisturbed, out)
    assert spent(out) == spent(undisturbed)
    said, before = io.StringIO(), (out / "summary.json").read_text()
    told = pipeline.run(job, out=out, resume=True, watch=Watch(said, live=False))  # nothing left to do is no error
    assert told["finished"]
    assert "every stage is finished, nothing is left to do" in said.getvalue()
    assert {**json.loads(before), "peak_rss_mb": 0} == {**told, "peak_rss_mb": 0}


def test_a_resume_after_kills_equals_a_whole_run(tmp_path, whole):
    job, undisturbed = whole
    out = tmp_path / "run"
    with pytest.raises(Killed):  # nothing saved: SFT makes its updates again
        run(job, out, stop_requested=killed_at(out, "sft", 5))
    first = (out / "metrics.jsonl").read_text()
    with pytest.raises(Killed):  # the checkpoint of step 7 is there, four steps are replayed from their rollouts
        run(job, out, resume=True, stop_requested=killed_at(out, "train", 11))
    assert (out / "metrics.jsonl").read_text().startswith(first)  # no committed step was made anew
    assert rows(out, "train")[-1]["step"] == 11
    assert not (out / "checkpoints" / "rl" / "step_000011").exists()
    assert run(job, out, resume=True)["finished"]
    check_equals(undisturbed, out)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_command_stopped_by_a_signal_ends_like_a_whole_run(tmp_path, whole, number):
    """The console script struck in the middle of RL, wherever it then is: sampling, updating or writing."""
    job, undisturbed = whole
    out = tmp_path / "run"
    process = start_command(job, out)
    children = wait_for_rl_step(process, out, 3)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()  # as Ctrl-C does; as no clean-up sees
    _, stderr = process.communicate(timeout=60)
    assert not psutil.wait_procs(children, timeout=20)[1], "verifier processes outlived the run"
    assert not json.loads((out / "summary.json").read_text())["finished"]
    last = rows(out, "train")[-1]["step"]
    assert last < 12, "it was over before the signal came"
    if number == signal.SIGINT:
        assert process.returncode == 3, stderr
        assert "Traceback" not in stderr
        assert "--resume" in stderr.strip().splitlines()[-1]
        assert (out / "checkpoints" / "rl" / f"step_{last:06d}" / "manifest.json").is_file()
    else:
        assert process.returncode == -signal.SIGKILL
    assert run(job, out, resume=True)["finished"]
    check_equals(undisturbed, out)


def start_command(job: Recipe, out: Path) -> subprocess.Popen[str]:
    """`strop run` in a process group of its own, with as many threads as we have: they decide the last bits of a sum."""
    import torch

    file = out.parent / "recipe.yaml"
    file.write_text(job.to_yaml())
    return subprocess.Popen(
        [str(STROP), "run", str(file), "--out", str(out)], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}, start_new_session=True,
    )  # fmt: skip


def wait_for_rl_step(process: subprocess.Popen[str], out: Path, step: int) -> list[psutil.Process]:
    """Returns the command's own processes by then."""
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        with contextlib.suppress(FileNotFoundError):
            if (out / "metrics.jsonl").read_text().count('"kind": "train"') >= step:
                return psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.005)


# --- a folder that is there, a group without signal, a prompt too long --------------------------------------------------


def test_refuses_another_recipes_folder(tmp_path, tiny_model):
    job = recipe(tmp_path, tiny_model, steps=1, rl=SMALL)
    with pytest.raises(Killed):
        run(job, tmp_path / "run", stop_requested=killed_at(tmp_path / "run", "sft", 3))
    with pytest.raises(UserError, match="--resume"):
        run(job, tmp_path / "run")
    with pytest.raises(UserError, match="steps"):
        run(recipe(tmp_path, tiny_model, steps=2, rl=SMALL), tmp_path / "run", resume=True)


def test_refill_replaces_groups_without_signal(tmp_path, tiny_model):
    pairs = {"prompts_per_step": 16, "group_size": 2}  # half of them agree, and have no signal
    without, tokens = [], []
    for rounds in (0, 3):
        out = tmp_path / f"run{rounds}"
        summary = run(recipe(tmp_path, tiny_model, steps=3, rl=pairs, refill_rounds=rounds), out)
        without.append([row["frac_reward_zero_std"] for row in rows(out, "train")])
        tokens.append(summary["ledger"]["phases"]["generate"]["tokens"])
        for step in (1, 2, 3):
            numbered: dict[int, list[str]] = {}
            for r in rollouts(out, step):
                numbered.setdefault(r.group, []).append(r.task.id)
            assert len(numbered) == 16
            assert all(len(ids) == 2 and len(set(ids)) == 1 for ids in numbered.values())
    assert without[0][0] > 0.3
    assert without[1][0] < without[0][0] / 2
    assert np.mean(without[1]) < np.mean(without[0]) / 2
    assert tokens[1] > tokens[0]


def test_a_prompt_longer_than_the_limit(tmp_path, tiny_model):
    job = recipe(tmp_path, tiny_model, steps=1)
    short = job.model_copy(update={"engine": job.engine.model_copy(update={"max_prompt_tokens": 3})})
    with pytest.raises(UserError, match="max_prompt_tokens"):
        run(short, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- schedules ----------------------------------------------------------------------------------------------------------


def test_limits_and_draws_follow_from_what_was_logged(tmp_path, tiny_model):
    """A stage whose limit moves and whose tasks are drawn by pass rate, undisturbed and killed: the same."""
    scheduled = SMALL | {
        "max_tokens": 1, "moves": {"limits": [1, 2], "window_steps": 4}, "heldout_every": 3,
        "curriculum": {"easy": 0.25, "medium": 0.5, "hard": 0.25},
    }  # fmt: skip
    job = recipe(tmp_path, tiny_model, steps=8, rl=scheduled, refill_rounds=1)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    with unchecked_shapes():
        run(job, whole)
        with pytest.raises(Killed):
            run(job, out, stop_requested=killed_at(out, "train", 6))
        assert run(job, out, resume=True)["finished"]
    check_equals(whole, out)
    limits = [row["max_tokens"] for row in rows(whole, "train")]
    assert limits == [1] * 4 + [2] * 4  # a letter without its end is cut: nothing is right at first
    assert rows(whole, "train")[0]["completions/clipped_ratio"] > 0.9
    drawn = rows(whole, "curriculum")
    assert {(row["step"], row["round"]) for row in drawn} >= {(step, 0) for step in range(1, 9)}
    assert drawn[0]["medium_frac"] == 1.0  # nothing is known
    assert drawn[-1]["medium_frac"] < 1.0
    for step in range(1, 9):  # what a step learned from is part of what it tried
        found = [task for row in drawn if row["step"] == step for task in row["passes"].items()]
        passes = dict(found)
        assert len(passes) == len(found)  # no task twice
        counted: dict[str, list[int]] = {}
        for r in rollouts(whole, step):
            num_right, num = counted.get(r.task.id, [0, 0])
            counted[r.task.id] = [num_right + r.correct, num + 1]
        assert {task: passes[task] for task in counted} == counted


# --- the arm that continues SFT ---------------------------------------------------------------------------------------


def test_the_arm_is_the_same_sft_continued_for_rls_wall_time(tiny_model, tmp_path):
    arm = {"name": "more", "do": "sft", "from": "sft", "tasks": ["form"], "batch": 32, "wall_of": "rl", "eval_every": 3,
           "max_tokens": 2, "optim": {"lr": 3e-3}}  # fmt: skip
    out = tmp_path / "run"
    with unchecked_shapes():
        summary = run(recipe(tmp_path, tiny_model, steps=2, then=[arm, evaluation("after_more")]), out)
    stages = summary["stages"]
    assert stages["more"]["from"] == "sft"
    assert stages["more"]["wall_s"] >= stages["rl"]["wall_s"]
    slowest = max(row["step_s"] for row in _timed(out, "more", "sft")) + max(
        row["eval_s"] for row in _timed(out, "more", "heldout")
    )
    assert stages["more"]["wall_s"] <= stages["rl"]["wall_s"] + slowest + 2.0
    updates = [
        json.loads((out / "checkpoints" / name / "final" / "strop_state" / "learner.json").read_text())["num_updates"]
        for name in ("sft", "more")
    ]
    assert updates == [stages["sft"]["steps"], stages["sft"]["steps"] + stages["more"]["steps"]]  # moments carried over
    assert not same_weights(weights(out, "sft"), weights(out, "more"))
    compared = {(c["a"], c["b"]) for c in summary["comparisons"]}
    assert {("after_more", "after"), ("before", "after_more")} <= compared


def test_the_arm_goes_on_in_the_stream_of_examples(tiny_model, tmp_path):
    """SFT stopped at 5 steps and continued for 5 by another stage ends where SFT of 10 steps ends."""
    whole = recipe(tmp_path, tiny_model, steps=1).model_dump(mode="json", by_alias=True)
    first = next(s for s in whole["stages"] if s["do"] == "sft")
    whole["stages"] = [first | {"max_steps": 10}]
    halves = whole | {"stages": [first | {"max_steps": 5}, first | {"name": "more", "from": "sft", "max_steps": 5}]}
    with unchecked_shapes():
        run(parse_recipe(whole), tmp_path / "whole")
        run(parse_recipe(halves), tmp_path / "halves")
    assert same_weights(weights(tmp_path / "whole", "sft"), weights(tmp_path / "halves", "more"))


def test_a_kill_between_a_step_and_its_dev_evaluation(tiny_model, tmp_path, monkeypatch):
    """Its alarms are still to come then, too: with one token every answer is cut."""
    from strop import evaluate

    job = recipe(tmp_path, tiny_model, steps=3, rl=SMALL | {"heldout_every": 1, "max_tokens": 1})
    real, calls = evaluate.dev_accuracy, []

    def strike(step: int, *args: object) -> float:
        calls.append(step)
        if calls.count(1) == 1 and step == 1:
            raise KeyboardInterrupt
        return real(step, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "dev_accuracy", strike)
    with unchecked_shapes(), pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "run")
    with unchecked_shapes():
        run(job, tmp_path / "run", resume=True)
    looked = [row["step"] for row in rows(tmp_path / "run", "heldout") if row["stage"] == "rl"]
    assert looked == [0, 1, 2, 3]
    assert next((row["step"], row["alarm"]) for row in rows(tmp_path / "run", "alarm")) == (1, "truncated")


def _timed(out: Path, stage: str, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["stage"] == stage and row["kind"] == kind]
