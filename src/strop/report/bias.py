"""The length bias of a loss as a picture: `probe.length_bias.push` over mean lengths. Read by the command line and by `course`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from strop.config import Algorithm
from strop.probe import length_bias
from strop.report import charts

__all__ = ["figure", "line"]

SHOWN = {"grpo": "c1", "ppo, lambda 0.95": "c2", "dapo": "c0", "dr_grpo": "c0 thin"}
MEAN_TOKENS = (2, 4, 8, 16, 32, 64, 128)


def figure(num_rollouts: int = 64) -> str:
    """The push on the logit of stopping after a wrong answer, against the answers' mean length; an SVG file."""
    lines = [line(length_bias.LINES[name], num_rollouts, name=name, style=style) for name, style in SHOWN.items()]
    desc = "expected push on the logit of stopping from a wrong answer, against log2 of the mean length in tokens"
    title = "push, by log2(mean tokens): grpo brown, ppo 0.95 green, dapo and dr_grpo blue"
    return charts.sheet([(title, charts.line_chart(lines, title="length bias", desc=desc, zero=True))])


def line(
    algorithm: Algorithm, num_rollouts: int, *, name: str, style: str, mean_tokens: Sequence[int] = MEAN_TOKENS
) -> charts.Line:
    """One loss in it; `num_rollouts` are those of an update. Long means take long: their work is quadratic."""
    pushes = [length_bias.push(algorithm, 1 / n, -1.0, num_rollouts) for n in mean_tokens]
    return charts.Line(x=[math.log2(n) for n in mean_tokens], y=pushes, name=name, style=style, dots=True)
