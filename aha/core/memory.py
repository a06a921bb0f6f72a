"""How much memory this process holds: few heaps for many threads, and freed memory handed back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

M_ARENA_MAX = -8  # malloc.h of glibc
ARENAS = 4


def few_arenas() -> None:
    """Let all threads share ARENAS heaps. By itself glibc gives each thread a heap of its own, up to 8 for each core, and each heap keeps
    what its thread once used. Call it before threads are started."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def keep_for_good() -> None:
    """Declare all objects that exist now permanent: the garbage collector no longer looks through them (half a second each time, with
    torch)."""
    gc.collect()
    gc.freeze()


def peak_mib() -> float:
    """The most memory that this program has had. The system's own ru_maxrss begins with what the process had before it became this program:
    a small one that is started by a large one would count as large."""
    if sys.platform == "linux":
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def give_memory_back() -> None:
    """Hand freed memory back to the system now; by itself glibc keeps what threads have freed for later use."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
