"""Reels: the right frames, at the right times, with their sound in step, from every kind of file; never left half written."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from highlights_media import make_video, number_frame, onsets, read_number, reel_contents

from aha.errors import UserError
from aha.highlights.reel import Clip, burn_title, fit, write_reel
from aha.video.reader import probe

CLIPS = [Clip(1.0, 3.5), Clip(5.25, 6.5), Clip(7.0, 8.0)]
KINDS = {
    "h264": {},
    "hevc": {"codec": "libx265"},
    "vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "av1": {"codec": "libsvtav1"},
    "mpegts": {"container": "mpegts"},
    "variable frame rate": {"variable": True},
    "30000/1001": {"fps": Fraction(30000, 1001)},
    "portrait, silent": {"size": (144, 192), "sound": False},
    "odd pixels": {"pixel_aspect": Fraction(4, 3)},
}


def chosen_numbers(times: list[float], clips=CLIPS) -> list[int]:
    return [k for clip in clips for k, t in enumerate(times) if clip.start - 1e-6 <= t < clip.end - 1e-6]


@pytest.mark.parametrize("kind", KINDS)
def test_reel_has_exactly_the_frames_and_the_sound_of_its_clips(tmp_path, kind):
    settings = KINDS[kind]
    video = tmp_path / f"video.{settings.get('container', 'mp4')}"
    times = make_video(video, seconds=9, **settings)
    info = write_reel(video, CLIPS, tmp_path / "reel.mp4")
    pictures, sound, duration = reel_contents(tmp_path / "reel.mp4")
    expected = chosen_numbers(times)
    assert [number for _, number, _ in pictures] == expected
    assert duration == pytest.approx(info.duration, abs=0.002)
    assert info.has_sound == settings.get("sound", True)
    # frames keep their distance in time: position in the reel = clip's start in the reel + distance from the clip's first frame
    for at, start, end in info.cuts:
        own = [(time, number) for time, number, _ in pictures if at - 1e-4 <= time < at + (end - start) - 1e-4]
        assert own[0][0] == pytest.approx(at, abs=1e-4)
        assert [time - at for time, _ in own] == pytest.approx([times[n] - times[own[0][1]] for _, n in own], abs=1e-3)
    if info.has_sound:
        cut = [(at, start, end) for at, start, end in info.cuts]
        beeps = [at + second - start for at, start, end in cut for second in range(9) if start - 1e-6 <= second < end - 0.05]
        heard = onsets(sound)
        assert len(heard) >= 4
        assert max(min(abs(h - b) for h in heard) for b in beeps) < 0.006  # picture and sound are cut at the same moments


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_is_turned_upright(tmp_path, rotation):
    make_video(tmp_path / "v.mp4", seconds=3, rotation=rotation, size=(192, 128))
    assert probe(tmp_path / "v.mp4").rotation == rotation
    info = write_reel(tmp_path / "v.mp4", [Clip(0.0, 1.0)], tmp_path / "reel.mp4")
    assert (info.width, info.height) == ((192, 128) if rotation == 180 else (128, 192))
    with av.open(str(tmp_path / "reel.mp4")) as reel:
        frames = list(reel.decode(video=0))
        assert frames[0].rotation == 0
        turned = [np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90) for frame in frames]
    assert [read_number(np.ascontiguousarray(image)) for image in turned] == list(range(24))


def test_size_changes_in_mid_video_are_fitted(tmp_path):
    first, second = tmp_path / "a.ts", tmp_path / "b.ts"
    make_video(first, seconds=2, container="mpegts", sound=False)
    make_video(second, seconds=2, container="mpegts", sound=False, size=(144, 192))
    with av.open(str(tmp_path / "both.ts"), "w", format="mpegts") as out:
        stream, shift = None, 0
        for path in (first, second):
            with av.open(str(path)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                packets = [p for p in source.demux(video=0) if p.dts is not None]
                for packet in packets:
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    out.mux(packet)
                shift += 180_000
    info = write_reel(tmp_path / "both.ts", [Clip(1.0, 3.0)], tmp_path / "reel.mp4")
    pictures, _, _ = reel_contents(tmp_path / "reel.mp4")
    assert (info.width, info.height) == (192, 144) and info.frames == 48
    assert [n for _, n, _ in pictures[:24]] == list(range(24, 48))


def test_colours_come_through(tmp_path):
    wanted = [(220, 30, 30), (30, 200, 40), (40, 60, 220), (230, 220, 40)]
    with av.open(str(tmp_path / "c.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for colour in wanted * 5:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    write_reel(tmp_path / "c.mp4", [Clip(0.0, 2.0)], tmp_path / "reel.mp4")
    with av.open(str(tmp_path / "c.mp4")) as source, av.open(str(tmp_path / "reel.mp4")) as reel:
        for before, after in zip(source.decode(video=0), reel.decode(video=0)):
            difference = np.abs(before.to_ndarray(format="rgb24")[32, 32].astype(int) - after.to_ndarray(format="rgb24")[32, 32])
            assert difference.max() <= 8


def test_sound_that_starts_late_and_ends_early_is_padded(tmp_path):
    make_video(tmp_path / "late.mp4", seconds=6, sound_span=(2.5, 4.5))
    info = write_reel(tmp_path / "late.mp4", [Clip(1.0, 2.9), Clip(3.15, 6.0)], tmp_path / "reel.mp4")
    _, sound, duration = reel_contents(tmp_path / "reel.mp4")
    assert duration == pytest.approx(info.duration, abs=0.002) == pytest.approx(4.75, abs=0.002)
    at, start, _ = info.cuts[1]  # it begins with the first frame at or after 3.15 s
    assert (at, start) == pytest.approx((1.9, 76 / 24)) and info.duration == pytest.approx(4.75, abs=1e-6)
    assert onsets(sound) == pytest.approx([at + 4 - start], abs=0.006)  # of the beeps only that of second 4 is in the sound and in a clip


def test_sound_that_lies_far_behind_its_pictures_in_the_file_is_found(tmp_path):
    make_video(tmp_path / "v.ts", seconds=40, fps=10, container="mpegts", beside=False, size=(64, 64))
    assert write_reel(tmp_path / "v.ts", [Clip(21.5, 23.5)], tmp_path / "reel.mp4").has_sound
    _, sound, _ = reel_contents(tmp_path / "reel.mp4")
    assert onsets(sound) == pytest.approx([0.5, 1.5], abs=0.006)


def test_overlapping_clips_are_joined_and_order_does_not_matter(tmp_path):
    make_video(tmp_path / "v.mp4", seconds=5, sound=False)
    info = write_reel(tmp_path / "v.mp4", [Clip(3.0, 4.0), Clip(1.0, 2.0), Clip(1.5, 2.5)], tmp_path / "reel.mp4")
    assert info.cuts == ((0.0, 1.0, 2.5), (1.5, 3.0, 4.0))


def test_titles_are_burned_in_and_fit(tmp_path):
    image = number_frame(7, 192, 144, False)
    for title in ("short", "a very long title " * 50, "", "Ünïcödé 漢字"):
        titled = burn_title(image, title)
        assert titled.shape == image.shape and (titled[:-24] == image[:-24]).all()
    assert (burn_title(image, "short")[-16:] != image[-16:]).any()
    make_video(tmp_path / "v.mp4", seconds=2, sound=False)
    write_reel(tmp_path / "v.mp4", [Clip(0.0, 1.0, "1. a title")], tmp_path / "titled.mp4")
    with av.open(str(tmp_path / "titled.mp4")) as reel:
        picture = next(reel.decode(video=0)).to_ndarray(format="rgb24")
    assert picture[-14:-2].max() > 180


def test_titles_on_tiny_pictures_end():
    for height, width in ((16, 16), (2, 2), (5, 300), (300, 5)):
        assert burn_title(np.full((height, width, 3), 200, np.uint8), "1. a title (0.85)").shape == (height, width, 3)


def font_of(path, letters: str) -> str:
    """A font with a box of another height for each of the letters."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    names = [".notdef", *(f"g{i}" for i in range(len(letters)))]
    builder, glyphs = FontBuilder(1000, isTTF=True), {}
    for i, name in enumerate(names):
        pen = TTGlyphPen(None)
        corners = [(100, 0), (100, 150 * i + 50), (800, 150 * i + 50), (800, 0)]
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"g{i}" for i, letter in enumerate(letters)})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Test Script", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def test_text_in_any_script_is_shown_by_a_font_that_has_it_or_left_out_with_a_sentence(tmp_path, monkeypatch, capsys, recwarn):
    from aha.core import fonts
    from aha.highlights.plot import write_timeline
    from aha.highlights.reel import text_line
    from aha.highlights.timeline import ScoreTrack

    grey, letters = np.full((180, 640, 3), 90, np.uint8), "红色的"
    own = fonts.font_paths()[0]
    monkeypatch.setattr(fonts, "font_paths", lambda: [own])
    text_line.cache_clear()
    assert fonts.readable("1. 红色 (0.85)")[0] == "1. (0.85)"
    assert (burn_title(grey, "1. 红色") == burn_title(grey, "1.")).all()
    assert "no font of this machine has the characters" in capsys.readouterr().err
    track = ScoreTrack(np.arange(3.0), np.arange(3), *[np.full(3, 0.5)] * 2, None, 3.0)
    write_timeline(tmp_path / "without.png", track, np.full(3, 0.5), [], [], "红色 – a video")
    assert "characters" not in capsys.readouterr().err  # said once

    monkeypatch.setattr(fonts, "font_paths", lambda: [own, font_of(tmp_path / "script.ttf", letters)])
    text_line.cache_clear()
    text, paths = fonts.readable("1. 红色")
    assert text == "1. 红色" and len(paths) == 2 and [piece for piece, _ in fonts.runs(text, paths)] == ["1. ", "红色"]
    pictures = [burn_title(grey, title) for title in ("红色", "色红", "的红", "")]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])
    write_timeline(tmp_path / "with.png", track, np.full(3, 0.5), [], [], "红色 – a video")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    assert not [w for w in recwarn if "Glyph" in str(w.message)] and not capsys.readouterr().err
    text_line.cache_clear()


def test_names_that_are_not_utf8_are_written(tmp_path):
    from aha.highlights.result import Options, find_highlights, write_result
    from aha.highlights.timeline import ScoreTrack

    make_video(tmp_path / "v.mp4", seconds=2, sound=False)
    video = os.path.join(str(tmp_path), os.fsdecode(b"caf\xe9.mp4"))
    os.rename(tmp_path / "v.mp4", video)
    scores = np.array([0.2, 0.8])
    track = ScoreTrack(np.arange(2.0), np.array([0, 24]), scores, scores, None, 2.0)
    (tmp_path / "out").mkdir()
    result = find_highlights(track, "x", Options(segmentation="uniform", shot_seconds=1.0, top=1))
    assert write_result(result, video, tmp_path / "out", frame_fps=1, titles=True).duration == 1.0
    assert {"scores.json", "report.html", "timeline.png", "reel.mp4", "chapters.vtt"} <= set(os.listdir(tmp_path / "out"))
    assert "caf?" in (tmp_path / "out" / "scores.json").read_text(encoding="utf-8")


def test_pictures_are_fitted_with_their_aspect():
    wide = fit(np.full((100, 400, 3), 255, np.uint8), 400, 192, 144)
    assert wide.shape == (144, 192, 3) and wide[72, 96].min() == 255 and wide[:40].max() == 0
    assert fit(np.full((145, 193, 3), 9, np.uint8), 193, 192, 144).min() == 9  # odd sizes: no black line


def test_one_frame_and_bad_clips(tmp_path):
    make_video(tmp_path / "one.mp4", seconds=0.04, sound=False)
    assert write_reel(tmp_path / "one.mp4", [Clip(0.0, 0.01)], tmp_path / "reel.mp4").frames == 1
    for clips in ([], [Clip(5.0, 6.0)], [Clip(0.02, 0.01)], [Clip(-1.0, 1.0)]):
        with pytest.raises(UserError):
            write_reel(tmp_path / "one.mp4", clips, tmp_path / "none.mp4")
    assert sorted(os.listdir(tmp_path)) == ["one.mp4", "reel.mp4"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """The disk is full after 30 KB: a file size limit on a process of its own stands in for it."""
    make_video(tmp_path / "v.mp4", seconds=8)
    program = (
        "import resource, signal, sys\n"
        "from aha.highlights.reel import Clip, write_reel\n"
        "from aha.errors import run_command\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "run_command(lambda argv: write_reel('v.mp4', [Clip(0.0, 8.0)], 'reel.mp4', crf=1))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "reel.mp4" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["v.mp4"]
