"""The online engine gives the scores of the others; here without a GPU, so the same fixed-shape step without a graph."""

from __future__ import annotations

import functools
import importlib
import inspect
import random
import re
from pathlib import Path

import pytest
import torch
from streaming_model import difference, golden_model, joined, open_session
from torch._dynamo.utils import counters

from aha.models.model import FrameScores
from aha.streaming import OnlineEngine, Session
from aha.streaming.live import LiveStreams, Waiting
from aha.streaming.policies import Accumulated

WINDOW = 256


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (9, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cache", ["sink", "dynamic_sink", "sliding", "static"])
def test_online_equals_offline(cache, frames):
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, tokenizer=tokenizer)
    online, offline = engine.open("what?", cache=cache), open_session(query="what?", cache=cache, window=WINDOW)
    scores = [online.push(frame) for frame in frames[:5]]
    online.ask("and now?")
    scores += [online.push(frame.numpy()) for frame in frames[5:]]
    expected = [offline.push(frames[:5])]
    offline.ask("and now?")
    expected.append(offline.push(frames[5:]))
    assert difference(joined(scores), joined(expected)) < 1e-4
    assert engine.pool.used == len(engine.scratch) + len(online.cache.slots)


def test_streams_that_come_and_go_in_batches_of_any_size(frames):
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, max_streams=5, max_batch=3, tokenizer=tokenizer)
    assert [graph.size for graph in engine.graphs] == [1, 2, 3]
    kinds = ["sink", "dynamic_sink", "sliding", "static", "dynamic_sink"]
    online = [engine.open(f"q{n}", cache=kind) for n, kind in enumerate(kinds)]
    offline = [open_session(query=f"q{n}", cache=kind, window=WINDOW) for n, kind in enumerate(kinds)]
    rng = random.Random(0)
    for step in range(8):
        active = rng.sample(range(5), rng.randint(1, 5))
        pictures = [frames[(n + step) % 9] for n in active]
        expected = joined([offline[n].push(picture) for n, picture in zip(active, pictures)])
        assert difference(engine.push([online[n] for n in active], pictures), expected) < 1e-4
        if step == 5:
            online[2].close()
            online[2], offline[2] = engine.open("new", cache="sliding"), open_session(query="new", cache="sliding", window=WINDOW)


def test_looking_ahead_changes_no_score(frames):
    """The tower looks at the next frames beside the decoder; also where the next call then brings others, or another number of them."""
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, max_streams=2, tokenizer=tokenizer)
    first, second = engine.open("q0"), engine.open("q1")
    offline = [open_session(query=f"q{n}", cache="dynamic_sink", window=WINDOW) for n in range(2)]
    frames = list(frames)  # a frame is known again as the same object
    calls = [([0], [1]), ([1], [2]), ([3], [4]), ([4, 5], [6, 7]), ([6, 7], [8]), ([8], []), ([0, 1], [2, 3]), ([3, 2], [])]
    for now, later in calls:
        sessions = [first, second][: len(now)]
        got = engine.push(sessions, [frames[k] for k in now], [[frames[k] for k in later]])
        expected = joined([session.push(frames[k]) for session, k in zip(offline, now)])
        assert difference(got, expected) < 1e-4, (now, later)


def test_a_push_is_a_launch_and_a_collect(frames):
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, max_streams=2, tokenizer=tokenizer)
    halves, offline = (
        [engine.open(f"q{n}") for n in range(2)],
        [open_session(query=f"q{n}", cache="dynamic_sink", window=WINDOW) for n in range(2)],
    )
    for k in range(3):
        engine.launch(halves, [frames[k], frames[k + 1]], [[frames[k + 1], frames[k + 2]]])
        with pytest.raises(RuntimeError, match="collect their scores"):
            engine.launch(halves, [frames[k], frames[k]])
        expected = joined([session.push(frames[k + n]) for n, session in enumerate(offline)])
        assert difference(engine.collect(), expected) < 1e-4 and engine.features_BH.shape[0] == 2
    with pytest.raises(RuntimeError, match="launch some first"):
        engine.collect()


def test_one_stream_may_be_two_frames_ahead(frames, monkeypatch):
    """As on a GPU: the tower looks at two frames at once, and a step is launched before the last one's scores are there. No score changes,
    also where another frame comes than was known, or none was."""
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, tokenizer=tokenizer, depth=2)
    online, offline = engine.open("q0"), open_session(query="q0", cache="dynamic_sink", window=WINDOW)
    frames, looked = list(frames), []
    embed = model.visual_embed

    def counted(frames_NCHW):
        looked.append(len(frames_NCHW))
        return embed(frames_NCHW)

    monkeypatch.setattr(model, "visual_embed", counted)
    calls = ((0, [1, 2, 3]), (1, [2, 3, 4]), (2, [3, 4, 5]), (3, [4]), (4, [5]), (5, []), (7, [8, 1]), (8, [2]), (2, [3, 4, 5]), (5, [6, 7]),
             (6, []), (7, []))  # fmt: skip
    expected = [offline.push(frames[k]) for k, _ in calls]
    looked.clear()
    got = []
    for k, later in calls:
        engine.launch([online], [frames[k]], [[frames[n]] for n in later])
        if engine.under_way == 2:
            got.append(engine.collect())
    got.append(engine.collect())
    assert all(difference(a, b) < 1e-4 for a, b in zip(got, expected, strict=True))
    assert looked == [1, 2, 2, 2, 1, 2, 2, 2, 1, 2]  # one: of the first frame, of 7 after 5, and of 5, which nobody announced


def test_a_batch_fills_a_captured_step(frames):
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, max_streams=5, tokenizer=tokenizer)
    assert [graph.size for graph in engine.graphs] == [1, 2, 4, 5]
    assert [engine.full_batch(n) for n in range(8)] == [0, 1, 2, 2, 4, 5, 5, 5]


def test_replies_between_frames_and_policies(frames):
    model, tokenizer = golden_model()
    settings = {"cache": "dynamic_sink", "max_new_tokens": 30, "remove_assistant_turns": True}
    engine = OnlineEngine(model, window=WINDOW, tokenizer=tokenizer)
    online = engine.open("what?", policy=Accumulated(1.5), **settings)
    offline = open_session(query="what?", window=WINDOW, policy=Accumulated(1.5), **settings)
    replies = []
    for frame in frames:
        assert difference(online.push(frame), offline.push(frame)) < 1e-4
        assert online.wants_to_speak == offline.wants_to_speak
        if online.wants_to_speak:
            replies.append((online.respond(), offline.respond()))
    assert replies and all(a == b for a, b in replies)


@pytest.mark.parametrize("semantics", ["aha", "reference"])
@pytest.mark.parametrize("kind", ["full", "sink", "dynamic_sink", "sliding", "static"])
def test_what_is_fed_ahead_of_a_frame_changes_nothing(kind, semantics, frames):
    """Called again and again: before questions and replies, where nothing was asked, before a suspension."""

    def play(ahead: bool) -> tuple[list, int]:
        def make(query: str | None = "what?") -> Session:
            session = open_session(query=query, cache=kind, cache_semantics=semantics, max_new_tokens=4, **window)
            hurry(session)
            return session

        def hurry(session: Session) -> None:
            if ahead:
                session.feed_ahead()
                session.feed_ahead()

        window = {} if kind == "full" else {"window": WINDOW}
        session, told = make(), []
        told.append(session.log_probability("red"))
        session.ask("and where?")
        hurry(session)
        told.append(session.respond())  # before the first frame
        hurry(session)
        session.ask("and when?")
        hurry(session)
        other = make(None)
        other.load_state_dict(session.state_dict())
        session.close()
        hurry(other)
        for k, frame in enumerate(frames):
            told.append(joined([other.push(frame)]))
            hurry(other)
            if k == 3:
                told.append(other.respond())
                hurry(other)
        other.close()
        return told, session.pool.used + other.pool.used

    (plain, left), (hurried, left_too) = play(False), play(True)
    assert left == left_too == 0
    for one, other in zip(plain, hurried, strict=True):
        assert difference(one, other) < 1e-6 if isinstance(one, FrameScores) else one == pytest.approx(other)


def test_no_words_are_compiled_for_while_streams_wait(monkeypatch):
    """Neither in slots side by side nor apart, of a stream that takes over the slots of another, nor for a reply's tokens one by one."""
    model, tokenizer = golden_model()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # traced as ever, then run as it is
    monkeypatch.setattr(model, "compile_vision", lambda: None)
    torch._dynamo.reset()
    engine = OnlineEngine(model, window=WINDOW, max_streams=2, tokenizer=tokenizer, compiled=True)
    first, second = engine.open("what?"), engine.open("what is it, and how long does it take?")
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    first.close()
    third = engine.open()
    third.ask("and where?")
    third.respond(3)
    second.ask("and now?")
    second.respond(3)
    assert counters["stats"]["unique_graphs"] == before
    assert engine.pool.used == len(engine.scratch) + len(second.cache.slots) + len(third.cache.slots)


def test_what_the_engine_does_not_serve_is_refused():
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, tokenizer=tokenizer)
    for settings in ({"cache": "full"}, {"cache": "sink", "cache_semantics": "reference"}, {"cache": "sink", "window": 512}):
        with pytest.raises(ValueError, match="bounded caches"):
            engine.open(**settings)
    engine.open(cache="sliding").push(torch.zeros(3, 384, 384, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one frame for each"):
        engine.push([], [])


def test_streams_that_are_too_fast_lose_their_oldest_frames_and_say_so(frames):
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, max_streams=3, max_batch=2, tokenizer=tokenizer)
    live = LiveStreams(engine, max_waiting=2)
    fast, slow, third = (engine.open(f"q{n}") for n in range(3))
    offline = open_session(query="q0", cache="dynamic_sink", window=WINDOW)
    assert live.step() == []
    assert [live.offer(fast, frames[k], float(k)) for k in range(5)] == [True, True, False, False, False]
    assert live.offer(slow, frames[0], 0.0) and live.offer(third, frames[0], 0.0) and live.waiting == 4
    scored = live.step()
    assert [(s.session, s.time, s.dropped) for s in scored] == [(fast, 3.0, 3), (slow, 0.0, 0)]  # who waited longest comes first
    assert difference(scored[0].scores, offline.push(frames[3])) < 1e-4 and scored[0].waited > 0
    assert {s.session: (s.time, s.dropped) for s in live.step()} == {fast: (4.0, 0), third: (0.0, 0)}
    live.offer(slow, frames[1], 1.0)
    live.leave(slow)
    assert live.waiting == 0 and live.step() == []


def test_the_oldest_frame_is_dropped_and_a_notice_never():
    waiting = Waiting(2)
    waiting.add_notice("lost")
    assert [waiting.add_frame(k) for k in range(2)] == [True, True] and waiting.full
    waiting.add_notice("back")
    assert [waiting.add_frame(k) for k in (2, 3, 4)] == [False, False, False]
    assert (waiting.frames, waiting.dropped, len(waiting), waiting.oldest) == (2, 3, 4, "lost")
    assert [waiting.take() for _ in range(4)] == ["lost", "back", 3, 4] and not waiting and waiting.frames == 0
    with pytest.raises(ValueError, match="at least one must"):
        Waiting(0)


@pytest.mark.parametrize("module", ["chunks", "live", "online", "session", "step"])
def test_sessions_and_engines_call_public_methods_only(module):
    source = Path(inspect.getfile(importlib.import_module(f"aha.streaming.{module}"))).read_text()
    assert re.findall(r"\b(?:session|sessions\[\w+\]|engine|decoder|pool|cache)\._\w+", source) == []
