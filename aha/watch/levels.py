"""What counts: which segments of a stream are highlights, learnt from the stream's own segments, without labels.

    judge = Judge(JudgeSettings(max_alerts_per_hour=4))
    for verdict in judge.segment(candidate): ...     # a segment has ended
    for verdict in judge.tick(time): ...             # a frame has gone by: what was held back may be due
    for verdict in judge.finish(time): ...           # the stream is over

Segments are ranked against segments: those of the last hours of this stream (HISTORY of them). The level from which one is a highlight is

    highlight_score   if given, this
    highlight_share   if given, the score that this top share of the segments reaches
    otherwise         the middle between the ordinary and the best of them (10% quantile and maximum). Where the two are less than CONTRAST
                      apart nothing stands out, and nothing is a highlight.

The first MIN_SEGMENTS wait until there are so many to compare: then all are judged. `max_alerts_per_hour` N raises the level to the
quantile that gives N alerts an hour at the stream's own rate of segments, and no hour of the stream ever has more than N. Under a budget a
highlight of which the model is less sure than of most segments (uncertainty above their median) is held for `wait_seconds`: a better one
that ends meanwhile takes its place.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aha.errors import UserError

HISTORY = 3600  # segments that others are ranked against
MIN_SEGMENTS = 4
CONTRAST = 0.1  # twice the noise of scores (aha.highlights.online.SCORE_NOISE is its variance)
ORDINARY = 0.1  # quantile
HOUR = 3600.0


@dataclass(frozen=True)
class JudgeSettings:
    """See above. wait_seconds: how long an unsure highlight is held."""

    highlight_share: float | None = None
    highlight_score: float | None = None
    max_alerts_per_hour: float | None = None
    wait_seconds: float = 2.5

    def __post_init__(self) -> None:
        if self.highlight_share is not None and not 0 < self.highlight_share <= 1:
            raise UserError(f"highlight_share is a share above 0 and at most 1, not {self.highlight_share}.")
        if self.highlight_score is not None and not math.isfinite(self.highlight_score):
            raise UserError(f"highlight_score must be a finite number, not {self.highlight_score}.")
        if self.max_alerts_per_hour is not None and not 0 < self.max_alerts_per_hour < math.inf:
            raise UserError(f"max_alerts_per_hour must be above 0, not {self.max_alerts_per_hour}.")


@dataclass(frozen=True)
class Candidate:
    """A segment that has ended. uncertainty: mean variance of its frames. about: what its events say."""

    end: float  # seconds of the stream
    seconds: float
    score: float
    uncertainty: float | None
    about: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    candidate: Candidate
    level: float


class Judge:
    """The state of one stream."""

    def __init__(self, settings: JudgeSettings):
        self.settings = settings
        self.over_budget = 0  # highlights that the budget left out
        self._past: deque[tuple[float, float, float | None]] = deque(maxlen=HISTORY)  # seconds, score, uncertainty
        self._early: list[Candidate] = []
        self._early_is_over = settings.highlight_score is not None
        self._held: tuple[Candidate, float] | None = None  # and the moment at which it is due
        self._alerts: deque[float] = deque()  # moments of the last ones

    def segment(self, candidate: Candidate, now: float) -> list[Verdict]:
        """A segment has ended, as was decided at `now` (seconds of the stream)."""
        self._past.append((candidate.seconds, candidate.score, candidate.uncertainty))
        if not self._early_is_over:
            self._early.append(candidate)
            if len(self._early) < MIN_SEGMENTS:
                return []
        return self._judge_early(now) if self._early else self._judge(candidate, now)

    def tick(self, now: float) -> list[Verdict]:
        if self._held is None or now < self._held[1]:
            return []
        candidate, self._held = self._held[0], None
        return self._alert(candidate, now)

    def finish(self, now: float) -> list[Verdict]:
        verdicts = self._judge_early(now)
        if self._held is None:
            return verdicts
        candidate, self._held = self._held[0], None
        return [*verdicts, *self._alert(candidate, now)]

    def level(self) -> float | None:
        """The score from which a segment is a highlight; None: nothing stands out."""
        settings = self.settings
        scores = np.array([score for _, score, _ in self._past])
        if settings.highlight_score is not None:
            level = settings.highlight_score
        elif settings.highlight_share is not None:
            level = float(np.quantile(scores, 1 - settings.highlight_share))
        else:
            ordinary, best = float(np.quantile(scores, ORDINARY)), float(scores.max())
            if best - ordinary < CONTRAST:
                return None
            level = (ordinary + best) / 2
        if settings.max_alerts_per_hour is not None and len(scores) >= MIN_SEGMENTS:
            an_hour = len(scores) / max(sum(seconds for seconds, _, _ in self._past), 1e-9) * HOUR
            level = max(level, float(np.quantile(scores, 1 - min(1.0, settings.max_alerts_per_hour / an_hour))))
        return level

    def _judge_early(self, now: float) -> list[Verdict]:
        early, self._early, self._early_is_over = self._early, [], True
        return [verdict for candidate in early for verdict in self._judge(candidate, now)]

    def _judge(self, candidate: Candidate, now: float) -> list[Verdict]:
        level = self.level()
        if level is None or candidate.score < level:
            return []
        if self.settings.max_alerts_per_hour is None:
            return [Verdict(candidate, level)]
        if self._held is not None:
            held, due = self._held
            self.over_budget += 1
            if candidate.score <= held.score:
                return []
            if not self._unsure(candidate):
                self._held = None
                return self._alert(candidate, now)
            self._held = candidate, due
            return []
        if self._unsure(candidate):
            self._held = candidate, now + self.settings.wait_seconds
            return []
        return self._alert(candidate, now)

    def _unsure(self, candidate: Candidate) -> bool:
        past = [uncertainty for _, _, uncertainty in self._past if uncertainty is not None]
        return candidate.uncertainty is not None and bool(past) and candidate.uncertainty > float(np.median(past))

    def _alert(self, candidate: Candidate, now: float) -> list[Verdict]:
        budget = self.settings.max_alerts_per_hour
        if budget is not None:
            span, most = HOUR * max(1.0, 1 / budget), max(1, math.floor(budget))
            while self._alerts and self._alerts[0] <= now - span:
                self._alerts.popleft()
            if len(self._alerts) >= most:
                self.over_budget += 1
                return []
            self._alerts.append(now)
        return [Verdict(candidate, self.level() or candidate.score)]

    # ---- suspend and resume ----

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "over_budget": self.over_budget,
            "past": [list(entry) for entry in self._past],
            "early": [asdict(candidate) for candidate in self._early],
            "early_is_over": self._early_is_over,
            "held": None if self._held is None else [asdict(self._held[0]), self._held[1]],
            "alerts": list(self._alerts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.over_budget, self._early_is_over = state["over_budget"], state["early_is_over"]
        self._past = deque((tuple(entry) for entry in state["past"]), maxlen=HISTORY)
        self._early = [Candidate(**values) for values in state["early"]]
        self._held = None if state["held"] is None else (Candidate(**state["held"][0]), state["held"][1])
        self._alerts = deque(state["alerts"])
