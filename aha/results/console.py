"""The console tables of an evaluation; input is a metrics file's content and the benchmark's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aha.core import lost_frames
from aha.results import table
from aha.results import tree as results
from aha.results.layout import RANDOM, Layout, Protocol

MOST_CATEGORIES = 20


def render(metrics: Mapping[str, Any], layout: Layout, remarks: Sequence[str] = ()) -> str:
    """Every protocol's table, the table per category, and what to know about some videos; at most 80 columns wide."""
    settings, videos = metrics["settings"], metrics["videos"]
    if settings["predictions"]:
        lines = [f"{layout.title}, {settings['predictions']}"]
        lines += table.wrapped(f"{counts(videos, layout.unit)}; 95% intervals: bootstrap over {layout.unit}")
    else:
        lines = [f"{layout.title}, baselines of {settings['selected_videos']} {layout.unit}"]
    lines += [part for line in remarks for part in table.wrapped(line)]
    if "clock" in metrics:
        lines += table.wrapped(lost_frames.shown(metrics["clock"]))
        lines += table.wrapped("a lost frame has no score: it counts with the last that was decided before it, 0 before any")
    for protocol in layout.protocols:
        lines += ["", protocol_block(metrics, layout, protocol)]
    lines += [part for metric, why in metrics.get("missing_metrics", {}).items() for part in table.wrapped(f"  {metric}: {why}")]
    return "\n".join(lines + categories(metrics, layout) + notes(videos))


def counts(videos: Mapping[str, Any], unit: str) -> str:
    return f"{videos['scored']} {unit} scored, {len(videos['skipped'])} skipped, {len(videos['constant'])} constant, " + (
        f"TRAINED ON {len(videos['trained_on'])} of them" if videos["trained_on"] else "0 trained on"
    )


def protocol_block(metrics: Mapping[str, Any], layout: Layout, protocol: Protocol) -> str:
    """One protocol: this prediction, its 95% interval, over how many videos (where not over all), and the baseline rows."""
    trees = [metrics["protocols"].get(protocol.name, {})] + [row.get(protocol.name, {}) for row in metrics["baselines"].values()]
    columns = []
    for metric in protocol.metrics:
        tree = next((tree[metric] for tree in trees if metric in tree), None)
        columns += [(metric, subset) for subset in (results.subsets(tree) if tree is not None else [])]
    title = f"{protocol.name}: {protocol.about}"
    return table.block(title, [_heading(trees, column) for column in columns], _rows(metrics, layout, protocol, columns))


def _rows(
    metrics: Mapping[str, Any], layout: Layout, protocol: Protocol, columns: Sequence[tuple[str, str]]
) -> list[tuple[str, list[str]]]:
    percent = [metric in protocol.percent for metric, _ in columns]
    rows = []
    if metrics["settings"]["predictions"]:
        entries = [results.leaf(metrics["protocols"], protocol.name, *column) for column in columns]
        bounds = [results.leaf(metrics["confidence_intervals"], protocol.name, *column) for column in columns]
        trained_on = " (TRAINED ON)" if metrics["videos"]["trained_on"] else ""
        rows.append((f"this prediction{trained_on}", [table.shown(entry["mean"], p) for entry, p in zip(entries, percent)]))
        rows.append(("  95% interval", [table.interval(pair, p) for pair, p in zip(bounds, percent)]))
        if any(entry["videos"] < len(entry["per_video"]) for entry in entries):
            rows.append(("  mean over", [f"{entry['videos']} of {len(entry['per_video'])}" for entry in entries]))
        rows += _split_rows(entries, percent)
    for row, tree in metrics["baselines"].items():
        entries = [results.leaf(tree, protocol.name, *column) for column in columns]
        if any(entry is not None for entry in entries):
            rows.append((_label(row, entries, layout), [_baseline_cell(entry, p) for entry, p in zip(entries, percent)]))
            if any(entry is not None and "difference" in entry for entry in entries):
                cells = [_difference_cell(entry, p) for entry, p in zip(entries, percent)]
                rows.append(("  this minus it", cells))
    return rows


def _split_rows(entries: Sequence[Mapping[str, Any]], percent: Sequence[bool]) -> list[tuple[str, list[str]]]:
    """Mean and both deviations over fixed splits, where there are splits: no published code computes the one its paper prints."""
    splits = next((len(entry["splits"]["per_split"]) for entry in entries if "splits" in entry), 0)
    labels = {"mean": f"  mean of {splits} splits", "sd_ddof1": "    sd, n - 1", "sd_ddof0": "    sd, n"}
    rows = []
    for name, label in labels.items() if splits else ():
        rows.append((label, [table.shown(entry["splits"][name], p) if "splits" in entry else "" for entry, p in zip(entries, percent)]))
    return rows


def _label(row: str, entries: Sequence[Mapping[str, Any] | None], layout: Layout) -> str:
    label = layout.rows.get(row, row)
    runs = next((entry["runs"] for entry in entries if entry and "runs" in entry), None)
    return label if row != RANDOM or runs is None else f"{label}, 1 run" if runs == 1 else f"{label}, {runs} runs (sd)"


def _heading(trees: Sequence[Mapping[str, Any]], column: tuple[str, str]) -> str:
    metric, subset = column
    if not subset:
        return metric
    videos = next(tree[metric][subset]["videos"] for tree in trees if metric in tree)
    return f"{metric} {subset.rstrip('0123456789')} {videos}"


def _baseline_cell(entry: Mapping[str, Any] | None, percent: bool) -> str:
    if entry is None:
        return ""
    spread = f"({table.shown(entry['sd'], percent)})" if entry.get("sd") is not None else ""
    return f"{table.shown(entry['mean'], percent)}{spread}"


def _difference_cell(entry: Mapping[str, Any] | None, percent: bool) -> str:
    """A paired difference; a star where its 95% interval leaves out 0."""
    found = (entry or {}).get("difference")
    if not found or found["mean"] is None:
        return ""
    return f"{found['mean']:+.{2 if percent else 4}f}{star(found['interval'])}"


def star(interval: Sequence[float] | None) -> str:
    return "*" if interval and (interval[0] > 0 or interval[1] < 0) else ""


def categories(metrics: Mapping[str, Any], layout: Layout) -> list[str]:
    """The headline columns per category, where there are categories; at most the first 20 of these."""
    there = [(h, results.leaf(metrics["protocols"], *h.place)) for h in layout.headlines]
    there = [(h, entry) for h, entry in there if (entry or {}).get("per_category")]
    if not there:
        return []
    names = list(there[0][1]["per_category"])
    title = "per category"
    if len(names) > MOST_CATEGORIES:
        title += f", {MOST_CATEGORIES} of {len(names)} (all in the metrics file)"
    rows = [
        (name, [table.shown(entry["per_category"].get(name), layout.is_percent(h.protocol, h.metric)) for h, entry in there])
        for name in names[:MOST_CATEGORIES]
    ]
    return ["", table.block(title, [f"{h.protocol} {h.metric}" for h, _ in there], rows)]


def notes(videos: Mapping[str, Any]) -> list[str]:
    """Who was skipped and why, who is constant, who was trained on."""
    lines = []
    reasons: dict[str, list[str]] = {}
    for video_id, reason in videos["skipped"].items():
        reasons.setdefault(reason, []).append(video_id)
    lines += [f"skipped, {reason}: {table.named_list(ids)}" for reason, ids in reasons.items()]
    if videos["constant"]:
        lines.append(f"constant prediction (its scores have no correlation): {table.named_list(videos['constant'])}")
    if videos["trained_on"]:
        lines.append(f"TRAINED ON (no held-out result): {table.named_list(videos['trained_on'])}")
    return ["", *(part for line in lines for part in table.wrapped(line))] if lines else []
