"""Robustness studies: the same video with a share of its seconds made worse (`--corrupt KIND --corrupt_ratio 0.2 --seed N`).

Kinds are those of aha.video.degrade (quality, block_noise, color_banding, blackout). Which seconds are hit, and the noise in them, follow
from the seed and the video's name alone: another batch size, machine or order of videos gives the same pictures.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from aha.errors import UserError
from aha.video.degrade import KINDS, degrade_frame
from aha.video.reader import Frame

LONGEST = 5  # seconds of one bad stretch


@dataclass(frozen=True)
class Corruption:
    """Make `ratio` of a video's whole seconds worse, in stretches of 1 to 5 seconds that do not touch where there is room.

    Raises UserError for an unknown kind or a ratio outside 0..1.
    """

    kind: str
    ratio: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"--corrupt {self.kind} is none of {', '.join(KINDS)}.")
        if not 0 <= self.ratio <= 1:
            raise UserError(f"--corrupt_ratio {self.ratio} is not between 0 and 1 (the share of a video's seconds).")

    def bad_seconds(self, duration: float, name: str) -> frozenset[int]:
        """The whole seconds s (meaning s <= time < s + 1) that are hit: round(ratio * ceil(duration)) of them."""
        seconds = max(1, math.ceil(duration - 1e-9))
        left = round(self.ratio * seconds)
        rng = random.Random(f"{self.seed}:{name}")
        lengths = []
        while left > 0:
            lengths.append(min(left, rng.randint(1, LONGEST)))
            left -= lengths[-1]
        # The good seconds are dealt out over the gaps before, between and after the stretches; inner gaps get one each first.
        good = seconds - sum(lengths)
        inner = max(0, len(lengths) - 1)
        gaps = [0, *[1] * inner, 0] if good >= inner and lengths else [0] * (len(lengths) + 1)
        for _ in range(good - sum(gaps)):
            gaps[rng.randrange(len(gaps))] += 1
        hit: set[int] = set()
        start = 0
        for gap, length in zip(gaps, lengths):
            start += gap
            hit.update(range(start, start + length))
            start += length
        return frozenset(hit)

    def frame(self, frame_CHW: np.ndarray, name: str, frame_index: int) -> np.ndarray:
        """One frame made worse, uint8 [3,H,W] -> a new array; the noise follows from seed, name and the frame's index in the video."""
        return degrade_frame(frame_CHW, self.kind, random.Random(f"{self.seed}:{name}:{frame_index}"))

    def apply(self, frames: Iterable[Frame], duration: float, name: str) -> Iterator[Frame]:
        """The same frames, those within a bad second made worse."""
        hit = self.bad_seconds(duration, name)
        for frame in frames:
            bad = math.floor(frame.time + 1e-6) in hit
            yield frame._replace(frame_CHW=self.frame(frame.frame_CHW, name, frame.frame_index)) if bad else frame


__all__ = ["KINDS", "Corruption"]
