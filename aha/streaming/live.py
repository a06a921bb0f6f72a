"""Frames of many streams that do not wait: collected as they arrive, scored in batches, dropped by a stated rule when there are too many.

    live = LiveStreams(engine, max_waiting=4)
    live.offer(session, frame, time)      # from any thread; False: this stream is behind and its oldest waiting frame was dropped
    for scored in live.step(): ...        # one batch: at most one frame of each stream, those that have waited longest first
    live.launch(); live.collect()         # the same in two halves, of which the second waits for a GPU

The rule: a stream keeps at most `max_waiting` frames that are not scored yet. When another arrives, its oldest waiting one is dropped: what
is scored is never older than the queue is long, and a stream that is too fast does not slow down the others. Nothing is dropped silently:
`offer` says so, and every scored frame carries the number dropped since the one before it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:  # the queue is to be had without torch
    import numpy as np
    from torch import Tensor

    from aha.models.model import FrameScores
    from aha.streaming.online import OnlineEngine
    from aha.streaming.session import Session

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """What of one stream waits to be scored, oldest first: at most `size` frames, and notices between them, which are never dropped.

    Here the rule is kept; locks are the owner's.
    """

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"the queue holds {size} frames; at least one must be able to wait")
        self.size = size
        self.frames = 0  # that wait
        self.dropped = 0  # frames, ever
        self._items: deque[tuple[Item, bool]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return self.frames >= self.size

    @property
    def oldest(self) -> Item:
        return self._items[0][0]

    def add_frame(self, frame: Item) -> bool:
        """False where the oldest waiting frame had to be dropped for it."""
        fits = not self.full
        if not fits:
            del self._items[next(i for i, (_, is_frame) in enumerate(self._items) if is_frame)]
            self.frames -= 1
            self.dropped += 1
        self._items.append((frame, True))
        self.frames += 1
        return fits

    def add_notice(self, notice: Item) -> None:
        self._items.append((notice, False))

    def first(self, count: int) -> list[Item]:
        """The oldest, at most `count`; they stay."""
        return [item for item, _ in itertools.islice(self._items, count)]

    def take(self) -> Item:
        item, is_frame = self._items.popleft()
        self.frames -= is_frame
        return item

    def clear(self) -> None:
        self._items.clear()
        self.frames = 0


@dataclass(frozen=True)
class LiveScores:
    """scores: of one frame, each [1]. time: as offered. waited: seconds from offer to scores. dropped: frames left out before it.
    feature_H: mean token of the frame, on the host."""

    session: Session
    time: float
    scores: FrameScores
    waited: float
    dropped: int
    feature_H: Tensor


@dataclass(frozen=True)
class Offered:
    """A frame that waits. time: seconds of the stream; moment: time.perf_counter() of the offer."""

    frame: np.ndarray | Tensor
    time: float
    moment: float


class _Stream:
    def __init__(self, session: Session, size: int):
        self.session = session
        self.waiting: Waiting[Offered] = Waiting(size)
        self.reported = 0  # dropped frames that a score has told of

    def take(self) -> tuple[Session, Offered, int]:
        dropped, self.reported = self.waiting.dropped - self.reported, self.waiting.dropped
        return self.session, self.waiting.take(), dropped


class LiveStreams:
    """Queues of waiting frames in front of an online engine."""

    def __init__(self, engine: OnlineEngine, max_waiting: int = 4):
        self.engine, self.max_waiting = engine, max_waiting
        self.streams: dict[int, _Stream] = {}
        self.lock = threading.Lock()
        self._taken: deque[list[tuple[Session, Offered, int]]] = deque()  # what is in the engine

    def offer(self, session: Session, frame: np.ndarray | Tensor, time_s: float) -> bool:
        """A new frame of a stream (uint8 [3, S, S]; seconds of the stream). False where an older one had to be dropped for it."""
        with self.lock:
            stream = self.streams.setdefault(id(session), _Stream(session, self.max_waiting))
            return stream.waiting.add_frame(Offered(frame, time_s, time.perf_counter()))

    def leave(self, session: Session) -> None:
        """Forget a stream and its waiting frames; closing the session is the caller's."""
        with self.lock:
            self.streams.pop(id(session), None)

    @property
    def waiting(self) -> int:
        """Frames of all streams that are not scored yet."""
        with self.lock:
            return sum(len(stream.waiting) for stream in self.streams.values())

    def _ready(self) -> list[_Stream]:
        """The streams of the next batch: those whose oldest frame has waited longest."""
        waiting = sorted((s for s in self.streams.values() if s.waiting), key=lambda s: s.waiting.oldest.moment)
        return waiting[: self.engine.full_batch(len(waiting))]

    def step(self) -> list[LiveScores]:
        """Score one batch of waiting frames; an empty list where none waits."""
        self.launch()
        return self.collect()

    @property
    def full(self) -> bool:
        """Whether scores must be collected before the next launch."""
        return len(self._taken) == self.engine.depth

    def launch(self) -> bool:
        """Give one batch of waiting frames to the engine, which is not `full`. False: none waits."""
        with self.lock:
            taken = [stream.take() for stream in self._ready()]
            upcoming = self._upcoming()
        if taken:
            self.engine.launch([session for session, _, _ in taken], [offered.frame for _, offered, _ in taken], upcoming)
            self._taken.append(taken)
        return bool(taken)

    def _upcoming(self) -> list[list[np.ndarray | Tensor]]:
        """The batches after the one that was taken, as far as they are known."""
        ready = self._ready()
        if len(ready) == 1:
            return [[offered.frame] for offered in ready[0].waiting.first(self.engine.foresight)]
        return [[stream.waiting.oldest.frame for stream in ready]] if ready else []

    def collect(self) -> list[LiveScores]:
        """The scores of the oldest launch; an empty list where nothing was launched."""
        if not self._taken:
            return []
        taken = self._taken.popleft()
        scores = self.engine.collect()
        now = time.perf_counter()
        return [
            LiveScores(session, offered.time, scores.rows(n, n + 1), now - offered.moment, dropped, self.engine.features_BH[n])
            for n, (session, offered, dropped) in enumerate(taken)
        ]
