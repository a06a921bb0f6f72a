"""The one video reader of the project: chosen frames of a video, with their index and time in the original, resized and padded to a square.

    frames = read_video("clip.mp4", fps=1)          # frames.frames_TCHW: uint8 [T,3,384,384], RGB
    for frame in iter_frames("hours.mp4", fps=1):   # one frame at a time, constant memory
    probe("clip.mp4")                               # fps, duration, frame count, size

Dimensions in names: T frames, H height, W width, C channels (RGB).

Clock: time 0 is the first frame of the video, wherever its time stamps start; stamps that start again, step back or jump are put in order
(aha/video/clock.py).

Sampling at a rate, in exact arithmetic: sample k is the first frame at or after start + k/fps if that comes within one usual frame interval
(the median of the video), as it always does at a constant frame rate; in a longer gap it is the frame on screen, held, with the grid's time
as its own. The last frame is held to the end of the video only where it lasts longer than that interval. A held frame is taken more than
once, so frame numbers may repeat. `sampling="reference"` chooses as the published MMDuet and Aha code does, which walks the frames with a
running float sum of 1/video_fps and so is late by one frame now and then; it also takes every pixel as square.
"""

from __future__ import annotations

import bisect
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from llava_next import PUBLISHED

from aha.errors import UserError
from aha.video.backends import decode_decord, decode_pyav, decode_torchcodec, shown_size
from aha.video.container import Limits
from aha.video.frames import check_array, letterbox, read_image
from aha.video.packet_index import VideoIndex, video_index

__all__ = ["Frame", "VideoFrames", "VideoInfo", "iter_frames", "letterbox", "probe", "read_video"]

BACKENDS = {"pyav": decode_pyav, "decord": decode_decord, "torchcodec": decode_torchcodec}
SAMPLINGS = ("timestamps", "reference")
MOST_FPS, MOST_SAMPLES = 1000, 10_000_000  # beyond them a typing error would keep the machine busy for hours
ROUNDED = 1e-3  # seconds by which intervals differ that were rounded to milliseconds

Backend = Literal["pyav", "decord", "torchcodec"]
Source = str | os.PathLike | Sequence[str | os.PathLike] | np.ndarray


@dataclass(frozen=True)
class VideoInfo:
    """Facts of one video file."""

    path: str
    fps: float  # average frames a second
    duration: float  # seconds, from the first frame to the end of the last
    frame_count: int
    width: int  # as shown, that is after rotation
    height: int
    rotation: int  # degrees (0, 90, 180, 270) by which the stored picture is turned clockwise to be shown
    codec: str  # FFmpeg's name, e.g. "h264"
    cut_off: bool  # frames are missing at the end; reading is possible with `end` at most `duration`
    late: float = 0.0  # seconds on a player's clock at which the first frame is shown (our clock starts with it)


class Frame(NamedTuple):
    """One sampled frame."""

    frame_CHW: np.ndarray  # uint8 [3,H,W], RGB
    frame_index: int  # in the original video, in the order shown
    time: float  # seconds, of the sampling grid: start + k/fps
    frame_time: float  # seconds, when the frame is shown: its own time at or after `time`, or `time` where it is held ("reference": about)


NO_PIXELS = np.empty((3, 0, 0), np.uint8)  # of a Frame whose picture lies elsewhere, or was seen by the vision tower already


@dataclass(frozen=True)
class VideoFrames:
    """Sampled frames of one video; the lists have one element per frame."""

    frames_TCHW: np.ndarray  # uint8 [T,3,H,W], RGB
    frame_indices: list[int]  # in the original video, in the order shown
    times: list[float]  # seconds, of the sampling grid: start + k/fps
    frame_times: list[float]  # seconds, when the frames are shown: see Frame
    video_fps: float
    duration: float  # seconds, of the whole video
    frame_count: int  # of the whole video
    sample_fps: float  # of the sampling grid


@dataclass(frozen=True)
class _Timeline:
    """When each frame of a source is shown, in integer units of `unit` seconds; `name` for error messages."""

    name: str
    ticks: list[int]  # first is 0
    unit: Fraction
    fps: Fraction
    duration: Fraction
    promised_frames: int
    cut_off: bool
    last_ticks: int = 0  # duration that the file states for its last frame; 0 = it states none

    def seconds(self, frame_index: int) -> float:
        return float(self.ticks[frame_index] * self.unit)

    @functools.cached_property
    def usual_ticks(self) -> float:
        """The usual frame interval: the median, or the longest that is the same but for rounding of time stamps (a unit, a millisecond)."""
        if len(self.ticks) < 2:
            return float(1 / (self.fps * self.unit))
        intervals = np.diff(np.array(self.ticks, dtype=np.int64)).astype(np.float64)
        median = float(np.median(intervals))
        return max(median, float(intervals[intervals <= median + max(1.0, ROUNDED / float(self.unit))].max()))


@dataclass(frozen=True)
class _Choice:
    frame_indices: list[int]
    times: list[float]
    frame_times: list[float]
    sample_fps: float


class ReadOptions(TypedDict, total=False):
    """What `iter_frames` and `read_video` take; what each means stands with `iter_frames`, the defaults with `_open_source`."""

    fps: float | Fraction | None
    max_frames: int | None
    num_frames: int | None
    sampling: Literal["timestamps", "reference"]
    rounding: Literal["up", "down"]
    start: float | None
    end: float | None
    backend: Backend
    size: int
    resize: bool
    source_fps: float | None
    threads: int
    limits: Limits | None


def probe(path: str | os.PathLike, limits: Limits | None = None) -> VideoInfo:
    """Facts of a video file, read from its packets and its first frame (which is decoded: a file without one is an error).

    Raises UserError (missing, empty, no video, damaged, beyond `limits`), one sentence.
    """
    index = video_index(path, limits)
    width, height, rotation = shown_size(index)
    return VideoInfo(
        path=str(path), fps=float(index.fps), duration=float(index.duration), frame_count=len(index.pts),
        width=width, height=height, rotation=rotation, codec=index.codec, cut_off=index.cut_off,
        late=index.player_seconds(0.0),
    )  # fmt: skip


def read_video(source: Source, **options: Unpack[ReadOptions]) -> VideoFrames:
    """Read sampled frames into memory. Options and errors as for `iter_frames`; also an error where they would not fit into memory."""
    timeline, choice, frames = _open_source(source, **options)
    frames_TCHW: np.ndarray | None = None
    for k, frame in enumerate(frames):
        if frames_TCHW is None:
            frames_TCHW = _allocate(timeline.name, len(choice.frame_indices), frame.frame_CHW.shape)
        elif frame.frame_CHW.shape != frames_TCHW.shape[1:]:
            raise UserError(f"{timeline.name}: the picture changes its size at frame {frame.frame_index}; read it with resize=True.")
        frames_TCHW[k] = frame.frame_CHW
    assert frames_TCHW is not None  # a choice of no frames is an error
    return VideoFrames(
        frames_TCHW=frames_TCHW,
        frame_indices=choice.frame_indices,
        times=choice.times,
        frame_times=choice.frame_times,
        video_fps=float(timeline.fps),
        duration=float(timeline.duration),
        frame_count=len(timeline.ticks),
        sample_fps=choice.sample_fps,
    )


def iter_frames(source: Source, **options: Unpack[ReadOptions]) -> Iterator[Frame]:
    """Yield sampled frames one by one, with constant memory.

    source       a video file; or a list of image files; or an array, uint8 [T,H,W,3] or [T,3,H,W], RGB
    fps          samples a second; sample k is the first frame at or after start + k/fps, or in a gap the frame on screen (see above)
    num_frames   instead of fps: this many samples spread evenly over the video (or over start..end)
                 (neither: every frame)
    max_frames   stop after this many
    sampling     "timestamps" (exact) or "reference" (the running sum of the published code; each frame at most once)
    rounding     reference only: round duration * fps "up" (its benchmark loaders) or "down" (its training loader)
    start, end   seconds; the grid begins at `start` (0), samples at or after `end` are left out
    backend      who decodes a video file: "pyav", "decord" or "torchcodec"; the choice of frames is the same
    size         side of the square that frames are scaled into and padded to, in pixels
    resize       False: frames in their own size
    source_fps   frames a second of a list of images or an array
    threads      decoding threads
    limits       pixels and seconds that a video file may have at most (for files that strangers send)

    Raises UserError (one sentence: what, where, cure): missing, empty or damaged file; no video in it; no frame between start and end; a
    chosen frame that cannot be decoded; a file that is cut off, where sampling runs past the cut; an argument out of range.
    """
    return _open_source(source, **options)[2]


def _open_source(
    source: Source,
    *,
    fps: float | Fraction | None = None,
    max_frames: int | None = None,
    num_frames: int | None = None,
    sampling: str = "timestamps",
    rounding: str = "up",
    start: float | None = None,
    end: float | None = None,
    backend: str = "pyav",
    size: int = PUBLISHED.side,
    resize: bool = True,
    source_fps: float | None = None,
    threads: int = 2,
    limits: Limits | None = None,
) -> tuple[_Timeline, _Choice, Iterator[Frame]]:
    """Check the arguments, choose the frames, and return a generator that decodes them."""
    if fps is not None and num_frames is not None:
        raise UserError("give fps or num_frames, not both.")
    for name, value in (("fps", fps), ("source_fps", source_fps)):
        if value is not None and not 0 < value <= MOST_FPS:
            raise UserError(f"{name} must be above 0 and at most {MOST_FPS} (frames a second), not {value}.")
    for name, value in (("max_frames", max_frames), ("num_frames", num_frames), ("size", size), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")
    if num_frames is not None and num_frames > MOST_SAMPLES:
        raise UserError(f"num_frames must be at most {MOST_SAMPLES:,}, not {num_frames}.")
    if not (start is None or 0 <= start < math.inf) or not (end is None or (start or 0) < end < math.inf):
        raise UserError(f"start and end must be seconds with 0 <= start < end, not start={start}, end={end}.")
    _one_of("sampling", sampling, SAMPLINGS)
    _one_of("rounding", rounding, ("up", "down"))
    _one_of("backend", backend, tuple(BACKENDS))
    if sampling == "reference" and fps is None and num_frames is None:
        raise UserError('sampling="reference" needs fps or num_frames.')

    decode: Callable[[list[int]], Iterator[tuple[int, np.ndarray, float]]]
    if isinstance(source, np.ndarray):
        frames_THWC = check_array(source)
        timeline = _even_timeline("array of frames", len(frames_THWC), source_fps)
        decode = lambda wanted: ((i, frames_THWC[i], 1.0) for i in wanted)  # noqa: E731
    elif isinstance(source, (str, os.PathLike)):
        if source_fps is not None:
            raise UserError(f"source_fps is for lists of images and arrays; the video file {source} has its own frame rate.")
        index = video_index(source, limits)
        timeline = file_timeline(index)
        decode = lambda wanted: BACKENDS[backend](index, wanted, threads)  # noqa: E731
    else:
        images = [Path(path) for path in source]
        timeline = _even_timeline("list of images", len(images), source_fps)
        decode = lambda wanted: ((i, read_image(images[i]), 1.0) for i in wanted)  # noqa: E731

    choose = _choose_reference if sampling == "reference" else _choose_by_time
    choice = choose(timeline, fps, num_frames, max_frames, start, end, rounding)
    square_pixels = sampling == "reference"

    def frames() -> Iterator[Frame]:
        decoded = decode(sorted(set(choice.frame_indices)))
        last_index, frame_CHW = -1, NO_PIXELS
        for frame_index, time, frame_time in zip(choice.frame_indices, choice.times, choice.frame_times):
            if frame_index != last_index:
                last_index, image_HWC, pixel_aspect = next(decoded)
                if resize:
                    image_HWC = letterbox(image_HWC, size, 1.0 if square_pixels else pixel_aspect)
                frame_CHW = np.ascontiguousarray(image_HWC.transpose(2, 0, 1))
            yield Frame(frame_CHW, frame_index, time, frame_time)

    return timeline, choice, frames()


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}, not {value}.")


def _even_timeline(name: str, count: int, source_fps: float | None) -> _Timeline:
    if source_fps is None:
        raise UserError(f"a {name} has no frame rate of its own; give source_fps (frames a second).")
    if count == 0:
        raise UserError(f"the {name} is empty; give at least one.")
    rate = _exact(source_fps)
    return _Timeline(name, list(range(count)), 1 / rate, rate, count / rate, promised_frames=count, cut_off=False)


def file_timeline(index: VideoIndex) -> _Timeline:
    """When each frame of a video file is shown."""
    ticks = [pts - index.first_pts for pts in index.pts]
    return _Timeline(
        f"video {index.path}", ticks, index.time_base, index.fps, index.duration, index.promised_frames, index.cut_off, index.last_duration
    )


def _exact(number: float | Fraction) -> Fraction:
    """The fraction that a float was meant to be: 0.3 -> 3/10, 29.97002997002997 -> 30000/1001."""
    if isinstance(number, Fraction):
        return number
    return Fraction(number).limit_denominator(1_000_000) or Fraction(number)


def _choose_by_time(timeline, fps, num_frames, max_frames, start, end, rounding) -> _Choice:
    """Sample k at time t = start + k/fps; the grid ends before `end` and after the last frame.

    The first frame at or after t, if it comes within one usual interval; else the one on screen at t.
    """
    del rounding
    begin = _exact(start or 0)
    stop = timeline.duration if end is None else min(_exact(end), timeline.duration)
    limit = max_frames or math.inf
    indices: list[int] = []
    times: list[float] = []
    frame_times: list[float] = []
    if begin >= stop:
        raise UserError(f"{timeline.name} has no frame at or after start={start}: it is {float(timeline.duration):.3f} s long.")
    if fps is None and num_frames is None:
        first, last = (bisect.bisect_left(timeline.ticks, math.ceil(t / timeline.unit)) for t in (begin, stop))
        indices = list(range(first, last))[:max_frames]
        times = [timeline.seconds(i) for i in indices]
        frame_times = times
        sample_fps = timeline.fps
    else:
        # With a number of samples the grid may end after the last frame's time stamp: that frame is still shown then.
        sample_fps = _exact(fps) if fps is not None else num_frames / (stop - begin)
        limit = min(limit, num_frames or math.inf)
        held_until = timeline.ticks[-1] + (timeline.last_ticks if timeline.last_ticks > timeline.usual_ticks else 0)
        k = 0
        while k < limit and (time := begin + k / sample_fps) < stop:
            tick = time / timeline.unit
            at = bisect.bisect_left(timeline.ticks, math.ceil(tick))
            if at == len(timeline.ticks):
                if num_frames is None and tick >= held_until:
                    break
                at -= 1
            elif at > 0 and timeline.ticks[at] - tick > timeline.usual_ticks:
                at -= 1
            indices.append(at)
            times.append(float(time))
            frame_times.append(max(timeline.seconds(at), float(time)))
            k += 1
    if not indices:
        last = timeline.seconds(-1)
        raise UserError(f"{timeline.name} has no frame between start={start or 0} and end={end}; its last one is at {last:.3f} s.")
    wants_all = len(indices) < limit if num_frames is None else True
    if timeline.cut_off and wants_all and (end is None or _exact(end) > timeline.duration):
        raise _cut_off_error(timeline)
    return _Choice(indices, times, frame_times, float(sample_fps))


def _choose_reference(timeline, fps, num_frames, max_frames, start, end, rounding) -> _Choice:
    """The published loaders: a running float sum of 1/video_fps over all frames; sample i is taken when the sum reaches i/fps.

    `num_frames` is their "auto" mode (fps 0): num_frames/duration samples a second.
    """
    video_fps = float(timeline.fps)
    count = timeline.promised_frames or int(float(timeline.duration) * video_fps + 0.5)
    duration = count / video_fps
    sample_fps = float(fps) if fps is not None else num_frames / duration
    total = math.ceil(duration * sample_fps) if rounding == "up" else math.floor(duration * sample_fps)
    limit = min(total, max_frames or total, num_frames or total)
    indices: list[int] = []
    times: list[float] = []
    clock = 0.0
    sample = 0
    for frame_index in range(len(timeline.ticks)):
        if sample >= total or len(indices) >= limit:
            break
        if clock >= sample / sample_fps:
            time = sample / sample_fps
            if time >= (start or 0) and (end is None or time < end):
                indices.append(frame_index)
                times.append(time)
            sample += 1
        clock += 1 / video_fps
    if not indices:
        raise UserError(f"{timeline.name}: no frame is sampled at {sample_fps:g} frames a second; it is {duration:.3f} s long.")
    if timeline.cut_off and len(indices) < limit and end is None:
        raise _cut_off_error(timeline)
    return _Choice(indices, times, [timeline.seconds(i) for i in indices], sample_fps)


def _cut_off_error(timeline: _Timeline) -> UserError:
    there, end = len(timeline.ticks), float(timeline.duration)
    promised = f" (it promises {timeline.promised_frames})" if timeline.promised_frames > there else ""
    return UserError(
        f"{timeline.name} is cut off or damaged: frame {there} and the following are missing{promised}; "
        f"download it again, or read what is there with end={math.floor(end * 1000) / 1000}."
    )


def _allocate(name: str, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    needed = count * math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory // 2:
        raise UserError(
            f"{name}: {count} frames of {shape[2]}x{shape[1]} need {needed / 2**30:.0f} GiB of the machine's {memory / 2**30:.0f} GiB; "
            "lower fps, set max_frames, or read frame by frame with iter_frames."
        )
    return np.empty((count, *shape), np.uint8)
