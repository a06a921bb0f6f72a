"""From numbers per video to the metrics file: means, categories, confidence intervals, counts.

Every mean is over the videos on which a metric is defined, and says over how many ("videos").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aha.eval.metrics.bootstrap import confidence_intervals

PerVideo = Mapping[str, Mapping[str, Mapping[str, float]]]  # video id -> protocol -> metric -> value
Subsets = Callable[
    [str, list[str]], dict[str, list[str]]
]  # (protocol, video ids) -> named subsets; {"": ids} for a protocol without subsets


def number(value: float) -> float | None:
    """JSON has no NaN: null."""
    return None if math.isnan(value) else float(value)


def mean_of(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")


def summary(values: Mapping[str, float], categories: Mapping[str, str]) -> dict[str, Any]:
    """{"mean", "videos" (number of defined values), "per_category", "per_video"} of one metric's values by video id."""
    groups: dict[str, list[float]] = {}
    for video_id, value in values.items():
        groups.setdefault(categories[video_id], []).append(value)
    return {
        "mean": number(mean_of(list(values.values()))),
        "videos": sum(not math.isnan(value) for value in values.values()),
        "per_category": {category: number(mean_of(group)) for category, group in groups.items()},
        "per_video": {video_id: number(value) for video_id, value in values.items()},
    }


def columns_of(per_video: PerVideo, subsets: Subsets) -> list[tuple[str, str, str, list[str]]]:
    """(protocol, metric, subset name, video ids) of everything that was computed."""
    ids = list(per_video)
    if not ids:
        return []
    return [
        (protocol, metric, name, members)
        for protocol, metrics in per_video[ids[0]].items()
        for metric in metrics
        for name, members in subsets(protocol, ids).items()
    ]


def place(tree: dict[str, Any], protocol: str, metric: str, subset: str, value: Any) -> None:
    """tree[protocol][metric] = value, or [protocol][metric][subset] where the protocol has subsets."""
    metrics = tree.setdefault(protocol, {})
    if subset:
        metrics.setdefault(metric, {})[subset] = value
    else:
        metrics[metric] = value


def leaf(tree: Mapping[str, Any], protocol: str, metric: str, subset: str) -> Any:
    """The value that `place` put there, or None."""
    value = tree.get(protocol, {}).get(metric)
    return value.get(subset) if subset and value is not None else value


def protocols_tree(per_video: PerVideo, categories: Mapping[str, str], subsets: Subsets) -> dict[str, Any]:
    """The "protocols" part of a metrics file."""
    tree: dict[str, Any] = {}
    for protocol, metric, subset, members in columns_of(per_video, subsets):
        place(tree, protocol, metric, subset, summary({i: per_video[i][protocol][metric] for i in members}, categories))
    return tree


def intervals_tree(per_video: PerVideo, subsets: Subsets, seed: int = 0) -> dict[str, Any]:
    """The "confidence_intervals" part: 95% bootstrap over videos, [low, high] or null, in the same nesting."""
    tree: dict[str, Any] = {}
    by_members: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for protocol, metric, subset, members in columns_of(per_video, subsets):
        by_members.setdefault(tuple(members), []).append((protocol, metric, subset))
    for members, columns in by_members.items():
        values = np.array([[per_video[i][protocol][metric] for protocol, metric, _ in columns] for i in members])
        for (protocol, metric, subset), (low, high) in zip(columns, confidence_intervals(values, seed)):
            place(tree, protocol, metric, subset, None if np.isnan(low) else [float(low), float(high)])
    return tree
