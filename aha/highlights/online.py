"""Online segmentation: a boundary is set the moment enough has been seen.

    segmenter = OnlineSegmenter(OnlineSettings(information_threshold=4.0))
    for scores in stream:
        boundary = segmenter.push(scores.informative, scores.relevance, scores.uncertainty, feature)

A segment ends when one of two things happens:
- information: the informative scores of its frames add up to a threshold (MMDuet, Wang et al. 2024, speaks by the same rule);
- change: the evidence is no longer what it was. Over the last W frames of the segment every split into "before" and "after" is tried; the
  statistic is the generalised likelihood ratio of a step in the mean, n_before n_after / n * |difference of means|^2 over the variance
  (Basseville and Nikiforov, Detection of Abrupt Changes, 1993, section 2.4), for the scores and for the pooled picture features apart.
While the model is unsure (variance above a threshold) a due boundary is held back, at most `max_wait_frames` frames.

Causal by construction: `push` sees one frame, and what it returned is never taken back. Memory is bounded by the window, and so is time:
means and their distances follow from the products of all pairs of the window, of which a new frame adds one row.

F frames, W window, S splits of it, D feature width.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from aha.highlights.timeline import ScoreTrack, Segment

SCORE_NOISE = 0.05**2  # variance below which wiggles of the scores mean nothing
FEATURE_NOISE = 0.005  # the same for pictures: squared distance of unit vectors
MIN_SIDE = 2  # frames on either side of a change: one odd frame is none


@dataclass(frozen=True)
class OnlineSettings:
    """When a segment ends. Counts are in scored frames; thresholds may be None = never for that reason."""

    information_threshold: float | None = 6.0  # sum of informative scores
    change_threshold: float | None = 12.0  # likelihood ratio statistic, in units of the noise variance
    min_frames: int = 2  # no segment is shorter (but the last one of a stream)
    uncertainty_wait_threshold: float | None = None  # hold a due boundary while the variance is above it
    max_wait_frames: int = 5  # but not longer than this
    window: int = 32  # frames that the change test looks back

    def __post_init__(self) -> None:
        for name in ("information_threshold", "change_threshold", "uncertainty_wait_threshold"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.min_frames < 1 or self.max_wait_frames < 0 or self.window < 2 * MIN_SIDE:
            raise ValueError(f"min_frames must be >= 1, max_wait_frames >= 0 and window >= {2 * MIN_SIDE}")


@dataclass(frozen=True)
class Boundary:
    """A segment ended: it covers frames [first, last), as was decided at frame `decided_at` for `reason`."""

    first: int
    last: int
    decided_at: int
    reason: str  # "information" or "change"


class OnlineSegmenter:
    """Feed frames with `push`, in order; it returns a Boundary when a segment has ended. `finish` gives the open rest."""

    def __init__(self, settings: OnlineSettings | None = None):
        self.settings = settings or OnlineSettings()
        self.frame = -1  # index of the newest frame
        self.first = 0  # of the open segment
        self._informative: deque[float] = deque(maxlen=self.settings.window)
        self._scores, self._features = Evidence(self.settings.window), Evidence(self.settings.window)
        self._seen = 0.0  # sum of informative scores in the open segment
        self._due: tuple[str, int] | None = None  # reason, first frame of the next segment
        self._waited = 0

    @property
    def waiting(self) -> bool:
        """A boundary is due and held back because the model is unsure."""
        return self._due is not None

    def push(
        self, informative: float, relevance: float, uncertainty: float | None = None, feature_D: np.ndarray | None = None
    ) -> Boundary | None:
        """Take one frame. Returns the boundary that it decides, or None."""
        settings = self.settings
        self.frame += 1
        self._seen += informative
        self._informative.append(informative)
        self._scores.append(np.array([informative, relevance], dtype=np.float64))
        if feature_D is not None:
            feature_D = np.asarray(feature_D, dtype=np.float64)
            self._features.append(feature_D / max(float(np.linalg.norm(feature_D)), 1e-12))

        length = self.frame + 1 - self.first
        if settings.information_threshold is not None and self._seen >= settings.information_threshold and length >= settings.min_frames:
            self._due = ("information", self.frame + 1)  # while it is held the segment grows
        elif self._due is None and (split := self._change()) is not None:
            self._due = ("change", split)
        if self._due is None:
            return None
        wait = settings.uncertainty_wait_threshold
        unsure = wait is not None and uncertainty is not None and uncertainty > wait
        if unsure and self._waited < settings.max_wait_frames:
            self._waited += 1
            return None
        reason, next_first = self._due
        boundary = Boundary(self.first, next_first, self.frame, reason)
        self._open(next_first)
        return boundary

    def finish(self) -> tuple[int, int] | None:
        """Frames [first, last) of the segment that is still open, None if there are none. The stream is over."""
        last = self.frame + 1
        return (self.first, last) if last > self.first else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers, as plain values."""
        return {
            "frame": self.frame, "first": self.first, "seen": self._seen, "due": self._due, "waited": self._waited,
            "informative": list(self._informative), "scores": [value.tolist() for value in self._scores.values],
            "features": [value.tolist() for value in self._features.values], "score_steps": list(self._scores.steps),
            "feature_steps": list(self._features.steps),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.frame, self.first, self._seen, self._waited = (state[name] for name in ("frame", "first", "seen", "waited"))
        self._due = None if state["due"] is None else tuple(state["due"])
        self._informative.extend(state["informative"])
        self._scores.go_on(state["scores"], state["score_steps"])
        self._features.go_on(state["features"], state["feature_steps"])

    def _open(self, first: int) -> None:
        """Start the next segment at frame `first`; frames from there on that were seen already belong to it."""
        keep = self.frame + 1 - first
        while len(self._informative) > keep:
            self._informative.popleft()
        self._scores.keep(keep)
        self._features.keep(keep)
        self._seen = sum(self._informative)
        self.first = first
        self._due, self._waited = None, 0

    def _change(self) -> int | None:
        """First frame of the new evidence, if the open segment holds an old and a new one."""
        # The new segment starts at the split, so frames of the window before `min_frames` of the open segment are no candidates.
        best, split, threshold = 0.0, None, self.settings.change_threshold
        if threshold is None:
            return None
        for evidence, floor in ((self._scores, SCORE_NOISE), (self._features, FEATURE_NOISE)):
            if len(evidence.values) < 2 * MIN_SIDE:
                continue
            start = self.frame + 1 - len(evidence.values)
            statistic = step_statistic(evidence.products_WW, max(floor, statistics.median(evidence.steps) / 2))
            too_short = max(0, self.first + self.settings.min_frames - start - MIN_SIDE)
            statistic = statistic[too_short:]
            if len(statistic) and statistic.max() > best:
                best = float(statistic.max())
                split = start + MIN_SIDE + too_short + int(statistic.argmax())
        return split if best > threshold else None


class Evidence:
    """The last vectors of the open segment, at most `window` of them, and the products of all pairs. steps: squared distances from one
    vector to the next, those of earlier segments included."""

    def __init__(self, window: int):
        self.window = window
        self.values: deque[np.ndarray] = deque()
        self.steps: deque[float] = deque(maxlen=4 * window)
        self._products = np.zeros((window, window))

    @property
    def products_WW(self) -> np.ndarray:
        return self._products[: len(self.values), : len(self.values)]

    def append(self, value_D: np.ndarray) -> None:
        if self.values:
            step_D = value_D - self.values[-1]
            self.steps.append(float(step_D @ step_D))
        self._add(value_D)

    def keep(self, count: int) -> None:
        """The newest `count` of them stay."""
        if (gone := len(self.values) - count) <= 0:
            return
        for _ in range(gone):
            self.values.popleft()
        self._products[:count, :count] = self._products[gone : gone + count, gone : gone + count].copy()

    def go_on(self, values: list[list[float]], steps: list[float]) -> None:
        """With what an earlier one held."""
        for value in values:
            self._add(np.array(value))
        self.steps.extend(steps)

    def _add(self, value_D: np.ndarray) -> None:
        self.keep(self.window - 1)
        self.values.append(value_D)
        last = len(self.values) - 1
        self._products[last, : last + 1] = self._products[: last + 1, last] = [other_D @ value_D for other_D in self.values]


def step_statistic(products_WW: np.ndarray, noise: float) -> np.ndarray:
    """How well a step explains W vectors, of which the products of all pairs are given, for each split with MIN_SIDE of them or more on
    either side: [W, W] -> [S], S = W - 2 MIN_SIDE + 1.

    n_before n_after / n * |mean after - mean before|^2 / variance; the variance is that within the two sides, at least `noise`
    (half the usual squared step from frame to frame). A slow drift makes the two sides differ as well, but no jump between them: so the
    statistic is at most that of the two frames on either side of the split, which for an even drift is 8.
    """
    count = len(products_WW)
    before_S = np.arange(MIN_SIDE, count - MIN_SIDE + 1)
    after_S = count - before_S
    sums_WW = products_WW.cumsum(axis=0).cumsum(axis=1)  # [i, j]: of the sum of the first i + 1 vectors and that of the first j + 1
    first_S = sums_WW.diagonal()[before_S - 1]  # |sum before|^2
    both_S = sums_WW[before_S - 1, -1] - first_S  # (sum before) (sum after)
    last_S = sums_WW[-1, -1] - first_S - 2 * both_S  # |sum after|^2
    apart_S = first_S / before_S**2 - 2 * both_S / (before_S * after_S) + last_S / after_S**2
    within_S = products_WW.trace() - first_S / before_S - last_S / after_S
    step_S = before_S * after_S / count * apart_S / np.maximum(within_S / max(count - 2, 1), noise)
    # the same of the two frames on either side: from each frame to the second after it, and two such ways together
    ways_VV = products_WW[2:, 2:] - products_WW[2:, :-2] - products_WW[:-2, 2:] + products_WW[:-2, :-2]
    lengths_V = ways_VV.diagonal()
    jump_S = (lengths_V[:-1] + 2 * ways_VV.diagonal(1) + lengths_V[1:]) / 4 / noise
    return np.minimum(step_S, jump_S)


def segment_online(track: ScoreTrack, settings: OnlineSettings | None = None) -> list[Segment]:
    """The segments that an online run over the whole track would have given; the last one is the open rest ("end of stream")."""
    segmenter = OnlineSegmenter(settings)
    segments = []
    for frame in range(len(track)):
        boundary = segmenter.push(
            float(track.informative_F[frame]),
            float(track.relevance_F[frame]),
            None if track.uncertainty_F is None else float(track.uncertainty_F[frame]),
            None if track.features_FD is None else track.features_FD[frame],
        )
        if boundary is not None:
            segments.append(track.segment(boundary.first, boundary.last, boundary.reason, boundary.decided_at))
    rest = segmenter.finish()
    if rest is not None:
        segments.append(track.segment(*rest, "end of stream", len(track) - 1))
    elif segments:  # the last frame closed a segment: it ends with the video
        segments[-1] = track.segment(segments[-1].first, len(track), segments[-1].reason, segments[-1].decided_at)
    return segments
