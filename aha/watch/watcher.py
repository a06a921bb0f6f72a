"""What happens in a stream, as events, the moment it is decided. One scored frame at a time, constant memory.

    watcher = Watcher(session, WatchSettings())
    for scored in live.step():
        for event in watcher.hear(scored.time, scored.scores, scored.feature_H):
            print(json.dumps(event))

An event is a dict with "event" and "time" (seconds of the stream at which it was decided, never falling). H width of the decoder.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from aha.api import checked_query
from aha.core.fusion import Fusion
from aha.highlights.online import Boundary, OnlineSegmenter, OnlineSettings
from aha.watch.levels import Candidate, Judge, JudgeSettings, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from aha.models.model import FrameScores
    from aha.streaming import Session

BEST = 5  # segments in the summary
OPEN_FRAMES = 4096  # frames of the open segment that are kept one by one; older ones as sums


@dataclass(frozen=True)
class WatchSettings:
    """How a stream is cut (OnlineSettings), and which segments count (JudgeSettings)."""

    online: OnlineSettings = field(default_factory=OnlineSettings)
    fusion: Fusion = field(default_factory=Fusion)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    frame_seconds: float = 0.5  # between two scored frames: how long the last one of a segment is taken to last


@dataclass(frozen=True)
class _Row:
    """One scored frame of the open segment."""

    frame: int
    time: float
    fused: float
    informative: float
    relevance: float
    uncertainty: float | None


class Watcher:
    """The state of one watched stream. It hears of every frame that went through `session`."""

    def __init__(self, session: Session, settings: WatchSettings):
        self.session, self.settings = session, settings
        self.segmenter, self.judge = OnlineSegmenter(settings.online), Judge(settings.judge)
        self.frames = self.segments = self.highlights = self.said = 0
        self.time = self.score = 0.0  # of the last frame
        self.heads: tuple[float | None, ...] = ()  # likewise: informative, relevance, uncertainty
        self._rows: deque[_Row] = deque()
        self._old_count, self._old_sum, self._old_unsure, self._old_start = 0, 0.0, 0.0, 0.0
        self._old_best: _Row | None = None
        self._best: list[tuple[float, int, dict[str, Any]]] = []

    def hear(self, time: float, scores: FrameScores, feature_H: Tensor) -> list[dict[str, Any]]:
        """The frame at `time` seconds has these scores, each [1] -> what was decided at this frame."""
        informative, relevance = float(scores.informative), float(scores.relevance)
        uncertainty = None if scores.uncertainty is None else float(scores.uncertainty)
        row = _Row(self.frames, time, float(self.settings.fusion(informative, relevance, uncertainty)), informative, relevance, uncertainty)
        self._rows.append(row)
        self.frames += 1
        self.time, self.score, self.heads = time, row.fused, (informative, relevance, uncertainty)
        events = []
        boundary = self.segmenter.push(informative, relevance, uncertainty, feature_H.numpy())
        if boundary is not None:
            events += self._close(boundary)
        events += self._highlights(self.judge.tick(time))
        if len(self._rows) > OPEN_FRAMES:
            self._fold(self._rows.popleft())
        if self.session.wants_to_speak:
            events.append(self._said(self.session.respond()))
        return events

    def ask(self, text: str) -> list[dict[str, Any]]:
        """A question typed while the stream runs: the model answers at once from what it has seen, and scores by it from now on."""
        text = checked_query(text)
        self.session.ask(text)
        events = [{"event": "question", "time": self.time, "text": text}]
        if self.frames:
            events.append(self._said(self.session.respond()))
        return events

    def finish(self) -> list[dict[str, Any]]:
        """The stream is over: the open segment, what was held back, then the summary with the best segments, highlights or not."""
        rest = self.segmenter.finish()
        events = []
        if rest is not None:
            events = self._close(Boundary(*rest, self.frames - 1, "end of stream"))
        events += self._highlights(self.judge.finish(self.time))
        best = [event for _, _, event in sorted(self._best, reverse=True)]
        summary = {"frames": self.frames, "segments": self.segments, "highlights": self.highlights, "said": self.said, "best": best}
        if self.settings.judge.max_alerts_per_hour is not None:
            summary["over_budget"] = self.judge.over_budget
        return [*events, {"event": "end", "time": self.time, **summary}]

    def _said(self, reply: str) -> dict[str, Any]:
        self.said += 1
        return {"event": "say", "time": self.time, "text": reply.strip()}

    def _fold(self, row: _Row) -> None:
        """A very long segment: its oldest frames are kept as sums."""
        if not self._old_count:
            self._old_start = row.time
        self._old_count += 1
        self._old_sum += row.fused
        self._old_unsure += row.uncertainty or 0.0
        if self._old_best is None or row.fused > self._old_best.fused:
            self._old_best = row

    def _close(self, boundary: Boundary) -> list[dict[str, Any]]:
        """A segment ended at frame `boundary.last`: frames from there on belong to the next."""
        rows = []
        while self._rows and self._rows[0].frame < boundary.last:
            rows.append(self._rows.popleft())
        end = self._rows[0].time if self._rows else self.time + self.settings.frame_seconds
        start = self._old_start if self._old_count else rows[0].time
        best = max([*rows, *([self._old_best] if self._old_best else [])], key=lambda row: row.fused)
        count = self._old_count + len(rows)
        score = (self._old_sum + sum(row.fused for row in rows)) / count
        unsure = None if best.uncertainty is None else (self._old_unsure + sum(row.uncertainty or 0.0 for row in rows)) / count
        self._old_count, self._old_sum, self._old_unsure, self._old_best = 0, 0.0, 0.0, None
        self.segments += 1
        span = {"start": start, "end": end, "score": score}
        why = {"informative": best.informative, "relevance": best.relevance, "uncertainty": best.uncertainty}
        heapq.heappush(self._best, (score, -self.segments, {**span, "peak_time": best.time}))
        if len(self._best) > BEST:
            heapq.heappop(self._best)
        candidate = Candidate(end, end - start, score, unsure, {**span, "peak_time": best.time, "why": why})
        segment = {"event": "segment", "time": self.time, **span, "reason": boundary.reason, "why": why}
        return [segment, *self._highlights(self.judge.segment(candidate, self.time))]

    def _highlights(self, verdicts: list[Verdict]) -> list[dict[str, Any]]:
        self.highlights += len(verdicts)
        events = []
        for verdict in verdicts:
            about = dict(verdict.candidate.about)
            why = about.pop("why")
            events.append({"event": "highlight", "time": self.time, **about, "level": verdict.level, "why": why})
        return events

    # ---- suspend and resume ----

    COUNTERS = ("frames", "segments", "highlights", "said", "time", "_old_count", "_old_sum", "_old_unsure", "_old_start")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on: plain values and the tensor of the session."""
        return {
            "session": self.session.state_dict(),
            "segmenter": self.segmenter.state_dict(),
            "judge": self.judge.state_dict(),
            "counters": {name: getattr(self, name) for name in self.COUNTERS},
            "rows": [asdict(row) for row in self._rows],
            "old_best": None if self._old_best is None else asdict(self._old_best),
            "best": [list(entry) for entry in self._best],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises UserError where the session was made with other settings."""
        self.session.load_state_dict(state["session"])
        self.segmenter.load_state_dict(state["segmenter"])
        self.judge.load_state_dict(state["judge"])
        for name, value in state["counters"].items():
            setattr(self, name, value)
        self._rows = deque(_Row(**values) for values in state["rows"])
        self._old_best = None if state["old_best"] is None else _Row(**state["old_best"])
        self._best = [tuple(entry) for entry in state["best"]]
