"""Accuracy against what an answer costs, as pictures: a line for each evaluation through its ways to answer. Read by the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from strop.frontier import Point
from strop.report import charts

__all__ = ["figure"]

STYLES = ("c0", "c1", "c2", "c0 thin", "c1 thin", "c2 thin")


def figure(points: Sequence[Point]) -> str:
    """A chart for each task set and each thing it is paid in, with intervals of the accuracy; an SVG file.

    An answer ten times as dear lies as far right at every place: the axis is log10 of the cost.
    """
    parts = []
    for tasks in dict.fromkeys(p.tasks for p in points):
        own = [p for p in points if p.tasks == tasks]
        names = list(dict.fromkeys(p.evaluation for p in own))
        for what in [w for w in own[0].per_answer if all(p.per_answer.get(w, 0.0) > 0 for p in own)]:
            lines = [_line([p for p in own if p.evaluation == n], what, STYLES[i % 6]) for i, n in enumerate(names)]
            desc = (
                f"accuracy on {tasks} in per cent against log10 of {what} an answer; from left to right: "
                + ", ".join(names)
            )
            chart = charts.line_chart(lines, title=f"{tasks}: {what}", desc=desc)
            parts.append((f"{tasks}: accuracy (%) by log10({what} an answer); {', '.join(names)}", chart))
    return charts.sheet(parts)


def _line(points: Sequence[Point], what: str, style: str) -> charts.Line:
    rising = sorted(points, key=lambda p: p.per_answer[what])
    return charts.Line(
        x=[math.log10(p.per_answer[what]) for p in rising], y=[100 * p.accuracy.value for p in rising], style=style, dots=True,
        interval=[(100 * p.accuracy.low, 100 * p.accuracy.high) for p in rising],
    )  # fmt: skip
