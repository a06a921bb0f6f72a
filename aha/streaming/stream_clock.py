"""The clock of a live stream in scoring: frames that arrive while the model is busy are lost. `--clock wall --speed SPEED`.

    clock = StreamClock.of("10fps")                      # or "machine", "inf"
    for frames, values in clock.taken(chunks, singly=False):
        ...

A frame arrives at its time in the stream. A model that is free takes it and is busy for what it costs; one that is busy does not see it,
now or later: no frame waits. What was taken is decided at its time + its cost, and so much later is what is said after it. Costs:

    10fps     1/10 s of stream time for a frame, and for each token of a reply (both read all of the model's weights once): the same frames
              are taken on every machine, whatever else runs on it
    machine   as long as this machine takes: picture to scores, the question's words and the reply with it. Reading and decoding the video
              is not counted (a live stream has its own thread for it), and nothing is waited for: the stream's time goes on by what was
              measured, so that an hour of video takes as long as its scoring
    inf       nothing: every frame is taken, and the scores are those without a clock, bit for bit

An asynchronous protocol, as of VSAS-Bench (2604.07634). No torch here.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aha.errors import UserError

CLOCKS = ("offline", "wall")
MACHINE = "machine"
ROUNDING = 1e-6  # seconds; times are sums of fractions that floating point cannot hold


def cost_of(speed: str) -> float | None:
    """Seconds that a frame costs at a --speed; None: as long as it takes. Raises UserError."""
    if speed == MACHINE:
        return None
    if speed == "inf":
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)fps", speed)
    if not found or not 0 < float(found[1]) < math.inf:
        raise UserError(f"--speed {speed} is none of machine, inf, or frames a second above 0 such as 10fps.")
    return 1 / float(found[1])


@dataclass
class StreamClock:
    """The clock of one stream. cost: seconds of stream time for a frame and for a token of a reply; None: measured.

    free: when the model is next free; gaps: frames lost before each taken frame that `passed` was not asked about yet.
    """

    speed: str
    cost: float | None
    seconds: Callable[[], float] = time.perf_counter
    free: float = -math.inf
    arrived: int = 0
    lost_times: list[float] = field(default_factory=list)
    lost_frames: list[int] = field(default_factory=list)
    gaps: deque[int] = field(default_factory=deque)
    measured: list[float] = field(default_factory=list)  # seconds of each taken frame, its reply with it
    _now: float = 0.0  # stream time of the frame that the model is busy with
    _began: float = 0.0
    _gap: int = 0

    @classmethod
    def of(cls, speed: str) -> StreamClock:
        return cls(speed, cost_of(speed))

    def takes(self, when: float, frame_index: int) -> bool:
        """A frame arrives at `when` (seconds of stream, ascending): whether the model sees it."""
        self.arrived += 1
        if when < self.free - ROUNDING:
            self.lost_times.append(when)
            self.lost_frames.append(frame_index)
            self._gap += 1
            return False
        self.gaps.append(self._gap)
        self._gap = 0
        self._now, self._began, self.free = when, self.seconds(), when + (self.cost or 0.0)
        return True

    def taken(self, chunks: Iterable[tuple[Sequence[Any], Any]], singly: bool) -> Iterator[tuple[list[Any], Any]]:
        """The chunks (frames, and what belongs to each in one tensor) without the frames that are lost. singly: one frame at a time, asked
        for when the one before is done with: where a frame's cost is not known beforehand."""
        for frames, values in chunks:
            step = 1 if singly else len(frames)
            for start in range(0, len(frames), step):
                part = range(start, min(start + step, len(frames)))
                kept = [k for k in part if self.takes(frames[k].time, frames[k].frame_index)]
                if len(kept) == len(frames):
                    yield list(frames), values
                elif kept:
                    yield [frames[k] for k in kept], values[kept]

    def passed(self) -> int:
        """Frames lost just before the next taken frame. Ask once for each, in order."""
        return self.gaps.popleft()

    def decided(self, when: float) -> float | None:
        """The scores of the frame at `when` are there: the second of the stream at which they are. None: at once. Measured: of the last
        taken frame, now."""
        if self.cost is None:
            self.free = self._now + self.seconds() - self._began
            self.measured.append(self.free - self._now)
            return self.free
        return when + self.cost if self.cost else None

    def said(self, tokens: int) -> float | None:
        """The reply to the last taken frame is complete: the second at which it is. None: at once."""
        if self.cost is None:
            self.free = self._now + self.seconds() - self._began
            self.measured[-1] = self.free - self._now
        else:
            self.free += tokens * self.cost
        return None if self.cost == 0 else self.free

    def summary(self) -> dict[str, Any]:
        """`clock` of a prediction (aha.core.prediction)."""
        found: dict[str, Any] = {
            "speed": self.speed,
            "arrived": self.arrived,
            "lost_times": self.lost_times,
            "lost_frames": self.lost_frames,
        }
        if self.measured:
            found["seconds_a_frame"] = sum(self.measured) / len(self.measured)
        return found
