"""The evidence as pictures: pass@k of base and trained model with their crossover, and length against correctness.

Takes what `evidence` measured, returns records with finished SVG for the template. Shows the line from the base model to
the final one; arms and controls are in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from strop import lengths, stats
from strop.report import charts, words
from strop.report.course import Curve
from strop.report.evidence import Measured
from strop.stats import Estimate

__all__ = ["Lengths", "Passes", "lengths_by_set", "passes"]

LINE = ("base", "sft", "rl")  # roles
STYLES = {1: ("c0",), 2: ("c2 dash2", "c0"), 3: ("c2 dash2", "c1 dash1", "c0")}  # by the number of models shown
BINS = {
    "0": "none of a problem's answers is right", "0-25": "up to 25% are right", "25-50": "up to 50%", "50-75": "up to 75%",
    "75-100": "more, but not all", "100": "all are right",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """pass@k of one task set."""

    curve: Curve
    crossover: str  # what became of the base model's lead at many samples; empty without two models


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Length against correctness on one task set."""

    tasks: str
    model: str  # whose lengths `cells` tells
    sampled: bool
    budgets: Curve
    axis: Markup
    cells: list[tuple[str, list[tuple[lengths.Cell, Markup]]]]  # by difficulty
    costs: list[tuple[Measured, Estimate | None, tuple[int, float] | None]]  # tokens per right answer, shortest ones
    views: list[tuple[str, list[lengths.View]]]  # by model


def passes(measured: Sequence[Measured]) -> list[Passes]:
    """One for each task set on which a model of the line was sampled more than once."""
    return [_passes(shown) for own in _by_set(measured) if (shown := _shown([m for m in own if m.curve]))]


def lengths_by_set(measured: Sequence[Measured]) -> list[Lengths]:
    return [_lengths(shown) for own in _by_set(measured) if (shown := _shown(own))]


def _by_set(measured: Sequence[Measured]) -> list[list[Measured]]:
    return [list(own) for _, own in groupby(measured, lambda m: m.tasks)]


def _shown(own: Sequence[Measured]) -> list[Measured]:
    """The first of the line and its last two, all sampled if the last one is: greedy accuracies are no match for them."""
    line = [m for m in own if m.model.role in LINE]
    line = [m for m in line if bool(m.num_samples) == bool(line[-1].num_samples)]
    return line[:1] + line[1:][-2:]


def _figure(
    title: str, unit: str, meaning: str, shown: Sequence[Measured],
    points: Callable[[Measured], list[tuple[int, Estimate]]],
) -> Curve:  # fmt: skip
    """A line for each model over a doubling x, with its interval."""
    lines, ends = [], []
    for m, style in zip(shown, STYLES[len(shown)], strict=True):
        found = points(m)
        lines.append(charts.Line(
            x=[math.log2(x) for x, _ in found], y=[e.value for _, e in found], name=m.model.label, style=style, dots=True,
            interval=[(e.low, e.high) for _, e in found],
        ))  # fmt: skip
        ends.append(f"{m.model.label} from {words.percent(found[0][1].value)} to {words.percent(found[-1][1].value)}")
    summary = "; ".join(ends)
    svg = charts.line_chart(
        lines, title=title, desc=f"{title} ({unit}): {summary}", label=lambda v: f"{100 * v:.3g}%",
        label_x=lambda x: words.count(2**x), zero=True,
    )  # fmt: skip
    legend = [(line.style, line.name) for line in lines]
    return Curve(title=title, unit=unit, meaning=meaning, summary=summary, legend=legend, svg=svg)


# --- pass@k -----------------------------------------------------------------------------------------------------------


def _passes(shown: Sequence[Measured]) -> Passes:
    curve = _figure(
        shown[0].tasks, "pass@k, by k", "Share of problems of which at least one of k sampled answers is right.", shown,
        lambda m: m.curve,
    )  # fmt: skip
    return Passes(curve=curve, crossover=_crossover(shown[0], shown[-1]) if len(shown) > 1 else "")


def _crossover(first: Measured, last: Measured) -> str:
    """Whether, and from which k on, the first model solves as much as the last one."""
    shared = [task for task in first.num_correct if task in last.num_correct]
    if not shared:
        return ""
    found = stats.crossover(
        [first.num_correct[t] for t in shared], first.num_samples,
        [last.num_correct[t] for t in shared], last.num_samples,
    )  # fmt: skip
    return stats.crossover_in_words(
        found, min(first.num_samples, last.num_samples), f"the {first.model.label}", f"the model {last.model.label}",
        ahead=last.curve[0][1].value > first.curve[0][1].value,
    )  # fmt: skip


# --- lengths ----------------------------------------------------------------------------------------------------------


def _lengths(shown: Sequence[Measured]) -> Lengths:
    last = shown[-1]
    ends = [shown[0], last] if len(shown) > 1 else [last]
    budgets = _figure(
        "Accuracy by budget", "by tokens allowed", "An answer counts if it is right and no longer than that.", shown,
        lambda m: [(b.budget_tokens, b.acc) for b in lengths.at_budgets(m.answers, m.stage.max_tokens)],
    )  # fmt: skip
    cells = lengths.by_difficulty(last.answers)
    scale = charts.Scale.over([c.p90_tokens for c in cells], zero=True)
    drawn = [(c, charts.spread(c.median_tokens, c.p90_tokens, scale, c.outcome)) for c in cells]
    sampled = last.num_samples > 1
    return Lengths(
        tasks=last.tasks, model=last.model.label, sampled=sampled, budgets=budgets,
        axis=charts.axis(scale, lambda v: charts.tick_label(v, scale.ticks)),
        cells=[(BINS[b], list(rows)) for b, rows in groupby(drawn, lambda row: row[0].pass_bin)]
        if sampled
        else [("", sorted(drawn, key=lambda row: lengths.OUTCOMES.index(row[0].outcome)))],
        costs=[(m, lengths.tokens_per_right(m.answers), lengths.shortest_right(m.answers)) for m in ends],
        views=[(m.model.label, lengths.views(m.answers, m.stage.max_tokens)) for m in ends if m.num_samples > 1],
    )  # fmt: skip
