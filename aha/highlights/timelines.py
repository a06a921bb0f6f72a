"""The chosen moments for editing programs: OpenTimelineIO's own file, a CMX 3600 EDL, Final Cut's XML.

    write_timelines("outputs/talk", "talk.mp4", result.highlights, ("otio", "edl"))

Each file is read again and compared frame by frame before it counts as written: an adapter that is off at a frame rate is refused there.
"""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from aha.core.extras import need
from aha.core.files import atomic_path
from aha.errors import UserError
from aha.highlights.timeline import Highlight
from aha.video.packet_index import VideoIndex, video_index

# Kind -> OpenTimelineIO's adapter, and the package that brings it.
ADAPTERS = {
    "otio": ("otio_json", "opentimelineio"),
    "edl": ("cmx_3600", "otio_cmx3600_adapter"),
    "fcpxml": ("fcpx_xml", "otio_fcpx_xml_adapter"),
}


def kinds_of(text: str) -> tuple[str, ...]:
    """ "otio,edl" -> its kinds. Raises UserError for an unknown one and for a package that is not installed."""
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for kind in kinds or ("",):
        if kind not in ADAPTERS:
            raise UserError(f"--export {text}: {kind or 'nothing'} is none of {', '.join(ADAPTERS)}.")
        for module in ("opentimelineio", ADAPTERS[kind][1]):
            need(module, "timelines", f"--export {kind}")
    return kinds


def moment_frames(index: VideoIndex, start: float, end: float) -> tuple[int, int]:
    """Frames [first, last) of the file that are shown from `start` to `end` seconds."""
    half = Fraction(1, 2) / index.fps
    ticks = [float((Fraction(s).limit_denominator(1_000_000) - half) / index.time_base) + index.first_pts for s in (start, end)]
    first, last = (bisect.bisect_left(index.pts, tick) for tick in ticks)
    return first, max(last, first + 1)


def is_constant(index: VideoIndex) -> bool:
    """Whether frame k is shown at k / fps, so that editing programs count as we do."""
    most = max(abs((pts - index.first_pts) * index.time_base - k / index.fps) for k, pts in enumerate(index.pts))
    return most < Fraction(1, 2) / index.fps


def check_timelines(video: str | os.PathLike, kinds: Sequence[str]) -> None:
    """Raises UserError where `write_timelines` would fail for this video whatever moments are chosen (it is tried with the whole video as
    one moment). Asked before the video is scored."""
    with tempfile.TemporaryDirectory() as folder:
        _write_all(Path(folder), video, [(0, len(video_index(video).pts))], kinds)


def write_timelines(
    folder: str | os.PathLike, video: str | os.PathLike, highlights: Sequence[Highlight], kinds: Sequence[str]
) -> list[Path]:
    """Write `reel.KIND` for each kind, the moments in time order. Raises UserError: a variable frame rate; a format that is not exact at
    this rate, by name."""
    index = video_index(video)
    spans = [moment_frames(index, h.start, h.end) for h in sorted(highlights, key=lambda h: h.start)]
    return _write_all(Path(folder), video, spans, kinds)


def _write_all(folder: Path, video: str | os.PathLike, spans: Sequence[tuple[int, int]], kinds: Sequence[str]) -> list[Path]:
    if not kinds:
        return []  # nothing is asked of this video: its frame rate may vary
    index = video_index(video)
    if not is_constant(index):
        raise UserError(
            f"{video} has a variable frame rate, on which editing programs count other frames: convert it first "
            "(ffmpeg -i VIDEO -fps_mode cfr NEW)."
        )
    written = []
    for kind in kinds:
        path = folder / f"reel.{kind}"
        with atomic_path(path) as temporary:
            if not _write(temporary, kind, Path(video), index, spans):
                others = " or ".join(other for other in ADAPTERS if other != kind)
                raise UserError(
                    f"--export {kind}: its adapter is not exact at {float(index.fps):.3f} frames a second (read again, it gave other "
                    f"frames); take {others}."
                )
        written.append(path)
    return written


def _write(path: Path, kind: str, video: Path, index: VideoIndex, spans: Sequence[tuple[int, int]]) -> bool:
    """Write one file; whether it gives the same frames when it is read again."""
    import opentimelineio as otio

    rate, adapter = float(index.fps), ADAPTERS[kind][0]

    def stretch(first: int, count: int) -> Any:
        return otio.opentime.TimeRange(otio.opentime.RationalTime(first, rate), otio.opentime.RationalTime(count, rate))

    timeline, track = otio.schema.Timeline(video.stem), otio.schema.Track("V1", kind=otio.schema.TrackKind.Video)
    timeline.tracks.append(track)
    for first, last in spans:
        media = otio.schema.ExternalReference(video.resolve().as_uri(), stretch(0, len(index.pts)))
        track.append(otio.schema.Clip(video.name, media, stretch(first, last - first)))
    settings = {"rate": rate} if kind == "edl" else {}
    try:
        otio.adapters.write_to_file(timeline, str(path), adapter_name=adapter, **settings)
        return frames_in(path, kind, rate) == list(spans)
    except (ValueError, otio.exceptions.OTIOError):  # a rate that the format has no time code for
        return False


def frames_in(path: str | os.PathLike, kind: str, rate: float) -> list[tuple[float, float]]:
    """[first, last) of each clip of a timeline file, in frames of the source, as OpenTimelineIO reads them."""
    import opentimelineio as otio

    settings = {"rate": rate} if kind == "edl" else {}
    found = otio.adapters.read_from_file(str(path), adapter_name=ADAPTERS[kind][0], **settings)
    spans = []
    for clip in (
        found.find_clips() if isinstance(found, otio.schema.Timeline) else found.find_children(descended_from_type=otio.schema.Clip)
    ):
        span = clip.trimmed_range()
        ends = (time.rescaled_to(rate).value for time in (span.start_time, span.start_time + span.duration))
        spans.append(tuple(round(value) if abs(value - round(value)) < 1e-3 else value for value in ends))
    return spans
