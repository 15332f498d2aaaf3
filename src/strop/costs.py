"""What a run cost so far: dollars and grams of CO2e, out of the ledger's hours and joules. Pure functions.

Every converted figure says its factor, the factor's date and source. Joules of unlike kinds (`energy.KINDS`) are told apart:
`by_kind` never adds them. Where one number is needed (a budget, a bill), `Spent.kwh` adds what was counted, integrated and
modelled, and `kwh_kind` names each of them; constants, which say nothing of what was done, are never in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from strop import budget
from strop.config import Costs
from strop.energy import KINDS, Kind
from strop.prices import USD_PER_KWH, Factor, grid

__all__ = ["J_PER_KWH", "Spent", "in_short", "in_words", "is_measured", "joules_by_kind", "of", "price", "spent"]

J_PER_KWH = 3.6e6
MEASURED = ("counter", "integrated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The whole of a run up to now, earlier starts included.

    `usd` is None where no hour has a price and no energy is known; `kwh` (before `costs.pue`) where none is known.
    """

    wall_s: float
    usd: float | None
    kwh: float | None
    kwh_kind: str  # "counter", "modelled", "counter + modelled", ...; "none"


def spent(ledger: Mapping[str, Any], costs: Costs) -> Spent:
    """Seconds, dollars and kWh of what `Ledger.as_dict` gave (also an older one, or an empty dict).

    >>> energy = {"cpu": {"kind": "modelled", "joules": 3.6e6}, "memory": {"kind": "constant", "joules": 7.2e6}}
    >>> spent({"wall_s": 1800.0, "energy": energy}, Costs(usd_per_kwh=0.5, pue=1.5))
    Spent(wall_s=1800.0, usd=0.75, kwh=1.0, kwh_kind='modelled')
    >>> spent({"wall_s": 1800.0}, Costs(usd_per_hour=2.0))
    Spent(wall_s=1800.0, usd=1.0, kwh=None, kwh_kind='none')
    """
    wall_s = float(ledger.get("wall_s", 0.0))
    summed = {kind: joules for kind, joules in joules_by_kind(ledger).items() if kind != "constant"}
    kwh = sum(summed.values()) / J_PER_KWH if summed else None
    return Spent(wall_s=wall_s, usd=_usd(wall_s, kwh, costs), kwh=kwh, kwh_kind=" + ".join(summed) or "none")


def joules_by_kind(ledger: Mapping[str, Any], phase: str | None = None) -> dict[Kind, float]:
    """Joules of the run, or of one of its phases, by kind of source, the firmest first; kinds without a source are absent."""
    sources = ledger.get("energy", {})
    booked = (
        {n: s["joules"] for n, s in sources.items()} if phase is None else ledger["phases"][phase].get("joules", {})
    )
    by_kind: dict[Kind, list[float]] = {
        kind: [booked.get(n, 0.0) for n, s in sources.items() if s["kind"] == kind] for kind in KINDS
    }
    return {kind: float(sum(found)) for kind, found in by_kind.items() if found}


def is_measured(ledger: Mapping[str, Any]) -> bool:
    """Whether any joule was measured, by a counter or as power over time."""
    return any(source["kind"] in MEASURED for source in ledger.get("energy", {}).values())


def of(ledger: Mapping[str, Any], costs: Costs) -> dict[str, Any]:
    """`costs` of summary.json: the whole, by kind of energy and by phase, with the factors and what each figure rests on."""
    whole, factor, a_kwh = spent(ledger, costs), grid(costs.grid_g_per_kwh), price(costs)
    grams_per_joule = costs.pue * factor.value / J_PER_KWH
    phases = {}
    for name, phase in ledger.get("phases", {}).items():
        own = {k: j for k, j in joules_by_kind(ledger, name).items() if k != "constant"}
        joules = sum(own.values()) if own else None
        phases[name] = {
            "usd": _usd(phase["wall_s"], None if joules is None else joules / J_PER_KWH, costs),
            "co2e_g": None if joules is None else joules * grams_per_joule,
        }
    return {
        **asdict(whole),
        "co2e_g": None if whole.kwh is None else whole.kwh * J_PER_KWH * grams_per_joule,
        "usd_rests_on": _usd_rests_on(whole, costs, a_kwh),
        "co2e_rests_on": _co2e_rests_on(whole, costs, factor),
        "by_kind": {
            kind: {"kwh": joules / J_PER_KWH, "co2e_g": joules * grams_per_joule}
            for kind, joules in joules_by_kind(ledger).items()
        },
        "factors": {"grid": asdict(factor), "electricity": asdict(a_kwh), "pue": costs.pue},
        "phases": phases,
    }


def in_words(told: Mapping[str, Any]) -> str:
    """What `of` gave, in a line."""
    wall_s = told["wall_s"]
    parts = [f"{wall_s:.0f} s" if wall_s < 600 else f"{wall_s / 3600:,.1f} h"]
    if told["kwh"] is not None:
        parts.append(f"{told['kwh']:.3g} kWh ({told['kwh_kind']})")
        parts.append(f"{told['co2e_g']:.3g} g CO2e")
    if told["usd"] is not None:
        parts.append(f"${told['usd']:,.2f}" if told["usd"] >= 0.1 else f"{100 * told['usd']:.2g} cents")
    return f"cost: {', '.join(parts)}; {told['usd_rests_on']}"


def in_short(spent: Spent, costs: Costs, limit: str | None) -> dict[str, str]:
    """For a moving line: the share of the budget that is nearest to its end; else dollars where an hour has a price.

    >>> in_short(Spent(wall_s=91.2, usd=0.0312, kwh=None, kwh_kind="none"), Costs(usd_per_hour=1.2), "4min, 1usd")
    {'spent': '38% of 4:00 min'}
    >>> in_short(Spent(wall_s=91.2, usd=0.0312, kwh=None, kwh_kind="none"), Costs(usd_per_hour=1.2), None)
    {'spent': '$0.0312'}
    """
    if limit is not None:
        found = {"seconds": spent.wall_s, "usd": spent.usd, "kwh": spent.kwh}
        most = {of: amount for of, amount in asdict(budget.parse(limit)).items() if amount is not None}
        shares = {of: have / most[of] for of, have in found.items() if of in most and have is not None}
        if not shares:
            return {}
        of = max(shares, key=lambda of: shares[of])
        return {"spent": f"{100 * shares[of]:.0f}% of {budget.in_words(of, most[of])}"}
    return {} if costs.usd_per_hour is None else {"spent": f"${spent.usd:.3g}"}


def _usd(wall_s: float, kwh: float | None, costs: Costs) -> float | None:
    if costs.usd_per_hour is not None:
        return wall_s / 3600 * costs.usd_per_hour
    return None if kwh is None else kwh * costs.pue * price(costs).value


def price(costs: Costs) -> Factor:
    """Of a kWh: the recipe's, or a dated average."""
    if costs.usd_per_kwh is None:
        return USD_PER_KWH
    return Factor(value=costs.usd_per_kwh, unit="USD/kWh", date="as given", source="the recipe")


def _usd_rests_on(whole: Spent, costs: Costs, price: Factor) -> str:
    if costs.usd_per_hour is not None:
        return f"dollars are hours at ${costs.usd_per_hour:g}"
    if whole.kwh is None:
        return "no dollars: the hour has no price (costs.usd_per_hour), and no energy is known"
    return f"dollars are electricity alone: {_energy(whole)}{_pue(costs)} at ${price.value:g}/kWh ({_origin(price)})"


def _co2e_rests_on(whole: Spent, costs: Costs, factor: Factor) -> str:
    if whole.kwh is None:
        return "no grams of CO2e: no energy is known"
    return f"{_energy(whole)}{_pue(costs)} at {factor.value:g} g/kWh ({_origin(factor)})"


def _energy(whole: Spent) -> str:
    """What the kWh are, in words: nothing modelled passes for measured."""
    kinds = whole.kwh_kind.split(" + ")
    if "modelled" not in kinds:
        return "measured kWh"
    return "modelled kWh (nothing was measured)" if kinds == ["modelled"] else "kWh in part measured, in part modelled"


def _pue(costs: Costs) -> str:
    return f" x {costs.pue:g} for the building" if costs.pue != 1 else ""


def _origin(factor: Factor) -> str:
    return factor.source if factor.source == "the recipe" else f"{factor.source}; {factor.date}"
