"""What a run spends: seconds and tokens, by phase, summed over every start of the run.

Knows clocks and counts only. Phases nest: the time of an inner one is its own and not its outer's, so the phases and
`other` add up to the wall time (of one thread; phases of several threads overlap and may add up to more).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["COUNTS_AS", "Ledger"]

Counted = Literal["sampled", "trained", "neither"]

# What the tokens of a phase were, where `add_tokens` is not told: chosen by the policy, or given to the loss.
COUNTS_AS: dict[str, Counted] = {"generate": "sampled", "evaluate": "sampled", "train": "trained", "sft": "trained"}


@dataclass(slots=True)
class _Open:
    """A phase that has begun and not ended."""

    name: str
    start: float
    inner_s: float = 0.0  # of phases that began and ended inside it


class Ledger:
    """Seconds and tokens by phase; `as_dict` is the `ledger` of summary.json.

    >>> now = iter([0, 1, 2, 5, 9, 10]).__next__
    >>> ledger = Ledger(clock=now)                # created at 0
    >>> with ledger.phase("train"):               # from 1
    ...     with ledger.phase("save"):            # from 2 to 5
    ...         pass
    ...     ledger.add_tokens("train", 640)       # to 9
    >>> as_dict = ledger.as_dict()                # at 10
    >>> as_dict["wall_s"], as_dict["phases"]["train"], as_dict["phases"]["save"], as_dict["tokens_trained"]
    (10.0, {'wall_s': 5.0, 'tokens': 640}, {'wall_s': 3.0, 'tokens': 0}, 640)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = float(clock())
        self._before_s = 0.0  # wall time of earlier starts of the run
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._counted: dict[Counted, int] = {"sampled": 0, "trained": 0, "neither": 0}
        self._open: dict[int, list[_Open]] = {}  # by thread, outermost first
        self._lock = threading.Lock()
        self.on_phase: Callable[[str], None] = lambda _: None  # told the innermost phase, or "other", at every change

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time of the body is booked on `name`, less that of phases inside it."""
        mine = _Open(name, float(self._clock()))
        with self._lock:
            stack = self._open.setdefault(threading.get_ident(), [])
            stack.append(mine)
        self.on_phase(name)
        try:
            yield
        finally:
            elapsed = self._clock() - mine.start
            with self._lock:
                stack.pop()
                self._seconds[name] = self._seconds.get(name, 0.0) + elapsed - mine.inner_s
                if stack:
                    stack[-1].inner_s += elapsed
                outer = stack[-1].name if stack else "other"
            self.on_phase(outer)

    def add_tokens(self, phase: str, num_tokens: int, *, counts_as: Counted | None = None) -> None:
        """Books tokens on a phase, and on the run's sampled or trained total (`COUNTS_AS` says which, unless given)."""
        counted = counts_as or COUNTS_AS[phase]
        with self._lock:
            self._tokens[phase] = self._tokens.get(phase, 0) + int(num_tokens)
            self._counted[counted] += int(num_tokens)

    @property
    def wall_s(self) -> float:
        """Seconds since the ledger was made, and those of earlier starts of the run."""
        return self._before_s + self._clock() - self._start

    def as_dict(self) -> dict[str, Any]:
        """Totals as of now, open phases included up to now; `other` is the wall time that no phase claims."""
        with self._lock:
            now = self._clock()
            wall_s = self._before_s + now - self._start
            seconds = dict(self._seconds)
            for stack in filter(None, self._open.values()):
                ends = [inner.start for inner in stack[1:]] + [now]  # an outer phase stands still while an inner runs
                for opened, end in zip(stack, ends, strict=True):
                    seconds[opened.name] = seconds.get(opened.name, 0.0) + end - opened.start - opened.inner_s
            names = dict.fromkeys([*seconds, *self._tokens])
            phases = {name: {"wall_s": seconds.get(name, 0.0), "tokens": self._tokens.get(name, 0)} for name in names}
            phases["other"] = {"wall_s": max(0.0, wall_s - sum(seconds.values())), "tokens": 0}
            return {
                "wall_s": wall_s,
                "tokens_sampled": self._counted["sampled"],
                "tokens_trained": self._counted["trained"],
                "phases": phases,
            }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], clock: Callable[[], float] = time.perf_counter) -> Ledger:
        """A ledger that goes on from what `as_dict` gave (an empty dict: from nothing)."""
        ledger = cls(clock)
        ledger._before_s = data.get("wall_s", 0.0)
        ledger._counted["sampled"] = data.get("tokens_sampled", 0)
        ledger._counted["trained"] = data.get("tokens_trained", 0)
        for name, phase in data.get("phases", {}).items():
            if name != "other":  # what is left over is worked out anew
                ledger._seconds[name], ledger._tokens[name] = phase["wall_s"], phase["tokens"]
        return ledger
