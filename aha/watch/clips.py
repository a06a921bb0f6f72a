"""The clip of a moment, without encoding anything: packets of picture and sound as they came, in a ring of bounded size.

    ring = PacketRing()
    ring.connect(container, stream)                  # again after each new connection: the ring begins anew
    ring.add(packet)
    ring.place(origin)                               # time stamp (s) of the moment 0 of the stream's clock
    data = ring.cut(12.0, 18.0)                      # MP4 (or Matroska), from the key frame before; None where that is gone

A file needs no ring: `cut_file` reads the packets again.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from dataclasses import dataclass
from fractions import Fraction

import av

MOST_BYTES = 24 << 20  # of a ring
MOST_SECONDS = 90.0
LONGEST_CLIP = 30.0  # seconds
LARGEST_CLIP = 8 << 20  # bytes
SEEK_BACK = 12.0  # seconds: containers without an index land late, and the key frame may lie before


@dataclass(frozen=True)
class _Packet:
    data: bytes
    pts: int | None
    dts: int
    duration: int
    seconds: float  # dts
    is_key: bool
    is_picture: bool


class PacketRing:
    """Filled by the reading thread, cut by the loop's."""

    def __init__(self) -> None:
        self.offset = 0.0  # seconds of the stream that went by before this run (a watch that goes on)
        self._origin: float | None = None
        self._streams: dict[int, av.stream.Stream] = {}
        self._picture = -1
        self._packets: deque[_Packet] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def connect(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        with self._lock:
            self._packets.clear()
            self._bytes, self._origin, self._picture = 0, None, stream.index
            self._streams = {one.index: one for one in (stream, *container.streams.audio[:1])}

    def add(self, packet: av.Packet) -> None:
        if packet.stream_index not in self._streams or packet.dts is None or not packet.size:
            return
        seconds, is_picture = float(packet.dts * packet.time_base), packet.stream_index == self._picture
        kept = _Packet(bytes(packet), packet.pts, packet.dts, packet.duration or 0, seconds, packet.is_keyframe, is_picture)
        with self._lock:
            self._packets.append(kept)
            self._bytes += len(kept.data)
            while self._bytes > MOST_BYTES or seconds - self._packets[0].seconds > MOST_SECONDS:
                self._bytes -= len(self._packets.popleft().data)

    def place(self, origin: float | None) -> None:
        self._origin = origin

    def cut(self, start: float, end: float) -> bytes | None:
        """What was on screen from `start` to `end` (seconds of the stream), at most LONGEST_CLIP of it, its sound kept."""
        with self._lock:
            origin, packets = self._origin, list(self._packets)
            streams = sorted(self._streams.values(), key=lambda one: one.index != self._picture)
        if origin is None:
            return None
        start, end = (seconds - self.offset + origin for seconds in (start, min(end, start + LONGEST_CLIP)))
        keys = [packet.seconds for packet in packets if packet.is_picture and packet.is_key and packet.seconds <= start + 1e-6]
        if not keys:
            return None
        chosen = [packet for packet in packets if keys[-1] <= packet.seconds < end]
        for format in ("mp4", "matroska"):
            data = _muxed(chosen, streams, keys[-1], format)
            if data is not None:
                return data if len(data) <= LARGEST_CLIP else None
        return None


def _base(stream: av.stream.Stream) -> Fraction:
    """Seconds of a tick of its time stamps."""
    return stream.time_base or Fraction(1, 90000)


def _muxed(packets: list[_Packet], streams: list[av.stream.Stream], first: float, format: str) -> bytes | None:
    """None where this format cannot hold these streams."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=format) as out:
            outs = [out.add_stream_from_template(stream) for stream in streams]
            for packet in packets:
                number = 0 if packet.is_picture else 1
                base = _base(streams[number])
                shift = round(first / base)
                copy = av.Packet(packet.data)
                copy.stream, copy.time_base, copy.duration, copy.is_keyframe = outs[number], base, packet.duration, packet.is_key
                copy.dts = packet.dts - shift
                copy.pts = copy.dts if packet.pts is None else packet.pts - shift
                out.mux(copy)
    except (av.error.FFmpegError, ValueError, OSError):
        return None
    return file.getvalue()


def cut_file(path: str, start: float, end: float) -> bytes | None:
    """The same of a file, whose packets can be read again; `start` and `end` count from its first picture."""
    ring = PacketRing()
    try:
        with av.open(path, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            ring.connect(container, stream)
            base = _base(stream)
            origin = float((stream.start_time or 0) * base)
            ring.place(origin)
            container.seek(max(0, round((origin + start - SEEK_BACK) / base)), stream=stream)
            for packet in container.demux(*ring._streams.values()):
                ring.add(packet)
                if packet.dts is not None and float(packet.dts * packet.time_base) > origin + min(end, start + LONGEST_CLIP) + 1:
                    break
            return ring.cut(start, end)
    except (av.error.FFmpegError, ValueError, OSError, IndexError):
        return None
