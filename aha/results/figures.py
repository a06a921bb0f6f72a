"""The figures of an evaluation report, drawn with matplotlib without a display; each function returns a PNG (bytes)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, GREY, GREEN, BAND, INK = "#2563eb", "#9ca3af", "#059669", "#fde68a", "#374151"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
POINTS = 800  # a curve is drawn with at most this many points


def _png(figure: Figure, dpi: int = 110) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _clean(axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8)


def category_bars(panels: Sequence[tuple[str, Mapping[str, float | None], Mapping[str, float | None]]]) -> bytes:
    """Bars per category; one panel for each (metric name, value by category, reference lines by name). Undefined values have no bar."""
    names = list(panels[0][1])
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(names)), layout="constrained")
    for index, (title, values, references) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), index)
        rows = np.arange(len(names))[::-1]
        heights = [np.nan if values.get(name) is None else values[name] for name in names]
        axes.barh(rows, heights, color=BLUE, height=0.65)
        axes.set_yticks(rows, names if index == 1 else [""] * len(names))
        for (name, value), style in zip(references.items(), ("--", ":", "-.")):
            if value is not None:
                axes.axvline(value, color=INK, linestyle=style, linewidth=1, label=name)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_title(title, fontsize=9, color=INK)
        _clean(axes)
        if index == 1 and axes.get_legend_handles_labels()[0]:
            figure.legend(*axes.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=3, loc="outside lower right")
    return _png(figure)


def distribution(title: str, values: Mapping[str, float], references: Mapping[str, float | None]) -> bytes:
    """Every video as a bar, worst to best, with the three best and worst named; more than 200 videos as a histogram."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.add_subplot()
    lines = [(name, value) for name, value in references.items() if value is not None]
    if len(ordered) > 200:
        axes.hist([value for _, value in ordered], bins=60, color=BLUE)
        axes.set(xlabel=title, ylabel="videos")
        for (name, value), style in zip(lines, ("--", ":", "-.")):
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
        for (name, value), style in zip(lines, ("--", ":", "-.")):
            axes.axhline(value, color=INK, linestyle=style, linewidth=1, label=name)
    if lines:
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.xaxis.label.set(fontsize=8, color=INK)
    axes.yaxis.label.set(fontsize=8, color=INK)
    _clean(axes)
    return _png(figure)


def _thinned(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))


def _stretched(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores moved and stretched to the range low..high, so that both curves fill the same height; a constant sits in the middle."""
    span = float(scores.max() - scores.min())
    return (scores - scores.min()) / span * (high - low) + low if span > 0 else np.full(len(scores), (low + high) / 2)


def annotated_curve(user_scores: np.ndarray, fps: float, frames: np.ndarray, scores: np.ndarray) -> bytes:
    """Prediction (frames [N], scores [N]) over the band of the annotators (user_scores [A, n]): 10th to 90th percentile, and their mean."""
    shown = _thinned(user_scores.shape[1])
    people = user_scores[:, shown].astype(np.float64)
    low, high = np.percentile(people, [10, 90], axis=0)
    mean = people.mean(axis=0)
    figure = Figure(figsize=(6, 1.9), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(shown / fps, low, high, color=BAND, linewidth=0, step="mid", label="people, 10% to 90%")
    axes.plot(shown / fps, mean, color=INK, linewidth=1, label="their mean")
    few = _thinned(len(frames))
    stretched = _stretched(scores[few], mean.min(), mean.max())
    axes.step(frames[few] / fps, stretched, where="post", color=BLUE, linewidth=1, label="prediction (stretched)")
    axes.set_ylim(0.8, 6.0)  # room for the legend
    axes.set_yticks([1, 2, 3, 4, 5])
    axes.set_xlim(0, user_scores.shape[1] / fps)
    axes.set_xlabel("seconds", fontsize=7, color=INK)
    axes.legend(fontsize=6, frameon=False, ncols=3, loc="upper right", borderaxespad=0)
    _clean(axes)
    return _png(figure, dpi=100)


def summary_curve(gtscore: np.ndarray, gt_summary: np.ndarray | None, scores: np.ndarray) -> bytes:
    """Prediction [n] over gtscore [n] with the ground-truth summary shaded; one value a second."""
    seconds = np.arange(len(gtscore))
    figure = Figure(figsize=(6, 1.9), layout="constrained")
    axes = figure.add_subplot()
    low, high = float(gtscore.min()), float(gtscore.max())
    if gt_summary is not None:
        axes.fill_between(seconds, low, high, where=gt_summary, color=BAND, linewidth=0, step="mid", label="reference summary")
    axes.plot(seconds, gtscore, color=INK, linewidth=1, label="gtscore")
    axes.plot(seconds, _stretched(scores, low, high), color=BLUE, linewidth=1, label="prediction (stretched)")
    axes.set_ylim(low - 0.02, high + 0.2 * (high - low or 1.0))
    axes.set_xlabel("seconds", fontsize=7, color=INK)
    axes.legend(fontsize=6, frameon=False, ncols=3, loc="upper right", borderaxespad=0)
    _clean(axes)
    return _png(figure, dpi=100)
