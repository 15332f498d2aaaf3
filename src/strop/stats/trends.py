"""Does one number a step rise or fall? Read by the alarms and the schedules."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["trend"]


def trend(values: ArrayLike) -> tuple[float, float]:
    """Slope a step of the straight line through values one step apart (least squares), and its standard error.

    The error takes the noise around the line to be independent from step to step, with n - 2 as divisor. It is infinite
    below three values, through which a line can always be laid.

    >>> trend([1.0, 2.0, 3.0, 4.0]), trend([5.0, 9.0])
    ((1.0, 0.0), (0.0, inf))
    >>> slope, error = trend([1.0, 2.0, 2.0])
    >>> round(slope, 6), round(error, 6)  # residuals -1/6, 1/3, -1/6: sqrt((1/6) / 1 / 2)
    (0.5, 0.288675)
    """
    values_N = np.asarray(values, np.float64)
    if len(values_N) < 3:
        return 0.0, math.inf
    step_N = np.arange(len(values_N)) - (len(values_N) - 1) / 2
    square = float((step_N**2).sum())
    slope = float((step_N * (values_N - values_N.mean())).sum()) / square
    residual_N = values_N - values_N.mean() - slope * step_N
    return slope, math.sqrt(float((residual_N**2).sum()) / (len(values_N) - 2) / square)
