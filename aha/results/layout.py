"""What the tables and pages need to know of a benchmark, as plain data: its protocols, its headline columns, its baseline rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

RANDOM = "random"  # the row of random scores: {"mean", "sd", "runs"}


@dataclass(frozen=True)
class Protocol:
    """One published way of counting.

    about: what it is and its source, as printed above its table. metrics: in the order of the tables (a metrics file may hold more).
    percent: those of them that are percent; the others are fractions.
    """

    name: str
    about: str
    metrics: tuple[str, ...]
    percent: tuple[str, ...] = ()

    def selected(self, metrics: Sequence[str]) -> Protocol:
        """The same protocol with only those of its metrics."""
        return replace(self, metrics=tuple(metric for metric in self.metrics if metric in metrics))


@dataclass(frozen=True)
class Headline:
    """One number that stands for a benchmark; `subset` where a protocol is reported on several sets of videos."""

    protocol: str
    metric: str
    label: str
    subset: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        return self.protocol, self.metric, self.subset


@dataclass(frozen=True)
class Layout:
    """title: of the tables. unit: what is counted. rows: baseline rows of the metrics file -> how they are called."""

    title: str
    protocols: tuple[Protocol, ...]
    headlines: tuple[Headline, ...]
    rows: Mapping[str, str] = field(default_factory=dict)
    unit: str = "videos"

    def is_percent(self, protocol: str, metric: str) -> bool:
        return any(metric in p.percent for p in self.protocols if p.name == protocol)
