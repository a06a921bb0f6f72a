"""The timeline as a picture: scores over time, where segments end, what was chosen, how unsure the model is, and a film strip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from aha.core.clock import clock, clock_ticks
from aha.core.files import atomic_path
from aha.core.fonts import readable_families
from aha.highlights.timeline import Highlight, ScoreTrack, Segment

RELEVANCE, INFORMATIVE, UNSURE, CHOSEN, EDGE = "#1f6feb", "#8250df", "#9aa4b2", "#ffd33d", "#57606a"
INK = "#24292f"
WIDTH = 11.0  # inches
CURVE, LANE, STRIP = 3.2, 0.55, 0.72  # inches of height


def write_timeline(
    path: str | os.PathLike,
    track: ScoreTrack,
    fused_F: np.ndarray,
    segments: Sequence[Segment],
    highlights: Sequence[Highlight],
    title: str,
    strip: Sequence[Image.Image] = (),
) -> None:
    """Write the timeline as PNG (or PDF, by the path's suffix). Figures are made without pyplot, so any thread may call this.

    strip: pictures of equal parts of the video, in order (aha.highlights.thumbnails.strip_frames), shown below the curve.
    """
    rows = [CURVE] + ([LANE] if track.uncertainty_F is not None else []) + ([STRIP] if strip else [])
    figure = Figure(figsize=(WIDTH, sum(rows) + 0.55), dpi=120, layout=ConstrainedLayoutEngine(h_pad=0.03, hspace=0.02))
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0])
    _curve(panels[0], track, fused_F, segments, highlights)
    if track.uncertainty_F is not None:
        _lane(panels[1], track.times_F, track.uncertainty_F)
    if strip:
        _strip(panels[-1], strip, track.duration)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    bottom = panels[-1]
    bottom.set_xlim(0, max(track.duration, 1e-3))
    bottom.set_xticks(clock_ticks(0.0, track.duration))
    bottom.xaxis.set_major_formatter(lambda value, _: clock(value))
    bottom.set_xlabel("time (h:mm:ss)" if track.duration >= 3600 else "time (m:ss)")
    shown, families = readable_families(title)
    panels[0].set_title(plain(shown, 110), fontsize=10, pad=16, fontfamily=families)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _curve(axes: Any, track: ScoreTrack, fused_F: np.ndarray, segments: Sequence[Segment], highlights: Sequence[Highlight]) -> None:
    for number, highlight in enumerate(highlights):
        label = "chosen" if number == 0 else None
        axes.axvspan(highlight.start, highlight.end, color=CHOSEN, alpha=0.45, lw=0, label=label)
    for number, segment in enumerate(segments[:-1]):
        axes.axvline(segment.end, color=EDGE, lw=0.7, alpha=0.6, label="segment ends" if number == 0 else None)
    times_F, dot = track.times_F, "." if len(track) == 1 else None
    axes.plot(times_F, track.informative_F, color=INFORMATIVE, lw=0.9, alpha=0.8, marker=dot, label="informative")
    axes.plot(times_F, track.relevance_F, color=RELEVANCE, lw=1.0, alpha=0.7, marker=dot, label="relevance")
    axes.plot(times_F, fused_F, color="black", lw=1.6, marker=dot, label="score")
    low, high = min(0.0, float(np.min(fused_F))), max(1.0, float(np.max(fused_F)))
    for highlight in highlights:
        middle = (highlight.start + highlight.end) / 2
        axes.annotate(
            str(highlight.rank), (middle, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            va="bottom", fontsize=8, annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
    usual = (low, high) == (0.0, 1.0)
    if usual:
        axes.set_yticks(np.linspace(0, 1, 5))
    axes.set_ylabel("score (0 to 1)" if usual else "score (weighted sum)")
    axes.grid(axis="y", color=UNSURE, alpha=0.25, lw=0.6)
    axes.legend(fontsize=8, ncols=6, loc="upper right", borderaxespad=0.3, framealpha=0.85, edgecolor="none")
    _clean(axes)


def _lane(axes: Any, times_F: np.ndarray, variance_F: np.ndarray) -> None:
    """How unsure the relevance is, in a lane of its own: around the curve it would hide the curve."""
    sd_F = np.sqrt(np.maximum(variance_F, 0))
    axes.fill_between(times_F, 0, sd_F, color=UNSURE, alpha=0.55, lw=0)
    axes.plot(times_F, sd_F, color=EDGE, lw=0.8, marker="." if len(sd_F) == 1 else None)
    top = float(np.max(sd_F)) * 1.15 or 1.0
    axes.set_ylim(0, top)
    axes.set_yticks([0, round(top / 1.15, 2) or top])
    axes.set_ylabel("unsure\n(sd)", rotation=0, ha="right", va="center", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    _clean(axes)


def _strip(axes: Any, strip: Sequence[Image.Image], duration: float) -> None:
    """Each picture cut to its place, its middle kept."""
    places = np.linspace(0, max(duration, 1e-3), len(strip) + 1)
    aspect = 0.92 * WIDTH / len(strip) / STRIP  # of a place on paper, about
    for picture, left, right in zip(strip, places, places[1:]):
        width, height = min(picture.width, round(picture.height * aspect)), min(picture.height, round(picture.width / aspect))
        x, y = (picture.width - width) // 2, (picture.height - height) // 2
        cut = np.asarray(picture.crop((x, y, x + max(1, width), y + max(1, height))))
        axes.imshow(cut, extent=(left, right, 0, 1), aspect="auto", interpolation="antialiased")
    for place in places[1:-1]:
        axes.axvline(place, color="white", lw=1)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def plain(text: str, length: int) -> str:
    """One line of at most `length` characters in which nothing is markup ($ would start a formula)."""
    text = " ".join(text.split())
    if len(text) > length:
        text = text[: length - 1].rstrip() + "…"
    return text.replace("$", r"\$")
