"""Ranking: smoothing, peaks, and no near-duplicates.

F frames, M moments, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aha.highlights.timeline import Highlight, ScoreTrack, Segment


def smooth_causal(scores_F: np.ndarray, window: int = 5, order: int = 1) -> np.ndarray:
    """Savitzky-Golay smoothing that uses the last `window` frames only: the fitted polynomial's value at the newest frame. [F] -> [F]

    At the start the window is as long as the past; a prefix gives the same numbers as the whole.
    """
    from scipy.signal import savgol_coeffs  # a second to import, and `aha watch` needs none

    scores_F = np.asarray(scores_F, dtype=np.float64)
    _check_window(window, order)
    smooth_F = np.empty_like(scores_F)
    weights = {n: savgol_coeffs(n, min(order, n - 1), pos=n - 1, use="dot") for n in range(1, min(window, len(scores_F)) + 1)}
    for frame in range(len(scores_F)):
        n = min(window, frame + 1)
        smooth_F[frame] = weights[n] @ scores_F[frame + 1 - n : frame + 1]
    return smooth_F


def smooth_centred(scores_F: np.ndarray, window: int = 5, order: int = 2) -> np.ndarray:
    """Savitzky-Golay smoothing centred on each frame. It LOOKS AHEAD by window // 2 frames: for finished videos only. [F] -> [F]"""
    from scipy.signal import savgol_filter

    scores_F = np.asarray(scores_F, dtype=np.float64)
    _check_window(window, order)
    if window % 2 == 0:
        raise ValueError(f"a centred window has an odd number of frames, not {window}")
    window = min(window, len(scores_F) - (len(scores_F) + 1) % 2)
    if window <= order:
        return scores_F.copy()
    return savgol_filter(scores_F, window, order, mode="interp")


def _check_window(window: int, order: int) -> None:
    if window < 1 or order < 0:
        raise ValueError(f"window must be at least 1 frame and order at least 0, not {window} and {order}")


def peaks(scores_F: np.ndarray, prominence: float = 0.0, distance: int = 1) -> np.ndarray:
    """Frames at local maxima, best first: they stand out by `prominence` and lie `distance` frames apart. [F] -> [P]

    The first and last frame can be peaks too; of a plateau the middle; equal scores in time order.
    """
    from scipy.signal import find_peaks

    scores_F = np.asarray(scores_F, dtype=np.float64)
    if not len(scores_F):
        return np.zeros(0, np.int64)
    # A low wall on either side makes maxima at the ends countable; its height is the minimum, so prominence keeps its meaning.
    low = scores_F.min() - max(prominence, 1e-9)
    found, _ = find_peaks(np.concatenate([[low], scores_F, [low]]), prominence=prominence or None, distance=max(1, distance))
    found = found - 1
    return found[np.argsort(-scores_F[found], kind="stable")]


def similarity(vector_D: np.ndarray, other_D: np.ndarray) -> float:
    """Cosine; 0 where one of the two is zero."""
    norm = float(np.linalg.norm(vector_D) * np.linalg.norm(other_D))
    return float(vector_D @ other_D) / norm if norm > 1e-12 else 0.0


def diverse(order: Sequence[int], vectors_MD: np.ndarray | None, count: int, max_similarity: float = 0.9) -> list[int]:
    """The first `count` of `order` (best first) of which no two are near-duplicates: cosine above `max_similarity`.

    vectors_MD: one vector per moment; its mean is taken off first, since all pictures of one video are alike. If that leaves fewer than
    `count`, fewer are returned: showing the same thing twice is not a better answer.
    """
    if vectors_MD is None:
        return list(order)[:count]
    centred_MD = np.asarray(vectors_MD, np.float64) - np.mean(vectors_MD, axis=0)
    # Where everything is one picture the rest after centring is rounding: no direction in it means anything.
    centred_MD[np.linalg.norm(centred_MD, axis=1) < 1e-6 * max(1e-12, float(np.linalg.norm(vectors_MD, axis=1).max()))] = 0.0
    chosen: list[int] = []
    for moment in order:
        if len(chosen) == count:
            break
        if all(similarity(centred_MD[moment], centred_MD[other]) <= max_similarity for other in chosen):
            chosen.append(moment)
    return chosen


def segment_means(values_F: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Mean over the frames of each segment: [F] or [F, D] -> [M] or [M, D]."""
    return np.stack([np.asarray(values_F[s.first : s.last], np.float64).mean(axis=0) for s in segments])


def ranked_highlights(track: ScoreTrack, fused_F: np.ndarray, segments: Sequence[Segment]) -> list[Highlight]:
    """Chosen segments as highlights, best mean fused score first (equal: earlier first)."""
    means = [float(np.mean(fused_F[s.first : s.last])) for s in segments]
    highlights = []
    for rank, index in enumerate(sorted(range(len(segments)), key=lambda i: (-means[i], segments[i].start)), 1):
        segment = segments[index]
        best = segment.first + int(np.argmax(fused_F[segment.first : segment.last]))
        highlights.append(Highlight(
            rank=rank, start=segment.start, end=segment.end, score=means[index], peak_time=float(track.times_F[best]),
            informative=float(track.informative_F[best]), relevance=float(track.relevance_F[best]),
            uncertainty=None if track.uncertainty_F is None else float(track.uncertainty_F[best]),
            first=segment.first, last=segment.last,
        ))  # fmt: skip
    return highlights
