"""Waiting in tests, on machines of any speed: for the condition itself, and so long that only a fault makes it fail.

wait_for(lambda: len(events) > 4, what="five events are told")
wait_until_gone(str(output))       # processes that were killed, or whose parent was
port = free_port()
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LONG = 120.0  # seconds; nothing that is waited for takes more than a few of them on a quiet machine


def wait_for(condition: Callable[[], Any], seconds: float = LONG, what: str = "") -> Any:
    """The first true value of the condition. Fails where there is none in time; `what` says what was waited for."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s in vain" + (f" until {what}" if what else "")
        time.sleep(0.01)
    return value


def running(words: str) -> list[int]:
    """The processes with these words in their command line; those that have ended have none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it went away meanwhile
            if words.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def wait_until_gone(words: str) -> None:
    wait_for(lambda: not running(words), what=f"no process has {words} in its command line")


def listens(port: int) -> bool:
    """Whether a server takes connections at a port of 127.0.0.1."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=LONG):
        return True
    return False


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens, for a server that must be told its port. It lies below those that the system hands out
    (32768 and up), so no connection of another process takes it in the meantime."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
