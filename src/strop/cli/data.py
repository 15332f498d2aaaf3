"""Commands that make data to train on."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from strop.cli.options import STOPPED, AllowUnsafe, DryRun, Json, Set, app, leave, print_json
from strop.cli.recipes import stop_on_ctrl_c

__all__: list[str] = []


@app.command()
def curate(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe with a pool; see recipes/curate-local.yaml.")
    ] = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to.  [default: runs/<recipe>]")
    ] = None,
    ray: Annotated[
        str,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Measure rows on a Ray cluster: auto for this machine's, HOST:PORT, or local. Needs the extra ray.",
        ),
    ] = "",
    as_json: Json = False,
    dry_run: DryRun = False,
    allow_unsafe_code: AllowUnsafe = False,
    show_topics: Annotated[
        bool, typer.Option("--topics", help="Print the topics that a filter knows and leave.")
    ] = False,
) -> None:
    """Make a training set of raw problems: every row is kept, or dropped with a reason.

    Writes train.parquet (and heldout.parquet), fates.parquet with what became of every row, listed/ with pairs to look at,
    and card.html. In a folder that was used before, stages whose rows, settings and code are the same are not done again;
    so the same command goes on after Ctrl-C, which exits with 3.

    \b
    Examples:
      strop curate recipes/curate-local.yaml --set pool=a.jsonl,b.parquet --set against=math_500,own-test.jsonl
      strop curate recipes/curate-local.yaml --set pool=a.jsonl --set against=all --set data=./data --out runs/pool
      strop curate recipes/curate-local.yaml --set pool=a.jsonl --set against=all --set stages.duplicates.jaccard=0.9
      strop curate recipes/curate-local.yaml --set pool=huge.parquet --set against=all --ray auto
      strop distill runs/pool/train.parquet --teacher ./big-model --out runs/taught
    """
    from strop import config
    from strop import curate as room
    from strop.record import UserError
    from strop.report import card
    from strop.watch import Watch

    if show_topics:
        print("\n".join(f"{name}: {about}" for name, about in room.known_topics().items()))
        return
    if recipe is None:
        raise UserError("name a recipe: strop curate recipes/curate-local.yaml --set pool=FILE --set against=all")
    curation = config.load_curation(recipe, set_ or [])
    watch = Watch()
    watch.say(f"{recipe}: load, {', '.join(stage.do for stage in curation.stages)}")
    if dry_run:
        checks = room.check(curation, watch)
        print(curation.to_yaml(), end="")
        if as_json:
            print_json({"recipe": curation.model_dump(mode="json"), "recipe_hash": curation.hash, **checks})
        return
    out = out or Path("runs") / recipe.stem
    with stop_on_ctrl_c("stopping after this batch; what is decided is kept") as stop_requested:
        summary = room.run(
            curation, out=out, watch=watch, stop_requested=stop_requested, ray=ray,
            command=shlex.join(["strop", *sys.argv[1:]]),
        )  # fmt: skip
    if not summary["finished"]:
        leave(f"strop: stopped; the same command with --out {out} goes on from here", STOPPED)
    page = card.run(out)
    if as_json:
        print_json(summary)
    else:
        print("\n".join(room.result_lines(summary)))
    watch.say(f"data card: {page.resolve()}")
