"""Pictures of a result: the poster, the film strip, the timeline, the video with its moving curve."""

from __future__ import annotations

import av
import numpy as np
import pytest
from highlights_media import make_video, read_number
from PIL import Image

from aha.highlights.curve_video import write_curve_video
from aha.highlights.plot import write_timeline
from aha.highlights.ranking import ranked_highlights
from aha.highlights.thumbnails import jpeg_address, stills_of, strip_frames
from aha.highlights.timeline import Highlight, ScoreTrack
from aha.video.packet_index import video_index


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A video of 60 numbered frames in 6 s, scores twice a second with their best at frame 40, and one moment there."""
    path = tmp_path_factory.mktemp("pictures") / "v.mp4"
    make_video(path, seconds=6, fps=10, size=(192, 144))
    times = np.arange(12) / 2
    curve = np.exp(-((times - 4.0) ** 2)) * 0.8 + 0.1
    track = ScoreTrack(times, np.arange(12) * 5, 1 - curve, curve, 0.3 + 0 * curve, 6.0)
    return path, track, curve, ranked_highlights(track, curve, [track.segment(6, 10)])


def test_the_poster_is_the_best_frame_and_the_strip_goes_through_the_video(made):
    path, track, curve, highlights = made
    index = video_index(path)
    for chosen, peak in ((highlights, 40), ([], 40)):
        stills = stills_of(index, track, curve, chosen)
        assert read_number(np.asarray(stills.poster)) == peak and stills.poster.size == (192, 144)
        assert [read_number(np.asarray(picture)) for picture in stills.best] == [40] * len(chosen)
        assert [read_number(np.asarray(picture)) for picture in stills.strip] == strip_frames(track) == list(range(0, 60, 5))
    assert strip_frames(track, 3) == [10, 30, 50] and strip_frames(track, 1) == [30]


def test_pictures_in_a_page_are_small_and_keep_their_aspect(tmp_path):
    from fractions import Fraction

    make_video(tmp_path / "wide.mp4", seconds=1, fps=4, size=(320, 240), pixel_aspect=Fraction(4, 3), sound=False)
    track = ScoreTrack(np.arange(4) / 4, np.arange(4), *[np.full(4, 0.5)] * 2, None, 1.0)
    best = Highlight(1, 0.0, 1.0, 0.5, 0.0, 0.5, 0.5, None, None, 0, 4)
    stills = stills_of(video_index(tmp_path / "wide.mp4"), track, np.full(4, 0.5), [best])
    assert stills.best[0].size == (320, 180) and stills.poster.size == (427, 240) and max(stills.strip[0].size) == 240
    address = jpeg_address(stills.best[0])
    assert address.startswith("data:image/jpeg;base64,") and len(address) < 40_000


def test_the_timeline_has_a_strip_and_a_lane_and_the_curve_stays_in_sight(made, tmp_path):
    _, track, curve, highlights = made
    without = ScoreTrack(track.times_F, track.frames_F, track.informative_F, track.relevance_F, None, track.duration)
    red = [Image.new("RGB", (160, 120), "#ff0000")] * 12
    heights = {}
    for name, scored, strip in (("plain", without, []), ("lane", track, []), ("strip", track, red)):
        write_timeline(tmp_path / f"{name}.png", scored, curve, [track.segment(0, 12)], highlights, "a wish", strip)
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        heights[name] = len(picture)
        black = (picture.max(axis=2) < 60).any(axis=0).mean()  # columns in which the score's line is seen
        assert black > 0.85, name
        reds = ((picture - [255, 0, 0]) ** 2).sum(axis=2) < 100
        assert (reds.mean() > 0.08) == (name == "strip")
    assert heights["plain"] < heights["lane"] < heights["strip"]


def test_the_curve_video_shows_at_each_moment_what_was_scored_by_then(made, tmp_path):
    path, track, curve, highlights = made
    write_curve_video(tmp_path / "curve.mp4", path, track, curve, highlights, "an endless wish " * 30)
    with av.open(str(tmp_path / "curve.mp4")) as video:
        assert len(video.streams.audio) == 1
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
    assert len(frames) == 60 and frames[0].shape[1] == 192 and frames[0].shape[0] > 144 + 60
    assert [read_number(frame[:144].astype(np.uint8)) for frame in frames] == list(range(60))  # the video above as it was
    panels = [frame[144:] for frame in frames]
    blue = [(panel[..., 2] - panel[..., 0] > 60).any(axis=0) for panel in panels]  # columns with a piece of the curve
    reach = [int(np.flatnonzero(columns).max(initial=0)) for columns in blue]
    assert reach[5] < reach[20] < reach[40] < reach[59] and reach[59] > 0.85 * 192
    assert all(not columns[int(192 * (k + 12) / 60) :].any() for k, columns in enumerate(blue) if k < 48)  # nothing of what is to come


@pytest.mark.parametrize("size", [(64, 36), (360, 640), (1920, 1080)])
def test_curve_videos_of_any_size_are_even_and_fit(size, tmp_path):
    make_video(tmp_path / "v.mp4", seconds=0.5, fps=4, size=size, sound=False)
    track = ScoreTrack(np.array([0.0, 0.25]), np.array([0, 1]), np.array([0.5, 0.2]), np.array([0.1, 0.9]), None, 0.5)
    write_curve_video(tmp_path / "curve.mp4", tmp_path / "v.mp4", track, np.array([-0.5, 1.7]), [], "x")
    with av.open(str(tmp_path / "curve.mp4")) as video:
        width, height = video.streams.video[0].width, video.streams.video[0].height
    assert width % 2 == height % 2 == 0 and max(width, 1) <= 1280 and height > size[1] * width / size[0]
