"""What the kept answers of each evaluation say, with intervals: greedy and sampled accuracy, pass@k, votes, lengths, limits.

Reads the rollouts of every finished evaluation once. `panels` draws what is here, `tables` writes it as text. Knows
neither who is before and after nor how anything looks. Where answers were not kept nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strop import stats
from strop.config import EvaluateStage
from strop.metrics import groups_of, vote
from strop.record import Rollout
from strop.report.facts import Model, RunFacts
from strop.stats import Estimate

__all__ = ["Fingerprint", "Measured", "fingerprints", "measure", "protocol"]

SHOWN_HASH = 12  # digits of a hash that are written: enough to tell two apart by eye


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """One evaluation of one model on one task set. Shares, with 95% intervals over tasks."""

    stage: EvaluateStage
    model: Model
    tasks: str
    num_tasks: int
    num_samples: int  # a task; 0: greedy answers only
    greedy: Estimate | None
    avg: Estimate | None  # mean over the samples, "avg@k"
    maj: Estimate | None  # the commonest answer of the samples, "maj@k"
    curve: list[tuple[int, Estimate]]  # pass@k for k = 1, 2, 4 ... and all; empty below two samples
    num_correct: dict[str, int]  # task id -> how many of its samples are right
    answers: list[Rollout]  # the samples where there are any, else the greedy answers
    mean_tokens: Estimate  # of `answers`, as is the next
    truncated_frac: Estimate


def measure(facts: RunFacts) -> list[Measured]:
    """By task set, then in the order of the models, as `facts` has them."""
    wanted = [(t, m, s) for t in facts.task_sets() for m in facts.models() if (s := facts.evaluation(m, t)) is not None]
    kept = {
        name: (facts.answers(name, "greedy"), facts.answers(name, "samples")) for name in {s.name for *_, s in wanted}
    }
    ids = {t: {task.id for task in facts.heldout(t)} for t in facts.task_sets()}
    found = [
        _measured(stage, model, task_set, *(_own(ids[task_set], stage, rollouts) for rollouts in kept[stage.name]))
        for task_set, model, stage in wanted
    ]
    return [m for m in found if m is not None]


def _own(ids: set[str], stage: EvaluateStage, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those of one task set; none where it cannot be told which they are. A task that is in two sets was answered twice."""
    if not ids and len(stage.tasks) > 1:
        return []
    return list({(r.task.id, r.sample): r for r in rollouts if r.task.id in ids or not ids}.values())


def _measured(
    stage: EvaluateStage, model: Model, task_set: str, greedy: list[Rollout], samples: list[Rollout]
) -> Measured | None:
    answers = samples or greedy
    if not answers:
        return None
    groups = groups_of(samples)
    num_samples = min((len(g) for g in groups), default=0)
    right = [sum(r.correct for r in g) for g in groups]
    whole = all(len(g) == num_samples for g in groups)  # pass@k is of equally many samples
    answered = any(r.verdict and r.verdict.extracted for r in samples)
    return Measured(
        stage=stage, model=model, tasks=task_set, num_tasks=len(groups_of(answers)), num_samples=num_samples,
        greedy=stats.share([float(r.correct) for r in greedy]) if greedy else None,
        avg=_average(groups, whole) if groups else None,
        maj=_voted(groups) if num_samples > 1 and answered else None,
        curve=_curve(num_samples, right) if num_samples > 1 and whole else [],
        num_correct={g[0].task.id: num for g, num in zip(groups, right, strict=True)},
        answers=answers,
        mean_tokens=stats.mean([float(np.mean([r.num_sampled for r in g])) for g in groups_of(answers)]),
        truncated_frac=_rate(groups_of(answers), lambda r: r.truncated),
    )  # fmt: skip


def _curve(num_samples: int, num_correct: Sequence[int]) -> list[tuple[int, Estimate]]:
    ks = sorted({*stats.doubling(num_samples), num_samples})
    curve = stats.pass_curve(num_samples, num_correct, ks)
    return [(p.k, Estimate(value=p.value, low=p.low, high=p.high)) for p in curve]


def _average(groups: Sequence[Sequence[Rollout]], whole: bool) -> Estimate:
    """avg@k; where some tasks have fewer samples there is no k, and tasks alone are resampled."""
    if not whole:
        return _rate(groups, lambda r: r.correct)
    return stats.average([[float(r.correct) for r in g] for g in groups])


def _voted(groups: Sequence[Sequence[Rollout]]) -> Estimate:
    """How often the commonest of a task's answers is right; of tied ones, the share that is."""
    answers = [[vote(r) for r in g] for g in groups]
    correct = [[r.correct for r in g] for g in groups]
    (point,) = stats.majority_curve(answers, correct, [min(map(len, groups))])
    return Estimate(value=point.value, low=point.low, high=point.high)


def _rate(groups: Sequence[Sequence[Rollout]], holds: Callable[[Rollout], bool]) -> Estimate:
    """Share of the answers, over tasks, of which some may have fewer."""
    return stats.share([float(np.mean([holds(r) for r in g])) for g in groups])


# --- how it was measured ----------------------------------------------------------------------------------------------


def protocol(facts: RunFacts, stage: EvaluateStage) -> str:
    """How many answers, how they were drawn, and how long they may be: "4 sampled answers at temperature 0.6; ..."."""
    recorded = facts.stages.get(stage.name, {}).get("fingerprint", {}).get("sampling", {})
    keys: dict[str, Any] = stage.model_dump(mode="json") | recorded
    said = ["one greedy answer"] if keys.get("greedy", True) else []
    if keys["samples"]:
        seeds, top_p = keys.get("seeds", 1), keys.get("top_p", 1.0)
        num = keys["samples"] * seeds
        drawn = f"{num} sampled answer{'s' if num > 1 else ''} at temperature {keys['temperature']:g}"
        said.append(drawn + f", top-p {top_p:g}" + (f", over {seeds} seeds" if seeds > 1 else ""))
    return f"{' and '.join(said)} a problem, of at most {keys['max_tokens']:,} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What an evaluation was made of, as its run recorded it; hashes by their first digits."""

    stage: str
    model: str  # empty where a server had weights that were not known
    served_as: str  # what a server called them; empty where there was none
    chat: str
    tasks: list[tuple[str, str]]  # task set, hash
    versions: str
    hardware: str


def fingerprints(facts: RunFacts, stages: Iterable[str]) -> list[Fingerprint]:
    """Of those of the stages that recorded one: runs from before there were fingerprints have none."""
    found = {name: facts.stages.get(name, {}).get("fingerprint") for name in stages}
    return [
        Fingerprint(
            stage=name, model=_short(f.get("model")), served_as=str(f.get("served_as") or ""), chat=_short(f.get("chat")),
            tasks=[(t, _short(digest)) for t, digest in f.get("tasks", {}).items()],
            versions=", ".join(f"{what} {version}" for what, version in f.get("versions", {}).items()),
            hardware=str(f.get("hardware") or ""),
        )
        for name, f in found.items()
        if f
    ]  # fmt: skip


def _short(digest: object) -> str:
    """Its first digits; nothing for what is no hash, such as the name that older runs have for a server's model."""
    return digest[:SHOWN_HASH] if isinstance(digest, str) and re.fullmatch("[0-9a-f]+", digest) else ""
