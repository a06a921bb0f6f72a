"""Timelines for editing programs: the same frames when OpenTimelineIO reads them again, at every rate, or a refusal by name."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import pytest
from highlights_media import make_video

from aha.errors import UserError
from aha.highlights import timelines
from aha.highlights.timelines import frames_in, kinds_of, moment_frames, write_timelines
from aha.video.packet_index import video_index

RATES = [Fraction(24), Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(25, 2)]
# Around whole minutes, where drop-frame time code leaves numbers out, and around an hour.
SPANS = [(10, 55), (1799, 1812), (17982, 18000), (107892, 107900)]


def moments(*spans):
    return [SimpleNamespace(start=start, end=end) for start, end in spans]


@pytest.mark.parametrize("fps", RATES, ids=lambda fps: f"{float(fps):.3f}")
def test_every_format_gives_the_same_frames_or_is_refused_by_name(tmp_path, monkeypatch, fps):
    index = SimpleNamespace(fps=fps, time_base=1 / fps, pts=range(110_000), first_pts=0)
    monkeypatch.setattr(timelines, "video_index", lambda video: index)
    chosen = moments(*((float(a / fps), float(b / fps)) for a, b in SPANS[::-1]))
    exact = []
    for kind in timelines.ADAPTERS:
        try:
            (path,) = write_timelines(tmp_path, "talk.mp4", chosen, [kind])
        except UserError as error:
            assert (
                f"--export {kind}: its adapter is not exact at {float(fps):.3f}" in str(error) and not (tmp_path / f"reel.{kind}").exists()
            )
        else:
            assert frames_in(path, kind, float(fps)) == SPANS
            exact.append(kind)
    assert "otio" in exact and ("edl" in exact) == (fps != Fraction(25, 2))


def test_the_frames_are_those_of_the_file(tmp_path):
    make_video(tmp_path / "ntsc.mp4", seconds=8, fps=Fraction(30000, 1001), sound=False)
    index = video_index(tmp_path / "ntsc.mp4")
    assert moment_frames(index, 0.0, 1.001) == (0, 30) and moment_frames(index, 2 * 1.001, 3 * 1.001) == (60, 90)
    (path,) = write_timelines(tmp_path, tmp_path / "ntsc.mp4", moments((2.002, 3.003), (0, 1.001)), ["edl"])
    assert frames_in(path, "edl", float(index.fps)) == [(0, 30), (60, 90)]
    make_video(tmp_path / "variable.mp4", seconds=8, fps=24, sound=False, variable=True)
    with pytest.raises(UserError, match="variable frame rate"):
        write_timelines(tmp_path, tmp_path / "variable.mp4", moments((0, 1)), ["otio"])
    assert write_timelines(tmp_path, tmp_path / "variable.mp4", moments((0, 1)), []) == []  # nothing is asked of it
    with pytest.raises(UserError, match="--export aaf: aaf is none of otio, edl, fcpxml"):
        kinds_of("aaf")
