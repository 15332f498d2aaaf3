"""A B A B: competitors take turns on the same work, because a shared machine drifts by a factor of two in an hour.

Knows turns, medians and the spread of what was measured side by side; not what the work is. The machine's ceilings
are turns like any other, so that they are measured in the same minutes as the work that is held against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strop.bench.worker import Side

__all__ = ["Samples", "Turn", "alternate", "median", "ratios"]

Samples = Mapping[str, Sequence[Mapping[str, Any]]]  # by turn, one answer a round


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One side with the request it is given in every round."""

    name: str
    side: Side
    request: Mapping[str, Any] = field(default_factory=dict)


def alternate(turns: Sequence[Turn], *, pairs: int, say: Callable[[str], None], title: str) -> dict[str, list[Any]]:
    """Every turn once a round, for one round that does not count and `pairs` that do; a peer that died has no samples."""
    samples: dict[str, list[Any]] = {turn.name: [] for turn in turns}
    for turn in turns:
        turn.side.wait_until_ready()
    for number in range(pairs + 1):
        told = []
        for turn in turns:
            answer = turn.side.ask(**turn.request)
            if answer is None:
                samples[turn.name].clear()
                continue
            told.append(f"{turn.name} {answer['seconds']:.3g} s")
            if number:
                samples[turn.name].append(answer)
        say(f"{title}, {f'round {number} of {pairs}' if number else 'warm-up'}: {', '.join(told)}")
    return {name: answers for name, answers in samples.items() if answers}


def median(answers: Sequence[Mapping[str, Any]], key: str = "seconds") -> float:
    """
    >>> median([{"seconds": 1.0}, {"seconds": 9.0}, {"seconds": 2.0}])
    2.0
    """
    return float(np.median([answer[key] for answer in answers]))


def ratios(samples: Samples, slow: str, fast: Sequence[str]) -> dict[str, list[float]]:
    """How many times as long `slow` takes as each of `fast`: ratio of the medians, then the lowest and highest of a round.

    >>> ratios({"a": [{"seconds": 6.0}, {"seconds": 8.0}], "b": [{"seconds": 2.0}, {"seconds": 2.0}]}, "a", ["b"])
    {'over b': [3.5, 3.0, 4.0]}
    """
    out = {}
    for name in fast:
        each = [s["seconds"] / f["seconds"] for s, f in zip(samples[slow], samples[name], strict=True)]
        out[f"over {name}"] = [median(samples[slow]) / median(samples[name]), min(each), max(each)]
    return out
