"""How the run went: training curves per step, and where the time was spent.

Takes RunFacts, returns records with finished SVG for the template. Claims nothing about gains: `claims.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from strop.config import Algorithm, TrainStage
from strop.report import bias, charts, words
from strop.report.facts import Model, RunFacts

__all__ = ["Curve", "Timing", "curves", "timing"]


# --- training curves ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    title: str
    unit: str
    meaning: str
    summary: str  # "from 0.31 to 0.52"
    legend: list[tuple[str, str]]  # (CSS class, name); empty for a single line
    svg: Markup
    bands: bool = False  # the legend speaks of areas, not of lines


# kind, key, title, unit, what it means, how a value is written, axis from zero
CURVES: dict[str, list[tuple[str, str, str, str, str, Callable[[float], str] | None, bool]]] = {
    "train": [
        ("train", "reward", "Reward", "mean of the step", "What the algorithm maximises, over all rollouts of a step.", None, False),
        ("train", "teacher_kl", "Distance from the teacher", "nats per token", "How much likelier the student finds its own tokens than its teacher does: 0 where they agree.", None, True),
        ("heldout", "accuracy", "Dev accuracy", "greedy", "Problems set aside to watch the training, never the held-out ones.", words.percent, False),
        ("train", "completions/mean_length", "Completion length", "tokens", "Mean over the rollouts of a step.", None, True),
        ("train", "entropy", "Entropy", "nats per token", "How undecided the policy is at each token; near 0 it has stopped exploring.", None, True),
        ("train", "completions/clipped_ratio", "Truncated", "share of rollouts", "Cut off by the token limit before they ended.", words.percent, True),
        ("train", "frac_reward_zero_std", "Without signal", "share of groups", "All answers to one problem got the same reward: nothing to learn from.", words.percent, True),
    ],
    "sft": [
        ("sft", "loss", "Loss", "nats per token", "Cross-entropy of the worked solutions.", None, True),
        ("heldout", "dev_loss", "Dev loss", "nats per token", "The same of worked solutions that it does not learn from.", None, True),
        ("heldout", "entropy", "Entropy", "nats per token", "Of sampled dev answers: how undecided it is; RL needs answers that differ.", None, True),
        ("heldout", "accuracy", "Dev accuracy", "greedy", "Problems set aside to watch the training, never the held-out ones.", words.percent, False),
    ],
}  # fmt: skip


# title, unit, what it means, the lines: key -> (name, style)
LENGTHS = (
    "Length, right and wrong", "tokens", "Where wrong answers grow and right ones do not, the loss may be paying for length.",
    {"completions/mean_right_length": ("right", "c0"), "completions/mean_wrong_length": ("wrong", "c1 dash1")},
)  # fmt: skip

BIAS_TOKENS = (2, 4, 8, 16, 32)  # mean lengths at which a loss's bias is computed

# kind, title, what it means, the bands from the lowest: key -> (name, style); brown has nothing to teach
BANDS = [
    ("train", "Pass rates", "How many of its answers to a task were right; where only that is paid, groups in brown taught nothing.", {
        "frac_pass_rate/0": ("none", "p4"), "frac_pass_rate/0-25": ("to 25%", "p3"), "frac_pass_rate/25-50": ("to 50%", "p2"),
        "frac_pass_rate/50-75": ("to 75%", "p1"), "frac_pass_rate/75-100": ("below all", "p0"), "frac_pass_rate/100": ("all", "p5"),
    }),
    ("curriculum", "Difficulty by now", "Training tasks by the pass rate that the curriculum expected of them.", {
        "hard_frac": ("hard", "p3"), "medium_frac": ("medium", "p1"), "easy_frac": ("easy", "p0"),
    }),
]  # fmt: skip


def curves(facts: RunFacts) -> list[tuple[Model, str, list[Curve]]]:
    """For every trained stage of the line, last first, the curves that have at least one point."""
    out = []
    for model in reversed(facts.line()):
        kind = {"rl": "train", "sft": "sft"}.get(model.role)
        drawn = [_curve(facts, model.weights, *spec) for spec in CURVES[kind]] if kind else []
        if kind == "train":
            drawn += [_lengths(facts, model.weights), *(_bands(facts, model.weights, *spec) for spec in BANDS)]
        there = [curve for curve in drawn if curve is not None]
        if there and kind == "train":
            there += _bias(facts, model.weights)
        if there:
            out.append((model, "RL" if kind == "train" else "SFT", there))
    return out


def _curve(
    facts: RunFacts, stage: str, kind: str, key: str, title: str, unit: str, meaning: str,
    write: Callable[[float], str] | None, zero: bool,
) -> Curve | None:  # fmt: skip
    steps, values = facts.curve(stage, kind, key)
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return None
    write = write or words.plain
    lines, legend, note = [], [], ""
    window = _window(steps)
    if kind == "heldout":
        lines, legend = _dev_lines(facts, stage, key, charts.Line(x=steps, y=values, dots=True))
    elif window > 1:
        lines = [
            charts.Line(x=steps, y=values, style="c0 thin"),
            charts.Line(x=steps, y=charts.smooth(values, window)),
        ]
        note = f"; thin: each step, bold: mean of {window} steps"
    else:
        lines = [charts.Line(x=steps, y=values, dots=True)]
    edge = max(1, len(finite) // 8) if kind != "heldout" else 1
    first, last = (sum(part) / len(part) for part in (finite[:edge], finite[-edge:]))
    summary = f"{'together ' if legend else ''}from {write(first)} to {write(last)}"
    desc = f"{title} ({unit}) over steps {steps[0]:.0f} to {steps[-1]:.0f}, {summary}{note}"
    label = (lambda v: f"{100 * v:.3g}%") if write is words.percent else None
    svg = charts.line_chart(lines, title=title, desc=desc, label=label, zero=zero)
    return Curve(title=title, unit=unit, meaning=meaning, summary=summary, legend=legend, svg=svg)


def _dev_lines(
    facts: RunFacts, stage: str, key: str, whole: charts.Line
) -> tuple[list[charts.Line], list[tuple[str, str]]]:
    """One line per task set where two or three were watched; else the whole alone."""
    by_set = {t: facts.curve(stage, "heldout", f"{key}/{t}") for t in facts.recipe.tasks}
    by_set = {t: xy for t, xy in by_set.items() if xy[0]}
    if not 2 <= len(by_set) <= 3:
        return [whole], []
    styles = ["c0", "c1 dash1", "c2 dash2"]
    lines = [
        charts.Line(x=x, y=y, name=t, style=style, dots=True)
        for (t, (x, y)), style in zip(by_set.items(), styles, strict=False)
    ]
    return lines, [(line.style, line.name) for line in lines]


def _lengths(facts: RunFacts, stage: str) -> Curve | None:
    """Mean lengths of right and wrong answers, each a moving mean where there are many steps."""
    title, unit, meaning, keys = LENGTHS
    found = {named: facts.curve(stage, "train", key) for key, named in keys.items()}
    lines = [
        charts.Line(x=x, y=charts.smooth(y, _window(x)), name=name, style=style)
        for (name, style), (x, y) in found.items()
        if x
    ]
    if not lines:
        return None
    ends = [f"{line.name} from {words.plain(line.y[0])} to {words.plain(line.y[-1])}" for line in lines]
    desc = f"{title} ({unit}), means of {_window(lines[0].x)} steps: {', '.join(ends)}"
    svg = charts.line_chart(lines, title=title, desc=desc, zero=True)
    legend = [(line.style, line.name) for line in lines]
    return Curve(title=title, unit=unit, meaning=meaning, summary=", ".join(ends), legend=legend, svg=svg)


def _bias(facts: RunFacts, stage: str) -> list[Curve]:
    """What the stage's loss itself does to the length of wrong answers, beside the loss that is known for it."""
    found = [s for s in facts.recipe.stages if s.name == stage and isinstance(s, TrainStage)]
    if not found or found[0].algorithm.advantages != "reward" or found[0].algorithm.credit == "teacher":
        return []
    algorithm, num_rollouts = found[0].algorithm, found[0].prompts_per_step * found[0].group_size
    per_update = max(2, num_rollouts // found[0].updates_per_step)
    lines = [
        bias.line(loss, per_update, name=name, style=style, mean_tokens=BIAS_TOKENS)
        for loss, name, style in ((algorithm, "this loss", "c0"), (Algorithm(preset="grpo"), "grpo", "c1 dash1"))
    ]
    title, unit = "Length bias of the loss", "push on stopping, by log2 of the mean length"
    summary = f"{lines[0].y[-1]:+.3f} at {BIAS_TOKENS[-1]} tokens (grpo {lines[1].y[-1]:+.3f})"
    meaning = (
        "Not over steps. Below 0 the loss pushes wrong answers to grow, whatever they are paid; computed without KL"
    )
    meaning += " and entropy, for a critic that knows nothing." if algorithm.baseline == "critic" else " and entropy."
    svg = charts.line_chart(lines, title=title, desc=f"{title} ({unit}): {summary}", zero=True)
    legend = [(line.style, line.name) for line in lines]
    return [Curve(title=title, unit=unit, meaning=meaning, summary=summary, legend=legend, svg=svg)]


def _bands(
    facts: RunFacts, stage: str, kind: str, title: str, meaning: str, keys: dict[str, tuple[str, str]]
) -> Curve | None:
    """Shares that add up to 1 at every step, as moving means where there are many steps."""
    found = [facts.curve(stage, kind, key) for key in keys]
    steps = found[0][0]
    if len(steps) < 2:
        return None
    shares = [charts.smooth(y, _window(steps)) for _, y in found]
    ends = [
        f"{name} from {words.percent(y[0])} to {words.percent(y[-1])}"
        for (name, _), y in zip(keys.values(), shares, strict=True)
    ]
    styles = [style for _, style in keys.values()]
    svg = charts.band_chart(
        steps, list(zip(styles, shares, strict=True)), title=title, desc=f"{title}, over steps: {', '.join(ends)}"
    )
    unit = "share of groups" if kind == "train" else "share of tasks"
    legend = [(style, name) for name, style in keys.values()]
    return Curve(title=title, unit=unit, meaning=meaning, summary="", legend=legend, svg=svg, bands=True)


def _window(steps: Sequence[float]) -> int:
    """Steps that a moving mean takes in: an odd number, about a sixth of the run; 1 where there are few."""
    return len(steps) // 6 | 1 if len(steps) >= 16 else 1


# --- time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time went; `other` is what no phase claims."""

    wall_s: float
    tokens_sampled: int
    tokens_trained: int
    svg: Markup
    phases: list[tuple[str, str, float, int, int]]  # key letter, phase, seconds, tokens, those of prompts
    stages: list[tuple[str, dict[str, Any]]]


TONES = 7  # distinct tones in the stylesheet


def timing(facts: RunFacts) -> Timing | None:
    ledger = facts.summary.get("ledger", {})
    phases = [
        (n, float(p.get("wall_s", 0.0)), p.get("tokens") or 0, p.get("tokens_in") or 0)
        for n, p in ledger.get("phases", {}).items()
    ]
    phases = sorted((p for p in phases if p[1] > 0), key=lambda p: (p[0] == "other", -p[1]))
    if not phases:
        return None
    wall_s = max(float(ledger.get("wall_s", 0.0)), sum(p[1] for p in phases))
    keyed = [(chr(ord("A") + i) if i < 26 else "", *p) for i, p in enumerate(phases)]
    drawn = [(key, s) for key, _, s, *_ in keyed[: TONES - 1]]
    if rest := keyed[TONES - 1 :]:
        drawn.append((rest[0][0] if len(rest) == 1 else "", sum(s for _, _, s, *_ in rest)))
    desc = ", ".join(f"{name} {words.percent(s / wall_s)}" for _, name, s, *_ in keyed)
    svg = charts.stacked(drawn, title="Time by phase", desc=desc)
    return Timing(
        wall_s=wall_s,
        tokens_sampled=ledger.get("tokens_sampled", 0),
        tokens_trained=ledger.get("tokens_trained", 0),
        svg=svg,
        phases=keyed,
        stages=[(n, s) for n, s in facts.stages.items() if "wall_s" in s],
    )
