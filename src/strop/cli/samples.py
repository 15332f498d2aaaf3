"""Commands that look into many answers of a model: the probe of a model before it is trained, of two after, of a loss."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strop.cli.options import STOPPED, AllowUnsafe, Json, app, leave, print_json
from strop.cli.recipes import stop_on_ctrl_c

if TYPE_CHECKING:
    from strop.probe.judge import Judge
    from strop.watch import Watch

__all__ = ["LENGTH_BIAS"]

LENGTH_BIAS = "length-bias"


@app.command()
def probe(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="TARGET", help="RUN or RUN:STAGE, one or several; or a model; or length-bias [RUN]."),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="NAME", help="Only this task set of a run; what a model answers. Repeatable."),
    ] = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Of both models' answers under the base model; loads it.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="URL", help="An OpenAI-compatible endpoint that reads answers.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME", help="Where that endpoint serves several models.")
    ] = None,
    judged: Annotated[
        int | None,
        typer.Option("--judged", min=1, help="Answers that the judge reads, five questions each. [default: 100]"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=2, help="Of a model: samples a task. [default: 16]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Of a model: token limit of an answer. [default: 1024]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of a model: of its samples. [default: 0.6]")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Of a model: where benchmark files lie.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Of a model: its run directory.")] = None,
    stop: Annotated[
        float | None,
        typer.Option(
            "--stop", help="Of length-bias: probability of ending at each token, 1 / the mean length. [default: 0.1]"
        ),
    ] = None,
    rollouts: Annotated[
        int | None, typer.Option("--rollouts", min=2, help="Of length-bias: rollouts in an update. [default: 64]")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Of length-bias: write the picture over lengths, an SVG."),
    ] = None,
    as_json: Json = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Say what a choice does before a run is spent on it.

    RUN with sampled answers, or a model that is to answer --tasks first: how many hold an answer, how much more k tries solve than one, on how many tasks RL has signal,
    reflection, corrections, and whether RL is worth it. Several evaluations of one model: its templates compared (behind a
    URL its system prompts). Two models, the base first: pass@k of both, where they cross, tasks lost and won.

    length-bias: does the loss push answers to grow or to shrink whatever they are paid for? Exact, for a policy that
    stops with one probability at each token, through the code that trains; and with RUN, how the lengths of its right
    and wrong answers moved.

    \b
    Examples:
      strop probe smollm2-135m --tasks gsm8k --samples 16 --data ./data
      strop probe runs/quickstart:before
      strop probe runs/plain runs/boxed --tasks hard
      strop probe runs/quickstart:before runs/quickstart:after_rl --perplexity
      strop probe length-bias runs/quickstart --json
      strop probe length-bias --stop 0.01 --plot bias.svg
    """
    from strop import probe as room
    from strop.watch import Watch

    watch = Watch()
    of_answers = {"--tasks": tasks, "--perplexity": perplexity or None, "--judge": judge}
    of_model = {
        "--samples": samples,
        "--max-tokens": max_tokens,
        "--temperature": temperature,
        "--data": data,
        "--out": out,
    }
    of_loss = {"--stop": stop, "--rollouts": rollouts, "--plot": plot}
    if targets[0] == LENGTH_BIAS:
        _refuse(of_answers | of_model, f"strop probe {LENGTH_BIAS}")
        _length_bias(targets[1:], 0.1 if stop is None else stop, rollouts or 64, plot, as_json)
        return
    _refuse(of_loss, "a probe of answers")
    if judge is None:
        _refuse({"--judged": judged, "--judge-model": judge_model}, "a probe without --judge URL")
    if _is_model(targets, tasks):
        stage = {"samples": samples or 16, "max_tokens": max_tokens, "temperature": temperature}
        names, sets = [_sampled(targets[0], tasks or [], stage, data, out, watch)], []
    else:
        _refuse(of_model, "a run, whose answers are there already")
        names, sets = targets, tasks or []
    found = room.run(
        names, tasks=sets, asked=_endpoint(judge, judge_model), num_judged=judged or 100, perplexity=perplexity, watch=watch
    )  # fmt: skip
    if as_json:
        print_json(found.data)
    else:
        print("\n".join(found.lines))


def _is_model(targets: list[str], tasks: list[str] | None) -> bool:
    """One target that is no run, and tasks for it. Raises UserError for what is neither, with the nearest probe."""
    from strop.record import UserError

    if difflib.get_close_matches(targets[0], [LENGTH_BIAS]):
        raise UserError(f"there is no probe {targets[0]!r}; did you mean {LENGTH_BIAS}?")
    runs = [t for t in targets if any((Path(p) / "recipe.yaml").is_file() for p in (t, t.rpartition(":")[0]))]
    if not runs and not tasks and len(targets) == 1:
        raise UserError(
            f"{targets[0]} is not a run directory; to probe a model of that name, say what it is to answer: --tasks FILE"
        )
    if runs or not tasks:
        return False
    if len(targets) > 1:
        raise UserError(f"{targets[0]} is no run directory; models are probed one at a time")
    return True


def _sampled(
    model: str,
    tasks: list[str],
    stage: Mapping[str, float | int | None],
    data: str | None,
    out: Path | None,
    watch: Watch,
) -> str:
    """Answers the tasks with the model, as `strop eval` does, and returns the run directory; goes on with one that is there."""
    from strop import pipeline
    from strop import targets as room

    of = room.trained(model)
    made = room.recipe(tasks, of, stage={**stage, "greedy": False}, data=data, say=watch.say)
    out = out or Path("runs") / room.default_out(made, of.label).name.replace("eval-", "probe-", 1)
    with stop_on_ctrl_c() as stop_requested:
        summary = pipeline.run(made, out=out, resume=out.exists(), watch=watch, stop_requested=stop_requested)
    if not summary["finished"]:
        leave("strop: stopped; the same command goes on from here", STOPPED)
    return str(out)


def _length_bias(runs: list[str], stop: float, rollouts: int, plot: Path | None, as_json: bool) -> None:
    from strop.probe import length_bias as room
    from strop.record import UserError

    if len(runs) > 1:
        raise UserError(f"strop probe {LENGTH_BIAS} takes one run, not {len(runs)}")
    found = room.pushes(stop, rollouts)
    drifts = room.measured(Path(runs[0])) if runs else []
    if plot is not None:
        from strop import disk
        from strop.report import bias

        disk.write_text(plot, bias.figure(rollouts))
    if as_json:
        print_json(room.as_json(found, drifts))
    else:
        print("\n".join(room.lines(found, drifts)))


def _endpoint(url: str | None, model: str | None) -> Judge | None:
    """The judge behind a URL; the key, where one is needed, is OPENAI_API_KEY."""
    if url is None:
        return None
    from strop.engine.remote import Endpoint
    from strop.record import UserError

    endpoint = Endpoint(url, model, os.environ.get("OPENAI_API_KEY"))
    if model is None and len(names := endpoint.models()) != 1:
        raise UserError(f"{url} serves {', '.join(names[:20]) or 'no model'}; choose one with --judge-model NAME")
    return endpoint


def _refuse(options: dict[str, object], what: str) -> None:
    """Raises UserError for the first option that was given and would do nothing."""
    from strop.record import UserError

    if given := next((name for name, value in options.items() if value is not None), None):
        raise UserError(f"{given} has no effect on {what}; leave it out")
