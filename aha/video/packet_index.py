"""The packet index of a video file: which frames it has and when each is shown, read without decoding.

The time stamps of the packets of the video stream, sorted, are the frames in the order in which they are shown. Where packets carry no time
stamps of their own (raw streams, AVI with B-frames) the file is decoded once and the frames are counted.

Time stamps ("pts", "dts") are integers in units of the stream's time base.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av

from aha.errors import UserError
from aha.video.frames import IMAGE_SUFFIXES

MAX_PIXELS = 1 << 27  # 16384 x 8192; a larger size comes from a damaged header, and decoding it would take the memory of the machine
MAX_SECONDS = 7 * 24 * 3600  # time stamps further apart come from damage; a sampling grid over them would never end
UNINDEXED = ("mpegts", "mpeg")  # formats that do not say how long they are
REORDERED = 16  # no codec shows a frame more than 16 frames away from its place in the file


@dataclass(frozen=True)
class VideoIndex:
    """What a video file holds, read without decoding (or, where packets carry no time stamps, by decoding once)."""

    path: str
    container: str  # FFmpeg's name of the format, e.g. "mov,mp4,m4a,3gp,3g2,mj2"
    codec: str
    time_base: Fraction  # seconds per unit of `pts`
    fps: Fraction  # average frame rate
    pts: list[int]  # of every frame, in the order shown
    last_duration: int  # of the last frame, same unit
    width: int  # as stored
    height: int
    pixel_aspect: float  # width of a pixel over its height, as stored
    promised_frames: int  # the number of frames the header claims; 0 = no claim
    cut_off: bool  # the container's own index points past the end of the file
    by_count: bool  # frames are found by counting decoded frames, not by time stamp
    packet_pts: list[int | None] = field(repr=False)  # in file order
    packet_is_key: list[bool] = field(repr=False)

    @property
    def first_pts(self) -> int:
        return self.pts[0]

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last one, which is taken to last at least 1/fps."""
        last = max(Fraction(self.last_duration) * self.time_base, 1 / self.fps)
        return (self.pts[-1] - self.pts[0]) * self.time_base + last


def video_index(path: str | os.PathLike) -> VideoIndex:
    """The packet index of a video file; the last few are kept, keyed by size and time of change. Raises UserError (one sentence)."""
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"video {path} cannot be opened ({error.strerror}); check the path.") from error
    if not os.path.isfile(path):
        raise UserError(f"video {path} is not a file; give a video file, or a list of image files with source_fps.")
    if status.st_size == 0:
        raise UserError(f"video {path} is empty (0 bytes); download or copy it again.")
    return _cached_index(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _cached_index(path: str, size: int, mtime_ns: int) -> VideoIndex:
    with open_container(path) as container:
        stream = video_stream(container, path)
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise UserError(f"video {path} claims frames of {codec.width}x{codec.height} pixels, so it is damaged; download it again.")
        failures: list[Exception] = []
        packet_pts, packet_is_key, durations = [], [], {}  # durations: pts of every frame that is shown -> duration
        without_pts = False
        last_dts, last_is_whole = None, True
        for packet in packets_of(container, stream, failures):
            packet_pts.append(packet.pts)
            packet_is_key.append(packet.is_keyframe)
            last_dts, last_is_whole = packet.dts, not packet.is_corrupt
            if packet.is_discard or (codec.name == "vp8" and not bytes(packet)[0] >> 4 & 1):
                continue  # outside the edit list, or a VP8 reference that is never shown
            if packet.pts is None:
                without_pts = True
            else:
                durations[packet.pts] = packet.duration or 0
        if not packet_pts:
            raise UserError(f"video {path} holds no frames; download it again or make it anew.")
        if True not in packet_is_key:
            packet_is_key[0] = True
        time_base, fps, container_name = stream.time_base, _frame_rate(stream), container.format.name
        cut_off = bool(failures) or _is_cut_off(path, size, container_name, stream)
        # AVI stores no time stamps: with B-frames those that FFmpeg makes up are not the frames' own.
        by_count = without_pts or not durations or (container_name == "avi" and codec.has_b_frames)
        codec_name, width, height, promised_frames = codec.codec.canonical_name, codec.width, codec.height, stream.frames
        aspect = stream.sample_aspect_ratio
        pixel_aspect = float(aspect) if aspect is not None and Fraction(1, 10) <= aspect <= 10 else 1.0
    if by_count:
        pts = _decoded_pts(path, time_base, fps)
        pts = pts[: max(1, len(pts) - REORDERED)] if cut_off else pts
    else:
        # Frames shown before the first key frame cannot be decoded: a recording that was cut from a broadcast starts like this.
        first_key = packet_pts[packet_is_key.index(True)]
        pts = sorted(p for p in durations if first_key is None or p >= first_key)
        if last_dts is not None and (cut_off or not last_is_whole):
            pts = [p for p in pts if p <= last_dts and p != packet_pts[-1]]  # between later ones frames may be lost
        elif last_dts is not None and fps is not None and container_name in UNINDEXED:
            pts = _without_gaps_after(last_dts, pts, interval=1.5 / (fps * time_base))
        if not pts:
            raise UserError(f"video {path} is cut off before its first frame is complete; download it again.")
    span = (pts[-1] - pts[0]) * time_base
    if fps is None:
        fps = (len(pts) - 1) / span if span > 0 else Fraction(1)
    if span > MAX_SECONDS:
        raise UserError(f"video {path} has time stamps more than {MAX_SECONDS // 86400} days apart, so it is damaged; download it again.")
    return VideoIndex(
        path=path, container=container_name, codec=codec_name, time_base=time_base, fps=fps, pts=pts,
        last_duration=durations.get(pts[-1], 0), width=width, height=height, pixel_aspect=pixel_aspect, promised_frames=promised_frames,
        cut_off=cut_off, by_count=by_count, packet_pts=packet_pts, packet_is_key=packet_is_key,
    )  # fmt: skip


def open_container(path: str) -> av.container.InputContainer:
    """Open a local video file. Raises UserError where FFmpeg does not know it."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:  # FFmpeg would read the name as a pattern of image names
        raise UserError(f"{path} has the name of an image, not of a video; rename it, or give a list of image files with source_fps.")
    try:
        # Only local files: a text file that lists addresses (a playlist) must not make the reader load them.
        return av.open(path, options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise UserError(f"video {path} cannot be opened ({reason(error)}), so it is no video or damaged; download it again.") from error


def video_stream(container: av.container.InputContainer, path: str) -> av.video.stream.VideoStream:
    """The first video stream that is not a cover picture. Raises UserError where there is none or it cannot be decoded."""
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue  # the cover picture of an audio file
        if stream.codec_context is None:
            raise UserError(f"video {path} has a coding that this FFmpeg cannot decode; convert it (ffmpeg -i IN -c:v libx264 OUT.mp4).")
        if stream.time_base is None or stream.time_base <= 0:
            raise UserError(f"video {path} has no time base, so it is damaged; download it again or re-encode it.")
        return stream
    raise UserError(f"{path} has no video stream (is it audio?); give a video file.")


def packets_of(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, failures: list[Exception] | None = None
) -> Iterator[av.Packet]:
    """The packets of the video stream in file order; ends where the container cannot be read on, with the reason put into `failures`."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, IndexError) as error:  # IndexError: damage made FFmpeg see streams that PyAV does not know
            if failures is not None:
                failures.append(error)
            return
        if packet.size:
            yield packet


def _frame_rate(stream: av.video.stream.VideoStream) -> Fraction | None:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and rate > 0:
            return Fraction(rate)
    return None


def _is_cut_off(path: str, size: int, container: str, stream: av.video.stream.VideoStream) -> bool:
    """True where the file says itself that it goes on past its end: a list of frames, a Matroska segment or a RIFF chunk that is longer."""
    if any(entry.pos + entry.size > size for entry in stream.index_entries):
        return True
    with open(path, "rb") as file:
        head = file.read(256)
    if container == "avi":
        return head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:8], "little") > size
    at = head.find(b"\x18\x53\x80\x67")  # Matroska: the segment's name, then its length, whose first byte tells how many bytes it has
    if container == "matroska,webm" and at >= 0 and at + 12 <= len(head) and head[at + 4]:
        width = 9 - head[at + 4].bit_length()
        length = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ((1 << 7 * width) - 1)
        unknown = (1 << 7 * width) - 1  # written live
        return length != unknown and at + 4 + width + length > size
    return False


def _without_gaps_after(last_dts: int, pts: list[int], interval: float) -> list[int]:
    """Leave out what follows a gap of more than `interval` after `last_dts`: where a file just ends, frames are lost there."""
    for i in range(1, len(pts)):
        if pts[i] > last_dts and pts[i] - pts[i - 1] > interval:
            return pts[:i]
    return pts


def reason(error: Exception) -> str:
    """What FFmpeg said, in short."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()


def open_decoder(path: str, threads: int) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
    """(container, video stream) ready to decode with this many threads. The caller closes the container."""
    container = open_container(path)
    stream = video_stream(container, path)
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    return container, stream


def decode_packet(stream: av.video.stream.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Feed one packet (None: get what is left). A packet that the decoder refuses gives no frame; who needs its frame will miss it."""
    try:
        return stream.codec_context.decode(packet)
    except av.error.FFmpegError:
        return []


def _decoded_pts(path: str, time_base: Fraction, fps: Fraction | None) -> list[int]:
    """Time stamps of every frame found by decoding; where frames have none, or they do not increase, evenly spaced by the frame rate."""
    container, stream = open_decoder(path, threads=2)
    with container:
        packets = itertools.chain(packets_of(container, stream), [None])
        pts = [frame.pts for packet in packets for frame in decode_packet(stream, packet)]
    if not pts:
        raise UserError(f"video {path} has no frame that can be decoded; download it again or re-encode it.")
    if None in pts or any(b <= a for a, b in zip(pts, pts[1:])):
        step = 1 / ((fps or Fraction(25)) * time_base)
        pts = [round(i * step) for i in range(len(pts))]
        if len(set(pts)) != len(pts):
            pts = list(range(len(pts)))
    return pts
