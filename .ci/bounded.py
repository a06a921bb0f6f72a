"""Run a command for at most so many minutes; when it is over, nothing that it started is left.   python .ci/bounded.py MINUTES COMMAND ...

timeout(1) ends one process group, and browsers, servers and ranks live in sessions of their own. So this process asks Linux to be given the
orphans of all that it starts, and ends its descendants: with SIGINT where the time is over, so that pytest says which test it was in, then
with SIGKILL. Exit code: the command's, 124 where the time was over.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
GRACE_SECONDS = 20  # for pytest's last words


def descendants() -> dict[int, str]:
    """Process id and name of all that lives below this process."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = path.read_text(errors="replace").rpartition(") ")
            state, parent, *_ = rest.split()
            if state != "Z":
                parents[int(path.parent.name)], names[int(path.parent.name)] = int(parent), name.partition("(")[2]
    found: dict[int, str] = {}
    while new := {one: names[one] for one, parent in parents.items() if one not in found and (parent == os.getpid() or parent in found)}:
        found |= new
    return found


def wait(process: int, seconds: float) -> int | None:
    """The exit code of a child, None where it goes on. Orphans that end meanwhile are reaped: whoever asks takes a zombie for alive."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == process:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if not ended:
            time.sleep(0.02)
    return None


def kill_all() -> None:
    while left := descendants():
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def main() -> int:
    minutes, *command = sys.argv[1:]
    linux = ctypes.CDLL(None)
    linux.prctl(PR_SET_CHILD_SUBREAPER, 1)
    linux.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored, by all that it starts
    try:
        process = os.posix_spawnp(command[0], command, os.environ)
        code = wait(process, float(minutes) * 60)
        if code is not None:
            if left := descendants():
                print(f"left running, killed: {', '.join(sorted(set(left.values())))} ({len(left)})", flush=True)
            return code
        print(f"not over after {minutes} minutes, killed", flush=True)
        for one in descendants():
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGINT)
        wait(process, GRACE_SECONDS)
        return 124
    finally:
        kill_all()


if __name__ == "__main__":
    sys.exit(main())
