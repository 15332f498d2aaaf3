"""What changes from step to step by a fixed rule: learning rate, an adaptive entropy bonus, what a reward's term weighs.

Pure functions of a counter, the recipe and the rows that were logged, so that a resume needs no state of its own. Read
by the learner and the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from strop.config import Algorithm, Optim, RewardSpec

__all__ = ["ACCURACY_STEPS", "adapted", "holds_accuracy", "learning_rate", "reward_weight"]

ENTROPY_COEF_MAX, ENTROPY_DELTA = 1.0, 0.005  # as TRL
ACCURACY_STEPS = 5  # accuracy of one step is too noisy to open and shut a gate by


def learning_rate(update: int, optim: Optim) -> float:
    """Learning rate of optimizer update number `update` (from 0): linear warm-up, then constant.

    The first update takes one part of `warmup_steps`, not zero, so that no update is wasted.

    >>> [learning_rate(u, Optim(lr=1e-5, warmup_steps=4)) for u in (0, 1, 3, 4, 1000)]
    [2.5e-06, 5e-06, 1e-05, 1e-05, 1e-05]
    >>> learning_rate(0, Optim(lr=1e-5))
    1e-05
    """
    return optim.lr * min(1.0, (update + 1) / max(1, optim.warmup_steps))


def adapted(algorithm: Algorithm, rows: Sequence[Mapping[str, Any]]) -> Algorithm:
    """The algorithm of the next step, given the "train" rows of the stage's earlier ones: its entropy bonus adapts.

    With `entropy_target` the coefficient grows by 0.005 after every step whose entropy was at or below the target
    and shrinks after every other, within [0, 1]; it acts only in a step that follows one of the first kind (Skywork-OR1,
    arXiv 2505.22312).

    >>> algorithm = Algorithm(entropy_coef=0.01, entropy_target=0.5)
    >>> [adapted(algorithm, [{"entropy": e} for e in seen]).entropy_coef for seen in ([], [0.4], [0.4, 0.6])]
    [0.01, 0.015, 0.0]
    """
    if algorithm.entropy_target is None:
        return algorithm
    coef, acts = algorithm.entropy_coef, True
    for row in rows:
        if (entropy := row.get("entropy")) is not None:  # a step without an update has none
            acts = entropy <= algorithm.entropy_target
            coef = min(ENTROPY_COEF_MAX, max(0.0, coef + (1 if acts else -1) * ENTROPY_DELTA))
    return algorithm.model_copy(update={"entropy_coef": coef if acts else 0.0})


def reward_weight(spec: RewardSpec, step: int, history: Sequence[Mapping[str, Any]]) -> float:
    """What a term of the reward weighs at a step (from 1), given the stage's earlier "train" rows, oldest first.

    A straight line from `weight` at step 1 to `until_weight` at step `over_steps` + 1, and that from then on; 0 in steps
    where accuracy does not hold (`accuracy_tolerance`).

    >>> warmed_up = RewardSpec(name="kimi", weight=0.0, until_weight=1.0, over_steps=4)
    >>> [reward_weight(warmed_up, step, []) for step in (1, 2, 5, 100)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if spec.accuracy_tolerance is not None and not holds_accuracy(
        [row["accuracy"] for row in history], spec.accuracy_tolerance
    ):
        return 0.0
    if spec.until_weight is None or spec.over_steps is None:
        return spec.weight
    share = min(1.0, (step - 1) / spec.over_steps)
    return (1.0 - share) * spec.weight + share * spec.until_weight


def holds_accuracy(accuracy: Sequence[float], tolerance: float) -> bool:
    """Whether the mean of the last 5 accuracies is at most `tolerance` below the best such mean (after Short-RL).

    False until there are 5: nothing is known of them yet.

    >>> rising, fallen = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.6, 0.6, 0.6, 0.6, 0.2]
    >>> holds_accuracy(rising[:4], 0.05), holds_accuracy(rising, 0.05), holds_accuracy(fallen, 0.05)
    (False, True, False)
    """
    ends = range(ACCURACY_STEPS, len(accuracy) + 1)
    means = [fmean(accuracy[end - ACCURACY_STEPS : end]) for end in ends]
    return bool(means) and means[-1] >= max(means) - tolerance
