"""Which evaluation is better, task by task: within a run after each stage, or between any two by `strop compare`.

Knows where the verdicts of an evaluation lie and which evaluations belong together (a model and the one it was
trained from, an arm and the stage whose time it had). The statistics are in `stats`. Read by pipeline and cli.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from strop import stats
from strop.config import EvaluateStage, Recipe, SftStage, load_recipe, nearest
from strop.record import UserError
from strop.run import check_run

__all__ = ["lines", "pairs", "run", "within"]

Scores = dict[str, list[float]]  # task id -> 1.0 or 0.0 for each answer


def run(a: str, b: str) -> list[dict[str, Any]]:
    """Compare two evaluations, each named RUN or RUN:STAGE, on every task set that both answered.

    Raises UserError if nothing is shared, or if a task set of one name holds different tasks: a difference between
    two benchmarks of one name says nothing.
    """
    (run_a, stage_a), (run_b, stage_b) = _evaluation(a), _evaluation(b)
    same_run = run_a.resolve() == run_b.resolve()
    names = (stage_a, stage_b) if same_run else (f"{run_a}:{stage_a}", f"{run_b}:{stage_b}")
    sets_a, sets_b = _heldout(run_a), _heldout(run_b)
    found: list[dict[str, Any]] = []
    for tasks in sets_a:
        if tasks not in sets_b:
            continue
        ids_a = sets_a[tasks].keys() & _scores(run_a, stage_a, "greedy").keys()
        ids_b = sets_b[tasks].keys() & _scores(run_b, stage_b, "greedy").keys()
        if not ids_a or not ids_b:
            continue
        if ids_a != ids_b:
            raise UserError(
                f"{a} and {b} answered different tasks of {tasks!r} ({len(ids_a)} and {len(ids_b)}, "
                f"{len(ids_a & ids_b)} shared): compare evaluations on the same held-out tasks"
            )
        verifiers = {v for id in ids_a for v in (sets_a[tasks][id], sets_b[tasks][id])}
        if any(sets_a[tasks][id] != sets_b[tasks][id] for id in ids_a):
            raise UserError(
                f"{a} and {b} were not judged alike on {tasks!r} (verifiers {', '.join(sorted(verifiers))}), so a difference "
                "says nothing; evaluate both with the same version of Strop"
            )
        found += _rows((run_a, stage_a), (run_b, stage_b), tasks, ids_a, names)
    if not found:
        raise UserError(f"{a} and {b} share no task set: {', '.join(sets_a)} against {', '.join(sets_b)}")
    return found


def within(recipe: Recipe, run_dir: Path, finished: Collection[str]) -> list[dict[str, Any]]:
    """Every comparison of one run that its finished evaluations allow, ready for summary.json."""
    sets = _heldout(run_dir)
    return [
        row
        for a, b, tasks in pairs(recipe)
        if a in finished and b in finished
        for row in _rows((run_dir, a), (run_dir, b), tasks, sets.get(tasks, ()), (a, b))
    ]


def pairs(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(a, b, task set) of the evaluations worth comparing; b is the one that ought to be better.

    Each evaluated model is compared with the model it was trained from, with the first evaluation of the recipe, and
    a stage with the arm that had its wall time (`wall_of`).
    """
    evaluations = [s for s in recipe.stages if isinstance(s, EvaluateStage)]
    last: dict[tuple[str, str], str] = {}  # (weights, task set) -> name of their last evaluation
    first: dict[str, tuple[str, str]] = {}  # task set -> (name, weights) of its first evaluation
    for stage in evaluations:
        for tasks in stage.tasks:
            last[recipe.start_of(stage), tasks] = stage.name
            first.setdefault(tasks, (stage.name, recipe.start_of(stage)))
    parents = {s.name: recipe.start_of(s) for s in recipe.stages if not isinstance(s, EvaluateStage)}
    arms = [(s.name, s.wall_of) for s in recipe.stages if isinstance(s, SftStage) and s.wall_of is not None]
    seen: set[tuple[str, str, str]] = set()
    for (weights, tasks), name in last.items():
        parent = parents.get(weights)
        while parent is not None and (parent, tasks) not in last:
            parent = parents.get(parent)
        candidates = [last[parent, tasks]] if parent is not None else []
        candidates += [first[tasks][0]] if first[tasks][1] != weights else []
        candidates += [last[arm, tasks] for arm, timed in arms if timed == weights and (arm, tasks) in last]
        for other in candidates:
            if (other, name, tasks) not in seen:
                seen.add((other, name, tasks))
                yield other, name, tasks


def lines(comparisons: list[dict[str, Any]]) -> list[str]:
    """One sentence for each comparison."""
    return [
        f"{row['tasks']} ({row['metric']}): "
        + stats.verdict_in_words(
            stats.Comparison(delta=row["delta"], ci95=tuple(row["ci95"]), p=row["p"], num_tasks=row["num_tasks"]),
            row["a"],
            row["b"],
        )
        for row in comparisons
    ]


def _rows(
    a: tuple[Path, str], b: tuple[Path, str], tasks: str, ids: Collection[str], names: tuple[str, str]
) -> Iterator[dict[str, Any]]:
    for metric, file in (("greedy_acc", "greedy"), ("mean_acc", "samples")):
        scores_a, scores_b = _scores(*a, file), _scores(*b, file)
        shared = sorted(id for id in ids if id in scores_a and id in scores_b)
        if not shared:
            continue
        mean_a, mean_b = ([sum(s[id]) / len(s[id]) for id in shared] for s in (scores_a, scores_b))
        comparison = asdict(stats.compare(mean_a, mean_b))
        yield (
            {"a": names[0], "b": names[1], "metric": metric, "tasks": tasks}
            | comparison
            | {"ci95": list(comparison["ci95"])}
        )


def _scores(run_dir: Path, stage: str, file: str) -> Scores:
    path = run_dir / "rollouts" / stage / f"{file}.parquet"
    if not path.exists():
        return {}
    scores: Scores = {}
    for row in pq.read_table(path, columns=["task", "verdict"]).to_pylist():
        correct = row["verdict"] is not None and json.loads(row["verdict"])[0]
        scores.setdefault(json.loads(row["task"])["id"], []).append(float(correct))
    return scores


def _heldout(run_dir: Path) -> dict[str, dict[str, str]]:
    """Of each task set the ids of the held-out tasks and what judges them."""
    sets: dict[str, dict[str, str]] = {}
    for row in pq.read_table(run_dir / "tasks.parquet", columns=["id", "split", "verifier"]).to_pylist():
        name, _, split = row["split"].rpartition("/")
        if split == "heldout":
            sets.setdefault(name, {})[row["id"]] = row["verifier"]
    return sets


def _evaluation(name: str) -> tuple[Path, str]:
    """The run directory and the evaluate stage that RUN or RUN:STAGE names."""
    before, colon, after = name.rpartition(":")
    path, stage = (Path(before), after) if colon and not Path(name).is_dir() else (Path(name), "")
    check_run(path)
    recipe = load_recipe(path / "recipe.yaml")
    known = [s.name for s in recipe.stages if isinstance(s, EvaluateStage)]
    done = [s for s in known if (path / "rollouts" / s / "greedy.parquet").exists()]
    if stage and stage not in known:
        of = [s.name for s in recipe.stages if isinstance(s, EvaluateStage) and recipe.start_of(s) == stage]
        hint = f"; its weights are evaluated by {of[-1]!r}" if of else nearest(stage, known)
        raise UserError(f"{name}: the run has no evaluation {stage!r}{hint}")
    if not done or (stage and stage not in done):
        raise UserError(f"{name}: that evaluation is not finished; {', '.join(done) or 'none'} of this run is")
    return path, stage or done[-1]
