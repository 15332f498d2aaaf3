"""How a process that trains asks its system for memory, and gives it back; how its threads wait; what it keeps from others that it starts.

Knows glibc's allocator, OpenMP's settings and nothing of models. Read by the command line, the pipeline, the bench and `engine/vllm.py`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["OUR_ENV", "give_back_memory", "keep_freed_memory", "wait_at_barriers"]

# How our threads wait for each other; set by the command line, and kept from processes that are not ours.
OUR_ENV = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

SPINS = {"alone": "5000", "in company": "1000"}  # rounds of some 50 ns before a thread sleeps
LOOKS, LOOK_S = 3, 0.002  # at who else runs

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_KEPT = 32 << 20  # the most that glibc accepts


def wait_at_barriers() -> None:
    """Sets how long our threads spin at a barrier before they sleep, unless the user did; before torch is imported.

    On a busy core what a spinning thread waits for does not run, so they spin for a moment only. Where nothing else
    runs now they spin five times as long: waking a thread takes longer than most of what it waits for (LAB.md).
    """
    if not any(key in os.environ for key in OUR_ENV):
        os.environ["GOMP_SPINCOUNT"] = SPINS["alone" if _alone() else "in company"]


def _alone() -> bool:
    """Whether no other thread of the machine wants to run; False where that cannot be seen."""
    table = Path("/proc/loadavg")
    if not table.exists():
        return False
    running = []
    for _ in range(LOOKS):
        running.append(int(table.read_text().split()[3].split("/")[0]))
        time.sleep(LOOK_S)
    return min(running) <= 1  # this one


def keep_freed_memory() -> None:
    """Freed blocks of up to 32 MB stay with the process, to be handed out again.

    A training pass frees and asks for the same gigabytes again and again. By default glibc returns every large block to
    the system, which then has to clear each page anew: a quarter of an update's time on two cores (LAB.md). Larger
    ones (logits) still go back: kept, they leave holes that nothing fits, and with 152k words the peak is nearly three
    times as high. Without glibc this does nothing.
    """
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Garbage and what was kept of freed memory go back to the system."""
    gc.collect()
    if (malloc_trim := _libc("malloc_trim")) is not None:
        malloc_trim(0)


def _libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
