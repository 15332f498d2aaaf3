"""Rewards about length: shorter where that costs nothing, or as long as was asked for.

Each is a pure function from a step's judged rollouts and its settings to one value per rollout, in their order. Three
things hold for all of them. A length is the number of tokens that the policy sampled, never of characters. Where the
verdict is not scorable the value is None, and the rollout is in none of its group's statistics. A rollout that the token
limit cut is not right, whatever it had stated by then: it had not come to an end. Read by `rewards.adapters`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Annotated

from pydantic import Field, model_validator

from strop.config import Count, Positive, Section
from strop.record import Rollout
from strop.settings import NoSettings

__all__ = [
    "CosineSettings",
    "LcpoExactSettings",
    "LcpoMaxSettings",
    "LeadSettings",
    "ShortRlSettings",
    "SigmoidSettings",
    "cosine",
    "kimi",
    "lcpo_exact",
    "lcpo_max",
    "lead",
    "short_rl",
    "sigmoid",
]

Values = list[float | None]
# One group: which siblings are right, and how many tokens each has; one value per sibling.
OfGroup = Callable[[list[bool], list[int]], list[float]]


def _is_right(rollout: Rollout) -> bool:
    return rollout.correct and not rollout.truncated


def _each(rollouts: Sequence[Rollout], value: Callable[[Rollout], float | None]) -> Values:
    return [value(rollout) if rollout.scorable else None for rollout in rollouts]


def _in_groups(rollouts: Sequence[Rollout], of_group: OfGroup) -> Values:
    groups: dict[int, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        if rollout.scorable:
            groups.setdefault(rollout.group, []).append(i)
    values: Values = [None] * len(rollouts)
    for places in groups.values():
        siblings = [rollouts[i] for i in places]
        found = of_group([_is_right(r) for r in siblings], [r.num_sampled for r in siblings])
        for i, value in zip(places, found, strict=True):
            values[i] = value
    return values


# --- a rollout by itself ----------------------------------------------------------------------------------------------


class CosineSettings(Section):
    max_tokens: Count | None = None
    """Length at which both curves end. Null: the stage's max_tokens."""
    correct_short: float = 2.0
    """Value of a right answer of no length."""
    correct_long: float = 1.0
    """Value of a right answer of max_tokens; not above correct_short."""
    wrong_short: float = -10.0
    """Value of a wrong answer of no length."""
    wrong_long: float = 0.0
    """Value of a wrong answer of max_tokens; not below wrong_short."""
    exceed: float = -10.0
    """Value of a rollout that is longer than max_tokens or was cut by the token limit, right or wrong."""

    @model_validator(mode="after")
    def _refuse(self) -> CosineSettings:
        if self.correct_long > self.correct_short:
            raise ValueError(
                "correct_long is above correct_short, which would pay right answers for being long; swap them"
            )
        if self.wrong_short > self.wrong_long:
            raise ValueError("wrong_short is above wrong_long, which would pay wrong answers for giving up; swap them")
        return self


def cosine_value(right: bool, num_tokens: int, settings: CosineSettings) -> float:
    """Cosine reward (Demystifying Long CoT, arXiv 2502.03373, section 4.2) of a rollout that ended by itself.

    Half a cosine from the value at no length to the value at `max_tokens`: right answers are worth less the longer
    they are, wrong ones are held less against the model the longer it tried. Longer than that is `exceed`: a cosine
    that went on would rise again.

    >>> paper = CosineSettings(max_tokens=1000)
    >>> [round(cosine_value(True, n, paper), 3) for n in (0, 250, 500, 1000, 1001)]
    [2.0, 1.854, 1.5, 1.0, -10.0]
    >>> [round(cosine_value(False, n, paper), 3) for n in (0, 250, 500, 1000, 1001)]
    [-10.0, -8.536, -5.0, 0.0, -10.0]
    """
    assert settings.max_tokens is not None, "filled from the stage when rewards are loaded"
    if num_tokens > settings.max_tokens:
        return settings.exceed
    short, long = (
        (settings.correct_short, settings.correct_long) if right else (settings.wrong_short, settings.wrong_long)
    )
    return long + (short - long) * 0.5 * (1.0 + math.cos(math.pi * num_tokens / settings.max_tokens))


def cosine(rollouts: Sequence[Rollout], settings: CosineSettings) -> Values:
    """`cosine_value` of each; `exceed` where the token limit cut it."""
    return _each(
        rollouts, lambda r: settings.exceed if r.truncated else cosine_value(_is_right(r), r.num_sampled, settings)
    )


class LcpoExactSettings(Section):
    alpha: Positive = 0.0003
    """What one token of difference from the budget costs."""


def lcpo_exact(rollouts: Sequence[Rollout], settings: LcpoExactSettings) -> Values:
    """LCPO-Exact (L1, arXiv 2503.04697): 1 if right, less alpha for each token that it is off its budget.

    Wrong answers pay for the difference too. None where no length was asked for (`stages.<name>.budget`).
    """

    def value(rollout: Rollout) -> float | None:
        if rollout.budget_tokens is None:
            return None
        return float(_is_right(rollout)) - settings.alpha * abs(rollout.budget_tokens - rollout.num_sampled)

    return _each(rollouts, value)


class LcpoMaxSettings(Section):
    alpha: Positive = 0.0003
    """What one token below the budget earns."""
    delta: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Value of a right answer that has exactly the budget's length."""


def lcpo_max(rollouts: Sequence[Rollout], settings: LcpoMaxSettings) -> Values:
    """LCPO-Max (L1, arXiv 2503.04697): if right, delta + alpha x (budget - length) within [0, 1]; else 0.

    A right answer somewhat over its budget keeps part of its value; far over, it is worth no more than a wrong one. None
    where no length was asked for.
    """

    def value(rollout: Rollout) -> float | None:
        if rollout.budget_tokens is None:
            return None
        spared = settings.alpha * (rollout.budget_tokens - rollout.num_sampled)
        return min(1.0, max(0.0, spared + settings.delta)) if _is_right(rollout) else 0.0

    return _each(rollouts, value)


# --- a rollout among its siblings -------------------------------------------------------------------------------------


def _place(num_tokens: int, among: Sequence[int]) -> float:
    """0.5 for the shortest of them, -0.5 for the longest, a straight line between (Kimi's lambda)."""
    return 0.5 - (num_tokens - min(among)) / (max(among) - min(among))


def kimi_values(right: Sequence[bool], lengths: Sequence[int]) -> list[float]:
    """Kimi k1.5's length reward (arXiv 2501.12599, section 2.3.3) of one group, in [-0.5, 0.5].

    0.5 for the shortest of all siblings down to -0.5 for the longest; a wrong one gets at most 0, so that it is never
    paid for being short. 0 for all where all are equally long.

    >>> kimi_values([True, True, False, False], [100, 200, 100, 300])
    [0.5, 0.0, 0.0, -0.5]
    """
    if min(lengths) == max(lengths):
        return [0.0] * len(lengths)
    places = [_place(n, lengths) for n in lengths]
    return [place if ok else min(0.0, place) for ok, place in zip(right, places, strict=True)]


def kimi(rollouts: Sequence[Rollout], settings: NoSettings) -> Values:
    return _in_groups(rollouts, kimi_values)


class ShortRlSettings(Section):
    tolerance_tokens: Annotated[int, Field(ge=0)] = 100
    """Right answers up to this much longer than the shortest right one are not touched (the authors: 200 for logic)."""


def short_rl_values(right: Sequence[bool], lengths: Sequence[int], tolerance_tokens: int) -> list[float]:
    """Short-RL (arXiv 2505.12284) of one group, in [-0.5, 0.5]: 0.5 if right and about as short as the shortest right one.

    Beyond the tolerance it is Kimi's straight line between the shortest and the longest *right* sibling; wrong is 0.
    The paper switches it on while accuracy holds: `accuracy_tolerance` of the recipe's reward.

    >>> short_rl_values([True, True, True, False], [100, 180, 300, 50], 100)
    [0.5, 0.5, -0.5, 0.0]
    """
    own = [n for ok, n in zip(right, lengths, strict=True) if ok]
    near = min(own, default=0) + tolerance_tokens
    return [
        0.0 if not ok else 0.5 if n <= near else _place(n, own)  # beyond `near` the longest is not the shortest
        for ok, n in zip(right, lengths, strict=True)
    ]


def short_rl(rollouts: Sequence[Rollout], settings: ShortRlSettings) -> Values:
    return _in_groups(rollouts, lambda right, lengths: short_rl_values(right, lengths, settings.tolerance_tokens))


def _standing(right: Sequence[bool], lengths: Sequence[int]) -> list[float]:
    """Each length less the mean of the right ones, in their standard deviations (n - 1); 0 where there is no spread."""
    own = [n for ok, n in zip(right, lengths, strict=True) if ok]
    spread = stdev(own) if len(own) > 1 else 0.0
    if not spread:
        return [0.0] * len(lengths)
    mean = fmean(own)
    return [(n - mean) / spread for n in lengths]


class LeadSettings(Section):
    alpha: Annotated[float, Field(ge=0)] = 0.05
    """How steeply the value of a right answer falls with its length."""
    wrong: float = -1.0
    """Value of a wrong answer."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Lengths count only in groups whose three shortest rollouts average more than this (the authors' code: 4000)."""


def lead_values(right: Sequence[bool], lengths: Sequence[int], settings: LeadSettings) -> list[float]:
    """GRPO-LEAD (arXiv 2504.09696) of one group: exp(-alpha z) if right, `wrong` otherwise.

    z is the length less the mean of the right siblings', in their standard deviations.

    >>> [round(v, 3) for v in lead_values([True, True, True, False], [100, 200, 300, 50], LeadSettings())]
    [1.051, 1.0, 0.951, -1.0]
    """
    if fmean(sorted(lengths)[:3]) <= settings.min_tokens:
        return [1.0 if ok else settings.wrong for ok in right]
    standing = _standing(right, lengths)
    return [math.exp(-settings.alpha * z) if ok else settings.wrong for ok, z in zip(right, standing, strict=True)]


def lead(rollouts: Sequence[Rollout], settings: LeadSettings) -> Values:
    return _in_groups(rollouts, lambda right, lengths: lead_values(right, lengths, settings))


class SigmoidSettings(Section):
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """How much of its value a right answer can lose by being long: the dial between accuracy and length."""


def sigmoid_values(right: Sequence[bool], lengths: Sequence[int], alpha: float) -> list[float]:
    """Arora and Zanette (arXiv 2502.04463) of one group: 1 - alpha x sigmoid(z) if right, 0 if wrong; z as in LEAD.

    >>> [round(v, 3) for v in sigmoid_values([True, True, True, False], [100, 200, 300, 50], 0.1)]
    [0.973, 0.95, 0.927, 0.0]
    """
    standing = _standing(right, lengths)
    return [1.0 - alpha / (1.0 + math.exp(-z)) if ok else 0.0 for ok, z in zip(right, standing, strict=True)]


def sigmoid(rollouts: Sequence[Rollout], settings: SigmoidSettings) -> Values:
    return _in_groups(rollouts, lambda right, lengths: sigmoid_values(right, lengths, settings.alpha))
