"""Bootstrap confidence intervals over videos.

V = videos, K = metrics, B = resamples.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.95


def bootstrap_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of B resamples (with replacement) of the videos: values [V, K], NaN = undefined -> [B, K].

    All metrics share the resamples, so that the same call on differences between two predictions is a paired bootstrap (Efron and
    Tibshirani 1993).
    A resample's mean is over its defined videos. B = 10,000 up to 1,000 videos, 1,000 beyond (the interval of a mean over many videos is
    smooth). Degenerate: a metric with no defined video gives NaN.
    """
    n_videos, n_metrics = values.shape
    resamples = 10_000 if n_videos <= 1_000 else 1_000
    defined = ~np.isnan(values)
    filled = np.where(defined, values, 0.0)
    both = np.concatenate([filled, defined], axis=1).astype(np.float64)
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // max(1, n_videos))
    means = np.empty((resamples, n_metrics))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n_videos, size=(rows, n_videos)) + np.arange(rows)[:, None] * n_videos
        weights = np.bincount(drawn.ravel(), minlength=rows * n_videos).reshape(rows, n_videos).astype(np.float64)
        sums = weights @ both
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start : start + rows] = sums[:, :n_metrics] / sums[:, n_metrics:]
    return means


def confidence_intervals(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """95% percentile intervals of the mean over videos: values [V, K] -> [K, 2]. NaN where fewer than two videos are defined."""
    few = (~np.isnan(values)).sum(axis=0) < 2
    means = bootstrap_means(values, seed)
    result = np.full((values.shape[1], 2), np.nan)
    for metric in np.flatnonzero(~few):
        result[metric] = np.nanquantile(means[:, metric], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return result
