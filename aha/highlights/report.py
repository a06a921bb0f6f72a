"""report.html: one self-contained file with the player, a timeline that can be clicked, and the ranked moments with thumbnails.

What it says comes from summary.json (instructions/summary.md), what it draws from the scores of the frames.

The video travels inside the file: as it is where a browser can play it and it is small, else as a smaller copy. A video of more than ten
minutes would make the page too large to open; the report then plays the file from where it is, and says so.
"""

from __future__ import annotations

import base64
import html
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from aha.core.clock import clock, clock_ticks
from aha.core.files import write_text
from aha.highlights.reel import Clip, write_reel
from aha.highlights.thumbnails import Stills, jpeg_address, small
from aha.highlights.timeline import ScoreTrack
from aha.video.container import open_container, video_stream
from aha.video.packet_index import VideoIndex, video_index

PLAYABLE = {("mp4", "h264"), ("mp4", "av1"), ("mp4", "vp9"), ("webm", "vp8"), ("webm", "vp9"), ("webm", "av1")}
LARGEST_COPY = 24 << 20  # bytes of a video that is put into the page as it is
LONGEST_COPY = 600.0  # seconds of a video of which a smaller copy is made
CURVE_POINTS = 4000  # of a curve in the page; more cannot be told apart


def write_report(
    path: str | os.PathLike, video: str | os.PathLike, summary: Mapping[str, Any], track: ScoreTrack, fused_F: np.ndarray, stills: Stills
) -> None:  # fmt: skip
    """Write the report of what summary.json holds; track, fused_F: the curves; stills: aha.highlights.thumbnails.stills_of.

    Raises UserError as decoding and writing do.
    """
    moments = sorted(summary["moments"], key=lambda moment: moment["rank"])
    index = video_index(video)
    source, about, player_seconds = _player_source(index, Path(path))
    late = player_seconds(0.0)
    data = {
        "duration": summary["duration"],
        "late": late,  # curves and moments of the page are on our clock; the player's clock starts so many seconds earlier
        "ticks": clock_ticks(late, late + summary["duration"], 7),
        "curves": _curves(track, fused_F),
        "segments": [[round(s["start"], 3), round(s["end"], 3), s["ended_by"]] for s in summary["segments"]],
        "highlights": moments,
    }
    # "</script>" in a sentence must not end the script, "<!--" must not start a comment.
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = resources.files("aha.highlights").joinpath("report_template.html").read_text(encoding="utf-8")
    shown = " ".join(summary["query"].split())
    parts = {
        "{{title}}": html.escape(shown if len(shown) <= 200 else shown[:199] + "…"),
        "{{full_query}}": html.escape(shown) if len(shown) > 200 else "",
        "{{video_name}}": html.escape(summary["video"]),
        "{{note}}": html.escape(summary["note"]),
        "{{about}}": html.escape(about),
        "{{source}}": html.escape(source),
        "{{poster}}": jpeg_address(small(stills.poster, 640)),
        "{{strip}}": "".join(f'<img alt="" src="{jpeg_address(small(picture, 120))}">' for picture in stills.strip),
        "{{moments}}": "\n".join(_moment(moment, jpeg_address(picture), player_seconds) for moment, picture in zip(moments, stills.best)),
        "{{data}}": embedded,
    }
    # One pass: what a query or a name contains is never taken for a placeholder.
    pieces, rest = [], page
    while rest:
        at, key = min(((rest.find(key), key) for key in parts if key in rest), default=(len(rest), ""))
        pieces += [rest[:at], parts.get(key, "")]
        rest = rest[at + len(key) :]
    write_text(path, "".join(pieces))


def _moment(moment: Mapping[str, Any], thumbnail: str, player_seconds: Callable[[float], float]) -> str:
    """A moment as a button. Its times, both those in its data attributes and those that people read, are on the player's clock."""
    start, end, peak = (player_seconds(moment[name]) for name in ("start", "end", "peak_time"))
    unsure = "" if moment["uncertainty"] is None else f" · variance {moment['uncertainty']:.3f}"
    sentence = f"<p class=says>{html.escape(moment['caption'])}</p>" if moment["caption"] else ""
    return (
        f'<li><button class=moment data-start="{start:.3f}" data-end="{end:.3f}" '
        f'data-peak="{peak:.3f}"><img alt="" src="{thumbnail}"><span class=rank>{moment["rank"]}</span>'
        f"<span class=text><b>{clock(start)} – {clock(end)}</b> score {moment['score']:.3f}"
        f"<small>relevance {moment['relevance']:.3f} · informative {moment['informative']:.3f}{unsure}</small>"
        f"{sentence}</span></button></li>"
    )


def _curves(track: ScoreTrack, fused_F: np.ndarray) -> dict[str, list[float] | None]:
    """Every frame, or of a long video evenly chosen ones."""
    chosen = np.unique(np.linspace(0, len(track) - 1, min(len(track), CURVE_POINTS)).round().astype(int))
    rows = {
        "time": track.times_F, "score": fused_F, "relevance": track.relevance_F, "informative": track.informative_F,
        "uncertainty": track.uncertainty_F,
    }  # fmt: skip
    return {name: None if row is None else [round(float(value), 5) for value in np.asarray(row)[chosen]] for name, row in rows.items()}


def playable(index: VideoIndex) -> str | None:
    """The kind of file ("mp4" or "webm") where every current browser plays it, else None."""
    kind = "mp4" if "mp4" in index.container.split(",") else "webm" if index.path.lower().endswith(".webm") else None
    if (kind, index.codec) not in PLAYABLE:
        return None
    if len(index.clock_offsets) > 1:
        return None  # no player puts its time stamps in order
    with open_container(index.path) as container:
        eight_bits = video_stream(container, index.path).codec_context.pix_fmt in ("yuv420p", "yuvj420p")
    return kind if eight_bits else None


def _player_source(index: VideoIndex, report: Path) -> tuple[str, str, Callable[[float], float]]:
    """(address for the player, sentence about it, our seconds -> the player's). A copy begins with the first picture, as we do."""
    kind = playable(index)
    if kind and os.path.getsize(index.path) <= LARGEST_COPY:
        return _video_address(Path(index.path), kind), "", index.player_seconds
    if float(index.duration) <= LONGEST_COPY:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "preview.mp4"
            write_reel(index.path, [Clip(0.0, float(index.duration))], copy, max_side=480, crf=32)
            return _video_address(copy, "mp4"), "The player shows a smaller copy of the video.", float
    relative = os.path.relpath(index.path, report.resolve().parent)
    doubt = "" if kind else ", in a format that some browsers do not play"
    about = f"The video is too long to be put into this page: the player reads it from {relative}{doubt}."
    return quote(os.fsencode(relative)), about, index.player_seconds


def _video_address(path: Path, kind: str) -> str:
    return f"data:video/{kind};base64," + base64.b64encode(path.read_bytes()).decode()
