"""Commands that look at answers: comparisons, grades, the report, one problem solved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from strop.cli.options import Json, RunDir, app, print_json

__all__: list[str] = []


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run directory, or RUN:STAGE for one of its evaluations.")],
    others: Annotated[
        list[str] | None, typer.Argument(metavar="B", help="The same, one or more; differences are B - A.")
    ] = None,
    gain: Annotated[
        float,
        typer.Option(
            "--gain", min=0.1, max=100, help="The difference, in points, for which to tell what would show it."
        ),
    ] = 2.0,
    best_of: Annotated[
        int,
        typer.Option("--best-of", min=1, help="B was chosen as the best of so many checkpoints by this very score."),
    ] = 1,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="Also what a correct answer costs: tokens, seconds, joules, dollars, by way to answer."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="With --cost: accuracy against each cost, an SVG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare evaluations task by task.

    Every later one is compared with the first: the difference with its paired 95% interval and p, for each set of tasks. A run directory alone stands for its last evaluation; runs with commas between them are training seeds of one arm. Several comparisons are corrected for their number (Holm). Evaluations on different tasks are refused; other things that differ are told.

    \b
    Examples:
      strop compare runs/quickstart:before runs/quickstart:after_rl
      strop compare runs/a0,runs/a1,runs/a2 runs/b0,runs/b1,runs/b2 --gain 1
      strop compare runs/base runs/rl --best-of 21 --json
      strop compare runs/quickstart:before runs/quickstart:after_rl --cost --plot cost.svg
    """
    from strop import compare as room
    from strop.record import UserError

    if not cost and (not others or plot is not None):
        raise UserError(
            "--plot draws what --cost tells; type both" if plot else f"compare {a} with what? Name another run"
        )
    comparisons = room.run(a, *others, gain=gain / 100, best_of=best_of) if others else []
    rows, lines = _costs([a, *(others or [])], plot) if cost else ([], [])
    if as_json:
        print_json({"comparisons": comparisons} | ({"costs": rows} if cost else {}))
    else:
        print("\n".join([*room.lines(comparisons), *lines]))


def _costs(names: list[str], plot: Path | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and lines about what a correct answer costs; the picture is written where one is asked for."""
    from strop import disk, frontier

    points = frontier.run(*names)
    if plot is not None:
        from strop.report import frontier as pictures

        disk.write_text(plot, pictures.figure(points))
    return frontier.as_json(points), frontier.lines(points)


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
        print_json({"prompt": prompt, "answers": answers})
    else:
        print("\n".join(room.lines(answers)))


@app.command()
def report(
    run_dir: RunDir,
    table: Annotated[
        str | None,
        typer.Option("--table", metavar="NAME", help="Print one instead: markdown or latex for a paper, or lengths."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run again, from what lies in its directory.

    With --table nothing is written. markdown and latex hold every evaluation's accuracy, pass@k, votes and lengths with their
    95% intervals; lengths compares right and wrong answers of the same task, and tells accuracy by budget.

    \b
    Examples:
      strop report runs/quickstart
      strop report runs/quickstart --table latex > results.tex
    """
    from strop.report import page

    if table is not None:
        text = page.table(run_dir, table)
        if as_json:
            print_json({"table": text})
        else:
            print(text, end="")
        return
    path = page.run(run_dir)
    if as_json:
        print_json({"report": str(path)})
    else:
        print(path)


@app.command()
def grade(
    in_: Annotated[
        Path | None, typer.Option("--in", metavar="FILE", help="JSONL rows with gold and prediction.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSONL of verdicts, one for each row.")
    ] = None,
    gold: Annotated[
        str | None, typer.Option("--gold", metavar="TEXT", help="One right answer, instead of --in.")
    ] = None,
    prediction: Annotated[
        str | None, typer.Option("--prediction", metavar="TEXT", help="The response to hold against --gold.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Verifier processes.")] = 2,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="Seconds allowed for one verdict.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Grade mathematical answers, and say why.

    Is each prediction equal to its gold, and if not, why not? A row has `gold` and `prediction` (a whole response or a bare answer), and may have `id` and `problem`. A verdict
    repeats `id` and has `correct`, `extracted`, `reason` and `explanation`, the reason in words.

    The last box counts, else what follows the last "answer is", else a bare answer. Values are compared, not spellings:
    1/2 = 0.5 = 50%, units and currency are set aside where one side has none, the order of a set is free. Listing
    candidates earns nothing, nor does repeating the problem.

    \b
    Examples:
      strop grade --in cases.jsonl --out verdicts.jsonl
      strop grade --gold 1/2 --prediction "So it is \\boxed{3/6}."
    """
    from strop import grade as room
    from strop.record import UserError

    if gold is not None and prediction is not None and in_ is out is None:
        verdict = room.one(gold, prediction, timeout_s=timeout_s)
        if as_json:
            print_json(verdict)
        else:
            print(f"{verdict['reason']}: {verdict['explanation']}")
        return
    if in_ is None or out is None or gold is not None or prediction is not None:
        raise UserError("write --in FILE --out FILE for a file of cases, or --gold TEXT --prediction TEXT for one")
    counts = room.run(in_, out, workers=workers, timeout_s=timeout_s)
    if as_json:
        print_json(counts)
    else:
        print(room.line(counts, out))


@app.command("audit-rewards")
def audit_rewards(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="REWARD", help="accuracy, number, math-verify, substring, or a function's path."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Grade the answers of these task files instead.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="With --data: answers of each file, drawn.  [default: all]")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes of each reward.")] = 2,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="Seconds allowed for one answer.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Try to fool a reward function, and list what it got wrong.

    Puts it through a table of completions that are right, wrong, or made to fool, hang or break a grader: false accepts,
    false rejects, time-outs, errors. A path is file.py:function or package.module.function, written for TRL or as verl's
    compute_score; `accuracy` is ours, `math-verify` the plain library, `substring` looks for the gold in the text.

    With --data each answer of the files is graded against itself, against equal rewritings of it and against near
    misses, all made by rule.

    \b
    Examples:
      strop audit-rewards
      strop audit-rewards my_rewards.py:correct --json
      strop audit-rewards accuracy math-verify --data data/eval --sample 100
    """
    from strop import audit

    if data is None:
        reports = audit.run(names or ["accuracy", "math-verify", "substring"], workers=workers, timeout_s=timeout_s)
        found, text = audit.as_json(reports), audit.lines(reports)
    else:
        from strop.audit import golds
        from strop.watch import Watch

        files, notes = golds.run(
            data,
            names or ["accuracy", "math-verify"],
            sample=sample,
            workers=workers,
            timeout_s=timeout_s,
            say=Watch().say,
        )
        found, text = golds.as_json(files, notes), golds.lines(files, notes)
    if as_json:
        print_json(found)
    else:
        print("\n".join(text))
