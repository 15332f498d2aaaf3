"""What a run may cost at most, in words: "42usd", "2h", "0.5kwh". Knows no clock, no price and no recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from strop.record import UserError

__all__ = ["Budget", "parse"]

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One of the three is set."""

    usd: float | None = None
    seconds: float | None = None
    kwh: float | None = None


def parse(text: str) -> Budget:
    """
    >>> parse("42usd"), parse("90min").seconds, parse("0.5kwh").kwh
    (Budget(usd=42.0, seconds=None, kwh=None), 5400.0, 0.5)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(usd|kwh|s|min|h|d)\s*", text.lower())
    if found is None or float(found[1]) <= 0:
        raise UserError(f"budget {text!r} is not understood; write it as 42usd, 2h, 90min or 0.5kwh")
    amount, unit = float(found[1]), found[2]
    if unit == "usd":
        return Budget(usd=amount)
    return Budget(kwh=amount) if unit == "kwh" else Budget(seconds=amount * _SECONDS[unit])
