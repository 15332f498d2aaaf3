"""What a run spends: seconds, tokens and joules, by phase, summed over every start of the run.

Knows clocks, counts and a meter. Phases nest: the time of an inner one is its own and not its outer's, so the phases and
`other` add up to the wall time (of one thread; phases of several threads overlap and may add up to more). Busy seconds and
joules are of all threads and processes at once: what the meter has counted since the last change of phase is booked on the
phase that was entered last, once, so that phases and `other` always add up to what was counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from strop.energy import Metered

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


@dataclass(slots=True)
class _Booked:
    """What a phase has spent beside wall time."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    tokens: int = 0
    tokens_in: int = 0
    joules: dict[str, float] = field(default_factory=dict)  # by source


class Ledger:
    """Seconds, tokens and joules by phase; `as_dict` is the `ledger` of summary.json. Without a meter nothing is known of joules.

    >>> now = iter([0, 1, 2, 5, 9, 10]).__next__
    >>> ledger = Ledger(clock=now)                # created at 0
    >>> with ledger.phase("train"):               # from 1
    ...     with ledger.phase("save"):            # from 2 to 5
    ...         pass
    ...     ledger.add_tokens("train", 640)       # to 9
    >>> as_dict = ledger.as_dict()                # at 10
    >>> {name: (phase["wall_s"], phase["tokens"]) for name, phase in as_dict["phases"].items()}
    {'save': (3.0, 0), 'train': (5.0, 640), 'other': (2.0, 0)}
    >>> as_dict["wall_s"], as_dict["tokens_trained"], as_dict["energy"]
    (10.0, 640, {})
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, meter: Metered | None = None) -> None:
        self._clock = clock
        self._meter = meter
        self._booked: dict[str, _Booked] = {}
        self._sources: dict[str, dict[str, Any]] = {}  # of earlier starts
        self._entered: list[_Open] = []  # of all threads, the last one last
        self._start = float(clock())
        self._before_s = 0.0  # wall time of earlier starts of the run
        self._seconds: dict[str, float] = {}
        self._counted: dict[Counted, int] = {"sampled": 0, "trained": 0, "neither": 0}
        self._open: dict[int, list[_Open]] = {}  # by thread, outermost first
        self._lock = threading.Lock()
        self.on_phase: Callable[[str], None] = lambda _: None  # told the innermost phase, or "other", at every change

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time of the body is booked on `name`, less that of phases inside it."""
        mine = _Open(name, float(self._clock()))
        with self._lock:
            self._book()
            stack = self._open.setdefault(threading.get_ident(), [])
            stack.append(mine)
            self._entered.append(mine)
        self.on_phase(name)
        try:
            yield
        finally:
            elapsed = self._clock() - mine.start
            with self._lock:
                self._book()
                stack.pop()
                self._entered = [other for other in self._entered if other is not mine]
                self._seconds[name] = self._seconds.get(name, 0.0) + elapsed - mine.inner_s
                if stack:
                    stack[-1].inner_s += elapsed
                outer = stack[-1].name if stack else "other"
            self.on_phase(outer)

    def _book(self) -> None:
        """What was spent since the last call, on the phase that runs."""
        if self._meter is None:
            return
        spent = self._meter.read()
        mine = self._of(self._entered[-1].name if self._entered else "other")
        mine.cpu_s += spent.cpu_s
        mine.gpu_s += spent.gpu_s
        for source, joules in spent.joules.items():
            mine.joules[source] = mine.joules.get(source, 0.0) + joules

    def _of(self, phase: str) -> _Booked:
        return self._booked.setdefault(phase, _Booked())

    def add_tokens(self, phase: str, num_tokens: int, *, tokens_in: int = 0, counts_as: Counted | None = None) -> None:
        """Books tokens on a phase, and on the run's sampled or trained total (`COUNTS_AS` says which, unless given).

        `tokens_in` are those of prompts, as often as they were computed.
        """
        counted = counts_as or COUNTS_AS[phase]
        with self._lock:
            mine = self._of(phase)
            mine.tokens += int(num_tokens)
            mine.tokens_in += int(tokens_in)
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
            self._book()
            seconds["other"] = max(0.0, wall_s - sum(seconds.values()))
            names = dict.fromkeys([*seconds, *self._booked])
            phases = {name: {"wall_s": seconds.get(name, 0.0), **asdict(self._of(name))} for name in names}
            phases["other"] = phases.pop("other")  # last
            return {
                "wall_s": wall_s,
                "tokens_sampled": self._counted["sampled"],
                "tokens_trained": self._counted["trained"],
                "energy": self._about(),
                "phases": phases,
            }

    def _about(self) -> dict[str, Any]:
        """What every source is, of this start of the run and of earlier ones, and all its joules."""
        known = self._sources | ({} if self._meter is None else self._meter.about())
        return {
            name: {**about, "joules": sum(booked.joules.get(name, 0.0) for booked in self._booked.values())}
            for name, about in known.items()
        }

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], clock: Callable[[], float] = time.perf_counter, meter: Metered | None = None
    ) -> Ledger:
        """A ledger that goes on from what `as_dict` gave (an empty dict: from nothing), also in an older version."""
        ledger = cls(clock, meter)
        ledger._before_s = data.get("wall_s", 0.0)
        ledger._counted["sampled"] = data.get("tokens_sampled", 0)
        ledger._counted["trained"] = data.get("tokens_trained", 0)
        ledger._sources = {name: dict(about) for name, about in data.get("energy", {}).items()}
        for name, phase in data.get("phases", {}).items():
            known: dict[str, Any] = {f.name: phase[f.name] for f in fields(_Booked) if f.name in phase}
            known["joules"] = dict(phase.get("joules", {}))
            ledger._booked[name] = _Booked(**known)
            if name != "other":  # the time that is left over is worked out anew
                ledger._seconds[name] = phase["wall_s"]
        return ledger
