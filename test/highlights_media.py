"""Small videos made for the tests: any codec, with or without sound, rotated, variable frame rate; and what a reel says of its contents.

Frame k of a made video shows the number k as 16 black or white blocks, and a beep sounds where the picture has a white border, so that
cuts and synchronisation can be measured from the decoded reel.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 48000


def number_frame(k: int, width: int, height: int, flash: bool) -> np.ndarray:
    """uint8 [H,W,3]: 16 blocks (4 x 4, most significant first) spell k; a flash is a white frame around them."""
    image = np.full((height, width, 3), 235 if flash else 60, np.uint8)
    h, w = height // 6, width // 6
    for bit in range(16):
        row, column = divmod(bit, 4)
        image[h * (row + 1) : h * (row + 2), w * (column + 1) : w * (column + 2)] = 255 if k >> (15 - bit) & 1 else 0
    return image


def read_number(image: np.ndarray) -> int:
    """The k of a `number_frame`, after any scaling and coding."""
    height, width = image.shape[:2]
    h, w = height / 6, width / 6
    k = 0
    for bit in range(16):
        row, column = divmod(bit, 4)
        block = image[int(h * (row + 1.25)) : int(h * (row + 1.75)), int(w * (column + 1.25)) : int(w * (column + 1.75))]
        k = k << 1 | int(block.mean() > 127)
    return k


def is_flash(image: np.ndarray) -> bool:
    height, width = image.shape[:2]
    return bool(image[2 : height // 8, width // 8 : -width // 8].mean() > 150)


def make_video(
    path: Path,
    *,
    seconds: float = 12,
    fps: int | Fraction = 24,
    size: tuple[int, int] = (192, 144),
    codec: str = "libx264",
    sound: bool = True,
    variable: bool = False,
    rotation: int = 0,
    container: str | None = None,
    flash_every: float = 1.0,
    gop: int = 48,
    pixel_aspect: Fraction | None = None,
    sound_span: tuple[float, float] | None = None,
    beside: bool = True,
) -> list[float]:
    """Write a numbered video; returns the time of each frame. A flash and a 1 kHz beep of 0.1 s begin at each multiple of `flash_every`.

    sound_span: the sound exists only between these seconds. beside: False writes all pictures first, as bad recorders do.
    """
    times, clock, k = [], Fraction(0), 0
    while clock < seconds:
        times.append(clock)
        step = Fraction(1) / fps
        clock += step * (1 + (k * 7919 % 5) if variable else 1)
        k += 1
    with av.open(str(path), "w", format=container) as out:
        extra = {"libsvtav1": {"preset": "8"}, "libx265": {"x265-params": "log-level=none"}}.get(codec, {})
        stream = out.add_stream(codec, rate=fps, options={"g": str(gop), **extra})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if codec != "mpeg4":
            stream.codec_context.time_base = Fraction(1, 12 * int(fps)) if variable else 1 / Fraction(fps)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        voice = out.add_stream("libopus" if container == "webm" else "aac", rate=RATE, layout="stereo") if sound else None
        first, last = (0, int(seconds * RATE)) if sound_span is None else (int(s * RATE) // 960 * 960 for s in sound_span)
        pieces = iter(range(first, last, 960))

        def sing(until: float) -> None:
            """Write the sound up to a moment, so that it lies beside the pictures in the file."""
            for start in pieces if voice is not None else ():
                t = np.arange(start, min(start + 960, last)) / RATE
                beep = np.where(t % flash_every < 0.1, 0.5 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.float32)
                audio = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.stack([beep] * 2)), format="fltp", layout="stereo")
                audio.sample_rate, audio.pts, audio.time_base = RATE, start, Fraction(1, RATE)
                out.mux(voice.encode(audio))
                if start / RATE >= until:
                    return

        for k, time in enumerate(times):
            flash = float(time) % flash_every < 0.1
            frame = av.VideoFrame.from_ndarray(number_frame(k, *size, flash), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time / stream.codec_context.time_base), stream.codec_context.time_base
            out.mux(stream.encode(frame))
            if beside:
                sing(float(time))
        out.mux(stream.encode(None))
        if voice is not None:
            sing(seconds)
            out.mux(voice.encode(None))
    if rotation:
        _rotate(path, rotation)
    return [float(t) for t in times]


def _rotate(path: Path, degrees: int) -> None:
    """Write the display matrix into the track header of an MP4 file (what a phone held upright does)."""
    matrices = {90: (0, 1, 0, -1, 0, 0), 180: (-1, 0, 0, 0, -1, 0), 270: (0, -1, 0, 1, 0, 0)}
    a, b, u, c, d, v = matrices[degrees]
    fixed = [a << 16, b << 16, u, c << 16, d << 16, v, 0, 0, 1 << 30]
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4
    offset = at + 4 + (32 if data[at] == 1 else 20) + 16  # version and flags; times, id, duration; layer, group, volume
    data[offset : offset + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in fixed)
    path.write_bytes(data)


def reel_contents(path: Path) -> tuple[list[tuple[float, int, bool]], np.ndarray, float]:
    """(time, number, flash) of every picture; the sound as mono samples at 48 kHz from time 0; the length in seconds."""
    pictures = []
    with av.open(str(path)) as reel:
        for frame in reel.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            pictures.append((float(frame.pts * frame.time_base), read_number(image), is_flash(image)))
        duration = reel.duration / 1e6
    samples = np.zeros(round(duration * RATE) + RATE, np.float32)
    with av.open(str(path)) as reel:
        if reel.streams.audio:
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
            for frame in reel.decode(audio=0):
                at = round(float(frame.pts * frame.time_base) * RATE)
                for part in resampler.resample(frame):
                    values = part.to_ndarray()[0]
                    begin = max(0, at)
                    kept = values[begin - at :][: len(samples) - begin]
                    samples[begin : begin + len(kept)] = kept
                    at += len(values)
    return pictures, samples[: round(duration * RATE)], duration


def onsets(samples: np.ndarray) -> list[float]:
    """Seconds at which a beep begins: 2 ms windows whose power rises above a tenth of the loudest."""
    width = RATE // 500
    power = (samples[: len(samples) // width * width].reshape(-1, width) ** 2).mean(axis=1)
    loud = power > 0.1 * power.max()
    return [i * width / RATE for i in np.flatnonzero(loud[1:] & ~loud[:-1]) + 1]
