"""Key-shot summaries and their F1: shots, knapsack, the official TVSum script with its fall-backs.

R = number of score vectors handled at once (20 annotators, random runs), n = frames, M = shots. Shots are half-open [M, 2] (start, end)
int64.
"""

from __future__ import annotations

import numpy as np

BUDGET = 0.15


def official_shots(n_frames: int, shot_frames: int = 60) -> np.ndarray:
    """Shots of the official TVSum script: floor(n / shot_frames) shots, the last one also takes the remainder.

    A video shorter than one shot is one shot (the script's own list is malformed there)."""
    starts = np.arange(max(1, n_frames // shot_frames)) * shot_frames
    return np.column_stack([starts, np.append(starts[1:], n_frames)])


def even_shots(n_frames: int, shot_frames: int = 60) -> np.ndarray:
    """Cuts at 0, 60, 120, ...; the remainder is a shot of its own (Otani et al., CVPR 2019)."""
    starts = np.arange(0, n_frames, shot_frames)
    return np.column_stack([starts, np.append(starts[1:], n_frames)])


def knapsack(values: np.ndarray, weights: np.ndarray, capacity: int) -> np.ndarray:
    """Exact 0/1 knapsack for R value vectors over the same items.

    values [R, M], weights [M] whole numbers > 0 -> picked [R, M] bool.
    dp[i][c] = max(dp[i-1][c], dp[i-1][c - w_i] + v_i); walking back from the last item, an item is taken iff dp[i][c] != dp[i-1][c].
    Ties therefore prefer earlier items, and items of value <= 0 are never taken. Time O(R * M * capacity), vectorised over R and capacity.
    """
    n_rows, n_items = values.shape
    best = np.zeros((n_rows, capacity + 1))
    improved = np.zeros((n_items, n_rows, capacity + 1), dtype=bool)
    for item, weight in enumerate(weights):
        if weight > capacity:
            continue
        with_item = best[:, : capacity + 1 - weight] + values[:, item, None]
        np.greater(with_item, best[:, weight:], out=improved[item, :, weight:])
        best[:, weight:] = np.maximum(with_item, best[:, weight:])
    picked = np.zeros((n_rows, n_items), dtype=bool)
    left = np.full(n_rows, capacity)
    rows = np.arange(n_rows)
    for item in range(n_items - 1, -1, -1):
        picked[:, item] = improved[item, rows, left]
        left -= picked[:, item] * int(weights[item])
    return picked


def shot_means(scores: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """Mean score of each shot: scores [R, n], shots [M, 2] -> [R, M] float64. Plain mean per shot, so that equal frames give equal
    shots."""
    return np.stack([scores[:, start:end].mean(axis=1) for start, end in shots], axis=1)


def frames_of(picked: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """picked [R, M] bool -> summary [R, n] bool over frames."""
    return np.repeat(picked, shots[:, 1] - shots[:, 0], axis=1)


def min_max(scores: np.ndarray) -> np.ndarray:
    """Each row of scores [R, n] stretched to [0, 1]; a constant row becomes 0 (official TVSum script)."""
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return np.divide(scores - low, high - low, out=np.zeros(scores.shape), where=high > low)


def matlab_quantile(values: np.ndarray, q: float) -> float:
    """MATLAB's quantile: the i-th smallest of n values (i = 1..n) is the (i - 0.5)/n quantile, linear between, constant outside."""
    ordered = np.sort(values)
    n = len(ordered)
    return float(np.interp(q, (np.arange(1, n + 1) - 0.5) / n, ordered))


def official_summary(scores: np.ndarray, shots: np.ndarray, budget: float = BUDGET) -> np.ndarray:
    """Summary of the official TVSum script (`solve_knapsack.m`; Song et al., CVPR 2015): scores [R, n] -> [R, n] bool.

    A predictor's scores come normalised by min_max, the annotators' as given (1..5).
    Knapsack of shot means with capacity fix(budget * n). Fall-backs, per row: nothing selected -> frames with score above the 1 - budget
    quantile (MATLAB's); still nothing -> frames by falling score, ties by rising index, until their share is at least `budget`.
    """
    n_frames = scores.shape[1]
    summary = frames_of(knapsack(shot_means(scores, shots), shots[:, 1] - shots[:, 0], int(budget * n_frames)), shots)
    for row in np.flatnonzero(~summary.any(axis=1)):
        summary[row] = scores[row] > matlab_quantile(scores[row], 1 - budget)
        if not summary[row].any():
            count = next(k for k in range(int(budget * n_frames), n_frames + 1) if k / n_frames >= budget)
            summary[row, np.argsort(-scores[row], kind="stable")[:count]] = True
    return summary


def knapsack_summary(scores: np.ndarray, shots: np.ndarray, budget: float = BUDGET) -> np.ndarray:
    """Summary by knapsack of shot means as given, capacity int(budget * n), no fall-back (Otani et al., CVPR 2019): [R, n] -> [R, n]
    bool."""
    return frames_of(knapsack(shot_means(scores, shots), shots[:, 1] - shots[:, 0], int(scores.shape[1] * budget)), shots)


def keyshot_summary(scores: np.ndarray, shots: np.ndarray, budget: float = BUDGET) -> np.ndarray:
    """Summary over a given shot list (PGL-SUM, CSTA, DSNet, VASNet): as knapsack_summary, but shot means in float32. An empty summary
    stays empty."""
    means = np.stack([scores[:, start:end].astype(np.float32).mean(axis=1) for start, end in shots], axis=1)
    capacity = int(int(shots[-1, 1]) * budget)
    return frames_of(knapsack(means.astype(np.float64), shots[:, 1] - shots[:, 0], capacity), shots)


def f1(summaries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """F1 = 2PR/(P+R) of every summary against every reference, P = |S&G|/|S|, R = |S&G|/|G|: [R, n] and [A, n] bool -> [R, A].

    0 where there is no overlap, also if one of the two is empty (PGL-SUM has NaN there)."""
    left, right = np.packbits(summaries, axis=1), np.packbits(references, axis=1)
    overlap = np.stack([np.bitwise_count(row & right).sum(axis=1, dtype=np.int64) for row in left])
    sizes = summaries.sum(axis=1)[:, None] + references.sum(axis=1)
    return np.divide(2 * overlap, sizes, out=np.zeros(overlap.shape), where=overlap > 0)
