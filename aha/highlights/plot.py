"""The timeline as a picture: scores over time, where segments end, and what was chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aha.core.files import atomic_path
from aha.core.fonts import readable_families
from aha.highlights.chapters import clock
from aha.highlights.timeline import Highlight, ScoreTrack, Segment

RELEVANCE, INFORMATIVE, UNSURE, CHOSEN, EDGE = "#1f6feb", "#8250df", "#9aa4b2", "#ffd33d", "#57606a"


def write_timeline(
    path: str | os.PathLike,
    track: ScoreTrack,
    fused_F: np.ndarray,
    segments: Sequence[Segment],
    highlights: Sequence[Highlight],
    title: str,
) -> None:
    """Write the timeline as PNG (or PDF, by the path's suffix). Figures are made without pyplot, so any thread may call this."""
    figure = Figure(figsize=(11, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, highlight in enumerate(highlights):
        label = "chosen" if number == 0 else None
        axes.axvspan(highlight.start, highlight.end, color=CHOSEN, alpha=0.45, lw=0, label=label)
    for number, segment in enumerate(segments[:-1]):
        axes.axvline(segment.end, color=EDGE, lw=0.7, alpha=0.6, label="segment ends" if number == 0 else None)
    times_F = track.times_F
    if track.uncertainty_F is not None:
        spread_F = np.sqrt(np.maximum(track.uncertainty_F, 0))
        low, high = np.clip(track.relevance_F - spread_F, 0, 1), np.clip(track.relevance_F + spread_F, 0, 1)
        axes.fill_between(times_F, low, high, color=UNSURE, alpha=0.22, lw=0, label="relevance ± 1 sd")
    dot = "." if len(track) == 1 else None
    axes.plot(times_F, track.informative_F, color=INFORMATIVE, lw=0.9, alpha=0.8, marker=dot, label="informative")
    axes.plot(times_F, track.relevance_F, color=RELEVANCE, lw=1.0, alpha=0.7, marker=dot, label="relevance")
    axes.plot(times_F, fused_F, color="black", lw=1.5, marker=dot, label="score")
    top = max(1.0, float(np.max(fused_F)))
    for highlight in highlights:
        axes.text(
            (highlight.start + highlight.end) / 2, top * 1.015, str(highlight.rank), ha="center", va="bottom", fontsize=8, clip_on=False
        )
    axes.set_xlim(0, max(track.duration, 1e-3))
    axes.set_ylim(min(0.0, float(np.min(fused_F))), top)
    axes.xaxis.set_major_formatter(lambda value, _: clock(value))
    axes.set_xlabel("time (m:ss)")
    axes.set_ylabel("score")
    shown, families = readable_families(title)
    axes.set_title(plain(shown, 110), fontsize=10, pad=14, fontfamily=families)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def plain(text: str, length: int) -> str:
    """One line of at most `length` characters in which nothing is markup ($ would start a formula)."""
    text = " ".join(text.split())
    if len(text) > length:
        text = text[: length - 1].rstrip() + "…"
    return text.replace("$", r"\$")
