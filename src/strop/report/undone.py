"""What the guard undid: each way back with its reason, and the courses that were given up beside the one that was kept.

Takes RunFacts and the evidence in rolled_back/, returns records with finished SVG for the template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.disk import MANIFEST, read_lines
from strop.report import charts
from strop.report.course import Curve
from strop.report.facts import RunFacts

__all__ = ["Undone", "undone"]

# kind, key, title, unit, what it means
SHOWN = [
    ("heldout", "accuracy", "Dev accuracy", "greedy", "Problems set aside to watch the training."),
    ("train", "reward", "Reward", "mean of the step", "What the algorithm maximises."),
    ("train", "entropy", "Entropy", "nats per token", "How undecided the policy is at each token."),
    ("train", "completions/mean_length", "Completion length", "tokens", "Mean over the rollouts of a step."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What one stage's guard did."""

    stage: str
    ways_back: list[Mapping[str, Any]]  # as logged: step, from_step, alarm, text, number, remedy (None: it gave up)
    curves: list[Curve]


def undone(facts: RunFacts) -> list[Undone]:
    """One for each stage that was taken back."""
    out = []
    for folder in sorted((facts.run_dir / "rolled_back").glob("*")):
        found = sorted((p for p in folder.iterdir() if (p / MANIFEST).is_file()), key=lambda p: int(p.name))
        if found:
            ways_back = [json.loads((path / MANIFEST).read_text(encoding="utf-8")) for path in found]
            curves = [c for spec in SHOWN if (c := _curve(facts, folder.name, found, *spec)) is not None]
            out.append(Undone(stage=folder.name, ways_back=ways_back, curves=curves))
    return out


def _curve(
    facts: RunFacts, stage: str, found: Sequence[Path], kind: str, key: str, title: str, unit: str, meaning: str
) -> Curve | None:
    given_up = [_points(read_lines(path / "metrics.jsonl")[0], kind, key) for path in found]
    kept = _points([row for row in facts.rows if row.get("stage") == stage], kind, key)
    lines = [charts.Line(x=x, y=y, name="undone", style="c1 dash1", dots=True) for x, y in given_up if x]
    if not lines:
        return None
    lines += [charts.Line(x=kept[0], y=kept[1], name="kept", style="c0", dots=True)] if kept[0] else []
    summary = f"undone it ended at {lines[0].y[-1]:.3g}" + (f", kept at {kept[1][-1]:.3g}" if kept[0] else "")
    svg = charts.line_chart(lines, title=title, desc=f"{title} ({unit}): {summary}", zero=True)
    legend = list({line.name: (line.style, line.name) for line in lines}.values())
    return Curve(title=title, unit=unit, meaning=meaning, summary=summary, legend=legend, svg=svg)


def _points(rows: Sequence[Mapping[str, Any]], kind: str, key: str) -> tuple[list[float], list[float]]:
    known = [(float(r["step"]), float(r[key])) for r in rows if r.get("kind") == kind and r.get(key) is not None]
    return [step for step, _ in known], [value for _, value in known]
