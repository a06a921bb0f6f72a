"""Several prediction files side by side: their numbers, and the differences to the first one with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aha.results import table
from aha.results import tree as results

BASELINE_NAMES = {
    "random": "random",
    "human_vs_each_other_human": "one human",
    "human_vs_mean_of_the_19_others": "one human (mean of 19)",
    "mean_annotation_as_predictor": "mean annotation",
    "gtscore_as_predictor": "gtscore itself",
}


def compare(names: Sequence[str], columns: Sequence[Sequence[results.Column]]) -> dict[str, Any]:
    """{"names", "differences": {name: tree of paired differences to the first file}}; columns[k] are those of file names[k]."""
    trees = {name: results.differences_tree(columns[0], others) for name, others in zip(names[1:], columns[1:])}
    return {"names": list(names), "differences": trees}


def short_names(paths: Sequence[str]) -> list[str]:
    """File names without folder and suffix where these are distinct, else the paths as given; numbered if a file is listed twice."""
    stems = [path.rsplit("/", 1)[-1].removesuffix(".jsonl").removesuffix(".json") for path in paths]
    for names in (stems, list(paths)):
        if len(set(names)) == len(names):
            return names
    return [f"{stem} ({number})" for number, stem in enumerate(stems, 1)]


def render(
    names: Sequence[str],
    all_metrics: Sequence[Mapping[str, Any]],
    differences: Mapping[str, Any],
    protocols: Mapping[str, tuple[str, Sequence[str]]],
    percent: set[tuple[str, str]] = frozenset(),
) -> str:
    """The comparison as console text, at most 120 columns: one block for each protocol, one column for each file.

    `percent` names the (protocol, metric) pairs that are percentages. A star marks a difference whose 95% interval leaves out 0.
    """
    letters = [chr(ord("A") + index) for index in range(len(names))]
    lines = [f"{letter} = {name}: {_counts(metrics['videos'])}" for letter, name, metrics in zip(letters, names, all_metrics)]
    lines.append("differences to A: mean over the videos that both score, 95% paired bootstrap interval, * where it leaves out 0")
    for protocol, (description, metric_names) in protocols.items():
        rows = []
        for metric in metric_names:
            entries = [metrics["protocols"].get(protocol, {}).get(metric) for metrics in all_metrics]
            if all(entry is None for entry in entries):
                continue
            for subset in _subsets(entries):
                rows += _rows(protocol, metric, subset, names, all_metrics, differences, (protocol, metric) in percent)
        if rows:
            lines += ["", table.block(f"{protocol}: {description}", letters, rows)]
            lines += _baseline_lines(protocol, metric_names, all_metrics[0]["baselines"], percent)
    return "\n".join(lines)


def _baseline_lines(protocol: str, metric_names: Sequence[str], baselines: Mapping[str, Any], percent: set[tuple[str, str]]) -> list[str]:
    """One line for each metric: what the numbers are read against (on the videos of A)."""
    lines = []
    for metric in metric_names:
        parts = []
        for row, tree in baselines.items():
            entry = tree.get(protocol, {}).get(metric)
            if entry is not None:
                entry = entry if "mean" in entry else next(iter(entry.values()))
                parts.append(f"{BASELINE_NAMES.get(row, row)} {table.shown(entry['mean'], (protocol, metric) in percent)}")
        if parts:
            lines.append(f"  {metric} of others: {', '.join(parts)}")
    return lines


def _counts(videos: Mapping[str, Any]) -> str:
    text = f"{videos['scored']} scored, {len(videos['skipped'])} skipped, {len(videos['constant'])} constant"
    return text + (f", TRAINED ON {len(videos['trained_on'])} of them" if videos["trained_on"] else "")


def _subsets(entries: Sequence[Mapping[str, Any] | None]) -> list[str]:
    present = [entry for entry in entries if entry is not None]
    return [""] if "mean" in present[0] else list(dict.fromkeys(subset for entry in present for subset in entry))


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
    for entry, metrics in zip(values, all_metrics):
        text = table.shown(entry["mean"] if entry else None, percent)
        if entry and subset != "val10" and entry["videos"] < metrics["videos"]["scored"]:
            text += f" ({entry['videos']})"  # mean over fewer videos
        means.append(text)
    rows = [(label, means)]
    found = [results.leaf(differences[name], protocol, metric, subset) for name in names[1:]]
    if any(entry and entry["mean"] is not None for entry in found):
        cells, bounds = [""], [""]
        for entry in found:
            interval = entry["interval"] if entry else None
            star = "*" if interval and (interval[0] > 0 or interval[1] < 0) else ""
            value = entry["mean"] if entry else None
            cells.append("-" if value is None else f"{value:+.{2 if percent else 4}f}{star}")
            bounds.append(table.interval(interval, percent))
        rows += [("  minus A", cells), ("  95% interval", bounds)]
    return rows
