"""Small pictures out of a video: of the best frame of a moment, and a film strip of the whole.

F scored frames.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from aha.core.files import atomic_path
from aha.highlights.timeline import Highlight, ScoreTrack
from aha.video.backends import decode_pyav
from aha.video.packet_index import VideoIndex

STRIP = 12  # pictures of a film strip
STRIP_SIDE, BEST_SIDE, POSTER_SIDE = 240, 320, 1280  # pixels of the longer side


@dataclass(frozen=True)
class Stills:
    """strip: of equal parts of the video, in order. best: the best frame of each highlight. poster: that of the best one, larger."""

    strip: list[Image.Image]
    best: list[Image.Image]
    poster: Image.Image


def stills_of(index: VideoIndex, track: ScoreTrack, fused_F: np.ndarray, highlights: Sequence[Highlight]) -> Stills:
    """All pictures of a result in one pass over the video. Without a highlight the poster is the best frame of all."""
    strip, best = strip_frames(track), [best_frame(track, fused_F, h) for h in highlights]
    first = min(highlights, key=lambda h: h.rank, default=None)
    poster = best_frame(track, fused_F, first)
    found = read_pictures(index, {**dict.fromkeys(strip, STRIP_SIDE), **dict.fromkeys(best, BEST_SIDE), poster: POSTER_SIDE})
    return Stills(
        [small(found[frame], STRIP_SIDE) for frame in strip], [small(found[frame], BEST_SIDE) for frame in best], found[poster]
    )  # fmt: skip


def read_pictures(index: VideoIndex, wanted: Mapping[int, int]) -> dict[int, Image.Image]:
    """Frames of a video as upright pictures with square pixels: {frame number: picture}. wanted: {frame number: most pixels of its longer
    side}."""
    pictures: dict[int, Image.Image] = {}
    for frame, image_HWC, pixel_aspect in decode_pyav(index, sorted(wanted), threads=2):
        picture = Image.fromarray(image_HWC)
        if pixel_aspect != 1:
            picture = picture.resize((max(1, round(picture.width * pixel_aspect)), picture.height), Image.Resampling.BILINEAR)
        pictures[frame] = small(picture, wanted[frame])
    return pictures


def small(picture: Image.Image, side: int) -> Image.Image:
    """At most `side` pixels on the longer side."""
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BILINEAR)


def best_frame(track: ScoreTrack, fused_F: np.ndarray, highlight: Highlight | None) -> int:
    """The frame with the highest score, of a moment or (None) of the whole video, by its number in the video."""
    first, last = (highlight.first, highlight.last) if highlight is not None else (0, len(track))
    return int(track.frames_F[first + int(np.argmax(fused_F[first:last]))])


def strip_frames(track: ScoreTrack, count: int = STRIP) -> list[int]:
    """Numbers in the video of the scored frames in the middle of each of `count` equal parts."""
    middles = (np.arange(count) + 0.5) / count * track.duration
    return [int(track.frames_F[max(0, int(np.searchsorted(track.times_F, t, side="right")) - 1)]) for t in middles]


def write_poster(path: str | os.PathLike, stills: Stills) -> None:
    """The poster as JPEG."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(_jpeg(stills.poster, 88))


def jpeg_address(picture: Image.Image) -> str:
    """The picture as a data address for HTML."""
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(picture, 80)).decode()


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    memory = io.BytesIO()
    picture.save(memory, "JPEG", quality=quality)
    return memory.getvalue()
