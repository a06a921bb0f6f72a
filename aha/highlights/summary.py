"""Which moments to show: an exact knapsack for a time budget, the best few, or all above a threshold.

Lengths are whole frames, so that "at most 15%" holds exactly. F scored frames, M segments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aha.highlights.offline import split_long
from aha.highlights.ranking import diverse, peaks, segment_means
from aha.highlights.timeline import ScoreTrack, Segment
from aha.metrics.keyshots import knapsack

LONGEST_MOMENT = 10.0  # seconds of one of the best moments
LONGEST_SHARE = 1 / 3  # of the budget that one moment may take: a reel shows more than one thing


def select_budget(values: Sequence[float] | np.ndarray, lengths: Sequence[int], capacity: int) -> list[int]:
    """Exact 0/1 knapsack: the items of largest total value whose lengths add up to at most `capacity`, in time order.

    Ties prefer earlier items; items of value <= 0 are not taken. lengths: whole numbers > 0.
    """
    if not len(values) or capacity <= 0:
        return []
    lengths_M = np.asarray(lengths, dtype=np.int64)
    unit = math.gcd(*lengths_M.tolist())  # shots of 60 frames: count in shots, 60 times less to do
    picked = knapsack(np.asarray(values, dtype=np.float64)[None], lengths_M // unit, int(capacity) // unit)[0]
    return np.flatnonzero(picked).tolist()


def select_top(values: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """The `count` best items, best first; equal values in time order."""
    return np.argsort(-np.asarray(values, dtype=np.float64), kind="stable")[:count].tolist()


def select_threshold(values: Sequence[float] | np.ndarray, threshold: float) -> list[int]:
    """All items of at least `threshold`, in time order."""
    return np.flatnonzero(np.asarray(values, dtype=np.float64) >= threshold).tolist()


def summarise_budget(track: ScoreTrack, fused_F: np.ndarray, segments: Sequence[Segment], budget: float, video_fps: float) -> list[Segment]:
    """Segments for a reel of at most `budget` (share of the video, 0..1), of largest total score: value = mean score above the video's
    lowest * length.

    Segments longer than a third of the budget are cut first. Where not even one scored frame's stretch fits, the best frame's stretch is
    shortened to the budget, so that a very short video still gives something: at least one frame.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget is a share of the video between 0 and 1, not {budget}")
    if budget == 1:
        return list(segments)
    seconds = budget * track.duration
    parts = split_long(track, list(segments), max(seconds * LONGEST_SHARE, 1 / video_fps))
    # In frames, rounded up: of a constant-rate video that is exact, of a variable one the reel may only come out shorter.
    lengths = [max(1, math.ceil(part.seconds * video_fps - 1e-6)) for part in parts]
    capacity = math.floor(seconds * video_fps + 1e-6)
    level_F = fused_F - fused_F.min()
    values = segment_means(level_F, parts) * lengths + 1e-9  # not 0: of a constant track the first ones are taken
    chosen = [parts[i] for i in select_budget(values, lengths, capacity)]
    if chosen:
        return _joined(track, chosen)
    best = int(np.argmax(fused_F))
    whole = track.segment(best, best + 1)
    return [Segment(best, best + 1, whole.start, min(whole.end, whole.start + max(seconds, 1 / video_fps)), "budget")]


def _joined(track: ScoreTrack, chosen: list[Segment]) -> list[Segment]:
    """Moments that follow on each other are one."""
    joined: list[Segment] = []
    for part in chosen:
        if joined and joined[-1].last == part.first:
            joined[-1] = track.segment(joined[-1].first, part.last, part.reason, part.decided_at)
        else:
            joined.append(part)
    return joined


def summarise_top(
    track: ScoreTrack, fused_F: np.ndarray, segments: Sequence[Segment], count: int, max_similarity: float = 0.9
) -> list[Segment]:
    """The `count` best moments that differ, best first: the segments in which the fused score peaks, then those of the best mean score.

    A moment lasts at most 10 seconds, and all together at most half of the video: longer segments are cut into equal parts first.
    """
    if count < 1:
        raise ValueError(f"top must be at least 1, not {count}")
    parts = split_long(track, list(segments), max(min(LONGEST_MOMENT, track.duration / (2 * count)), 1e-3))
    of_frame = np.repeat(np.arange(len(parts)), [part.last - part.first for part in parts])
    spread = float(np.ptp(fused_F))
    first = [int(of_frame[frame]) for frame in peaks(fused_F, prominence=0.05 * spread)]
    # A curve that only rises has one peak: the rest comes by mean score.
    order = list(dict.fromkeys([*first, *select_top(segment_means(fused_F, parts), len(parts))]))
    vectors = None if track.features_FD is None else segment_means(track.features_FD, parts)
    return [parts[i] for i in diverse(order, vectors, count, max_similarity)]


def summarise_threshold(track: ScoreTrack, fused_F: np.ndarray, segments: Sequence[Segment], threshold: float) -> list[Segment]:
    """Segments whose mean fused score is at least `threshold`, in time order; those that follow on each other are one."""
    return _joined(track, [segments[i] for i in select_threshold(segment_means(fused_F, segments), threshold)])
