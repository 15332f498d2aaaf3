"""The command line: parses, calls the function `run` of the room with the command's name, prints what it returns.

Knows options, exit codes and where text goes: progress and complaints to stderr, results to stdout, and with --json
one JSON object as the last line of stdout. Heavy rooms are imported inside the commands, so that help is instant.
Exit codes: 0 done; 1 our fault (a traceback); 2 the user's mistake (one sentence); 3 stopped with the run left
resumable (Ctrl-C, a full disk, a broken verifier, a loss that is not finite, a sampler that is not the
policy, harm that the guard could not prevent). A second Ctrl-C aborts at once and exits with 130.

A file for each kind of command: `recipes` (what trains or answers), `plan` (what that will cost), `resume` (what goes on), `data` (what makes a training set of a pool), `teachers`
(what makes one of answers), `runs` (what looks at answers), `samples` (what looks into many answers of a model: probes),
`system` (the machine).
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

import strop
from strop.cli import data, plan, recipes, resume, runs, samples, system, teachers  # noqa: F401  importing a file makes its commands known to `app`
from strop.cli.options import FAULT, MISTAKE, STOPPED, app, leave
from strop.process import keep_freed_memory, wait_at_barriers
from strop.redact import redact

__all__ = ["app", "main"]


def main() -> None:
    """The console script: what was asked, and an exit code."""
    wait_at_barriers()
    keep_freed_memory()
    try:
        app()
    except Exception as error:  # noqa: BLE001  the last frame of the process: the one place that sees every exception
        if (code := _code_of(error)) == FAULT:
            print(redact(traceback.format_exc()), file=sys.stderr, end="")
            leave("strop: this is our fault, not yours; committed steps are safe, and --resume goes on", FAULT)
        leave(f"strop: {redact(str(error))}", code)


def _code_of(error: Exception) -> int:
    """What an exception means to the one who typed the command."""
    from strop.disk import DiskFull  # imported here: these know numpy and pyarrow, and help must be instant
    from strop.record import UserError
    from strop.rewards import VerifierBroken

    stops = [DiskFull, VerifierBroken]
    # These rooms know torch, or are read by those that do: never imported, they raised nothing.
    for room, name in (
        ("learner", "NonFinite"), ("provenance", "Mismatch"), ("guard", "Collapsed"), ("headroom", "OutOfRoom"),
    ):  # fmt: skip
        if (module := sys.modules.get(f"strop.{room}")) is not None:
            stops.append(getattr(module, name))
    if isinstance(error, tuple(stops)):
        return STOPPED
    return MISTAKE if isinstance(error, UserError) else FAULT


@app.callback(invoke_without_command=True)
def _strop(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        print(f"strop {strop.__version__}")
        raise typer.Exit
