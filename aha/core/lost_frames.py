"""Frames of a stream that came while the model was busy (`aha score --clock wall`): what stands for their scores, and how many there are.

A prediction says them as "clock": {"speed", "arrived", "lost_times" [L], "lost_frames" [L]}, and when a scored frame's numbers were known
as "decided" (default its "time"). A lost frame has no score. Where an evaluation needs one it has that of the last frame that was decided
by then, and before the first decision 0 of every head: nothing that lies in the future.

N = rows (scored frames), L = lost frames, A = N + L = frames that arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aha.errors import UserError

ROUNDING = 1e-6  # seconds: a decision so little after a frame's time was there at it


@dataclass(frozen=True, slots=True)
class Held:
    """All frames that arrived, in order of time. times [A]; source [A]: the row whose scores each has, -1 before the first decision;
    order [A]: places in (rows, lost frames) one after the other."""

    times: np.ndarray
    source: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, times: np.ndarray, decided: np.ndarray, lost: np.ndarray, where: str) -> Held:
        """times, decided [N], lost [L] in seconds. Raises UserError, with `where`, for a time that is there twice."""
        both = np.concatenate([times, lost])
        order = np.argsort(both, kind="stable")
        if (again := np.diff(both[order]) <= 0).any():
            second = both[order][int(np.argmax(again)) + 1]
            raise UserError(f"{where}: the frame at {second:g} s is listed twice in debug_data and clock's lost_times; repair the entry.")
        known = np.searchsorted(np.maximum.accumulate(decided), lost + ROUNDING, side="right") - 1
        return cls(both[order], np.concatenate([np.arange(len(times)), known])[order], order)

    def scores(self, rows_N: np.ndarray) -> np.ndarray:
        """Scores of the rows -> of all frames [A]."""
        return np.where(self.source >= 0, rows_N[self.source], 0.0)

    def merged(self, rows_N: np.ndarray, lost_L: np.ndarray) -> np.ndarray:
        """What is known of rows and lost frames alike [A]."""
        return np.concatenate([rows_N, lost_L])[self.order]


@dataclass
class Count:
    """Frames of a whole prediction file."""

    arrived: int = 0
    lost: int = 0
    speeds: list[str] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one prediction's frames; one without a clock changes nothing."""
        clock = record.get("clock")
        if isinstance(clock, dict) and isinstance(clock.get("lost_times"), list):
            lost = len(clock["lost_times"])
            rows = record.get("debug_data")
            arrived = clock.get("arrived")
            self.lost += lost
            self.arrived += arrived if isinstance(arrived, int) else lost + (len(rows) if isinstance(rows, list) else 0)
            if (speed := str(clock.get("speed"))) not in self.speeds:
                self.speeds.append(speed)

    def summary(self) -> dict[str, Any] | None:
        """The entry `clock` of a metrics file; None where no prediction has a clock."""
        return {"speed": ", ".join(self.speeds), "arrived": self.arrived, "lost": self.lost} if self.speeds else None


def may_have_clock(path: Path) -> bool:
    """A quick look whether a prediction file may hold clocks: most hold none, and parsing a large one to find that out takes seconds."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return any(b'"clock"' in line for line in file)


def shown(clock: Mapping[str, Any]) -> str:
    """ "wall clock at 5fps: 120 of 400 frames lost (30.0%)"."""
    share = clock["lost"] / clock["arrived"] if clock["arrived"] else 0.0
    return f"wall clock at {clock['speed']}: {clock['lost']} of {clock['arrived']} frames lost ({share:.1%})"
