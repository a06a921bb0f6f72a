"""The highlight reel: chosen stretches of a video cut frame-accurately into one MP4 (H.264 + AAC), with their sound.

    write_reel("talk.mp4", [Clip(12.0, 20.0, "1. the tyre comes off")], "reel.mp4")

A clip of [start, end) is end - start long. Every frame whose time lies in it is taken and keeps its distance in time to the others
(variable frame rates stay variable). It begins with the first of them where that comes within one usual frame interval of `start`, else
with the frame that is on screen then, as in sampling (aha/video/reader.py), and its last frame stays to the end. The sound is cut at the
same two moments, to the sample, and padded with silence where the video has none, so that the two cannot drift apart over many cuts.
Rotated pictures are turned upright, non-square pixels made square, and pictures that change their size in mid-video are fitted into the
first one's. Nothing but the frame and the sound at hand is held in memory.

H height, W width, C channels, N samples. Time 0 is the first frame of the video.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image, ImageDraw, ImageFont

from aha.core.files import atomic_path
from aha.core.fonts import readable, runs
from aha.errors import UserError
from aha.video.backends import decode_pyav
from aha.video.clock import Clock
from aha.video.container import open_container
from aha.video.packet_index import VideoIndex, time_base_of, video_index
from aha.video.reader import file_timeline

CLOCK = Fraction(1, 90000)  # time base of the reel: every usual frame rate is a whole number of ticks
MEANT = 5e-7  # times are rounded floats: a frame within half a microsecond of a time is the one that was meant
FADE_SECONDS = 0.005  # of the sound at a cut, which would click without
JITTER_SECONDS = 0.02  # time stamps of sound are rounded (Matroska: 1 ms); a larger step is a real gap
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class Clip:
    """Seconds [start, end) of the video; `title` is burned in where given."""

    start: float
    end: float
    title: str | None = None


@dataclass(frozen=True)
class ReelInfo:
    """What was written. cuts: (start in the reel, start in the video, end in the video) of each clip in seconds."""

    path: str
    duration: float
    frames: int
    width: int
    height: int
    has_sound: bool
    cuts: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class _Cut:
    """A clip at whole frames [first, last), of which the first is shown from the beginning."""

    first: int
    last: int
    start: Fraction  # seconds of the video, exact
    end: Fraction
    at: Fraction  # start in the reel
    title: str | None


def write_reel(
    video: str | os.PathLike, clips: Sequence[Clip], output: str | os.PathLike, *, max_side: int = 1920, crf: int = 20, threads: int = 2,
    progress: Callable[[int, int], None] | None = None, draw: Callable[[np.ndarray, float], np.ndarray] | None = None,
) -> ReelInfo:  # fmt: skip
    """Cut `clips` out of `video`, in time order, into the MP4 file `output`; overlapping clips are joined.

    max_side: larger pictures are scaled down to this many pixels. crf: x264's quality, lower is better (18 looks lossless).
    progress(done, total): told the frames written. draw: a picture [H,W,3] and its second of the video -> the picture to show; of even
    sides, and always of the same.
    The file is written whole or not at all. Raises UserError: no clip, a clip outside the video, a frame that cannot be decoded, disk full.
    """
    index = video_index(video)
    cuts = _cuts(index, clips)
    wanted = sorted({frame for cut in cuts for frame in range(cut.first, cut.last)})  # a held frame may lie in several clips
    frames = sum(cut.last - cut.first for cut in cuts)
    total = cuts[-1].at + cuts[-1].end - cuts[-1].start
    with atomic_path(output) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as reel:
                sound = _sound_of(index.path)
                writer = _PictureWriter(reel, index, max_side, crf, threads, total, draw)
                audio = _SoundWriter(reel, index, *sound) if sound else None
                decoded, shown, done = decode_pyav(index, wanted, threads), -1, 0
                for cut in cuts:
                    source = audio.cut(cut) if audio else iter(())
                    for frame_index in range(cut.first, cut.last):
                        if frame_index != shown:
                            shown, image_HWC, pixel_aspect = next(decoded)
                        own = (index.pts[frame_index] - index.first_pts) * index.time_base
                        time = cut.at + max(own - cut.start, Fraction(0))
                        writer.write(image_HWC, pixel_aspect, time, cut, frame_index == cut.first)
                        done += 1
                        if progress:
                            progress(done, frames)
                        if audio:
                            audio.pull(source, time)
                    if audio:
                        audio.pull(source, cut.at + cut.end - cut.start)
                if audio:
                    audio.close()
                writer.close()
        except av.error.FFmpegError as error:
            cure = "free the disk or choose another output folder"
            raise UserError(f"the reel {output} cannot be written ({error.strerror}); {cure}.") from error
    return ReelInfo(
        str(output), float(total), frames, writer.width, writer.height, audio is not None,
        tuple((float(cut.at), float(cut.start), float(cut.end)) for cut in cuts),
    )  # fmt: skip


def _cuts(index: VideoIndex, clips: Sequence[Clip]) -> list[_Cut]:
    """Clips in time order, joined where they overlap, with the frames that are shown in them."""
    if not clips:
        raise UserError(f"no moment of {index.path} was chosen, so there is no reel to write; raise the budget or lower the threshold.")
    timeline = file_timeline(index)
    joined: list[tuple[float, float, str | None]] = []
    for clip in sorted(clips, key=lambda clip: (clip.start, clip.end)):
        if not 0 <= clip.start < clip.end or clip.start >= float(index.duration):
            seconds = float(index.duration)
            raise UserError(f"the stretch {clip.start:g} to {clip.end:g} s does not lie in {index.path} ({seconds:.3f} s long).")
        if joined and clip.start < joined[-1][1] - MEANT:
            start, end, title = joined[-1]
            joined[-1] = (start, max(end, clip.end), title)
        else:
            joined.append((clip.start, clip.end, clip.title))
    cuts, at = [], Fraction(0)
    for start_s, end_s, title in joined:
        begin, finish = (Fraction(s).limit_denominator(1_000_000) for s in (start_s, end_s))
        length: Fraction = max(min(finish, index.duration) - begin, CLOCK)
        first, last = (bisect.bisect_left(timeline.ticks, (t - MEANT) / float(index.time_base)) for t in (start_s, end_s))
        at_end = first == len(timeline.ticks)
        if at_end or (first > 0 and timeline.ticks[first] - begin / index.time_base > timeline.usual_ticks):
            first -= 1  # the frame before is still on screen: the last one of the video, or before a gap
        else:
            begin = timeline.ticks[first] * index.time_base
        cuts.append(_Cut(first, max(last, first + 1), begin, begin + length, at, title))
        at += length
    return cuts


class _PictureWriter:
    """Upright RGB pictures -> H.264."""

    def __init__(
        self, reel: av.container.OutputContainer, index: VideoIndex, max_side: int, crf: int, threads: int, total: Fraction,
        draw: Callable[[np.ndarray, float], np.ndarray] | None,
    ):  # fmt: skip
        self.reel, self.max_side, self.total, self.draw = reel, max_side, total, draw
        rate = index.fps.limit_denominator(1001)
        self.stream = reel.add_stream("libx264", rate=rate if 0 < rate <= 240 else 25, options={"crf": str(crf), "preset": "veryfast"})
        self.stream.pix_fmt = "yuv420p"
        self.stream.time_base = CLOCK
        self.codec = self.stream.codec_context
        self.codec.time_base = CLOCK
        self.codec.thread_count = threads
        self.codec.colorspace, self.codec.color_primaries, self.codec.color_trc = 1, 1, 1  # BT.709
        self.codec.color_range = 1  # 16..235
        self.size: tuple[int, ...] = ()  # width and height of the video's own pictures
        self.width = self.height = 0
        self._last_ticks = -1

    def write(self, image_HWC: np.ndarray, pixel_aspect: float, time: Fraction, cut: _Cut, is_first: bool) -> None:
        height, width = image_HWC.shape[:2]
        shown_width = max(1, round(width * pixel_aspect))
        if not self.size:
            scale = min(1.0, self.max_side / max(shown_width, height))
            self.size = tuple(max(16, 2 * round(side * scale / 2)) for side in (shown_width, height))
        image_HWC = fit(image_HWC, shown_width, *self.size)
        if cut.title:
            image_HWC = burn_title(image_HWC, cut.title)
        if self.draw is not None:
            image_HWC = self.draw(image_HWC, float(cut.start + time - cut.at))
        if not self.width:
            self.height, self.width = image_HWC.shape[:2]
            self.stream.width, self.stream.height = self.width, self.height
        frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24").reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        ticks = max(round(time / CLOCK), self._last_ticks + 1)
        frame.pts, frame.time_base, self._last_ticks = ticks, CLOCK, ticks
        if is_first:
            frame.pict_type = av.video.frame.PictureType.I  # a key frame, so that players can jump to every clip
        self._mux(self.stream.encode(frame))

    def _mux(self, packets: list[av.Packet]) -> None:
        """A packet's duration is not known before the next: only that of the last one shown must be set, for the reel to end in time."""
        for packet in packets:
            if packet.pts == self._last_ticks:
                packet.duration = max(1, round(self.total / CLOCK) - self._last_ticks)
            self.reel.mux(packet)

    def close(self) -> None:
        self._mux(self.stream.encode(None))


def fit(image_HWC: np.ndarray, shown_width: int, width: int, height: int) -> np.ndarray:
    """A picture that is `shown_width` wide on screen, scaled into width x height with its aspect kept, centred on black."""
    if image_HWC.shape[:2] == (height, width) and shown_width == width:
        return image_HWC
    shown_height = image_HWC.shape[0]
    scale = min(width / shown_width, height / shown_height)
    new_width, new_height = min(width, max(1, round(shown_width * scale))), min(height, max(1, round(shown_height * scale)))
    if abs(new_width - width) <= 2 and abs(new_height - height) <= 2:
        new_width, new_height = width, height  # H.264 wants even sizes: an odd side is stretched by a pixel, not padded
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    resized = Image.fromarray(image_HWC).resize((new_width, new_height), Image.Resampling.BILINEAR)
    canvas[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return canvas


def burn_title(image_HWC: np.ndarray, title: str) -> np.ndarray:
    """A copy of the picture with one line of text on a dark band at the bottom; a line that is too long is cut with an ellipsis.

    Characters that no font of the machine has are left out (aha/core/fonts.py says so once).
    """
    height, width = image_HWC.shape[:2]
    size = max(10, height // 18)
    band = 2 * size
    copy = image_HWC.copy()
    copy[-band:] = copy[-band:] // 3
    text = text_line(title, size, max(1, width - size), band)
    place = copy[-band:, size // 2 : size // 2 + text.shape[1]]  # a tiny picture shows only a part of the line
    place[:] = np.maximum(place, text[-place.shape[0] :, : place.shape[1], None] if place.size else 0)
    return copy


@functools.lru_cache(maxsize=16)
def text_line(title: str, size: int, room: int, band: int) -> np.ndarray:
    """A line of text as uint8 [H,W], white on black. Every picture of a clip has the same one."""
    text, paths = readable(title)
    fonts = {path: ImageFont.truetype(path, size) for path in paths}

    def length(text: str) -> float:
        return sum(fonts[path].getlength(piece) for piece, path in runs(text, paths))

    if length(text) > room:
        kept = text
        while kept and length(kept + "…") > room:
            kept = kept[: min(len(kept) - 1, int(len(kept) * room / length(kept + "…")))].rstrip()
        text = kept + "…" if kept else ""  # on a tiny picture not even one letter fits
    canvas = Image.new("L", (room, band))
    draw, at = ImageDraw.Draw(canvas), 0.0
    for piece, path in runs(text, paths):
        draw.text((at, band // 2), piece, font=fonts[path], fill=255, anchor="lm")
        at += fonts[path].getlength(piece)
    return np.asarray(canvas)


def _sound_of(path: str) -> tuple[int, int, str] | None:
    """(which sound stream, sampling rate, layout) for the reel; None where the video has none that can be decoded.

    One frame is decoded to know: headers may not say the rate, and some containers show the sound only after many seconds of pictures.
    """
    with open_container(path) as container:
        for number, stream in enumerate(container.streams.audio):
            if stream.codec_context is None:
                continue
            frame = next(_frames_of(container, stream), None)
            if frame is not None and frame.sample_rate:
                rate = frame.sample_rate if frame.sample_rate in AAC_RATES else 48000
                return number, rate, "mono" if frame.layout.nb_channels == 1 else "stereo"
            container.seek(0)
    return None


def _frames_of(container: av.container.InputContainer, stream: av.AudioStream, clock: Clock | None = None) -> Iterator[av.AudioFrame]:
    """Decoded sound from where the container stands; a damaged packet gives nothing, damage to the container ends it."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if clock is not None and packet.size:
            clock.repair(packet)
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        yield from frames


class _SoundWriter:
    """The sound of the clips -> AAC. `pull` writes on until a moment of the reel: picture and sound lie side by side in the file."""

    def __init__(self, reel: av.container.OutputContainer, index: VideoIndex, number: int, rate: int, layout: str):
        self.reel, self.path, self.number, self.rate, self.layout = reel, index.path, number, rate, layout
        self.origin = index.first_pts * index.time_base  # time 0 on the clock of the file
        self.clock_offsets = index.clock_offsets
        self.stream = reel.add_stream("aac", rate=rate, layout=layout)
        self.stream.bit_rate = 96000 if layout == "mono" else 160000
        self.written = 0

    def cut(self, cut: _Cut) -> Iterator[np.ndarray]:
        """Sound of one clip, [C, N] float32 pieces: exactly as many samples as the pictures last."""
        channels = 1 if self.layout == "mono" else 2
        # counted from the start of the reel, so that rounding does not add up over cuts
        end_sample = round((cut.at + cut.end - cut.start) * self.rate)
        length = end_sample - round(cut.at * self.rate)
        fade = min(round(FADE_SECONDS * self.rate), length // 2)
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        done = 0
        for position, piece in self._decoded(cut.start, cut.end):
            if position > done:  # the file has no sound here: silence
                gap = min(position, length) - done
                yield from _silence(channels, gap)
                done += gap
            piece = piece[:, max(0, done - position) : max(0, length - position)].copy()
            if not piece.shape[1]:
                continue
            where = np.arange(done, done + piece.shape[1])
            if fade:
                inside = where < fade
                piece[:, inside] *= ramp[where[inside]]
                inside = where >= length - fade
                piece[:, inside] *= ramp[length - 1 - where[inside]]
            yield piece
            done += piece.shape[1]
        yield from _silence(channels, length - done)

    def _decoded(self, start: Fraction, end: Fraction) -> Iterator[tuple[int, np.ndarray]]:
        """(sample position relative to the start of the clip, [C, N]) of the decoded sound from a little before `start` to `end`."""
        resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=self.rate)
        expected: int | None = None
        with open_container(self.path) as container:
            for frame in self._frames_from(container, start):
                position = expected or 0  # sound without time stamps follows what came before
                if frame.pts is not None and frame.time_base is not None:
                    time = frame.pts * frame.time_base - self.origin - start
                    if time >= end - start:
                        return
                    stamped = round(time * self.rate)
                    if expected is None or abs(stamped - expected) > self.rate * JITTER_SECONDS:
                        position = stamped
                frame.pts = None  # the resampler would take a jump in time for an error
                for part in resampler.resample(frame):
                    samples_CN = part.to_ndarray()
                    yield from _from_zero(position, samples_CN)
                    position += samples_CN.shape[1]
                expected = position

    def _frames_from(self, container: av.container.InputContainer, start: Fraction) -> Iterator[av.AudioFrame]:
        """Decoded sound from half a second before `start` (a decoder needs a moment to settle), or from further back."""
        stream = container.streams.audio[self.number]
        if len(self.clock_offsets) > 1:  # the file's time stamps start again: they do not say where to jump to
            yield from _frames_of(container, stream, Clock(container, stream, self.clock_offsets))
            return
        if start > 1:
            try:
                container.seek(int((self.origin + start - Fraction(1, 2)) / time_base_of(stream)), stream=stream)
            except av.error.FFmpegError:
                container.seek(0)
        frames = _frames_of(container, stream)
        first = next(frames, None)
        if first is not None and first.pts is not None and start > 1 and first.pts * time_base_of(stream) - self.origin > start:
            container.seek(0)  # jumped too far, or the sound begins here: look from the beginning
            frames = _frames_of(container, stream)
        elif first is not None:
            yield first
        yield from frames

    def pull(self, source: Iterator[np.ndarray], until: Fraction) -> None:
        target = round(until * self.rate)
        while self.written < target:
            piece_CN = next(source, None)
            if piece_CN is None:
                return
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece_CN), format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, self.written, Fraction(1, self.rate)
            self.written += piece_CN.shape[1]
            self.reel.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.reel.mux(self.stream.encode(None))


def _from_zero(position: int, samples_CN: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Drop what lies before the clip."""
    if position + samples_CN.shape[1] > 0:
        yield max(0, position), samples_CN[:, max(0, -position) :]


def _silence(channels: int, count: int) -> Iterator[np.ndarray]:
    """`count` samples of nothing, in pieces: a video whose sound ends early may miss hours."""
    while count > 0:
        yield np.zeros((channels, min(count, 48000)), np.float32)
        count -= 48000
