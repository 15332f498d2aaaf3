"""What the commands share: the application they belong to, the options that mean the same everywhere, exit codes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

__all__ = [
    "DONE",
    "FAULT",
    "MISTAKE",
    "STOPPED",
    "AllowUnsafe",
    "Budget",
    "DryRun",
    "Json",
    "ModelName",
    "Out",
    "RecipeFile",
    "Resume",
    "RunDir",
    "Set",
    "app",
    "leave",
    "print_json",
]

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
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="AMOUNT",
        help="The most the run may spend, all its starts together: 42usd, 2h, 0.5kwh. It then stops in time, with 3.",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Start from this folder or model: --set model.name=MODEL."),
]


def _allow_unsafe(typed: bool) -> bool:
    """Tell the sandbox, here and in the verifier processes, which are started with this environment."""
    if typed:
        from strop.rewards.sandbox import ALLOW_UNSAFE

        os.environ[ALLOW_UNSAFE] = "1"
    return typed


AllowUnsafe = Annotated[
    bool,
    typer.Option(
        "--allow-unsafe-code",
        callback=_allow_unsafe,
        help="Run programs that a model wrote even where no sandbox works. They can then do what you can.",
    ),
]


def print_json(value: Any) -> None:
    """As the last line of stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def leave(sentence: str, code: int) -> NoReturn:
    """End the process with one sentence on stderr."""
    print(sentence, file=sys.stderr)
    raise SystemExit(code)
