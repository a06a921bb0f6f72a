"""Frames of a file, a camera, a network stream or standard input, at a given rate, on one clock.

Time is in seconds from the first frame of the source, and the rule of sampling is that of files (aha/video/reader.py): sample k is the
first frame at or after k/fps if that comes within one usual frame interval (the median of what was seen so far), else the frame on screen,
which is known when the next one comes. Where the connection was lost nothing is on screen, and the grid goes on after it. Only sampled
frames are converted to RGB. C channels, H height, W width.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np
from llava_next import PUBLISHED

from aha.core.addresses import shown_address
from aha.errors import UserError
from aha.video.backends import Matrices, upright_rgb
from aha.video.clock import Clock
from aha.video.container import NETWORK, TIMEOUT, allowed, is_playlist, pixel_aspect_of, reason, tags_as_they_are, video_stream
from aha.video.frames import letterbox
from aha.video.packet_index import UNINDEXED
from aha.video.reader import ROUNDED, Backend, iter_frames
from aha.watch.clips import PacketRing

LONGEST_RETRY = 8.0  # seconds between two attempts to reconnect
SEEK_BACK = 3.0  # seconds


@dataclass(frozen=True)
class SourceFrame:
    """One sampled frame: uint8 [3, S, S], seconds of the grid k/fps, moment it arrived (time.monotonic)."""

    image_CHW: np.ndarray
    time: float
    arrived: float


@dataclass(frozen=True)
class Lost:
    """The connection is gone; the next attempt comes in `retry_in` seconds."""

    cause: str
    retry_in: float


@dataclass(frozen=True)
class Reconnected:
    """The stream goes on; `gap` seconds of it were missed."""

    gap: float


@dataclass(frozen=True)
class Resumed:
    """The stream goes on after a restart; `lost` seconds of it were never read."""

    lost: float


class Sampler:
    """Says which samples each frame decides; they are pictures of `side` x `side` pixels."""

    def __init__(self, fps: float, side: int = PUBLISHED.side):
        self.fps, self.side, self.next = fps, side, 0  # the next sample is at next/fps
        self.previous: float | None = None  # seconds of the frame on screen
        self._intervals: deque[float] = deque(maxlen=601)

    def expect(self, seconds: float) -> None:
        """The source says that its frames come at this interval: it counts until enough of them are seen."""
        if not self._intervals:
            self._intervals.extend([seconds] * 4)

    def decided_by(self, seconds: float) -> list[tuple[float, bool]]:
        """(time, whether the frame before is on screen) of each sample that is decided when the frame at `seconds` is there."""
        if self.previous is None:
            self.next = max(self.next, int(seconds * self.fps + 1e-6))  # no frame is on screen yet, so the sampling grid goes on from here
        elif seconds > self.previous:
            self._intervals.append(seconds - self.previous)
        decided = []
        while (due := self.next / self.fps) <= seconds + 1e-6:
            decided.append((due, self.previous is not None and seconds - due > self._usual()))
            self.next += 1
        self.previous = seconds
        return decided

    def held(self, seconds: float) -> list[float]:
        """The samples during which the last frame is on screen, which says that it lasts so long."""
        held: list[float] = []
        if self.previous is not None and self._intervals and seconds > self._usual():
            while (due := self.next / self.fps) < self.previous + seconds - 1e-6:
                held.append(due)
                self.next += 1
        return held

    def lost(self) -> None:
        """The connection is gone: no frame is on screen."""
        self.previous = None

    def _usual(self) -> float:
        if not self._intervals:
            return float("inf")
        median = statistics.median(self._intervals)
        return max(median, *(interval for interval in self._intervals if interval <= median + ROUNDED)) + 1e-6


def is_network(source: str) -> bool:
    return "://" in source and source.split("://", 1)[0].lower() in NETWORK


def camera_of(source: str) -> str | None:
    """The device of "camera", "camera:1" or "/dev/video0"; None for other sources."""
    match = re.fullmatch(r"camera(?::(\d+))?", source)
    if match:
        return f"/dev/video{match[1] or 0}" if sys.platform.startswith("linux") else match[1] or "0"
    return source if source.startswith("/dev/video") else None


def read_file(
    path: str, fps: float, side: int = PUBLISHED.side, backend: Backend = "pyav", start: float | None = None
) -> Iterator[SourceFrame]:
    """A local file, as fast as it is asked for, from `start` seconds on. Raises UserError."""
    for frame in iter_frames(path, fps=fps, size=side, backend=backend, start=start):
        yield SourceFrame(frame.frame_CHW, frame.time, time.monotonic())


def read_pipe(
    fps: float, raw_size: str | None, raw_fps: float, side: int = PUBLISHED.side, ring: PacketRing | None = None
) -> Iterator[SourceFrame]:
    """Standard input: a container that can be read from front to back (MPEG-TS, Matroska, fragmented MP4), or bare rgb24 pictures of
    `raw_size` (WIDTHxHEIGHT), `raw_fps` a second. Raises UserError."""
    options = {"video_size": raw_size, "pixel_format": "rgb24", "framerate": str(raw_fps)} if raw_size else {}
    pipe = _Pipe()
    try:
        container = av.open(
            pipe,
            format="rawvideo" if raw_size else None,
            options=options | allowed("pipe", "rawvideo" if raw_size else ""),
            **tags_as_they_are(),
        )
    except (av.error.FFmpegError, ValueError) as error:
        if is_playlist(pipe.head):
            raise UserError("standard input is a playlist, not a video; pipe the video itself.") from error
        cure = "pipe MPEG-TS or Matroska (ffmpeg -i IN -f mpegts -), or give --raw_size for bare rgb24 pictures"
        raise UserError(f"standard input holds no video that can be read ({reason(error)}); {cure}.") from error
    with container:
        yield from _sampled(container, Sampler(fps, side), "standard input", ring=ring)


class _Pipe:
    """Standard input with nothing but `read`, so that nobody tries to seek in it; what is there is read at once, for a slow stream takes
    long to fill a buffer. `head`: its first bytes."""

    def __init__(self) -> None:
        self.head = b""

    def read(self, count: int) -> bytes:
        data: bytes = sys.stdin.buffer.read1(count)  # type: ignore[union-attr]  # of standard input it is a BufferedReader
        if len(self.head) < 4096:
            self.head += data[:4096]
        return data


def read_camera(device: str, fps: float, side: int = PUBLISHED.side, ring: PacketRing | None = None) -> Iterator[SourceFrame]:
    """A camera of this machine. Raises UserError."""
    kind = {"linux": "video4linux2", "darwin": "avfoundation"}.get(sys.platform, "dshow")
    try:
        container = av.open(device, format=kind)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise UserError(f"camera {device} cannot be opened ({reason(error)}); check that it is plugged in and not in use.") from error
    with container:
        yield from _sampled(container, Sampler(fps, side), f"camera {device}", ring=ring)


def open_network(
    address: str, fps: float, attempts: int, side: int = PUBLISHED.side, ring: PacketRing | None = None
) -> tuple[Iterator[SourceFrame | Lost | Reconnected], bool]:
    """(items of an RTSP or HTTP stream, whether it is live). After a lost connection it goes on; `attempts` in a row that bring nothing new
    end it.

    A recording (its length is known) is read on from where it was lost; a live stream goes on with what is sent now, and its clock with the
    seconds that went by. Raises UserError where the first connection fails, or where no attempt brings a picture.
    """
    container = _connect(address)
    known_length = container.duration / 1e6 if container.duration else None
    return _read_network(container, address, known_length, fps, attempts, side, ring), known_length is None


def _read_network(
    container: av.container.InputContainer,
    address: str,
    known_length: float | None,
    fps: float,
    attempts: int,
    side: int,
    ring: PacketRing | None,
) -> Iterator[SourceFrame | Lost | Reconnected]:
    sampler, place = Sampler(fps, side), _Place(known_length)
    failures = 0
    while True:
        cause, reached = "the stream ended", place.reached
        try:
            with container:
                yield from _sampled(container, sampler, shown_address(address), place, ring)
        except av.error.FFmpegError as error:
            cause = reason(error)
        if place.is_end():
            return
        last = place.last or 0.0
        sampler.lost()
        failures = 0 if place.reached > reached else failures + 1
        while failures < attempts:
            wait = min(LONGEST_RETRY, 0.5 * 2**failures)
            yield Lost(cause, wait)
            time.sleep(wait)
            try:
                container = _connect(address)
                break
            except UserError as error:
                cause = str(error)
                failures += 1
        else:
            if place.last is None:
                cure = "check the server, and that the file can be read from front to back or the server knows ranges"
                raise UserError(f"stream {shown_address(address)} brought no picture in {attempts} attempts ({cause}); {cure}.")
            return
        if known_length is None:
            gap = time.monotonic() - place.arrived
            place.go_on(last + gap)
            yield Reconnected(gap)
        else:
            if not place.is_repaired:  # else time stamps do not tell where to go on: all is read again, what was seen is skipped
                _seek(container, last)
            yield Reconnected(0.0)


@dataclass
class _Place:
    """How far the reading of a source got, over all its connections. Times are seconds of our clock, counted from the first picture."""

    known_length: float | None = None  # of a recording, from its first sound or picture
    origin: float | None = None  # time stamp (s) of the moment 0
    last: float | None = None  # seconds of the last picture that is new
    arrived: float = field(default_factory=time.monotonic)  # when the last picture came
    reached: int = 0  # grows with all that is new
    position: int = 0  # in the file of a recording, in bytes
    size: int = 0
    furthest: float = 0.0  # seconds from the beginning of the container, of all its streams
    says_length: bool = False  # the format says how long it is; of MPEG-TS it is guessed from what could be read
    is_repaired: bool = False  # its time stamps start again or jump

    def note(self, container: av.container.InputContainer, packet: av.Packet) -> None:
        """Take note of a packet of any stream: a recording ends with the last of them, which may be sound."""
        if self.known_length is None or not packet.size:
            return
        if packet.pos is not None and packet.pos + packet.size > self.position:
            self.position = packet.pos + packet.size
            self.reached += 1
        if packet.pts is not None and packet.time_base:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - (container.start_time or 0) / 1e6
            self.furthest = max(self.furthest, end)

    def is_end(self) -> bool:
        """Whether a recording is over, and not cut off."""
        if self.known_length is None:
            return False
        if self.size > 0 and self.position >= 0.99 * self.size:
            return True
        return self.says_length and self.furthest >= self.known_length - 1

    def go_on(self, seconds: float) -> None:
        """The next picture of a live stream that was lost is at `seconds`."""
        self.origin, self.last = None, seconds


def _connect(address: str) -> av.container.InputContainer:
    scheme = address.split("://", 1)[0].lower()
    options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    try:
        return av.open(address, options=options | allowed(*NETWORK[scheme]), timeout=TIMEOUT, **tags_as_they_are())
    except (av.error.FFmpegError, ValueError, OSError) as error:
        cure = "check the address, that the server runs, and that it sends a video and no playlist (.m3u8, .mpd)"
        raise UserError(
            f"stream {shown_address(address)} cannot be opened ({reason(error)}); {cure}."
        ) from None  # FFmpeg's own error names the address


def _seek(container: av.container.InputContainer, seconds: float) -> None:
    """To a key frame well before `seconds` (containers without an index land a little late); what was seen is skipped.

    A server that cannot do that sends all from the start.
    """
    try:
        container.seek(int(max(0.0, seconds - SEEK_BACK) * 1e6) + (container.start_time or 0))
    except av.error.FFmpegError:
        return


def _sampled(
    container: av.container.InputContainer, sampler: Sampler, shown: str, place: _Place | None = None, ring: PacketRing | None = None
) -> Iterator[SourceFrame]:
    """Sampled frames of an open container. `place`: where earlier connections got to; frames seen there decide nothing any more.

    Its errors (FFmpegError) are the caller's.
    """
    place = _Place() if place is None else place
    place.size, place.says_length = container.size, container.format.name not in UNINDEXED
    stream = video_stream(container, shown)
    clock, converter = Clock(container, stream), _Converter(pixel_aspect_of(stream), sampler.side)
    step = 1 / float(stream.guessed_rate or 25)
    if stream.guessed_rate:
        sampler.expect(step)
    on_screen: av.VideoFrame | None = None
    if ring is not None:
        ring.connect(container, stream)
    for packet in container.demux():
        place.note(container, packet)
        if ring is not None:
            ring.add(packet)
        if packet.stream_index != stream.index:
            clock.hear(packet)
            continue
        if packet.size:
            clock.repair(packet)
            place.is_repaired |= clock.is_repaired
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue  # right after a cut, packets may refer to pictures that were not recorded
        for frame in frames:
            if not isinstance(frame, av.VideoFrame):
                continue
            seconds = _seconds_of(frame, place, step)
            if ring is not None:
                ring.place(place.origin)
            for due, before in sampler.decided_by(seconds):
                yield SourceFrame(converter(on_screen if before and on_screen is not None else frame), due, time.monotonic())
            on_screen, place.arrived = frame, time.monotonic()
    if on_screen is not None and (place.known_length is None or place.is_end()):
        for due in sampler.held(float((on_screen.duration or 0) * (on_screen.time_base or 0))):
            yield SourceFrame(converter(on_screen), due, time.monotonic())


def _seconds_of(frame: av.VideoFrame, place: _Place, step: float) -> float:
    """Seconds of a frame on the clock of the source: from its first picture on, also over several connections."""
    if frame.time is None:
        seconds = 0.0 if place.last is None else place.last + step
    else:
        if place.origin is None:
            place.origin = frame.time - (place.last or 0.0)
        seconds = frame.time - place.origin
    if place.last is None or seconds > place.last:
        place.last = seconds
        place.reached += 1
    return max(place.last or 0.0, seconds) if place.known_length is None else seconds  # a live stream never goes back


class _Converter:
    """Frames -> uint8 [3, side, side]: upright, scaled and padded. A frame that is held is converted once."""

    def __init__(self, pixel_aspect: float, side: int):
        self.pixel_aspect, self.side = pixel_aspect, side
        self._matrices: Matrices = {}
        self._last: tuple[av.VideoFrame, np.ndarray] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        image_HWC, pixel_aspect = upright_rgb(frame, self.pixel_aspect, self._matrices)
        image_CHW = np.ascontiguousarray(letterbox(image_HWC, self.side, pixel_aspect).transpose(2, 0, 1))
        self._last = frame, image_CHW
        return image_CHW


def check_file(source: str) -> None:
    """Raises UserError where a local file is not there."""
    if not os.path.exists(source):
        raise UserError(
            f"source {shown_address(source)} does not exist; give a file, camera, rtsp:// or http:// address, or - for standard input."
        )
