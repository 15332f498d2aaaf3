"""What may be spent: dollars, hours or kilowatt-hours, over all starts of a run; and whether it is spent.

Knows units and figures; where the figures come from is the business of who asks (`ledger`, `costs`). Read by the recipe,
which refuses nonsense, by the pipeline, which stops a run in time, and by `plan`, which proposes what fits.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from strop.record import UserError

__all__ = ["Budget", "Limit", "Spent", "in_words", "parse", "rate"]

# unit -> what it is of, and how many seconds, dollars or kilowatt-hours one is
UNITS: dict[str, tuple[str, float]] = {
    "s": ("seconds", 1.0), "min": ("seconds", 60.0), "h": ("seconds", 3600.0), "d": ("seconds", 86400.0),
    "usd": ("usd", 1.0), "$": ("usd", 1.0), "wh": ("kwh", 1e-3), "kwh": ("kwh", 1.0),
}  # fmt: skip
EXAMPLES = "write a number and a unit, such as 42usd, 90min, 2h or 0.5kwh, several with commas between them"
UNTOLD = {
    "usd": "say what an hour costs (--set costs.usd_per_hour=0.5), or limit the time (2h)",
    "kwh": "limit the time (2h)",
}
NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that may be spent of each; None: that is not limited."""

    seconds: float | None = None
    usd: float | None = None
    kwh: float | None = None


class Spent(Protocol):
    """What has been spent so far; None where nobody can tell."""

    @property
    def wall_s(self) -> float: ...
    @property
    def usd(self) -> float | None: ...
    @property
    def kwh(self) -> float | None: ...


def parse(text: str) -> Budget:
    """The budget that a person wrote. Raises UserError for what is none.

    >>> parse("2h").seconds, parse("$42, 500 Wh").usd, parse("$42, 500 Wh").kwh
    (7200.0, 42.0, 0.5)
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(rf"\s*(?:\$\s*{NUMBER}|{NUMBER}\s*([a-z$]+))\s*", part.lower())
        dollars, number, unit = match.groups(default="") if match else ("", "", "")
        if match is None or (unit or "$") not in UNITS:
            raise UserError(f"budget {text!r}: {EXAMPLES}")
        of, size = UNITS[unit or "$"]
        amount = float(dollars or number) * size
        if not (math.isfinite(amount) and amount > 0):
            raise UserError(f"budget {text!r}: nothing can be done for {part.strip()}; {EXAMPLES}")
        if of in found:
            raise UserError(f"budget {text!r} limits the {of} twice; leave one out")
        found[of] = amount
    return Budget(**found)


def rate(text: str) -> tuple[float, str]:
    """(points, of what) of a gain below which going on does not pay: points of accuracy an hour, a dollar or a kilowatt-hour.

    What follows the stroke is a unit of `parse`, and the points are of one of what `Budget` has. Raises UserError.

    >>> rate("3.6/h"), rate("2/usd")
    ((0.001, 'seconds'), (2.0, 'usd'))
    """
    match = re.fullmatch(rf"\s*{NUMBER}\s*/\s*([a-z$]+)\s*", text.lower())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise UserError(f"stop_below {text!r}: write points and a unit, such as 2/h, 0.5/usd or 10/kwh")
    of, size = UNITS[match[2]]
    return float(match[1]) / size, of


class Limit:
    """Says when a run has to stop: where what it is about to begin would take it beyond its budget.

    It is asked after every step, and what the last one took is expected of the next one; so a run ends within its budget,
    and where a step takes longer than the one before, or nothing can be expected yet, late by less than that step.
    """

    def __init__(
        self, text: str | None, spent: Callable[[], Spent], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Raises UserError where nobody can tell how much of it is spent: the run would never stop."""
        self._budget, self._spent, self._clock = None if text is None else parse(text), spent, clock
        for of, instead in UNTOLD.items():
            if getattr(self._budget, of, None) is not None and getattr(spent(), of) is None:
                raise UserError(f"budget {text!r}: nothing on this machine tells how much is spent of it; {instead}")
        self._last: float | None = None
        self._step_s = 0.0
        self.reached = ""  # what was spent, in words, once that is so

    def is_spent(self) -> bool:
        """Whether there is nothing left for what has not begun; once it is so it stays so."""
        if self._budget is None:
            return False
        now = self._clock()
        if self._last is not None:
            self._step_s = now - self._last
        self._last = now
        spent = self._spent()
        share = 1 + self._step_s / spent.wall_s if spent.wall_s else 1.0  # money and energy go on as they went
        for of in ("seconds", "usd", "kwh"):
            most, have = getattr(self._budget, of), spent.wall_s if of == "seconds" else getattr(spent, of)
            if not self.reached and most is not None and have is not None and have * share > most:
                more = "" if have >= most else f", and the next step would take {in_words(of, have * (share - 1))} more"
                self.reached = f"{in_words(of, have)} of {in_words(of, most)} are spent{more}"
        return bool(self.reached)


def in_words(of: str, amount: float) -> str:
    """
    >>> in_words("seconds", 231.4), in_words("seconds", 7260.0), in_words("seconds", 9.44), in_words("usd", 0.0123), in_words("kwh", 1.5)
    ('3:51 min', '2:01 h', '9.4 s', '0.0123 usd', '1.5 kWh')
    """
    if of != "seconds":
        return f"{amount:.3g} {'kWh' if of == 'kwh' else of}"
    if amount < 60:
        return f"{amount:.2g} s"
    minutes, seconds = divmod(round(amount), 60)
    return f"{minutes}:{seconds:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
