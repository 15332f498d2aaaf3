"""Room in memory: a look in front of every layer, so that a process stops by itself where the system would kill it.

A GPU raises when its memory is full; a CPU's system kills without a word (SIGKILL, often on a container's limit), and no
handler runs. So whoever computes asks here, a few dozen times a second, and gets `OutOfRoom` while there is still room to
clean up: the learner halves its token budget, the engine its rows, and both go on. Knows the system's figures and nothing
of models. Read by `attention`, which every layer of every model passes through, by the learner and the engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import psutil

from strop.machine import cgroup_room

__all__ = ["OutOfRoom", "check", "keep_within", "room_bytes"]

RESERVE_BYTES = 256e6  # what a layer asks for between two looks, and the way out
EVERY_S = 0.02

_most_bytes = math.inf
_next = 0.0


class OutOfRoom(MemoryError):
    """The next allocation might be the one that kills. Whoever can do with less tries again with less."""


@contextmanager
def keep_within(most_gb: float | None) -> Iterator[None]:
    """Inside, this process is to stay below so many GB (1e9 bytes) of resident memory; None: what the system allows."""
    global _most_bytes
    before, _most_bytes = _most_bytes, math.inf if most_gb is None else most_gb * 1e9
    try:
        yield
    finally:
        _most_bytes = before


def check() -> None:
    """Raises OutOfRoom where little is left. Cheap: it looks at most every `EVERY_S` seconds."""
    global _next
    now = time.monotonic()
    if now < _next:
        return
    _next = now + EVERY_S
    if room_bytes() <= 0:
        raise OutOfRoom(
            "all memory that may be taken is in use: close other programs, or raise memory_gb where it is set"
        )


def room_bytes() -> float:
    """Bytes that this process may still take: of its own limit, and of its control group's and the machine's, from which
    a reserve is kept: beyond those the system kills. May be negative."""
    own = _most_bytes - psutil.Process().memory_info().rss if math.isfinite(_most_bytes) else math.inf
    return min(own, min(_group_room()(), float(psutil.virtual_memory().available)) - RESERVE_BYTES)


@cache
def _group_room() -> Callable[[], float]:
    return cgroup_room()
