"""One clock: time stamps that start again, step back or jump; pictures that stay on screen; live sources and players beside files."""

from __future__ import annotations

import bisect
import io
import statistics
import sys
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from barcode_videos import barcode_frame, read_barcode, write_video
from highlights_media import make_video, onsets, reel_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.core.fusion import Fusion
from aha.core.prediction import Prediction, score_rows
from aha.data.samples import RelevanceSample
from aha.errors import UserError
from aha.eval.annotations import TVSumVideo
from aha.eval.grids import place
from aha.highlights.chapters import chapters_vtt
from aha.highlights.reel import Clip, write_reel
from aha.highlights.result import Options, find_highlights, write_result
from aha.highlights.timeline import ScoreTrack
from aha.video import iter_frames, probe, read_video
from aha.video.packet_index import video_index
from aha.video.reader import _choose_by_time, _Timeline
from aha.watch.sources import read_pipe
from aha.web.curve import curve_html, moments_html


def numbers(frames) -> list[int]:
    return [read_barcode(image_CHW) for image_CHW in frames.frames_TCHW]


def piped(monkeypatch, data: bytes, fps: float):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    return list(read_pipe(fps, None, 25.0))


def same_as_file(live, path, fps: float) -> bool:
    """Whether a live source gave the pictures and times of the file."""
    return all(
        (a.image_CHW == b.frame_CHW).all() and a.time == pytest.approx(b.time)
        for a, b in zip(live, iter_frames(path, fps=fps), strict=True)
    )


# ---- epochs ----


@pytest.mark.parametrize("suffix, codec", [("ts", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")])
@pytest.mark.parametrize("offset", [0, 1, 10800], ids=["starts again", "steps back", "jumps"])
def test_a_recording_whose_clock_is_set_anew_is_read_whole(tmp_path, monkeypatch, suffix, codec, offset):
    parts = [
        write_video(tmp_path / f"part{i}.{suffix}", codec, times=[i * offset + Fraction(k, 25) for k in range(50)]) for i in range(2)
    ]  # fmt: skip
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert probe(path).frame_count == 100 and probe(path).duration == pytest.approx(4, abs=0.002)
    frames = read_video(path, fps=2, resize=False)
    assert frames.frame_indices == [0, 13, 25, 38, 50, 63, 75, 88] and numbers(frames) == [i % 50 for i in frames.frame_indices]
    assert numbers(read_video(path, resize=False, start=1.5, end=2.5)) == [*range(38, 50), *range(13)]
    assert same_as_file(piped(monkeypatch, path.read_bytes(), 2.0), path, 2.0)
    for backend in ("decord", "torchcodec"):
        with pytest.raises(UserError, match="silently returns wrong frames"):
            read_video(path, fps=2, backend=backend)


def test_sound_stays_with_its_pictures_where_the_clock_starts_again(tmp_path):
    parts = [tmp_path / f"part{i}.ts" for i in range(2)]
    for part in parts:
        make_video(part, seconds=4, fps=25, container="mpegts")
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    info = write_reel(path, [Clip(1.6, 2.6), Clip(5.6, 7.6)], tmp_path / "reel.mp4")
    pictures, sound, duration = reel_contents(tmp_path / "reel.mp4")
    assert info.duration == 3.0 == pytest.approx(duration, abs=0.002)
    flashes = [time for (time, _, flash), (_, _, before) in zip(pictures[1:], pictures) if flash and not before]
    assert flashes == pytest.approx([0.4, 1.4, 2.4], abs=0.002)
    assert onsets(sound) == pytest.approx(flashes, abs=0.06)  # a frame of sound at the seam is another one's length


def test_a_long_hold_is_no_jump_where_the_container_or_the_sound_says_so(tmp_path):
    times = [Fraction(k, 25) for k in range(25)] + [60 + Fraction(k, 25) for k in range(25)]
    for suffix in ("mkv", "mp4"):
        assert probe(write_video(tmp_path / f"hold.{suffix}", count=50, times=times)).duration == pytest.approx(
            61.5, abs=1
        )  # MP4: its mean rate says how long the last picture lasts
    with av.open(str(tmp_path / "hold.ts"), "w") as out:
        stream, sound = out.add_stream("libx264", rate=25), out.add_stream("mp2", rate=48000)
        stream.width, stream.height, stream.codec_context.time_base = 176, 96, Fraction(1, 90000)
        pending = [(round(t * 90000), i) for i, t in enumerate(times)]
        for k in range(62 * 48000 // 1152):
            while pending and pending[0][0] / 90000 <= k * 1152 / 48000:
                frame = av.VideoFrame.from_ndarray(barcode_frame(pending[0][1]), format="rgb24")
                frame.pts, frame.time_base = pending.pop(0)[0], Fraction(1, 90000)
                out.mux(stream.encode(frame))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, k * 1152, Fraction(1, 48000)
            out.mux(sound.encode(frame))
        out.mux(stream.encode(None))
        out.mux(sound.encode(None))
    assert probe(tmp_path / "hold.ts").duration == pytest.approx(61, abs=0.2)


# ---- held pictures ----

GAPS = [Fraction(k, 25) for k in range(25)] + [5 + Fraction(k, 25) for k in range(25)] + [9 + Fraction(k, 25) for k in range(10)]


def oracle(times: list[Fraction], fps: Fraction, until: Fraction) -> list[int]:
    """The rule in plain words: the first picture at or after t if it comes within one usual interval, else the one on screen."""
    usual = statistics.median(b - a for a, b in zip(times, times[1:])) + Fraction(1, 1000)
    chosen, k = [], 0
    while (t := k / fps) <= until:
        following = next((i for i, time in enumerate(times) if time >= t), None)
        held = following is None or (following > 0 and times[following] - t > usual)
        chosen.append(max(i for i, time in enumerate(times) if time < t) if held else following)
        k += 1
    return chosen


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("fps", [1, 3, Fraction(1, 2)])
def test_a_sample_in_a_gap_is_the_picture_on_screen(tmp_path, monkeypatch, suffix, fps):
    path = write_video(
        tmp_path / f"gaps.{suffix}", "libx264", count=60, times=GAPS, muxer_options={"movflags": "faststart"} if suffix == "mp4" else None
    )
    frames = read_video(path, fps=fps, resize=False)
    assert frames.frame_indices == oracle(GAPS, Fraction(fps), GAPS[-1]) == numbers(frames)
    assert frames.times == [float(k / Fraction(fps)) for k in range(len(frames.times))]
    for index, time, frame_time in zip(frames.frame_indices, frames.times, frames.frame_times):
        assert frame_time == pytest.approx(max(time, float(GAPS[index])), abs=1e-3)
    assert same_as_file(piped(monkeypatch, path.read_bytes(), float(fps)), path, fps)
    even = read_video(path, num_frames=len(frames.times), end=len(frames.times) / float(fps), resize=False) if fps == 1 else None
    assert even is None or even.frame_indices[:5] == frames.frame_indices[:5]
    first_after = [next(i for i, t in enumerate(GAPS) if t >= k) for k in range(3)]
    assert first_after == [0, 25, 25] and read_video(path, fps=1, resize=False).frame_indices[:3] == [0, 24, 24]


@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=40), st.fractions(Fraction(1, 10), 30, max_denominator=101), st.integers(0, 3000)
)
@settings(max_examples=80, deadline=None)
def test_held_pictures_of_any_timeline(gaps, rate, last_ms):
    times = [Fraction(sum(gaps[:i]), 1000) for i in range(len(gaps) + 1)]
    timeline = _Timeline(
        "video",
        [int(t * 1000) for t in times],
        Fraction(1, 1000),
        Fraction(25),
        times[-1] + Fraction(max(last_ms, 40), 1000),
        0,
        False,
        last_ms,
    )
    choice = _choose_by_time(timeline, rate, None, None, None, None, "up")
    stays = Fraction(last_ms, 1000) if last_ms > timeline.usual_ticks else Fraction(0)
    until = times[-1] + stays
    expected = oracle(times, rate, until)
    if stays and (len(expected) - 1) / rate == until:
        expected.pop()  # the video ends there
    assert len(choice.frame_indices) == len(expected)
    for k, (index, right) in enumerate(zip(choice.frame_indices, expected)):
        # Intervals that differ from the median by what rounding does to them (1 ms) are usual ones too: the one freedom of the rule.
        wait = times[max(index, right)] - k / rate
        assert index == right or (abs(index - right) == 1 and abs(float(wait) - timeline.usual_ticks / 1000) <= 0.002)


@pytest.mark.parametrize(
    "suffix, rate", [("mkv", Fraction(30000, 1001)), ("mkv", Fraction(24000, 1001)), ("flv", 30), ("ts", Fraction(30000, 1001))]
)
def test_at_a_constant_frame_rate_no_index_changes(tmp_path, suffix, rate):
    """Rounded time stamps (Matroska and FLV: milliseconds) are no gaps."""
    path = write_video(tmp_path / f"video.{suffix}", "flv" if suffix == "flv" else "libx264", fps=rate, count=90)
    index = video_index(path)
    ticks = [(p - index.first_pts) * index.time_base for p in index.pts]
    for fps in (1, 2, 7, Fraction(29, 3), 50):
        chosen = read_video(path, fps=fps).frame_indices
        assert chosen == [bisect.bisect_left(ticks, k / Fraction(fps)) for k in range(len(chosen))]


def test_one_picture_in_ten_seconds_is_a_constant_rate(tmp_path, monkeypatch):
    path = write_video(tmp_path / "lapse.mkv", count=6, fps=1, times=[Fraction(10 * k) for k in range(6)])
    assert (
        read_video(path, fps=Fraction(1, 5)).frame_indices
        == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5][: len(read_video(path, fps=Fraction(1, 5)).times)]
    )
    assert write_reel(path, [Clip(3, 9)], tmp_path / "reel.mp4").duration == pytest.approx(6, abs=1e-3)


# ---- reels ----


def test_a_reel_is_as_long_as_what_was_asked_for(tmp_path):
    path = write_video(tmp_path / "gaps.mkv", count=60, times=GAPS)
    for clip, shown in (
        (Clip(2, 4), [24]),
        (Clip(0.5, 3), range(13, 25)),
        (Clip(4, 5.2), [24, *range(25, 30)]),
        (Clip(3, 9.1), [24, *range(25, 53)]),
    ):
        info = write_reel(path, [clip], tmp_path / "reel.mp4")
        assert info.duration == pytest.approx(clip.end - clip.start, abs=1e-6) and info.frames == len(shown)
        with av.open(str(tmp_path / "reel.mp4")) as reel:
            assert reel.duration / 1e6 == pytest.approx(clip.end - clip.start, abs=0.002)
            pictures = [(float(f.time), read_barcode(f.to_ndarray(format="rgb24").transpose(2, 0, 1))) for f in reel.decode(video=0)]
        assert [number for _, number in pictures] == list(shown)
        assert [time for time, _ in pictures[1:]] == pytest.approx(
            [float(GAPS[n]) - max(clip.start, float(GAPS[shown[0]])) for n in shown[1:]], abs=2e-3
        )
    held_twice = write_reel(path, [Clip(1.5, 2.5), Clip(3, 4)], tmp_path / "reel.mp4")
    assert held_twice.cuts == ((0.0, 1.5, 2.5), (1.0, 3.0, 4.0)) and held_twice.frames == 2


# ---- the player's clock ----


@pytest.fixture
def late(tmp_path):
    """Sound from 0 s, pictures from 3 s."""
    path = tmp_path / "late.mp4"
    with av.open(str(path), "w") as out:
        stream, sound = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=48000, layout="mono")
        stream.width, stream.height, stream.codec_context.time_base = 176, 96, Fraction(1, 25)
        for k in range(50):
            frame = av.VideoFrame.from_ndarray(barcode_frame(k), format="rgb24")
            frame.pts, frame.time_base = 75 + k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        for k in range(5 * 48000 // 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 1024 * k, Fraction(1, 48000)
            out.mux(sound.encode(frame))
        out.mux(stream.encode(None))
        out.mux(sound.encode(None))
    return path


def test_files_count_from_the_first_picture_and_players_from_the_container(late, tmp_path):
    assert read_video(late, fps=2).times == [0.0, 0.5, 1.0, 1.5]
    offset = video_index(late).player_seconds(0.0)
    assert offset == pytest.approx(3, abs=0.05) and probe(late).late == offset
    times = np.arange(4) / 2
    scores = np.array([0.1, 0.1, 0.9, 0.9])
    track = ScoreTrack(times, np.array([0, 13, 25, 38]), scores, scores, None, 2.0, scores[:, None])
    result = find_highlights(track, "x", Options(segmentation="uniform", shot_seconds=1.0, top=1, smooth_frames=1))
    assert [(h.start, h.end) for h in result.highlights] == [(1.0, 2.0)]
    (tmp_path / "out").mkdir()
    write_result(result, late, tmp_path / "out", frame_fps=2, reel=False)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f'data-start="{1 + offset:.3f}" data-end="{2 + offset:.3f}"' in page and f'"late": {offset}' in page and "0:04 – 0:05" in page
    assert (tmp_path / "out" / "chapters.vtt").read_text().splitlines()[2].startswith("00:00:03.") or offset < 3
    assert "00:00:01.000 --> 00:00:02.000" in chapters_vtt(result.segments, result.highlights, "x")
    assert f'data-start="{1 + offset:.3f}"' in moments_html(result, offset) and f'data-late="{offset:.3f}"' in curve_html(
        result, 2.0, offset
    )
    # a smaller copy begins with the first picture, so there is nothing to add
    write_video(tmp_path / "mpeg4.avi", "mpeg4")
    write_result(result, tmp_path / "mpeg4.avi", tmp_path / "out", frame_fps=2, reel=False)
    assert 'data-start="1.000"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


# ---- held samples in labels and evaluation ----


def test_held_samples_are_placed_by_their_time():
    video = TVSumVideo("v", "VT", "title", 10.0, 250, np.ones((20, 250), np.int16))
    times, frames = [0.0, 1.0, 2.0, 3.0, 9.99], [0, 25, 25, 25, 26]
    prediction = Prediction.of_scores("v", "q", 10.0, 1.0, frames, score_rows(times, [0.5] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], None))
    placed, scores = place(prediction.samples(Fusion()), video)
    assert placed.tolist() == [0, 25, 50, 75, 249] and scores.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    straight = Prediction.of_scores(
        "v", "q", 10.0, 1.0, [0, 26, 51, 240], score_rows([0.0, 1.0, 2.0, 9.5], [0.5] * 4, [0.1, 0.2, 0.3, 0.4], None)
    )
    assert place(straight.samples(Fusion()), video)[0].tolist() == [0, 26, 51, 240]  # else the frame numbers count, as before
    for record in ({**prediction.record, "true_frames_list": [0, 25, 24, 25, 26]},
                   {"video_uuid": "v", "frames": [0, 25, 25], "scores": [0.1, 0.2, 0.3]},
                   {**prediction.record, "frame_fps": None, "debug_data": [{"relevance_score": 0.1}] * 5}):  # fmt: skip
        with pytest.raises(UserError, match="not above the one before it"):
            Prediction(record).samples(Fusion())

    sample = RelevanceSample("s", "v", "v.mp4", 3.0, scores=np.arange(250) / 250, score_fps=25.0, by_frame=True)
    held = SimpleNamespace(frame_indices=[0, 25, 25], times=[0.0, 1.0, 2.0], frames_TCHW=np.zeros((3, 3, 2, 2), np.uint8))
    even = SimpleNamespace(frame_indices=[0, 26, 51], times=[0.0, 1.0, 2.0], frames_TCHW=np.zeros((3, 3, 2, 2), np.uint8))
    _, turns = sample.conversation(1.0, None)
    labels = [next(t.relevance for t in sample.finish(turns, frames, None)[0] if t.role == "stream") for frames in (held, even)]
    assert labels == [(0.0, 25 / 250, 50 / 250), (0.0, 26 / 250, 51 / 250)]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mov", "libx264"), ("avi", "libx264"), ("avi", "mpeg4"), ("avi", "mjpeg")]
)
def test_files_joined_end_to_end_are_named(suffix, codec, tmp_path, capsys):
    """Of MP4 only the first part is read, which a sentence says; a whole file, and all of an AVI, is read without a word."""
    part = write_video(tmp_path / f"part.{suffix}", codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    assert probe(part).frame_count == 50 and capsys.readouterr().err == ""
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(part.read_bytes() * 2)
    parts, said = probe(joined).frame_count // 50, capsys.readouterr().err
    if suffix == "avi":
        assert parts == 2 and said == ""
        return
    assert parts == 1
    assert f"{joined} is several files joined end to end" in said and f"{part.stat().st_size} of {2 * part.stat().st_size} bytes" in said
