"""Segmentation of a finished video: kernel temporal segmentation and uniform shots. These look at the whole video.

F frames, D feature width.
"""

from __future__ import annotations

import math

import numpy as np

from aha.highlights.timeline import ScoreTrack, Segment

EXACT_FRAMES = 2000  # up to here the number of segments is chosen by comparing all of them; beyond, by one penalty


def kernel_boundaries(features_FD: np.ndarray, min_frames: int = 2, penalty: float = 2.0) -> list[int]:
    """Kernel temporal segmentation (Potapov et al., ECCV 2014) with the linear kernel: first frame of each segment but the first.

    Minimises within-segment scatter / F + penalty * m/F * s * (log(F/m) + 1) over the boundaries and their number m, as the authors' code
    does; s = the scatter per frame that is noise (half the median squared step from frame to frame; theirs is fixed). Beyond 2,000 frames
    the number comes from PELT with the same cost per boundary. [F, D] -> ascending list.
    """
    import ruptures  # here: segment types and summaries need none

    features_FD = np.asarray(features_FD, dtype=np.float64)
    frames = len(features_FD)
    min_frames = max(1, min_frames)
    steps = ((features_FD[1:] - features_FD[:-1]) ** 2).sum(axis=1)
    scale = float(np.median(steps)) / 2 if len(steps) else 0.0
    spread = float(((features_FD - features_FD.mean(axis=0)) ** 2).sum()) / frames if frames else 0.0
    scale = max(scale, 1e-3 * spread)
    if frames < 2 * min_frames or scale <= 1e-12:
        return []  # too short, or nothing ever changes
    search = ruptures.KernelCPD(kernel="linear", min_size=min_frames).fit(features_FD)
    if frames > EXACT_FRAMES:
        typical = max(1, frames // 25)
        return [int(b) for b in search.predict(pen=penalty * scale * (math.log(frames / typical) + 1))[:-1]]
    most = min(frames // min_frames - 1, max(1, frames // 4))
    search.predict(n_bkps=most)
    costs = {0: spread}
    sums_FD = np.concatenate([np.zeros((1, features_FD.shape[1])), np.cumsum(features_FD, axis=0)])
    squares = float((features_FD**2).sum())
    for count, ends in search.segmentations_dict.items():
        edges = np.array([0, *ends])
        lengths = np.diff(edges)
        explained = ((sums_FD[edges[1:]] - sums_FD[edges[:-1]]) ** 2).sum(axis=1) / lengths
        scatter = (squares - float(explained.sum())) / frames
        costs[count] = scatter + penalty * scale * count / frames * (math.log(frames / count) + 1)
    best = min(costs, key=lambda count: (costs[count], count))
    return [int(b) for b in search.segmentations_dict[best][:-1]] if best else []


def segment_kernel(track: ScoreTrack, min_frames: int = 2, penalty: float = 2.0) -> list[Segment]:
    """Kernel temporal segmentation of the picture features (of the scores where the track has none)."""
    if track.features_FD is not None:
        values_FD = np.asarray(track.features_FD, dtype=np.float64)
        values_FD = values_FD / np.maximum(np.linalg.norm(values_FD, axis=1, keepdims=True), 1e-12)
    else:
        values_FD = np.column_stack([track.informative_F, track.relevance_F]).astype(np.float64)
    return _segments(track, kernel_boundaries(values_FD, min_frames, penalty), "kernel")


def segment_uniform(track: ScoreTrack, seconds: float = 2.0) -> list[Segment]:
    """Shots of `seconds` each, cut at scored frames; the rest at the end is a shot of its own."""
    if not seconds > 0:
        raise ValueError(f"a shot must last more than 0 seconds, not {seconds}")
    shot_F = np.floor(np.asarray(track.times_F, dtype=np.float64) / seconds + 1e-9).astype(np.int64)
    return _segments(track, [int(i) for i in np.flatnonzero(np.diff(shot_F)) + 1], "uniform")


def split_long(track: ScoreTrack, segments: list[Segment], max_seconds: float) -> list[Segment]:
    """Segments longer than `max_seconds` are cut into equal parts at scored frames, so that a summary has something that fits."""
    parts: list[Segment] = []
    for segment in segments:
        pieces = min(segment.last - segment.first, math.ceil(segment.seconds / max_seconds - 1e-9))
        if pieces <= 1:
            parts.append(segment)
            continue
        edges = np.linspace(segment.first, segment.last, pieces + 1).round().astype(int)
        parts += [track.segment(int(a), int(b), segment.reason, segment.decided_at) for a, b in zip(edges, edges[1:]) if b > a]
    return parts


def _segments(track: ScoreTrack, boundaries: list[int], reason: str) -> list[Segment]:
    edges = [0, *boundaries, len(track)]
    return [track.segment(a, b, reason) for a, b in zip(edges, edges[1:])]
