"""Moment retrieval and clip highlight detection as in QVHighlights, and the window metrics of Charades-STA.

Sources: Lei et al., "QVHighlights", NeurIPS 2021 (`jayleicn/moment_detr`, standalone_eval); Lin et al., "UniVTG", ICCV 2023 (Charades-STA).
All results are percentages, unrounded; the official tools round to 2 decimals.
Dimensions: P predicted windows, G ground-truth windows, C 2-second clips, W workers. A window is (start, end) in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
LENGTH_RANGES = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0), "full": (0.0, np.inf)}
SALIENCY_LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
MAX_WINDOWS = 10


def window_iou(predicted_P2: np.ndarray, truth_G2: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of windows: [P, 2], [G, 2] -> [P, G]; 0 where both have no length."""
    low = np.maximum(predicted_P2[:, None, 0], truth_G2[None, :, 0])
    high = np.minimum(predicted_P2[:, None, 1], truth_G2[None, :, 1])
    overlap = np.maximum(0.0, high - low)
    union = (predicted_P2[:, 1] - predicted_P2[:, 0])[:, None] + (truth_G2[:, 1] - truth_G2[:, 0])[None] - overlap
    return np.divide(overlap, union, out=np.zeros(overlap.shape), where=union > 0)


def best_iou(predicted_P2: np.ndarray, truth_G2: np.ndarray, first: int) -> float:
    """Largest IoU of the first `first` listed windows with any ground-truth window; 0 where either side is empty."""
    if not len(predicted_P2) or not len(truth_G2):
        return 0.0
    return float(window_iou(predicted_P2[:first], truth_G2).max())


def moment_average_precision(predicted_P3: np.ndarray, truth_G2: np.ndarray) -> np.ndarray:
    """Average precision of one query at each of IOU_THRESHOLDS: windows with scores [P, 3], [G, 2] -> [10].

    At most the first 10 listed windows, by falling score (stable); each takes the still unused ground-truth window of highest IoU if
    that is at least the threshold; precision is made non-increasing in recall and integrated over recall. 0 without predictions.
    """
    result = np.zeros(len(IOU_THRESHOLDS))
    kept = predicted_P3[:MAX_WINDOWS]
    if not len(kept) or not len(truth_G2):
        return result
    kept = kept[np.argsort(-kept[:, 2], kind="stable")]
    iou = window_iou(kept[:, :2], truth_G2)
    preference = np.argsort(-iou, axis=1, kind="stable")
    for t, threshold in enumerate(IOU_THRESHOLDS):
        used, hit = set(), np.zeros(len(kept))
        for p in range(len(kept)):
            free = next((g for g in preference[p] if iou[p, g] >= threshold and g not in used), None)
            if free is not None:
                used.add(free)
                hit[p] = 1
        hits = np.cumsum(hit)
        precision = np.maximum.accumulate((hits / np.arange(1, len(kept) + 1))[::-1])[::-1]
        result[t] = (precision * hit).sum() / len(truth_G2)
    return result


def retrieval_metrics(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """QVHighlights moment retrieval, per query: predictions Q x [P, 3], truths Q x [G, 2] -> metric name -> [Q] percent (NaN = not
    counted).

    MR-{range}-R1@t: the first LISTED window (not the best scored) against its best ground-truth window, IoU >= t.
    MR-{range}-mAP@t and MR-{range}-mAP (mean over t = .5:.05:.95). A length range keeps only ground-truth windows with length in (low,
    high]; queries without one are not counted.
    """
    metrics: dict[str, np.ndarray] = {}
    for name, (low, high) in LENGTH_RANGES.items():
        first, precision = np.full(len(truths), np.nan), np.full((len(truths), len(IOU_THRESHOLDS)), np.nan)
        for q, (predicted, truth) in enumerate(zip(predictions, truths)):
            length = truth[:, 1] - truth[:, 0]
            kept = truth[(length > low) & (length <= high)] if name != "full" else truth
            if len(kept):
                first[q] = best_iou(predicted[:, :2], kept, 1)
                precision[q] = 100 * moment_average_precision(predicted, kept)
        counted = ~np.isnan(first)
        for t, threshold in enumerate(IOU_THRESHOLDS):
            metrics[f"MR-{name}-R1@{threshold:g}"] = np.where(counted, 100.0 * (first >= threshold), np.nan)
            metrics[f"MR-{name}-mAP@{threshold:g}"] = precision[:, t]
        metrics[f"MR-{name}-mAP"] = precision.mean(axis=1)
    return metrics


def interpolated_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """AP as in the official QVHighlights tool: interpolated precision averaged over the distinct recall values. labels [C] bool, scores
    [C].

    No positive -> 0, all positive -> 1. Equal scores form one step.
    """
    if labels.all() or not labels.any():
        return float(labels.all())
    order = np.argsort(scores, kind="stable")[::-1]
    ranked, hits = scores[order], np.cumsum(labels[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # end of each run of equal scores
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    full = int(np.argmax(recall == 1))
    precision = np.maximum.accumulate(np.append(precision[: full + 1][::-1], 1.0))  # from full recall back to recall 0
    recall = np.append(recall[: full + 1][::-1], 0.0)
    return float(precision[:-1][np.diff(recall) != 0].mean())


def saliency_table(saliency_scores: Sequence[Sequence[int]], relevant_clips: Sequence[int], n_clips: int) -> np.ndarray:
    """[C, W] opinions of the workers, 0 outside the relevant clips; relevant clips beyond the table are dropped (as in the official
    tool)."""
    table = np.zeros((n_clips, max((len(row) for row in saliency_scores), default=3)))
    for clip, row in zip(relevant_clips, saliency_scores):
        if clip < n_clips:
            table[clip] = row
    return table


def highlight_metrics(scores: np.ndarray, table_CW: np.ndarray) -> dict[str, float]:
    """HIT@1 and mAP of one query at the three levels, percent: predicted clip scores (any number), opinions [C, W].

    Hit1: the first best-scored clip is positive for ANY worker; beyond the table = miss. mAP: mean over workers of the AP of the scores,
    cut or zero-padded to the table.
    """
    n_clips = len(table_CW)
    fitted = np.zeros(n_clips)
    fitted[: min(n_clips, len(scores))] = scores[:n_clips]
    best = int(np.argmax(scores))
    metrics = {}
    for name, level in SALIENCY_LEVELS.items():
        positive = table_CW >= level
        precision = [interpolated_average_precision(positive[:, w], fitted) for w in range(positive.shape[1])]
        metrics[f"HL-min-{name}-mAP"] = 100 * float(np.mean(precision))
        metrics[f"HL-min-{name}-Hit1"] = 100.0 * (best < n_clips and bool(positive[best].any()))
    return metrics


def grounding_window_metrics(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Charades-STA from listed windows (UniVTG), per query, percent: R@1@t and mIoU of the first window, R@5@t of the best of the first
    five (t = .3/.5/.7), mAP@t and mAP."""
    first = np.array([best_iou(p[:, :2], g, 1) for p, g in zip(predictions, truths)])
    five = np.array([best_iou(p[:, :2], g, 5) for p, g in zip(predictions, truths)])
    precision = 100 * np.array([moment_average_precision(p, g) for p, g in zip(predictions, truths)])
    metrics = {f"R@1@{t}": 100.0 * (first >= t) for t in (0.3, 0.5, 0.7)}
    metrics["mIoU"] = 100 * first
    metrics |= {f"R@5@{t}": 100.0 * (five >= t) for t in (0.3, 0.5, 0.7)}
    metrics |= {f"mAP@{t:g}": precision[:, i] for i, t in enumerate(IOU_THRESHOLDS)}
    metrics["mAP"] = precision.mean(axis=1)
    return metrics


def windows_from_scores(scores: np.ndarray, starts: np.ndarray, seconds: float, threshold: float) -> np.ndarray:
    """Windows where min-max normalised scores [C] reach `threshold`, ranked by mean normalised score: [P, 3] (start, end, score).

    `starts` [C] and `seconds`: where each scored piece begins and how long it is. Constant scores give no window.
    The normalisation needs the whole video: not causal.
    """
    spread = scores.max() - scores.min()
    if not spread > 0:
        return np.zeros((0, 3))
    normal = (scores - scores.min()) / spread
    edges = np.diff(np.concatenate([[0], (normal >= threshold).astype(int), [0]]))
    runs = [
        (starts[a], starts[b - 1] + seconds, normal[a:b].mean()) for a, b in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1))
    ]
    windows = np.array(runs).reshape(-1, 3)
    return windows[np.argsort(-windows[:, 2], kind="stable")]
