"""Small videos whose frames carry their own number, so that a test sees which frame it was given.

The number is a row of white (1) and black (0) squares, the lowest bit first, over a moving grey background.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
SQUARE = 16  # pixels; survives 4:2:0 and strong compression


def barcode_frame(number: int, width: int = 176, height: int = 96) -> np.ndarray:
    """uint8 [height,width,3]: the background moves with `number`, which is written at the top left."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    grey = (80 + 40 * np.sin((x + 3 * number) / 17) + 30 * np.cos((y - 2 * number) / 11)).astype(np.uint8)
    image_HWC = np.stack([grey, grey // 2 + 40, 160 - grey // 2], axis=-1)
    for bit in range(BITS):
        image_HWC[:SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = 255 * (number >> bit & 1)
    return image_HWC


def read_barcode(image_CHW: np.ndarray) -> int:
    """The number of a frame [3,H,W] in its own size."""
    middle = SQUARE // 2
    return sum(
        int(image_CHW[:, middle - 3 : middle + 3, b * SQUARE + middle - 3 : b * SQUARE + middle + 3].mean() > 128) << b for b in range(BITS)
    )


def write_video(
    path: Path,
    codec: str = "libx264",
    count: int = 50,
    fps: Fraction | int = 25,
    pix_fmt: str = "yuv420p",
    width: int = 176,
    height: int = 96,
    gop: int = 12,
    b_frames: int = 2,
    times: list[Fraction] | None = None,
    rotation: int | None = None,
    pixel_aspect: Fraction | None = None,
    container: str | None = None,
    options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    alpha: bool = False,
    field_order: str | None = None,
) -> Path:
    """Encode `count` barcode frames; `times` (seconds) makes the frame rate variable."""
    fast = {
        "libx264": {"preset": "ultrafast", "bf": str(b_frames), "b_adapt": "0", "x264-params": "scenecut=0"},
        "libx265": {"preset": "ultrafast", "x265-params": f"bframes={b_frames}:log-level=none:scenecut=0:pools=1:frame-threads=1"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "5"},
        "libvpx": {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "10"},
        "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    }
    with av.open(str(path), "w", format=container, options=muxer_options or {}) as output:
        stream = output.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 12800)
        if pixel_aspect is not None:
            stream.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        stream.options = {**fast.get(codec, {}), **(options or {})}
        for number in range(count):
            image_HWC = barcode_frame(number, width, height)
            if alpha:
                frame = av.VideoFrame.from_ndarray(np.dstack([image_HWC, np.full((height, width), 90, np.uint8)]), format="rgba")
            else:
                frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number] * 12800), Fraction(1, 12800)
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return path
