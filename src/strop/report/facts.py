"""What a run directory says, in the words of the report: who is before and after, what was measured, what changed.

Reads recipe.yaml, summary.json, metrics.jsonl, tasks.parquet and rollouts/<stage>/greedy.parquet, and nothing else.
A run that stopped half-way has fewer of them: what is missing is None or empty here, never an error. Does not know
how anything looks.

Who is who follows from the recipe alone, never from the results:

* the *line* is the base model and the stages that lead to the main stage, which is the last RL stage (the last SFT
  stage, if there is no RL);
* an *arm* is an SFT stage that ran for the wall time of another one (`wall_of`): "why not just more SFT?";
* a *control* is an RL stage whose advantages were zeroed or shuffled: it must show no gain;
* everything else that was evaluated is listed as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from strop import stats
from strop.config import EvaluateStage, Recipe, SftStage, TrainStage, load_recipe
from strop.record import Rollout, Task, UserError, read_rollouts, read_tasks
from strop.run import check_run

__all__ = ["Change", "Model", "Pair", "Result", "RunFacts", "load", "pick"]

Metric = Literal["greedy_acc", "mean_acc"]
METRICS: tuple[Metric, ...] = ("greedy_acc", "mean_acc")  # the first that was measured is told
Role = Literal["base", "sft", "rl", "arm", "control", "other"]
CONTROL_WORDS = {"zero": "zero advantages", "shuffled": "shuffled rewards"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One set of weights that was evaluated, or was meant to be."""

    weights: str  # the stage that made them, or "base"
    role: Role
    label: str  # "base model", "after SFT", "SFT continued", ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one evaluation said of one set of weights on one task set."""

    stage: str  # the evaluate stage
    model: Model
    metric: Metric  # what `acc` is: the greedy accuracy, or the mean over samples where no greedy answers were taken
    acc: float
    ci95: tuple[float, float] | None  # Wilson; of sampled answers a bootstrap
    num_tasks: int
    mean_acc: float | None  # over samples
    mean_tokens: float | None
    truncated_frac: float | None
    max_tokens: int
    one_answer: str | None  # what to hold against it: one answer for all would do as well
    reasons: dict[str, int]
    by_level: dict[str, tuple[int, float]]  # level -> (num_tasks, greedy accuracy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A paired comparison of two evaluations on the same tasks; delta = after - before, as a share."""

    before: Result
    after: Result
    tasks: str
    metric: str
    delta: float
    ci95: tuple[float, float]
    p: float
    num_tasks: int

    @property
    def verdict(self) -> Literal["gain", "loss", "none"]:
        """A gain only if the whole interval lies above zero and chance alone would do as much in less than 5 of 100 cases."""
        return stats.Comparison(delta=self.delta, ci95=self.ci95, p=self.p, num_tasks=self.num_tasks).claim()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One task answered before and after."""

    kind: str
    before: Rollout
    after: Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run directory, read once."""

    run_dir: Path
    recipe: Recipe
    recipe_yaml: str
    summary: dict[str, Any]  # summary.json; {} if the run never wrote one
    rows: tuple[dict[str, Any], ...]  # metrics.jsonl

    @property
    def stages(self) -> dict[str, Any]:
        return self.summary.get("stages", {})

    @property
    def finished(self) -> bool:
        return bool(self.summary.get("finished", False))

    @property
    def pending(self) -> list[str]:
        """Stages of the recipe that have no entry in the summary."""
        return [s.name for s in self.recipe.stages if s.name not in self.stages]

    # --- who is who ---

    def main(self) -> TrainStage | SftStage | None:
        """The stage whose gain the page is about."""
        trains = [s for s in self.recipe.stages if isinstance(s, TrainStage)]
        sfts = [s for s in self.recipe.stages if isinstance(s, SftStage) and s.wall_of is None]
        real = [s for s in trains if s.algorithm.advantages == "reward"]
        return next((group[-1] for group in (real, trains, sfts) if group), None)

    def line(self) -> list[Model]:
        """The base model and every trained stage on the way to the main one."""
        chain: list[SftStage | TrainStage] = []
        stage, by_name = self.main(), {s.name: s for s in self.recipe.stages}
        while stage is not None:
            chain.insert(0, stage)
            start = by_name.get(self.recipe.start_of(stage))
            stage = start if isinstance(start, SftStage | TrainStage) else None
        kinds = [type(s) for s in chain]
        trains = any(not isinstance(s, EvaluateStage) for s in self.recipe.stages)
        models = [Model(weights="base", role="base", label="base model" if trains else "model")]
        for s in chain:
            role, word = ("rl", "RL") if isinstance(s, TrainStage) else ("sft", "SFT")
            models.append(
                Model(weights=s.name, role=role, label=f"after {word if kinds.count(type(s)) == 1 else s.name}")
            )
        return models

    def models(self) -> list[Model]:
        """All weights an evaluate stage of the recipe speaks of: the line, arms, controls, others."""
        line = self.line()
        known = {m.weights for m in line}
        side: list[Model] = []
        for s in self.recipe.stages:
            if s.name in known or isinstance(s, EvaluateStage):
                continue
            if isinstance(s, SftStage) and s.wall_of is not None:
                side.append(Model(weights=s.name, role="arm", label="SFT continued"))
            elif isinstance(s, TrainStage) and s.algorithm.advantages != "reward":
                side.append(
                    Model(weights=s.name, role="control", label=f"control: {CONTROL_WORDS[s.algorithm.advantages]}")
                )
            else:
                side.append(Model(weights=s.name, role="other", label=f"after {s.name}"))
        labels = [m.label for m in side]
        side = [m if labels.count(m.label) == 1 else _relabel(m, f"{m.label} ({m.weights})") for m in side]
        return line + sorted(side, key=lambda m: ("arm", "control", "other").index(m.role))

    # --- what was measured ---

    def task_sets(self) -> list[str]:
        """Evaluated task sets: those that the main stage trained on first, largest share first; then the recipe's order."""
        main = self.main()
        shares = dict.fromkeys(main.tasks, 1.0) if isinstance(main, SftStage) else dict(main.tasks) if main else {}
        measured = {t for s in self.stages.values() if s.get("kind") == "evaluate" for t in s.get("by_tasks", {})}
        ordered = sorted(shares, key=lambda t: -shares[t]) + [t for t in self.recipe.tasks if t not in shares]
        return [t for t in ordered if t in measured]

    def evaluations(self) -> list[EvaluateStage]:
        """The finished ones, in order."""
        return [s for s in self.recipe.stages if isinstance(s, EvaluateStage) and s.name in self.stages]

    def evaluation(self, model: Model, task_set: str) -> EvaluateStage | None:
        """The last finished evaluation of these weights on this task set."""
        found = None
        for stage in self.evaluations():
            entry = self.stages[stage.name]
            if (
                task_set in entry.get("by_tasks", {})
                and entry.get("from", self.recipe.start_of(stage)) == model.weights
            ):
                found = stage
        return found

    def benchmark_limits(self) -> list[str]:
        """What keeps an evaluated task set from being the benchmark that its problems are from."""
        entries = [by for s in self.evaluations() for by in self.stages[s.name].get("by_tasks", {}).items()]
        found = {task_set: entry["benchmark"] for task_set, entry in entries if entry.get("benchmark")}
        return [
            f"{task_set} holds {b['problems']:,} of the {b['of']:,} problems of {b['name']}: this is not the benchmark's result."
            if b["problems"] != b["of"]
            else f"The problems of {task_set} are not the ones that {b['name']} is pinned to, though they are as many."
            for task_set, b in found.items()
            if b["problems"] != b["of"] or not b["pinned"]
        ]

    def result(self, model: Model, task_set: str) -> Result | None:
        """What it said."""
        stage = self.evaluation(model, task_set)
        return stage and _result(stage, model, self.stages[stage.name]["by_tasks"][task_set])

    def results(self, task_set: str) -> list[Result]:
        return [r for m in self.models() if (r := self.result(m, task_set)) is not None]

    def change(self, before: Result, after: Result, task_set: str, metric: Metric | None = None) -> Change | None:
        """The recorded comparison of two evaluations, turned round if it was recorded the other way.

        By greedy answers unless told otherwise, or by sampled ones where one of the two has no others.
        """
        metric = metric or ("mean_acc" if "mean_acc" in (before.metric, after.metric) else "greedy_acc")
        for c in self.summary.get("comparisons", []):
            if c["tasks"] != task_set or c["metric"] != metric or {c["a"], c["b"]} != {before.stage, after.stage}:
                continue
            sign = 1.0 if c["a"] == before.stage else -1.0
            lo, hi = sorted(sign * float(v) for v in c["ci95"])
            return Change(
                before=before, after=after, tasks=task_set, metric=metric,
                delta=sign * c["delta"], ci95=(lo, hi), p=float(c["p"]), num_tasks=c["num_tasks"],
            )  # fmt: skip
        return None

    def start(self, model: Model, task_set: str) -> Result | None:
        """The evaluation of the nearest weights that these came from."""
        weights, by_name = model.weights, {s.name: s for s in self.recipe.stages}
        by_weights = {m.weights: m for m in self.models()}
        while weights in by_name:
            weights = self.recipe.start_of(by_name[weights])
            if (found := self.result(by_weights[weights], task_set)) is not None:
                return found
        return None

    # --- curves and completions ---

    def curve(self, stage: str, kind: str, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one logged key; None becomes NaN, and a step logged twice (a resume) counts once."""
        by_step = {
            row["step"]: row[key]
            for row in self.rows
            if row.get("stage") == stage and row.get("kind") == kind and "step" in row and key in row
        }
        steps = sorted(by_step)
        return [float(s) for s in steps], [math.nan if by_step[s] is None else float(by_step[s]) for s in steps]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """What the monitor said during training: rows with stage, step and text."""
        return [row for row in self.rows if row.get("kind") == "alarm" and row.get("text")]

    def answers(self, stage: str, kind: Literal["greedy", "samples"]) -> list[Rollout]:
        """The judged answers of an evaluation; none where they were not kept."""
        file = self.run_dir / "rollouts" / stage / f"{kind}.parquet"
        return [r for r in read_rollouts(file) if r.verdict is not None] if file.exists() else []

    def pairs(self, before: Result, after: Result, task_set: str) -> list[Pair]:
        """Every task of the set with both greedy answers, in the order of the hash of its content."""
        old, new = ({r.task.id: r for r in self.answers(result.stage, "greedy")} for result in (before, after))
        wanted = {t.id for t in self.heldout(task_set)}
        both = [(old[i], new[i]) for i in old if i in new and (i in wanted or not wanted)]
        both = sorted(both, key=lambda pair: (pair[0].task.content, pair[0].task.id))
        return [Pair(kind=_kind(a, b), before=a, after=b) for a, b in both]

    def heldout(self, task_set: str) -> Sequence[Task]:
        """The held-out tasks of a set; none where the run kept no file of them."""
        path = self.run_dir / "tasks.parquet"
        return read_tasks(path).get(f"{task_set}/heldout", []) if path.exists() else []


def load(run_dir: Path) -> RunFacts:
    """Reads a run directory. Raises UserError if it is none."""
    recipe_file, summary_file, metrics_file = (run_dir / n for n in ("recipe.yaml", "summary.json", "metrics.jsonl"))
    check_run(run_dir)
    summary = _summary(summary_file) if summary_file.exists() else {}
    lines = metrics_file.read_text(encoding="utf-8").splitlines(keepends=True) if metrics_file.exists() else []
    # A run killed while writing leaves half a last line: whole lines end with a newline.
    rows = tuple(json.loads(line) for line in lines if line.endswith("\n") and line.strip())
    recipe_yaml = recipe_file.read_text(encoding="utf-8")
    return RunFacts(
        run_dir=run_dir, recipe=load_recipe(recipe_file), recipe_yaml=recipe_yaml, summary=summary, rows=rows
    )


def _summary(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON: {error}; delete it and type `strop run` with --resume to write it anew"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object: it is not a summary that Strop wrote")
    return data


def _relabel(model: Model, label: str) -> Model:
    return Model(weights=model.weights, role=model.role, label=label)


def _float(value: float | int | None) -> float | None:
    """JSON writes 1.0 as 1 where it was an integer's worth."""
    return None if value is None else float(value)


def _result(stage: EvaluateStage, model: Model, entry: dict[str, Any]) -> Result | None:
    metric: Metric | None = next((m for m in METRICS if entry.get(m) is not None), None)
    if metric is None:
        return None
    ci95 = entry.get("ci95" if metric == "greedy_acc" else "mean_ci95")
    return Result(
        stage=stage.name,
        model=model,
        metric=metric,
        acc=float(entry[metric]),
        ci95=(float(ci95[0]), float(ci95[1])) if ci95 else None,
        num_tasks=entry.get("num_tasks", 0),
        mean_acc=_float(entry.get("mean_acc")),
        mean_tokens=_float(entry.get("mean_tokens")),
        truncated_frac=_float(entry.get("truncated_frac")),
        max_tokens=stage.max_tokens,
        one_answer=stats.one_answer_for_all(
            float(entry[metric]),
            entry.get("num_tasks", 0),
            entry.get("constant_acc", 0.0),
            entry.get("commonest_frac", 0.0),
        ),
        reasons=entry.get("verdict_reasons", {}),
        by_level={
            k: (v["num_tasks"], float(v["greedy_acc"]))
            for k, v in entry.get("by_level", {}).items()
            if v.get("greedy_acc") is not None
        },
    )


# --- which completions are shown: a rule that knows nothing of how they look --------------------------------------------

KINDS = ("turned right", "turned wrong", "stayed wrong", "stayed right")
QUOTAS = {"turned right": 2, "turned wrong": 1, "stayed wrong": 2, "stayed right": 1}
UNGRADED = "could not be graded"


def _kind(before: Rollout, after: Rollout) -> str:
    assert before.verdict is not None
    assert after.verdict is not None
    if not (before.verdict.scorable and after.verdict.scorable):
        return UNGRADED
    if before.verdict.correct:
        return "stayed right" if after.verdict.correct else "turned wrong"
    return "turned right" if after.verdict.correct else "stayed wrong"


def pick(pairs: Sequence[Pair]) -> list[Pair]:
    """The first of each kind in the given order, as many as QUOTAS says; kinds that are short are made up for in KINDS' order."""
    ranked = [p for kind in KINDS for p in pairs if p.kind == kind]
    chosen = [p for kind in KINDS for p in [q for q in ranked if q.kind == kind][: QUOTAS[kind]]]
    spare = [p for p in ranked if p not in chosen]
    return sorted(chosen + spare[: sum(QUOTAS.values()) - len(chosen)], key=lambda p: KINDS.index(p.kind))
