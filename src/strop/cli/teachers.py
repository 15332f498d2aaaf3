"""Commands that make training data of a teacher's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from strop.cli.options import AllowUnsafe, Budget, Json, Resume, Set, app, print_json
from strop.cli.recipes import leave_stopped, stop_on_ctrl_c, typed

__all__ = []


@app.command()
def distill(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="TARGET...", help="A recipe, or task files, gym:<family>, arithmetic, knights."),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher", metavar="TEACHER", help="A folder, id, RUN or RUN:STAGE; a URL ending in /v1; solver."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where train.parquet and the answers go.")],
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Answers asked for each task.  [default: 4]")
    ] = None,
    keep: Annotated[
        Literal["shortest", "diverse", "all"], typer.Option("--keep", help="Of a task's right answers.")
    ] = "shortest",
    max_per_task: Annotated[
        int | None,
        typer.Option(
            "--max-per-task", min=1, help="Answers kept of a task.  [default: shortest 1, diverse 4, all no limit]"
        ),
    ] = None,
    balance: Annotated[
        bool,
        typer.Option("--balance/--no-balance", help="No more easy tasks than the fuller of the other two bins has."),
    ] = True,
    language: Annotated[
        str, typer.Option("--language", metavar="CODE", help="Answers with words of another script are dropped.")
    ] = "en",
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="NAME", help="Ask only this task set of a recipe. Repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Training tasks of each set, at most.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Token limit of an answer.  [default: 1024]")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="[default: 0.6]")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="[default: 0.95]")] = None,
    teacher_model: Annotated[
        str | None, typer.Option("--teacher-model", metavar="NAME", help="Where the URL serves several models.")
    ] = None,
    usd_per_mtok: Annotated[
        str | None,
        typer.Option(
            "--usd-per-mtok", metavar="IN,OUT", help="Dollars for a million tokens, of prompts and of answers."
        ),
    ] = None,
    budget: Budget = None,
    set_: Set = None,
    resume: Resume = False,
    as_json: Json = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Collect a teacher's right answers to training tasks, for strop sft.

    Held-out and dev tasks are never asked. An answer is kept where it is judged right, whole, in one language and no loop;
    of a task the shortest are, or the most different (greedily the one farthest from those chosen, by the overlap of
    3-word runs), or all. Easy tasks, passed more than 3 times in 4, are cut to the number of others. fates.jsonl says what
    became of each answer, train.parquet is the task set. With --resume nothing is asked twice, and other rules choose anew.

    \b
    Examples:
      strop distill recipes/quickstart.yaml --teacher ./big-model --samples 8 --tasks hard --out data/hard
      strop distill own.jsonl --teacher http://localhost:8000/v1 --keep diverse --usd-per-mtok 0.5,1.5 --out data/own
      strop distill own.jsonl --teacher ./big-model --budget 2h --out data/own
      strop distill knights --limit 2000 --teacher solver --out data/knights
      strop sft my-sft.yaml --set tasks.own.source=data/own/train.parquet
    """
    from strop import distill as room
    from strop import pipeline
    from strop import targets as named
    from strop.watch import Watch

    watch = Watch()
    stage = {"samples": samples, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    recipe = named.distillation(
        targets, teacher, stage=stage, teacher_model=teacher_model, only=tasks or (), limit=limit, overrides=typed(set_, budget=budget),
        say=watch.say,
    )  # fmt: skip
    most = max_per_task if max_per_task is not None else room.DEFAULT_MOST[keep]
    rules = room.Rules(keep=keep, most=most, balance=balance, language=language)
    job = room.Job(recipe=recipe, rules=rules, usd_per_mtok=_prices(usd_per_mtok))
    with stop_on_ctrl_c() as stop_requested:
        summary = room.run(
            job, out=out, open_tools=pipeline.open_tools, resume=resume, watch=watch, stop_requested=stop_requested
        )
    if as_json:
        print_json(summary)
    elif summary["finished"]:
        print("\n".join(room.lines(summary, out)))
    if not summary["finished"]:
        leave_stopped(summary)


def _prices(text: str | None) -> tuple[float, float] | None:
    """Of prompt and answer tokens. Raises UserError for anything but two numbers."""
    from strop.record import UserError

    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--usd-per-mtok {text}: write two prices, for example 0.5,1.5") from None
    if not (0 <= first < 1e6 and 0 <= second < 1e6):
        raise UserError(f"--usd-per-mtok {text}: a price is a number of dollars, 0 or more")
    return first, second
