"""How a process that trains asks its system for memory, and gives it back; what it keeps from others that it starts.

Knows glibc's allocator and nothing of models. Read by the command line, the pipeline, the bench and `engine/vllm.py`.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

__all__ = ["OUR_ENV", "give_back_memory", "keep_freed_memory"]

# How our threads wait for each other; set by the command line, and kept from processes that are not ours.
OUR_ENV = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_KEPT = 32 << 20  # the most that glibc accepts


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
