"""Memory of this process: as little of it as many threads need, and back to the system with what is free."""

from __future__ import annotations

import ctypes
import gc
import sys

M_ARENA_MAX = -8  # malloc.h of glibc
ARENAS = 4


def few_arenas() -> None:
    """glibc gives each thread a heap of its own, up to 8 for each core, and each keeps what its thread once used. To be called early."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def keep_for_good() -> None:
    """What there is now stays: Python does not look through it again each time it looks for what can go (half a second with torch)."""
    gc.collect()
    gc.freeze()


def give_memory_back() -> None:
    """Freed memory goes back to the system at once; glibc keeps what threads used for later."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
