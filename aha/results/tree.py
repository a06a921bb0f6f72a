"""From numbers per video to the metrics file: means, categories, confidence intervals, paired differences.

Every mean is over the videos on which a metric is defined, and says over how many ("videos"). V = videos of a column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aha.metrics.bootstrap import bootstrap_sums, central, confidence_intervals
from aha.results.layout import Protocol


@dataclass(frozen=True)
class Pooled:
    """A number that is no mean over videos (the mean of two tasks, an F1 of means): made of sums over the videos, so that a resample of
    the videos has one too. sums: [V, K]; combine: their sums over the videos [B, K] -> the number [B]."""

    sums: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]

    def __call__(self, sums_BK: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.combine(sums_BK)

    @property
    def value(self) -> float:
        return float(self(self.sums.sum(axis=0)[None])[0])

    def minus(self, other: Pooled) -> Pooled:
        """This number less another one over the same videos."""
        split = self.sums.shape[1]
        both = np.concatenate([self.sums, other.sums], axis=1)
        return Pooled(both, lambda sums_BK: self(sums_BK[:, :split]) - other(sums_BK[:, split:]))


@dataclass(frozen=True)
class Column:
    """One metric over videos; `subset` is "" unless the protocol is reported on several sets of videos.

    Its number is the mean of its values, or where there is one that of `pooled` (made of sums over the videos), or `whole` (of all videos
    together, without parts for each: it has no interval and no difference to another). splits: statistics over fixed splits, beside it.
    """

    protocol: str
    metric: str
    subset: str
    ids: Sequence[str]
    values: np.ndarray  # [V] float64, NaN = undefined; of a baseline row also [V, R], R runs
    pooled: Pooled | None = None
    whole: float | None = None
    splits: Mapping[str, Any] | None = None

    @property
    def mean(self) -> float:
        if self.whole is not None:
            return self.whole
        return self.pooled.value if self.pooled else mean_of(self.values)

    def of(self, ids: Sequence[str]) -> Column:
        """The same metric over some of its videos."""
        at = {video_id: k for k, video_id in enumerate(self.ids)}
        rows = [at[video_id] for video_id in ids]
        pooled = replace(self.pooled, sums=self.pooled.sums[rows]) if self.pooled else None
        return replace(self, ids=ids, values=self.values[rows], pooled=pooled, splits=None)


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
    """A number for JSON, which has no NaN: None becomes null."""
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
        "mean": number(column.mean),
        "videos": int((~np.isnan(column.values)).sum()),
        "per_category": {category: number(mean_of(values)) for category, values in groups.items()},
        "per_video": {video_id: number(value) for video_id, value in zip(column.ids, column.values)},
        **({} if column.splits is None else {"splits": column.splits}),
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
            values = column.values
            defined = values[~np.isnan(values).any(axis=1)] if values.ndim == 2 else values[~np.isnan(values)]
            entry: dict[str, Any] = {"mean": number(column.mean), "videos": len(defined)}
            if values.ndim == 2:
                means = defined.mean(axis=0) if len(defined) else np.array([np.nan])
                entry["mean"] = number(column.mean if column.pooled else means.mean())
                entry |= {"sd": number(means.std(ddof=1)) if len(means) > 1 else None, "runs": values.shape[1]}
            place(tree.setdefault(row, {}), column, entry)
    return tree


def intervals_tree(columns: Iterable[Column], seed: int = 0) -> dict[str, Any]:
    """The "confidence_intervals" part: 95% bootstrap over videos, [low, high] or null, in the same nesting."""
    tree: dict[str, Any] = {}
    groups: dict[tuple[bool, tuple[str, ...]], list[Column]] = {}
    for column in columns:
        if column.whole is not None:  # no parts for each video: nothing to resample
            place(tree, column, None)
        else:
            groups.setdefault((column.pooled is not None, tuple(column.ids)), []).append(column)
    for group in groups.values():
        pooled = [column.pooled for column in group if column.pooled is not None]  # a group is pooled as a whole or not at all
        bounds: Iterable[np.ndarray] = (
            _pooled_intervals(pooled, seed) if pooled else confidence_intervals(np.stack([column.values for column in group], axis=1), seed)
        )
        for column, (low, high) in zip(group, bounds):
            place(tree, column, None if np.isnan(low) else [float(low), float(high)])
    return tree


def _pooled_intervals(group: Sequence[Pooled], seed: int) -> list[np.ndarray]:
    """[low, high] of each; all over the same videos, which are resampled once."""
    if len(group[0].sums) < 2:
        return [np.full(2, np.nan)] * len(group)
    sums = {id(pooled.sums): pooled.sums for pooled in group}  # metrics of one protocol are made of the same sums
    ends = np.cumsum([0, *(part.shape[1] for part in sums.values())])
    sums_BK = bootstrap_sums(np.concatenate(list(sums.values()), axis=1), seed)
    resampled = {key: sums_BK[:, a:b] for key, a, b in zip(sums, ends, ends[1:])}
    return [central(pooled(resampled[id(pooled.sums)])) for pooled in group]


def differences(first: Iterable[Column], second: Iterable[Column]) -> list[Column]:
    """second - first per video, on the videos that both have (undefined where either is): input of a paired bootstrap."""
    before = {(c.protocol, c.metric, c.subset): c for c in first}
    result = []
    for column in second:
        base = before.get((column.protocol, column.metric, column.subset))
        if base is None:
            continue
        both = [i for i in column.ids if i in set(base.ids)]
        if both:
            column, base = column.of(both), base.of(both)
            pooled = column.pooled.minus(base.pooled) if column.pooled and base.pooled else None
            result.append(replace(column, values=column.values - base.values, pooled=pooled))
    return result


def differences_tree(first: Sequence[Column], second: Sequence[Column]) -> dict[str, Any]:
    """Paired differences second - first: {"mean", "interval" (95%, bootstrap over videos) or null, "videos"} in the usual nesting."""
    columns = differences(first, second)
    intervals = intervals_tree(columns)
    tree: dict[str, Any] = {}
    for column in columns:
        bounds = leaf(intervals, column.protocol, column.metric, column.subset)
        videos = int((~np.isnan(column.values)).sum())
        place(tree, column, {"mean": number(column.mean), "interval": bounds, "videos": videos})
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
