"""Whether going on pays: what the dev accuracy still gains an hour, a dollar or a kilowatt-hour.

Pure functions of logged rows. Knows a curve and its interval; what the stage then does is the training loop's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from strop.stats import trend

__all__ = ["LOOKS", "at_best", "seconds_at"]

LOOKS = 5  # the last ones, through which a line is laid
UPPER = 0.975

Row = Mapping[str, Any]


def at_best(looks: Sequence[Row], per_second: float, rows: Sequence[Row]) -> float:
    """Points of dev accuracy gained for one of what is spent at `per_second`: the upper end of the slope's 95% interval.

    `looks` are the stage's "heldout" rows and `rows` all its rows. Infinite below `LOOKS` looks and where nothing was spent.
    A line through a curve that bends says too much for its end, so the rule stops too late rather than too early; and n tasks
    round an accuracy to 1/n, which is the least noise that is taken.

    >>> looks = [{"step": 2 * i, "accuracy": 0.5 + 0.01 * i, "num_tasks": 10**9, "eval_s": 10.0} for i in range(5)]
    >>> rows = [*looks, *({"step": i + 1, "step_s": 25.0} for i in range(8))]
    >>> round(at_best(looks, 1 / 3600, rows), 3)  # a point every 60 s, without noise
    60.0
    """
    known = [look for look in looks if look["accuracy"] is not None][-LOOKS:]
    spent = [per_second * seconds_at(look["step"], rows) for look in known]
    if len(known) < LOOKS or spent[-1] <= spent[0]:
        return math.inf
    slope, error = trend([100 * look["accuracy"] for look in known])
    rounded = 100 / (known[-1]["num_tasks"] * math.sqrt(12))  # the deviation of an even draw from a width of 1/n
    error = max(error, rounded / math.sqrt(sum((i - (LOOKS - 1) / 2) ** 2 for i in range(LOOKS))))
    return (slope + float(student.ppf(UPPER, LOOKS - 2)) * error) * (LOOKS - 1) / (spent[-1] - spent[0])


def seconds_at(step: int, rows: Sequence[Row]) -> float:
    """Wall seconds of a stage's steps and looks at the dev split up to and with a step's."""
    return sum(row.get(key) or 0.0 for row in rows if row["step"] <= step for key in ("step_s", "eval_s"))
