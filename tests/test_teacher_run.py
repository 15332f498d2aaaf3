"""Distillation as stages of a run: it learns from a stage of another run, outlives a kill, and draws what it can be shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop import pipeline
from strop.config import Recipe, parse_recipe
from strop.record import UserError
from strop.watch import Watch
from test_teacher import load
from test_train import (
    SMALL,
    Killed,
    check_equals,
    killed_at,
    quiet,
    recipe,
    rollouts,
    rows,
    run,
    unchecked_shapes,
)


def taught(tmp_path: Path, folder: Path, *, steps: int, rl: dict | None = None, **algorithm: object) -> Recipe:
    """The recipe of `test_train` from its RL on, with other answers to who credits; `form` is the set with solutions."""
    whole = recipe(tmp_path, folder, steps=steps, rl=SMALL | {"checkpoint_every": 2} | (rl or {}), **algorithm)
    data = whole.model_dump(mode="json", by_alias=True)
    data["stages"] = [s for s in data["stages"] if s["name"] in ("rl", "after")]
    return parse_recipe(data)


@pytest.mark.parametrize(
    ("algorithm", "tasks"),
    [
        pytest.param({"preset": "opd"}, "parity", id="another model", marks=pytest.mark.slow),
        pytest.param({"preset": "opsd", "teacher": "live"}, "form", id="the weights of now, shown the solution", marks=pytest.mark.slow),
        pytest.param({"credit": "both", "teacher": "self", "teacher_coef": 0.2, "kl": "loss", "kl_coef": 0.1}, "form",
                     id="the first weights, shown the solution, beside the reward"),
    ],
)  # fmt: skip
def test_a_kill_changes_nothing(tmp_path, tiny_model, algorithm, tasks):
    """Killed a step behind a checkpoint: it is replayed from what the teacher said then."""
    if "teacher" not in algorithm:
        load(tiny_model, noise_seed=1).save(tmp_path / "teacher")
    named = {"teacher": str(tmp_path / "teacher")} | algorithm
    job = taught(tmp_path, tiny_model, rl={"tasks": {tasks: 1.0}}, steps=5, **named)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    with unchecked_shapes():
        told = run(job, whole)["stages"]["rl"]
        with pytest.raises(Killed):
            run(job, out, stop_requested=killed_at(out, "train", 3))
        assert not (out / "checkpoints" / "rl" / "step_000003").exists()
        assert run(job, out, resume=True)["finished"]
    check_equals(whole, out)
    last = rollouts(whole, 5)
    gaps = [(r.sampler_logprobs - r.teacher_logprobs)[r.sampled] for r in last]  # type: ignore[operator]
    logged = rows(whole, "train")
    assert logged[-1]["teacher_kl"] == pytest.approx(float(np.concatenate(gaps).mean()), rel=1e-5)
    assert all(row["num_updates"] == SMALL["updates_per_step"] for row in logged)
    assert (told["teacher"], told["steps_without_signal"]) == (named["teacher"], 0)
    assert (told["teacher_mb"] > 0) == ("teacher" not in algorithm)


def test_a_stage_of_another_run_teaches_its_form(tmp_path, tiny_model):
    """The base has never seen the task. An SFT stage elsewhere answers in two letters; distilled, the base goes that way."""
    with unchecked_shapes():
        sft = pipeline.only(recipe(tmp_path, tiny_model, steps=1), "sft", say=lambda _: None)
        run(sft, tmp_path / "elsewhere")
        job = taught(
            tmp_path,
            tiny_model,
            steps=30,
            rl={"optim": {"lr": 2e-3}},
            preset="opd",
            teacher=f"{tmp_path / 'elsewhere'}:sft",
        )
        run(job, tmp_path / "run")
    found = [row["teacher_kl"] for row in rows(tmp_path / "run", "train")]
    assert np.mean(found[-4:]) < 0.2 * np.mean(found[:2])
    letters = [np.mean([r.text in ("e", "o") for r in rollouts(tmp_path / "run", step)]) for step in (1, 30)]
    assert letters[0] < 0.1
    assert letters[1] > 0.8
    assert not [row for row in rows(tmp_path / "run", "alarm") if row["alarm"] in ("no_reward", "no_signal")]


def some_solved(folder: Path, num: int) -> dict[str, Any]:
    """Twelve sums: `num` with a worked solution that is right, the next with one that is wrong, the others without."""
    listed: list[dict[str, Any]] = [{"problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(12)]
    for i in range(num):
        listed[i]["solution"] = f"The sum is \\boxed{{{i + 1}}}"
    if num < 12:
        listed[num]["solution"] = "The sum is \\boxed{99}"
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return {"source": str(folder / "sums.jsonl"), "heldout": 0, "dev": 0}


def self_taught(folder: Path, tiny_model: Path, num: int, **changes: object) -> Recipe:
    stage = {
        "name": "rl", "do": "train", "tasks": {"sums": 1}, "steps": 2, "prompts_per_step": 4, "group_size": 2, "max_tokens": 3,
        "heldout_every": 0, "algorithm": {"preset": "opsd"}, **changes,
    }  # fmt: skip
    return parse_recipe({
        "model": {"name": str(tiny_model)}, "tasks": {"sums": some_solved(folder, num) | {"train": 12}}, "stages": [stage],
        "checks": {"workers": 1},
    })  # fmt: skip


def test_only_tasks_with_a_right_solution_are_drawn_and_the_others_counted(tmp_path, tiny_model):
    said = open(tmp_path / "said.txt", "w+")  # noqa: SIM115
    told = pipeline.run(self_taught(tmp_path, tiny_model, 5), out=tmp_path / "run", watch=Watch(said, live=False))
    said.seek(0)
    assert (
        "rl: 7 of 12 training tasks of sums have no worked solution for the teacher, and are not drawn" in said.read()
    )
    assert told["num_dropped"] == {"solution_wrong": 1}
    drawn = {r.task.prompt for step in (1, 2) for r in rollouts(tmp_path / "run", step)}
    assert drawn <= {f"{i} + 1?" for i in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(
    ("num", "changes", "parts"),
    [
        (0, {"prompts_per_step": 1}, ["shows its teacher worked solutions", "`solution`"]),
        (3, {}, ["draws 4 tasks of 'sums' in a step, and there are 3 with a worked solution"]),
        (12, {"max_tokens": 980}, ["shows its teacher the worked solution", "places for 1024"]),
        (12, {"algorithm": {"preset": "opd", "teacher": "./no/model"}}, ["algorithm.teacher=./no/model", "no such folder"]),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_refused_before_anything_is_written(tmp_path, tiny_model, num, changes, parts):
    with pytest.raises(UserError) as caught:
        pipeline.run(self_taught(tmp_path, tiny_model, num, **changes), out=tmp_path / "run", watch=quiet())
    for part in parts:
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_looks_at_the_teacher(tmp_path, tiny_model):
    named = {"algorithm": {"preset": "opd", "teacher": "owner/unseen"}}
    found = pipeline.check(self_taught(tmp_path, tiny_model, 12, **named), say=lambda _: None)
    assert any("teacher of rl: owner/unseen" in line for line in found["not_checked"])
