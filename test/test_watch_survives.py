"""A watch with --state that is killed at any moment goes on: the same events, each with the same id, but for seconds that nobody can read again."""

from __future__ import annotations

import argparse
import gc
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from highlights_media import make_video
from waiting import wait_for
from watch_server import broken_server

from aha.api import Highlighter, load
from aha.cli.commands import _watch_parser, online_of
from aha.core.fusion import fusion_of
from aha.errors import UserError
from aha.watch.command import run_watch
from aha.watch.state import Store, read_frames

FORK = multiprocessing.get_context("fork")  # the children need not load the model again


@pytest.fixture(scope="module")
def model() -> Highlighter:
    return load("demo", device="cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("survives")
    paths = [folder / "long.ts", folder / "short.ts"]
    for path, seconds in zip(paths, (40, 25)):
        make_video(path, seconds=seconds, fps=5, container="mpegts", size=(64, 48), sound=False, gop=5)
    return paths


def flags(*argv: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    _watch_parser(parser)
    return parser.parse_args([*map(str, argv), "--query", "red things", "--window", "256", "--information_threshold", "1"])


class Unhurried(io.TextIOWrapper):
    """Events come at most so fast that a kill falls between them also where a whole stream is scored in no time."""

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.endswith("\n"):
            time.sleep(0.02)
        return count


def child(model, args, output) -> None:
    torch.set_num_threads(1)  # those of the process that was forked are not there; whoever waited for them would wait for ever
    gc.freeze()  # what the parent left to be collected may wait for threads of a video decoder, which are not here
    sys.stdout = Unhurried(open(output, "ab"), line_buffering=True)  # noqa: SIM115 (open until the process is gone)
    run_watch(args, lambda: model, fusion_of(args), online_of(args))


def lines(path: Path) -> list[dict]:
    """Whole lines; of a killed process the last one may be cut off."""
    told = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            told.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return told


def is_saved(state: str) -> bool:
    """Whether a snapshot of a stream holds frames."""
    for path in Path(state, "streams").glob("[!.]*.state"):
        with suppress(FileNotFoundError):  # the stream is over
            if torch.load(path, weights_only=True)["watcher"]["counters"]["frames"]:
                return True
    return False


def watched(model, args, output: Path, kills: int, seed: int) -> list[dict]:
    """Events of a watch that is killed `kills` times, at random moments after it has told something new; the first time when something can
    be gone on with."""
    chance = random.Random(seed)
    for kill in range(kills):
        process = FORK.Process(target=child, args=(model, args, output))
        process.start()
        enough = len(lines(output)) + chance.randint(1, 6)
        wait_for(lambda: not process.is_alive() or (len(lines(output)) >= enough and (kill or is_saved(args.state))))  # noqa: B023
        time.sleep(chance.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
        process.join()
        if process.exitcode == 0:
            break
        with output.open("a") as file:
            file.write("\n")
    process = FORK.Process(target=child, args=(model, args, output))
    process.start()
    process.join(1200)
    assert process.exitcode == 0
    return lines(output)


def told_once(events: list[dict]) -> dict[str, str]:
    """Event of each id, rounded; what came twice must be the same."""
    once: dict[str, str] = {}
    for event in events:
        if event["event"] in ("resumed", "end"):
            continue
        text = json.dumps(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in event.items() if key not in ("why", "id")}
        )
        key = event["id"].partition("-")[2]
        assert once.setdefault(key, text) == text
    return once


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_events_are_those_of_the_uninterrupted_watch(model, videos, tmp_path, kills):
    whole = watched(model, flags(*videos), tmp_path / "whole", 0, 0)
    args = flags(*videos, "--state", tmp_path / "state", "--state_seconds", "0.1")
    events = watched(model, args, tmp_path / "killed", kills, seed=kills)
    assert any(event["event"] == "resumed" and event["lost"] == 0 for event in events)
    assert told_once(events) == told_once(whole) and len(told_once(whole)) > 8
    ends = [{e["stream"]: (e["frames"], e["segments"], e["highlights"]) for e in run if e["event"] == "end"} for run in (whole, events)]
    assert ends[0] == ends[1] and ends[0]["long.ts"][0] == 80
    assert not list((tmp_path / "state" / "streams").glob("*.frames"))  # the streams are over: nothing is kept
    assert not list((tmp_path / "state" / "streams").glob("*.state"))


@pytest.mark.slow  # an hour of stream twice, some minutes
def test_an_hour_killed_at_twenty_random_moments(model, tmp_path):
    """The moments are anywhere in the hour, of which a frame is scored every 4 seconds; a file can be read again, so nothing of it may be
    missing or told in two ways."""
    video, output, args = tmp_path / "hour.ts", tmp_path / "killed", ["--frame_fps", "0.25", "--state_seconds", "2"]
    make_video(video, seconds=3600, fps=2, container="mpegts", size=(64, 48), sound=False, gop=10)
    whole = watched(model, flags(video, "--frame_fps", "0.25"), tmp_path / "whole", 0, 0)
    moments, kills = sorted(random.Random(1).uniform(0, 3600) for _ in range(20)), 0
    for moment in moments:
        process = FORK.Process(target=child, args=(model, flags(video, *args, "--state", tmp_path / "state"), output))
        process.start()
        while process.is_alive() and max((event["time"] for event in lines(output)), default=0.0) < moment:
            time.sleep(0.02)
        time.sleep(random.Random(moment).uniform(0, 0.1))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        with output.open("a") as file:
            file.write("\n")
    events = watched(model, flags(video, *args, "--state", tmp_path / "state"), output, 0, 0)
    again = len([event for event in events if event["event"] == "segment"]) - len({e["id"] for e in events if e["event"] == "segment"})
    print(f"\n{kills} kills of an hour: {len(told_once(whole))} events uninterrupted, {len(told_once(events))} with the kills, {again} segments "
          f"told again, {sum(e['lost'] for e in events if e['event'] == 'resumed'):g} s lost")  # fmt: skip
    assert kills >= 18 and told_once(events) == told_once(whole) and len(told_once(whole)) > 100
    ends = [next(e for e in reversed(run) if e["event"] == "end") for run in (whole, events)]
    assert [end[key] for end in ends[:1] for key in ("frames", "segments", "highlights")] == [
        ends[1][key] for key in ("frames", "segments", "highlights")
    ]
    assert ends[0]["frames"] == 900


def test_of_a_live_stream_only_what_was_sent_meanwhile_is_lost_and_it_is_said(model, tmp_path):
    """Sent at four times its speed, the stream lasts until both watches have seen enough of it on any machine; the second is then stopped."""
    video, output, state = tmp_path / "live.ts", tmp_path / "events", tmp_path / "state"
    make_video(video, seconds=800, fps=5, container="mpegts", size=(64, 48), sound=False, gop=5)

    def journal() -> list:
        return [frame for path in (state / "streams").glob("*.frames") for frame in read_frames(path)]

    def segments() -> list[dict]:
        return [event for event in lines(output) if event["event"] == "segment"]

    with broken_server(video, [], live_bytes_per_second=video.stat().st_size // 200) as (address, _):
        args = flags(address, "--state", state, "--state_seconds", "3600", "--reconnect_attempts", "1", "--buffer_seconds", "60")
        process = FORK.Process(target=child, args=(model, args, output))
        process.start()
        wait_for(lambda: len(segments()) >= 2 and len(journal()) > 4, what="two segments are told and five frames kept")
        process.kill()
        process.join()
        kept, told = journal(), len(segments())
        with output.open("a") as file:
            file.write("\n")  # the last line may be cut off
        time.sleep(1.2)  # meanwhile the stream goes on: at two frames a second, two of them are lost
        process = FORK.Process(target=child, args=(model, args, output))
        process.start()

        def goes_on() -> bool:
            lost = next((event["lost"] for event in lines(output) if event["event"] == "resumed"), None)
            return lost is not None and segments()[-1]["time"] > kept[-1].time + lost

        wait_for(goes_on, what="the second watch tells of what came after the loss")
        process.terminate()
        process.join(120)
    assert process.exitcode == 0
    events = lines(output)
    (resumed,) = (event for event in events if event["event"] == "resumed")
    end = events[-1]
    assert len(kept) > 4 and resumed["lost"] >= 1.0 and resumed["time"] == kept[-1].time
    assert end["event"] == "end" and end["frames"] > len(kept) and end["time"] > kept[-1].time + resumed["lost"]
    before = [event for event in events[: events.index(resumed)] if event["event"] == "segment"]
    again = {event["id"] for event in before[told:]}  # the frames that were kept are scored again, and tell the same
    assert again and again <= {event["id"] for event in before[:told]} and before[0]["start"] == 0.0


def test_a_state_of_other_settings_begins_anew_and_a_damaged_one_is_one_sentence(model, videos, tmp_path, capsys):
    state = tmp_path / "state"
    store = Store(state)
    store.snapshot("short.ts", {"query": "other", "address": str(videos[1]), "frame_fps": 2.0, "model": model.name})
    store.close()
    child_args = flags(videos[1], "--state", state)
    run_watch(child_args, lambda: model, fusion_of(child_args), online_of(child_args))
    out, errors = capsys.readouterr()
    assert "begins anew: its saved state has another query" in errors and json.loads(out.splitlines()[-1])["frames"] == 50
    (state / "streams" / "short.ts.state").write_bytes(b"damaged")
    with pytest.raises(UserError, match="delete it to start this stream anew"):
        run_watch(child_args, lambda: model, fusion_of(child_args), online_of(child_args))


def test_frames_are_kept_without_loss_and_a_cut_off_one_counts_as_not_read(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    store = Store(tmp_path)
    store.snapshot("a", {})
    for n, image in enumerate(frames):
        store.frame("a", n / 2, image)
    store.close()
    (path,) = (tmp_path / "streams").glob("a.*.frames")
    read = read_frames(path)
    assert [frame.time for frame in read] == [0.0, 0.5, 1.0] and all((f.image_CHW == image).all() for f, image in zip(read, frames))
    path.write_bytes(path.read_bytes()[:-7])
    assert len(read_frames(path)) == 2
    again = Store(tmp_path)
    assert len(again.load("a").frames) == 2
    again.snapshot("a", {})
    again.close()
    assert not path.exists()  # a snapshot makes the frames before it needless


def test_a_disk_that_cannot_be_written_does_not_stop_the_watch(tmp_path, monkeypatch, capsys):
    store = Store(tmp_path)
    monkeypatch.setattr("aha.watch.state.atomic_path", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    store.snapshot("a", {})
    store.frame("a", 0.0, np.zeros((3, 4, 4), np.uint8))
    store.close()
    assert store.failed == 1 and "could not be written" in capsys.readouterr().err
