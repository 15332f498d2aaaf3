"""Commands that carry out a recipe: every stage of it, or those of one kind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from strop.cli.options import (
    STOPPED,
    AllowUnsafe,
    Budget,
    DryRun,
    Json,
    ModelName,
    Out,
    RecipeFile,
    Resume,
    Set,
    app,
    leave,
    print_json,
)

if TYPE_CHECKING:
    from strop.config import Recipe
    from strop.watch import Watch

__all__ = ["leave_stopped", "stop_on_ctrl_c", "typed"]


@app.command()
def run(
    recipe: RecipeFile,
    set_: Set = None,
    budget: Budget = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Run every stage of a recipe in order, and write the report.

    Ctrl-C finishes the step, saves and exits with 3; the same command with --resume goes on from there. A second Ctrl-C
    aborts at once and exits with 130.

    \b
    Examples:
      strop run recipes/quickstart.yaml
      strop run recipes/quickstart.yaml --set seed=1 --set stages.rl.steps=20 --out runs/short
      strop run recipes/quickstart.yaml --out runs/short --resume
      strop run recipes/quickstart.yaml --budget 10min
      strop run recipes/my-task.yaml --dry-run
    """
    _run(recipe, typed(set_, budget=budget), out, resume=resume, as_json=as_json, dry_run=dry_run)


@app.command()
def sft(
    recipe: RecipeFile,
    model: ModelName = None,
    set_: Set = None,
    budget: Budget = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Run only the sft stages of a recipe: learn from worked solutions.

    \b
    Examples:
      strop sft recipes/quickstart.yaml --out runs/sft
      strop sft recipes/quickstart.yaml --model ./my-model --set stages.sft.max_steps=20
    """
    _run(recipe, typed(set_, model, budget), out, only="sft", resume=resume, as_json=as_json, dry_run=dry_run)


@app.command()
def train(
    recipe: RecipeFile,
    model: ModelName = None,
    set_: Set = None,
    budget: Budget = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Run only the train stages of a recipe: learn from rewards.

    \b
    Examples:
      strop train recipes/quickstart.yaml --model runs/sft/checkpoints/sft/final
      strop train recipes/my-task.yaml --set stages.rl.algorithm.preset=dr_grpo --out runs/dr
    """
    _run(recipe, typed(set_, model, budget), out, only="train", resume=resume, as_json=as_json, dry_run=dry_run)


@app.command("eval")
def evaluate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET...", help="A recipe, or benchmarks, task files, gym:<family>, arithmetic, knights."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="A folder, an id, or RUN or RUN:STAGE for what that stage trained."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DIR", help="Folder of benchmark files.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=0, help="Sampled answers per task and seed.  [default: 0]")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds to sample with.  [default: 1]")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of the sampled answers.  [default: 0.6]")
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Of the sampled answers.  [default: 0.95]")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Token limit of an answer.  [default: 1024]")
    ] = None,
    greedy: Annotated[
        bool | None, typer.Option("--greedy/--no-greedy", help="Answer every task greedily as well.  [default: greedy]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="The first N tasks by hash: not the benchmark.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System prompt.  [default: that of RUN, else to reason and to box]")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Print the benchmarks and leave.")] = False,
    set_: Set = None,
    budget: Budget = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory.  [default: runs/eval-<model>-<targets>]")
    ] = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Answer held-out tasks: those of benchmarks by name, or the evaluate stages of a recipe.

    A benchmark is held out whole and checked to be the one of that name. Sampling (--samples) is off unless asked for. A
    recipe says all of this itself: with one only --model, --set and the options of a run are taken.

    \b
    Examples:
      strop eval --list
      strop eval math_500 amc23 --model runs/quickstart --samples 4 --seeds 2 --data ./data
      strop eval knights_knaves:5 gym:chain_sum own.jsonl --model runs/quickstart:sft --limit 50
      strop eval recipes/quickstart.yaml --out runs/base
      strop eval recipes/quickstart.yaml --model runs/quickstart/checkpoints/rl/final --json
    """
    from strop import targets as room
    from strop.watch import Watch

    if show_list:
        print("\n".join(room.table()))
        return
    stage = {"samples": samples, "seeds": seeds, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens,
             "greedy": greedy}  # fmt: skip
    if (path := room.only_recipe(targets or (), stage | {"data": data, "limit": limit, "system": system})) is not None:
        weights = room.trained(model).model.get("name")
        _run(path, typed(set_, weights, budget), out, only="evaluate", resume=resume, as_json=as_json, dry_run=dry_run)
        return
    of = room.trained(model)
    made = room.recipe(
        targets or (), of, stage=stage, data=data, limit=limit, system=system, overrides=typed(set_, budget=budget), say=Watch().say
    )  # fmt: skip
    out, title = out or room.default_out(made, of.label), " ".join(targets or ())
    _carry_out(made, title, out, Path(), resume=resume, as_json=as_json, dry_run=dry_run)


def typed(overrides: list[str] | None, model: str | None = None, budget: str | None = None) -> list[str]:
    """`--set` of a command, and options that stand for one."""
    keys = {"model.name": model, "budget": budget}
    return [*(overrides or []), *(f"{key}={json.dumps(value)}" for key, value in keys.items() if value is not None)]


def _run(
    path: Path,
    overrides: list[str] | None,
    out: Path | None,
    *,
    only: Literal["evaluate", "sft", "train"] | None = None,
    resume: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    from strop import config

    recipe = config.load_recipe(path, overrides or [])
    out = out or Path("runs") / (path.stem if only is None else f"{path.stem}-{only}")
    _carry_out(recipe, str(path), out, path.parent, only=only, resume=resume, as_json=as_json, dry_run=dry_run)


def _carry_out(
    recipe: Recipe,
    title: str,
    out: Path,
    recipe_dir: Path,
    *,
    only: Literal["evaluate", "sft", "train"] | None = None,
    resume: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Run the recipe's stages (of one kind) in `out`, print what came of it, and leave with 3 where it was stopped."""
    from strop.watch import Watch

    watch = Watch()
    watch.say(f"{title}: {', '.join(stage.name for stage in recipe.stages)}")
    from strop import pipeline

    if only is not None:
        recipe = pipeline.only(recipe, only, say=watch.say)
    if dry_run:
        _dry_run(recipe, recipe_dir, watch, as_json)
        return
    with stop_on_ctrl_c() as stop_requested:
        summary = pipeline.run(
            recipe, out=out, resume=resume, watch=watch, stop_requested=stop_requested, recipe_dir=recipe_dir
        )
    if as_json:
        print_json(summary)
    else:
        print("\n".join(pipeline.result_lines(summary)))
    if not summary["finished"]:
        leave_stopped(summary, f"--out {out} ")
    watch.say(f"report: {(out / 'report.html').resolve()}")


def leave_stopped(summary: Mapping[str, Any], also: str = "") -> NoReturn:
    """Say why it stopped, and how it goes on: the same command with `also`, which was not typed."""
    why = summary.get("stopped_by_budget")
    how = f"{also}--resume" + (" and a higher --budget" if why else "")
    leave(f"strop: stopped{f': {why}' if why else ''}; the same command with {how} goes on from here", STOPPED)


def _dry_run(recipe: Recipe, recipe_dir: Path, watch: Watch, as_json: bool) -> None:
    from strop import pipeline

    checks = pipeline.check(recipe, say=watch.say, recipe_dir=recipe_dir)
    print(recipe.to_yaml(), end="")
    if as_json:
        print_json({"recipe": recipe.model_dump(mode="json", by_alias=True), "recipe_hash": recipe.hash, **checks})


@contextmanager
def stop_on_ctrl_c(said: str = "stopping after this step, then saving") -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM asks the stage to stop after its step, and `said` says so; a second one aborts at once."""
    asked: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        # os.write: the handler may interrupt a print, and a buffered stream cannot be entered twice
        os.write(2, f"\n{said}; Ctrl-C again aborts at once\n".encode())

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
