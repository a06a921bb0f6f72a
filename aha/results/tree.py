"""From numbers per video to the metrics file: means, categories, confidence intervals, paired differences.

Every mean is over the videos on which a metric is defined, and says over how many ("videos"). V = videos of a column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aha.metrics.bootstrap import confidence_intervals

PerVideo = Mapping[str, Mapping[str, Mapping[str, float]]]  # video id -> protocol -> metric -> value
Subsets = Callable[
    [str, list[str]], dict[str, list[str]]
]  # (protocol, video ids) -> named subsets; {"": ids} for a protocol without subsets


@dataclass(frozen=True)
class Column:
    """One metric over videos; `subset` is "" unless the protocol is reported on several sets of videos."""

    protocol: str
    metric: str
    subset: str
    ids: Sequence[str]
    values: np.ndarray  # [V] float64, NaN = undefined


def columns_of(per_video: PerVideo, subsets: Subsets) -> list[Column]:
    """Everything that was computed, column by column."""
    ids = list(per_video)
    columns = []
    for protocol, metrics in per_video[ids[0]].items() if ids else ():
        for subset, members in subsets(protocol, ids).items():
            for metric in metrics:
                values = np.array([per_video[i][protocol][metric] for i in members], dtype=np.float64)
                columns.append(Column(protocol, metric, subset, members, values))
    return columns


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


def protocols_tree(columns: Iterable[Column], categories: Mapping[str, str]) -> dict[str, Any]:
    """The "protocols" part of a metrics file."""
    tree: dict[str, Any] = {}
    for column in columns:
        place(tree, column, summary(column, categories))
    return tree


def intervals_tree(columns: Iterable[Column], seed: int = 0) -> dict[str, Any]:
    """The "confidence_intervals" part: 95% bootstrap over videos, [low, high] or null, in the same nesting."""
    tree: dict[str, Any] = {}
    groups: dict[tuple[str, ...], list[Column]] = {}
    for column in columns:
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
