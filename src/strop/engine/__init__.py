"""What an engine is: tasks in, rollouts out.

`native` samples in this process from the learner's own weights; `remote` asks a server, which may be one that `vllm`
has started. Only the first can be trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from strop.chat import Budget
from strop.record import Rollout, Task

__all__ = ["Engine", "Sampling", "Served"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn. `top_p` is for evaluation: training would need the truncated softmax."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # below 1: from the fewest words whose probabilities reach it
    max_tokens: int = 256
    exact: bool = True  # matrices multiplied in float32; False: as the policy is trained (`model.matmul`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is known here of a model that another process holds; hashes as in `fingerprint`."""

    name: str  # as the server calls it
    weights: str | None = None
    generation: str | None = None


@runtime_checkable  # beartype asks under pytest
class Engine(Protocol):
    """Writes tokens on tasks."""

    about: str  # what answers, in words, for the record of a run
    served: Served | None  # None: the weights are in this process

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
        """From now on sample from the learner's current weights, which are those of `policy_step`.

        Every rollout then carries their mark (`provenance.mark_of` the trainable ones), taken of what really samples: an engine with a
        copy takes it of the copy; one with a rounded copy, of what was rounded and at the time it was.
        """
        ...
