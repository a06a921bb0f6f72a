"""What a session has to say, until it is read: the last KEPT scores and the last KEPT events, numbered.

    outbox = Outbox(call_soon)                        # call_soon(work): runs `work` in the event loop, called from any thread
    outbox.put({"event": "score", ...})               # from any thread; never waits
    messages, missed, at = outbox.after(17)           # those after number 17, how many of them are gone, and where to go on

Whoever reads does it at its own pace: what a slow reader has not read in time is gone for it, counted, and costs nobody else anything.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from aha.serve.limits import KEPT

Message = tuple[int, str]  # its number; as JSON
AT_ONCE = 256  # messages that a reader gets


class Outbox:
    def __init__(self, call_soon: Callable[[Callable[[], None]], None]):
        self.last = 0  # number of the newest message
        self.over = False  # none will come
        self._call_soon = call_soon
        self._scores: deque[Message] = deque(maxlen=KEPT)
        self._events: deque[Message] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._readers: set[asyncio.Event] = set()

    def put(self, message: dict[str, Any], last: bool = False) -> None:
        """last: no other will come."""
        with self._lock:
            self.last += 1
            self.over = self.over or last
            text = json.dumps({"n": self.last, **message}, ensure_ascii=False)
            (self._scores if message["event"] == "score" else self._events).append((self.last, text))
        self._call_soon(self._wake)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.set()

    def after(self, number: int) -> tuple[list[Message], int, int]:
        with self._lock:
            number = min(number, self.last)
            found: list[Message] = []
            for kind in (self._scores, self._events):
                for message in reversed(kind):
                    if message[0] <= number:
                        break
                    found.append(message)
            found = sorted(found)[:AT_ONCE]
            at = found[-1][0] if found else self.last
            return found, at - number - len(found), at

    async def wait(self, number: int, seconds: float | None = None) -> None:
        """Until there is a message after `number` or no other will come, at most `seconds`. In the event loop."""
        changed = asyncio.Event()
        self._readers.add(changed)
        try:
            async with asyncio.timeout(seconds):
                while self.last <= number and not self.over:
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            pass
        finally:
            self._readers.discard(changed)
