"""Worse pictures on purpose: what a bad connection or camera does to a stream (HIHD's `quality_dropout` intervals, robustness tests).

Dimensions in names: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

KINDS = ("quality", "block_noise", "color_banding", "blackout")
_COARSE = 64  # "quality": pixels left along each side
_BLOCK = 32  # "block_noise": side of a block in pixels
_BLOCK_SHARE = 0.1  # share of blocks that are lost


def degrade(
    frames_TCHW: np.ndarray, times: Sequence[float], intervals: Sequence[tuple[float, float, str]], rng: random.Random
) -> np.ndarray:
    """Degrade the frames (uint8) whose time lies in an interval (start, end, kind), seconds, ends included; the first that fits counts.

    quality: 64x64 pixels blown up again; color_banding: 4 levels per channel; block_noise: a tenth of all 32x32 blocks replaced by dark
    noise; blackout: black. Returns a new array, or the same one where no frame is touched. Raises ValueError for an unknown kind.
    """
    result = frames_TCHW
    for k, time in enumerate(times):
        kind = next((kind for start, end, kind in intervals if start <= time <= end), None)
        if kind is None:
            continue
        if result is frames_TCHW:
            result = frames_TCHW.copy()
        result[k] = degrade_frame(frames_TCHW[k], kind, rng)
    return result


def degrade_frame(frame_CHW: np.ndarray, kind: str, rng: random.Random) -> np.ndarray:
    """One frame, uint8 [3,H,W] -> a new one of the same shape. Raises ValueError for an unknown kind."""
    _, height, width = frame_CHW.shape
    if kind == "quality":
        rows, columns = (np.arange(n) * min(_COARSE, n) // n for n in (height, width))
        counts = np.outer(np.bincount(rows), np.bincount(columns))
        firsts = [np.searchsorted(cells, np.arange(cells[-1] + 1)) for cells in (rows, columns)]
        sums = np.add.reduceat(np.add.reduceat(frame_CHW.astype(np.float64), firsts[0], axis=1), firsts[1], axis=2)
        return (sums / counts).astype(np.uint8)[:, rows][:, :, columns]
    if kind == "color_banding":
        return frame_CHW // 64 * 64
    if kind == "blackout":
        return np.zeros_like(frame_CHW)
    if kind == "block_noise":
        noise = np.random.default_rng(rng.getrandbits(64))
        block = noise.integers(0, 50, (3, _BLOCK, _BLOCK), dtype=np.uint8)
        result = frame_CHW.copy()
        for y in range(0, height, _BLOCK):
            for x in range(0, width, _BLOCK):
                if noise.random() < _BLOCK_SHARE:
                    result[:, y : y + _BLOCK, x : x + _BLOCK] = block[:, : height - y, : width - x]
        return result
    raise ValueError(f"degradation {kind!r} is none of {', '.join(KINDS)}")
