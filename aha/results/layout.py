"""What the tables and pages need to know of a benchmark, as plain data: its protocols, its headline columns, its baseline rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

# Metrics of the metrics files as people call them; the others have names that people use.
NAMES = {
    "kendall": "Kendall tau", "spearman": "Spearman rho", "map50": "mAP at 50%", "map15": "mAP at 15%", "f1": "key-shot F1",
    "f1_15": "F1 at 15%", "f1_max_over_users": "key-shot F1, best match", "f_max": "F1, best match", "f_avg": "F1, mean match",
    "top5": "top-5 hits", "top5_map": "top-5 mAP", "kendall_of_binary_summaries": "Kendall tau of summaries",
    "spearman_of_binary_summaries": "Spearman rho of summaries", "in_span_score": "in-span score", "turns": "replies", "por": "PoR",
    "micro": "accuracy", "macro": "mean accuracy of the tasks",
}  # fmt: skip
# Baseline rows of several benchmarks, as the metrics file calls them.
RANDOM = "random"  # random scores: {"mean", "sd", "runs"}
HUMAN = "human_vs_each_other_human"
WHOLE = "whole_video"  # answering "the whole video"


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

    def label(self, protocol: str, metric: str, subset: str = "") -> str:
        """A column as people read it: what is measured, in which unit if it is percent, by which protocol."""
        known = next(
            (h.label for h in self.headlines if h.place == (protocol, metric, subset)), NAMES.get(metric, metric.replace("_", " "))
        )
        unit = ", %" if self.is_percent(protocol, metric) and "%" not in known else ""
        return f"{known}{unit} ({' '.join(filter(None, (protocol, subset)))})"

    def is_percent(self, protocol: str, metric: str) -> bool:
        return any(metric in p.percent for p in self.protocols if p.name == protocol)
