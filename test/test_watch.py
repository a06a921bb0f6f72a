"""`aha watch`: events in order as they are decided, a stated rule for falling behind, lost connections survived, a clean end."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from barcode_videos import barcode_frame
from highlights_media import make_video
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture
from playlists import counting_server
from waiting import LONG, wait_for
from watch_server import broken_server, stalling_server

from aha.api import Highlighter, load
from aha.errors import UserError
from aha.highlights.online import OnlineSettings, segment_online
from aha.streaming import OnlineEngine
from aha.streaming.live import LiveStreams
from aha.streaming.policies import MinimumGap, Threshold
from aha.watch.feed import Feed
from aha.watch.levels import JudgeSettings
from aha.watch.sources import (
    Lost,
    Reconnected,
    Sampler,
    SourceFrame,
    camera_of,
    is_network,
    open_network,
    read_camera,
    read_file,
    read_pipe,
)
from aha.watch.watcher import Watcher, WatchSettings

TINY = ("reference/llava-onevision-qwen2-tiny-ov", "reference/aha-adapter")


@pytest.fixture(scope="module")
def model() -> Highlighter:
    return load(*(shared_fixture(part) for part in TINY), device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("watch") / "video.ts"
    make_video(path, seconds=20, fps=10, container="mpegts", size=(128, 96), sound=False, gop=10)
    return path


# ---- the queue ----


def frame(number: int) -> SourceFrame:
    return SourceFrame(np.zeros(1), float(number), time.monotonic())


def test_a_live_feed_drops_the_oldest_and_says_how_many():
    read = threading.Event()

    def source():
        yield from (frame(n) for n in range(10))
        read.set()

    feed = Feed(source(), size=3, live=True)
    assert read.wait(LONG)
    items = []
    while not feed.empty:
        items.append(feed.get(0.1))
    assert [item.time for item in items if item] == [7, 8, 9] and feed.dropped == 7 and feed.complete


def test_a_file_feed_waits_and_drops_nothing():
    taken = []
    feed = Feed((frame(n) for n in range(50)), size=3, live=False)
    while not feed.empty:
        if (item := feed.get(0.1)) is not None:
            taken.append(item.time)
    assert taken == list(range(50)) and feed.dropped == 0


def test_a_feed_keeps_messages_and_reports_errors():
    def source():
        yield frame(0)
        yield Lost("gone", 1.0)
        yield from (frame(n) for n in range(1, 6))
        raise UserError("the source is broken.")

    feed = Feed(source(), size=2, live=True)
    items = []
    while not feed.empty:
        if (item := feed.get(0.1)) is not None:
            items.append(item)
    assert any(isinstance(item, Lost) for item in items) and str(feed.error) == "the source is broken." and not feed.complete


def test_stopping_a_feed_ends_its_thread():
    feed = Feed((frame(n) for n in range(10**9)), size=2, live=False)
    assert feed.get(LONG).time == 0
    feed.stop()
    feed._thread.join(LONG)
    assert not feed._thread.is_alive()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60), st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_the_sampler_decides_every_tick_once_by_the_frame_after_it_or_the_one_on_screen(steps, fps):
    times = np.cumsum(steps) - steps[0]
    sampler = Sampler(fps)
    ticks = []
    for k, t in enumerate(times):
        for due, held in sampler.decided_by(float(t)):
            ticks.append(due)
            assert due <= t + 1e-6 and (k == 0 or due > times[k - 1])
            usual = np.median(np.diff(times[: k + 1])) if k else np.inf
            assert held == (t - due > usual) or abs(t - due - usual) <= 0.0011  # rounding to milliseconds is no gap
    assert ticks == [k / fps for k in range(len(ticks))] and len(ticks) == int(times[-1] * fps + 1e-6) + 1
    last = sampler.held(10.0)
    assert not last or (last[0] == len(ticks) / fps and last[-1] < times[-1] + 10)


def test_nothing_is_on_screen_where_the_connection_was_lost():
    sampler = Sampler(1.0)
    assert [due for t in (0.0, 0.5, 1.0) for due, _ in sampler.decided_by(t)] == [0.0, 1.0]
    sampler.lost()
    assert sampler.decided_by(7.3) == [(7.0, False)] and sampler.decided_by(8.0) == [(8.0, False)]


def test_sources_are_told_apart():
    assert is_network("rtsp://camera/1") and is_network("HTTP://x/y.ts") and not is_network("folder/http.mp4")
    assert camera_of("camera:2").endswith("2") and camera_of("/dev/video1") == "/dev/video1" and camera_of("camera.mp4") is None
    with pytest.raises(UserError, match="camera"):
        next(read_camera("/dev/video99", 1.0))


# ---- events ----


class Watched:
    """A watcher whose frames go through the engine and its queue, as in the command."""

    def __init__(self, model, query, watch_settings, window=2048, **session):
        self.live = LiveStreams(OnlineEngine(model.model, window=window, tokenizer=model.tokenizer))
        session = self.live.engine.open(query, window=window, frame_fps=1 / watch_settings.frame_seconds, **session)
        self.watcher = Watcher(session, watch_settings)

    def push(self, image_CHW, seconds):
        self.live.offer(self.watcher.session, image_CHW, seconds)
        return [event for scored in self.live.step() for event in self.watcher.hear(scored.time, scored.scores, scored.feature_H)]


def watch(model, frames, watch_settings, query="a red star", **session):
    watched = Watched(model, query, watch_settings, **session)
    events = []
    for item in frames:
        events += watched.push(item.image_CHW, item.time)
    return watched.watcher, [*events, *watched.watcher.finish()]


def test_events_come_in_order_and_segments_are_those_of_the_online_segmentation(model, video):
    online = OnlineSettings(information_threshold=3.0, change_threshold=10.0)
    frames = list(read_file(str(video), 2.0))
    assert [f.time for f in frames] == [n / 2 for n in range(40)]
    _, events = watch(model, frames, WatchSettings(online, judge=JudgeSettings(highlight_share=0.5)))
    times = [event["time"] for event in events]
    assert times == sorted(times) and events[-1]["event"] == "end"
    json.dumps(events, allow_nan=False)
    segments = [e for e in events if e["event"] == "segment"]
    assert segments[0]["start"] == 0 and segments[-1]["end"] == 20.0
    assert all(a["end"] == pytest.approx(b["start"]) for a, b in zip(segments, segments[1:]))

    encoded = model.encode(video, fps=2)
    track = model.score(encoded, "a red star")
    expected = segment_online(track, online)
    assert [(s["start"], s["reason"]) for s in segments] == [(s.start, s.reason) for s in expected]
    assert [s["score"] for s in segments] == pytest.approx([track.relevance_F[s.first : s.last].mean() for s in expected], abs=1e-4)
    highlights = [e for e in events if e["event"] == "highlight"]
    assert highlights and all(h["score"] >= h["level"] and {"start", "end", "peak_time", "why"} <= set(h) for h in highlights)
    assert events[-1]["frames"] == 40 and events[-1]["segments"] == len(segments) and events[-1]["highlights"] == len(highlights)


def test_a_very_long_segment_is_kept_as_sums(model, video, monkeypatch):
    frames = list(read_file(str(video), 1.0))
    one = WatchSettings(OnlineSettings(information_threshold=None, change_threshold=None), judge=JudgeSettings(highlight_score=0.0))
    _, whole = watch(model, frames, one)
    monkeypatch.setattr("aha.watch.watcher.OPEN_FRAMES", 7)
    watcher, folded = watch(model, frames, one)
    assert folded[0]["score"] == pytest.approx(whole[0]["score"]) and folded[0]["start"] == 0.0 and folded[0]["why"] == whole[0]["why"]
    assert len(watcher._rows) == 0


def test_questions_and_replies(model, video):
    frames = list(read_file(str(video), 1.0))[:10]
    watched = Watched(model, "x", WatchSettings(frame_seconds=1.0), policy=MinimumGap(Threshold(0.0), seconds=4.0), max_new_tokens=3)
    watcher = watched.watcher
    events = [event for item in frames[:6] for event in watched.push(item.image_CHW, item.time)]
    assert [e["time"] for e in events if e["event"] == "say"] == [0.0, 4.0]
    asked = watcher.ask("what is it?")
    assert [e["event"] for e in asked] == ["question", "say"] and asked[0]["time"] == 5.0
    with pytest.raises(UserError):
        watcher.ask("")
    assert watched.push(frames[6].image_CHW, 6.0) is not None and watcher.frames == 7


def test_memory_of_a_session_does_not_grow(model, video):
    frames = list(read_file(str(video), 1.0))
    watched = Watched(model, "x", WatchSettings(), window=400)
    sizes = []
    for round_ in range(3):
        for item in frames:
            watched.push(item.image_CHW, round_ * 20 + item.time)
        pool = watched.watcher.session.pool
        sizes.append((len(watched.watcher.session.cache.slots), pool.used, pool.nbytes))
    assert sizes[1][0] <= sizes[0][0] + 49 and sizes[2][0] <= 400 and sizes[2][1:] == sizes[1][1:] and sizes[2][2] == sizes[0][2]


# ---- lost connections ----


@pytest.mark.parametrize("cuts", [1 / 3, 1 / 2])
def test_a_recording_goes_on_where_the_connection_was_cut(video, cuts):
    size = video.stat().st_size
    whole = [f.time for f in read_file(str(video), 2.0)]
    with broken_server(video, [int(size * cuts)] * 3) as (address, starts):
        items, live = open_network(address, 2.0, attempts=6)
        items = list(items)
    assert not live and len(starts) >= 3
    assert any(isinstance(item, Reconnected) for item in items)
    assert [item.time for item in items if isinstance(item, SourceFrame)] == pytest.approx(whole)  # nothing lost, nothing twice


def test_a_live_stream_goes_on_after_a_cut(video):
    size = video.stat().st_size
    with broken_server(video, [size // 2], live_bytes_per_second=size // 2) as (address, starts):
        items, live = open_network(address, 2.0, attempts=3)
        assert live
        items = list(items)
    kinds = [type(item) for item in items]
    assert Lost in kinds and Reconnected in kinds and kinds.index(Lost) < kinds.index(Reconnected)
    times = [item.time for item in items if isinstance(item, SourceFrame)]
    before = sum(kind is SourceFrame for kind in kinds[: kinds.index(Lost)])
    assert times == sorted(times) and before > 5 and len(times) - before > 5  # frames on both sides of the cut
    assert len(starts) >= 2 and kinds[-1] is Lost  # in the end the server is out of film: given up after 3 attempts


def media(path, pictures_from: float, sound_seconds: float, options: dict[str, str]):
    """2 s of pictures from a moment on, and sound from 0 s."""
    with av.open(str(path), "w", options=options) as out:
        stream, sound = out.add_stream("libx264", rate=10), out.add_stream("aac", rate=48000, layout="mono")
        stream.width, stream.height, stream.codec_context.time_base = 176, 96, Fraction(1, 10)
        stream.codec_context.gop_size = 5
        for k in range(int(sound_seconds * 48000 / 1024)):
            n = round(k * 1024 / 4800 - pictures_from * 10)
            if 0 <= n < 20 and (k == 0 or n != round((k - 1) * 1024 / 4800 - pictures_from * 10)):
                frame = av.VideoFrame.from_ndarray(barcode_frame(n), format="rgb24")
                frame.pts, frame.time_base = round(pictures_from * 10) + n, Fraction(1, 10)
                out.mux(stream.encode(frame))
            noise = np.random.default_rng(k).normal(0, 0.1, (1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 1024 * k, Fraction(1, 48000)
            out.mux(sound.encode(frame))
        out.mux(stream.encode(None))
        out.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("suffix, options", [("mp4", {"movflags": "faststart"}), ("mkv", {}), ("ts", {})])
@pytest.mark.parametrize("pictures_from, sound_seconds", [(0.0, 8.0), (3.0, 5.0)], ids=["sound goes on", "sound comes first"])
def test_a_recording_over_http_ends_and_has_the_clock_of_the_file(tmp_path, suffix, options, pictures_from, sound_seconds):
    path = media(tmp_path / f"clip.{suffix}", pictures_from, sound_seconds, options)
    whole = list(read_file(str(path), 2.0))
    assert [f.time for f in whole] == [0.0, 0.5, 1.0, 1.5]
    for cuts in ([], [path.stat().st_size // 2]):
        with broken_server(path, cuts) as (address, _):
            items = list(itertools.islice(open_network(address, 2.0, attempts=3)[0], 20))
        frames = [item for item in items if isinstance(item, SourceFrame)]
        assert len(items) <= 8 and [f.time for f in frames] == pytest.approx([f.time for f in whole])
        assert all((a.image_CHW == b.image_CHW).all() for a, b in zip(frames, whole))


def test_attempts_that_bring_nothing_new_are_counted(tmp_path):
    path = media(tmp_path / "clip.mp4", 0.0, 8.0, {})  # its index lies at the end, and the server knows no ranges
    with counting_server(path.read_bytes()) as (address, asked):
        items = []
        with pytest.raises(UserError, match="brought no picture in 2 attempts"):
            items.extend(item for item in open_network(f"{address}/clip.mp4", 1.0, 2)[0])
    assert len(asked) <= 8


def test_a_server_that_is_not_there_is_one_sentence():
    with pytest.raises(UserError, match="cannot be opened"):
        open_network("http://127.0.0.1:9/x", 1.0, 1)
    with pytest.raises(UserError) as told:
        open_network("http://user:secr@et@127.0.0.1:9/x?token=secret", 1.0, 1)
    assert "secr" not in str(told.value)


# ---- the command ----


def command(*arguments: str) -> list[str]:
    base, adapter = (str(shared_fixture(part)) for part in TINY)
    return [sys.executable, "-m", "aha.cli", "watch", *arguments, "--llm_pretrained", base, "--lora_pretrained", adapter, "--device", "cpu"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_ctrl_c_ends_with_the_summary_and_questions_can_be_typed(tmp_path):
    """A question when something was seen, Ctrl-C when it is answered: the stream lasts long enough for both."""
    make_video(tmp_path / "long.ts", seconds=600, fps=2, container="mpegts", size=(64, 48), sound=False, gop=10)
    process = subprocess.Popen(
        command(str(tmp_path / "long.ts"), "--live", "--query", "a red star", "--max_new_tokens", "4", "--status_seconds", "0.1"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    lines = [json.loads(process.stdout.readline())]
    assert lines[0]["event"] == "start"
    while not lines[-1].get("frames"):
        lines.append(json.loads(process.stdout.readline()))
    process.stdin.write("what is it?\n")
    process.stdin.flush()
    while lines[-1]["event"] != "say":
        lines.append(json.loads(process.stdout.readline()))
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=LONG)
    lines += [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0, errors
    assert "question" in [line["event"] for line in lines]
    assert lines[-1]["event"] == "end" and lines[-1]["ended"] == "stopped" and 0 < lines[-1]["frames"] < 1200


@pytest.mark.parametrize("kind", ["http", "pipe", "engines"])
def test_ctrl_c_ends_in_good_order_while_a_source_is_silent(video, tmp_path, kind):
    """The thread that reads it waits in FFmpeg or for standard input, and comes back to a Python that is gone: the process crashed after its
    last event. (engines: each is a process, whose exit code the first one looks at.)"""
    with stalling_server(video, 1.0, 0.5) as one, stalling_server(video, 1.0, 0.5) as two:
        sources = {"http": [one], "pipe": ["-"], "engines": [one, two, "--engines", "2"]}[kind]
        process = subprocess.Popen(
            command(*sources, "--live", "--query", "a red star", "--silent_seconds", "1"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        if kind == "pipe":
            process.stdin.write(video.read_bytes()[: video.stat().st_size // 2])
            process.stdin.flush()
        lines: list[dict] = []
        while sum(line["event"] == "silent" for line in lines) < (2 if kind == "engines" else 1):
            lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        lines += [json.loads(line) for line in process.stdout]
        assert process.wait(LONG) == 0, process.stderr.read()
        ends = [line for line in lines if line["event"] == "end"]
        assert len(ends) == (2 if kind == "engines" else 1) and all(end["ended"] == "stopped" and end["frames"] for end in ends)
        process.stdin.close()


def test_frames_of_a_slow_pipe_come_when_they_are_there_and_not_when_a_buffer_is_full(video, monkeypatch):
    reader, writer = os.pipe()
    data, times = video.read_bytes(), []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=os.fdopen(reader, "rb")))
    thread = threading.Thread(target=lambda: times.extend(item.time for item in read_pipe(2.0, None, 4.0)), daemon=True)
    seen: list[float] = []
    monkeypatch.setattr(
        "aha.watch.sources.SourceFrame", lambda image, time, arrived: (seen.append(time), SourceFrame(image, time, arrived))[1]
    )
    thread.start()
    pieces = [data[at : at + 1880] for at in range(0, len(data) * 3 // 4, 1880)]
    for n, piece in enumerate(pieces):
        os.write(writer, piece)
        if n > len(pieces) // 2:  # by then the format is known: what was sent is there in a moment, and not 32 KiB later
            sent = 20.0 * 0.75 * n / len(pieces)
            wait_for(lambda: seen and seen[-1] >= sent - 4, what=f"piece {n} is read, at {sent} s")  # noqa: B023 (called at once)
    os.close(writer)
    thread.join(LONG)
    assert not thread.is_alive() and times == seen


def test_a_pipe_of_bare_pictures_a_container_and_one_that_holds_nothing(video, monkeypatch):
    def pipe(data: bytes, raw_size: str | None = None) -> list[float]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        return [item.time for item in read_pipe(2.0, raw_size, 4.0)]

    pictures = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8).tobytes()
    assert pipe(pictures, "64x48") == [n / 2 for n in range(10)]
    assert pipe(video.read_bytes()) == pytest.approx([n / 2 for n in range(40)])
    with pytest.raises(UserError, match="standard input holds no video"):
        pipe(b"no video" * 100)
