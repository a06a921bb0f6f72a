"""The reading thread and its queue, with the rule for falling behind.

A file or a pipe waits for the model: nothing is dropped. A camera or a live stream does not wait: where frames arrive faster than they are
scored, the oldest waiting frame is dropped (aha.streaming.live.Waiting).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import av

from aha.core.readers import Reader
from aha.errors import UserError
from aha.streaming.live import Waiting
from aha.watch.sources import Lost, Reconnected, Resumed, SourceFrame

Item = SourceFrame | Lost | Reconnected | Resumed


class Feed:
    """Reads `items` in a thread; `get` or `take` the next one. After the last `ended` is set, and `error` says why if reading failed.

    open: instead of `items`, what makes them in the thread (and may set `live`): a camera that does not answer keeps nobody waiting.
    wake: called, in the thread, when there is something new.
    """

    def __init__(
        self, items: Iterator[Item], size: int, live: bool, paced: bool = False, wake: Callable[[], None] | None = None,
        open: Callable[[Feed], Iterator[Item]] | None = None,
    ):  # fmt: skip
        self.live, self.paced = live, paced
        self._wake, self._open = wake, open
        self.ended = self.complete = False  # no more items; and that in good order
        self.error: Exception | None = None
        self._items = items
        self._queue: Waiting[Item] = Waiting(size)
        self._stop = False
        self._changed = threading.Condition()
        self._thread = Reader(self._read, name="aha-watch-reader")
        self._thread.start()

    @property
    def waits(self) -> bool:
        """Whether the reading stops while the queue is full; else the oldest frame is dropped."""
        return not self.live

    @property
    def dropped(self) -> int:
        """Frames that were dropped because the model was behind."""
        return self._queue.dropped

    def get(self, timeout: float) -> Item | None:
        """The next item; None if none came in `timeout` seconds or the feed has ended."""
        with self._changed:
            if not self._queue and not self.ended:
                self._changed.wait(timeout)
            if not self._queue:
                return None
            item = self._queue.take()
            self._changed.notify_all()
            return item

    def take(self, frame: bool, notice: bool) -> Item | None:
        """The next item if there is one, at once: a frame only if `frame`, a notice only if `notice`. Their order is kept."""
        if not self._queue:  # a look without the lock, of which 100 feeds a round are many: what comes now wakes its taker
            return None
        with self._changed:
            if not self._queue or not (frame if isinstance(self._queue.oldest, SourceFrame) else notice):
                return None
            item = self._queue.take()
            self._changed.notify_all()
            return item

    @property
    def waiting_since(self) -> float | None:
        """When the oldest frame that waits has arrived (time.monotonic)."""
        with self._changed:
            oldest = self._queue.oldest if self._queue else None
            return oldest.arrived if isinstance(oldest, SourceFrame) else None

    @property
    def empty(self) -> bool:
        return self.ended and not self._queue  # nothing comes after the end

    def stop(self) -> None:
        """End the thread; what waits in the queue is thrown away."""
        self.leave()
        self._thread.join(timeout=2.0)

    def leave(self) -> None:
        """As `stop`, without waiting for a thread that may hang in a connection: it ends when that answers."""
        with self._changed:
            self._stop = True
            self._queue.clear()
            self._changed.notify_all()

    def _read(self) -> None:
        started: float | None = None
        try:
            if self._open is not None:
                self._items = self._open(self)
            for item in self._items:
                if self.paced and isinstance(item, SourceFrame):
                    started = time.monotonic() - item.time if started is None else started
                    time.sleep(max(0.0, started + item.time - time.monotonic()))
                    item = SourceFrame(item.image_CHW, item.time, time.monotonic())
                if not self._put(item):
                    return
            self.complete = True
        except (UserError, OSError, av.error.FFmpegError) as error:
            self.error = error
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()
            if self._wake is not None:
                self._wake()

    def _put(self, item: Item) -> bool:
        with self._changed:
            while self.waits and self._queue.full and not self._stop:
                self._changed.wait()
            if self._stop:
                return False
            if isinstance(item, SourceFrame):
                self._queue.add_frame(item)
            else:
                self._queue.add_notice(item)
            self._changed.notify_all()
        if self._wake is not None:
            self._wake()
        return True
