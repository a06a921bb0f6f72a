"""The types that the rest shares: the scores of one video for one query, a segment of it, a highlight.

F = scored frames. Time is in seconds from the first frame of the video; a segment covers scored frames [first, last), seconds [start, end).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from aha.core.heads import SCORES


@dataclass(frozen=True)
class ScoreTrack:
    """What the model says of each scored frame of one video for one query."""

    times_F: np.ndarray  # seconds, ascending
    frames_F: np.ndarray  # index in the original video
    informative_F: np.ndarray  # in (0, 1)
    relevance_F: np.ndarray  # in (0, 1)
    uncertainty_F: np.ndarray | None  # variance; None where the model has no such head (MMDuet)
    duration: float  # seconds of the whole video
    features_FD: np.ndarray | None = None  # one pooled vector per frame, for change of evidence and for diversity

    def __post_init__(self) -> None:
        count = len(self.times_F)
        if count == 0:
            raise ValueError("a score track needs at least one frame")
        for name in ("frames_F", "informative_F", "relevance_F", "uncertainty_F", "features_FD"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{name} has {len(values)} rows for {count} frames")
        if count > 1 and (np.diff(self.times_F) <= 0).any():
            raise ValueError("times_F must ascend")

    @classmethod
    def of_rows(
        cls, rows: Sequence[Mapping[str, float]], frames: Sequence[int] | np.ndarray, duration: float, features_FD: np.ndarray | None = None
    ) -> ScoreTrack:
        """rows: `debug_data` of a prediction file."""
        columns = {name: np.array([row[name] for row in rows]) for name in ("time", *SCORES) if name in rows[0]}
        return cls(
            columns["time"], np.array(frames), columns["informative_score"], columns["relevance_score"], columns.get("uncertainty_score"),
            duration, features_FD,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.times_F)

    def segment(self, first: int, last: int, reason: str = "", decided_at: int | None = None) -> Segment:
        """The segment of scored frames [first, last). The first one of a video starts at 0, the last one ends with the video."""
        start = 0.0 if first == 0 else float(self.times_F[first])
        end = self.duration if last >= len(self) else float(self.times_F[last])
        return Segment(first, last, start, max(end, start), reason, decided_at)


@dataclass(frozen=True)
class Segment:
    """Scored frames [first, last), seconds [start, end)."""

    first: int
    last: int
    start: float
    end: float
    reason: str = ""  # why it ended: "information", "change", "end of stream"; offline: how it was made
    decided_at: int | None = None  # scored frame at which its end was decided; None: offline

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Highlight:
    """One chosen moment. The three head values are those of its best frame."""

    rank: int  # 1 = best
    start: float  # seconds
    end: float
    score: float  # mean fused score over its frames
    peak_time: float  # seconds, of its best frame
    informative: float
    relevance: float
    uncertainty: float | None
    sentence: str | None = None  # said by the model, where generation is on
    first: int = field(default=0, repr=False)  # scored frames [first, last)
    last: int = field(default=0, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The element of highlights.json: start, end, score, rank and why (the head values, the sentence)."""
        values = asdict(self)
        why = {name: values.pop(name) for name in ("informative", "relevance", "uncertainty", "sentence")}
        values.pop("first"), values.pop("last")
        return {**values, "why": why}
