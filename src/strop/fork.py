"""A new run that begins where another one stood: at the end of a stage, or after any of its committed steps.

What was committed up to there is copied (tasks, finished stages, rows, rollouts, checkpoints), so that `--resume` goes
on in the new folder as it would have in the old one. Knows the run directory and which settings may be others from
there on; trains nothing. Read by the command line.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop import disk
from strop.config import EvaluateStage, Recipe, Stage, TrainStage, parse_recipe
from strop.record import UserError
from strop.run import Run, StageLog, check_run, first_difference, new_summary

__all__ = ["lines", "run"]

# What the copied steps were made of: it cannot be another thing from here on.
FIXED = ("model", "chat", "tasks")
# What a step that is replayed does not depend on.
NO_PAST = {"steps", "max_steps", "checkpoint_every", "heldout_every", "patience"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """After step `step` of a stage, or after the whole stage (None)."""

    parent: Run
    stage: Stage
    step: int | None

    @property
    def log(self) -> StageLog:
        return self.parent.stage(self.stage.name)

    @property
    def before(self) -> list[Stage]:
        """The finished stages that come with it."""
        stages = self.parent.recipe.stages
        place = next(i for i, s in enumerate(stages) if s.name == self.stage.name)
        return stages[: place + (self.step is None)]

    @property
    def name(self) -> str:
        return f"{self.parent.out}:{self.stage.name}" + ("" if self.step is None else f":{self.step}")


def run(
    target: str, *, out: Path, overrides: Sequence[str] = (), say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Makes the run directory `out` out of RUN, RUN:STAGE or RUN:STAGE:STEP, and returns where it begins and how it goes on.

    `from`, `stage`, `step` (None: after the whole stage), `replayed` (updates that its first start will make again) and
    `next` (the command). Raises UserError for what cannot be forked, with `out` as it was.
    """
    point = _point(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new folder with --out")
    recipe = _recipe(point, overrides)
    latest = _latest(point, recipe, say)
    temporary = out.with_name(f".{out.name}.tmp")
    disk.remove(temporary)
    try:
        with disk.guard(out):
            temporary.mkdir(parents=True)
            _copy(point, recipe, latest, temporary)
            if out.is_dir():
                out.rmdir()
            os.replace(temporary, out)
            disk.sync(out.parent)
    finally:
        disk.drop(temporary)
    replayed = 0 if point.step is None else point.step - latest
    return {
        "out": str(out), "from": point.name, "stage": point.stage.name, "step": point.step, "replayed": replayed,
        "next": _next(point, overrides, out),
    }  # fmt: skip


# --- from where -------------------------------------------------------------------------------------------------------


def _point(target: str) -> Point:
    run_dir, stage_name, step = _split(target)
    check_run(run_dir)
    parent = Run.read(run_dir)
    stages = {s.name: s for s in parent.recipe.stages}
    if stage_name is None:
        open_ = next((s for s in parent.recipe.stages if parent.stage(s.name).done is None), None)
        if open_ is None:
            raise UserError(f"{run_dir} is finished, so its fork would have nothing to do; name a stage, and a step: {run_dir}:STAGE:STEP")  # fmt: skip
        if not parent.stage(open_.name).last_step:
            finished = [s for s in parent.recipe.stages if parent.stage(s.name).done is not None]
            if not finished:
                raise UserError(f"{run_dir} has committed nothing yet, so there is nothing to fork; start another run")
            return Point(parent=parent, stage=finished[-1], step=None)
        stage_name = open_.name
    if stage_name not in stages:
        raise UserError(f"{run_dir} has no stage {stage_name!r}; it has {', '.join(stages)}")
    stage, log = stages[stage_name], parent.stage(stage_name)
    if step is None:
        if log.done is not None:
            return Point(parent=parent, stage=stage, step=None)
        step = log.last_step
    if isinstance(stage, EvaluateStage):
        raise UserError(f"{stage_name} is an evaluation and has no steps; fork after it ({run_dir}:{stage_name}, once it is finished) or from another stage")  # fmt: skip
    if not 1 <= step <= log.last_step:
        raise UserError(f"stage {stage_name} of {run_dir} has committed {log.last_step} steps; name one of them, not {step}")  # fmt: skip
    return Point(parent=parent, stage=stage, step=step)


def _split(target: str) -> tuple[Path, str | None, int | None]:
    """
    >>> _split("runs/a:rl:40")
    (PosixPath('runs/a'), 'rl', 40)
    """
    if Path(target).is_dir():
        return Path(target), None, None
    head, colon, last = target.rpartition(":")
    if colon and last.isdigit():
        run_dir, _, stage = head.rpartition(":")
        return Path(run_dir), stage, int(last)
    return (Path(head), last, None) if colon else (Path(target), None, None)


def _recipe(point: Point, overrides: Sequence[str]) -> Recipe:
    """The parent's recipe with the overrides. Raises UserError for one that would make another past."""
    then = point.parent.recipe
    recipe = parse_recipe(then.model_dump(mode="json", by_alias=True), str(point.parent.out / "recipe.yaml"), overrides)
    names = [s.name for s in point.before]
    parts = [(key, getattr(then, key), getattr(recipe, key)) for key in FIXED]
    parts += [(f"stages.{a.name}", a, b) for a, b in zip(point.before, recipe.stages, strict=False)]
    for key, old, new in parts:
        if old != new:
            a, b = (x.model_dump(mode="json", by_alias=True) if hasattr(x, "model_dump") else {k: v.model_dump(mode="json") for k, v in x.items()} for x in (old, new))  # fmt: skip
            found, was, now = first_difference(a, b, key) or (key, "one", "another")
            raise UserError(
                f"{found} was {was} when the steps to be copied were made, so a fork cannot have {now}; leave it out, or start "
                "another run"
            )
    if [s.name for s in recipe.stages[: len(names)]] != names:
        raise UserError(f"the stages {', '.join(names)} come with the fork, so they have to be the recipe's first")
    if point.step is not None:
        mine = next((s for s in recipe.stages[len(names) :]), None)
        if mine is None or (mine.name, mine.do, mine.from_) != (point.stage.name, point.stage.do, point.stage.from_):
            raise UserError(f"the fork begins inside {point.stage.name}, so that has to be the recipe's next stage, and of its kind")  # fmt: skip
        kinds = [stage.algorithm.critic.kind for stage in (point.stage, mine) if isinstance(stage, TrainStage)]
        if len(set(kinds)) > 1:
            raise UserError(
                f"stages.{mine.name} cannot go on with critic.kind={kinds[1]} from a step that was made with "
                f"{kinds[0]}; leave it out, or start another run"
            )
        if (steps := getattr(mine, "steps", None)) is not None and steps < point.step:
            raise UserError(f"stages.{mine.name}.steps={steps} is fewer than the {point.step} steps that come with the fork")  # fmt: skip
    return recipe


def _latest(point: Point, recipe: Recipe, say: Callable[[str], None]) -> int:
    """The step of the newest whole checkpoint that comes along; 0 without one.

    Raises UserError where other settings would have to make steps again that the parent's have made.
    """
    if point.step is None:
        _ = point.log.final if (point.log.checkpoints / "final").is_dir() else None  # damaged: refused by name
        return 0
    whole = [n for n, folder in point.log.step_checkpoints() if disk.what_is_wrong(folder) is None]
    latest = max((n for n in whole if n <= point.step), default=0)
    if latest < point.step and _past(point.parent.recipe, point) != _past(recipe, point):
        there = (
            f"there are checkpoints of steps {', '.join(map(str, whole))}"
            if whole
            else "no checkpoint of the stage is left"
        )
        raise UserError(
            f"{point.name} has no checkpoint of step {point.step}, and other settings cannot make its steps again: {there}; fork "
            "from one of them, or leave --set out"
        )
    if latest < (floor := _floor(point)):
        raise UserError(
            f"{point.name}: the steps up to {floor} came from {point.parent.summary['forked_from']['run']} and its settings, and no "
            "checkpoint of them is left to begin from; fork from a later checkpoint, or from that run"
        )
    if latest < point.step:
        say(f"the first start makes the updates of steps {latest + 1} to {point.step} again, from what was recorded")
    return latest


def _floor(point: Point) -> int:
    """Steps up to this one came to the parent by a fork, made with settings that are not its own."""
    return 0 if point.step is None else min(point.log.floor, point.step)


def _past(recipe: Recipe, point: Point) -> dict[str, Any]:
    """What decides the updates up to the point."""
    data = recipe.model_dump(mode="json", by_alias=True)
    stage = data["stages"][len(point.before)]
    return {"seed": data["seed"], "stage": {key: value for key, value in stage.items() if key not in NO_PAST}}


# --- what comes along -------------------------------------------------------------------------------------------------


def _copy(point: Point, recipe: Recipe, latest: int, into: Path) -> None:
    parent, kept = point.parent, [s.name for s in point.before]
    for name in kept:
        for part in ("rollouts", "checkpoints"):
            if (folder := parent.out / part / name).is_dir():
                shutil.copytree(folder, into / part / name, ignore=shutil.ignore_patterns(".*.tmp"))
    if point.step is not None:
        steps = [point.log.rollout_folder / f"step_{n:06d}.parquet" for n in range(1, point.step + 1)]
        for path in filter(Path.is_file, steps):
            _copy_to(path, into / "rollouts" / point.stage.name / path.name)
        for n, folder in point.log.step_checkpoints():
            if n <= point.step and disk.what_is_wrong(folder) is None:
                shutil.copytree(folder, into / "checkpoints" / point.stage.name / folder.name)
    _copy_to(parent.out / "tasks.parquet", into / "tasks.parquet")
    rows = [
        row
        for row in parent.rows
        if row["stage"] in kept
        or (point.step is not None and row["stage"] == point.stage.name and (row.get("step") or 0) <= point.step)
    ]
    disk.write_rows(into / "metrics.jsonl", rows)
    summary = new_summary(recipe) | {
        key: parent.summary[key] for key in ("dropped", "num_dropped", "engine", "made_on") if key in parent.summary
    }
    is_alike = point.step is None or _past(parent.recipe, point) == _past(recipe, point)
    summary["stages"] = {name: parent.summary["stages"][name] for name in kept}
    summary["forked_from"] = {
        "run": str(parent.out), "recipe_hash": parent.recipe.hash, "stage": point.stage.name, "step": point.step,
        "needs_checkpoint_from": _floor(point) if is_alike else latest,
    }  # fmt: skip
    disk.write_json(into / "summary.json", summary)
    disk.write_text(into / "recipe.yaml", f"# forked from {point.name}\n{recipe.to_yaml()}", is_data=True)


def _copy_to(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _next(point: Point, overrides: Sequence[str], out: Path) -> str:
    """The parent's command with the fork's settings and folder; reward files are found beside its recipe."""
    argv = point.parent.out / "attempts" / "1" / "argv.json"
    words: list[str] = json.loads(argv.read_text(encoding="utf-8")) if argv.is_file() else []
    named = (
        len(words) > 2 and words[1] in ("run", "sft", "train", "eval") and Path(words[2]).suffix in (".yaml", ".yml")
    )
    kept = _kept(words[1:]) if named else ["run", str(out / "recipe.yaml")]
    sets = [word for o in overrides for word in ("--set", o)] if named else []
    return shlex.join(["strop", *kept, *sets, "--out", str(out), "--resume"])


def _kept(words: Sequence[str]) -> list[str]:
    """
    >>> _kept(["run", "a.yaml", "--out", "runs/a", "--set", "seed=1", "--out=b", "--resume", "--json"])
    ['run', 'a.yaml', '--set', 'seed=1']
    """
    kept: list[str] = []
    values = iter(words)
    for word in values:
        if word == "--out":
            next(values, None)
        elif word not in ("--resume", "--json") and not word.startswith("--out="):
            kept.append(word)
    return kept


def lines(made: Mapping[str, Any]) -> list[str]:
    """What was made, and what to type."""
    return [f"{made['out']} begins at {made['from']}; go on with", f"  {made['next']}"]
