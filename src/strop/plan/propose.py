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
from strop.config import EvaluateStage, Recipe, TrainStage, parse_recipe
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


def what_would_fit(recipe: Recipe, made: Callable[[Recipe], Plan], *, on_gpu: bool = False) -> list[str]:
    """A sentence for the first change, in order of how little it changes, with which the plan fits; else what is nearest."""
    tried = []
    for sets in _smaller(recipe, on_gpu):
        if (plan := _planned(recipe, sets, made)) is None:
            continue
        words = " ".join(f"--set {text}" for text in sets)
        if plan.fits:
            return [f"{words} would take {plan.worst[1].total / 1e9:.1f} GB and fit"]
        tried.append((plan.worst[1].total, words))
    if not tried:
        return ["take a smaller model"]
    least, words = min(tried)
    return [f"nothing tried fits; {words} comes nearest with {least / 1e9:.1f} GB: take a smaller model"]


def _planned(recipe: Recipe, sets: Sequence[str], made: Callable[[Recipe], Plan]) -> Plan | None:
    """None where the recipe cannot have these settings together with its own."""
    try:
        asked = changed(recipe, sets)
    except UserError:
        return None
    return made(asked)


def _smaller(recipe: Recipe, on_gpu: bool) -> Iterator[list[str]]:
    """From the harmless to the ones that change what is trained."""
    learning = [s for s in recipe.stages if not isinstance(s, EvaluateStage)]
    rows = [f"engine.max_batch={n}" for n in ROWS if n < recipe.engine.max_batch]
    micro = [
        [f"stages.{s.name}.optim.microbatch_tokens={n}" for s in learning if n < s.optim.microbatch_tokens]
        for n in MICROBATCHES
    ]
    least = _least(recipe)
    yield from ([text] for text in rows)
    yield from (sets for sets in micro if sets)
    if rows and micro[-1]:
        yield least
    if not learning:
        return
    lora = [] if recipe.model.lora.rank else [f"model.lora.rank={LORA_RANK}"]
    if lora:
        yield from (lora, [*lora, *least])
    if on_gpu and recipe.model.dtype == "float32":  # on a CPU such weights are slow
        yield from ([*lora, "model.dtype=bfloat16"], [*lora, "model.dtype=bfloat16", *least])
    shorter = [f"stages.{s.name}.max_tokens={max(16, s.max_tokens // 2)}" for s in learning]
    yield [*lora, *least, *shorter]


def _least(recipe: Recipe) -> list[str]:
    """The fewest tokens and rows at once that are tried."""
    learning = [s for s in recipe.stages if not isinstance(s, EvaluateStage)]
    tokens, rows = MICROBATCHES[-1], ROWS[-1]
    sets = [f"stages.{s.name}.optim.microbatch_tokens={tokens}" for s in learning if tokens < s.optim.microbatch_tokens]
    return [*sets, *([f"engine.max_batch={rows}"] if rows < recipe.engine.max_batch else [])]


# --- within a budget --------------------------------------------------------------------------------------------------


def propose(recipe: Recipe, budget: Budget, made: Callable[[Recipe], Plan]) -> Proposal:
    """The candidate that keeps most of the recipe within memory and budget, by its likely cost.

    Most: the most rollouts; among equals all weights rather than adapters, unrounded weights, then longer limits, then fewer
    settings. Raises UserError where none does.
    """
    best: tuple[tuple[float, ...], Proposal] | None = None
    on_gpu = made(recipe).on != "this"
    for sets in _candidates(recipe, on_gpu):
        plan = _planned(recipe, sets, made)
        if plan is not None and not plan.fits:  # the same with fewer tokens and rows at once, which changes no number
            sets = [*sets, *_least(recipe)]
            plan = _planned(recipe, sets, made)
        if plan is None or not plan.fits or (spent := _spent(plan, budget)) is None:
            continue
        if spent > 1:
            found = _with_fewer_steps(recipe, sets, budget, made)
            if found is None:
                continue
            plan, sets = found
        worth = (*_worth(changed(recipe, sets)), -float(len(sets)))
        if best is None or worth > best[0]:
            best = worth, Proposal(sets=tuple(sets), plan=plan)
    if best is None:
        raise UserError(
            "no setting that was tried keeps this recipe within memory and budget; take a smaller model, or a larger budget"
        )
    return best[1]


def _spent(plan: Plan, budget: Budget) -> float | None:
    """The likely cost as a share of what the budget has least of; None where it is not known."""
    pairs = ((budget.usd, plan.usd), (budget.seconds, plan.seconds), (budget.kwh, plan.kwh))
    asked = [(limit, range_) for limit, range_ in pairs if limit is not None]
    shares = [range_.likely / limit for limit, range_ in asked if range_ is not None]
    return max(shares) if len(shares) == len(asked) else None


def _candidates(recipe: Recipe, on_gpu: bool) -> Iterator[list[str]]:
    """Adapters or not, rounded weights or not, limits, groups and batches as they are or half as large."""
    trains = [s for s in recipe.stages if isinstance(s, TrainStage)]
    ranks = [[]] if recipe.model.lora.rank or not trains else [[], [f"model.lora.rank={LORA_RANK}"]]
    types = [[], ["model.dtype=bfloat16"]] if on_gpu and recipe.model.dtype == "float32" else [[]]
    halves: list[list[str]] = [[], ["max_tokens"]]
    halves += [[*some, "group_size"] for some in halves]
    halves += [[*some, "prompts_per_step"] for some in halves]
    for rank, type_, what in product(ranks, types, halves if trains else [[]]):
        if type_ and not (rank or recipe.model.lora.rank):
            continue  # refused: small updates would be rounded away
        least = {"max_tokens": 16, "group_size": 2}
        yield [*rank, *type_, *(
            f"stages.{s.name}.{key}={max(least.get(key, s.updates_per_step), getattr(s, key) // 2)}"
            for s in trains for key in what
        )]  # fmt: skip


def _with_fewer_steps(
    recipe: Recipe, sets: list[str], budget: Budget, made: Callable[[Recipe], Plan]
) -> tuple[Plan, list[str]] | None:
    """As many steps as the budget allows, found by halving; None where not even one does."""
    trains = [s for s in recipe.stages if isinstance(s, TrainStage)]
    low, high, found = 0.0, 1.0, None
    for _ in range(10):
        middle = (low + high) / 2
        fewer = [*sets, *(f"stages.{s.name}.steps={max(1, int(s.steps * middle))}" for s in trains)]
        plan = _planned(recipe, fewer, made)
        if plan is None:  # a setting of the stage needs more steps
            low = middle
            continue
        spent = _spent(plan, budget)
        if spent is not None and spent <= 1:
            low, found = middle, (plan, fewer)
        else:
            high = middle
    return found


def _worth(recipe: Recipe) -> tuple[float, ...]:
    trains = [s for s in recipe.stages if isinstance(s, TrainStage)]
    rollouts = sum(s.steps * s.prompts_per_step * s.group_size for s in trains)
    exact = recipe.model.dtype == "float32"
    return float(rollouts), float(not recipe.model.lora.rank), float(exact), float(sum(s.max_tokens for s in trains))
