"""Highlight detection as ranking: average precision, top-5 average precision, and the label rules of TVSum's protocols.

C = clips (or samples), A = annotators. Equal scores: `order` is stable, first item first; last_first=True gives the opposite, so that both
ends can be reported (published codes use unstable sorts there).
"""

from __future__ import annotations

import numpy as np


def order(scores: np.ndarray, last_first: bool = False) -> np.ndarray:
    """Indices by falling score; equal scores in index order, or in reverse index order."""
    if last_first:
        return len(scores) - 1 - np.argsort(-scores[::-1], kind="stable")
    return np.argsort(-scores, kind="stable")


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Step-wise average precision sum_k (R_k - R_{k-1}) P_k over falling thresholds; equal scores form one step (as in scikit-learn).

    labels [C] 0/1. Degenerate: no positive -> 0."""
    labels = np.asarray(labels, dtype=bool)
    positives = int(labels.sum())
    if positives == 0:
        return 0.0
    ranking = order(scores)
    ranked = scores[ranking]
    steps = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # last item of each run of equal scores
    hits = np.cumsum(labels[ranking])[steps]
    new_hits = hits.copy()
    new_hits[1:] -= hits[:-1]
    return float((new_hits * hits / (steps + 1)).sum() / positives)


def trapezoid_ap(top_labels: np.ndarray) -> np.ndarray:
    """AP of the labels of the best-ranked clips, top_labels [..., 5] 0/1 in rank order -> [...] (UMT, CVPR 2022, `datasets/tvsum.py`).

    m = number of positives among them; AP = 0 if m = 0, else sum_j (r_j - r_{j-1}) (p_j + p_{j-1}) / 2 with r_j = hits_j / m,
    p_j = hits_j / j, r_0 = 0, p_0 = 1. m counts positives inside the five only, so 1,0,0,0,0 scores 1.
    """
    labels = np.asarray(top_labels, dtype=np.float64)
    hits = np.cumsum(labels, axis=-1)
    precision = hits / np.arange(1, labels.shape[-1] + 1)
    before = np.concatenate([np.ones((*labels.shape[:-1], 1)), precision[..., :-1]], axis=-1)
    total = hits[..., -1]
    area = (labels * (precision + before) / 2).sum(-1)
    return np.divide(area, total, out=np.zeros_like(area), where=total > 0)


def all_clips_ap(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """AP of one YouTube Highlights video over ALL its clips, as `umt_tie_*` and `lighthouse_tie_*`.

    Sources: UMT (CVPR 2022) and Lighthouse (EMNLP 2024). A domain's mAP is the mean over its videos, a table's mean that of the domains.
    labels [C] 0/1, scores one a clip: a longer list is cut to the labels, beyond a shorter one positives do not count. Without a positive
    clip UMT counts 0 and Lighthouse leaves the video out (NaN). Equal scores: both published sorts are unstable; first = in the order of
    the clips, last = reverse, mean = of the two.
    """
    count = min(len(labels), len(scores))
    labels, scores = np.asarray(labels, dtype=bool)[:count], np.asarray(scores)[:count]
    first, last = (float(trapezoid_ap(labels[order(scores, last_first)])) if count else 0.0 for last_first in (False, True))
    umt = {"mean": (first + last) / 2, "first": first, "last": last}
    left_out = not labels.any()
    return {f"umt_tie_{name}": value for name, value in umt.items()} | {
        f"lighthouse_tie_{name}": float("nan") if left_out else value for name, value in umt.items()
    }


def above_lower_median(labels: np.ndarray) -> np.ndarray:
    """labels [A, C] -> [A, C] bool: above that annotator's lower median (the ((C-1)//2)-th smallest, as torch.median)."""
    middle = (labels.shape[-1] - 1) // 2
    return labels > np.partition(labels, middle, axis=-1)[..., middle, None]


def top_labels(positives: np.ndarray, scores: np.ndarray, count: int = 5, last_first: bool = False) -> np.ndarray:
    """positives [..., C] -> [..., count]: labels of the best `count` items by score [C], in rank order."""
    return positives[..., order(scores, last_first)[:count]]


def top_share(values: np.ndarray, share: float) -> np.ndarray:
    """values [N] -> [N] bool: at least the k-th largest, k = max(1, int(share * N)); values tied with it count, so more than k may be
    positive."""
    k = max(1, int(share * len(values)))
    return values >= np.partition(values, len(values) - k)[len(values) - k]


def f1_of_best(positives: np.ndarray, scores: np.ndarray, share: float, last_first: bool = False) -> float:
    """F1 of the k = max(1, int(share * N)) best-scored items against positives [N] bool."""
    k = max(1, int(share * len(scores)))
    hits = int(positives[order(scores, last_first)[:k]].sum())
    return 2.0 * hits / (k + int(positives.sum()))
