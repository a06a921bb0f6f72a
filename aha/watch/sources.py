"""Frames of a file, a camera, a network stream or standard input, at a given rate, on one clock.

Time is in seconds from the first frame of the source. Sample k is the first frame at or after k/fps; where the source has a gap (a lost
connection) the grid goes on after it. Only sampled frames are converted to RGB. C channels, H height, W width.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from llava_next import PUBLISHED

from aha.errors import UserError
from aha.video.frames import letterbox, turn_upright
from aha.video.packet_index import UNINDEXED, reason
from aha.video.reader import iter_frames

NETWORK = re.compile(r"^(rtsp|rtsps|http|https|rtmp|srt|udp|tcp|rtp)://", re.IGNORECASE)
TIMEOUT = 10.0  # seconds without a byte after which a connection counts as lost
LONGEST_RETRY = 8.0  # seconds between two attempts to reconnect
SEEK_BACK = 3.0  # seconds
PLAYING = 30.0  # a clock that jumps further than this between two frames was set anew


@dataclass(frozen=True)
class SourceFrame:
    """One sampled frame: uint8 [3, S, S], seconds of the stream, moment it arrived (time.monotonic)."""

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


class Sampler:
    """Says which frames are taken: the first at or after each k/fps, as pictures of `side` x `side` pixels."""

    def __init__(self, fps: float, side: int = PUBLISHED.side):
        self.fps, self.side, self.next = fps, side, 0

    def takes(self, seconds: float) -> bool:
        if seconds * self.fps < self.next - 1e-6:
            return False
        self.next = int(seconds * self.fps + 1e-6) + 1
        return True


def is_network(source: str) -> bool:
    return NETWORK.match(source) is not None


def camera_of(source: str) -> str | None:
    """The device of "camera", "camera:1" or "/dev/video0"; None for other sources."""
    match = re.fullmatch(r"camera(?::(\d+))?", source)
    if match:
        return f"/dev/video{match[1] or 0}" if sys.platform.startswith("linux") else match[1] or "0"
    return source if source.startswith("/dev/video") else None


def read_file(path: str, fps: float, side: int = PUBLISHED.side, backend: str = "pyav") -> Iterator[SourceFrame]:
    """A local file, as fast as it is asked for. Raises UserError."""
    for frame in iter_frames(path, fps=fps, size=side, backend=backend):
        yield SourceFrame(frame.frame_CHW, frame.time, time.monotonic())


def read_pipe(fps: float, raw_size: str | None, raw_fps: float, side: int = PUBLISHED.side) -> Iterator[SourceFrame]:
    """Standard input: a container that can be read from front to back (MPEG-TS, Matroska, fragmented MP4), or bare rgb24 pictures of
    `raw_size` (WIDTHxHEIGHT), `raw_fps` a second. Raises UserError."""
    options = {"video_size": raw_size, "pixel_format": "rgb24", "framerate": str(raw_fps)} if raw_size else {}
    pipe = _Pipe()
    try:
        container = av.open(pipe, format="rawvideo" if raw_size else None, options=options)
    except (av.error.FFmpegError, ValueError) as error:
        cure = "pipe MPEG-TS or Matroska (ffmpeg -i IN -f mpegts -), or give --raw_size for bare rgb24 pictures"
        raise UserError(f"standard input holds no video that can be read ({reason(error)}); {cure}.") from error
    with container:
        yield from _sampled(container, Sampler(fps, side), "standard input")


class _Pipe:
    """Standard input with nothing but `read`, so that nobody tries to seek in it."""

    def read(self, count: int) -> bytes:
        return sys.stdin.buffer.read(count)


def read_camera(device: str, fps: float, side: int = PUBLISHED.side) -> Iterator[SourceFrame]:
    """A camera of this machine. Raises UserError."""
    kind = {"linux": "video4linux2", "darwin": "avfoundation"}.get(sys.platform, "dshow")
    try:
        container = av.open(device, format=kind)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise UserError(f"camera {device} cannot be opened ({reason(error)}); check that it is plugged in and not in use.") from error
    with container:
        yield from _sampled(container, Sampler(fps, side), f"camera {device}")


def open_network(
    address: str, fps: float, attempts: int, side: int = PUBLISHED.side
) -> tuple[Iterator[SourceFrame | Lost | Reconnected], bool]:
    """(items of an RTSP or HTTP stream, whether it is live). After a lost connection it goes on; `attempts` failures in a row end it.

    A recording (its length is known) is read on from where it was lost; a live stream goes on with what is sent now, and its clock with the
    seconds that went by. Raises UserError where the first connection fails.
    """
    container = _connect(address)
    known_length = container.duration / 1e6 if container.duration else None
    return _read_network(container, address, known_length, fps, attempts, side), known_length is None


def _read_network(
    container: av.container.InputContainer, address: str, known_length: float | None, fps: float, attempts: int, side: int
) -> Iterator[SourceFrame | Lost | Reconnected]:
    sampler, place = Sampler(fps, side), _Place()
    last, last_arrival, offset = -1.0, time.monotonic(), 0.0
    while True:
        cause = "the stream ended"
        try:
            with container:
                for frame in _sampled(container, sampler, _shown(address), offset, None if known_length is None else last, place):
                    last, last_arrival = frame.time, frame.arrived
                    yield frame
        except av.error.FFmpegError as error:
            cause = reason(error)
        if known_length is not None and place.is_end(last, known_length, fps):
            return
        for attempt in range(attempts):
            wait = min(LONGEST_RETRY, 0.5 * 2**attempt)
            yield Lost(cause, wait)
            time.sleep(wait)
            try:
                container = _connect(address)
                break
            except UserError as error:
                cause = str(error)
        else:
            return
        gap = time.monotonic() - last_arrival
        if known_length is None:
            offset = last + gap
            yield Reconnected(gap)
        else:
            _seek(container, last)
            yield Reconnected(0.0)


@dataclass
class _Place:
    """How far into the file of a recording the reading got, in bytes."""

    position: int = 0
    size: int = 0
    says_length: bool = True  # the format says how long it is; of MPEG-TS it is guessed from what could be read

    def is_end(self, last: float, known_length: float, fps: float) -> bool:
        """Whether a recording is over, and not cut off."""
        if self.size > 0 and self.position >= 0.99 * self.size:
            return True
        return self.says_length and last >= known_length - 2 / fps - 1


def _shown(address: str) -> str:
    """The address without what may be a password."""
    return re.sub(r"//[^/@]*@", "//", address.split("?")[0])


def _connect(address: str) -> av.container.InputContainer:
    options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
    try:
        return av.open(address, options=options, timeout=TIMEOUT)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        cure = "check the address and that the server runs"
        raise UserError(f"stream {_shown(address)} cannot be opened ({reason(error)}); {cure}.") from error


def _seek(container: av.container.InputContainer, seconds: float) -> None:
    """To a key frame well before `seconds` (containers without an index land a little late); what was seen is skipped.

    A server that cannot do that sends all from the start.
    """
    try:
        container.seek(int(max(0.0, seconds - SEEK_BACK) * 1e6) + (container.start_time or 0))
    except av.error.FFmpegError:
        return


def _sampled(
    container: av.container.InputContainer,
    sampler: Sampler,
    shown: str,
    offset: float = 0.0,
    start_after: float | None = None,
    place: _Place | None = None,
) -> Iterator[SourceFrame]:
    """Sampled frames of an open container. `offset`: time of its first frame; `start_after`: frames up to there were seen before.

    Its errors (FFmpegError) are the caller's.
    """
    streams = [s for s in container.streams.video if s.codec_context is not None]
    if not streams:
        raise UserError(f"{shown} has no video that can be decoded; check the source.")
    stream = streams[0]
    # The clock starts at the first frame of a live stream, and at the beginning of a recording that is read on in the middle.
    first = None if start_after is None else (container.start_time or 0) / 1e6
    clock, step = 0.0, 1 / float(stream.guessed_rate or 25)
    previous: float | None = None
    if place is not None:
        place.size, place.says_length = container.size, container.format.name not in UNINDEXED
    for packet in container.demux(stream):
        if place is not None and packet.pos is not None:
            place.position = max(place.position, packet.pos + packet.size)
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue  # after a cut the first packets may lack what they refer to
        for frame in frames:
            if frame.time is None:
                clock += step if previous is not None else 0.0
            else:
                first = frame.time if first is None else first
                if previous is not None and not -1 < frame.time - previous < PLAYING:
                    first += frame.time - previous - step  # the sender's clock was set anew
                clock = max(clock, frame.time - first)
            previous = frame.time if frame.time is not None else 0.0
            seconds = offset + clock
            if start_after is not None and seconds <= start_after + 1e-6:
                continue
            if sampler.takes(seconds):
                yield SourceFrame(_picture(frame, stream, sampler.side), seconds, time.monotonic())


def _picture(frame: av.VideoFrame, stream: av.video.stream.VideoStream, side: int) -> np.ndarray:
    """Upright, scaled and padded: uint8 [3, side, side]."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    image_HWC = turn_upright(frame.to_ndarray(format="rgb24"), struct.unpack("<9i", bytes(matrix)) if matrix is not None else None)
    aspect = float(stream.sample_aspect_ratio or 1)
    turned = image_HWC.shape[:2] != (frame.height, frame.width)
    return np.ascontiguousarray(letterbox(image_HWC, side, 1 / aspect if turned else aspect).transpose(2, 0, 1))


def check_file(source: str) -> None:
    """Raises UserError where a local file is not there."""
    if not os.path.exists(source):
        raise UserError(f"source {source} does not exist; give a file, camera, rtsp:// or http:// address, or - for standard input.")
