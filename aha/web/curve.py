"""The score curve and the list of moments as HTML, and the script that makes a click seek the player."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from urllib.parse import quote

import numpy as np

from aha.core.clock import clock, clock_ticks
from aha.highlights.evidence import Evidence
from aha.highlights.result import Result
from aha.highlights.thumbnails import best_frame, strip_frames
from aha.highlights.timeline import Highlight

WIDTH, HEIGHT, LANE = 1000, 150, 22  # of the curves; the lane below says how unsure the model is
CHOSEN, EDGE = "#e3b341", "#8b949e"
LEGEND = {"score": "#cf222e", "relevance": "#1f6feb", "informative": "#8250df", "chosen": CHOSEN, "segment ends": EDGE}
UNSURE = "#9aa4b2"
POINTS = 1500  # of a curve on the page
STRIP = 10  # pictures below it

CSS = """
.aha-curve { position: relative; }
.aha-curve svg { width: 100%; display: block; cursor: pointer; border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: var(--background-fill-secondary); box-sizing: border-box; }
.aha-levels span { position: absolute; left: 5px; transform: translateY(-50%); font-size: .68rem; pointer-events: none;
  color: var(--body-text-color-subdued); }
.aha-tip { position: absolute; top: 4px; pointer-events: none; white-space: pre; font-size: .78rem; padding: 2px 7px; border-radius: 6px;
  background: var(--background-fill-primary); border: 1px solid var(--border-color-primary); z-index: 5; }
.aha-strip { display: flex; overflow: hidden; border-radius: 6px; margin-top: 4px; }
.aha-strip img { flex: 1 1 0; min-width: 0; height: clamp(26px, 4vw, 52px); object-fit: cover; margin: 0; }
.aha-curve .empty, .aha-moments .empty { color: var(--body-text-color-subdued); padding: 12px 4px; }
.aha-legend { font-size: .8rem; color: var(--body-text-color-subdued); display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 4px; }
.aha-clock { font-size: .75rem; color: var(--body-text-color-subdued); position: relative; height: 1.3em; overflow: hidden; }
.aha-clock span { position: absolute; transform: translateX(-50%); }
.aha-clock span.first { transform: none; } .aha-clock span.last { transform: translateX(-100%); }
.aha-legend i { display: inline-block; width: 16px; height: 4px; margin-right: 5px; vertical-align: middle; }
.aha-moments ol { margin: 0; padding: 0; list-style: none; }
.aha-moments button { display: flex; gap: 10px; align-items: center; width: 100%; text-align: left; padding: 6px 10px;
  margin: 4px 0; border-radius: 6px; cursor: pointer;
  font-weight: normal; border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary);
  color: var(--body-text-color); }
.aha-moments img { width: 84px; height: 63px; object-fit: contain; background: #000; border-radius: 4px; flex: none; margin: 0; }
.aha-moments button:hover { border-color: var(--color-accent); }
.aha-moments small { display: block; color: var(--body-text-color-subdued); }
.aha-evidence { padding: 8px 12px; border-radius: 8px; border: 1px solid var(--border-color-primary); overflow-wrap: anywhere;
  background: var(--background-fill-secondary); }
.aha-evidence.none { border-color: #d29922; background: #d2992222; font-weight: 600; }
.aha-evidence small { display: block; font-weight: 400; color: var(--body-text-color-subdued); }
.aha-reel video { width: 100%; max-height: 300px; background: #000; border-radius: 8px; }
.aha-reel small { color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
#aha-examples table { table-layout: fixed; width: 100%; }
#aha-examples th, #aha-examples td, #aha-examples td * { white-space: normal; overflow-wrap: anywhere; }
.aha-log { max-height: 320px; overflow-y: auto; }
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
// Under the mouse: the values of the drawn lines at that moment.
const levels = (line, at) => {
  const points = line.getAttribute('points').split(' ').map(pair => pair.split(',').map(Number));
  return points.reduce((near, point) => Math.abs(point[0] - at) < Math.abs(near[0] - at) ? point : near);
};
element.addEventListener('pointermove', event => {
  const svg = event.target.closest('svg[data-duration]');
  if (!svg) return;
  const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * 1000, room = svg.parentElement;
  const low = +svg.dataset.low, high = +svg.dataset.high, said = [];
  let seconds = 0;
  for (const line of svg.querySelectorAll('polyline[data-name]')) {
    const [x, y] = levels(line, at);
    seconds = x / 1000 * +svg.dataset.duration + +svg.dataset.late;
    said.push(`${line.dataset.name} ${(low + (144 - y) / 138 * (high - low)).toFixed(2)}`);
  }
  let tip = room.querySelector('.aha-tip');
  if (!tip) { tip = document.createElement('div'); tip.className = 'aha-tip'; room.append(tip); }
  const clock = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds) % 60).padStart(2, '0')}`;
  tip.textContent = [clock, ...said.reverse()].join('\\n');
  tip.style.left = Math.max(0, Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth)) + 'px';
});
element.addEventListener('pointerout', event => {
  if (!event.relatedTarget?.closest?.('svg')) element.querySelector('.aha-tip')?.remove();
});
const place = () => {
  const svg = element.querySelector('svg[data-duration]'), video = player();
  if (!svg || !video) return;
  const at = Math.max(0, video.currentTime - parseFloat(svg.dataset.late)) / parseFloat(svg.dataset.duration) * 1000;
  const cursor = svg.querySelector('.cursor');
  cursor.setAttribute('x1', at); cursor.setAttribute('x2', at);
};
// Picture by picture only while the video plays: a cursor that is set all the time has the whole page drawn all the time.
let next = 0;
const follow = () => {
  cancelAnimationFrame(next);
  place();
  const video = player();
  if (element.isConnected && video && !video.paused) next = requestAnimationFrame(follow);
};
for (const name of ['play', 'seeking', 'timeupdate', 'loadedmetadata']) document.addEventListener(name, follow, true);
new MutationObserver(place).observe(element, {childList: true, subtree: true});  // a curve that is drawn anew
"""


def curve_html(result: Result | None, duration: float, late: float = 0.0, picture: Callable[[int], str] | None = None) -> str:
    """The curve of the frames scored so far, over the whole length of the video. late: seconds after which a player shows the video's first
    picture (ours counts from that picture).

    picture: gives the address of a scored frame's small picture by the frame's number; with it a finished curve has a film strip below.
    """
    if result is None:
        return '<div class="aha-curve"><div class="empty">The score curve appears here while the video is watched.</div></div>'
    track, fused_F = result.track, result.fused_F
    low, high = min(0.0, float(fused_F.min())), max(1.0, float(fused_F.max()))
    kept = np.unique(np.linspace(0, len(track) - 1, min(len(track), POINTS)).round().astype(int))
    scale = 'vector-effect="non-scaling-stroke"'

    def x(seconds: float) -> float:
        return seconds / max(duration, 1e-6) * WIDTH

    def y(value: float) -> float:
        return HEIGHT - 6 - (value - low) / (high - low) * (HEIGHT - 12)

    def line(name: str, values_F: np.ndarray, width: float) -> str:
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(track.times_F[kept], np.asarray(values_F)[kept]))
        return f'<polyline data-name="{name}" points="{points}" fill="none" stroke="{LEGEND[name]}" stroke-width="{width}" {scale}/>'

    chosen = "".join(
        f'<rect x="{x(h.start):.1f}" y="0" width="{max(1.0, x(h.end) - x(h.start)):.1f}" height="{HEIGHT}" fill="{CHOSEN}" opacity=".45"/>'
        for h in result.highlights
    )
    ends = "".join(
        f'<line x1="{x(s.end):.1f}" x2="{x(s.end):.1f}" y1="0" y2="{HEIGHT}" stroke="{EDGE}" opacity=".6" {scale}/>'
        for s in result.segments[:-1]
    )
    steps = [low + (high - low) * k / 4 for k in range(5)]
    grid = "".join(f'<line x1="0" x2="{WIDTH}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="{EDGE}" opacity=".2" {scale}/>' for v in steps)
    levels = "".join(f'<span style="top:{y(value):.0f}px">{value:.2g}</span>' for value in steps)
    in_0_to_1 = (low, high) == (0.0, 1.0)
    legend = {"score (0 to 1)" if name == "score" and in_0_to_1 else name: colour for name, colour in LEGEND.items()}
    height, unsure = HEIGHT, ""
    if track.uncertainty_F is not None:  # in a lane of its own: around the curve it would hide the curve
        height = HEIGHT + LANE + 4
        sd_F = np.sqrt(np.maximum(track.uncertainty_F, 0))[kept]
        most = float(sd_F.max()) or 1.0
        at = track.times_F[kept]
        tops = " ".join(f"{x(t):.1f},{height - v / most * LANE:.1f}" for t, v in zip(at, sd_F))
        unsure = f'<polygon points="{x(at[0]):.1f},{height} {tops} {x(at[-1]):.1f},{height}" fill="{UNSURE}" opacity=".6"/>'
        legend[f"how unsure (sd of the relevance, at most {most:.2f})"] = UNSURE
    names = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in legend.items())
    strip = ""
    if picture is not None and abs(track.duration - duration) < 1e-6:
        strip = "".join(f'<img alt="" src="{picture(frame)}">' for frame in strip_frames(track, STRIP))
        strip = f'<div class="aha-strip">{strip}</div>'
    return (
        f'<div class="aha-curve"><svg data-duration="{duration:.3f}" data-late="{late:.3f}" data-frames="{len(track)}" '
        f'data-low="{low:.4f}" data-high="{high:.4f}" viewBox="0 0 {WIDTH} {height}" style="height:{height}px" '
        f'preserveAspectRatio="none" aria-label="score over time; click to seek">{chosen}{ends}{grid}{unsure}'
        f"{line('informative', track.informative_F, 1)}{line('relevance', track.relevance_F, 1)}{line('score', fused_F, 2)}"
        f'<line class="cursor" x1="0" x2="0" y1="0" y2="{height}" stroke="currentColor" stroke-width="2" {scale}/>'
        f'</svg><div class="aha-levels">{levels}</div>{strip}<div class="aha-clock">{_clocks(duration, late)}</div>'
        f'<div class="aha-legend">{names}</div></div>'
    )


def _clocks(duration: float, late: float) -> str:
    """Names of moments on the player's clock, each where it is."""
    spans = []
    for tick in clock_ticks(late, late + duration, 7):
        share = (tick - late) / max(duration, 1e-6)
        side = "first" if share < 0.03 else "last" if share > 0.97 else ""
        spans.append(f'<span class="{side}" style="left:{100 * share:.2f}%">{clock(tick)}</span>')
    return "".join(spans)


def moments_html(result: Result | None, late: float = 0.0, picture: Callable[[int], str] | None = None) -> str:
    """The chosen moments, best first, as buttons with their best frame, on the player's clock (see curve_html)."""
    if result is None or not result.highlights:
        nothing = "No moment is chosen yet." if result is None or result.evidence is None else "No moment is chosen."
        return f'<div class="aha-moments"><div class="empty">{nothing}</div></div>'
    items = "".join(
        f'<li><button data-start="{h.start + late:.3f}">{_image(result, h, picture)}'
        f"<span><b>{h.rank}. {clock(h.start + late)} – {clock(h.end + late)}</b> score {h.score:.3f} "
        f"<small>relevance {h.relevance:.2f}, informative {h.informative:.2f}"
        f"{'' if h.uncertainty is None else f', variance {h.uncertainty:.2f}'}</small></span></button></li>"
        for h in result.highlights
    )
    return f'<div class="aha-moments"><ol>{items}</ol></div>'


def _image(result: Result, highlight: Highlight, picture: Callable[[int], str] | None) -> str:
    return "" if picture is None else f'<img alt="" src="{picture(best_frame(result.track, result.fused_F, highlight))}">'


def evidence_html(evidence: Evidence | None, has_scores: bool) -> str:
    """How strong the evidence is, once all is scored."""
    if evidence is None:
        return '<div class="aha-evidence">How clear the answer is will be said when all is watched.</div>' if has_scores else ""
    about = (
        "The relevance at its best against what the model gives the same video for unrelated queries, "
        "and for this one with a word replaced: "
        f"{evidence.strength:+.2f}; a clear moment has more than {evidence.level:+.2f}."
    )
    kind, said = ("clear", "A clear answer.") if evidence.is_clear else ("none", "No clear moment for this query.")
    return f'<div class="aha-evidence {kind}">{said}<small>{about}</small></div>'


def reel_html(address: str | None, query: str) -> str:
    """The reel of a query, to be played where it is. address: of its file on this page, None where no moment is chosen."""
    if address is None:
        return '<div class="aha-reel">No moment is chosen, so there is no reel.</div>'
    video = f'<video controls playsinline preload="metadata" src="{quote(address)}"></video>'
    return f'<div class="aha-reel">{video}<small dir="auto">{html.escape(query)}</small></div>'


def log_html(answers: Sequence[tuple[float, str, str]]) -> str:
    """Questions and answers, newest last."""
    lines = "".join(
        f"<p><small>{clock(time)}</small> <b><bdi>{html.escape(who)}</bdi>:</b> <bdi>{html.escape(text)}</bdi></p>"
        for time, who, text in answers
    )
    return f'<div class="aha-log">{lines}</div>'
