"""What changes from step to step by a fixed rule: for now the learning rate.

Pure functions of a counter and the recipe, so that a resume needs no state of its own. Read by the learner.
"""

from __future__ import annotations

from strop.config import Optim

__all__ = ["learning_rate"]


def learning_rate(update: int, optim: Optim) -> float:
    """Learning rate of optimizer update number `update` (from 0): linear warm-up, then constant.

    The first update takes one part of `warmup_steps`, not zero, so that no update is wasted.

    >>> [learning_rate(u, Optim(lr=1e-5, warmup_steps=4)) for u in (0, 1, 3, 4, 1000)]
    [2.5e-06, 5e-06, 1e-05, 1e-05, 1e-05]
    >>> learning_rate(0, Optim(lr=1e-5))
    1e-05
    """
    return optim.lr * min(1.0, (update + 1) / max(1, optim.warmup_steps))
