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

Causal by construction: `push` sees one frame, and what it returned is never taken back. Memory is bounded by the window.

F frames, W window, D feature width.
"""

from __future__ import annotations

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
        self._scores: deque[np.ndarray] = deque(maxlen=self.settings.window)
        self._features: deque[np.ndarray] = deque(maxlen=self.settings.window)
        self._score_steps: deque[float] = deque(maxlen=4 * self.settings.window)
        self._feature_steps: deque[float] = deque(maxlen=4 * self.settings.window)
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
        _append(self._scores, self._score_steps, np.array([informative, relevance], dtype=np.float64))
        if feature_D is not None:
            feature_D = np.asarray(feature_D, dtype=np.float64)
            _append(self._features, self._feature_steps, feature_D / max(float(np.linalg.norm(feature_D)), 1e-12))

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
            "informative": list(self._informative), "scores": [value.tolist() for value in self._scores],
            "features": [value.tolist() for value in self._features], "score_steps": list(self._score_steps),
            "feature_steps": list(self._feature_steps),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.frame, self.first, self._seen, self._waited = (state[name] for name in ("frame", "first", "seen", "waited"))
        self._due = None if state["due"] is None else tuple(state["due"])
        self._informative.extend(state["informative"])
        self._scores.extend(np.array(value) for value in state["scores"])
        self._features.extend(np.array(value) for value in state["features"])
        self._score_steps.extend(state["score_steps"])
        self._feature_steps.extend(state["feature_steps"])

    def _open(self, first: int) -> None:
        """Start the next segment at frame `first`; frames from there on that were seen already belong to it."""
        keep = self.frame + 1 - first
        for values in (self._informative, self._scores, self._features):
            while len(values) > keep:
                values.popleft()
        self._seen = sum(self._informative)
        self.first = first
        self._due, self._waited = None, 0

    def _change(self) -> int | None:
        """First frame of the new evidence, if the open segment holds an old and a new one."""
        # The new segment starts at the split, so frames of the window before `min_frames` of the open segment are no candidates.
        best, split, threshold = 0.0, None, self.settings.change_threshold
        if threshold is None:
            return None
        for values, steps, floor in ((self._scores, self._score_steps, SCORE_NOISE), (self._features, self._feature_steps, FEATURE_NOISE)):
            if len(values) < 2 * MIN_SIDE:
                continue
            start = self.frame + 1 - len(values)
            statistic = step_statistic(np.stack(values), max(floor, float(np.median(steps)) / 2))
            too_short = max(0, self.first + self.settings.min_frames - start - MIN_SIDE)
            statistic = statistic[too_short:]
            if len(statistic) and statistic.max() > best:
                best = float(statistic.max())
                split = start + MIN_SIDE + too_short + int(statistic.argmax())
        return split if best > threshold else None


def _append(values: deque[np.ndarray], steps: deque[float], value: np.ndarray) -> None:
    if values:
        steps.append(float(((value - values[-1]) ** 2).sum()))
    values.append(value)


def step_statistic(values_WD: np.ndarray, noise: float) -> np.ndarray:
    """How well a step explains the values, for each split with MIN_SIDE rows or more on either side: [W, D] -> [W - 2 MIN_SIDE + 1].

    n_before n_after / n * |mean after - mean before|^2 / variance; the variance is that within the two sides, at least `noise`
    (half the usual squared step from frame to frame). A slow drift makes the two sides differ as well, but no jump between them: so the
    statistic is at most that of the two frames on either side of the split, which for an even drift is 8.
    """
    count = len(values_WD)
    before = np.arange(MIN_SIDE, count - MIN_SIDE + 1)
    after = count - before
    sums_SD = np.cumsum(values_WD, axis=0)[before - 1]
    mean_before_SD = sums_SD / before[:, None]
    mean_after_SD = (values_WD.sum(axis=0) - sums_SD) / after[:, None]
    squares = float((values_WD**2).sum())
    within = squares - before * (mean_before_SD**2).sum(axis=1) - after * (mean_after_SD**2).sum(axis=1)
    variance = np.maximum(within / max(count - 2, 1), noise)
    step_S = before * after / count * ((mean_after_SD - mean_before_SD) ** 2).sum(axis=1) / variance
    pairs_PD = (values_WD[1:] + values_WD[:-1]) / 2  # mean of each frame and the next; MIN_SIDE = 2
    jump_S = ((pairs_PD[MIN_SIDE:] - pairs_PD[:-MIN_SIDE]) ** 2).sum(axis=1) / noise
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
