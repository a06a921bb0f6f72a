"""Several prediction files side by side: their numbers, and the differences to the first one with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aha.core import lost_frames
from aha.results import table
from aha.results import tree as results
from aha.results.console import counts, star
from aha.results.layout import Layout, Protocol


def short_names(paths: Sequence[str]) -> list[str]:
    """File names without folder and suffix where these are distinct, else the paths as given; numbered if a file is listed twice."""
    stems = [path.rsplit("/", 1)[-1].removesuffix(".jsonl").removesuffix(".json") for path in paths]
    for names in (stems, list(paths)):
        if len(set(names)) == len(names):
            return names
    return [f"{stem} ({number})" for number, stem in enumerate(stems, 1)]


def render(
    names: Sequence[str], all_metrics: Sequence[Mapping[str, Any]], differences: Mapping[str, Any], layouts: Sequence[Layout]
) -> str:
    """The comparison as console text, at most 80 columns wide: one block for each protocol, one column for each file; layouts[k] is that of
    file k. A star marks a difference whose 95% interval leaves out 0."""
    letters = [chr(ord("A") + index) for index in range(len(names))]
    unit = layouts[0].unit
    lines = []
    for letter, name, metrics in zip(letters, names, all_metrics):
        lines.append(f"{letter} = {name}: {counts(metrics['videos'], unit)}")
        if "clock" in metrics:
            lines.append(f"    {lost_frames.shown(metrics['clock'])}")
    lines.append(f"differences to A: mean over {unit} that both score, 95% paired bootstrap interval, * where it leaves out 0")
    lines = [part for line in lines for part in table.wrapped(line)]
    for protocol in {protocol.name: protocol for layout in layouts for protocol in layout.protocols}.values():
        rows = []
        for metric in protocol.metrics:
            entries = [metrics["protocols"].get(protocol.name, {}).get(metric) for metrics in all_metrics]
            subsets = dict.fromkeys(subset for entry in entries if entry is not None for subset in results.subsets(entry))
            for subset in subsets:
                rows += _rows(protocol.name, metric, subset, names, all_metrics, differences, metric in protocol.percent)
        if rows:
            lines += ["", table.block(f"{protocol.name}: {protocol.about}", letters, rows)]
            lines += _baseline_lines(protocol, all_metrics[0]["baselines"], layouts[0])
    return "\n".join(lines)


def _baseline_lines(protocol: Protocol, baselines: Mapping[str, Any], layout: Layout) -> list[str]:
    """One line for each metric: what the numbers are read against (on the videos of A)."""
    lines = []
    for metric in protocol.metrics:
        parts = []
        for row, tree in baselines.items():
            entry = tree.get(protocol.name, {}).get(metric)
            if entry is not None:
                mean = results.leaf(tree, protocol.name, metric, results.subsets(entry)[0])["mean"]
                parts.append(f"{layout.rows.get(row, row)} {table.shown(mean, metric in protocol.percent)}")
        if parts:
            lines += table.wrapped(f"  {metric} of others: {'; '.join(parts)}")
    return lines


def _rows(
    protocol: str,
    metric: str,
    subset: str,
    names: Sequence[str],
    all_metrics: Sequence[Mapping[str, Any]],
    differences: Mapping[str, Any],
    percent: bool,
) -> list[tuple[str, list[str]]]:
    label = " ".join(filter(None, (metric, subset)))
    values = [results.leaf(metrics["protocols"], protocol, metric, subset) for metrics in all_metrics]
    means = []
    for entry in values:
        text = table.shown(entry["mean"] if entry else None, percent)
        if entry and entry["videos"] < len(entry["per_video"]):
            text += f" ({entry['videos']})"  # mean over fewer videos
        means.append(text)
    rows = [(label, means)]
    found = [results.leaf(differences[name], protocol, metric, subset) for name in names[1:]]
    if any(entry and entry["mean"] is not None for entry in found):
        cells, bounds = [""], [""]
        for entry in found:
            interval = entry["interval"] if entry else None
            value = entry["mean"] if entry else None
            cells.append("-" if value is None else f"{value:+.{2 if percent else 4}f}{star(interval)}")
            bounds.append(table.interval(interval, percent))
        rows += [("  minus A", cells), ("  95% interval", bounds)]
    return rows
