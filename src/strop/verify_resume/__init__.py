"""Proof by doing that a killed run ends as an undisturbed one: the user's recipe, shortened, run whole and run under fire.

`run` runs it once without interruption, and once in processes that are killed outright (SIGKILL) at random moments
and continued, then compares everything that both left behind. Knows how a recipe is shortened and how the verdict is
told; who strikes and when is in `strikes`, what is compared in `same`. Read by the command line and by the tests.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strop import disk
from strop.config import EvaluateStage, Recipe, SftStage, Stage, TrainStage
from strop.record import UserError
from strop.verify_resume import same, strikes
from strop.watch import Watch

__all__ = ["lines", "run", "shortened"]


def shortened(recipe: Recipe, steps: int, *, evaluate: bool = False) -> Recipe:
    """The recipe with at most so many steps a stage, and without its evaluate stages unless asked for.

    A checkpoint and a look at the dev split come every second step, so that some kills leave steps to be replayed; a
    stage that takes another's time takes `steps` steps, and none ends by what it has spent, since time never repeats itself.
    """
    kept = [stage for stage in recipe.stages if evaluate or not isinstance(stage, EvaluateStage)]
    if not any(isinstance(stage, SftStage | TrainStage) for stage in kept):
        raise UserError(
            "the recipe trains nothing, so there is no training to resume; name one with a sft or train stage"
        )
    data = recipe.model_dump(mode="json", by_alias=True) | {"budget": None}
    data["stages"] = [_short(stage, steps) | {"from": recipe.start_of(stage)} for stage in kept]
    return Recipe.model_validate(data)


def _short(stage: Stage, steps: int) -> dict[str, Any]:
    data = stage.model_dump(mode="json", by_alias=True)
    if isinstance(stage, SftStage):
        looks = min(stage.eval_every, 2)
        return data | {"max_steps": min(stage.max_steps, steps), "wall_of": None, "eval_every": looks}
    if isinstance(stage, TrainStage):
        num, critic = min(stage.steps, steps), data["algorithm"]["critic"]
        critic["pretrain_steps"] = min(critic["pretrain_steps"], num - 1)
        looks = min(stage.heldout_every, 2)
        if stage.moves.limits and num <= stage.moves.window_steps:
            data["moves"] = {}  # no move would come in so few steps
        every = {"heldout_every": looks, "checkpoint_every": min(stage.checkpoint_every, 2)}
        return data | {"steps": num, "stop_below": None, **every}
    return data


def run(
    recipe: Recipe, *, out: Path, kills: int = 6, recipe_dir: Path = Path(), watch: Watch | None = None, seed: int = 0
) -> dict[str, Any]:
    """What an undisturbed run and one killed `kills` times left in `out`/whole and `out`/killed, held against each other.

    The recipe is run as it is (`shortened` makes it short). Returns `equal`, `parts` (what was compared), `kills` (the
    phase that each one struck), `resumes` that failed, and the `first_difference` in words, None where there is none.
    Raises UserError where the recipe itself cannot run, or `out` holds something.
    """
    watch = watch or Watch()
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder with --out")
    started = time.perf_counter()
    whole, killed = out / "whole", out / "killed"
    with watch.phase("without interruption"):
        try:
            timeline = strikes.undisturbed(recipe, recipe_dir, whole)
        except UserError:  # a mistake leaves nothing behind
            disk.remove(out)
            raise
    planned = strikes.plan(timeline, kills, random.Random(seed))
    watch.say(f"without interruption: {time.perf_counter() - started:.0f} s; now with {len(planned)} kills")
    with watch.phase("killed and resumed", len(planned), "kills") as bar:
        struck, failed = strikes.under_fire(recipe, recipe_dir, killed, planned, lambda: bar.advance(1))
    if failed is not None:
        parts, first = {}, f"the resume after kill {len(struck)} failed: {failed}"
    else:
        parts = same.parts(whole, killed)
        first = next((part["first_difference"] for part in parts.values() if not part["equal"]), None)
    verdict = {
        "equal": first is None, "first_difference": first, "parts": parts,
        "kills": [{"phase": hit.phase, "after_steps": hit.committed} for hit in struck],
        "kills_by_phase": dict(Counter(hit.phase for hit in struck)), "kills_asked_for": kills,
        "wall_s": round(time.perf_counter() - started, 1), "recipe_hash": recipe.hash,
    }  # fmt: skip
    disk.write_json(out / "verdict.json", verdict)
    return verdict


def lines(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict as a table, and a sentence."""
    by_phase = ", ".join(f"{num} in {phase}" for phase, num in sorted(verdict["kills_by_phase"].items()))
    num = len(verdict["kills"])
    table = [
        f"{name:<12}{'equal' if part['equal'] else 'DIFFERENT':<11}{part['what']}"
        for name, part in verdict["parts"].items()
    ]
    if verdict["equal"]:
        end = f"A run killed {num} times and resumed equals the undisturbed one, bit for bit (measured time apart)."
    else:
        end = f"NOT equal: {verdict['first_difference']}"
    return [f"{'killed':<12}{f'{num} times':<11}{by_phase}", *table, end]
