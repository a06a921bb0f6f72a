"""One clock for a stream whose time stamps start again, step back or jump.

Recordings that were joined (`cat a.ts b.ts`), a camera that was restarted, a sender whose clock was set anew: after such a place the time
stamps count from somewhere else, and what follows would overwrite, interleave with, or lie hours behind what came before. Here every such
stretch (an epoch) is moved to where it is played: one usual picture after the highest time stamp before it.

A step forward is a picture that is held where the container has a timeline of its own (MP4, Matroska, ...) that reaches so far, or where
another stream (the sound) plays on meanwhile; otherwise one of more than 30 s is a clock set anew. Time stamps are integers in units of the
stream's time base; packets come in file order.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

import av

PLAYING = 30.0  # seconds: a sender's clock that jumps further than this between two pictures was set anew
STEP_BACK = 0.1  # seconds: less is jitter (and is as well at most two pictures)
LONGEST_HOLD = 24 * 3600.0  # seconds that one picture may stay where nothing says how long the video is
SENDERS_CLOCK = ("mpegts", "mpeg", "rtsp", "rtp", "mpjpeg")  # formats whose time stamps are those of whoever sends, not of a file


class Clock:
    """Moves the time stamps of one stream, packet by packet. `offsets_s`: seconds by which each epoch so far was moved.

    `known` (seconds): the offsets of another stream of the same file, taken instead of own ones, so that sound stays with its pictures.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.stream.Stream, known: Sequence[Fraction] | None = None):
        self.time_base = stream.time_base or Fraction(1, 1000)
        self.offsets_s: list[Fraction] = [known[0] if known else Fraction(0)]
        self._known = known
        self._offset = round(self.offsets_s[0] / self.time_base)
        self._last_dts: int | None = None
        self._highest: int | None = None  # pts, moved
        self._steps: deque[int] = deque(maxlen=31)  # the last ones: their median is the usual distance of two packets
        rate = stream.guessed_rate if stream.type == "video" else None
        self._assumed = max(1, round(1 / (rate * self.time_base))) if rate else max(1, round(Fraction(1, 25) / self.time_base))
        self._others: dict[int, int] = {}  # stream -> its last dts
        self._played: dict[int, float] = {}  # stream -> seconds that it went on by steps since the last packet of ours
        self._end: float | None = None
        self._is_senders = container.format.name in SENDERS_CLOCK
        if not self._is_senders and container.duration:
            self._end = ((container.start_time or 0) + container.duration) / 1e6 + 1

    @property
    def is_repaired(self) -> bool:
        return len(self.offsets_s) > 1

    def repair(self, packet: av.Packet) -> None:
        """Move the packet's pts and dts. Call for every packet of the stream, in file order."""
        dts = packet.dts
        if dts is not None and not packet.is_discard and not packet.is_corrupt:
            if self._last_dts is not None:
                step = dts - self._last_dts
                usual = statistics.median_low(self._steps) if self._steps else self._assumed
                back = float(-step * self.time_base)
                if back > max(STEP_BACK, float(2 * usual * self.time_base)) or self._is_jump(packet, dts, step):
                    self._begin(packet, dts, self._last_dts, usual)
                elif step > 0:
                    self._steps.append(step)
            self._last_dts = dts
            self._played.clear()
        if self._offset:
            packet.pts = packet.pts + self._offset if packet.pts is not None else None
            packet.dts = packet.dts + self._offset if packet.dts is not None else None
        if packet.pts is not None and not packet.is_discard:
            self._highest = packet.pts if self._highest is None else max(self._highest, packet.pts)

    def hear(self, packet: av.Packet) -> None:
        """Take note of a packet of another stream: one that plays on says that a step forward of ours is real."""
        if packet.dts is None or not packet.size:
            return
        last = self._others.get(packet.stream_index)
        self._others[packet.stream_index] = packet.dts
        if last is not None and packet.time_base is not None:
            step = float((packet.dts - last) * packet.time_base)
            if 0 < step <= PLAYING:
                self._played[packet.stream_index] = self._played.get(packet.stream_index, 0.0) + step

    def _is_jump(self, packet: av.Packet, now: int, step: int) -> bool:
        """Whether a step forward is a clock set anew. now, step: by the dts, which count where there is no pts: of some containers they are
        guesses that follow later."""
        if packet.pts is not None and self._highest is not None:
            now, step = packet.pts, packet.pts + self._offset - self._highest
        seconds = float(step * self.time_base)
        if seconds <= PLAYING or max(self._played.values(), default=0.0) > seconds / 2:
            return False
        if self._is_senders:
            return True
        return float(now * self.time_base) > self._end if self._end is not None else seconds > LONGEST_HOLD

    def _begin(self, packet: av.Packet, dts: int, last_dts: int, usual: int) -> None:
        """A new epoch begins with this packet, `dts`, after one of `last_dts`."""
        epoch = len(self.offsets_s)
        if self._known is not None:
            self._offset = round(self._known[min(epoch, len(self._known) - 1)] / self.time_base)
        elif packet.is_keyframe and packet.pts is not None and self._highest is not None:
            self._offset = self._highest + usual - packet.pts
        else:  # in the middle of a group of pictures: the order of decoding goes on
            self._offset = last_dts + self._offset + usual - dts
        self.offsets_s.append(self._offset * self.time_base)
