"""Decoding chosen frames of a video file, and the packet index that says which frames there are.

The index is read without decoding: the time stamp of every packet of the video stream, sorted, is the list of frames in the order in which
they are shown. Three decoders then give the pixels of chosen frames:

- pyav (default): decodes only what the chosen frames need, and checks every frame by its time stamp;
- decord: refused for HEVC and MPEG-TS, where it silently returns other frames (measured); its reader is dropped at once;
- torchcodec: refused for MPEG-TS for the same reason.

Dimensions in names: H height, W width, C channels (RGB). Time stamps ("pts") are integers in units of the stream's time base.
"""

from __future__ import annotations

import bisect
import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from aha.data.frames import IMAGE_SUFFIXES, swaps_axes, turn_upright
from aha.errors import UserError

MAX_PIXELS = 1 << 27  # 16384 x 8192; a larger size comes from a damaged header, and decoding it would take the memory of the machine
MAX_SECONDS = 7 * 24 * 3600  # time stamps further apart come from damage; a sampling grid over them would never end
_CHUNK = 16  # frames asked of decord or torchcodec at a time


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
    with _open(path) as container:
        stream = _video_stream(container, path)
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise UserError(f"video {path} claims frames of {codec.width}x{codec.height} pixels, so it is damaged; download it again.")
        packet_pts: list[int | None] = []
        packet_is_key: list[bool] = []
        shown: set[int] = set()
        without_pts = 0
        last_pts, last_duration = None, 0
        for packet in _packets(container, stream):
            packet_pts.append(packet.pts)
            packet_is_key.append(packet.is_keyframe)
            if packet.is_discard or (codec.name == "vp8" and not bytes(packet)[0] >> 4 & 1):
                continue  # outside the edit list, or a VP8 reference that is never shown
            if packet.pts is None:
                without_pts += 1
                continue
            if last_pts is None or packet.pts > last_pts:
                last_pts, last_duration = packet.pts, packet.duration or 0
            shown.add(packet.pts)
        if not packet_pts:
            raise UserError(f"video {path} holds no frames; download it again or make it anew.")
        if True not in packet_is_key:
            packet_is_key[0] = True
        # Frames shown before the first key frame cannot be decoded: a recording that was cut from a broadcast starts like this.
        first_key = packet_pts[packet_is_key.index(True)]
        pts = sorted(shown if first_key is None else (p for p in shown if p >= first_key))
        by_count = without_pts > 0 or not pts
        time_base = stream.time_base
        fps = _frame_rate(stream)
        cut_off = _points_past_end(stream, size)
        container_name, codec_name, promised = container.format.name, codec.name, stream.frames
        width, height = codec.width, codec.height
        aspect = stream.sample_aspect_ratio
        pixel_aspect = float(aspect) if aspect is not None and Fraction(1, 10) <= aspect <= 10 else 1.0
    if by_count:
        pts = _decoded_pts(path, time_base, fps)
        last_duration = 0
    if fps is None:
        span = (pts[-1] - pts[0]) * time_base
        fps = (len(pts) - 1) / span if span > 0 else Fraction(1)
    if (pts[-1] - pts[0]) * time_base > MAX_SECONDS:
        raise UserError(f"video {path} has time stamps more than {MAX_SECONDS // 86400} days apart, so it is damaged; download it again.")
    return VideoIndex(
        path=path, container=container_name, codec=codec_name, time_base=time_base, fps=fps, pts=pts, last_duration=last_duration,
        width=width, height=height, pixel_aspect=pixel_aspect, promised_frames=promised, cut_off=cut_off, by_count=by_count,
        packet_pts=packet_pts, packet_is_key=packet_is_key,
    )  # fmt: skip


def _open(path: str) -> av.container.InputContainer:
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:  # FFmpeg would read the name as a pattern of image names
        raise UserError(f"{path} has the name of an image, not of a video; rename it, or give a list of image files with source_fps.")
    try:
        # Only local files: a text file that lists addresses (a playlist) must not make the reader load them.
        return av.open(path, options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise UserError(f"video {path} cannot be opened ({_reason(error)}), so it is no video or damaged; download it again.") from error


def _video_stream(container: av.container.InputContainer, path: str) -> av.video.stream.VideoStream:
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue  # the cover picture of an audio file
        if stream.codec_context is None:
            raise UserError(f"video {path} has a coding that this FFmpeg cannot decode; convert it (ffmpeg -i IN -c:v libx264 OUT.mp4).")
        if stream.time_base is None or stream.time_base <= 0:
            raise UserError(f"video {path} has no time base, so it is damaged; download it again or re-encode it.")
        return stream
    raise UserError(f"{path} has no video stream (is it audio?); give a video file.")


def _packets(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
    """The packets of the video stream in file order; ends at the first place where the container cannot be read on."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.size:
            yield packet


def _frame_rate(stream: av.video.stream.VideoStream) -> Fraction | None:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and rate > 0:
            return Fraction(rate)
    return None


def _points_past_end(stream: av.video.stream.VideoStream, size: int) -> bool:
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()


def _open_decoder(path: str, threads: int) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
    container = _open(path)
    stream = _video_stream(container, path)
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    return container, stream


def _decode(stream: av.video.stream.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Feed one packet (None: get what is left). A packet that the decoder refuses gives no frame; who needs its frame will miss it."""
    try:
        return stream.codec_context.decode(packet)
    except av.error.FFmpegError:
        return []


def _decoded_pts(path: str, time_base: Fraction, fps: Fraction | None) -> list[int]:
    """Time stamps of every frame found by decoding; where frames have none, or they do not increase, evenly spaced by the frame rate."""
    container, stream = _open_decoder(path, threads=2)
    with container:
        pts = [frame.pts for packet in (*_packets(container, stream), None) for frame in _decode(stream, packet)]
    if not pts:
        raise UserError(f"video {path} has no frame that can be decoded; download it again or re-encode it.")
    if None in pts or any(b <= a for a, b in zip(pts, pts[1:])):
        step = 1 / ((fps or Fraction(25)) * time_base)
        pts = [round(i * step) for i in range(len(pts))]
        if len(set(pts)) != len(pts):
            pts = list(range(len(pts)))
    return pts


def missing_frame(index: VideoIndex, frame_index: int) -> UserError:
    """The error for a frame that the file promises and that cannot be decoded."""
    seconds = float((index.pts[frame_index] - index.first_pts) * index.time_base)
    return UserError(
        f"video {index.path}: frame {frame_index} (at {seconds:.3f} s) cannot be decoded, the file is damaged there; "
        f"download it again, or read only up to it with end={seconds:.3f}."
    )


def decode_pyav(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield (frame index, upright RGB image [H,W,3], pixel aspect) for each of `wanted` (strictly increasing frame indices).

    Raises UserError, naming the frame, where one cannot be decoded.
    """
    remaining = list(wanted)
    source = _decode_by_count(index, wanted, threads) if index.by_count else _decode_by_pts(index, wanted, threads)
    for frame_index, frame in source:
        if frame_index != remaining[0]:
            break
        yield remaining.pop(0), *to_upright_rgb(index, frame_index, frame)
    if remaining and not index.by_count:
        # A key frame that cannot be started from after all: once more without leaving anything out.
        for frame_index, frame in _decode_by_pts(index, remaining, threads, skip=False):
            if frame_index != remaining[0]:
                break
            yield remaining.pop(0), *to_upright_rgb(index, frame_index, frame)
    if remaining:
        raise missing_frame(index, remaining[0])


def _decode_by_count(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, av.VideoFrame]]:
    container, stream = _open_decoder(index.path, threads)
    last, count, chosen = wanted[-1], 0, set(wanted)
    with container:
        for packet in (*_packets(container, stream), None):
            for frame in _decode(stream, packet):
                if count in chosen:
                    yield count, frame
                if count == last:
                    return
                count += 1


def _decode_by_pts(index: VideoIndex, wanted: list[int], threads: int, skip: bool = True) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (frame index, frame) in the order shown; with `skip`, packets between what is needed are read but not decoded.

    The packets that a frame needs: from the last key frame that is shown no later than it, to its own, in file order.
    """
    position = {p: i for i, p in enumerate(index.packet_pts)}
    keys = [i for i, is_key in enumerate(index.packet_is_key) if is_key]
    own = [position[index.pts[i]] for i in wanted]
    first = [_start_of(index, keys, n, index.pts[i]) if skip else 0 for n, i in zip(own, wanted)]
    frame_of = {index.pts[i]: i for i in wanted}
    container, stream = _open_decoder(index.path, threads)
    with container:
        packets = _packets(container, stream)
        done = 0  # packets before this one are decoded or skipped
        for target in range(len(wanted)):
            if first[target] > done:
                stream.codec_context.flush_buffers()
            needs_skip = target + 1 < len(wanted) and first[target + 1] > max(own[target], done) + threads
            if not needs_skip and target + 1 < len(wanted):
                first[target + 1] = 0  # no gap worth it: decode straight on
            while done <= own[target]:
                packet = next(packets, None)
                if packet is None:
                    break
                if done >= first[target]:
                    for frame in _decode(stream, packet):
                        if frame.pts in frame_of:
                            yield frame_of.pop(frame.pts), frame
                done += 1
            if needs_skip or target + 1 == len(wanted):
                for frame in _decode(stream, None):
                    if frame.pts in frame_of:
                        yield frame_of.pop(frame.pts), frame


def _start_of(index: VideoIndex, keys: list[int], own: int, pts: int) -> int:
    k = bisect.bisect_right(keys, own) - 1
    while k > 0 and (index.packet_pts[keys[k]] is None or index.packet_pts[keys[k]] > pts):
        k -= 1
    return keys[max(k, 0)]


def shown_size(index: VideoIndex) -> tuple[int, int, int]:
    """(width, height, clockwise rotation in degrees) of the first frame as it is shown. Raises UserError where it cannot be decoded."""
    source = _decode_by_count(index, [0], 1) if index.by_count else _decode_by_pts(index, [0], 1)
    for _, frame in source:
        image_HWC, _ = to_upright_rgb(index, 0, frame)
        return image_HWC.shape[1], image_HWC.shape[0], -frame.rotation % 360
    raise missing_frame(index, 0)


def to_upright_rgb(index: VideoIndex, frame_index: int, frame: av.VideoFrame) -> tuple[np.ndarray, float]:
    """One decoded frame as (uint8 RGB [H,W,3] turned as it is shown, pixel aspect of the turned image)."""
    if frame.width * frame.height > MAX_PIXELS:
        raise missing_frame(index, frame_index)
    try:
        image_HWC = frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(
            f"video {index.path}: frame {frame_index} cannot be converted to RGB ({_reason(error)}); re-encode the video as H.264."
        ) from error
    matrix = frame.side_data.get("DISPLAYMATRIX")
    matrix = struct.unpack("<9i", bytes(matrix)) if matrix is not None else None
    return turn_upright(image_HWC, matrix), 1 / index.pixel_aspect if swaps_axes(matrix) else index.pixel_aspect


def decode_decord(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """As `decode_pyav`, with decord. Raises UserError where decord is not installed, is known to be wrong, or counts other frames."""
    if index.codec == "hevc" or index.container == "mpegts":
        what = "HEVC" if index.codec == "hevc" else "MPEG-TS"
        raise UserError(f'video {index.path} is {what}, of which decord silently returns wrong frames; use the default backend="pyav".')
    try:
        import decord
    except ImportError as error:
        raise UserError('backend="decord" needs decord: pip install decord==0.6.0, or use the default backend="pyav".') from error
    try:
        reader = decord.VideoReader(index.path, ctx=decord.cpu(0), num_threads=threads)
    except (decord.DECORDError, RuntimeError) as error:
        raise _other_backend(index, "decord", error) from error
    try:
        if len(reader) != len(index.pts):
            raise _other_backend(index, "decord", f"it counts {len(reader)} frames, the container has {len(index.pts)}")
        for at in range(0, len(wanted), _CHUNK):
            chunk = wanted[at : at + _CHUNK]
            try:
                frames_THWC = reader.get_batch(chunk).asnumpy()
            except (decord.DECORDError, RuntimeError) as error:
                raise _other_backend(index, "decord", error) from error
            for frame_index, image_HWC in zip(chunk, frames_THWC):
                yield frame_index, image_HWC, _turned_aspect(index, image_HWC)
    finally:
        del reader  # it decodes on in the background, into memory, for as long as it lives


def decode_torchcodec(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """As `decode_pyav`, with torchcodec in its exact mode. Raises UserError as `decode_decord` does."""
    if index.container == "mpegts":
        raise UserError(f'video {index.path} is MPEG-TS, of which torchcodec returns wrong frames; use the default backend="pyav".')
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: installed, but the FFmpeg libraries do not load
        raise UserError(
            'backend="torchcodec" needs torchcodec and the FFmpeg libraries: pip install torchcodec==0.13.0 and apt-get install ffmpeg, '
            'or use the default backend="pyav".'
        ) from error
    try:
        decoder = VideoDecoder(index.path, dimension_order="NHWC", num_ffmpeg_threads=threads, seek_mode="exact")
    except (RuntimeError, ValueError) as error:
        raise _other_backend(index, "torchcodec", error) from error
    if len(decoder) != len(index.pts):
        raise _other_backend(index, "torchcodec", f"it counts {len(decoder)} frames, the container has {len(index.pts)}")
    for at in range(0, len(wanted), _CHUNK):
        chunk = wanted[at : at + _CHUNK]
        try:
            frames_THWC = decoder.get_frames_at(chunk).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise _other_backend(index, "torchcodec", error) from error
        for frame_index, image_HWC in zip(chunk, frames_THWC):
            yield frame_index, image_HWC, _turned_aspect(index, image_HWC)


def _turned_aspect(index: VideoIndex, image_HWC: np.ndarray) -> float:
    """decord and torchcodec turn the picture themselves: whether they did shows in its sides."""
    turned = image_HWC.shape[:2] == (index.width, index.height) != (index.height, index.width)
    return 1 / index.pixel_aspect if turned else index.pixel_aspect


def _other_backend(index: VideoIndex, backend: str, cause: object) -> UserError:
    first_line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return UserError(f'video {index.path} cannot be read with backend="{backend}" ({first_line[:200]}); use the default backend="pyav".')
