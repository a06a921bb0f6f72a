"""The parts of the console tables that TVSum and Mr.HiSum share; input is a metrics file's content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aha.eval.baselines import RANDOM
from aha.results import table
from aha.results import tree as results

NO_PERCENT: frozenset[tuple[str, str]] = frozenset()


def random_label(runs: int) -> str:
    return "random, 1 run" if runs == 1 else f"random, {runs} runs (sd)"


def counts(videos: Mapping[str, Any], more: str = "") -> str:
    return (
        f"videos: {videos['scored']} scored, {len(videos['skipped'])} skipped, {len(videos['constant'])} constant, "
        f"{len(videos['trained_on'])} trained on; {more}95% intervals: bootstrap over videos"
    )


def protocol_block(
    metrics: Mapping[str, Any],
    protocol: str,
    description: str,
    names: Sequence[str],
    labels: Mapping[str, str],
    percent: frozenset[tuple[str, str]] = NO_PERCENT,
) -> str:
    """One protocol: this prediction, its 95% interval, over how many videos (where not over all), and the baseline rows of `labels`."""
    videos = metrics["videos"]
    columns = _columns(metrics, protocol, names)
    is_percent = [(protocol, metric) in percent for metric, _ in columns]
    rows = []
    if metrics["settings"]["predictions"]:
        entries = [results.leaf(metrics["protocols"], protocol, *column) for column in columns]
        bounds = [results.leaf(metrics["confidence_intervals"], protocol, *column) for column in columns]
        trained_on = " (TRAINED ON)" if videos["trained_on"] else ""
        rows.append((f"this prediction{trained_on}", [table.shown(entry["mean"], p) for entry, p in zip(entries, is_percent)]))
        rows.append(("  95% interval", [table.interval(pair, p) for pair, p in zip(bounds, is_percent)]))
        if any(entry["videos"] < len(entry["per_video"]) for entry in entries):
            rows.append(("  mean over", [f"{entry['videos']} of {len(entry['per_video'])}" for entry in entries]))
    for row, label in labels.items():
        entries = [results.leaf(metrics["baselines"].get(row, {}), protocol, *column) for column in columns]
        if any(entry is not None for entry in entries):
            rows.append((label, [_baseline_cell(entry, p) for entry, p in zip(entries, is_percent)]))
    return table.block(f"{protocol}: {description}", [_heading(metrics, protocol, column) for column in columns], rows)


def _columns(metrics: Mapping[str, Any], protocol: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """(metric, subset) columns of a protocol's block; subset is "" where the protocol has none."""
    random_row = metrics["baselines"][RANDOM][protocol]
    return [(name, subset) for name in names for subset in ([""] if "mean" in random_row[name] else random_row[name])]


def _heading(metrics: Mapping[str, Any], protocol: str, column: tuple[str, str]) -> str:
    metric, subset = column
    if not subset:
        return metric
    videos = results.leaf(metrics["baselines"][RANDOM], protocol, *column)["videos"]
    return f"{metric} {'all' if subset == 'all50' else 'val'} {videos}"


def _baseline_cell(entry: Mapping[str, Any] | None, percent: bool) -> str:
    if entry is None:
        return ""
    spread = f"({table.shown(entry['sd'], percent)})" if entry.get("sd") is not None else ""
    return f"{table.shown(entry['mean'], percent)}{spread}"


def categories(
    metrics: Mapping[str, Any],
    wanted: Sequence[tuple[str, str, str]],
    percent: frozenset[tuple[str, str]] = NO_PERCENT,
    most: int = 20,
) -> list[str]:
    """The table per category of the `wanted` (protocol, metric, subset) columns that are there; at most the `most` largest categories."""
    columns = [column for column in wanted if (results.leaf(metrics["protocols"], *column) or {}).get("per_category")]
    if not columns:
        return []
    entries = [results.leaf(metrics["protocols"], *column) for column in columns]
    names = list(entries[0]["per_category"])
    title = "per category" if len(names) <= most else f"per category, {most} of {len(names)} (all in the metrics file)"
    is_percent = [column[:2] in percent for column in columns]
    rows = [(name, [table.shown(entry["per_category"].get(name), p) for entry, p in zip(entries, is_percent)]) for name in names[:most]]
    return ["", table.block(title, [f"{protocol} {metric}" for protocol, metric, _ in columns], rows)]


def notes(videos: Mapping[str, Any]) -> list[str]:
    """Who was skipped and why, who is constant, who was trained on."""
    lines = []
    reasons: dict[str, list[str]] = {}
    for video_id, reason in videos["skipped"].items():
        reasons.setdefault(reason, []).append(video_id)
    lines += [f"skipped, {reason}: {table.named_list(ids)}" for reason, ids in reasons.items()]
    if videos["constant"]:
        lines.append(f"constant prediction (no correlation, left out of its mean): {table.named_list(videos['constant'])}")
    if videos["trained_on"]:
        lines.append(f"TRAINED ON (no held-out result): {table.named_list(videos['trained_on'])}")
    return ["", *lines] if lines else []
