"""Scoring on a live stream's clock: which frames a busy model takes, what a lost frame counts, and where it is said."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming_model import golden_model
from tiny_benchmarks import tiny_model, write_tvsum, write_video

from aha import score
from aha.conversation import Query, QuerySchedule
from aha.core.fusion import Fusion
from aha.core.prediction import Prediction, read_predictions, write_predictions
from aha.errors import UserError
from aha.eval import proactive, tvsum
from aha.eval.proactive import Moments
from aha.scoring import ablate, baseline, speak, vlm
from aha.scoring.config import ScoreConfig
from aha.scoring.dataset import Item
from aha.scoring.model_choice import ModelChoice
from aha.scoring.offline import Scorer
from aha.streaming import Session
from aha.streaming.policies import Threshold
from aha.streaming.stream_clock import StreamClock
from aha.video import iter_frames

Frame = namedtuple("Frame", "time frame_index")
CHATTY = {"stream_end_prob_threshold": 0.55, "score_heads": "relevance_score", "max_new_tokens": 3}


# ---------------------------------------------------------------- which frames are taken


def played(times: list[Fraction], cost: Fraction, tokens: list[int]) -> list[int]:
    """An independent reference, in exact numbers: busy intervals [from, to) of the frames before; a frame within one is lost."""
    busy: list[tuple[Fraction, Fraction]] = []
    for k, when in enumerate(times):
        if not any(begin <= when < end for begin, end, *_ in busy):
            busy.append((when, when + cost * (1 + tokens[k])))
    begun = {begin for begin, _ in busy}
    return [k for k, when in enumerate(times) if when in begun]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 9), st.booleans(),
    st.lists(st.integers(0, 3), min_size=40, max_size=40), st.lists(st.integers(1, 5), min_size=40, max_size=40),
)  # fmt: skip
def test_which_frames_are_taken(fps, speed, count, chunk, speaks, tokens, gaps):
    """At every speed, over even and uneven streams, with and without replies, in chunks of any size: those of the reference."""
    steps = np.cumsum([0, *gaps])[:count] if speaks else range(count)
    exact = [Fraction(int(step), fps) for step in steps]
    frames = [Frame(float(when), 3 * k) for k, when in enumerate(exact)]
    said = tokens if speaks else [0] * count
    clock = StreamClock.of(f"{speed}fps")
    taken, decided = [], []
    chunks = [(frames[at : at + chunk], np.arange(at, min(at + chunk, count))) for at in range(0, count, chunk)]
    for some, values in clock.taken(chunks, singly=speaks):
        assert [3 * value for value in values] == [frame.frame_index for frame in some]
        for frame, value in zip(some, values):
            taken.append(int(value))
            decided.append(clock.decided(frame.time))
            if said[value]:
                assert clock.said(said[value]) == pytest.approx(frame.time + (1 + said[value]) / speed)
    assert taken == played(exact, Fraction(1, speed), said)
    assert decided == pytest.approx([float(exact[k]) + 1 / speed for k in taken])
    lost = [k for k in range(count) if k not in taken]
    assert (clock.arrived, clock.lost_frames, clock.lost_times) == (count, [3 * k for k in lost], [frames[k].time for k in lost])
    assert [clock.passed() for _ in taken] == [b - a - 1 for a, b in zip([-1, *taken], taken)]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_an_even_stream_keeps_every_nth_frame(fps, speed):
    clock = StreamClock.of(f"{speed}fps")
    kept = [k for k in range(100) if clock.takes(k / fps, k)]
    assert kept == list(range(0, 100, math.ceil(Fraction(fps, speed))))


@pytest.mark.parametrize("speed", ["", "fps", "0fps", "-1fps", "nanfps", "infinite", "1e999fps", "10 fps"])
def test_a_wrong_speed_is_one_sentence(speed):
    with pytest.raises(UserError, match="is none of machine, inf, or frames a second"):
        ScoreConfig(clock="wall", speed=speed)


def test_settings_that_contradict_each_other():
    with pytest.raises(UserError, match="--speed 5fps is for --clock wall"):
        ScoreConfig(speed="5fps")
    with pytest.raises(UserError, match="leave out --feature_cache"):
        ScoreConfig(clock="wall", feature_cache="features")
    assert ScoreConfig().stream_clock() is None and ScoreConfig(clock="wall").measured
    assert len({str(ScoreConfig(**given).key()) for given in ({}, {"clock": "wall"}, {"clock": "wall", "speed": "5fps"})}) == 3


# ---------------------------------------------------------------- scores of the stream


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, 3, seed=3)
    return path


QUERIES = [Query("what is this"), Query("and now", 1.7)]


def run(clip, **given) -> dict:
    return Scorer(*golden_model(), ScoreConfig(frame_fps=5, chunk_frames=4, **given)).score(clip, QUERIES).record


@pytest.mark.parametrize("order, speaking", [("aha", {}), ("reference", CHATTY)], ids=["silent", "speaking"])
def test_infinite_speed_is_the_score_without_a_clock_bit_for_bit(clip, speaking, order):
    plain = run(clip, prompt_order=order, **speaking)
    live = run(clip, prompt_order=order, clock="wall", speed="inf", **speaking)
    assert live.pop("clock") == {"speed": "inf", "arrived": 15, "lost_times": [], "lost_frames": []}
    assert json.dumps(live) == json.dumps(plain) and (bool(plain["model_response_list"]) == bool(speaking))


def by_hand(clip, cost: float, speaking: bool, order: str = "aha") -> tuple[list[dict], list[dict], list[float]]:
    """What a person would do with a session and a stop-watch: (rows, replies, times of the lost frames)."""
    model, tokenizer = golden_model()
    policy = Threshold(0.55, ("relevance_score",)) if speaking else None
    session = Session(model, tokenizer=tokenizer, policy=policy, max_new_tokens=3, prompt_order=order)
    schedule, free, rows, replies, lost = QuerySchedule(QUERIES, order, 5.0), -1.0, [], [], []
    for frame in iter_frames(clip, fps=5):
        if frame.time < free - 1e-9:
            lost.append(frame.time)
            schedule.clock += schedule.step
            continue
        for query in schedule.due(frame.time):
            session.ask(query.text)
        (informative,), (relevance,), (uncertainty,) = (values.tolist() for values in session.push(frame.frame_CHW))
        free = frame.time + cost
        rows.append({"time": frame.time, "informative_score": informative, "relevance_score": relevance,
                     "uncertainty_score": uncertainty, "decided": free})  # fmt: skip
        if speaking and relevance > 0.55:
            words = session.respond()
            free += cost * len(session.reply_ids)
            replies.append({"role": "assistant", "time": free, "content": words})
    return rows, replies, lost


@pytest.mark.parametrize("speed, speaking, order", [(2, False, "aha"), (3, True, "aha"), (1.25, False, "reference")])
def test_a_slow_model_sees_what_a_person_with_a_stop_watch_would_show_it(clip, speed, speaking, order):
    found = run(clip, prompt_order=order, clock="wall", speed=f"{speed}fps", **(CHATTY if speaking else {}))
    rows, replies, lost = by_hand(clip, 1 / speed, speaking, order)
    assert found["clock"]["lost_times"] == lost and found["clock"]["arrived"] == 15 and len(rows) + len(lost) == 15
    assert bool(lost) == (speed < 5 or speaking) and bool(replies) == speaking
    assert len(found["debug_data"]) == len(rows)
    for got, wanted in zip(found["debug_data"], rows):
        assert got == pytest.approx(wanted, abs=1e-5)
    assert [turn["content"] for turn in found["model_response_list"]] == [turn["content"] for turn in replies]
    assert [turn["time"] for turn in found["model_response_list"]] == pytest.approx([turn["time"] for turn in replies])
    shown = {frame.time: frame.frame_index for frame in iter_frames(clip, fps=5)}
    assert found["true_frames_list"] == [shown[row["time"]] for row in rows]
    assert found["clock"]["lost_frames"] == [shown[time] for time in lost]


@pytest.mark.parametrize("speaking", [{}, CHATTY], ids=["silent", "speaking"])
def test_the_machine_s_own_speed_is_the_simulated_one_that_it_has(clip, speaking, monkeypatch):
    """A stop-watch that says 0.5 s for every frame, and 0.5 s more for every token of a reply, gives the scores of --speed 2fps."""
    wanted = run(clip, clock="wall", speed="2fps", **speaking)
    spent = [0.0]
    push, respond = Session.push_embeds, Session.respond

    def slow_push(self, visual):
        spent[0] += 0.5
        return push(self, visual)

    def slow_respond(self, *given):
        words = respond(self, *given)
        spent[0] += 0.5 * len(self.reply_ids)
        return words

    monkeypatch.setattr(Session, "push_embeds", slow_push)
    monkeypatch.setattr(Session, "respond", slow_respond)
    monkeypatch.setattr(ScoreConfig, "stream_clock", lambda self: StreamClock("machine", None, seconds=lambda: spent[0]))
    found = run(clip, clock="wall", **speaking)
    assert found["clock"].pop("seconds_a_frame") >= 0.5 and found["clock"].pop("speed") == "machine"
    assert wanted["clock"].pop("speed") == "2fps" and found["clock"] == wanted["clock"]
    assert found["model_response_list"] == wanted["model_response_list"]
    for got, row in zip(found["debug_data"], wanted["debug_data"], strict=True):
        assert got == pytest.approx(row, abs=1e-5)


def test_the_machine_s_own_speed_measures_something(clip):
    found = run(clip, clock="wall", speed="machine")
    assert found["clock"]["seconds_a_frame"] > 0 and found["clock"]["arrived"] == 15
    assert all(row["decided"] > row["time"] for row in found["debug_data"])


def test_a_suspended_session_keeps_its_time():
    model, tokenizer = golden_model()
    session = Session(model, tokenizer=tokenizer, frame_fps=2)
    frame = np.zeros((3, 384, 384), np.uint8)
    session.push(frame)
    session.skip(3)
    session.push(frame)
    again = Session(model, tokenizer=tokenizer, frame_fps=2)
    again.load_state_dict(session.state_dict())
    assert session.time == again.time == 2.0
    old = {name: value for name, value in session.state_dict().items() if name != "lost"}
    again.load_state_dict(old)
    assert again.time == 0.5


# ---------------------------------------------------------------- what a lost frame counts


def rows_of(times, values, late):
    return [
        {"time": time, "informative_score": v / 2, "relevance_score": v, "uncertainty_score": v / 4, "decided": time + late}
        for time, v in zip(times, values)
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.floats(0, 4), st.integers(0, 2**32 - 1))
def test_a_lost_frame_counts_with_the_last_score_decided_before_it(taken, late, seed):
    """Against a reference that walks through the frames; never with anything that was not known at its time."""
    taken = [*taken, True]
    values = np.random.default_rng(seed).random(len(taken)).tolist()
    fusion = Fusion(0.5, 1.0, 0.25, 0.1)
    kept = [k for k, here in enumerate(taken) if here]
    lost = [k for k, here in enumerate(taken) if not here]
    record = {
        "video_uuid": "v", "frame_fps": 1.0, "video_duration": float(len(taken)), "true_frames_list": [30 * k for k in kept],
        "debug_data": rows_of([float(k) for k in kept], [values[k] for k in kept], late), "model_response_list": [],
        "clock": {"speed": "1fps", "arrived": len(taken), "lost_times": [float(k) for k in lost], "lost_frames": [30 * k for k in lost]},
    }  # fmt: skip
    wanted = []
    for k, here in enumerate(taken):
        known = [j for j in kept if j + late <= k + 1e-6]
        source = k if here else known[-1] if known else None
        wanted.append(0.0 if source is None else float(fusion(values[source] / 2, values[source], values[source] / 4)))
    prediction = Prediction(record)
    samples = prediction.samples(fusion)
    assert samples.scores == pytest.approx(wanted) and samples.times.tolist() == list(map(float, range(len(taken))))
    assert samples.frames.tolist() == [30 * k for k in range(len(taken))]
    times, scores = prediction.timed_scores(fusion)
    assert times.tolist() == samples.times.tolist() and scores == pytest.approx(wanted)
    assert len(prediction.head("relevance_score")) == len(taken) and len(prediction.rows()) == len(kept)


@pytest.mark.parametrize("clock, words", [
    ("5fps", "clock is '5fps', no object"), ({"lost_times": [1.0]}, "lost frames are no list"),
    ({"lost_times": [1.0], "lost_frames": [1, 2]}, "1 lost_times and 2 lost_frames"),
    ({"lost_times": [0.0], "lost_frames": [1]}, "at 0 s is listed twice"),
    ({"lost_times": ["x"], "lost_frames": [1]}, "lost time 0 is 'x'"),
])  # fmt: skip
def test_a_damaged_clock_is_one_sentence(clock, words):
    record = {"video_uuid": "v", "true_frames_list": [0, 60], "debug_data": rows_of([0.0, 2.0], [0.1, 0.2], 0), "clock": clock}
    with pytest.raises(UserError, match=words):
        Prediction(record).samples(Fusion())


# ---------------------------------------------------------------- through the commands


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tvsum(tmp_path_factory.mktemp("tvsum"))


def test_a_benchmark_on_the_clock_says_what_was_lost_and_counts_it(data, tmp_path, capsys):
    flags = [*tiny_model(), "--dataset", "tvsum", "--data_root", str(data), "--frame_fps", "5", "--limit", "1"]
    score.main([*flags, "--output", str(tmp_path / "all.json")])
    score.main([*flags, "--clock", "wall", "--speed", "1fps", "--output", str(tmp_path / "live.json")])
    assert "8 frames scored; wall clock at 1fps: 32 of 40 frames lost (80.0%)" in capsys.readouterr().out
    filled = []  # by hand: every frame that was lost has the score of the second before, 0 in the first second
    for prediction in read_predictions(tmp_path / "live.json"):
        seen = {row["time"]: row for row in prediction.rows()}
        nothing = {"informative_score": 0.0, "relevance_score": 0.0, "uncertainty_score": 0.0}
        rows = [{**(seen[k // 5] if k % 5 == 0 else seen.get(k // 5 - 1, nothing)), "time": k / 5} for k in range(40)]
        record = {name: value for name, value in prediction.record.items() if name != "clock"}
        filled.append(Prediction({**record, "debug_data": rows, "true_frames_list": list(range(40))}))
    write_predictions(tmp_path / "filled.json", filled)
    live = tvsum.evaluate(tmp_path / "live.json", data, random_runs=1)
    by_hand = tvsum.evaluate(tmp_path / "filled.json", data, random_runs=1)
    assert live["clock"] == {"speed": "1fps", "arrived": 40, "lost": 32} and "clock" not in by_hand
    assert live["protocols"] == by_hand["protocols"]
    capsys.readouterr()
    tvsum.main(["--annotations", str(data), "--predictions", str(tmp_path / "live.json"), "--random_runs", "1"])
    shown = capsys.readouterr().out
    assert "wall clock at 1fps: 32 of 40 frames lost (80.0%)" in shown and "a lost frame has no score" in shown
    tvsum.main(["--annotations", str(data), "--compare", str(tmp_path / "all.json"), str(tmp_path / "live.json"), "--random_runs", "1"])
    assert "32 of 40 frames lost" in capsys.readouterr().out


def test_the_table_of_speeds(data, tmp_path, capsys):
    arguments = [*tiny_model(), "--dataset", "tvsum", "--data_root", str(data), "--frame_fps", "5", "--limit", "1"]
    ablate.main([*arguments, "--study", "clock", "--speeds", "1fps,machine", "--output", str(tmp_path / "a")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "a" / "ablation.json").read_text())["rows"]}
    assert [row["metrics"]["frames lost"] for name, row in rows.items() if name != "live, machine"] == [0.0, 0.8]
    assert 0 <= rows["live, machine"]["metrics"]["frames lost"] < 1 and "frames lost" in capsys.readouterr().out
    direct = tmp_path / "direct.json"
    score.main([*arguments, *rows["live, 1fps"]["score_options"], "--output", str(direct)])
    kept = json.loads((tmp_path / "a" / "predictions" / "clock-wall-speed-1fps.json").read_text())
    for one, other in zip(json.loads(direct.read_text()), kept, strict=True):
        assert one["clock"] == other["clock"]
        assert [r["relevance_score"] for r in one["debug_data"]] == pytest.approx(
            [r["relevance_score"] for r in other["debug_data"]], abs=1e-5
        )
    with pytest.raises(UserError, match="--speed quick"):
        ablate.speed_list("1fps,quick")


def test_replies_come_when_they_are_known_and_the_table_says_what_was_lost(tmp_path, capsys):
    rows = rows_of([0.0, 2.0, 4.0, 6.0], [0.1, 0.1, 0.9, 0.9], 1.5)
    clock = {"speed": "1fps", "arrived": 8, "lost_times": [1.0, 3.0, 5.0, 7.0], "lost_frames": [1, 3, 5, 7]}
    record = {"question_id": "0", "video_uuid": "v", "frame_fps": 1.0, "debug_data": rows, "model_response_list": [], "clock": clock}
    write_predictions(tmp_path / "scores.json", [Prediction(record)])
    asked = {"0": Moments(0.0, 9.0, ((2.0, 4.0, 6.0),), "tell me")}
    streams = speak.read_streams(tmp_path / "scores.json", asked)
    said, _ = speak.speak(streams, "threshold", fitted_on=("another set", [stream for stream, _ in streams.values()]))
    assert [turn["time"] for turn in said[0].record["model_response_list"]] == [5.5]
    write_predictions(tmp_path / "said.jsonl", said)
    question = {"question": "tell me", "time_stamp": "00:00:00", "ground_truth_time_stamp": "00:00:04", "ground_truth_output": "tell"}
    (tmp_path / "po.json").write_text(json.dumps([{"questions": [question], "video_path": "v.mp4"}]))
    metrics = proactive.evaluate("streamingbench_po", tmp_path / "said.jsonl", tmp_path / "po.json")
    assert metrics["clock"] == {"speed": "1fps", "arrived": 8, "lost": 4}
    assert metrics["protocols"]["streamingbench_po_push"]["timing_error"]["mean"] == 1.5
    flags = ["--benchmark", "streamingbench_po", "--annotations", str(tmp_path / "po.json"), "--predictions", str(tmp_path / "said.jsonl")]
    proactive.main(flags)
    assert "wall clock at 1fps: 4 of 8 frames lost (50.0%)" in capsys.readouterr().out


# ---------------------------------------------------------------- another model


def test_a_vlm_on_the_same_clock_loses_calls_and_answers_late(clip, tmp_path):
    item = Item("0", "clip", str(clip), 3.0, (Query("what"),), {"question_id": "0"})
    calls = vlm.calls_of(item, "m", 1.0, vlm.VlmSettings(), True)
    for k, call in enumerate(calls):
        vlm.ReplyCache(tmp_path / "replies.jsonl").add(call.key, f"{20 * k + 30} word {k}", 1.25)

    def found(clock: StreamClock | None, cache: vlm.ReplyCache) -> dict:
        return vlm.prediction_of(item, calls, cache, 1.0, True, "m", clock)[0].record

    cache = vlm.ReplyCache(tmp_path / "replies.jsonl")
    plain = found(None, cache)
    assert [row["time"] for row in plain["debug_data"]] == [0, 1, 2] and "clock" not in plain
    slow = found(StreamClock.of("0.5fps"), cache)
    assert [row["time"] for row in slow["debug_data"]] == [0, 2] and [row["decided"] for row in slow["debug_data"]] == [2, 4]
    assert slow["clock"]["lost_times"] == [1]
    assert slow["model_response_list"] == [{"role": "assistant", "time": 4.0, "content": "word 2"}]
    measured = found(StreamClock.of("machine"), cache)
    assert [row["decided"] for row in measured["debug_data"]] == [1.25, 3.25] and measured["clock"]["speed"] == "machine"
    cache.seconds.clear()
    with pytest.raises(UserError, match="does not say how long"):
        found(StreamClock.of("machine"), cache)


def test_a_baseline_that_is_never_busy_takes_no_clock(data, tmp_path):
    flags = ["--dataset", "tvsum", "--data_root", str(data), "--output", str(tmp_path / "x.json"), "--clock", "wall"]
    with pytest.raises(UserError, match="random is never busy"):
        baseline.main(["random", *flags])
    with pytest.raises(UserError, match="--workers 1"):
        baseline.main(["vlm", *flags, "--model", "m", "--endpoint", "http://127.0.0.1:9/v1"])
    assert replace(ScoreConfig(), clock="wall", speed="2fps").stream_clock().cost == 0.5


def test_what_came_later_changes_no_key_of_what_was_begun_before():
    """An output that was half done goes on after an update: settings of later versions count where they are used."""
    names = [name for name, _ in ScoreConfig().key()]
    assert not {"clock", "speed"} & set(names) and names == [entry.name for entry in fields(ScoreConfig) if entry.name in names]
    live = dict(ScoreConfig(clock="wall", speed="10fps").key())
    assert live["clock"] == "wall" and live["speed"] == "10fps"
    plain, small = (ModelChoice(model="demo", weights=weights).weights_key() for weights in (None, "4bit"))
    assert len(plain) == 5 and small == [*plain[:4], "4bit", plain[4]]
