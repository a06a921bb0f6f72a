"""Rank correlation with ties: Kendall's tau-b (and tau-a) and Spearman's rho, also many at once from contingency tables.

TVSum annotators use five levels, so the pairs of a prediction and an annotator form a table with few columns: counting concordant pairs
in it is exact (whole numbers) and needs no sorting per annotator. Large sums are kept off matrix multiplication, whose threads get in the
way of other work on the machine. K, L = number of distinct values of the two sides; n = number of items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RankCorrelation(NamedTuple):
    kendall: np.ndarray  # tau-b
    spearman: np.ndarray
    kendall_tau_a: np.ndarray


def _levels(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Values as whole numbers 0 .. L-1 in the same order, and L. Whole numbers of a small range (annotations) need no sorting."""
    if values.dtype.kind in "iu" and int(values.max()) - int(values.min()) < 256:
        low = int(values.min())
        return values - low, int(values.max()) - low + 1
    distinct, level = np.unique(values, return_inverse=True)
    return level.reshape(values.shape), len(distinct)


def contingency(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x [n], y [..., n] -> counts [..., K, L] int64 over the values of x and of the whole of y, ascending (some may be empty)."""
    x_level, n_x = _levels(x)
    y_level, n_y = _levels(y)
    rows = y_level.reshape(-1, y.shape[-1])
    cells = (np.arange(len(rows))[:, None] * n_x + x_level) * n_y + rows
    return np.bincount(cells.ravel(), minlength=len(rows) * n_x * n_y).reshape(*y.shape[:-1], n_x, n_y)


def correlation_of_table(counts: np.ndarray) -> RankCorrelation:
    """Rank correlations from contingency tables, counts [..., K, L] whole numbers.

    With P (Q) = number of concordant (discordant) pairs, T = n(n-1)/2, T_x and T_y = pairs tied in x and in y:
    tau-b = (P - Q) / sqrt((T - T_x)(T - T_y)) (Kendall 1945), tau-a = (P - Q) / T, rho = Pearson correlation of average ranks (Spearman
    1904). Degenerate: where x or y is constant, or n < 2, tau-b and rho are NaN (0/0); tau-a is 0 (NaN for n < 2). Exact for n up to 1e6.
    """
    counts = np.asarray(counts, dtype=np.int64)
    x_count, y_count = counts.sum(-1), counts.sum(-2)
    n = x_count.sum(-1)
    above = np.cumsum(counts, axis=-2) - counts  # pairs' partners with a smaller x
    smaller = np.cumsum(above, axis=-1)
    concordant = (counts[..., 1:] * smaller[..., :-1]).sum((-2, -1))
    discordant = (counts * (smaller[..., -1:] - smaller)).sum((-2, -1))
    pairs = n * (n - 1) // 2
    x_tied, y_tied = (x_count * (x_count - 1) // 2).sum(-1), (y_count * (y_count - 1) // 2).sum(-1)
    # Twice the average rank minus its mean: whole numbers again.
    x_rank = 2 * np.cumsum(x_count, axis=-1) - x_count - n[..., None]
    y_rank = 2 * np.cumsum(y_count, axis=-1) - y_count - n[..., None]
    covariance = ((counts @ y_rank[..., None])[..., 0] * x_rank).sum(-1)
    x_variance, y_variance = (x_count * x_rank**2).sum(-1), (y_count * y_rank**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau_b = (concordant - discordant) / (np.sqrt(pairs - x_tied) * np.sqrt(pairs - y_tied))
        tau_a = (concordant - discordant) / pairs
        rho = covariance / (np.sqrt(x_variance) * np.sqrt(y_variance))
    return RankCorrelation(np.clip(tau_b, -1, 1), np.clip(rho, -1, 1), np.clip(tau_a, -1, 1))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> RankCorrelation:
    """Correlation of x [n] with each row of y [..., n]; y should have few distinct values (annotations).

    Formulas and degenerate cases: correlation_of_table. Where the values of x all differ (one score for every frame, random scores) the
    tables would be mostly empty; then the items are taken in the order of x and, for each level of y, the smaller ones met before are
    counted.
    """
    ranking = np.argsort(x, kind="stable")
    if len(x) < 2 or (np.diff(x[ranking]) == 0).any():
        return correlation_of_table(contingency(x, y))
    n = len(x)
    level, n_levels = _levels(y)
    in_order = level[..., ranking].astype(np.int16)
    count = np.stack([np.count_nonzero(in_order == value, axis=-1) for value in range(n_levels)], axis=-1)  # [..., L]
    concordant = np.zeros(y.shape[:-1], dtype=np.int64)
    for value in range(1, n_levels):
        met = np.cumsum(in_order < value, axis=-1, dtype=np.int32)
        met *= in_order == value
        concordant += met.sum(-1, dtype=np.int64)
    pairs = n * (n - 1) // 2
    untied = pairs - (count * (count - 1) // 2).sum(-1)
    y_rank = 2 * np.cumsum(count, axis=-1) - count - n
    x_rank = 2 * np.arange(n) - (n - 1)  # its squares add up to n (n^2 - 1) / 3
    covariance = (np.take_along_axis(y_rank, in_order.astype(np.int64), axis=-1) * x_rank).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau_b = (2 * concordant - untied) / (np.sqrt(pairs) * np.sqrt(untied))
        rho = covariance / (np.sqrt(n * (n * n - 1) // 3) * np.sqrt((count * y_rank**2).sum(-1)))
    return RankCorrelation(np.clip(tau_b, -1, 1), np.clip(rho, -1, 1), (2 * concordant - untied) / pairs)


def pairwise_rank_correlation(levels: np.ndarray) -> RankCorrelation:
    """Every pair of the rows of levels [A, n] (few distinct values) -> arrays [A*(A-1)/2], pairs in the order of np.triu_indices(A, 1)."""
    parts = [correlation_of_table(contingency(row, levels[number:])) for number, row in enumerate(levels[:-1], 1)]
    return RankCorrelation(*(np.concatenate(values) for values in zip(*parts)))


def kendall_tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b of two vectors of any values. NaN if either is constant or n < 2. All pairs at once up to n = 2,000, then scipy."""
    n = len(x)
    if n < 2:
        return float("nan")
    if n > 2000:
        from scipy import stats  # slow to import, and rarely needed

        return float(stats.kendalltau(x, y, method="asymptotic").statistic)
    x_above, y_above = x[:, None] > x, y[:, None] > y  # [n, n] bool
    score = np.count_nonzero(x_above & y_above) - np.count_nonzero(x_above & y_above.T)
    untied = np.count_nonzero(x_above) * np.count_nonzero(y_above)
    return float(np.clip(score / np.sqrt(untied), -1, 1)) if untied else float("nan")


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho on average ranks of two vectors of any values. NaN if either is constant or n < 2."""
    x_rank, y_rank = _centred_ranks(x), _centred_ranks(y)
    scale = float(np.sqrt((x_rank @ x_rank) * (y_rank @ y_rank)))
    return float(x_rank @ y_rank) / scale if scale > 0 else float("nan")


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Twice the average rank, minus its mean: whole numbers, [n] float64."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - float(len(values))).astype(np.float64)
