"""Rank correlation with ties: Kendall's tau-b (and tau-a) and Spearman's rho, also many at once from contingency tables.

TVSum annotators use five levels, so the pairs of a prediction and an annotator form a table with few columns: counting concordant pairs
in it is exact (whole numbers) and needs no sorting per annotator. K, L = number of distinct values of the two sides; n = number of items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RankCorrelation(NamedTuple):
    kendall: np.ndarray  # tau-b
    spearman: np.ndarray
    kendall_tau_a: np.ndarray


def contingency(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x [n], y [..., n] -> counts [..., K, L] int64 over the sorted distinct values of x and of the whole of y."""
    _, x_level = np.unique(x, return_inverse=True)
    y_values, y_level = np.unique(y, return_inverse=True)
    rows = y_level.reshape(-1, y.shape[-1])
    n_x, n_y = int(x_level.max()) + 1, len(y_values)
    cells = (np.arange(len(rows))[:, None] * n_x + x_level.ravel()) * n_y + rows
    return np.bincount(cells.ravel(), minlength=len(rows) * n_x * n_y).reshape(*y.shape[:-1], n_x, n_y)


def correlation_of_table(counts: np.ndarray) -> RankCorrelation:
    """Rank correlations from contingency tables, counts [..., K, L] whole numbers.

    With P (Q) = number of concordant (discordant) pairs, T = n(n-1)/2, T_x and T_y = pairs tied in x and in y: tau-b = (P - Q) / sqrt((T
    - T_x)(T - T_y)) (Kendall 1945), tau-a = (P - Q) / T, rho = Pearson correlation of average ranks (Spearman 1904). Degenerate: where x
    or y is constant, or n < 2, tau-b and rho are NaN (0/0); tau-a is 0 (NaN for n < 2). Exact for n up to 1e6.
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
    values, level = np.unique(y, return_inverse=True)
    in_order = level.reshape(y.shape)[..., ranking].astype(np.int16)
    count = np.stack([(in_order == value).sum(-1) for value in range(len(values))], axis=-1)  # [..., L]
    concordant = np.zeros(y.shape[:-1], dtype=np.int64)
    for value in range(1, len(values)):
        met = np.cumsum(in_order < value, axis=-1, dtype=np.int32)
        concordant += np.where(in_order == value, met, 0).sum(-1, dtype=np.int64)
    pairs = n * (n - 1) // 2
    untied = pairs - (count * (count - 1) // 2).sum(-1)
    y_rank = 2 * np.cumsum(count, axis=-1) - count - n
    x_rank = 2.0 * np.arange(n) - (n - 1)
    covariance = np.take_along_axis(y_rank, in_order.astype(np.int64), axis=-1).astype(np.float64) @ x_rank
    with np.errstate(divide="ignore", invalid="ignore"):
        tau_b = (2 * concordant - untied) / (np.sqrt(pairs) * np.sqrt(untied))
        rho = covariance / (np.sqrt(x_rank @ x_rank) * np.sqrt((count * y_rank**2).sum(-1)))
    return RankCorrelation(np.clip(tau_b, -1, 1), np.clip(rho, -1, 1), (2 * concordant - untied) / pairs)


def pairwise_rank_correlation(levels: np.ndarray) -> RankCorrelation:
    """Every pair of the rows of levels [A, n] (few distinct values) -> arrays [A*(A-1)/2], pairs in the order of np.triu_indices(A, 1)."""
    values = np.unique(levels)
    one_hot = (levels[:, None, :] == values[:, None]).astype(np.float32)  # [A, L, n]; float32 counts exactly up to 2**24
    n_people, n_levels, n_items = one_hot.shape
    flat = one_hot.reshape(n_people * n_levels, n_items)
    tables = np.rint(flat @ flat.T).astype(np.int64).reshape(n_people, n_levels, n_people, n_levels).transpose(0, 2, 1, 3)
    first, second = np.triu_indices(n_people, 1)
    return correlation_of_table(tables[first, second])


def kendall_tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b of two vectors of any values (scipy). NaN if either is constant or n < 2."""
    from scipy import stats  # slow to import; only Mr.HiSum needs it

    return float(stats.kendalltau(x, y, method="asymptotic").statistic) if len(x) > 1 else float("nan")


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho on average ranks of two vectors of any values (scipy). NaN if either is constant or n < 2."""
    from scipy import stats

    x_rank, y_rank = stats.rankdata(x), stats.rankdata(y)
    x_rank, y_rank = x_rank - x_rank.mean(), y_rank - y_rank.mean()
    scale = float(np.sqrt((x_rank @ x_rank) * (y_rank @ y_rank)))
    return float(x_rank @ y_rank) / scale if scale > 0 else float("nan")
