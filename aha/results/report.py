"""The evaluation report: metrics.json, figures as PNG, and report.html, one file that needs nothing else (its template is beside this)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aha.core.files import atomic_path, write_json, write_text
from aha.results import figures, table
from aha.results import tree as results
from aha.results.layout import Headline, Layout

EXTREMES = 5  # best and worst videos listed
CURVES = 60  # of more videos than these, only the six best and six worst have a curve


def shown_headlines(metrics: Mapping[str, Any], layout: Layout) -> list[Headline]:
    """The headline numbers that were computed, else the first number there is."""
    found = [h for h in layout.headlines if results.leaf(metrics["protocols"], *h.place) is not None]
    if found:
        return found
    protocol, tree = next(iter(metrics["protocols"].items()))
    metric = next(iter(tree))
    return [Headline(protocol, metric, f"{protocol} {metric}", results.subsets(tree[metric])[0])]


def wanted_curves(metrics: Mapping[str, Any], layout: Layout) -> list[str]:
    """The videos whose score curves are drawn: all, or the six best and six worst of many."""
    values = results.leaf(metrics["protocols"], *shown_headlines(metrics, layout)[0].place)["per_video"]
    if len(values) <= CURVES:
        return list(values)
    ranking = sorted((i for i, value in values.items() if value is not None), key=lambda i: values[i])
    return list(dict.fromkeys([*ranking[:6], *ranking[-6:]]))


def write_report(folder: str | Path, metrics: Mapping[str, Any], layout: Layout, curves: Iterable[figures.Curve]) -> Path:
    """Write the report folder; returns the path of report.html."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    folder = Path(folder)
    headlines = shown_headlines(metrics, layout)
    pictures = _pictures(metrics, layout, headlines)
    first = headlines[0]
    per_video = results.leaf(metrics["protocols"], *first.place)["per_video"]
    percent = layout.is_percent(first.protocol, first.metric)
    drawn: list[dict[str, Any]] = []
    for curve in curves:
        png, (left, right) = figures.score_curve(curve)
        said = json.dumps({"left": round(left, 4), "right": round(right, 4), **curve.under_the_mouse()}, allow_nan=False)
        value = table.shown(per_video.get(curve.key), percent)
        drawn.append({"id": curve.key, "title": curve.title, "value": value, "png": png, "said": said})
    ordered = sorted(((value, i) for i, value in per_video.items() if value is not None), reverse=True)
    listed = [{"id": i, "value": table.shown(value, percent)} for value, i in ordered]
    environment = Environment(loader=PackageLoader("aha.results", "."), autoescape=True, undefined=StrictUndefined)
    environment.filters["data"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    page = environment.get_template("report.html").render(
        layout=layout, videos=metrics["videos"], source=metrics["settings"]["predictions"], settings=json.dumps(metrics["settings"]),
        cards=[_card(metrics, layout, headline) for headline in headlines], heads=_heads(metrics, layout), table=_table(metrics, layout),
        missing=metrics.get("missing_metrics", {}), bars=pictures.get("per_category"), first=first,
        distributions={name: png for name, png in pictures.items() if name != "per_category"},
        best=listed[:EXTREMES], worst=listed[::-1][:EXTREMES], curves=drawn, left_out=_left_out(metrics["videos"]),
    )  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    for name, png in pictures.items():
        _write_bytes(folder / "figures" / f"{name}.png", png)
    for one in drawn:
        _write_bytes(folder / "figures" / "curves" / f"{_file_name(one['id'])}.png", one["png"])
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _file_name(video_id: str) -> str:
    """A video id as a file name: ids come from files of any origin."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in video_id)[:100] or "_"


def _references(metrics: Mapping[str, Any], layout: Layout, headline: Headline) -> dict[str, float]:
    found = {layout.rows.get(row, row): results.leaf(tree, *headline.place) for row, tree in metrics["baselines"].items()}
    return {name: entry["mean"] for name, entry in found.items() if entry is not None and entry["mean"] is not None}


def _pictures(metrics: Mapping[str, Any], layout: Layout, headlines: Sequence[Headline]) -> dict[str, bytes]:
    """figure name -> PNG."""
    pictures = {}
    panels = []
    for headline in headlines:
        entry = results.leaf(metrics["protocols"], *headline.place)
        if entry["per_category"]:
            panels.append((headline.label, dict(list(entry["per_category"].items())[:30]), _references(metrics, layout, headline)))
    if panels:
        pictures["per_category"] = figures.category_bars(panels)
    for number, headline in enumerate((*headlines[:1], *headlines[2:4]), 1):  # the second says nearly the same as the first
        per_video = results.leaf(metrics["protocols"], *headline.place)["per_video"]
        values = {i: value for i, value in per_video.items() if value is not None}
        if values:
            name = _file_name(f"distribution_{number}_{headline.protocol}_{headline.metric}")
            pictures[name] = figures.distribution(headline.label, values, _references(metrics, layout, headline))
    return pictures


def _card(metrics: Mapping[str, Any], layout: Layout, headline: Headline) -> dict[str, Any]:
    """A headline number with its interval, and a scale with the baselines: places 6..214 of a line."""
    percent = layout.is_percent(headline.protocol, headline.metric)
    entry = results.leaf(metrics["protocols"], *headline.place)
    bounds = results.leaf(metrics["confidence_intervals"], *headline.place)
    marks = _references(metrics, layout, headline)
    numbers = [0.0, *marks.values(), *([] if entry["mean"] is None else [entry["mean"]]), *(bounds or [])]
    low, span = min(numbers), (max(numbers) - min(numbers)) or 1.0

    def place(number: float | None) -> float | None:
        return None if number is None else round(6 + 208 * (number - low) / span, 1)

    listed = ", ".join(f"{name} {table.shown(mark, percent)}" for name, mark in sorted(marks.items(), key=lambda item: item[1]))
    return {
        "name": f"{headline.label} ({headline.protocol})", "value": table.shown(entry["mean"], percent), "listed": listed,
        "interval": table.interval(bounds, percent) if bounds else "", "count": f"{entry['videos']} of {len(entry['per_video'])}",
        "ticks": [place(mark) for mark in marks.values()], "bar": [place(bound) for bound in bounds or []], "dot": place(entry["mean"]),
    }  # fmt: skip


def _heads(metrics: Mapping[str, Any], layout: Layout) -> list[str]:
    trained = " (trained on)" if metrics["videos"]["trained_on"] else ""
    rows = [layout.rows.get(row, row) for row in metrics["baselines"]]
    return ["metric", f"this prediction{trained}", "95% interval", layout.unit, *rows]


def _table(metrics: Mapping[str, Any], layout: Layout) -> list[dict[str, Any]]:
    """One entry for each protocol that was computed: {"protocol", "rows": cells of each metric}."""
    groups = []
    for protocol in layout.protocols:
        rows = []
        for metric in protocol.metrics:
            tree = metrics["protocols"].get(protocol.name, {}).get(metric)
            percent = metric in protocol.percent
            for subset in results.subsets(tree) if tree is not None else []:
                where = (protocol.name, metric, subset)
                entry = results.leaf(metrics["protocols"], *where)
                bounds = results.leaf(metrics["confidence_intervals"], *where)
                cells = [f"{metric} {subset}".strip(), table.shown(entry["mean"], percent), table.interval(bounds, percent)]
                cells.append(f"{entry['videos']} of {len(entry['per_video'])}")
                for row in metrics["baselines"].values():
                    found = results.leaf(row, *where)
                    spread = f" ± {table.shown(found['sd'], percent)}" if found and found.get("sd") is not None else ""
                    cells.append(table.shown(found["mean"], percent) + spread if found else "")
                rows.append(cells)
        groups.append({"protocol": protocol, "rows": rows})
    return groups


def _left_out(videos: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(i, f"skipped: {reason}") for i, reason in videos["skipped"].items()]
    rows += [(i, "constant prediction: it has no correlation, which is left out of the mean") for i in videos["constant"]]
    return rows + [(i, "trained on") for i in videos["trained_on"]]
