"""Threads that read from a connection, a pipe or a terminal, and the end of a process in which one of them still waits there."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable


class Reader(threading.Thread):
    """A thread that nobody waits for: what it reads from may be silent for as long as it likes."""

    def __init__(self, read: Callable[..., None], *args: object, name: str):
        super().__init__(target=read, args=args, name=name, daemon=True)


def leave_readers() -> None:
    """End a process in which a Reader is still at work; else nothing happens. Call it last, in a `finally` of the outermost function.

    The process gets the exit code that it has anyway, and what atexit holds is done, but Python does not take itself down: a thread that
    comes back to it from FFmpeg's wait for a connection would crash the process (exit code -11), one that waits for standard input would
    abort it (-6).
    """
    if not any(isinstance(thread, Reader) for thread in threading.enumerate()):
        return
    error = sys.exc_info()[1]
    if error is None:
        code = 0
    elif isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    else:
        traceback.print_exception(error)
        code = 1
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        if output is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                output.flush()
    os._exit(code)
