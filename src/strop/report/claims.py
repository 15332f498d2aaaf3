"""What the page claims and on what evidence: the gain, its parts, arms and controls, accuracies, completions, caveats.

Takes RunFacts, returns records of text, numbers and finished SVG for the template. What is called a gain is decided by
an interval (`Change.verdict`), never by a point estimate. How training went is in `course.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from markupsafe import Markup

from strop import stats
from strop.config import EvaluateStage, SftStage
from strop.record import UNSCORABLE, Reason
from strop.report import charts, words
from strop.report.facts import KINDS, METRICS, UNGRADED, Change, Model, Pair, Result, RunFacts, pick

__all__ = [
    "Arm", "Block", "Effect", "Forest", "Headline", "Samples", "arms", "blocks", "caveats", "controls", "corrected", "effects_of_gain",
    "headline", "samples",
]  # fmt: skip


# --- the first sentence -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The gain on the task set that the main stage trained on most."""

    tasks: str
    before: Result
    after: Result
    change: Change | None


def headline(facts: RunFacts) -> Headline | None:
    """Base against the furthest evaluated model of the line; None until both have been evaluated."""
    for task_set in facts.task_sets():
        results = [r for m in facts.line() if (r := facts.result(m, task_set)) is not None]
        if len(results) < 2 or results[0].model.role != "base":
            continue
        before, after = results[0], results[-1]
        return Headline(tasks=task_set, before=before, after=after, change=facts.change(before, after, task_set))
    return None


# --- effects: one row of a forest table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One paired difference with its drawing."""

    change: Change
    mark: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Effects on one axis."""

    axis: Markup
    rows: list[Effect]

    @property
    def groups(self) -> list[tuple[str, list[Effect]]]:
        """Rows by task set, in their order."""
        return [(tasks, list(rows)) for tasks, rows in groupby(self.rows, lambda e: e.change.tasks)]


def forest(changes: Sequence[Change]) -> Forest | None:
    """All effects on one axis that holds every interval and zero."""
    if not changes:
        return None
    scale = charts.Scale.over([100 * v for c in changes for v in (*c.ci95, c.delta)], zero=True)
    rows = [
        Effect(
            change=c, mark=charts.effect(100 * c.delta, (100 * c.ci95[0], 100 * c.ci95[1]), scale, c.after.model.role)
        )
        for c in changes
    ]
    return Forest(axis=charts.axis(scale, lambda v: charts.tick_label(v, scale.ticks)), rows=rows)


def effects_of_gain(facts: RunFacts) -> Forest | None:
    """What the gain is made of: base to final on every task set; on those trained on, each step and each arm as well."""
    main = facts.main()
    trained = set(main.tasks) if main else set()
    changes: list[Change | None] = []
    for task_set in facts.task_sets():
        line = [r for m in facts.line() if (r := facts.result(m, task_set)) is not None]
        if len(line) < 2:
            continue
        changes += [facts.change(line[0], line[-1], task_set, metric) for metric in METRICS]
        if task_set in trained:
            steps = pairwise(line) if len(line) > 2 else ()
            changes += [facts.change(a, b, task_set) for a, b in steps]
            changes += [facts.change(r, line[-1], task_set) for r in facts.results(task_set) if r.model.role == "arm"]
    return forest([c for c in changes if c is not None])


def corrected(gain: Forest | None) -> list[tuple[str, float]]:
    """Task set and p of its whole gain, corrected for the number of task sets (Holm); empty for a single one."""
    whole = [rows[0].change for _, rows in gain.groups] if gain else []
    if len(whole) < 2:
        return []
    return list(zip([c.tasks for c in whole], stats.holm([c.p for c in whole]), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The answer of one arm or control: which model, against which, with what result."""

    model: Model
    forest: Forest
    tasks: tuple[str, ...]  # whose worked solutions an arm went on with
    wall_s: float | None
    steps: int | None
    of: str | None  # the stage whose wall time it was given
    of_wall_s: float | None


def arms(facts: RunFacts) -> list[Arm]:
    """Each SFT-continued arm against the final model, on every task set and metric on which they were compared."""
    out = []
    for model in (m for m in facts.models() if m.role == "arm"):
        stage = next(s for s in facts.recipe.stages if s.name == model.weights)
        assert isinstance(stage, SftStage)
        final = next((m for m in facts.models() if m.weights == stage.wall_of), facts.line()[-1])
        rows = forest(_changes(facts, {t: (facts.result(model, t), facts.result(final, t)) for t in facts.task_sets()}))
        if rows is not None:
            out.append(_arm(facts, model, rows, stage))
    return out


def controls(facts: RunFacts) -> list[Arm]:
    """Each control against the (nearest evaluated) weights it started from: no interval may lie above zero."""
    out = []
    for model in (m for m in facts.models() if m.role == "control"):
        starts = {t: facts.start(model, t) for t in facts.task_sets()}
        rows = forest(_changes(facts, {t: (starts[t], facts.result(model, t)) for t in starts}))
        if rows is not None:
            out.append(_arm(facts, model, rows))
    return out


def _changes(facts: RunFacts, ends: dict[str, tuple[Result | None, Result | None]]) -> list[Change]:
    """The recorded comparisons between two evaluations of each task set, on both metrics."""
    changes = []
    for task_set, (before, after) in ends.items():
        for metric in METRICS:
            if before and after and (c := facts.change(before, after, task_set, metric)):
                changes.append(c)
    return changes


def _arm(facts: RunFacts, model: Model, rows: Forest, stage: SftStage | None = None) -> Arm:
    of = stage.wall_of if stage else None
    entry, other = facts.stages.get(model.weights, {}), facts.stages.get(of or "", {})
    return Arm(
        model=model, forest=rows, tasks=tuple(stage.tasks) if stage else (), wall_s=_seconds(entry),
        steps=entry.get("steps"), of=of, of_wall_s=_seconds(other),
    )  # fmt: skip


def _seconds(entry: dict[str, Any]) -> float | None:
    return float(entry["wall_s"]) if entry.get("wall_s") is not None else None


# --- accuracy by task set ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    result: Result
    mark: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One task set: every model that was evaluated on it, by level and by verdict reason too."""

    tasks: str
    num_tasks: int
    axis: Markup
    rows: list[Row]
    levels: list[tuple[str, int]]  # level and its number of tasks
    reasons: list[str]

    def at(self, result: Result, level: str) -> tuple[float, tuple[float, float]] | None:
        """Accuracy on one level with its Wilson interval."""
        if level not in result.by_level:
            return None
        num, acc = result.by_level[level]
        return acc, stats.wilson(round(acc * num), num)

    @property
    def greedy(self) -> bool:
        return any(r.result.metric == "greedy_acc" for r in self.rows)

    @property
    def sampled(self) -> bool:
        """Whether there are sampled answers beside greedy ones."""
        return self.greedy and any(r.result.mean_acc is not None for r in self.rows)


def blocks(facts: RunFacts) -> list[Block]:
    """All task sets on one axis from 0, so that their bars can be compared."""
    results = {t: facts.results(t) for t in facts.task_sets()}
    tops = [100 * max(r.acc, *(r.ci95 or (0.0,))) for rs in results.values() for r in rs]
    scale = charts.Scale.over(tops, zero=True)
    axis = charts.axis(scale, lambda v: charts.tick_label(v, scale.ticks))
    order = {reason.value: i for i, reason in enumerate(Reason)}
    out = []
    for task_set, rs in results.items():
        rows = [Row(result=r, mark=charts.bar(100 * r.acc, _hundred(r.ci95), scale, r.model.role)) for r in rs]
        sizes = {level: num for r in rs for level, (num, _) in r.by_level.items()}
        levels = [(level, sizes[level]) for level in sorted(sizes, key=_natural)]
        reasons = sorted({x for r in rs for x in r.reasons}, key=lambda x: (order.get(x, len(order)), x))
        num_tasks = max((r.num_tasks for r in rs), default=0)
        out.append(Block(tasks=task_set, num_tasks=num_tasks, axis=axis, rows=rows, levels=levels, reasons=reasons))
    return [b for b in out if b.rows]


def _hundred(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def _natural(level: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    return (0, float(level), "") if level.replace(".", "", 1).isdigit() else (1, 0.0, level)


# --- completions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    head: Headline
    counts: dict[str, int]
    ungraded: int
    shown: list[Pair]


def samples(facts: RunFacts, head: Headline | None) -> Samples | None:
    """Six tasks with both greedy answers, by the rule of `pick`; None where no rollouts were kept."""
    pairs = facts.pairs(head.before, head.after, head.tasks) if head else []
    if head is None or not pairs:
        return None
    counts = {kind: sum(p.kind == kind for p in pairs) for kind in KINDS}
    return Samples(head=head, counts=counts, ungraded=sum(p.kind == UNGRADED for p in pairs), shown=pick(pairs))


# --- what it does not show ---------------------------------------------------------------------------------------------


def _arm_caveats(facts: RunFacts) -> list[tuple[bool, str]]:
    """What an arm that ran for another stage's wall time does not answer."""
    by_name = {s.name: s for s in facts.recipe.stages}
    arms = [(s, by_name[s.wall_of]) for s in facts.recipe.stages if isinstance(s, SftStage) and s.wall_of is not None]
    said = [
        (
            set(arm.tasks) != set(timed.tasks),
            f"The arm {arm.name} went on with the worked solutions of {', '.join(arm.tasks)}; {timed.name} practised on "
            f"{', '.join(timed.tasks)}. The arm answers whether more of the same SFT would have done, not which method is better "
            "on the same problems.",
        )
        for arm, timed in arms
    ]
    clock = (
        "The arm's length is set by a clock, so its number of steps and its result depend on what else the machine did. The "
        "interval does not cover that."
    )
    return [*said, (bool(arms), clock)]


def caveats(facts: RunFacts, head: Headline | None) -> list[str]:
    """What a careful reader should hold against this page, from what the run did and did not do."""
    dropped = len(facts.summary.get("dropped", []))
    left_out = f"{dropped} rows, tasks or worked solutions were left out before the run; summary.json lists them with their reasons."
    limits = [(True, text) for text in facts.benchmark_limits()]
    said = [*_design_caveats(facts), *limits, *_arm_caveats(facts), *_answer_caveats(head), (dropped > 0, left_out)]
    return [text for holds, text in said if holds]


def _design_caveats(facts: RunFacts) -> list[tuple[bool, str]]:
    """What the recipe did not ask for."""
    roles = {m.role for m in facts.models()}
    num = len(facts.summary.get("comparisons", []))
    return [
        (
            True,
            f"One training run with one seed ({facts.recipe.seed}) of one model. The intervals say how much the result depends on "
            "which problems were drawn; they do not cover what another training seed would have given. Run several seeds before "
            "relying on it.",
        ),
        (
            True,
            "Held-out problems come from the same sources as the training problems (no problem is in both). Nothing here says how "
            "far the result carries to other kinds of problems, prompts or token limits.",
        ),
        (
            "rl" in roles and "arm" not in roles,
            "No arm continued SFT for the time that RL took, so this run cannot say that RL did better than more SFT.",
        ),
        (
            "rl" in roles and "control" not in roles,
            "No control (shuffled rewards, or advantages set to zero) is part of this run, so it cannot rule out by itself that "
            "something other than the reward moved the accuracy.",
        ),
        (
            not any(s.samples for s in facts.recipe.stages if isinstance(s, EvaluateStage)),
            "Only greedy answers were taken: how reliable the model is when its answers are sampled is not known.",
        ),
        (
            num > 1,
            f"{num} comparisons were made; but where it is said their intervals and p-values are not corrected for their number.",
        ),
    ]


def _answer_caveats(head: Headline | None) -> list[tuple[bool, str]]:
    """What the answers behind the first sentence show."""
    if head is None:
        return []
    cut, cut_before = head.after.truncated_frac or 0.0, head.before.truncated_frac or 0.0
    broken = sum(r.reasons.get(x, 0) for r in (head.before, head.after) for x in UNSCORABLE)
    return [
        (
            cut > 0.05,
            f"{words.percent(cut)} of the final model's answers were cut off by the token limit, which holds their accuracy down.",
        ),
        (
            cut_before > 0.05,
            f"{words.percent(cut_before)} of the first model's answers were cut off by the token limit: part of the difference "
            "to it is form (short answers, marked as such) and not reasoning. What RL itself added is the step from the model "
            "that it started with.",
        ),
        (
            broken > 0,
            f"{broken} answers could not be graded (verifier error, time-out or unreadable gold answer) and count as not correct.",
        ),
    ]
