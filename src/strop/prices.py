"""What a kilowatt-hour costs and emits where nobody says otherwise, and how such figures are written in a recipe.

Every factor has a date and a source, and goes with the figure that it made. The grams by country are CodeCarbon's, read
from its data file (importing the package takes far longer). No exchange rates: money is in US dollars.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

__all__ = ["GRID", "USD_PER_KWH", "Factor", "countries", "grams", "grid", "usd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A number that converts, with its date and where it is from."""

    value: float
    unit: str
    date: str  # of the data, not of the look-up
    source: str


USD_PER_KWH = Factor(
    value=0.165, unit="USD/kWh", date="2025-06",
    source="world average for households, second quarter of 2025, globalpetrolprices.com/electricity_prices",
)  # fmt: skip
# CodeCarbon itself takes 475 for the world (IEA, report of 2019); its newer table by country gives this.
GRID = Factor(
    value=481.0, unit="g/kWh", date="2022 to 2023",
    source="world: mean over the countries of CodeCarbon 3.3.2 (Our World in Data), weighted by what they generate",
)  # fmt: skip
MOST_GRAMS = 2000.0  # burning lignite badly is at 1,300


def grid(place: float | str | None) -> Factor:
    """Grams of CO2e a kWh: the number given, that of a country (three letters, ISO 3166: "DEU"), or the world's.

    >>> grid(56.0).value, grid(None).value, grid("FRA").unit
    (56.0, 481.0, 'g/kWh')
    """
    if place is None:
        return GRID
    if not isinstance(place, str):
        return Factor(value=float(place), unit="g/kWh", date="as given", source="the recipe")
    found = countries()[place]
    return Factor(
        value=float(found["carbon_intensity"]), unit="g/kWh", date=str(found["year"]),
        source=f"{found['country_name']}, as in CodeCarbon (Our World in Data)",
    )  # fmt: skip


@cache
def countries() -> dict[str, Any]:
    """CodeCarbon's grids by country code; empty where the package is not installed."""
    spec = find_spec("codecarbon")
    folders = (spec and spec.submodule_search_locations) or []
    files = (Path(folder) / "data/private_infra/global_energy_mix.json" for folder in folders)
    return next((json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()), {})


# --- as written in a recipe ---------------------------------------------------------------------------------------------

_MONEY = re.compile(r"(?P<sign>\$)?\s*(?P<number>[-+]?[\d.]+(?:e[-+]?\d+)?)\s*(?P<name>usd|\$)?\s*(?:(?:/|per )\s*(?P<per>\w+))?", re.I)  # fmt: skip
_GRID = re.compile(r"(?P<number>[-+]?[\d.]+(?:e[-+]?\d+)?)\s*(?P<unit>(?:g|kg)(?:co2e?|co2eq)?\s*/\s*(?:kwh|mwh))?", re.I)  # fmt: skip
_HOURS = {"h": "h", "hr": "h", "hour": "h", "kwh": "kWh"}
_TO_GRAMS_PER_KWH = {"g/kwh": 1.0, "kg/kwh": 1000.0, "g/mwh": 0.001, "kg/mwh": 1.0}


def usd(written: Any, per: Literal["h", "kWh"]) -> float:
    """US dollars an hour or a kWh, as a number or in words. Raises ValueError, in one sentence, for anything else.

    >>> usd(2, "h"), usd("$2.50/h", "h"), usd("0.25 USD/kWh", "kWh")
    (2.0, 2.5, 0.25)
    >>> usd("0.30 EUR", "kWh")
    Traceback (most recent call last):
    ValueError: write US dollars per kWh, such as 0.25 or "$0.25/kWh" (no other currency: exchange rates change)
    """
    wrong = f'write US dollars per {per}, such as 0.25 or "$0.25/{per}" (no other currency: exchange rates change)'
    if isinstance(written, str):
        found = _MONEY.fullmatch(written.strip())
        if (
            found is None
            or (found["per"] and _HOURS.get(found["per"].lower()) != per)
            or (found["sign"] and found["name"])
        ):
            raise ValueError(wrong)
        written = _number(found["number"], wrong)
    return _at_least_0(written, wrong)


def grams(written: Any) -> float | str:
    """Grams of CO2e a kWh: a number, one with its unit, or a country's code, which stays one. Raises ValueError otherwise.

    >>> grams(56), grams("0.381 kg/kWh"), grams("deu")
    (56.0, 381.0, 'DEU')
    >>> grams(0.381)
    Traceback (most recent call last):
    ValueError: 0.381 g/kWh is no grid's (they have 1 to 2,000): is it in kg/kWh, which can be written so?
    """
    wrong = 'write grams of CO2e per kWh, such as 380 or "0.38 kg/kWh", or a country, such as DEU'
    if isinstance(written, str):
        if written.strip().upper() in countries():
            return written.strip().upper()
        found = _GRID.fullmatch(written.strip())
        if found is None:
            raise ValueError(wrong)
        unit = re.sub(r"co2e?q?|\s", "", (found["unit"] or "g/kWh").lower())
        written = _number(found["number"], wrong) * _TO_GRAMS_PER_KWH[unit]
    value = _at_least_0(written, wrong)
    if 0 < value < 1 or value > MOST_GRAMS:
        raise ValueError(
            f"{value:g} g/kWh is no grid's (they have 1 to {MOST_GRAMS:,.0f}): is it in kg/kWh, which can be written so?"
        )
    return value


def _number(text: str, wrong: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(wrong) from None


def _at_least_0(value: Any, wrong: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(wrong)
    return float(value)
