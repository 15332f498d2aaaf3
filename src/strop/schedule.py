"""What changes from step to step by a fixed rule: the learning rate, an adaptive entropy bonus.

Pure functions of a counter or the logged rows, and the recipe, so that a resume needs no state of its own. Read by the
learner and the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strop.config import Algorithm, Optim

__all__ = ["adapted", "learning_rate"]

ENTROPY_COEF_MAX = 1.0


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

    With `entropy_target` the coefficient grows by `entropy_delta` after every step whose entropy was at or below the target
    and shrinks after every other, within [0, 1]; it acts only in a step that follows one of the first kind (Skywork-OR1,
    arXiv 2505.22312).

    >>> algorithm = Algorithm(entropy_coef=0.01, entropy_target=0.5, entropy_delta=0.005)
    >>> [adapted(algorithm, [{"entropy": e} for e in seen]).entropy_coef for seen in ([], [0.4], [0.4, 0.6])]
    [0.01, 0.015, 0.0]
    """
    if algorithm.entropy_target is None:
        return algorithm
    coef, acts = algorithm.entropy_coef, True
    for row in rows:
        if (entropy := row.get("entropy")) is not None:  # a step without an update has none
            acts = entropy <= algorithm.entropy_target
            coef = min(ENTROPY_COEF_MAX, max(0.0, coef + (1 if acts else -1) * algorithm.entropy_delta))
    return algorithm.model_copy(update={"entropy_coef": coef if acts else 0.0})
