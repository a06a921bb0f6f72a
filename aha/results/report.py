"""The evaluation report: metrics.json, figures as PNG, and report.html, one file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.files import atomic_path, write_json, write_text
from aha.core.predictions import PredictionStream, Weights
from aha.eval import hisum, tvsum
from aha.eval.baselines import HUMAN, HUMAN_MEAN, RANDOM, UPPER
from aha.eval.tvsum_protocols import PROTOCOLS as TVSUM_PROTOCOLS
from aha.metrics.hisum import PROTOCOLS as HISUM_PROTOCOLS
from aha.results import figures, table
from aha.results import tree as results

Metric = tuple[str, str, str]  # protocol, metric, subset


@dataclass(frozen=True)
class Layout:
    """What the two benchmarks' reports differ in."""

    title: str
    protocols: Mapping[str, tuple[str, Sequence[str]]]
    headlines: Sequence[tuple[Metric, str]]  # metrics of the first page and their names
    rows: Mapping[str, str]  # baseline rows and their names
    percent: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Curve:
    video_id: str
    title: str
    png: bytes


def write_tvsum_report(folder: str | Path, metrics: dict[str, Any], benchmark: tvsum.Benchmark, scored: tvsum.Scored) -> Path:
    """Write the report folder; returns the path of report.html."""
    layout = Layout(
        "TVSum",
        TVSUM_PROTOCOLS,
        [
            (("corr_full", "kendall", ""), "Kendall tau"),
            (("corr_full", "spearman", ""), "Spearman rho"),
            (("f1_official60", "f1", ""), "key-shot F1"),
            (("hd_top5", "top5_map", "all50"), "top-5 mAP"),
        ],
        {RANDOM: "random", HUMAN: "one human", HUMAN_MEAN: "one human (mean of 19)", UPPER: "mean annotation"},
        frozenset(),
    )
    curves = []
    for video_id, (frames, scores) in scored.samples.items():
        video = benchmark.known[video_id]
        png = figures.annotated_curve(video.user_scores, video.fps, frames, scores)
        curves.append(Curve(video_id, f"{video.category}: {video.title}", png))
    return _write(Path(folder), metrics, layout, curves)


def write_hisum_report(
    folder: str | Path, metrics: dict[str, Any], benchmark: hisum.Benchmark, scored: hisum.Scored, weights: Weights
) -> Path:
    """Write the report folder, with the curves of the twelve best and worst videos; returns the path of report.html."""
    layout = Layout(
        "Mr.HiSum",
        HISUM_PROTOCOLS,
        [
            (("official", "map50", ""), "mAP at 50%"),
            (("official", "map15", ""), "mAP at 15%"),
            (("official", "f1", ""), "key-shot F1 (%)"),
            (("score_correlation_and_padded_map_triplesumm", "kendall", ""), "Kendall tau"),
        ],
        {RANDOM: "random", hisum.UPPER: "gtscore itself"},
        hisum.PERCENT,
    )
    first = next(column for column in scored.columns if not np.isnan(column.values).all())
    ranking = [i for i in np.argsort(first.values, kind="stable") if not np.isnan(first.values[i])]
    wanted = {first.ids[i] for i in [*ranking[:6], *ranking[-6:]]}
    curves = []
    for prediction in PredictionStream(scored.path, weights):
        video_id = benchmark.metadata.youtube.get(prediction.video_id, prediction.video_id)
        if video_id in wanted:
            video = benchmark.file.read(video_id, benchmark.with_summary)
            scores = hisum.on_seconds(prediction, len(video.gtscore), video_id)
            png = figures.summary_curve(video.gtscore, video.gt_summary, scores)
            curves.append(Curve(video_id, benchmark.metadata.categories.get(video_id, ""), png))
    return _write(Path(folder), metrics, layout, curves)


def _write(folder: Path, metrics: dict[str, Any], layout: Layout, curves: Sequence[Curve]) -> Path:
    headlines = [(metric, name) for metric, name in layout.headlines if results.leaf(metrics["protocols"], *metric) is not None]
    if not headlines:  # a subset of the protocols: show what there is
        tree = metrics["protocols"]
        protocol = next(iter(tree))
        metric = next(iter(tree[protocol]))
        subset = "" if "mean" in tree[protocol][metric] else next(iter(tree[protocol][metric]))
        headlines = [((protocol, metric, subset), f"{protocol} {metric}")]
    pictures = _pictures(metrics, layout, headlines)
    page = _page(metrics, layout, headlines, pictures, curves)
    write_json(folder / "metrics.json", metrics)
    for name, png in pictures.items():
        _write_bytes(folder / "figures" / f"{name}.png", png)
    for curve in curves:
        _write_bytes(folder / "figures" / "curves" / f"{_file_name(curve.video_id)}.png", curve.png)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _file_name(video_id: str) -> str:
    """A video id as a file name: ids come from files of any origin."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in video_id)[:100] or "_"


def _references(metrics: dict[str, Any], layout: Layout, metric: Metric) -> dict[str, float | None]:
    found = {name: results.leaf(metrics["baselines"].get(row, {}), *metric) for row, name in layout.rows.items()}
    return {name: entry["mean"] for name, entry in found.items() if entry is not None}


def _pictures(metrics: dict[str, Any], layout: Layout, headlines: Sequence[tuple[Metric, str]]) -> dict[str, bytes]:
    """figure name -> PNG."""
    pictures = {}
    panels = []
    for metric, name in headlines:
        entry = results.leaf(metrics["protocols"], *metric)
        if entry["per_category"]:
            by_size = list(entry["per_category"].items())[:30]
            references = {k: v for k, v in _references(metrics, layout, metric).items() if k in ("random", "one human")}
            panels.append((name, dict(by_size), references))
    if panels:
        pictures["per_category"] = figures.category_bars(panels)
    for number, (metric, name) in enumerate(headlines[:1] + headlines[2:], 1):
        values = {i: v for i, v in results.leaf(metrics["protocols"], *metric)["per_video"].items() if v is not None}
        if values:
            references = {k: v for k, v in _references(metrics, layout, metric).items() if k in ("random", "one human", "mean annotation")}
            pictures[f"distribution_{number}_{metric[0]}_{metric[1]}"] = figures.distribution(name, values, references)
    return pictures


# ---------------------------------------------------------------- HTML

STYLE = """
:root{--ink:#1f2937;--soft:#6b7280;--line:#e5e7eb;--blue:#2563eb}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:#fff}
body{margin:0 auto;max-width:1120px;padding:28px 20px;overflow-wrap:anywhere}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:36px 0 10px}p.sub{color:var(--soft);margin:4px 0 18px;word-break:break-all}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:12px}
.card{border:1px solid var(--line);border-radius:10px;padding:14px}.card b{font-size:26px;display:block;line-height:1.2}
.card .name{color:var(--soft);font-size:13px}.ci{color:var(--soft);font-size:12px}
.chips span{display:inline-block;border:1px solid var(--line);border-radius:99px;padding:2px 12px;margin:0 8px 8px 0;font-size:13px}
.bad{background:#fef2f2;border:1px solid #fca5a5;color:#991b1b;border-radius:10px;padding:10px 14px;margin:12px 0;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:13.5px}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}th{color:var(--soft);font-weight:600}
th:first-child,td:first-child,td.left,th.left{text-align:left}
tr.group td{border-bottom:none;padding-top:16px;font-weight:600;white-space:normal}tr.group span{color:var(--soft);font-weight:400}
td.this{font-weight:700;color:var(--blue)}img{max-width:100%;height:auto}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(420px,100%),1fr));gap:16px}
figure{margin:0;border:1px solid var(--line);border-radius:10px;padding:10px}
figcaption{font-size:12.5px;color:var(--soft)}figcaption b{color:var(--ink)}footer{color:var(--soft);font-size:12.5px;margin-top:40px}
"""


def _page(
    metrics: dict[str, Any],
    layout: Layout,
    headlines: Sequence[tuple[Metric, str]],
    pictures: Mapping[str, bytes],
    curves: Sequence[Curve],
) -> str:
    videos, settings = metrics["videos"], metrics["settings"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{layout.title}: {_text(Path(settings['predictions']).name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{layout.title} evaluation</h1><p class=sub>{_text(settings['predictions'])}</p>",
        _chips(videos),
        "<div class=cards>" + "".join(_card(metrics, layout, metric, name) for metric, name in headlines) + "</div>",
        "<h2>Every protocol</h2><div class=scroll>" + _table(metrics, layout) + "</div>",
    ]
    if "per_category" in pictures:
        parts.append(f"<h2>Per category</h2>{_image(pictures['per_category'], 'bars per category')}")
    parts.append("<h2>Distribution over videos</h2>")
    parts += [_image(png, name) for name, png in pictures.items() if name != "per_category"]
    parts += [_extremes(metrics, layout, headlines[0]), "<h2>Score curves</h2>"]
    parts.append(
        "<p class=sub>Predictions are moved and stretched to the height of the reference curve; rank measures do not see that.</p>"
    )
    parts.append("<div class=curves>" + "".join(_curve(metrics, headlines[0], curve) for curve in curves) + "</div>")
    parts.append(_left_out(videos))
    parts.append(f"<footer>Settings: {_text(json.dumps(settings))}<br>Definitions: aha/eval/metrics and aha/eval/*_protocols.py</footer>")
    return "\n".join([*parts, "</body></html>"])


def _text(value: object) -> str:
    return html.escape(str(value))


def _image(png: bytes, name: str) -> str:
    return f'<img alt="{_text(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _chips(videos: Mapping[str, Any]) -> str:
    counts = [("scored", videos["scored"])] + [(name, len(videos[name])) for name in ("skipped", "constant", "trained_on")]
    text = "<div class=chips>" + "".join(f"<span>{name.replace('_', ' ')}: {count}</span>" for name, count in counts) + "</div>"
    if videos["trained_on"]:
        text += f"<div class=bad>The model was trained on {len(videos['trained_on'])} of these videos: no held-out result.</div>"
    return text


def _card(metrics: dict[str, Any], layout: Layout, metric: Metric, name: str) -> str:
    """A headline number with its interval, on a scale with the baselines."""
    percent = metric[:2] in layout.percent
    entry = results.leaf(metrics["protocols"], *metric)
    bounds = results.leaf(metrics["confidence_intervals"], *metric)
    references = _references(metrics, layout, metric)
    interval = f"95% interval {table.interval(bounds, percent)}, " if bounds else ""
    return (
        f"<div class=card><div class=name>{_text(name)} ({_text(metric[0])})</div><b>{table.shown(entry['mean'], percent)}</b>"
        f"<div class=ci>{interval}{entry['videos']} of {len(entry['per_video'])} videos</div>"
        f"{_scale(entry['mean'], bounds, references, percent)}</div>"
    )


def _scale(value: float | None, bounds: Sequence[float] | None, references: Mapping[str, float | None], percent: bool) -> str:
    """Inline SVG: the number (dot), its interval (bar) and the baselines (ticks, listed below)."""
    marks = {name: mark for name, mark in references.items() if mark is not None}
    shown = [0.0, *marks.values(), *([value] if value is not None else []), *(bounds or [])]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0

    def x(number: float) -> float:
        return 6 + 208 * (number - low) / span

    parts = ['<svg viewBox="0 0 220 22" width="100%" role="img"><line x1="6" x2="214" y1="11" y2="11" stroke="#e5e7eb" stroke-width="2"/>']
    parts += [f'<line x1="{x(m):.1f}" x2="{x(m):.1f}" y1="3" y2="19" stroke="#374151" stroke-width="1.5"/>' for m in marks.values()]
    if bounds:
        parts.append(f'<line x1="{x(bounds[0]):.1f}" x2="{x(bounds[1]):.1f}" y1="11" y2="11" stroke="#93c5fd" stroke-width="6"/>')
    if value is not None:
        parts.append(f'<circle cx="{x(value):.1f}" cy="11" r="4.5" fill="#2563eb"/>')
    listed = ", ".join(f"{_text(name)} {table.shown(mark, percent)}" for name, mark in sorted(marks.items(), key=lambda item: item[1]))
    return "".join(parts) + f"</svg><div class=ci>ticks: {listed}</div>"


def _table(metrics: dict[str, Any], layout: Layout) -> str:
    shown_rows = {row: name for row, name in layout.rows.items() if metrics["baselines"].get(row)}
    trained = " (trained on)" if metrics["videos"]["trained_on"] else ""
    heads = ["metric", f"this prediction{trained}", "95% interval", "videos", *shown_rows.values()]
    rows = ["<table><tr>" + "".join(f"<th>{_text(head)}</th>" for head in heads) + "</tr>"]
    for protocol in metrics["settings"]["protocols"]:
        description, names = layout.protocols[protocol]
        rows.append(f"<tr class=group><td colspan={len(heads)}>{protocol} <span>{_text(description)}</span></td></tr>")
        for name in names:
            tree = metrics["protocols"][protocol][name]
            for subset in [""] if "mean" in tree else list(tree):
                metric = (protocol, name, subset)
                percent = metric[:2] in layout.percent
                entry = results.leaf(metrics["protocols"], *metric)
                cells = [
                    f"<td>{_text(' '.join(filter(None, (name, subset))))}</td><td class=this>{table.shown(entry['mean'], percent)}</td>"
                ]
                cells.append(f"<td>{table.interval(results.leaf(metrics['confidence_intervals'], *metric), percent)}</td>")
                cells.append(f"<td>{entry['videos']} of {len(entry['per_video'])}</td>")
                for row in shown_rows:
                    baseline = results.leaf(metrics["baselines"][row], *metric)
                    spread = f" ± {table.shown(baseline['sd'], percent)}" if baseline and baseline.get("sd") is not None else ""
                    cells.append(f"<td>{table.shown(baseline['mean'], percent) if baseline else ''}{spread}</td>")
                rows.append("<tr>" + "".join(cells) + "</tr>")
    return "".join(rows) + "</table>"


def _extremes(metrics: dict[str, Any], layout: Layout, headline: tuple[Metric, str], count: int = 5) -> str:
    metric, name = headline
    percent = metric[:2] in layout.percent
    values = results.leaf(metrics["protocols"], *metric)["per_video"]
    ordered = sorted(((v, i) for i, v in values.items() if v is not None), reverse=True)
    if not ordered:
        return ""

    def listed(pairs: Sequence[tuple[float, str]]) -> str:
        return "".join(f"<tr><td>{_text(video_id)}</td><td>{table.shown(value, percent)}</td></tr>" for value, video_id in pairs)

    worst = ordered[-count:][::-1]
    return (
        f"<div class=cards><div><h2>Best videos ({_text(name)})</h2><table>{listed(ordered[:count])}</table></div>"
        f"<div><h2>Worst videos ({_text(name)})</h2><table>{listed(worst)}</table></div></div>"
    )


def _curve(metrics: dict[str, Any], headline: tuple[Metric, str], curve: Curve) -> str:
    metric, name = headline
    value = results.leaf(metrics["protocols"], *metric)["per_video"].get(curve.video_id)
    caption = f"<b>{_text(curve.video_id)}</b> {_text(name)} {table.shown(value)}<br>{_text(curve.title)}"
    return f"<figure>{_image(curve.png, 'scores of ' + curve.video_id)}<figcaption>{caption}</figcaption></figure>"


def _left_out(videos: Mapping[str, Any]) -> str:
    rows = [(i, f"skipped: {reason}") for i, reason in videos["skipped"].items()]
    rows += [(i, "constant prediction: no correlation, left out of its mean") for i in videos["constant"]]
    rows += [(i, "trained on") for i in videos["trained_on"]]
    if not rows:
        return ""
    cells = "".join(f"<tr><td>{_text(video_id)}</td><td class=left>{_text(reason)}</td></tr>" for video_id, reason in rows[:500])
    more = f"<p class=sub>and {len(rows) - 500} more, see metrics.json</p>" if len(rows) > 500 else ""
    return f"<h2>Videos to know about</h2><table>{cells}</table>{more}"
