"""What would fit, and what a budget buys: a small search over a few settings, each with its forecast cost.

Deterministic, in an order that is written down: first what costs nothing (fewer tokens or rows at once), then what changes
the training (adapters, a shorter limit, fewer siblings, fewer steps). Says what to type; changes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from strop.budget import Budget
from strop.config import Recipe, TrainStage, parse_recipe
from strop.record import UserError

if TYPE_CHECKING:
    from strop.plan import Plan

__all__ = ["Proposal", "changed", "propose", "what_would_fit"]

LORA_RANK = 16
MICROBATCHES = (1536, 768, 384)
ROWS = (256, 64, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Settings that keep a recipe within memory and budget, and the plan with them."""

    sets: tuple[str, ...]  # as --set takes them
    plan: Plan

    def lines(self) -> list[str]:
        return [f"--set {text}" for text in self.sets] or ["as it is"]


def changed(recipe: Recipe, sets: Sequence[str]) -> Recipe:
    """The recipe with overrides, checked as any recipe is."""
    return parse_recipe(recipe.model_dump(mode="json", by_alias=True), overrides=sets)


def what_would_fit(recipe: Recipe, made: Callable[[Recipe], Plan]) -> list[str]:
    """A sentence for the first change, in order of how little it changes, with which the plan fits; else what is nearest."""
    tried = []
    for sets in _smaller(recipe):
        plan = made(changed(recipe, sets))
        words = " ".join(f"--set {text}" for text in sets)
        if plan.fits:
            return [f"{words} would take {plan.worst[1].total / 1e9:.1f} GB and fit"]
        tried.append((plan.worst[1].total, words))
    if not tried:
        return ["take a smaller model"]
    least, words = min(tried)
    return [f"nothing tried fits; {words} comes nearest with {least / 1e9:.1f} GB: take a smaller model"]


def _smaller(recipe: Recipe) -> Iterator[list[str]]:
    """From the harmless to the ones that change what is trained."""
    learning = [s for s in recipe.stages if s.do != "evaluate"]
    rows = [f"engine.max_batch={n}" for n in ROWS if n < recipe.engine.max_batch]
    micro = [
        [f"stages.{s.name}.optim.microbatch_tokens={n}" for s in learning if n < s.optim.microbatch_tokens]  # type: ignore[union-attr]
        for n in MICROBATCHES
    ]
    yield from ([text] for text in rows)
    yield from (sets for sets in micro if sets)
    yield from ([*sets, rows[-1]] for sets in micro if sets and rows)
    if learning and not recipe.model.lora.rank:
        lora = f"model.lora.rank={LORA_RANK}"
        yield [lora]
        yield from ([lora, *sets, *rows[-1:]] for sets in micro)


# --- within a budget --------------------------------------------------------------------------------------------------


def propose(recipe: Recipe, budget: Budget, made: Callable[[Recipe], Plan]) -> Proposal:
    """The candidate that keeps most of the recipe within memory and budget, by its likely cost.

    Most: the most sampled rollouts; among equals all weights rather than adapters, then longer limits, then larger groups.
    Raises UserError where none does.
    """
    best: tuple[tuple[float, ...], Proposal] | None = None
    for sets in _candidates(recipe):
        plan = made(changed(recipe, sets))
        spent = _spent(plan, budget)
        if not plan.fits or spent is None:
            continue
        share = min(1.0, 1.0 / spent if spent else 1.0)
        plan, sets = _with_steps(recipe, sets, share, plan, budget, made)
        if plan is None:
            continue
        worth = (*_worth(changed(recipe, sets)), -float(len(sets)))
        if best is None or worth > best[0]:
            best = (worth, Proposal(sets=tuple(sets), plan=plan))
    if best is None:
        raise UserError(
            "no setting that was tried keeps this recipe within the budget; take a smaller model, or a larger budget"
        )
    return best[1]


def _spent(plan: Plan, budget: Budget) -> float | None:
    """The likely cost as a share of the budget; None where it is not known."""
    for limit, range_ in ((budget.usd, plan.usd), (budget.seconds, plan.seconds), (budget.kwh, plan.kwh)):
        if limit is not None:
            return None if range_ is None else range_.likely / limit
    return None


def _candidates(recipe: Recipe) -> Iterator[list[str]]:
    trains = [s for s in recipe.stages if isinstance(s, TrainStage)]
    lora = [[]] if recipe.model.lora.rank or not trains else [[], [f"model.lora.rank={LORA_RANK}"]]
    halves = [[], ["length"], ["group"], ["length", "group"]] if trains else [[]]
    for ranks, what in product(lora, halves):
        sets = list(ranks)
        for s in trains:
            if "length" in what:
                sets.append(f"stages.{s.name}.max_tokens={max(16, s.max_tokens // 2)}")
            if "group" in what and s.group_size >= 4:
                sets.append(f"stages.{s.name}.group_size={s.group_size // 2}")
        yield sets


def _with_steps(
    recipe: Recipe, sets: list[str], share: float, plan: Plan, budget: Budget, made: Callable[[Recipe], Plan]
) -> tuple[Plan | None, list[str]]:
    """As many steps as the budget allows, where all of them do not fit: by halving what is too long, at most 12 times."""
    if share >= 1:
        return plan, sets
    low, high, found = 0.0, 1.0, None
    trains = [s for s in recipe.stages if isinstance(s, TrainStage)]
    for _ in range(12):
        middle = (low + high) / 2
        fewer = [*sets, *(f"stages.{s.name}.steps={max(1, int(s.steps * middle))}" for s in trains)]
        try:
            tried = made(changed(recipe, fewer))
        except UserError:  # a setting that needs more steps than are left
            low = middle
            continue
        spent = _spent(tried, budget)
        if spent is not None and spent <= 1:
            low, found = middle, (tried, fewer)
        else:
            high = middle
    return found if found is not None else (None, sets)


def _worth(recipe: Recipe) -> tuple[float, ...]:
    trains = [s for s in recipe.stages if isinstance(s, TrainStage)]
    rollouts = sum(s.steps * s.prompts_per_step * s.group_size for s in trains)
    return (float(rollouts), float(not recipe.model.lora.rank), float(sum(s.max_tokens for s in trains)))
