"""Pictures that a client sends -> frames for the engine, by a feed as those of cameras (aha.watch.feed).

    feed = ClientFeed(fps, side, size, limits, raw_size, told, wake)
    feed.send(data)                   # JPEG or PNG, or bare RGB of raw_size; from any thread, never waits
    feed.finish()                     # none will come: the session ends when those that wait are scored

The k-th picture is at k/fps seconds unless the client says when it is. What waits is kept as it was sent and decoded, in the feed's thread,
when the engine has room: where pictures come faster than they are scored the oldest one is dropped, counted, before it costs anything.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from aha.errors import UserError
from aha.serve.limits import WRONG_IN_A_ROW, Limits
from aha.streaming.live import Waiting
from aha.video.frames import decode_image, letterbox
from aha.watch.feed import Feed, Item
from aha.watch.sources import Resumed, SourceFrame

DECODED = 2  # frames that are ready for the engine
SOONEST = 1e-6  # seconds between two pictures


@dataclass(frozen=True)
class _Sent:
    data: bytes
    time: float
    arrived: float


class Allowance:
    """At most `rate` a second on average, and `at_once` after a pause."""

    def __init__(self, rate: float, at_once: float | None = None):
        self.rate, self.most = rate, max(1.0, rate if at_once is None else at_once)
        self._left, self._at = self.most, time.monotonic()

    @property
    def is_there(self) -> bool:
        now = time.monotonic()
        self._left = min(self.most, self._left + (now - self._at) * self.rate)
        self._at = now
        return self._left >= 1

    def take(self) -> bool:
        if not self.is_there:
            return False
        self._left -= 1
        return True


class ClientFeed(Feed):
    """fps: pictures a second as the client means to send them. size: pictures that may wait. raw_size: (width, height) of bare RGB, None:
    JPEG or PNG. told: is called with a sentence for each picture that cannot be read. resumed: the session goes on; last:
    seconds of its last frame, None where it has seen none."""

    def __init__(
        self, fps: float, side: int, size: int, limits: Limits, raw_size: tuple[int, int] | None, told: Callable[[str], None],
        wake: Callable[[], None], resumed: bool = False, last: float | None = None,
    ):  # fmt: skip
        self.fps, self.side, self.limits, self.raw_size, self.told = fps, side, limits, raw_size, told
        self._inbox: Waiting[_Sent] = Waiting(size)
        self._arrived = threading.Condition()
        self._allowance = Allowance(limits.max_fps)
        self._over = False
        self._last = last  # seconds of the last picture that was sent
        super().__init__(self._frames(resumed), DECODED, live=True, wake=wake)

    @property
    def waits(self) -> bool:
        return True  # to decode; what is too much is dropped in the inbox

    @property
    def dropped(self) -> int:
        return self._inbox.dropped

    @property
    def waiting(self) -> int:
        return self._inbox.frames

    @property
    def has_room(self) -> bool:
        """Whether a picture can be sent for which none is dropped (also where it will be refused)."""
        with self._arrived:
            return self._over or (not self._inbox.full and self._allowance.is_there)

    def send(self, data: bytes, seconds: float | None = None) -> bool:
        """A picture, at `seconds` of the stream. False where one was dropped for it, or it itself because they come too fast.

        Raises UserError: too large, a moment that is not after the last one, or the session takes no more.
        """
        if len(data) > self.limits.picture_bytes:
            raise UserError(f"the picture has {len(data):,} bytes, more than {self.limits.picture_bytes:,}; send it smaller.")
        with self._arrived:
            if self._over:
                raise UserError("this session takes no more pictures; create another.")
            due = 0.0 if self._last is None else (math.floor(self._last * self.fps + 1e-6) + 1) / self.fps
            seconds = due if seconds is None else seconds
            if not 0 <= seconds < 1e9 or (self._last is not None and seconds < self._last + SOONEST):
                raise UserError(f"the time of a picture, {seconds:g} s, must be after that of the one before ({self._last or 0:g} s).")
            self._last = seconds
            if not self._allowance.take():
                self._inbox.dropped += 1
                return False
            fits = self._inbox.add_frame(_Sent(data, seconds, time.monotonic()))
            self._arrived.notify_all()
            return fits

    def finish(self) -> None:
        with self._arrived:
            self._over = True
            self._arrived.notify_all()

    def leave(self) -> None:
        super().leave()
        with self._arrived:
            self._over = True
            self._inbox.clear()
            self._arrived.notify_all()

    def _frames(self, resumed: bool) -> Iterator[Item]:
        if resumed:
            yield Resumed(0.0)
        wrong = 0
        while (sent := self._next()) is not None:
            try:
                image_HWC = picture_of(sent.data, self.raw_size, self.limits.max_pixels)
            except UserError as error:
                wrong += 1
                if wrong == WRONG_IN_A_ROW:
                    raise UserError(f"{wrong} pictures in a row could not be read; the last one: {error}") from error
                self.told(str(error))
                continue
            wrong = 0
            yield SourceFrame(np.ascontiguousarray(letterbox(image_HWC, self.side).transpose(2, 0, 1)), sent.time, sent.arrived)

    def _next(self) -> _Sent | None:
        with self._arrived:
            while not self._inbox and not self._over:
                self._arrived.wait()
            return self._inbox.take() if self._inbox else None


def picture_of(data: bytes, raw_size: tuple[int, int] | None, most_pixels: int) -> np.ndarray:
    """uint8 RGB [H, W, 3]. Raises UserError."""
    if raw_size is None:
        return decode_image(data, most_pixels)
    width, height = raw_size
    if len(data) != 3 * width * height:
        raise UserError(
            f"a raw picture of {width}x{height} has {3 * width * height:,} bytes, this one {len(data):,}; send RGB, row by row."
        )
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
