"""What the run drew, emitted and cost, and what of it was for nothing: tables under the time.

Takes RunFacts, returns records for the template. Sources of unlike kinds stand in rows and columns of their own and are never
summed; where nothing could be counted, a sentence says so before any figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop import costs, frontier, waste
from strop.energy import KINDS
from strop.frontier import Point
from strop.record import UserError
from strop.report import words
from strop.report.claims import Headline
from strop.report.facts import RunFacts

__all__ = ["Drawn", "PhaseDrawn", "Planned", "Spending", "Wasted", "spending"]


MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One source of energy over the whole run."""

    scope: str
    kind: str
    method: str
    period_s: float
    idle_subtracted: bool
    joules: float
    co2e_g: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDrawn:
    """One phase: seconds of processors, joules by source in the order of `Spending.drawn`, and what they make."""

    name: str
    cpu_s: float
    gpu_s: float
    joules: list[float]
    co2e_g: float | None
    usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wasted:
    what: str
    wall_s: float | None
    tokens: int | None
    estimated: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What was forecast before the run began, and what it took: seconds, or GB."""

    what: str
    likely: float
    low: float
    high: float
    actual: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    notice: str  # empty where something was measured
    usd: float | None
    co2e_g: float | None
    kwh: float | None
    usd_rests_on: str
    co2e_rests_on: str
    drawn: list[Drawn]
    phases: list[PhaseDrawn]
    wasted: list[Wasted]
    planned: list[Planned]  # empty where nothing was forecast, or the run has not finished
    a_point: str  # what one point of the gain took; empty where nothing was trained
    an_answer: str  # what one correct answer takes before and after; empty where that was not recorded

    @property
    def has_gpu(self) -> bool:
        return any(phase.gpu_s for phase in self.phases)


def spending(facts: RunFacts, head: Headline | None = None) -> Spending | None:
    """None for a run without a ledger. An older one has no joules, and prices of its own recipe."""
    ledger = facts.summary.get("ledger", {})
    if not ledger.get("phases"):
        return None
    told = facts.summary.get("costs") or costs.of(ledger, facts.recipe.costs)
    known = sorted(ledger.get("energy", {}).items(), key=lambda item: KINDS.index(item[1]["kind"]))
    grams_per_joule = told["factors"]["pue"] * told["factors"]["grid"]["value"] / costs.J_PER_KWH
    drawn = [
        Drawn(
            scope=s["scope"], kind=s["kind"], method=s["method"], period_s=float(s["period_s"]),
            idle_subtracted=s["idle_subtracted"], joules=float(s["joules"]), co2e_g=s["joules"] * grams_per_joule,
        )
        for _, s in known
    ]  # fmt: skip
    return Spending(
        notice=_notice(ledger),
        usd=told["usd"], co2e_g=told["co2e_g"], kwh=told["kwh"],
        usd_rests_on=told["usd_rests_on"], co2e_rests_on=told["co2e_rests_on"], drawn=drawn,
        phases=[_phase(name, p, told, [n for n, _ in known]) for name, p in ledger["phases"].items() if p["wall_s"] > 0],
        wasted=_wasted(facts, ledger), planned=_planned(facts, ledger), a_point=_a_point(head, ledger, told["usd"]),
        an_answer=_an_answer(facts, head),
    )  # fmt: skip


def _planned(facts: RunFacts, ledger: Mapping[str, Any]) -> list[Planned]:
    """By phase, those that took longest first; last the peak of memory, which is forecast without a range."""
    plan = facts.summary.get("plan")
    if not plan or not facts.finished:
        return []
    summed: dict[str, list[float]] = {}
    for stage in plan["stages"].values():
        for phase, told in (stage["seconds"] or {}).items():
            before = summed.get(phase, [0.0] * 3)
            summed[phase] = [a + told[key] for a, key in zip(before, ("likely", "low", "high"), strict=True)]
    rows = [
        Planned(what=phase, likely=likely, low=low, high=high, actual=float(ledger["phases"][phase]["wall_s"]))
        for phase, (likely, low, high) in summed.items()
        if phase in ledger["phases"]
    ]
    rows.sort(key=lambda row: -row.actual)
    peak, took = plan["peak_bytes"] / 1e9, float(facts.summary["peak_rss_mb"]) / 1e3
    return [*rows, Planned(what=MEMORY, likely=peak, low=peak, high=peak, actual=took)]


def _a_point(head: Headline | None, ledger: Mapping[str, Any], usd: float | None) -> str:
    """The whole run, evaluations and control arms included, for each point between the ends of the gain's interval."""
    if head is None or head.change is None:
        return ""
    if head.change.verdict != "gain":
        return f"A point on {head.tasks} has no price: the interval of the difference does not lie above zero."
    wall_s = float(ledger["wall_s"])
    points, low, high = (100 * share for share in (head.change.delta, *head.change.ci95))
    drawn = {kind: joules for kind, joules in costs.joules_by_kind(ledger).items() if kind != "constant" and joules}
    joules = "".join(f", {each / points:.3g} J ({kind})" for kind, each in drawn.items())
    dollars = "" if usd is None else f", ${usd / points:.2g} (${usd / high:.2g} to ${usd / low:.2g})"
    return (
        f"Each of the {points:.1f} points gained on {head.tasks} took {words.duration(wall_s / points)} of this run "
        f"({words.duration(wall_s / high)} to {words.duration(wall_s / low)} by the 95% interval of the gain){dollars}{joules}, its evaluations and "
        "control arms included."
    )


def _an_answer(facts: RunFacts, head: Headline | None) -> str:
    """One correct answer of the models at both ends of the gain, in tokens, seconds, dollars and joules, the firm ones."""
    if head is None:
        return ""
    try:
        points = frontier.run(*(f"{facts.run_dir}:{end.stage}" for end in (head.before, head.after)))
    except UserError:  # an evaluation without answers on record
        return ""
    own = [p for p in points if p.tasks == head.tasks]
    way = own[0].way if own else ""  # greedily, where that was asked
    pair = [p for p in own if p.way == way]
    if len(pair) != 2:
        return ""
    before, after = (_price(p) for p in pair)
    return f"A correct answer on {head.tasks} ({way}) takes {after} after the training, {before} before it."


def _price(point: Point) -> str:
    whats = [what for what in frontier.UNITS if what in point.per_correct and "constant" not in what]
    values = {what: point.per_correct[what].value for what in whats}
    if not all(map(math.isfinite, values.values())):
        return "any amount, since none was right,"
    return ", ".join(f"{value:.3g} {what}" for what, value in values.items())


def _notice(ledger: Mapping[str, Any]) -> str:
    if costs.is_measured(ledger) or not ledger.get("energy"):
        return ""
    return (
        "This machine has no readable energy counter: joules of the CPU are modelled (CodeCarbon, by load), those of memory are a "
        "constant guess, and neither was measured. Seconds are the honest measure."
    )


def _phase(name: str, phase: Mapping[str, Any], told: Mapping[str, Any], sources: list[str]) -> PhaseDrawn:
    joules = phase.get("joules", {})
    own = told["phases"].get(name, {})
    return PhaseDrawn(
        name=name, cpu_s=float(phase.get("cpu_s", 0.0)), gpu_s=float(phase.get("gpu_s", 0.0)),
        joules=[float(joules.get(source, 0.0)) for source in sources], co2e_g=own.get("co2e_g"), usd=own.get("usd"),
    )  # fmt: skip


def _wasted(facts: RunFacts, ledger: Mapping[str, Any]) -> list[Wasted]:
    """What there is of it; kinds of which nothing was spent are left out."""
    found = waste.of(facts.rows, ledger, facts.recipe.stages)
    return [
        Wasted(what=waste.WORDS[kind], wall_s=w.wall_s, tokens=w.tokens, estimated=w.estimated)
        for kind, w in found.items()
        if w.wall_s or w.tokens
    ]
