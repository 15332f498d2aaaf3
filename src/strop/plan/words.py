"""A plan in words: three lines for whoever starts a run, a table for whoever asks. Knows no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from strop.plan.packing import Number
from strop.plan.work import Range

if TYPE_CHECKING:
    from strop.plan import Plan

__all__ = ["duration", "headline", "table"]


def duration(seconds: Number) -> str:
    """
    >>> [duration(s) for s in (4.2, 89, 600, 5400, 200_000)]
    ['4 s', '89 s', '10 min', '1.5 h', '56 h']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 20 else f"{hours:.0f} h"


def headline(plan: Plan) -> list[str]:
    name, most = plan.worst
    verdict = "fits" if plan.fits else "does not fit"
    memory = f"memory  {_gb(most.total)} at most, in {name}; {_gb(plan.room_bytes)} can be had {'here' if plan.on == 'this' else f'on {plan.on}'}: {verdict}"
    if plan.seconds is None:
        return [memory, f"time    {plan.measured}", "cost    not known without the time"]
    shares = ", ".join(
        f"{phase} {r.likely / plan.seconds.likely:.0%}" for phase, r in list(plan.phases.items())[:3] if r.likely > 0
    )
    return [memory, f"time    {_range(plan.seconds, duration)}: {shares}; {plan.measured}", f"cost    {_cost(plan)}"]


def _cost(plan: Plan) -> str:
    usd, kwh = plan.usd, plan.kwh
    said = [
        "no price given (--usd-per-hour)" if usd is None else _range(usd, _dollars) + _of_what(plan),
        "no watts given (--watts)" if kwh is None else f"{_range(kwh, lambda x: f'{x:.2g}')} kWh (modelled)",
    ]
    sampled = sum(s.tokens_sampled.likely for s in plan.stages)
    return "; ".join(
        [
            *said,
            f"{_count(sampled)} tokens sampled, {_count(sum(s.tokens_trained.likely for s in plan.stages))} trained",
        ]
    )


def _of_what(plan: Plan) -> str:
    return "" if plan.usd_per_hour is not None else " of electricity"


def _dollars(usd: Number) -> str:
    """
    >>> _dollars(41.6), _dollars(0.00321)
    ('$41.60', '$0.0032')
    """
    return f"${usd:.2f}" if usd >= 0.1 else f"${usd:.2g}"


def table(plan: Plan) -> list[str]:
    """Headline, memory by part of every stage, seconds by phase, what is assumed, what would fit."""
    model = f"{plan.model}: {plan.parameters / 1e6:,.0f} M parameters, {plan.trained_parameters / 1e6:,.1f} M of them trained"
    lines = [model, *plan.lines(), "", "memory by part at each stage's peak, GB", *_memory(plan)]
    if plan.timed:
        lines += ["", "time by phase", *_time(plan)]
    lines += ["", "assumed", *(f"  {text}" for text in plan.assumptions)]
    if plan.advice:
        lines += ["", "what would fit", *(f"  {text}" for text in plan.advice)]
    return lines


def _memory(plan: Plan) -> list[str]:
    parts = [p for p in plan.stages[0].peaks[-1].parts if any(s.peaks[-1].parts[p] > 5e6 for s in plan.stages)]
    head = ["", *parts, "peak", "highest in"]
    rows = []
    for s in plan.stages:
        whole, phases = s.peaks[-1], s.peaks[:-1]
        worst = max(phases, key=lambda p: p.total, default=whole).phase
        rows.append([s.name, *(f"{whole.parts[p] / 1e9:.2f}" for p in parts), f"{whole.total / 1e9:.2f}", worst])
    return _aligned([head, *rows])


def _time(plan: Plan) -> list[str]:
    rows = [["", "phase", "likely", "from", "to"]]
    for s in plan.stages:
        for phase, r in s.seconds.items():
            if r.likely >= 0.5:
                rows.append([s.name, phase, duration(r.likely), duration(r.low), duration(r.high)])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        ("  " + "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))).rstrip()
        for row in rows
    ]  # fmt: skip


def _range(range_: Range, say: Callable[[Number], str]) -> str:
    return f"{say(range_.likely)} ({say(range_.low)} to {say(range_.high)})"


def _gb(num_bytes: Number) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def _count(num: Number) -> str:
    """
    >>> _count(950), _count(12_300), _count(4_560_000)
    ('950', '12 k', '4.6 M')
    """
    if num < 1e3:
        return f"{num:.0f}"
    return f"{num / 1e3:.0f} k" if num < 1e6 else f"{num / 1e6:.1f} M"
