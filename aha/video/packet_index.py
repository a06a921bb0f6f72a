"""The packet index of a video file: which frames it has and when each is shown, read without decoding.

The time stamps of the packets of the video stream, sorted, are the frames in the order in which they are shown. Where packets carry no time
stamps of their own (raw streams, AVI with B-frames) the file is decoded once and the frames are counted.

Time stamps ("pts", "dts") are integers in units of the stream's time base, on one clock (aha/video/clock.py): they ascend over the file.

Three clocks: seconds of this project (files, scores, segments) count from the first picture; time stamps are the file's own; a player's
seconds count from the beginning of the container, which may be sound (`VideoIndex.player_seconds`, the one place that goes over to it).
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from dataclasses import dataclass, field
from fractions import Fraction

import av

from aha.errors import UserError
from aha.video.clock import Clock
from aha.video.container import MAX_PIXELS, MAX_SECONDS, Limits, open_container, packets_of, pixel_aspect_of, video_stream, video_tracks
from aha.video.joined import first_file_ends

UNINDEXED = ("mpegts", "mpeg")  # formats that do not say how long they are
SHOWS_FRAME_LIST = int(av.__version__.split(".")[0]) >= 16  # lmms-eval wants an older PyAV
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
    stream: int = 0  # number of the video stream in the container
    other_videos: int = 0  # video streams besides it
    late: float = 0.0  # seconds from the beginning of the container (its first sound or picture) to the first picture
    clock_offsets: tuple[Fraction, ...] = (Fraction(0),)  # seconds by which each epoch of the file's time stamps was moved
    max_pixels: int = MAX_PIXELS  # of one picture; larger ones are not decoded

    @property
    def first_pts(self) -> int:
        return self.pts[0]

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last one, which is taken to last at least 1/fps."""
        last = max(Fraction(self.last_duration) * self.time_base, 1 / self.fps)
        return (self.pts[-1] - self.pts[0]) * self.time_base + last

    def player_seconds(self, seconds: float) -> float:
        """Where a player of this file finds a moment: its time counts from the beginning of the container, ours from the first picture."""
        return seconds + self.late


def video_index(path: str | os.PathLike, limits: Limits | None = None) -> VideoIndex:
    """The packet index of a video file; the last few are kept, keyed by size and time of change.

    Raises UserError (one sentence): missing, empty, no video, damaged, or beyond `limits` (pixels are told before anything is decoded).
    """
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"video {path} cannot be opened ({error.strerror}); check the path.") from error
    if not os.path.isfile(path):
        raise UserError(f"video {path} is not a file; give a video file, or a list of image files with source_fps.")
    if status.st_size == 0:
        raise UserError(f"video {path} is empty (0 bytes); download or copy it again.")
    return _cached_index(path, status.st_size, status.st_mtime_ns, limits or Limits())


@functools.lru_cache(maxsize=8)
def _cached_index(path: str, size: int, mtime_ns: int, limits: Limits) -> VideoIndex:
    """The index of a file; size and mtime_ns are there so that a file that was changed is another entry of the cache."""
    with open_container(path) as container:
        stream = video_stream(container, path)
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise UserError(f"video {path} claims frames of {codec.width}x{codec.height} pixels, so it is damaged; download it again.")
        if codec.width * codec.height > limits.pixels:
            size_wxh = f"{codec.width}x{codec.height}"
            raise UserError(f"video {path} has pictures of {size_wxh} pixels, more than the {limits.pixels} allowed here; make it smaller.")
        failures: list[Exception] = []
        packet_pts: list[int | None] = []
        packet_is_key: list[bool] = []
        durations: dict[int, int] = {}  # pts of every frame that is shown -> its duration
        epoch_key: int | None = None  # pts of the key frame with which a later epoch begins
        without_pts = False
        last_dts, last_is_whole = None, True
        clock, epochs = Clock(container, stream), 1
        for packet in packets_of(container, stream, failures, clock):
            if len(clock.offsets_s) > epochs:
                epochs = len(clock.offsets_s)
                if packet.is_keyframe and packet.pts is not None:
                    epoch_key = packet.pts
            packet_pts.append(packet.pts)
            packet_is_key.append(packet.is_keyframe)
            last_dts, last_is_whole = packet.dts, not packet.is_corrupt
            if packet.is_discard or (codec.name == "vp8" and not bytes(packet)[0] >> 4 & 1):
                continue  # outside the edit list, or a VP8 reference that is never shown
            if packet.pts is None:
                without_pts = True
            elif epoch_key is None or packet.pts >= epoch_key:  # else it needs pictures from before the recording was joined
                durations[packet.pts] = packet.duration or 0
        if not packet_pts:
            raise UserError(f"video {path} holds no frames; download it again or make it anew.")
        if True not in packet_is_key:
            packet_is_key[0] = True
        time_base, rate, container_name = time_base_of(stream), _frame_rate(stream), container.format.name
        cut_off = bool(failures) or _is_cut_off(path, size, container_name, stream, len(packet_pts))
        # AVI stores no time stamps: with B-frames those that FFmpeg makes up are not the frames' own.
        by_count = without_pts or not durations or (container_name == "avi" and codec.has_b_frames)
        codec_name, width, height, promised_frames = codec.codec.canonical_name, codec.width, codec.height, stream.frames
        pixel_aspect, begin = pixel_aspect_of(stream), Fraction(container.start_time or 0, 1_000_000)
        number, other_videos = stream.index, len(video_tracks(container)) - 1
    if by_count:
        pts = _decoded_pts(path, time_base, rate)
        pts = pts[: max(1, len(pts) - REORDERED)] if cut_off else pts
    else:
        # Frames shown before the first key frame cannot be decoded: a recording that was cut from a broadcast starts like this.
        first_key = packet_pts[packet_is_key.index(True)]
        pts = sorted(p for p in durations if first_key is None or p >= first_key)
        if last_dts is not None and (cut_off or not last_is_whole):
            # the frames after the last decoding time may have gaps where the file is cut
            pts = [p for p in pts if p <= last_dts and p != packet_pts[-1]]
        elif last_dts is not None and rate is not None and container_name in UNINDEXED:
            pts = _without_gaps_after(last_dts, pts, interval=1.5 / float(rate * time_base))
        if not pts:
            raise UserError(f"video {path} is cut off before its first frame is complete; download it again.")
    span = (pts[-1] - pts[0]) * time_base
    fps = rate or ((len(pts) - 1) / span if span > 0 else Fraction(1))
    if span > MAX_SECONDS:
        raise UserError(
            f"video {path} has time stamps more than {MAX_SECONDS // 86400:.0f} days apart, so it is damaged; download it again."
        )
    if span > limits.seconds:
        raise UserError(f"video {path} lasts {float(span):.0f} s, more than the {limits.seconds:g} s allowed here; cut it.")
    late = max(0.0, float(pts[0] * time_base - begin)) if not by_count else 0.0
    if container_name.startswith("mov,") and (end := first_file_ends(path)) is not None:
        print(
            f"note: video {path} is several files joined end to end, of which only the first is read ({end} of {size} bytes); "
            "join them with FFmpeg's concat instead.",
            file=sys.stderr,
        )
    return VideoIndex(
        path=path, container=container_name, codec=codec_name, time_base=time_base, fps=fps, pts=pts,
        last_duration=durations.get(pts[-1], 0), width=width, height=height, pixel_aspect=pixel_aspect, promised_frames=promised_frames,
        cut_off=cut_off, by_count=by_count, packet_pts=packet_pts, packet_is_key=packet_is_key, stream=number, other_videos=other_videos,
        late=late, clock_offsets=tuple(clock.offsets_s), max_pixels=limits.pixels,
    )  # fmt: skip


def time_base_of(stream: av.stream.Stream) -> Fraction:
    """Seconds of a unit of the stream's time stamps. Raises UserError where the file does not say it: they then mean nothing."""
    if stream.time_base is None:
        raise UserError("the stream has no time base, so the file is damaged; download it again or make it anew.")
    return stream.time_base


def _frame_rate(stream: av.video.stream.VideoStream) -> Fraction | None:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and rate > 0:
            return Fraction(rate)
    return None


def _is_cut_off(path: str, size: int, container: str, stream: av.video.stream.VideoStream, packets: int) -> bool:
    """True where the file says itself that it goes on past its end: a list of frames, a Matroska segment or a RIFF chunk that is longer."""
    if SHOWS_FRAME_LIST:
        listed_beyond = any(entry.pos + entry.size > size for entry in stream.index_entries)
    else:
        listed_beyond = container.startswith("mov") and packets < stream.frames
    if listed_beyond:
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


def open_decoder(path: str, threads: int, max_pixels: int = MAX_PIXELS) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
    """(container, video stream) ready to decode with this many threads pictures of at most `max_pixels`. The caller closes the first."""
    container = open_container(path)
    stream = video_stream(container, path)
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    stream.codec_context.options = {
        "max_pixels": str(max_pixels + max_pixels // 4)
    }  # it counts pictures as coded, which are a little larger
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
        stamps = [frame.pts for packet in packets for frame in decode_packet(stream, packet)]
    if not stamps:
        raise UserError(f"video {path} has no frame that can be decoded; download it again or re-encode it.")
    pts = [stamp for stamp in stamps if stamp is not None]
    if len(pts) == len(stamps) and all(a < b for a, b in zip(pts, pts[1:])):
        return pts
    step = 1 / ((fps or Fraction(25)) * time_base)
    spaced = [round(i * step) for i in range(len(stamps))]
    return spaced if len(set(spaced)) == len(spaced) else list(range(len(spaced)))
