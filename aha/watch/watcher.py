"""What happens in a stream, as events, the moment it is decided. One frame at a time, constant memory.

    watcher = Watcher(model, "someone falls", WatchSettings())
    for frame in frames:
        for event in watcher.push(frame.image_CHW, frame.time):
            print(json.dumps(event))

An event is a dict with "event" and "time" (seconds of the stream at which it was decided, never falling). K tokens of a frame.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aha.api import Highlighter, checked_query
from aha.core.fusion import Fusion
from aha.core.heads import SCORES
from aha.highlights.online import Boundary, OnlineSegmenter, OnlineSettings
from aha.video.reader import Frame

HISTORY = 3600  # scored frames of which the highlight level is taken
BEST = 5  # highlights in the summary
OPEN_FRAMES = 4096  # frames of the open segment that are kept one by one; older ones as sums


@dataclass(frozen=True)
class WatchSettings:
    """When something is a highlight. Segments: see OnlineSettings."""

    online: OnlineSettings = field(default_factory=OnlineSettings)
    fusion: Fusion = field(default_factory=Fusion)
    highlight_share: float = 0.15  # a segment is a highlight if its mean score is in this top share of the last hour's frames ...
    highlight_score: float | None = None  # ... or, if given, at least this
    min_history: int = 20  # frames before the share means anything
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
    """The state of one watched stream. session_settings: cache, window, policy (when to speak; see aha.streaming.policies)."""

    def __init__(self, model: Highlighter, query: str | None, settings: WatchSettings, **session_settings: Any):
        self.model, self.settings = model, settings
        query = checked_query(query) if query is not None else None
        self.session = model.stream(query, frame_fps=1 / settings.frame_seconds, **session_settings)
        self.segmenter = OnlineSegmenter(settings.online)
        self.frames = self.segments = self.highlights = self.said = 0
        self.time = 0.0
        self._rows: deque[_Row] = deque()
        self._old_count, self._old_sum, self._old_start, self._old_best = 0, 0.0, 0.0, None
        self._levels: deque[float] = deque(maxlen=HISTORY)
        self._best: list[tuple[float, int, dict[str, Any]]] = []

    def push(self, image_CHW: np.ndarray, time: float) -> list[dict[str, Any]]:
        """uint8 [3, S, S] at `time` seconds -> what was decided at this frame."""
        (scored,) = self.model.push(self.session, [Frame(image_CHW, self.frames, time, time)])
        heads = [scored.row.get(name) for name in SCORES]
        row = _Row(self.frames, time, float(self.settings.fusion(*heads)), *heads)
        self._rows.append(row)
        self._levels.append(row.fused)
        self.frames += 1
        self.time = time
        events = []
        boundary = self.segmenter.push(*heads, scored.feature_H)
        if boundary is not None:
            events += self._close(boundary)
        if len(self._rows) > OPEN_FRAMES:
            self._fold(self._rows.popleft())
        if scored.reply is not None:
            events.append(self._said(scored.reply))
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
        """The stream is over: the open segment, then the summary."""
        rest = self.segmenter.finish()
        events = []
        if rest is not None:
            events = self._close(Boundary(*rest, self.frames - 1, "end of stream"))
        best = [event for _, _, event in sorted(self._best, reverse=True)]
        summary = {"frames": self.frames, "segments": self.segments, "highlights": self.highlights, "said": self.said, "best": best}
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
        score = (self._old_sum + sum(row.fused for row in rows)) / (self._old_count + len(rows))
        self._old_count, self._old_sum, self._old_best = 0, 0.0, None
        self.segments += 1
        span = {"start": start, "end": end, "score": score}
        why = {"informative": best.informative, "relevance": best.relevance, "uncertainty": best.uncertainty}
        events = [{"event": "segment", "time": self.time, **span, "reason": boundary.reason, "why": why}]
        level = self._level()
        if level is not None and score >= level:
            self.highlights += 1
            highlight = {"event": "highlight", "time": self.time, **span, "peak_time": best.time, "level": level, "why": why}
            events.append(highlight)
            kept = {key: highlight[key] for key in ("start", "end", "score", "peak_time")}
            heapq.heappush(self._best, (score, -self.highlights, kept))
            if len(self._best) > BEST:
                heapq.heappop(self._best)
        return events

    def _level(self) -> float | None:
        """The score from which a segment is a highlight; None while too little was seen."""
        if self.settings.highlight_score is not None:
            return self.settings.highlight_score
        if len(self._levels) < self.settings.min_history:
            return None
        return float(np.quantile(self._levels, 1 - self.settings.highlight_share))
