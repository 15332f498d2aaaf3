"""How a process that trains asks its system for memory. Knows nothing of models; read by the command line and the bench."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

__all__ = ["give_back_memory", "keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_KEPT = 32 << 20  # the most that glibc accepts


def keep_freed_memory() -> None:
    """Freed memory stays with the process, to be handed out again.

    A training pass frees and asks for the same gigabytes again and again. By default glibc returns every large block to
    the system, which then has to clear each page anew: a quarter of an update's time on two cores (LAB.md). Blocks above
    32 MB (logits) still go back: kept, they leave holes that nothing fits, and the peak triples. Without glibc this does nothing.
    """
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """What was kept goes back to the system, because another process needs it now."""
    if (malloc_trim := _libc("malloc_trim")) is not None:
        malloc_trim(0)


def _libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
