"""Every figure of the project's evaluation, drawn with matplotlib without a display: those of a report (PNG bytes), those of a paper
(matplotlib figures, saved as PNG and PDF by `save`).

N scored samples, n places of the reference.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from aha.core.clock import clock, clock_ticks
from aha.core.files import atomic_path
from aha.core.fonts import readable, readable_families

COLOURS = ("#2563eb", "#d1495b", "#2a9d5c", "#8250df", "#e08e0b", "#4b5563")
BLUE, GREY, BAND, INK = COLOURS[0], "#9ca3af", "#fde68a", "#374151"
LINES = ("--", ":", "-.", (0, (1, 3)))
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
POINTS = 1500  # a curve is drawn with at most this many points
MOMENTS = 270  # that say their values under the mouse: about one every two pixels of a report's curve


def plain_text(figure: Figure) -> None:
    """Shows all text of a figure as it is: in fonts that have its characters (aha.core.fonts), and with $ as a dollar and no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        if not text.get_text().isascii():
            shown, families = readable_families(text.get_text())
            text.set_text(shown)
            text.set_fontfamily(families)


def png(figure: Figure, dpi: int = 110) -> bytes:
    FigureCanvasAgg(figure)
    plain_text(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def save(figure: Figure, output: str | Path) -> list[Path]:
    """Write `output`.png and `output`.pdf (text stays text)."""
    FigureCanvasAgg(figure)
    plain_text(figure)
    base = Path(output)
    base = base.with_suffix("") if base.suffix in (".png", ".pdf") else base
    paths = [base.with_name(base.name + suffix) for suffix in (".png", ".pdf")]
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: editable, and accepted by every publisher
        for path in paths:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=200)
    return paths


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=7)


# ---- score curves ----


@dataclass(frozen=True)
class Curve:
    """Scores of one video over what they are compared with; all places in seconds, or with `in_frames` in frames.

    scores: name -> (seconds [N], scores [N]). reference: (label, seconds [n], values [n]). band: (label, low [n], high [n]) around it.
    spans: (label, ((start, end), ...)), shaded. ticks: of the reference's axis, whose name and unit is `unit`.
    """

    key: str
    title: str
    duration: float
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]]
    reference: tuple[str, np.ndarray, np.ndarray] | None = None
    band: tuple[str, np.ndarray, np.ndarray] | None = None
    spans: tuple[str, Sequence[tuple[float, float]]] | None = None
    ticks: Sequence[float] = field(default=())
    unit: str = ""
    in_frames: bool = False

    @property
    def axis(self) -> str:
        return "frame" if self.in_frames else "time (m:ss)"

    def under_the_mouse(self) -> dict[str, Any]:
        """What a page shows at each of MOMENTS equal parts of the axis: {"moments": their names, "lines": name -> values}.

        A value is the last one given at or before the middle of the part, as predicted and not as drawn; None before the first.
        """
        middles_M = (np.arange(MOMENTS) + 0.5) / MOMENTS * self.duration
        given = dict(self.scores) if self.reference is None else {**self.scores, self.reference[0]: self.reference[1:]}
        lines = {}
        for name, (places, values) in given.items():
            last_M = np.searchsorted(places, middles_M, side="right") - 1
            lines[name] = [float(f"{values[last]:.4g}") if last >= 0 and np.isfinite(values[last]) else None for last in last_M]
        return {"moments": [f"frame {m:.0f}" if self.in_frames else clock(m) for m in middles_M], "lines": lines}


def thinned(count: int) -> np.ndarray:
    """Indices of at most POINTS of `count` values."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))


def stretched(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores moved and stretched to low..high, which rank measures do not see; a constant sits in the middle."""
    span = float(np.ptp(scores))
    return (scores - scores.min()) / span * (high - low) + low if span > 0 else np.full(len(scores), (low + high) / 2)


def _draw(axes: Any, curve: Curve) -> None:
    low, high = 0.0, 1.0
    if curve.reference is not None:
        label, seconds, values = curve.reference
        low, high = float(values.min()), float(values.max())
        axes.plot(seconds, values, color=INK, lw=0.9, label=label)
        if curve.band is not None:
            axes.fill_between(seconds, curve.band[1], curve.band[2], color=BAND, lw=0, step="mid", label=curve.band[0])
    if curve.spans is not None:
        for index, (start, end) in enumerate(curve.spans[1]):
            axes.axvspan(start, end, color=BAND, lw=0, label=curve.spans[0] if index == 0 else None)
    for colour, (name, (seconds, scores)) in zip(COLOURS, curve.scores.items()):
        few = thinned(len(seconds))
        axes.step(seconds[few], stretched(scores[few], low, high), where="post", color=colour, lw=0.9, label=f"{name} (stretched)")
    if curve.ticks:
        axes.set_yticks(curve.ticks)
    axes.set_xlim(0, curve.duration)
    if not curve.in_frames:
        ticks = clock_ticks(0, curve.duration, 7)
        axes.set_xticks(ticks, [clock(tick) for tick in ticks])
    _clean(axes)


def score_curve(curve: Curve) -> tuple[bytes, tuple[float, float]]:
    """One curve of a report, and where its axis begins and ends: shares of the picture's width."""
    figure = Figure(figsize=(6, 1.9), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, curve)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes.set_xlabel(curve.axis, fontsize=7, color=INK)
    axes.set_ylabel(curve.unit, fontsize=7, color=INK)
    axes.legend(fontsize=6, frameon=False, ncols=3, loc="upper right", borderaxespad=0)
    drawn = png(figure, dpi=100)  # which also lays it out
    return drawn, (axes.get_position().x0, axes.get_position().x1)


def curves_figure(curves: Sequence[Curve]) -> Figure:
    """One panel a video."""
    columns = min(2, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(3.6 * columns, 1.7 * rows + 0.4), layout="constrained")
    for number, curve in enumerate(curves, 1):
        axes = figure.add_subplot(rows, columns, number)
        _draw(axes, curve)
        title = f"{curve.key}  {curve.title}".rstrip()
        title = title if len(title) <= 64 else title[:63] + "…"
        axes.set_title(title, fontsize=7, loc="left")
        if number > len(curves) - columns:
            axes.set_xlabel(curve.axis, fontsize=7)
        if number % columns == 1 % columns:
            axes.set_ylabel(curve.unit, fontsize=7)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, frameon=False, ncols=4, loc="outside lower center")
    return figure


# ---- numbers over categories and videos ----


def category_bars(panels: Sequence[tuple[str, Mapping[str, float | None], Mapping[str, float | None]]]) -> bytes:
    """Bars per category; one panel for each (metric name, value by category, reference lines by name). Undefined values have no bar."""
    names = list(panels[0][1])
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(names)), layout="constrained")
    for index, (title, values, references) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), index)
        rows = np.arange(len(names))[::-1]
        heights = [np.nan if (value := values.get(name)) is None else value for name in names]
        axes.barh(rows, heights, color=BLUE, height=0.65)
        axes.set_yticks(rows, [readable(name)[0] for name in names] if index == 1 else [""] * len(names))
        for (name, value), style in zip(references.items(), LINES):
            if value is not None:
                axes.axvline(value, color=INK, linestyle=style, linewidth=1, label=name)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_title(title, fontsize=9, color=INK)
        _clean(axes)
        if index == 1 and axes.get_legend_handles_labels()[0]:
            figure.legend(*axes.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=3, loc="outside lower right")
    return png(figure)


def distribution(title: str, values: Mapping[str, float], references: Mapping[str, float | None]) -> bytes:
    """Every video as a bar, worst to best, with the three best and worst named; more than 200 videos as a histogram."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.add_subplot()
    lines = [(name, value) for name, value in references.items() if value is not None]
    if len(ordered) > 200:
        axes.hist([value for _, value in ordered], bins=60, color=BLUE)
        axes.set(xlabel=title, ylabel="videos")
        for (name, value), style in zip(lines, LINES):
            axes.axvline(value, color=INK, linestyle=style, linewidth=1, label=name)
    else:
        axes.bar(np.arange(len(ordered)), [value for _, value in ordered], color=BLUE, width=0.8)
        low, high = min(0.0, ordered[0][1]), max(value for _, value in [*ordered, *lines])
        span = (high - low) or 1.0
        marked = sorted({*range(min(3, len(ordered))), *range(max(0, len(ordered) - 3), len(ordered))})
        for index in marked:
            name, value = ordered[index]
            axes.text(
                index, max(value, 0) + 0.02 * span, name, rotation=90, ha="center", va="bottom", fontsize=7, color=INK, bbox=LABEL_BOX
            )
        axes.set(ylabel=title, xticks=[], xlabel="videos, worst to best")
        axes.set_ylim(low - 0.03 * span, high + 0.32 * span)
        axes.axhline(0, color=GREY, linewidth=0.8)
        for (name, value), style in zip(lines, LINES):
            axes.axhline(value, color=INK, linestyle=style, linewidth=1, label=name)
    if lines:
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.xaxis.label.set(fontsize=8, color=INK)
    axes.yaxis.label.set(fontsize=8, color=INK)
    _clean(axes)
    return png(figure)


def grouped_bars(label: str, values: Mapping[str, Mapping[str, Any]], references: Mapping[str, float | None]) -> Figure:
    """Grouped bars per category, the mean of all videos set apart, and reference lines. values: name -> {"mean", "per_category"}."""
    names = list(dict.fromkeys(category for value in values.values() for category in value.get("per_category", {})))
    figure = Figure(figsize=(max(4.0, 0.55 * len(names) + 2.2), 2.6), layout="constrained")
    axes = figure.add_subplot()
    at = np.array([*np.arange(len(names)), len(names) + 0.5])
    width = 0.8 / len(values)
    for number, (name, value) in enumerate(values.items()):
        heights = [np.nan if (v := value.get("per_category", {}).get(category)) is None else v for category in names]
        heights.append(np.nan if value["mean"] is None else value["mean"])
        axes.bar(at + (number - (len(values) - 1) / 2) * width, heights, width * 0.92, color=COLOURS[number % len(COLOURS)], label=name)
    for (name, level), style in zip(references.items(), LINES):
        if level is not None:
            axes.axhline(level, color=INK, lw=0.8, ls=style, label=name)
    axes.axhline(0, color=GREY, lw=0.6)
    axes.set_xticks(at, [*(readable(name)[0] for name in names), "all"])
    axes.set_ylabel(label, fontsize=8)
    _clean(axes)
    figure.legend(fontsize=7, frameon=False, ncols=4, loc="outside lower center")
    return figure


# ---- tables as figures ----

Row = tuple[str, list[tuple[float | None, Any]]]  # name, (mean, 95% interval or None) of each column


def cell_text(mean: float | None, interval: Any) -> str:
    if mean is None:
        return "–"
    digits = 3 if abs(mean) < 10 else 1  # fractions, or percent

    def shown(value: float) -> str:
        return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero

    if isinstance(interval, list) and None not in interval:
        return f"{shown(mean)} [{shown(interval[0])}, {shown(interval[1])}]"
    return shown(mean)


def best_rows(rows: Sequence[Row], models: int) -> list[int | None]:
    """For each column the model row (not a baseline) with the highest mean."""
    best = []
    for column in range(len(rows[0][1])):
        known = [(cells[column][0], -index) for index, (_, cells) in enumerate(rows[:models]) if cells[column][0] is not None]
        best.append(-max(known)[1] if known else None)
    return best


def table_figure(rows: Sequence[Row], columns: Sequence[str], models: int) -> Figure:
    """The table as a figure: the best model of each column bold, baselines below a rule."""
    best = best_rows(rows, models)
    name_width = 0.09 * max(len(name) for name, _ in rows) + 0.3
    cell_width = max(1.6, 0.078 * max(len(c) for c in columns) + 0.2)
    width, height = name_width + cell_width * len(columns), 0.26 * (len(rows) + 1.6)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    top = height - 0.26
    for number, column in enumerate(columns):
        axes.text(name_width + cell_width * (number + 0.5), top, column, ha="center", va="center", fontsize=8, color=INK)
    for index, (name, cells) in enumerate(rows):
        y = top - 0.26 * (index + 1)
        axes.text(0.1, y, name, va="center", fontsize=8, color=INK if index < models else "#6b7280")
        for number, (mean, interval) in enumerate(cells):
            x, bold = name_width + cell_width * (number + 0.5), best[number] == index and models > 1
            axes.text(x, y, cell_text(mean, interval), ha="center", va="center", fontsize=8, weight="bold" if bold else "normal")
    for y, line in ((top + 0.15, 1.2), (top - 0.13, 0.7), (top - 0.26 * (models + 0.5), 0.7), (top - 0.26 * (len(rows) + 0.5), 1.2)):
        axes.plot([0.05, width - 0.05], [y, y], color=INK, lw=line)
    return figure
