"""Temporal grounding from frame scores, as MMDuet and Aha report Charades-STA.

Source: MMDuet (Wang et al. 2024) and Aha (Chang et al., NeurIPS 2025), `test/evaluate.py --func grounding`: box smoothing, min-max over
the whole video, threshold, IoU over FRAMES between {score >= threshold} and {start <= time <= end}.
Everything here looks ahead: min-max needs the whole video, and a window w averages w frames on BOTH sides.
Dimensions: N frames, K thresholds, Q questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THRESHOLDS = np.arange(0.30, 0.71, 0.02)  # [21]; written so because a score may equal a threshold to the last bit
RECALLS = (0.3, 0.5, 0.7)
COLUMNS = ("mIoU", *(f"R@{r}" for r in RECALLS))


def smooth(scores: np.ndarray, window: int) -> np.ndarray:
    """Mean of frames i-window .. i+window, cut at the ends: [N] -> [N]."""
    # np.mean of each slice, not running sums: on constant scores the min-max below blows up differences in the last bits, and the golden
    # numbers depend on those bits.
    return np.array([scores[max(0, i - window) : i + window + 1].mean() for i in range(len(scores))]) if window else scores


def frame_ious(scores: np.ndarray, times: np.ndarray, spans: Sequence[Sequence[float]], window: int) -> np.ndarray:
    """IoU at each of THRESHOLDS for one question: scores and times [N], ground-truth spans in seconds -> [K]; 0 for constant scores."""
    smoothed = smooth(scores, window)
    low, high = smoothed.min(), smoothed.max()
    if not high > low:
        return np.zeros(len(THRESHOLDS))
    truth = np.zeros(len(times), dtype=bool)
    for start, end in spans:
        truth |= (times >= start) & (times <= end)
    chosen = (smoothed - low) / (high - low) >= THRESHOLDS[:, None]
    union = (chosen | truth).sum(axis=1)
    return np.divide((chosen & truth).sum(axis=1), union, out=np.zeros(len(THRESHOLDS)), where=union > 0)


def summary(ious_Q: np.ndarray) -> list[float]:
    """mIoU and recalls over questions in percent, in the order of COLUMNS."""
    return [100 * float(ious_Q.mean()), *(100 * float((ious_Q >= r).mean()) for r in RECALLS)]
