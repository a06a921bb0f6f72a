"""Frames of many streams that do not wait: collected as they arrive, scored in batches, dropped by a stated rule when there are too many.

    live = LiveStreams(engine, max_waiting=4)
    live.offer(session, frame, time)      # from any thread; False: this stream is behind and its oldest waiting frame was dropped
    for scored in live.step(): ...        # one batch: at most one frame of each stream, those that have waited longest first

The rule: a stream keeps at most `max_waiting` frames that are not scored yet. When another arrives, its oldest waiting one is dropped: what
is scored is never older than the queue is long, and a stream that is too fast does not slow down the others. Nothing is dropped silently:
`offer` says so, and every scored frame carries the number dropped since the one before it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from aha.models.model import FrameScores
from aha.streaming.online import OnlineEngine
from aha.streaming.session import Session


@dataclass(frozen=True)
class LiveScores:
    """scores: of one frame, each [1]. time: as offered. waited: seconds from offer to scores. dropped: frames left out before it."""

    session: Session
    time: float
    scores: FrameScores
    waited: float
    dropped: int


@dataclass
class _Stream:
    session: Session
    waiting: deque[tuple[np.ndarray | Tensor, float, float]] = field(default_factory=deque)  # frame, its time, when it was offered
    dropped: int = 0


class LiveStreams:
    """Queues of waiting frames in front of an online engine."""

    def __init__(self, engine: OnlineEngine, max_waiting: int = 4):
        if max_waiting < 1:
            raise ValueError(f"max_waiting is {max_waiting}; at least one frame must be able to wait")
        self.engine, self.max_waiting = engine, max_waiting
        self.streams: dict[int, _Stream] = {}
        self.lock = threading.Lock()

    def offer(self, session: Session, frame: np.ndarray | Tensor, time_s: float) -> bool:
        """A new frame of a stream (uint8 [3, 384, 384]; seconds of the stream). False where an older one had to be dropped for it."""
        with self.lock:
            stream = self.streams.setdefault(id(session), _Stream(session))
            full = len(stream.waiting) == self.max_waiting
            if full:
                stream.waiting.popleft()
                stream.dropped += 1
            stream.waiting.append((frame, time_s, time.perf_counter()))
            return not full

    def leave(self, session: Session) -> None:
        """Forget a stream and its waiting frames; closing the session is the caller's."""
        with self.lock:
            self.streams.pop(id(session), None)

    @property
    def waiting(self) -> int:
        """Frames of all streams that are not scored yet."""
        with self.lock:
            return sum(len(stream.waiting) for stream in self.streams.values())

    def step(self) -> list[LiveScores]:
        """Score one batch of waiting frames; an empty list where none waits."""
        with self.lock:
            ready = sorted((s for s in self.streams.values() if s.waiting), key=lambda s: s.waiting[0][2])[: self.engine.max_batch]
            taken = [(stream.session, *stream.waiting.popleft(), stream.dropped) for stream in ready]
            for stream in ready:
                stream.dropped = 0
        if not taken:
            return []
        scores = self.engine.push([session for session, *_ in taken], [frame for _, frame, *_ in taken])
        now = time.perf_counter()
        return [
            LiveScores(session, time_s, FrameScores(*(None if v is None else v[n : n + 1] for v in scores)), now - offered, dropped)
            for n, (session, _, time_s, offered, dropped) in enumerate(taken)
        ]
