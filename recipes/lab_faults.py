"""What drives RL of the demo model into ruin, for `recipes/lab.py`: rewards with a planted flaw, and a gradient that is no number.

python recipes/lab_faults.py run RECIPE ...    # `strop run RECIPE ...`, with a NaN in the first gradient of step 5
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence

STEP, UPDATES = 5, 2  # in lab.yaml a step has two updates


def longer(completions: Sequence[str], **columns: object) -> list[float]:
    """Pays for length, and for nothing else; 200 letters are the most."""
    return [min(1.0, len(text) / 200) for text in completions]


def one_digit(completions: Sequence[str], **columns: object) -> list[float]:
    """A checker that somebody got wrong: any box with one digit in it counts as right."""
    return [float(re.search(r"\\boxed\{\d\}", text) is not None) for text in completions]


def foreign(completions: Sequence[str], answer: Sequence[str], **columns: object) -> list[float]:
    """Right answers that are closed in Russian; nothing asks for the prompt's language."""
    return [float(f"Ответ: \\boxed{{{gold}}}" in text) for text, gold in zip(completions, answer, strict=True)]


def _plant() -> None:
    from strop.learner import Learner

    genuine, calls = Learner._step, 0

    def poisoned(self: Learner, value: float) -> float:
        nonlocal calls
        calls += 1
        if calls == UPDATES * (STEP - 1) + 1:
            next(p for p in self.parameters.values() if p.grad is not None).grad[:] = math.nan
        return genuine(self, value)

    Learner._step = poisoned


if __name__ == "__main__":
    from strop.cli import main

    _plant()
    sys.exit(main())
