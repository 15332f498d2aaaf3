"""The command line: parses, calls the function `run` of the room with the command's name, prints what it returns.

Knows options, exit codes and where text goes: progress and complaints to stderr, results to stdout, and with --json
one JSON object as the last line of stdout. Heavy rooms are imported inside the commands, so that help is instant.
Exit codes: 0 done; 1 our fault (a traceback); 2 the user's mistake (one sentence); 3 stopped with the run left
resumable (Ctrl-C, a full disk, a broken verifier, a loss that is not finite). No alarm stops a run yet: alarms are
logged and shown. A second Ctrl-C aborts at once and exits with 130.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import strop
from strop.process import keep_freed_memory

if TYPE_CHECKING:
    from strop.config import Recipe
    from strop.watch import Watch

__all__ = ["app", "main"]

DONE, FAULT, MISTAKE, STOPPED = 0, 1, 2, 3

app = typer.Typer(
    name="strop",
    help="Sharpen the reasoning of small language models on a stated budget, and prove what it gained.",
    epilog="Exit codes: 0 done, 1 our fault, 2 a mistake in what was asked, 3 stopped and resumable, 130 a second Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: instant, the same at every width, and docs/cli.md can hold it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML); see recipes/.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a key of the recipe; stages go by name. Repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run directory.  [default: runs/<recipe>]")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out where it was stopped.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything that needs no model, print the resolved recipe, run nothing."),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Start from this folder or model: --set model.name=MODEL."),
]


def main() -> None:
    """The console script: what was asked, and an exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:  # at a barrier threads spin for a moment, then sleep (LAB.md)
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed_memory()
    try:
        app()
    except Exception as error:  # the last frame of the process: the one place that sees every exception
        if (code := _code_of(error)) == FAULT:
            print(
                "strop: this is our fault, not yours; committed steps are safe, and --resume goes on", file=sys.stderr
            )
            raise
        _leave(f"strop: {error}", code)


def _leave(sentence: str, code: int) -> NoReturn:
    print(sentence, file=sys.stderr)
    raise SystemExit(code)


def _code_of(error: Exception) -> int:
    """What an exception means to the one who typed the command."""
    from strop.disk import DiskFull  # imported here: these know numpy and pyarrow, and help must be instant
    from strop.record import UserError
    from strop.rewards import VerifierBroken

    learner = sys.modules.get("strop.learner")  # knows torch: where it was never imported, it raised nothing
    if isinstance(error, DiskFull | VerifierBroken) or (learner is not None and isinstance(error, learner.NonFinite)):
        return STOPPED
    return MISTAKE if isinstance(error, UserError) else FAULT


@app.callback(invoke_without_command=True)
def _strop(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        print(f"strop {strop.__version__}")
        raise typer.Exit


# --- the stages of a recipe -------------------------------------------------------------------------------------------


@app.command()
def run(
    recipe: RecipeFile,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run every stage of a recipe in order, and write the report.

    Ctrl-C finishes the step, saves and exits with 3; the same command with --resume goes on from there. A second Ctrl-C
    aborts at once and exits with 130.

    \b
    Examples:
      strop run recipes/quickstart.yaml
      strop run recipes/quickstart.yaml --set seed=1 --set stages.rl.steps=20 --out runs/short
      strop run recipes/quickstart.yaml --out runs/short --resume
      strop run recipes/my-task.yaml --dry-run
    """
    _run(recipe, set_, out, resume=resume, as_json=as_json, dry_run=dry_run)


@app.command()
def sft(
    recipe: RecipeFile,
    model: ModelName = None,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run only the sft stages of a recipe: learn from worked solutions.

    \b
    Examples:
      strop sft recipes/quickstart.yaml --out runs/sft
      strop sft recipes/quickstart.yaml --model ./my-model --set stages.sft.max_steps=20
    """
    _run(recipe, _with_model(set_, model), out, only="sft", resume=resume, as_json=as_json, dry_run=dry_run)


@app.command()
def train(
    recipe: RecipeFile,
    model: ModelName = None,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run only the train stages of a recipe: learn from rewards.

    \b
    Examples:
      strop train recipes/quickstart.yaml --model runs/sft/checkpoints/sft/final
      strop train recipes/my-task.yaml --set stages.rl.algorithm.preset=dr_grpo --out runs/dr
    """
    _run(recipe, _with_model(set_, model), out, only="train", resume=resume, as_json=as_json, dry_run=dry_run)


@app.command("eval")
def evaluate(
    recipe: RecipeFile,
    model: ModelName = None,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run only the evaluate stages of a recipe: answer held-out tasks.

    \b
    Examples:
      strop eval recipes/quickstart.yaml --out runs/base
      strop eval recipes/quickstart.yaml --model runs/quickstart/checkpoints/rl/final --json
    """
    _run(recipe, _with_model(set_, model), out, only="evaluate", resume=resume, as_json=as_json, dry_run=dry_run)


def _with_model(overrides: list[str] | None, model: str | None) -> list[str]:
    return [*(overrides or []), *([f"model.name={json.dumps(model)}"] if model else [])]


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
    from strop.watch import Watch

    recipe = config.load_recipe(path, overrides or [])
    watch = Watch()
    watch.say(f"{path}: {', '.join(stage.name for stage in recipe.stages)}")
    from strop import pipeline

    if only is not None:
        recipe = pipeline.only(recipe, only, say=watch.say)
    if dry_run:
        _dry_run(recipe, path, watch, as_json)
        return
    out = out or Path("runs") / (path.stem if only is None else f"{path.stem}-{only}")
    with _stop_on_ctrl_c() as stop_requested:
        summary = pipeline.run(
            recipe, out=out, resume=resume, watch=watch, stop_requested=stop_requested, recipe_dir=path.parent
        )
    if as_json:
        _print_json(summary)
    else:
        print("\n".join(pipeline.result_lines(summary)))
    if not summary["finished"]:
        _leave(f"strop: stopped; the same command with --out {out} --resume goes on from here", STOPPED)
    watch.say(f"report: {(out / 'report.html').resolve()}")


def _dry_run(recipe: Recipe, path: Path, watch: Watch, as_json: bool) -> None:
    from strop import pipeline

    checks = pipeline.check(recipe, say=watch.say, recipe_dir=path.parent)
    print(recipe.to_yaml(), end="")
    if as_json:
        _print_json({"recipe": recipe.model_dump(mode="json", by_alias=True), "recipe_hash": recipe.hash, **checks})


@contextmanager
def _stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM asks the stage to stop after its step; a second one aborts at once."""
    asked: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        # os.write: the handler may interrupt a print, and a buffered stream cannot be entered twice
        os.write(2, b"\nstopping after this step, then saving; Ctrl-C again aborts at once\n")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


# --- looking at runs --------------------------------------------------------------------------------------------------


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run directory, or RUN:STAGE for one of its evaluations.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; the difference is B - A.")],
    as_json: Json = False,
) -> None:
    """Compare two evaluations task by task.

    The difference with its paired 95% interval and p, for each set of tasks. A run directory alone stands for its last evaluation. Evaluations on different tasks are refused.

    \b
    Examples:
      strop compare runs/quickstart:before runs/quickstart:after_rl
      strop compare runs/seed0 runs/seed1 --json
    """
    from strop import compare as room

    comparisons = room.run(a, b)
    if as_json:
        _print_json({"comparisons": comparisons})
    else:
        print("\n".join(room.lines(comparisons)))


@app.command()
def solve(
    run_dir: RunDir,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The problem, as a task would put it.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Token limit of each answer.")] = 256,
    as_json: Json = False,
) -> None:
    """Answer one problem with the models of a run, side by side.

    The base model answers first, then the model after each stage that led to the run's main result; greedily.

    \b
    Examples:
      strop solve runs/quickstart "Compute 27 + 48."
      strop solve runs/quickstart "Compute 3 * 14 - 5." --json
    """
    from strop import solve as room
    from strop.watch import Watch

    answers = room.run(run_dir, prompt, max_tokens=max_tokens, watch=Watch())
    if as_json:
        _print_json({"prompt": prompt, "answers": answers})
    else:
        print("\n".join(room.lines(answers)))


@app.command()
def report(run_dir: RunDir, as_json: Json = False) -> None:
    """Write the report of a run again, from what lies in its directory.

    \b
    Examples:
      strop report runs/quickstart
    """
    from strop import report as room

    path = room.run(run_dir)
    if as_json:
        _print_json({"report": str(path)})
    else:
        print(path)


@app.command()
def grade(
    in_: Annotated[Path, typer.Option("--in", metavar="FILE", help="JSONL rows with gold and prediction.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSONL of verdicts, one for each row.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Verifier processes.")] = 2,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="Seconds allowed for one verdict.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Grade a file of mathematical answers.

    Is each prediction equal to its gold, and if not, why not? A row has `gold` and `prediction` (a whole response or a bare answer), and may have `id` and `problem`. A verdict
    repeats `id` and has `correct`, `extracted` and `reason`.

    The last box counts, else what follows the last "answer is", else a bare answer. Values are compared, not spellings:
    1/2 = 0.5 = 50%, units and currency are set aside where one side has none, the order of a set is free. Listing
    candidates earns nothing.

    \b
    Examples:
      strop grade --in cases.jsonl --out verdicts.jsonl
    """
    from strop import grade as room

    counts = room.run(in_, out, workers=workers, timeout_s=timeout_s)
    if as_json:
        _print_json(counts)
    else:
        print(room.line(counts, out))


PROBES = ("length-bias",)


@app.command()
def probe(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(PROBES)}.")],
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run, to measure the same in its answers.")
    ] = None,
    stop: Annotated[
        float, typer.Option("--stop", help="Probability of ending at each token; 1 / the mean length.")
    ] = 0.1,
    rollouts: Annotated[int, typer.Option("--rollouts", min=2, help="Rollouts in an update.")] = 64,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write the picture over lengths, an SVG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a choice does before a run is spent on it.

    length-bias: does the loss push answers to grow or to shrink whatever they are paid for? Exact, for a policy that
    stops with one probability at each token, through the code that trains; and with RUN, how the lengths of its right
    and wrong answers moved.

    \b
    Examples:
      strop probe length-bias
      strop probe length-bias runs/quickstart --json
      strop probe length-bias --stop 0.01 --plot bias.svg
    """
    from strop import probe as room
    from strop.record import UserError

    if name not in PROBES:
        raise UserError(f"there is no probe {name!r}; write {', '.join(PROBES)}")
    found = room.length_bias(stop, rollouts)
    drifts = room.measured(run_dir) if run_dir is not None else []
    if plot is not None:
        from strop import disk
        from strop.report import bias

        disk.write_text(plot, bias.figure(rollouts))
    if as_json:
        _print_json(room.as_json(found, drifts))
    else:
        print("\n".join(room.lines(found, drifts)))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell what this machine can do, and what to do about the rest.

    \b
    Examples:
      strop doctor
      strop doctor --json
    """
    from strop import doctor as room

    findings = room.run()
    if as_json:
        _print_json({"findings": room.as_json(findings)})
    else:
        print("\n".join(room.lines(findings)))


BENCH_NAMES = (
    "step",
    "step-real",
    "rollout",
    "train",
    "memory",
    "verify",
    "scaling",
)  # a test holds them to be bench's


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help=f"One of {', '.join(BENCH_NAMES)}.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the bench. Repeatable."),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Rounds that count, after one to warm up.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where results lie.  [default: bench/results/<machine>.json]"),
    ] = None,
    show_table: Annotated[bool, typer.Option("--table", help="Measure nothing; print what was measured.")] = False,
    as_json: Json = False,
) -> None:
    """Measure speed and memory side by side with others.

    Strop, its peers (TRL, transformers, vLLM, math-verify) and the machine's own ceilings take turns on the same work:
    A B A B, medians and the spread of the ratios. Peers are in the extra dev; vLLM needs `make bench-vllm`.

    \b
    Examples:
      strop bench step
      strop bench rollout --set batches=[64] --pairs 3
      strop bench verify --set run=runs/quickstart --json
      strop bench --table
    """
    from strop import bench as room
    from strop.record import UserError
    from strop.watch import Watch

    if show_table:
        print(room.tables(name, out))
        return
    if name is None:
        raise UserError(f"name the bench: one of {', '.join(BENCH_NAMES)}; or --table for what was measured")
    result = room.run(name, set_ or [], pairs=pairs, out=out, say=Watch().say)
    if as_json:
        _print_json(result)
    else:
        print(room.table({name: result}))
