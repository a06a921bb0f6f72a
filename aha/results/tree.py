"""From numbers per video to the metrics file: means, categories, confidence intervals, paired differences.

Every mean is over the videos on which a metric is defined, and says over how many ("videos"). V = videos of a column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aha.metrics.bootstrap import confidence_intervals
from aha.results.layout import Protocol


@dataclass(frozen=True)
class Column:
    """One metric over videos; `subset` is "" unless the protocol is reported on several sets of videos.

    whole: what is not the mean over its videos: "mean" (of categories, or of a score of the whole set) takes the mean's place, "splits"
    stands beside it.
    """

    protocol: str
    metric: str
    subset: str
    ids: Sequence[str]
    values: np.ndarray  # [V] float64, NaN = undefined; of a baseline row also [V, R], R runs
    whole: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Scored:
    """One prediction file scored on a benchmark.

    protocols: those that were computed. count: videos (or questions) with a prediction. undefined: those without a value where every one
    should have one. rows: baselines that depend on the file (its own grid of frames), row -> columns. missing: metric -> why it could not
    be computed ("needs Java"). extra: further keys of the metrics file.
    """

    path: str
    protocols: Sequence[Protocol]
    columns: list[Column]
    count: int
    skipped: dict[str, str] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    trained_on: list[str] = field(default_factory=list)
    undefined: list[str] = field(default_factory=list)
    rows: dict[str, list[Column]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def undefined_in(columns: Iterable[Column]) -> list[str]:
    """Ids of the videos on which a metric has no value."""
    return sorted({i for column in columns for i, value in zip(column.ids, column.values) if np.isnan(value)})


def number(value: float) -> float | None:
    """JSON has no NaN: null."""
    return None if math.isnan(value) else float(value)


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the defined values; NaN if there is none."""
    values = np.asarray(values, dtype=np.float64)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def summary(column: Column, categories: Mapping[str, str]) -> dict[str, Any]:
    """{"mean", "videos" (number of defined values), "per_category", "per_video"}; videos of no known category are in no category."""
    groups: dict[str, list[float]] = {}
    for video_id, value in zip(column.ids, column.values):
        if video_id in categories:
            groups.setdefault(categories[video_id], []).append(value)
    return {
        "mean": number(mean_of(column.values)),
        "videos": int((~np.isnan(column.values)).sum()),
        "per_category": {category: number(mean_of(values)) for category, values in groups.items()},
        "per_video": {video_id: number(value) for video_id, value in zip(column.ids, column.values)},
        **column.whole,
    }


def place(tree: dict[str, Any], column: Column, value: Any) -> None:
    """tree[protocol][metric] = value, or [protocol][metric][subset] where the protocol has subsets."""
    metrics = tree.setdefault(column.protocol, {})
    if column.subset:
        metrics.setdefault(column.metric, {})[column.subset] = value
    else:
        metrics[column.metric] = value


def leaf(tree: Mapping[str, Any], protocol: str, metric: str, subset: str = "") -> Any:
    """The value that `place` put there, or None."""
    value = tree.get(protocol, {}).get(metric)
    return value.get(subset) if subset and value is not None else value


def subsets(metrics: Mapping[str, Any]) -> list[str]:
    """The subsets under a metric of a tree of summaries; [""] where it has none."""
    return [""] if "mean" in metrics else list(metrics)


def protocols_tree(columns: Iterable[Column], categories: Mapping[str, str]) -> dict[str, Any]:
    """The "protocols" part of a metrics file."""
    tree: dict[str, Any] = {}
    for column in columns:
        place(tree, column, summary(column, categories))
    return tree


def baselines_tree(rows: Mapping[str, Iterable[Column]]) -> dict[str, Any]:
    """The "baselines" part: row -> protocol -> metric -> {"mean", "videos"}; of a row with several runs (values [V, R]) also {"sd" (of the
    runs' means), "runs"}."""
    tree: dict[str, Any] = {}
    for row, columns in rows.items():
        for column in columns:
            values = column.values.reshape(len(column.values), -1)
            defined = values[~np.isnan(values).any(axis=1)]
            means = defined.mean(axis=0) if len(defined) else np.array([np.nan])
            entry: dict[str, Any] = {"mean": number(means.mean()), "videos": len(defined)}
            if column.values.ndim == 2:
                entry |= {"sd": number(means.std(ddof=1)) if len(means) > 1 else None, "runs": values.shape[1]}
            place(tree.setdefault(row, {}), column, entry)
    return tree


def intervals_tree(columns: Iterable[Column], seed: int = 0) -> dict[str, Any]:
    """The "confidence_intervals" part: 95% bootstrap over videos, [low, high] or null, in the same nesting."""
    tree: dict[str, Any] = {}
    groups: dict[tuple[str, ...], list[Column]] = {}
    for column in columns:
        if "mean" in column.whole:  # no mean over videos: nothing to draw videos for
            place(tree, column, None)
        else:
            groups.setdefault(tuple(column.ids), []).append(column)
    for group in groups.values():
        bounds = confidence_intervals(np.stack([column.values for column in group], axis=1), seed)
        for column, (low, high) in zip(group, bounds):
            place(tree, column, None if np.isnan(low) else [float(low), float(high)])
    return tree


def differences(first: Iterable[Column], second: Iterable[Column]) -> list[Column]:
    """second - first per video, on the videos that both have (undefined where either is): input of a paired bootstrap."""
    before = {(c.protocol, c.metric, c.subset): dict(zip(c.ids, c.values)) for c in first}
    result = []
    for column in second:
        base = before.get((column.protocol, column.metric, column.subset), {})
        pairs = [(i, value - base[i]) for i, value in zip(column.ids, column.values) if i in base]
        if pairs:
            values = np.array([value for _, value in pairs])
            result.append(Column(column.protocol, column.metric, column.subset, [i for i, _ in pairs], values))
    return result


def differences_tree(first: Sequence[Column], second: Sequence[Column]) -> dict[str, Any]:
    """Paired differences second - first: {"mean", "interval" (95%, bootstrap over videos) or null, "videos"} in the usual nesting."""
    columns = differences(first, second)
    intervals = intervals_tree(columns)
    tree: dict[str, Any] = {}
    for column in columns:
        bounds = leaf(intervals, column.protocol, column.metric, column.subset)
        videos = int((~np.isnan(column.values)).sum())
        place(tree, column, {"mean": number(mean_of(column.values)), "interval": bounds, "videos": videos})
    return tree


def document(scored: Scored | None, rows: Mapping[str, list[Column]], categories: Mapping[str, str], settings: Mapping[str, Any]) -> dict:
    """What a metrics file holds; rows: the baselines, row -> columns (values [V] or [V, R])."""
    columns = scored.columns if scored else []
    found = {
        "protocols": protocols_tree(columns, categories),
        "baselines": baselines_tree({**rows, **(scored.rows if scored else {})}),
        "confidence_intervals": intervals_tree(columns),
        "videos": {
            "scored": scored.count if scored else 0,
            "skipped": scored.skipped if scored else {},
            "constant": scored.constant if scored else [],
            "trained_on": scored.trained_on if scored else [],
        },
        "settings": dict(settings),
    }
    if scored and scored.missing:
        found["missing_metrics"] = scored.missing
    return found | (scored.extra if scored else {})
