"""What a recipe will do, in counts: rollouts, tokens of prompts and completions, answers, updates.

What a recipe does not say is assumed here, by name, with a lowest and a highest value; `strop plan --like RUN` takes it
from what an earlier run has logged. Knows no machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from strop import disk
from strop.config import EvaluateStage, Recipe, Stage, TrainStage
from strop.plan.packing import Number
from strop.record import Task, UserError
from strop.tasks import TaskSplits

__all__ = ["Assumed", "Range", "Work", "assumed", "like", "work_of"]

PIECE = re.compile(r"[^\W\d]{1,7}|\d| (?=\d)|[^\w\s]|\n")  # about what a tokenizer of today makes one token of
TEMPLATE_TOKENS, TURN_TOKENS = 10, 5  # in front of a problem, and behind it
NO_TASKS_PROMPT = 160  # tokens of a problem where no task can be looked at
NO_TASKS_SOLUTION = 200
HELDOUT, DEV = 256, 64  # where the recipe leaves it to the source


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Lowest, likely and highest."""

    low: Number
    likely: Number
    high: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What a recipe does not say."""

    length: Range = field(default_factory=lambda: Range(low=0.25, likely=0.5, high=1.0))
    """Mean completion as a share of its limit."""
    signal: Range = field(default_factory=lambda: Range(low=0.5, likely=0.8, high=1.0))
    """Share of groups that are learned from: those whose rewards differ."""
    source: str = "assumed"

    def words(self) -> list[str]:
        return [
            f"completions of {_share(self.length)} of their limit ({self.source})",
            f"{_share(self.signal)} of the groups have signal ({self.source})",
        ]


def _share(range_: Range) -> str:
    return f"{range_.likely:.0%} ({range_.low:.0%} to {range_.high:.0%})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One stage. Tokens of prompts count the template; `prefix` of them all prompts begin with."""

    stage: Stage
    prompt_tokens: int  # on average
    longest_prompt: int
    prefix_tokens: int
    num_heldout: int
    num_dev: int
    solution_tokens: int


def assumed() -> Assumed:
    return Assumed()


def like(run: Path) -> Assumed:
    """As an earlier run has it: mean length, and the share of groups with signal, over its logged steps.

    Raises UserError for a folder that holds no such steps.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"--like {run}: no run directory with metrics.jsonl is there")
    rows, _ = disk.read_lines(path)
    steps = [row for row in rows if row.get("kind") == "train" and row.get("completions/mean_length")]
    if not steps:
        raise UserError(f"--like {run}: it has made no training step yet, so it says no lengths")
    shares = [row["completions/mean_length"] / row["max_tokens"] for row in steps]
    signal = [1 - row.get("frac_reward_zero_std", 0.0) for row in steps]
    return Assumed(length=_spread(shares), signal=_spread(signal), source=f"as in {run.name}, {len(steps)} steps")


def _spread(values: Sequence[Number]) -> Range:
    """The mean, and a sixth either way: what another seed may bring."""
    mean = fmean(values)
    return Range(low=mean * 5 / 6, likely=mean, high=min(1.0, mean * 7 / 6))


def work_of(recipe: Recipe, splits: Mapping[str, TaskSplits] | None = None) -> list[Work]:
    """Every stage of a recipe; where its tasks are at hand, their number and length are theirs."""
    return [_of_stage(stage, recipe, splits or {}) for stage in recipe.stages]


def _of_stage(stage: Stage, recipe: Recipe, splits: Mapping[str, TaskSplits]) -> Work:
    names = list(stage.tasks)
    opening = TEMPLATE_TOKENS + _tokens(recipe.chat.system) + _tokens(recipe.chat.prefill)
    problems = [_tokens(task.prompt) for name in names if name in splits for task in _asked(stage, splits[name])]
    solutions = [
        _tokens(text) for name in names if name in splits for task in splits[name].train for text in task.solutions
    ]
    mean = round(fmean(problems)) if problems else NO_TASKS_PROMPT
    most = min(recipe.engine.max_prompt_tokens, opening + TURN_TOKENS + max(problems, default=2 * NO_TASKS_PROMPT))
    if isinstance(stage, TrainStage) and stage.budget.tokens is not None:
        mean += 8  # "Think for maximum 512 tokens."
    return Work(
        stage=stage, prompt_tokens=min(most, opening + TURN_TOKENS + mean), longest_prompt=most, prefix_tokens=opening,
        num_heldout=sum(_count(recipe, splits, name, "heldout", HELDOUT) for name in names),
        num_dev=sum(_count(recipe, splits, name, "dev", DEV) for name in names),
        solution_tokens=1 + round(fmean(solutions)) if solutions else NO_TASKS_SOLUTION,
    )  # fmt: skip


def _asked(stage: Stage, splits: TaskSplits) -> list[Task]:
    return splits.heldout if isinstance(stage, EvaluateStage) else splits.train


def _count(recipe: Recipe, splits: Mapping[str, TaskSplits], name: str, part: str, default: int) -> int:
    if name in splits:
        return len(getattr(splits[name], part))
    said = getattr(recipe.tasks[name], part)
    return default if said is None else said


def _tokens(text: str) -> int:
    """
    >>> _tokens("Compute 27 + 48."), _tokens("a knight says that")
    (9, 4)
    """
    return len(PIECE.findall(text))
