"""The score curve and the list of moments as HTML, and the script that makes a click seek the player."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from aha.highlights.chapters import clock
from aha.highlights.result import Result

WIDTH, HEIGHT = 1000, 150
LEGEND = {"score": "#cf222e", "relevance": "#1f6feb", "informative": "#8250df", "chosen": "#e3b341", "segment ends": "#8b949e"}
POINTS = 1500  # of a curve on the page

CSS = """
.aha-curve svg { width: 100%; height: 150px; display: block; cursor: pointer; border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: var(--background-fill-secondary); }
.aha-curve .empty, .aha-moments .empty { color: var(--body-text-color-subdued); padding: 12px 4px; }
.aha-legend { font-size: .8rem; color: var(--body-text-color-subdued); display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 4px; }
.aha-clock { font-size: .75rem; color: var(--body-text-color-subdued); display: flex; justify-content: space-between; }
.aha-legend i { display: inline-block; width: 16px; height: 4px; margin-right: 5px; vertical-align: middle; }
.aha-moments ol { margin: 0; padding: 0; list-style: none; }
.aha-moments button { display: block; width: 100%; text-align: left; padding: 6px 10px; margin: 4px 0; border-radius: 6px; cursor: pointer;
  font-weight: normal; border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary);
  color: var(--body-text-color); }
.aha-moments button:hover { border-color: var(--color-accent); }
.aha-moments small { color: var(--body-text-color-subdued); }
.aha-log p { margin: 2px 0; overflow-wrap: anywhere; }
"""

# Runs once for the component; its content is replaced at every update, so the listeners sit on the component itself.
SEEK_SCRIPT = """
const player = () => document.querySelector('#aha-video video');
const seek = seconds => {
  const video = player();
  if (video && Number.isFinite(seconds)) video.currentTime = Math.max(0, Math.min(seconds, (video.duration || seconds) - 0.01));
};
element.addEventListener('click', event => {
  const moment = event.target.closest('[data-start]');
  if (moment) { seek(parseFloat(moment.dataset.start)); const video = player(); if (video) video.play().catch(() => {}); return; }
  const svg = event.target.closest('svg[data-duration]');
  if (!svg) return;
  const box = svg.getBoundingClientRect();
  seek(parseFloat(svg.dataset.late) + (event.clientX - box.left) / box.width * parseFloat(svg.dataset.duration));
});
const follow = () => {
  const svg = element.querySelector('svg[data-duration]'), video = player();
  if (svg && video) {
    const at = Math.max(0, video.currentTime - parseFloat(svg.dataset.late)) / parseFloat(svg.dataset.duration) * 1000;
    const cursor = svg.querySelector('.cursor');
    cursor.setAttribute('x1', at); cursor.setAttribute('x2', at);
  }
  if (element.isConnected) requestAnimationFrame(follow);
};
follow();
"""


def curve_html(result: Result | None, duration: float, late: float = 0.0) -> str:
    """The curve of what was scored so far over the whole length of the video, whose first picture is `late` seconds in on a player."""
    if result is None:
        return '<div class="aha-curve"><div class="empty">The score curve appears here while the video is watched.</div></div>'
    track, fused_F = result.track, result.fused_F
    low, high = min(0.0, float(fused_F.min())), max(1.0, float(fused_F.max()))

    def x(seconds: float) -> float:
        return seconds / max(duration, 1e-6) * WIDTH

    def line(values_F: np.ndarray, colour: str, width: float) -> str:
        chosen = np.unique(np.linspace(0, len(track) - 1, min(len(track), POINTS)).round().astype(int))
        ys = HEIGHT - 6 - (np.asarray(values_F)[chosen] - low) / (high - low) * (HEIGHT - 12)
        points = " ".join(f"{x(t):.1f},{y:.1f}" for t, y in zip(track.times_F[chosen], ys))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" vector-effect="non-scaling-stroke"/>'

    scale = 'vector-effect="non-scaling-stroke"'
    chosen = "".join(
        f'<rect x="{x(h.start):.1f}" y="0" width="{max(1.0, x(h.end) - x(h.start)):.1f}" height="{HEIGHT}" fill="#e3b341" opacity=".45"/>'
        for h in result.highlights
    )
    ends = "".join(
        f'<line x1="{x(s.end):.1f}" x2="{x(s.end):.1f}" y1="0" y2="{HEIGHT}" stroke="#8b949e" opacity=".6" {scale}/>'
        for s in result.segments[:-1]
    )
    clocks = "".join(f"<span>{clock(late + duration * k / 6)}</span>" for k in range(7))
    legend = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in LEGEND.items())
    return (
        f'<div class="aha-curve"><svg data-duration="{duration:.3f}" data-late="{late:.3f}" data-frames="{len(track)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'preserveAspectRatio="none" aria-label="score over time; click to seek">{chosen}{ends}'
        f"{line(track.informative_F, '#8250df', 1)}{line(track.relevance_F, '#1f6feb', 1)}{line(fused_F, '#cf222e', 2)}"
        f'<line class="cursor" x1="0" x2="0" y1="0" y2="{HEIGHT}" stroke="currentColor" stroke-width="2" {scale}/>'
        f'</svg><div class="aha-clock">{clocks}</div><div class="aha-legend">{legend}</div></div>'
    )


def moments_html(result: Result | None, late: float = 0.0) -> str:
    """The chosen moments, best first, as buttons, on the player's clock (see curve_html)."""
    if result is None or not result.highlights:
        return '<div class="aha-moments"><div class="empty">No moment is chosen yet.</div></div>'
    items = "".join(
        f'<li><button data-start="{h.start + late:.3f}"><b>{h.rank}. {clock(h.start + late)} – {clock(h.end + late)}</b> '
        f"score {h.score:.3f} "
        f"<small>relevance {h.relevance:.2f}, informative {h.informative:.2f}"
        f"{'' if h.uncertainty is None else f', variance {h.uncertainty:.2f}'}</small></button></li>"
        for h in result.highlights
    )
    return f'<div class="aha-moments"><ol>{items}</ol></div>'


def log_html(answers: Sequence[tuple[float, str, str]]) -> str:
    """Questions and answers, newest last."""
    lines = "".join(f"<p><small>{clock(time)}</small> <b>{who}:</b> {html.escape(text)}</p>" for time, who, text in answers)
    return f'<div class="aha-log">{lines}</div>'
