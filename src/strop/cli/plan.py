"""The command that says what a recipe will cost, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strop.cli.options import Json, RecipeFile, Set, app, print_json


@app.command()
def plan(
    recipe: RecipeFile,
    set_: Set = None,
    on: Annotated[
        str, typer.Option("--on", metavar="MACHINE", help="this, a40, rtx3090, rtx4090, l4, l40s, a100, h100, h200.")
    ] = "this",
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="AMOUNT", help="42usd, 2h, 90min, 0.5kwh: propose what it buys.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="RUN", help="Take lengths and signal from this run's log.")
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option("--usd-per-hour", min=0, help="Your price, in place of the table's.")
    ] = None,
    watts: Annotated[float | None, typer.Option("--watts", min=0, help="Your power, in place of the table's.")] = None,
    again: Annotated[bool, typer.Option("--calibrate", help="Measure this machine anew.")] = False,
    as_json: Json = False,
) -> None:
    """Forecast memory by part, time by phase, tokens, money and energy of a recipe; runs nothing of it.

    The first time this machine is measured, for a minute at most. What is assumed is printed; docs/plan.md says how far
    forecasts were off. Figures for another machine come from a dated table and are not measured.

    \b
    Examples:
      strop plan recipes/quickstart.yaml
      strop plan recipes/quickstart.yaml --like runs/quickstart --usd-per-hour 0.10
      strop plan recipes/my-task.yaml --on a40 --budget 42usd
      strop plan recipes/quickstart.yaml --set model.lora.rank=16 --json
    """
    from strop import budget as budgets
    from strop import config
    from strop import plan as room
    from strop.watch import Watch

    watch = Watch()
    limit = None if budget is None else budgets.parse(budget)
    asked = config.load_recipe(recipe, set_ or [])
    settings = {"on": on, "like": like, "usd_per_hour": usd_per_hour, "watts": watts, "say": watch.say}
    splits = room.tasks_at_hand(asked, say=watch.say)
    found = room.run(asked, splits=splits, again=again, **settings)
    proposal = None if limit is None else room.within(asked, limit, splits=splits, **settings)
    if as_json:
        proposed = None if proposal is None else {"set": list(proposal.sets), "plan": proposal.plan.as_dict()}
        print_json(found.as_dict() | {"lines": found.lines(), "proposal": proposed})
        return
    print("\n".join(found.table()))
    if proposal is not None:
        print("\n".join(["", f"within {budget}:", *(f"  {x}" for x in [*proposal.lines(), *proposal.plan.lines()])]))
