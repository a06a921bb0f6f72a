"""Mr.HiSum's numbers: the official ones, TripleSumm's, Aha's.

n = seconds of the video = frames (1 frame = 1 second), M = shots, G = 5-second segments. x = predicted scores [n], g = gtscore [n].
"""

from __future__ import annotations

import math

import numpy as np

from aha.metrics.highlights import average_precision, order
from aha.metrics.keyshots import BUDGET, knapsack
from aha.metrics.rank import kendall_tau_b, rank_correlation, spearman

SEGMENT = 5


def segment_means(scores: np.ndarray, pad_last: bool = False) -> np.ndarray:
    """[n] -> [G] means over consecutive 5-second segments; the last one over its own length, or zero-padded to 5 (TripleSumm)."""
    starts = np.arange(0, len(scores), SEGMENT)
    sizes = np.full(len(starts), SEGMENT)
    if not pad_last:
        sizes[-1] = len(scores) - starts[-1]
    return np.add.reduceat(scores, starts) / sizes


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """[n] -> [n] bool, the `count` highest values; ties go to the smaller index."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[order(values)[:count]] = True
    return chosen


def machine_summary(scores: np.ndarray, change_points: np.ndarray) -> np.ndarray:
    """Official summary, [n] bool: knapsack with capacity floor(0.15 n) over shots [M, 2] half-open [a, b), weight b - a.

    The value of a shot is the mean of frames a..b inclusive, as in the official code: one frame of the next shot leaks in.
    """
    n = len(scores)
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    ends = np.minimum(change_points[:, 1] + 1, n)
    values = (sums[ends] - sums[change_points[:, 0]]) / (ends - change_points[:, 0])
    picked = knapsack(values[None], change_points[:, 1] - change_points[:, 0], math.floor(BUDGET * n))[0]
    summary = np.zeros(n, dtype=bool)
    for start, end in change_points[picked]:
        summary[start:end] = True
    return summary


def official(x: np.ndarray, g: np.ndarray, gt_summary: np.ndarray, change_points: np.ndarray) -> dict[str, float]:
    """`MRHiSum/MR.HiSum` (NeurIPS 2023 Datasets and Benchmarks), `model/solver.py` and `model/utils`.

    map50, map15: average precision of predicted segment means; positives are the G // 2 resp. int(0.15 G) segments of highest gt (none in
    a video under 7 segments: then map15 is 0). f1 in percent, with 1e-8 * n added to the denominators of precision and recall, 0 without
    overlap.
    kendall/spearman_of_binary_summaries: correlation of the two 0/1 summaries, NaN where one is constant.
    """
    n = len(g)
    segments, truth = segment_means(x), segment_means(g)
    summary = machine_summary(x, change_points)
    reference = gt_summary.astype(bool)
    overlap = int((summary & reference).sum())
    precision, recall = overlap / (int(summary.sum()) + 1e-8 * n), overlap / (int(reference.sum()) + 1e-8 * n)
    binary = rank_correlation(summary.astype(np.int8), reference.astype(np.int8))
    return {
        "f1": 200 * precision * recall / (precision + recall) if overlap else 0.0,
        "map50": average_precision(highest(truth, len(truth) // 2), segments),
        "map15": average_precision(highest(truth, int(BUDGET * len(truth))), segments),
        "kendall_of_binary_summaries": float(binary.kendall),
        "spearman_of_binary_summaries": float(binary.spearman),
    }


def score_correlation(x: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """tau-b and rho of scores against gtscore; NaN where one is constant or shorter than 2."""
    return {"kendall": kendall_tau_b(x, g), "spearman": spearman(x, g)}


def triplesumm_map(x: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """TripleSumm (ICLR 2026): map50 and map15 (percent) of segments with the last one zero-padded; positives are the ceil(share * G)
    segments of highest gt."""
    segments, truth = segment_means(x, pad_last=True), segment_means(g, pad_last=True)
    return {
        "map50": 100 * average_precision(highest(truth, math.ceil(0.5 * len(truth))), segments),
        "map15": 100 * average_precision(highest(truth, math.ceil(BUDGET * len(truth))), segments),
    }


def aha_map(x: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """Aha (NeurIPS 2025), `test/hisum`, 1-second shots: map50 and map15 with the max(1, int(share * n)) highest gt seconds as positives;
    f1 of the int(0.15 n) best seconds against gt >= its 85th percentile (linear), rounded to 2 decimals as the reference does."""
    n = len(g)
    best = order(x)[: int(BUDGET * n)]
    positives = g >= np.percentile(g, 85)
    hits = int(positives[best].sum())
    return {
        "map50": average_precision(highest(g, max(1, int(0.5 * n))), x),
        "map15": average_precision(highest(g, max(1, int(BUDGET * n))), x),
        "f1": round(2 * hits / (len(best) + int(positives.sum())), 2),
    }


PROTOCOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "official": (
        "5-second segments, key shots (Mr.HiSum, NeurIPS 2023); f1 in percent",
        ("map50", "map15", "f1", "kendall_of_binary_summaries", "spearman_of_binary_summaries"),
    ),
    "score_correlation_and_padded_map_triplesumm": (
        "against gtscore (TripleSumm, ICLR 2026); map in percent",
        ("kendall", "spearman", "map50", "map15"),
    ),
    "aha_same_index": ("1-second shots, prediction i against label i", ("kendall", "spearman", "map50", "map15", "f1")),
    "aha_shifted_index": (
        "1-second shots, prediction i against label i - 1 (Aha, NeurIPS 2025)",
        ("kendall", "spearman", "map50", "map15", "f1"),
    ),
}


def score_video(
    x: np.ndarray, g: np.ndarray, gt_summary: np.ndarray | None, change_points: np.ndarray | None, protocols: list[str]
) -> dict[str, dict[str, float]]:
    """All numbers of one video: protocol -> metric -> value. gt_summary [n] and change_points [M, 2] serve `official` only.

    aha_shifted_index is what Aha's evaluation does: prediction i against gt i - 1, i = 1 .. n-1; all NaN for a video of one second.
    """
    result: dict[str, dict[str, float]] = {}
    same = score_correlation(x, g) if {"score_correlation_and_padded_map_triplesumm", "aha_same_index"} & set(protocols) else {}
    for protocol in protocols:
        if protocol == "official":
            if gt_summary is None or change_points is None:
                raise ValueError("the protocol official needs gt_summary and change_points")
            result[protocol] = official(x, g, gt_summary, change_points)
        elif protocol == "score_correlation_and_padded_map_triplesumm":
            result[protocol] = same | triplesumm_map(x, g)
        elif protocol == "aha_same_index":
            result[protocol] = same | aha_map(x, g)
        elif len(g) < 2:
            result[protocol] = dict.fromkeys(PROTOCOLS[protocol][1], float("nan"))
        else:
            result[protocol] = score_correlation(x[1:], g[:-1]) | aha_map(x[1:], g[:-1])
    return result
