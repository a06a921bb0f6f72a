"""Numbers over fixed splits, as video summarization tables print them.

A split's number is the mean over its test videos; the result is the mean over splits. A video that several splits test counts several
times, so with unequal test sets this is not the mean over videos. The deviation is over the splits' numbers: none of the published code
computes the one its tables print, so both forms are given (ddof 0 and 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def split_means(per_video: Mapping[str, float], test_sets: Sequence[Sequence[str]]) -> list[float]:
    """The mean of each split's test videos; NaN where one of them is undefined or missing."""
    return [float(np.mean([per_video.get(video, float("nan")) for video in videos])) for videos in test_sets]


def over_splits(per_split: Sequence[float] | np.ndarray) -> dict[str, float | list[float]]:
    """{"mean", "sd_ddof0", "sd_ddof1", "per_split"}; NaN stays NaN, sd_ddof1 of one split is NaN."""
    values = np.asarray(per_split, dtype=float)
    return {
        "mean": float(values.mean()),
        "sd_ddof0": float(values.std()),
        "sd_ddof1": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        "per_split": [float(value) for value in values],
    }
