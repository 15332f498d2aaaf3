"""What an engine is: tasks in, rollouts out. `native` samples in this process from the learner's own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from strop.chat import Budget
from strop.record import Rollout, Task

__all__ = ["Engine", "Sampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn. No top-p or top-k: training would need the truncated softmax (findings, trap 4)."""

    temperature: float = 1.0  # 0 is greedy
    max_tokens: int = 256
    exact: bool = True  # matrices multiplied in float32; False: as the policy is trained (`model.matmul`)


@runtime_checkable  # beartype asks under pytest
class Engine(Protocol):
    """Writes tokens on tasks."""

    def generate(
        self,
        tasks: Sequence[Task],
        *,
        num_samples: int,
        sampling: Sampling,
        seed_path: tuple[int | str, ...],
        budgets: Sequence[Budget] | None = None,
        on_done: Callable[[Rollout], None] | None = None,
    ) -> list[Rollout]:
        """`num_samples` rollouts of each task, ordered by task, then sample; `group` is the place of the task.

        `budgets`, one a task, are lengths that the prompts ask for; the rollouts keep them as `budget_tokens`.
        Each rollout's randomness depends on (seed_path, task, sample) alone, not on what else is in the batch.
        """
        ...

    def load(self, policy_step: int) -> None:
        """From now on sample from the learner's current weights, which are those of `policy_step`."""
        ...
