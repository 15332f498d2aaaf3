"""The length bias of a loss as a picture: `probe.length_bias` over mean lengths. Read by the command line."""

from __future__ import annotations

import math

from strop import probe
from strop.report import charts

__all__ = ["figure"]

SHOWN = {"grpo": "c1", "ppo, lambda 0.95": "c2", "dapo": "c0", "dr_grpo": "c0 thin"}
MEAN_TOKENS = (2, 4, 8, 16, 32, 64, 128)


def figure(num_rollouts: int = 64) -> str:
    """The push on the logit of stopping after a wrong answer, against the answers' mean length; an SVG file."""
    lines = [
        charts.Line(
            x=[math.log2(n) for n in MEAN_TOKENS],
            y=[probe.push(probe.LINES[name], 1 / n, -1.0, num_rollouts) for n in MEAN_TOKENS],
            name=name, style=style, dots=True,
        )
        for name, style in SHOWN.items()
    ]  # fmt: skip
    desc = "expected push on the logit of stopping from a wrong answer, against log2 of the mean length in tokens"
    title = "push, by log2(mean tokens): grpo brown, ppo 0.95 green, dapo and dr_grpo blue"
    return charts.sheet([(title, charts.line_chart(lines, title="length bias", desc=desc, zero=True))])
