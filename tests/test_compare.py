"""Which evaluations are compared, and that it is done task by task on the same tasks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strop import compare, stats
from strop.config import Recipe, parse_recipe
from strop.record import Reason, Rollout, Task, UserError, Verdict, write_rollouts, write_tasks

STAGES = [
    {"name": "before", "do": "evaluate", "tasks": ["easy", "hard"]},
    {"name": "sft", "do": "sft", "tasks": ["easy"]},
    {"name": "middle", "do": "evaluate", "tasks": ["easy", "hard"]},
    {"name": "rl", "do": "train", "tasks": {"hard": 1}},
    {"name": "after", "do": "evaluate", "tasks": ["easy", "hard"]},
    {"name": "more", "do": "sft", "from": "sft", "tasks": ["easy"], "wall_of": "rl"},
    {"name": "arm", "do": "evaluate", "tasks": ["hard"]},
    {"name": "zero", "do": "train", "from": "sft", "tasks": {"hard": 1}, "algorithm": {"advantages": "zero"}},
    {"name": "control", "do": "evaluate", "tasks": ["hard"]},
]


def recipe_of(stages: Sequence[dict]) -> Recipe:
    return parse_recipe(
        {"tasks": {"easy": {"source": "arithmetic"}, "hard": {"source": "arithmetic"}}, "stages": stages}
    )


def test_pairs_follow_where_the_weights_come_from() -> None:
    pairs = set(compare.pairs(recipe_of(STAGES)))
    assert {(a, b) for a, b, tasks in pairs if tasks == "hard"} == {
        ("before", "middle"),  # the model it comes from, and the first
        ("middle", "after"),
        ("before", "after"),
        ("arm", "after"),  # the arm had the time of rl, so rl ought to beat it
        ("middle", "arm"),
        ("before", "arm"),
        ("middle", "control"),
        ("before", "control"),
    }
    assert {(a, b) for a, b, tasks in pairs if tasks == "easy"} == {
        ("before", "middle"), ("middle", "after"), ("before", "after"),
    }  # fmt: skip


def test_weights_that_were_not_evaluated_are_stepped_over() -> None:
    stages = [s for s in STAGES[:5] if s["name"] != "middle"]
    assert set(compare.pairs(recipe_of(stages))) == {("before", "after", "easy"), ("before", "after", "hard")}


TASKS = [Task.make(source="s", prompt=f"{i} + 1?", answer=str(i + 1), verifier="math") for i in range(40)]


def answer(task: Task, sample: int, correct: bool) -> Rollout:
    ids = np.array([1, 2], np.int32)
    mask = np.array([False, True])
    verdict = Verdict(correct=correct, extracted=None, reason=Reason.CORRECT if correct else Reason.WRONG)
    return Rollout(task=task, group=0, sample=sample, token_ids=ids, sampled=mask, trained=mask, verdict=verdict)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two evaluations of 30 tasks: 10 right before, another 15 and 5 of those after."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_of(STAGES[:5]).to_yaml())
    write_tasks(folder / "tasks.parquet", {"hard/heldout": TASKS[:30], "easy/heldout": [], "hard/train": TASKS[30:]})
    for stage, right in (("before", range(10)), ("after", range(5, 25))):
        greedy = [answer(task, 0, i in right) for i, task in enumerate(TASKS[:30])]
        samples = [answer(task, k, i in right and k == 0) for i, task in enumerate(TASKS[:30]) for k in range(2)]
        write_rollouts(folder / "rollouts" / stage / "greedy.parquet", greedy[:: -1 if stage == "after" else 1])
        write_rollouts(folder / "rollouts" / stage / "samples.parquet", samples)
    return folder


def test_scores_are_paired_by_task_whatever_their_order(run_dir: Path) -> None:
    rows = compare.run(f"{run_dir}:before", f"{run_dir}:after")
    greedy, mean = rows
    before, after = np.isin(np.arange(30), range(10)) * 1.0, np.isin(np.arange(30), range(5, 25)) * 1.0
    wanted = stats.compare(before, after)
    assert (greedy["a"], greedy["b"], greedy["tasks"], greedy["metric"]) == ("before", "after", "hard", "greedy_acc")
    assert (greedy["delta"], greedy["p"], greedy["num_tasks"]) == (pytest.approx(1 / 3), pytest.approx(wanted.p), 30)
    assert greedy["ci95"][0] < 1 / 3 < greedy["ci95"][1]
    assert (mean["metric"], mean["delta"]) == ("mean_acc", pytest.approx(1 / 6))
    assert compare.run(str(run_dir), f"{run_dir}:before")[0]["delta"] == pytest.approx(-1 / 3)  # a run: its last one


def test_a_run_compares_what_it_has_finished(run_dir: Path) -> None:
    recipe = recipe_of(STAGES[:5])
    assert compare.within(recipe, run_dir, ["before"]) == []
    rows = compare.within(recipe, run_dir, ["before", "after"])
    assert [(r["a"], r["b"], r["metric"]) for r in rows] == [
        ("before", "after", "greedy_acc"), ("before", "after", "mean_acc"),
    ]  # fmt: skip
    assert rows == compare.run(f"{run_dir}:before", f"{run_dir}:after")


def test_a_benchmark_of_one_name_and_other_tasks_is_refused(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "rollouts" / "before").mkdir(parents=True)
    (other / "recipe.yaml").write_text((run_dir / "recipe.yaml").read_text())
    write_tasks(other / "tasks.parquet", {"hard/heldout": TASKS[5:35]})
    write_rollouts(other / "rollouts" / "before" / "greedy.parquet", [answer(t, 0, True) for t in TASKS[5:35]])
    with pytest.raises(UserError, match=r"different tasks of 'hard' \(30 and 30, 25 shared\)"):
        compare.run(str(run_dir), str(other))


def test_another_verifier_is_refused(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "other")
    tasks = [replace(t, verifier="number") for t in TASKS[:30]]
    write_tasks(other / "tasks.parquet", {"hard/heldout": tasks})
    with pytest.raises(UserError, match=r"not judged alike on 'hard' \(verifiers math, number\)"):
        compare.run(str(run_dir), str(other))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{run}:aftr", "did you mean 'after'"),
        ("{run}:middle", "not finished; before, after"),
        ("{run}:rl", "its weights are evaluated by 'after'"),
        ("{run}/nowhere", "is not a run directory"),
        ("{run}x", "did you mean {run}?"),
        ("{run}/../far", "name the folder that was given to --out"),
    ],
)
def test_names_that_are_no_evaluation(run_dir: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message.format(run=run_dir))):
        compare.run(str(run_dir), name.format(run=run_dir))


def test_lines_say_who_is_better(run_dir: Path) -> None:
    (line, _) = compare.lines(compare.run(f"{run_dir}:before", f"{run_dir}:after"))
    assert line.startswith("hard (greedy_acc): after is better than before: +33.3 points")
