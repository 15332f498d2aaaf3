"""Which evaluations are compared, and that it is done task by task on the same tasks."""

from __future__ import annotations

import json
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
    compared = compare.run(f"{run_dir}:before", f"{run_dir}:after")
    assert [
        row | {"p_adjusted": p} for row, p in zip(rows, stats.holm([r["p"] for r in rows]), strict=True)
    ] == compared


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


def test_lines_say_who_is_better_by_the_corrected_p(run_dir: Path) -> None:
    rows = compare.run(f"{run_dir}:before", f"{run_dir}:after")
    greedy, sampled = compare.lines(rows)
    assert greedy.startswith("hard (greedy_acc): No difference could be shown between before and after: +33.3 points")
    assert "p = 0.041 (p = 0.083 corrected)" in greedy, "two comparisons: Holm doubles the smaller p"
    assert greedy.endswith("more tasks would show 2 points.")
    assert sampled.endswith("more samples from each would show 2 points.")
    alone = [rows[0] | {"p_adjusted": None}]
    assert compare.lines(alone)[0].startswith("hard (greedy_acc): after beats before by 33.3 points (95% interval")
    old = {key: rows[0][key] for key in ("a", "b", "metric", "tasks", "delta", "ci95", "p", "num_tasks")}
    assert compare.lines([old])[0].endswith("p = 0.041, 30 tasks."), "a summary from before says what it knows"


# --- several evaluations, several seeds -------------------------------------------------------------------------------


def write_run(folder: Path, chance: float, seed: int, *, num_seeds: int = 1, max_tokens: int = 256, **figures) -> Path:
    """A run with one evaluation of 40 tasks, sampled 8 times each with this chance of being right."""
    stage = {
        "name": "after",
        "do": "evaluate",
        "tasks": ["hard"],
        "greedy": False,
        "samples": 8,
        "max_tokens": max_tokens,
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_of([stage]).to_yaml())
    (folder / "summary.json").write_text(json.dumps({"stages": {"after": figures}}))
    write_tasks(folder / "tasks.parquet", {"hard/heldout": TASKS})
    right = np.random.default_rng(seed).random((40, 8)) < chance
    samples = [answer(task, k, bool(right[i, k])) for i, task in enumerate(TASKS) for k in range(8)]
    write_rollouts(folder / "rollouts" / "after" / "samples.parquet", samples[::-1])
    return folder


def test_every_later_evaluation_is_compared_with_the_first(tmp_path: Path) -> None:
    a, b, c = (str(write_run(tmp_path / n, p, i)) for i, (n, p) in enumerate((("a", 0.3), ("b", 0.5), ("c", 0.28))))
    rows = compare.run(a, b, c)
    assert [(r["a"], r["b"], r["metric"]) for r in rows] == [
        (f"{a}:after", f"{b}:after", "mean_acc"),
        (f"{a}:after", f"{c}:after", "mean_acc"),
    ]
    assert [r["p_adjusted"] for r in rows] == stats.holm([r["p"] for r in rows])
    better, none = compare.lines(rows)
    assert f"{b}:after beats {a}:after by" in better
    assert "more samples from each would show 2 points." in none
    assert "more samples from each would show 5 points." in compare.lines(compare.run(a, c, gain=0.05))[0]


def test_the_best_of_many_is_held_against_chance(tmp_path: Path) -> None:
    a, b = str(write_run(tmp_path / "a", 0.3, 0)), str(write_run(tmp_path / "b", 0.38, 1))
    (row,) = compare.run(a, b, best_of=21)
    assert row["p_adjusted"] == pytest.approx(1 - (1 - row["p"]) ** 21)
    _, selection = compare.lines([row])
    num_correct = round(row["sides"][1]["acc"] * 320)
    assert selection.strip() == stats.best_of_in_words(num_correct, 320, row["sides"][0]["acc"], 21)
    assert "p_adjusted" not in compare.run(a, b)[0]


def test_training_seeds_of_an_arm_are_averaged_task_by_task(tmp_path: Path) -> None:
    a = ",".join(str(write_run(tmp_path / f"a{i}", 0.3, i)) for i in range(3))
    b = ",".join(str(write_run(tmp_path / f"b{i}", 0.5, 10 + i)) for i in range(3))
    (row,) = compare.run(a, b)
    right = [np.random.default_rng(seed).random((40, 8)) < p for seed, p in ((0, 0.3), (1, 0.3), (2, 0.3))]
    after = [np.random.default_rng(10 + i).random((40, 8)) < 0.5 for i in range(3)]
    wanted = stats.compare(np.mean(right, axis=0).mean(axis=1), np.mean(after, axis=0).mean(axis=1))
    assert (row["delta"], row["p"]) == (pytest.approx(wanted.delta), wanted.p)
    assert row["ci95"] == pytest.approx(
        wanted.ci95, abs=0.005
    )  # sums in another order: a resample moves across the edge
    assert row["sides"][0] == {
        "acc": pytest.approx(np.mean(right)), "num_samples": 24, "num_seeds": 1, "num_runs": 3,
        "seed_std": pytest.approx(np.std([r.mean() for r in right], ddof=1)),
    }  # fmt: skip
    _, spread, caution = compare.lines([row])
    assert spread.count("(3 training seeds)") == 2
    assert "see the standard deviations" in caution
    few = compare.lines(compare.run(a.rpartition(",")[0], b))
    assert "compare at least 3 training seeds a side" in few[-1]
    with pytest.raises(UserError, match="names an evaluation twice"):
        compare.run(f"{tmp_path}/a0,{tmp_path}/a0", b)


def test_sampling_seeds_have_their_spread(tmp_path: Path) -> None:
    e = compare.evaluation(str(write_run(tmp_path / "a", 0.3, 0)))
    arm = compare.Arm(name="a", runs=(replace(e, settings={"seeds": 4}),))
    (row,) = compare._rows(arm, arm, "hard", e.sets["hard"], 0.02)
    right = np.random.default_rng(0).random((40, 8)) < 0.3
    by_seed = [right[:, 2 * i : 2 * i + 2].mean() for i in range(4)]  # sample i is of seed i // 2
    assert row["sides"][0]["seed_std"] == pytest.approx(np.std(by_seed, ddof=1))
    verdict, spread = compare.lines([row])
    assert ", 40 tasks, 4 seeds" in verdict
    assert spread.strip().startswith(f"mean and standard deviation over seeds: a {100 * right.mean():.1f} ± ")


# --- what is not alike ------------------------------------------------------------------------------------------------


def test_what_differs_beside_the_model_is_told_once(tmp_path: Path) -> None:
    print_a = {"chat": "c1", "tasks": {"hard": "h"}, "versions": {"torch": "2.12", "strop": "1"}, "hardware": "cpu"}
    print_b = {"chat": "c2", "tasks": {"hard": "h"}, "versions": {"torch": "2.13", "strop": "1"}, "hardware": "cpu"}
    a = write_run(tmp_path / "a", 0.3, 0, fingerprint=print_a)
    b = write_run(tmp_path / "b", 0.3, 1, max_tokens=512, fingerprint=print_b)
    *_, told = compare.lines(compare.run(str(a), str(b)))
    assert told == (
        f"{a}:after and {b}:after: sampled with different token caps 256 and 512; prompted through different chat "
        "templates; made with different versions (torch 2.12 and 2.13): part of the difference may be that."
    )
    assert compare.run(str(a), str(a))[0]["differs"] == []
    c = write_run(tmp_path / "c", 0.3, 1)  # a run without a fingerprint
    assert compare.run(str(a), str(c))[0]["differs"] == []


def test_a_benchmark_whose_hash_differs_is_refused(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n, 0.3, 0, fingerprint={"tasks": {"hard": n}}) for n in "ab")
    with pytest.raises(UserError, match=r"other versions of 'hard' \(40 and 40 tasks, hashes a and b\)"):
        compare.run(str(a), str(b))


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"stages": []}'])
def test_a_summary_that_is_not_one_is_a_mistake(tmp_path: Path, text: str) -> None:
    a = write_run(tmp_path / "a", 0.3, 0)
    (a / "summary.json").write_text(text)
    with pytest.raises(UserError, match="is not the summary of a run"):
        compare.run(str(a), str(a))
