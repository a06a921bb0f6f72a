"""Chapters as WebVTT: one per segment, with the highlights named. Players (VLC, mpv, HTML) show them in the seek bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aha.highlights.timeline import Highlight, Segment


def timestamp(seconds: float) -> str:
    """Seconds as hh:mm:ss.mmm."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def title_of(highlight: Highlight, query: str) -> str:
    """One line: rank, what the model says or else what was asked for, score."""
    words = " ".join((highlight.sentence or query).split())
    return f"{highlight.rank}. {words} ({highlight.score:.2f})"


def chapters_vtt(
    segments: Sequence[Segment],
    highlights: Sequence[Highlight],
    query: str,
    player_seconds: Callable[[float], float] = float,
) -> str:
    """The text of a .vtt file. Chapters do not overlap: each highlight is one, and so is what is left of each segment between them.

    player_seconds: turns our seconds into those of a player (`VideoIndex.player_seconds`), since a player reads the file.
    """
    cues: list[tuple[float, float, str]] = [(h.start, h.end, f"Highlight {title_of(h, query)}") for h in highlights]
    taken = sorted((h.start, h.end) for h in highlights)
    for number, segment in enumerate(segments, 1):
        start = segment.start
        for begin, end in [*taken, (segment.end, segment.end)]:
            if end <= start or begin >= segment.end and begin != end:
                continue
            if min(begin, segment.end) - start > 1e-3:
                cues.append((start, min(begin, segment.end), f"Part {number}"))
            start = max(start, end)
    lines = ["WEBVTT", ""]
    for start, end, title in sorted(cues):
        # "-->" would end the cue's text, "&" and "<" begin markup
        safe = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        lines += [f"{timestamp(player_seconds(start))} --> {timestamp(player_seconds(end))}", safe, ""]
    return "\n".join(lines)
