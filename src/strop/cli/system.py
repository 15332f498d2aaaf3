"""Commands about the machine: what it can do, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strop.cli.options import Json, app, print_json

__all__ = ["BENCH_NAMES"]


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
        print_json({"findings": room.as_json(findings)})
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
    "curate",
    "plan",
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
        print_json(result)
    else:
        print(room.table({name: result}))
