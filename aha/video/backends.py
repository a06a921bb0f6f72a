"""Decoding chosen frames of a video file with one of three libraries.

- pyav (default): decodes only what the chosen frames need, and checks every frame by its time stamp;
- decord: refused for HEVC, MPEG-TS and program streams, and files without time stamps (AVI with B-frames), of which it silently returns
  other frames (measured), and for files with several video streams, of which it takes one by a rule of its own; its reader is dropped at
  once, since it decodes on in the background;
- torchcodec: refused for the same but HEVC and several streams.

All take frame indices of the same packet index (aha/video/packet_index.py), so the choice of frames is the same. No decoder outlives the
call that made it, so readers are safe in forked DataLoader workers.

Dimensions in names: H height, W width, C channels (RGB).
"""

from __future__ import annotations

import bisect
import itertools
import math
import struct
from collections.abc import Iterator

import av
import numpy as np
from av.sidedata.sidedata import SideData

from aha.core.extras import install_line
from aha.errors import UserError
from aha.video.container import packets_of, reason
from aha.video.frames import swaps_axes, turn_upright
from aha.video.packet_index import VideoIndex, decode_packet, open_decoder

Matrices = dict[int, tuple[int, ...] | None]  # rotation in degrees -> display matrix

_CHUNK = 16  # frames asked of decord or torchcodec at a time


def missing_frame(index: VideoIndex, frame_index: int) -> UserError:
    """The error for a frame that the file promises and that cannot be decoded."""
    seconds = [float((index.pts[i] - index.first_pts) * index.time_base) for i in (max(frame_index - 1, 0), frame_index)]
    end = math.floor(seconds[0] * 1000) / 1000  # the frame before: a sample only a little later would take the damaged frame again
    return UserError(
        f"video {index.path}: frame {frame_index} (at {seconds[1]:.3f} s) cannot be decoded, the file is damaged there; download it again"
        + (f", or read only up to it with end={end}." if end > 0 else ".")
    )


def decode_pyav(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield (frame index, upright RGB image [H,W,3], pixel aspect) for each of `wanted` (strictly increasing frame indices).

    Raises UserError, naming the frame, where one cannot be decoded.
    """
    remaining = list(wanted)
    matrices: Matrices = {}
    source = _decode_by_count(index, wanted, threads) if index.by_count else _decode_by_pts(index, wanted, threads)
    for frame_index, frame in source:
        if frame_index != remaining[0]:
            break
        yield remaining.pop(0), *to_upright_rgb(index, frame_index, frame, matrices)
    if remaining and not index.by_count:
        # A key frame that cannot be started from after all: once more without leaving anything out.
        for frame_index, frame in _decode_by_pts(index, list(remaining), threads, skip=False):
            if frame_index != remaining[0]:
                break
            yield remaining.pop(0), *to_upright_rgb(index, frame_index, frame, matrices)
    if remaining:
        raise missing_frame(index, remaining[0])


def _decode_by_count(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, av.VideoFrame]]:
    container, stream = open_decoder(index.path, threads, index.max_pixels)
    last, count, chosen = wanted[-1], 0, set(wanted)
    with container:
        for packet in itertools.chain(packets_of(container, stream), [None]):
            for frame in decode_packet(stream, packet):
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
    chosen = {index.pts[i] for i in wanted}
    frame_of = {index.pts[i]: i for i in wanted}
    container, stream = open_decoder(index.path, threads, index.max_pixels)
    with container:
        packets = packets_of(container, stream)
        done = 0  # packets before this one are decoded or skipped
        for target in range(len(wanted)):
            if first[target] > done:
                stream.codec_context.flush_buffers()
            needs_skip = target + 1 < len(wanted) and first[target + 1] > max(own[target], done) + threads
            if not needs_skip and target + 1 < len(wanted):
                first[target + 1] = 0  # no gap is worth skipping: decode straight on
            while done <= own[target]:
                packet = next(packets, None)
                if packet is None:
                    break
                if done >= first[target]:
                    if stream.codec_context.name == "h264":
                        # Pictures that no other refers to need no decoding: on common files half the work.
                        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in chosen else "NONREF"
                    for frame in decode_packet(stream, packet):
                        if frame.pts in frame_of:
                            yield frame_of.pop(frame.pts), frame
                done += 1
            if needs_skip or target + 1 == len(wanted):
                for frame in decode_packet(stream, None):
                    if frame.pts in frame_of:
                        yield frame_of.pop(frame.pts), frame


def _start_of(index: VideoIndex, keys: list[int], own: int, pts: int) -> int:
    k = bisect.bisect_right(keys, own) - 1
    while k > 0 and ((start := index.packet_pts[keys[k]]) is None or start > pts):
        k -= 1
    return keys[max(k, 0)]


def shown_size(index: VideoIndex) -> tuple[int, int, int]:
    """(width, height, clockwise rotation in degrees) of the first frame as it is shown. Raises UserError where it cannot be decoded."""
    source = _decode_by_count(index, [0], 1) if index.by_count else _decode_by_pts(index, [0], 1)
    for _, frame in source:
        image_HWC, _ = to_upright_rgb(index, 0, frame, {})
        return image_HWC.shape[1], image_HWC.shape[0], -frame.rotation % 360
    raise missing_frame(index, 0)


def to_upright_rgb(index: VideoIndex, frame_index: int, frame: av.VideoFrame, matrices: Matrices) -> tuple[np.ndarray, float]:
    """One decoded frame of a file as `upright_rgb`. Raises UserError, naming the frame, where it is too large or cannot be converted."""
    if frame.width * frame.height > index.max_pixels:
        raise missing_frame(index, frame_index)
    try:
        return upright_rgb(frame, index.pixel_aspect, matrices)
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(
            f"video {index.path}: frame {frame_index} cannot be converted to RGB ({reason(error)}); re-encode the video as H.264."
        ) from error


def upright_rgb(frame: av.VideoFrame, pixel_aspect: float, matrices: Matrices) -> tuple[np.ndarray, float]:
    """(uint8 RGB [H,W,3] turned as it is shown, pixel aspect of the turned picture) of a decoded frame, of files and of live sources.

    `matrices` keeps the display matrix for each rotation seen: asking a frame for its side data ties it into a reference cycle, and
    pictures that only the garbage collector frees pile up to hundreds of megabytes.
    """
    image_HWC = frame.to_ndarray(format="rgb24")
    if frame.rotation not in matrices:
        data = frame.side_data.get("DISPLAYMATRIX")
        matrices[frame.rotation] = struct.unpack("<9i", bytes(data)) if isinstance(data, SideData) else None
    matrix = matrices[frame.rotation]
    return turn_upright(image_HWC, matrix), 1 / pixel_aspect if swaps_axes(matrix) else pixel_aspect


def decode_decord(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """As `decode_pyav`, with decord. Raises UserError where decord is not installed, is known to be wrong, or counts other frames."""
    _refuse(index, "decord", ("hevc",))
    if index.other_videos:
        raise UserError(
            f"video {index.path} has {index.other_videos + 1} video streams, of which decord takes one by a rule of its own; "
            'use the default backend="pyav".'
        )
    turned_aspect = _turned_aspect(index)
    try:
        import decord
    except ImportError as error:
        raise UserError(f'backend="decord" needs decord: {install_line("decord")}, or use the default backend="pyav".') from error
    try:
        reader = decord.VideoReader(index.path, ctx=decord.cpu(0), num_threads=threads)
    except (decord.DECORDError, RuntimeError, UnicodeError) as error:  # UnicodeError: a name that is not UTF-8
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
                yield frame_index, image_HWC, turned_aspect
    finally:
        del reader  # as long as it lives, it goes on decoding into memory in the background


def decode_torchcodec(index: VideoIndex, wanted: list[int], threads: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """As `decode_pyav`, with torchcodec in its exact mode. Raises UserError as `decode_decord` does."""
    _refuse(index, "torchcodec", ())
    turned_aspect = _turned_aspect(index)
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: installed, but the FFmpeg libraries do not load
        raise UserError(
            f'backend="torchcodec" needs torchcodec and the FFmpeg libraries: {install_line("torchcodec")} and apt-get install ffmpeg, '
            'or use the default backend="pyav".'
        ) from error
    try:
        decoder = VideoDecoder(index.path, stream_index=index.stream, dimension_order="NHWC", num_ffmpeg_threads=threads, seek_mode="exact")
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
            yield frame_index, image_HWC, turned_aspect


def _refuse(index: VideoIndex, backend: str, codecs: tuple[str, ...]) -> None:
    """Raise UserError for what the backend was measured to get wrong without saying so."""
    kinds = {"mpegts": "MPEG-TS", "mpeg": "an MPEG program stream"}
    if index.codec in codecs:
        what = index.codec.upper()
    elif index.container in kinds:
        what = kinds[index.container]
    elif index.by_count:
        what = f"{index.codec} in {index.container}, without time stamps"
    elif len(index.clock_offsets) > 1:
        what = "a recording whose time stamps start again"
    else:
        return
    raise UserError(f'video {index.path} is {what}, of which {backend} silently returns wrong frames; use the default backend="pyav".')


def _turned_aspect(index: VideoIndex) -> float:
    """Width of a pixel over its height in pictures of decord and torchcodec, which turn them upright themselves by the display matrix."""
    if index.pixel_aspect == 1:
        return 1.0
    for _, frame in _decode_by_count(index, [0], 1) if index.by_count else _decode_by_pts(index, [0], 1):
        return upright_rgb(frame, index.pixel_aspect, {})[1]
    raise missing_frame(index, 0)


def _other_backend(index: VideoIndex, backend: str, cause: object) -> UserError:
    first_line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return UserError(f'video {index.path} cannot be read with backend="{backend}" ({first_line[:200]}); use the default backend="pyav".')
