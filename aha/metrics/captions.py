"""Dense captioning: localisation F1, CIDEr-D of matched captions and SODA_c.

Sources: Krishna et al., ICCV 2017 (`densevid_eval`) in the form of Vid2Seq (Yang et al., CVPR 2023), which MMDuet and Aha use; CIDEr-D:
Vedantam et al., CVPR 2015; SODA: Fujita et al., ECCV 2020. Fractions (MMDuet and Aha print them times 100).
Dimensions: P predictions, G gold captions of one video. A caption here is a list of words: tokenising is the caller's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
MAX_N = 4
SIGMA = 6.0

Words = Sequence[str]
Grams = dict[tuple[str, ...], float]


def segment_iou(predicted_P2: np.ndarray, gold_G2: np.ndarray) -> np.ndarray:
    """[P, 2], [G, 2] -> [P, G]; ends may be in either order. 1e-8 in the denominator as in the reference."""
    predicted, gold = np.sort(predicted_P2.reshape(-1, 2), axis=1), np.sort(gold_G2.reshape(-1, 2), axis=1)
    overlap = np.minimum(predicted[:, None, 1], gold[None, :, 1]) - np.maximum(predicted[:, None, 0], gold[None, :, 0])
    overlap = np.maximum(0.0, overlap)
    union = (predicted[:, 1] - predicted[:, 0])[:, None] + (gold[:, 1] - gold[:, 0])[None] - overlap
    return overlap / (union + 1e-8)


def localisation(iou_PG: np.ndarray) -> dict[str, float]:
    """Precision@t, Recall@t (share of predictions that overlap ANY gold with IoU > t, and vice versa), their means, and F1_Score: the
    harmonic mean of the two means. No prediction -> 0."""
    metrics: dict[str, float] = {}
    for threshold in THRESHOLDS:
        hit = iou_PG > threshold
        metrics[f"Precision@{threshold}"] = float(hit.any(axis=1).mean()) if len(iou_PG) else 0.0
        metrics[f"Recall@{threshold}"] = float(hit.any(axis=0).mean()) if len(iou_PG) else 0.0
    precision = float(np.mean([metrics[f"Precision@{t}"] for t in THRESHOLDS]))
    recall = float(np.mean([metrics[f"Recall@{t}"] for t in THRESHOLDS]))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return {"F1_Score": f1, "Precision_Mean": precision, "Recall_Mean": recall, **metrics}


def matched_pairs(iou_PG: np.ndarray, threshold: float) -> list[tuple[int, int | None]]:
    """Every (prediction, gold) with IoU >= threshold, and (prediction, None) for one without any: what the caption scores compare."""
    pairs: list[tuple[int, int | None]] = []
    for p, row in enumerate(iou_PG):
        golds = np.flatnonzero(row >= threshold)
        pairs += [(p, int(g)) for g in golds] if len(golds) else [(p, None)]
    return pairs


def _grams(words: Words) -> Counter:
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def cider_d(pairs: Sequence[tuple[Words, Words | None]]) -> float:
    """CIDEr-D of (candidate, reference) pairs, mean over the pairs, times 10 (Vedantam et al., 2015: n = 1..4, sigma 6).

    Document frequencies are those of these references only. A reference None matches nothing but counts as a document. No pair -> 0; one
    pair -> 0 (its idf is log 1).
    """
    if not pairs:
        return 0.0
    candidates = [_grams(candidate) for candidate, _ in pairs]
    references = [_grams(reference) if reference is not None else Counter() for _, reference in pairs]
    frequency = Counter(gram for reference in references for gram in reference)
    documents = math.log(len(pairs))

    def weighted(counts: Counter) -> tuple[list[Grams], list[float], int]:
        vectors: list[Grams] = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (documents - math.log(max(1, frequency[gram])))
        norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    total = 0.0
    for candidate, reference in zip(map(weighted, candidates), map(weighted, references)):
        similarity = 0.0
        for vector, norm, other, other_norm in zip(candidate[0], candidate[1], reference[0], reference[1]):
            shared = sum(min(value, other[gram]) * other[gram] for gram, value in vector.items() if gram in other)
            if norm and other_norm:
                similarity += shared / (norm * other_norm)
        # lengths are counted in bigrams, as in the reference implementation
        total += similarity / MAX_N * math.exp(-((candidate[2] - reference[2]) ** 2) / (2 * SIGMA**2))
    return 10 * total / len(pairs)


def matched_cider(iou_PG: np.ndarray, predicted: Sequence[Words], gold: Sequence[Words]) -> float:
    """CIDEr-D of the matched pairs of one video, mean over THRESHOLDS."""
    scores = []
    for threshold in THRESHOLDS:
        pairs = matched_pairs(iou_PG, threshold)
        scores.append(cider_d([(predicted[p], gold[g] if g is not None else None) for p, g in pairs]))
    return float(np.mean(scores))


def best_ordered_sum(score_PG: np.ndarray) -> float:
    """Largest sum over an order-preserving one-to-one assignment of predictions to gold captions (both in the given order)."""
    best = np.zeros(score_PG.shape[1] + 1)
    for row in score_PG:
        diagonal = best[:-1] + row
        best[1:] = np.maximum.accumulate(np.maximum(diagonal, best[1:]))
    return float(best[-1])


def soda_c(iou_PG: np.ndarray, similarity_PG: np.ndarray) -> float:
    """SODA_c of one video: F1 of the best ordered assignment of IoU x similarity (METEOR); 0 without predictions."""
    n_predicted, n_gold = iou_PG.shape
    if not n_predicted or not n_gold:
        return 0.0
    total = best_ordered_sum(iou_PG * similarity_PG)
    precision, recall = total / n_predicted, total / n_gold
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def soda_c_released_code(iou_PG: np.ndarray, similarity_PG: np.ndarray) -> float:
    """The number that MMDuet, Aha and Vid2Seq-style code print as SODA_c: equal to soda_c up to ten captions, another one beyond.

    Their captions are keyed "0", "1", .., and METEOR returns them in the order of these texts ("0", "1", "10", "11", .., "2"), while the
    IoU stays in the order of the numbers: the j-th caption's IoU meets the METEOR of the caption that is j-th as text.
    """
    return soda_c(iou_PG, similarity_PG[sorted(range(len(similarity_PG)), key=str)])


def paragraph_words(captions: Sequence[str], separator: str) -> list[str]:
    """All captions of a video as one text, for Para_CIDER (cider_d of all videos' pairs) and Para_METEOR (METEOR's aggregate of them).

    Lower-case; everything but letters a-z parts words. Predictions are joined with ". ", gold captions with a blank.
    """
    return re.sub(r"[^a-zA-Z]", " ", separator.join(captions)).lower().split()
