"""Who is there: visitors by session hash, how many there may be, and when one has left.

A visitor is kept while the browser holds its heartbeat connection open or asks for something; half a minute (`Limits.idle_seconds`) after
the last of these it is closed, whatever the browser said or did not say. A tab that is open but in which nothing is done keeps what was
scored and loses its thread, with the memory of the model's session.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aha.api import Highlighter
from aha.core.memory import give_memory_back
from aha.errors import UserError
from aha.web.limits import Limits
from aha.web.session import Speaking, Turns, Visitor
from aha.web.uploads import Uploads

SWEEP_SECONDS = 5.0


class Visitors:
    """All visitors of one page. `root` holds every temporary file and is removed at the end."""

    def __init__(self, model: Highlighter, limits: Limits, root: Path):
        self.model, self.limits, self.root = model, limits, root
        self.uploads = Uploads(root, limits)
        self.folders = root / "visitors"
        self.folders.mkdir()
        self._turns = Turns()
        self._lock = threading.Lock()
        self._all: dict[str, Visitor] = {}
        self._starting: set[str] = set()
        self._connections: Counter[str] = Counter()
        self._seen: dict[str, float] = {}  # when each session last asked for something
        self._someone_left = False
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, name="aha-visitors", daemon=True).start()

    def find(self, session_hash: str) -> Visitor | None:
        """The visitor, if a video was started; it counts as seen."""
        with self._lock:
            self._seen[session_hash] = time.monotonic()
            return self._all.get(session_hash)

    def seen(self, session_hash: str) -> None:
        """Any request of a session. Raises UserError where there are too many of them: those that only look take memory too."""
        with self._lock:
            if session_hash not in self._seen and len(self._seen) >= 8 * self.limits.visitors:
                raise UserError("too many people look at this page now; try again in a minute.")
            self._seen[session_hash] = time.monotonic()

    @contextmanager
    def connected(self, session_hash: str) -> Iterator[None]:
        """While the heartbeat connection of a session is open."""
        with self._lock:
            self._connections[session_hash] += 1
        try:
            yield
        finally:
            with self._lock:
                self._connections[session_hash] -= 1
                if not self._connections[session_hash]:
                    del self._connections[session_hash]
                self._seen[session_hash] = time.monotonic()

    def start(self, session_hash: str, video: Path, queries: str, speaking: Speaking | None = None) -> Visitor:
        """Score a video for this session, which becomes a visitor. One start at a time; raises UserError for what is not allowed."""
        with self._lock:
            self._seen[session_hash] = time.monotonic()
            if session_hash in self._starting:
                raise UserError("this tab is starting a video already; wait a moment.")
            if session_hash not in self._all and len(self._all) >= self.limits.visitors:
                raise UserError(f"{self.limits.visitors} people are here already, as many as this page takes; try again in a minute.")
            others = {name for name, visitor in self._all.items() if visitor.is_scoring} | self._starting
            if len(others - {session_hash}) >= self.limits.running:
                raise UserError(f"{self.limits.running} videos are being watched already, as many as this page takes; try again later.")
            if session_hash not in self._all:
                self._all[session_hash] = Visitor(self.model, self._turns, self.folders, self.limits, self.uploads.use)
            visitor = self._all[session_hash]
            self._starting.add(session_hash)
        try:
            visitor.start(video, queries, speaking)
        finally:
            with self._lock:
                self._starting.discard(session_hash)
                self._seen[session_hash] = time.monotonic()
            if visitor.video is None:  # refused: it takes nobody's place
                self.leave(session_hash)
        return visitor

    def leave(self, session_hash: str) -> None:
        with self._lock:
            visitor = self._forget(session_hash)
        self._see_off(visitor)

    def _forget(self, session_hash: str) -> Visitor | None:
        self._seen.pop(session_hash, None)
        return self._all.pop(session_hash, None)

    def _see_off(self, visitor: Visitor | None) -> None:
        if visitor is not None:
            visitor.close()
            self._someone_left = True

    def close(self) -> None:
        self._closed.set()
        for session_hash in list(self._all):
            self.leave(session_hash)
        shutil.rmtree(self.root, ignore_errors=True)

    def _sweep(self) -> None:
        while not self._closed.wait(min(SWEEP_SECONDS, self.limits.idle_seconds)):
            now = time.monotonic()
            with self._lock:
                quiet = [name for name, at in self._seen.items() if now - at > self.limits.idle_seconds]
                left = [self._forget(name) for name in quiet if not self._connections[name] and name not in self._starting]
                idle = [v for v in self._all.values() if now - v.touched > self.limits.idle_minutes * 60]
            for visitor in left:
                self._see_off(visitor)
            for visitor in idle:
                if visitor.rest():
                    self._someone_left = True
            self.uploads.sweep()
            if self._someone_left:
                self._someone_left = False
                give_memory_back()
