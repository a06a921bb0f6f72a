"""Bootstrap confidence intervals over videos.

V = videos, K = metrics, B = resamples.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.95


def bootstrap_sums(sums_VK: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums of K numbers over B resamples (with replacement) of the videos: [V, K] -> [B, K]; B and the resamples as in bootstrap_means."""
    n_videos = len(sums_VK)
    resamples = 10_000 if n_videos <= 1_000 else 1_000
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // max(1, n_videos))
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n_videos, size=(rows, n_videos)) + np.arange(rows)[:, None] * n_videos
        weights = np.bincount(drawn.ravel(), minlength=rows * n_videos).reshape(rows, n_videos).astype(np.float64)
        parts.append(weights @ sums_VK)
    return np.concatenate(parts)


def bootstrap_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of B resamples (with replacement) of the videos: values [V, K], NaN = undefined -> [B, K].

    All metrics share the resamples, so that the same call on differences between two predictions is a paired bootstrap (Efron and
    Tibshirani 1993).
    A resample's mean is over its defined videos. B = 10,000 up to 1,000 videos, 1,000 beyond (the interval of a mean over many videos is
    smooth). Degenerate: a metric with no defined video gives NaN.
    """
    n_metrics = values.shape[1]
    defined = ~np.isnan(values)
    sums = bootstrap_sums(np.concatenate([np.where(defined, values, 0.0), defined], axis=1).astype(np.float64), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[:, :n_metrics] / sums[:, n_metrics:]


def confidence_intervals(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """95% percentile intervals of the mean over videos: values [V, K] -> [K, 2]. NaN where fewer than two videos are defined."""
    few = (~np.isnan(values)).sum(axis=0) < 2
    means = bootstrap_means(values, seed)
    result = np.full((values.shape[1], 2), np.nan)
    for metric in np.flatnonzero(~few):
        result[metric] = central(means[:, metric])
    return result


def central(numbers_B: np.ndarray) -> np.ndarray:
    """[low, high] that hold the middle 95% of the defined numbers; NaN where there is none."""
    if np.isnan(numbers_B).all():
        return np.full(2, np.nan)
    return np.nanquantile(numbers_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
