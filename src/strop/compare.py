"""Which evaluation is better, task by task: within a run after each stage, or between any by `strop compare`.

Knows where the verdicts of an evaluation lie, which evaluations belong together (a model and the one it was trained
from, an arm and the stage whose time it had) and what makes two of them unlike. The statistics are in `stats`. Read by
pipeline, probe and cli.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strop import stats
from strop.config import EvaluateStage, Recipe, SftStage, load_recipe, nearest
from strop.record import UNSCORABLE, UserError, read_rows
from strop.run import check_run

__all__ = ["GAIN", "PASSES", "Evaluation", "check_same_tasks", "evaluation", "lines", "pairs", "run", "within"]

Scores = dict[str, list[float]]  # task id -> 1.0 or 0.0 for each answer, in the order of samples
PASSES = {"greedy_acc": "greedy", "mean_acc": "samples"}  # what is compared, and the file it comes from
GAIN = 0.02  # a gain worth showing, where nobody says which
SAMPLING = {"max_tokens": "token caps", "temperature": "temperatures", "top_p": "values of top-p"}
FEW_RUNS = 3  # below, nothing is said about how training runs spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One finished evaluate stage, as its run directory tells of it."""

    run_dir: Path
    stage: str
    settings: Mapping[str, Any]  # the stage's keys in the recipe
    fingerprint: Mapping[str, Any]  # empty where the run is older than fingerprints
    sets: Mapping[str, Mapping[str, str]]  # task set -> id of a held-out task that was answered -> what judges it
    scores: Mapping[str, Scores]  # by pass
    num_unscorable: int  # answers whose verifier failed or timed out; they count as not right


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a comparison: an evaluation, or the same evaluation of several training runs."""

    name: str
    runs: tuple[Evaluation, ...]


def run(a: str, *others: str, gain: float = GAIN, best_of: int = 1) -> list[dict[str, Any]]:
    """Compare evaluations with the first one, on every task set that both answered; a row for each comparison.

    Each is named RUN or RUN:STAGE; several with commas between them are training seeds of one arm. Rows are as in
    summary.json; where there are several, `p_adjusted` is corrected for their number (Holm), and where the later
    evaluation is the best of `best_of` tries, for that before. `gain` is the difference for which it is told what would show it.

    Raises UserError if nothing is shared, or if a task set of one name holds different tasks: a difference between
    two benchmarks of one name says nothing.
    """
    first = _arm(a)
    rows = [row for other in others for row in _between(first, _arm(other), gain)]
    corrected = stats.holm([stats.sidak(row["p"], best_of) for row in rows])
    if len(rows) == best_of == 1:
        return rows
    return [row | {"p_adjusted": p} | _selection(row, best_of) for row, p in zip(rows, corrected, strict=True)]


def within(recipe: Recipe, run_dir: Path, finished: Collection[str]) -> list[dict[str, Any]]:
    """Every comparison of one run that its finished evaluations allow, ready for summary.json."""
    wanted = [(a, b, tasks) for a, b, tasks in pairs(recipe) if a in finished and b in finished]
    arms = {name: Arm(name=name, runs=(_read(run_dir, recipe, name),)) for name in {n for w in wanted for n in w[:2]}}
    return [
        row
        for a, b, tasks in wanted
        for row in _rows(arms[a], arms[b], tasks, arms[a].runs[0].sets.get(tasks, ()), GAIN)
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


def lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each comparison, what belongs to it below; last, once each, what makes two evaluations unlike."""
    said: list[str] = []
    for row in comparisons:
        sides = row.get("sides", ())  # rows of older runs have none
        seeds = {side["num_seeds"] for side in sides if side["num_runs"] == 1}
        verdict = stats.verdict_in_words(
            stats.Comparison(delta=row["delta"], ci95=tuple(row["ci95"]), p=row["p"], num_tasks=row["num_tasks"]),
            row["a"], row["b"], p_adjusted=row.get("p_adjusted"), needed=row.get("would_show"),
            num_seeds=seeds.pop() if len(sides) > 1 and len(seeds) == 1 and seeds != {1} else None,
        )  # fmt: skip
        said.append(f"{row['tasks']} ({row['metric']}): {verdict}")
        said += [f"  {line}" for line in (*_spread_lines(row, sides), row.get("selection")) if line]
    return said + list(dict.fromkeys(line for row in comparisons for line in row.get("differs", ())))


def _spread_lines(row: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Mean and standard deviation over seeds, as the field's tables have them, and what the interval does not hold."""
    spreads = [
        f"{name} {100 * side['acc']:.1f} ± {100 * side['seed_std']:.1f} ({_count(side)})"
        for name, side in zip((row["a"], row["b"]), sides, strict=False)
        if side["seed_std"] is not None
    ]
    if spreads:
        yield f"mean and standard deviation over seeds: {', '.join(spreads)}"
    if any(side["num_runs"] > 1 for side in sides):
        enough = all(side["num_runs"] >= FEW_RUNS for side in sides)
        advice = "see the standard deviations" if enough else f"compare at least {FEW_RUNS} training seeds a side"
        yield f"the interval is over tasks and does not hold the spread between training runs: {advice}"


def _count(side: Mapping[str, Any]) -> str:
    return f"{side['num_runs']} training seeds" if side["num_runs"] > 1 else f"{side['num_seeds']} seeds"


# --- what is compared -------------------------------------------------------------------------------------------------


def _between(a: Arm, b: Arm, gain: float) -> list[dict[str, Any]]:
    """Two arms on every task set that all their runs answered."""
    one_run = len({e.run_dir.resolve() for e in (*a.runs, *b.runs)}) == 1
    if one_run:
        a, b = (Arm(name=arm.runs[0].stage, runs=arm.runs) for arm in (a, b))
    found: list[dict[str, Any]] = []
    for tasks in a.runs[0].sets:
        if all(tasks in e.sets for e in (*a.runs, *b.runs)):
            for other in (*a.runs[1:], *b.runs):
                check_same_tasks(a.runs[0], other, tasks)
            found += _rows(a, b, tasks, a.runs[0].sets[tasks], gain)
    if not found:
        sets_a, sets_b = (", ".join(arm.runs[0].sets) for arm in (a, b))
        raise UserError(f"{a.name} and {b.name} share no task set: {sets_a} against {sets_b}")
    return found


def check_same_tasks(a: Evaluation, b: Evaluation, tasks: str) -> None:
    """Raises UserError unless both answered the same tasks of this set and were judged alike."""
    judges_a, judges_b = a.sets[tasks], b.sets[tasks]
    names = f"{_name(a)} and {_name(b)}"
    hashes = [e.fingerprint.get("tasks", {}).get(tasks) for e in (a, b)]
    if judges_a.keys() == judges_b.keys() and None not in hashes and hashes[0] != hashes[1]:
        raise UserError(
            f"{names} hold other versions of {tasks!r} ({len(judges_a)} and {len(judges_b)} tasks, hashes {hashes[0]} and "
            f"{hashes[1]}), so a difference says nothing; evaluate both on the same file"
        )
    if judges_a.keys() != judges_b.keys():
        raise UserError(
            f"{names} answered different tasks of {tasks!r} ({len(judges_a)} and {len(judges_b)}, "
            f"{len(judges_a.keys() & judges_b.keys())} shared): compare evaluations on the same held-out tasks"
        )
    if judges_a != judges_b:
        verifiers = sorted({*judges_a.values(), *judges_b.values()})
        raise UserError(
            f"{names} were not judged alike on {tasks!r} (verifiers {', '.join(verifiers)}), so a difference "
            "says nothing; evaluate both with the same version of Strop"
        )


def _rows(a: Arm, b: Arm, tasks: str, ids: Collection[str], gain: float) -> Iterator[dict[str, Any]]:
    for metric, kind in PASSES.items():
        shared = sorted(id for id in ids if all(id in e.scores[kind] for e in (*a.runs, *b.runs)))
        if not shared:
            continue
        a_RPK, b_RPK = (_matrices(arm, kind, shared) for arm in (a, b))
        a_PK, b_PK = np.hstack(a_RPK), np.hstack(b_RPK)
        comparison = stats.compare(a_PK, b_PK)
        spread, num_samples = stats.spread(a_PK, b_PK), min(a_PK.shape[1], b_PK.shape[1])
        yield (
            {"a": a.name, "b": b.name, "metric": metric, "tasks": tasks}
            | asdict(comparison)
            | {
                "ci95": list(comparison.ci95),
                "sides": [_side(a, a_RPK, metric), _side(b, b_RPK, metric)],
                "spread": asdict(spread),
                "would_show": stats.would_show(spread, len(shared), num_samples, gain),
                "differs": _differs(a, b),
            }
        )


def _matrices(arm: Arm, kind: str, ids: Sequence[str]) -> list[np.ndarray]:
    """Of each run the scores, a row for each task and a column for each sample."""
    matrices = []
    for e in arm.runs:
        scores = [e.scores[kind][id] for id in ids]
        num_samples = min(map(len, scores))
        matrices.append(np.array([s[:num_samples] for s in scores]))
    return matrices


def _side(arm: Arm, scores_RPK: Sequence[np.ndarray], metric: str) -> dict[str, Any]:
    """Accuracy of one side, and how it spreads over training runs or, in one run, over sampling seeds."""
    num_seeds = arm.runs[0].settings.get("seeds", 1) if metric == "mean_acc" else 1
    if len(scores_RPK) > 1:
        by_seed = [scores_PK.mean() for scores_PK in scores_RPK]
    else:  # sample i belongs to seed i // (samples of a seed)
        by_seed = [part.mean() for part in np.array_split(scores_RPK[0], num_seeds, axis=1)]
    return {
        "acc": float(np.hstack(scores_RPK).mean()),
        "num_samples": sum(scores_PK.shape[1] for scores_PK in scores_RPK),
        "num_seeds": num_seeds,
        "num_runs": len(arm.runs),
        "seed_std": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
    }


def _selection(row: Mapping[str, Any], best_of: int) -> dict[str, str]:
    """What to know of b if it was chosen among several by this very score."""
    if best_of == 1:
        return {}
    a, b = row["sides"]
    answers = row["num_tasks"] * b["num_samples"]
    return {"selection": stats.best_of_in_words(round(b["acc"] * answers), answers, a["acc"], best_of)}


def _differs(a: Arm, b: Arm) -> list[str]:
    """One line for each pair of evaluations that were not made alike, beside the tasks and the model."""
    lines = []
    for one, other in ((a.runs[0], e) for e in (*a.runs[1:], *b.runs)):
        if said := [*_sampled_unlike(one, other), *_made_unlike(one.fingerprint, other.fingerprint)]:
            lines.append(f"{a.name} and {b.name}: {'; '.join(said)}: part of the difference may be that.")
    for e in (*a.runs, *b.runs):
        if e.num_unscorable:
            lines.append(
                f"{_name(e)}: {e.num_unscorable:,} answers could not be judged (the verifier failed or ran out of time) and count as wrong."
            )
    return list(dict.fromkeys(lines))


def _sampled_unlike(a: Evaluation, b: Evaluation) -> Iterator[str]:
    both_drew = bool(a.settings.get("samples") and b.settings.get("samples"))
    for key, word in SAMPLING.items():
        x, y = a.settings.get(key), b.settings.get(key)
        if None not in (x, y) and x != y and (both_drew or key == "max_tokens"):
            yield f"sampled with different {word} {x:g} and {y:g}"


def _made_unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """What two fingerprints say; a part that one of them lacks is not known to differ."""
    if "chat" in a and "chat" in b and a["chat"] != b["chat"]:
        yield "prompted through different chat templates"
    versions_a, versions_b = a.get("versions", {}), b.get("versions", {})
    changed = [k for k in versions_a if k in versions_b and versions_a[k] != versions_b[k]]
    if changed:
        yield (
            "made with different versions ("
            + ", ".join(f"{k} {versions_a[k]} and {versions_b[k]}" for k in changed)
            + ")"
        )
    if "generation" in a and "generation" in b and a["generation"] != b["generation"]:
        yield "of models with different settings or stop tokens"
    if "engine" in a and "engine" in b and a["engine"] != b["engine"]:
        yield f"answered by different engines ({a['engine']} and {b['engine']})"
    if "hardware" in a and "hardware" in b and a["hardware"] != b["hardware"]:
        yield f"made on different hardware ({a['hardware']} and {b['hardware']})"


# --- reading evaluations ----------------------------------------------------------------------------------------------


def _arm(name: str) -> Arm:
    """The evaluation that RUN or RUN:STAGE names, or several of them with commas between."""
    parts = [name] if Path(name).is_dir() else [part.strip() for part in name.split(",")]
    runs = tuple(evaluation(part) for part in parts)
    if len({(e.run_dir.resolve(), e.stage) for e in runs}) < len(runs):
        raise UserError(f"{name} names an evaluation twice; name each training seed once")
    return Arm(name=name if len(runs) > 1 else _name(*runs), runs=runs)


def evaluation(name: str) -> Evaluation:
    """The finished evaluation that RUN or RUN:STAGE names; RUN alone is its last one."""
    before, colon, after = name.rpartition(":")
    path, stage = (Path(before), after) if colon and not Path(name).is_dir() else (Path(name), "")
    check_run(path)
    recipe = load_recipe(path / "recipe.yaml")
    evaluations = [s for s in recipe.stages if isinstance(s, EvaluateStage)]
    known, done = [s.name for s in evaluations], [s.name for s in evaluations if _is_done(path, s)]
    if stage and stage not in known:
        of = [s.name for s in recipe.stages if isinstance(s, EvaluateStage) and recipe.start_of(s) == stage]
        hint = f"; its weights are evaluated by {of[-1]!r}" if of else nearest(stage, known)
        raise UserError(f"{name}: the run has no evaluation {stage!r}{hint}")
    if not done or (stage and stage not in done):
        raise UserError(
            f"{name}: that evaluation is not finished; {', '.join(done) or 'none'} of this run is; finish it with `strop run` and "
            "--resume"
        )
    return _read(path, recipe, stage or done[-1])


def _is_done(run_dir: Path, stage: EvaluateStage) -> bool:
    """Whether every pass is there: one may have ended while the next was being answered."""
    wanted = {"greedy": stage.greedy, "samples": stage.samples > 0}
    return all(_file(run_dir, stage.name, kind).exists() for kind, is_wanted in wanted.items() if is_wanted)


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.run_dir}:{evaluation.stage}"


def _read(run_dir: Path, recipe: Recipe, stage: str) -> Evaluation:
    read = {kind: _scores(_file(run_dir, stage, kind)) for kind in PASSES.values()}
    scores = {kind: found for kind, (found, _) in read.items()}
    answered, settings = set().union(*scores.values()), next(s for s in recipe.stages if s.name == stage)
    sets = {
        name: {id: v for id, v in ids.items() if id in answered}
        for name, ids in _heldout(run_dir).items()
        if name in settings.tasks
    }
    return Evaluation(
        run_dir=run_dir,
        stage=stage,
        settings=settings.model_dump(mode="json"),
        num_unscorable=sum(number for _, number in read.values()),
        fingerprint=_figures(run_dir, stage).get("fingerprint", {}),
        sets={name: ids for name, ids in sets.items() if ids},
        scores=scores,
    )


def _file(run_dir: Path, stage: str, kind: str) -> Path:
    return run_dir / "rollouts" / stage / f"{kind}.parquet"


def _scores(path: Path) -> tuple[Scores, int]:
    """Of each task 1.0 or 0.0 by sample (a task of two sets was answered twice: the first counts), and how many no
    verifier could judge."""
    found: dict[str, dict[int, float]] = {}
    num_unscorable = 0
    for row in read_rows(path, ["task", "sample", "verdict"]) if path.exists() else ():
        correct, _, reason = json.loads(row["verdict"] or '[false, null, "verifier_error"]')
        num_unscorable += reason in UNSCORABLE
        found.setdefault(json.loads(row["task"])["id"], {}).setdefault(row["sample"], float(correct))
    return {id: [answers[sample] for sample in sorted(answers)] for id, answers in found.items()}, num_unscorable


def _figures(run_dir: Path, stage: str) -> Mapping[str, Any]:
    """The stage's entry in summary.json; empty where there is none."""
    path = run_dir / "summary.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["stages"].get(stage, {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the summary of a run ({error}); put it back as it was") from None


def _heldout(run_dir: Path) -> dict[str, dict[str, str]]:
    """Of each task set the ids of the held-out tasks and what judges them."""
    sets: dict[str, dict[str, str]] = {}
    for row in read_rows(run_dir / "tasks.parquet", ["id", "split", "verifier"]):
        name, _, split = row["split"].rpartition("/")
        if split == "heldout":
            sets.setdefault(name, {})[row["id"]] = row["verifier"]
    return sets
