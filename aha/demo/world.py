"""Does a video look as if it were of the demo's world? The demo model knows no other, and gives every video some curve all the same.

    if not looks_like_demo("talk.mp4"):
        ...

A picture of the world (aha.demo.scenes) has a background of one hue in many shades, and on it things of one flat colour each, strong or
white.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from aha.video.reader import iter_frames

OTHER_WORLD = (
    "shows something else than coloured shapes, and the demo model knows nothing else: what it says of it means nothing. "
    "Name a real model: --model mmduet-7b (aha models)"
)
FRAMES = 8  # spread over the video
DARK = 24  # 0..255: the hue of darker pixels means nothing
# The least of a video's median picture. Of 16 generated videos the lowest had 0.80, 0.077 and 0.022; of photographs, clips and test
# pictures none had all three.
ONE_HUE = 0.7  # of the pixels have the background's hue
SHADES = 0.06  # spread of their brightness, over its mean
THING = 0.012  # of the pixels have the most frequent colour among those that are strong, or white


def picture_measures(image_HWC: np.ndarray) -> tuple[float, float, float]:
    """(share of the background's hue, spread of its shades, share of the most frequent strong colour), black bars left out."""
    light_HW = image_HWC.max(-1)
    rows, columns = (light_HW > DARK).mean(1) > 0.05, (light_HW > DARK).mean(0) > 0.05
    pixels_N3 = image_HWC[rows][:, columns].reshape(-1, 3).astype(np.float32)
    if not len(pixels_N3):
        return 0.0, 0.0, 0.0
    light_N = pixels_N3.max(1)
    hue_N3 = pixels_N3 / np.maximum(pixels_N3.sum(1, keepdims=True), 1)
    lit = light_N > DARK
    background_N = lit & (np.abs(hue_N3 - np.median(hue_N3[lit], axis=0)).max(1) < 0.03)
    if not background_N.any():
        return 0.0, 0.0, 0.0
    shades_N = light_N[background_N]
    strong_N = lit & ~background_N & ((np.ptp(pixels_N3, axis=1) > 0.6 * light_N) | (pixels_N3.min(1) > 200))
    colours_N = (pixels_N3[strong_N] // 16) @ (256, 16, 1)
    most = np.unique(colours_N, return_counts=True)[1].max(initial=0)
    return float(background_N.sum() / lit.sum()), float(shades_N.std() / shades_N.mean()), float(most / len(pixels_N3))


def looks_like_demo(video: str | os.PathLike) -> bool:
    """Raises UserError for a video that cannot be read."""
    return pictures_look_like_demo(frame.frame_CHW.transpose(1, 2, 0) for frame in iter_frames(video, num_frames=FRAMES))


def pictures_look_like_demo(pictures: Iterable[np.ndarray]) -> bool:
    one_hue, shades, thing = np.median([picture_measures(picture) for picture in pictures], axis=0)
    return bool(one_hue >= ONE_HUE and shades >= SHADES and thing >= THING)
