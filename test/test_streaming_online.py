"""The online engine gives the scores of the others; here without a GPU, so the same fixed-shape step without a graph."""

from __future__ import annotations

import contextlib
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

from aha.errors import UserError
from aha.models.model import FrameScores
from aha.streaming import OnlineEngine, Session
from aha.streaming.live import LiveStreams, Waiting
from aha.streaming.policies import Accumulated
from aha.streaming.session import SLACK

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


class PaperGpu:
    """Streams and events of a GPU, on paper: what is known to be over where. `use` fails where two things may happen at the same time."""

    def __init__(self):
        self.current, self.eyes = PaperStream(), PaperStream()
        self.now = self.current
        self.last: dict[object, tuple[PaperStream, int]] = {}

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    def use(self, *things: object) -> None:
        self.now.over[self.now] += 1
        for thing in things:
            stream, tick = self.last.get(thing, (self.now, 0))
            assert self.now.over.get(stream, 0) >= tick, "two at the same time"
            self.last[thing] = self.now, self.now.over[self.now]


class PaperStream:
    def __init__(self):
        self.over = {self: 0}  # stream -> how many of its actions are over when the next of this one begins

    def wait_stream(self, other) -> None:
        self.over = {stream: max(self.over.get(stream, 0), other.over.get(stream, 0)) for stream in {*self.over, *other.over}}

    wait_event = wait_stream


class PaperEvent:
    def __init__(self, gpu: PaperGpu, *uses: object):
        self.gpu, self.uses, self.over, self.under_way = gpu, uses, {}, False

    def record(self) -> None:
        self.gpu.use(*self.uses)
        self.over, self.under_way = dict(self.gpu.now.over), True

    def synchronize(self) -> None:
        self.under_way = False


def on_paper(engine: OnlineEngine, monkeypatch) -> None:
    """The engine, made without a GPU, does what it does with one."""
    gpu = PaperGpu()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: gpu.now)
    monkeypatch.setattr(torch.cuda, "stream", gpu.stream)
    engine.eyes, engine.free = gpu.eyes, PaperEvent(gpu)

    def alone(action, *things):
        def act(*args):
            gpu.use(*things)
            return action(*args)

        return act

    def once_at_a_time(host, action):
        def act():
            assert not host.there.under_way, "what the GPU reads, or writes, is not waited for"
            action()

        return act

    for graph in engine.graphs:
        graph.on_gpu, graph.copied, graph.looked = True, PaperEvent(gpu), PaperEvent(gpu)
        graph.look = alone(graph.look, "tower", graph)
        graph.look_ahead = alone(graph.look_ahead, "tower", graph)
        graph.hand_ABKH = graph.hand_ABKH.as_subclass(Taken)
        graph.hand_ABKH.taken = alone(lambda: None, graph)
        for host in graph.hosts:
            host.there = PaperEvent(gpu)
            host.there.record = once_at_a_time(host, host.there.record)


class Taken(torch.Tensor):
    """Tokens in hand: tells when others are taken."""

    taken = staticmethod(lambda: None)

    def copy_(self, *args, **kwargs):
        self.taken()
        return super().copy_(*args, **kwargs)


@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_is_read_where_another_may_be_writing_and_no_score_is_of_another_frame(depth, frames, monkeypatch):
    """Frames that are announced and come, come late, or never; one stream and two; a stream that is closed and another that is opened."""
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, max_streams=2, tokenizer=tokenizer, depth=depth)
    on_paper(engine, monkeypatch)
    tokens = dict(zip(range(9), model.visual_embed(frames)))
    rng, frames = random.Random(depth), list(frames)
    online = [engine.open(f"q{n}") for n in range(2)]
    offline = [open_session(query=f"q{n}", cache="dynamic_sink", window=WINDOW) for n in range(2)]
    plan: list[tuple[int, ...]] = []  # numbers of the pictures of the next batches
    waiting: list[FrameScores] = []

    def collect() -> None:
        assert difference(engine.collect(), waiting.pop(0)) < 1e-4

    for step in range(60):
        count = 1 if depth == 2 and rng.random() < 0.7 else rng.randint(1, 2)
        while len(plan) < 4:
            plan.append(tuple(rng.sample(range(9), count)))
        if rng.random() < 0.2:  # a frame is dropped, or another comes first
            plan.insert(0, tuple(rng.sample(range(9), rng.randint(1, 2)))) if rng.random() < 0.5 else plan.pop(0)
        now, upcoming = plan.pop(0), [[frames[k] for k in batch] for batch in plan[: rng.randint(0, engine.foresight)]]
        if engine.under_way == depth:
            collect()
        engine.launch(online[: len(now)], [frames[k] for k in now], upcoming)
        waiting.append(joined([session.push_embeds(tokens[k][None]) for k, session in zip(now, offline)]))
        if rng.random() < 0.2:
            while engine.under_way:
                collect()
            if step % 3 == 0:
                online[1].close()
                online[1], offline[1] = engine.open("new"), open_session(query="new", cache="dynamic_sink", window=WINDOW)
    while engine.under_way:
        collect()
    assert engine.pool.used == len(engine.scratch) + sum(len(session.cache.slots) for session in online)


def test_the_tower_does_not_look_ahead_for_one_stream_while_it_looks_for_two(frames, monkeypatch):
    """They share memory. The last frame of one stream is in hand, so that nothing else makes it wait for the two."""
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, max_streams=2, tokenizer=tokenizer, depth=2)
    on_paper(engine, monkeypatch)
    sessions, frames = [engine.open(f"q{n}") for n in range(2)], list(frames)
    for now, later in (([0], [1, 2]), ([1], []), ([3, 4], []), ([2], [5])):
        engine.launch(sessions[: len(now)], [frames[k] for k in now], [[frames[k]] for k in later])
        engine.collect()


def test_a_frame_of_another_kind_is_refused_before_anything_has_changed(frames):
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, tokenizer=tokenizer)
    online, offline = engine.open("what?"), open_session(query="what?", cache="dynamic_sink", window=WINDOW)
    used = engine.pool.used
    for wrong in (frames[0].float() / 255, frames[0].float().numpy() / 255, frames[0, :1], frames[0, :, :, :1].numpy(), frames[0, 0]):
        with pytest.raises(ValueError, match=r"a frame is uint8 \[3, 384, 384\]"):
            engine.push([online], [wrong])
        with pytest.raises(ValueError, match="a frame is uint8"):
            engine.push([online], [frames[0]], [[wrong]])
    assert engine.pool.used == used and engine.under_way == 0
    assert difference(online.push(frames[0]), offline.push(frames[0])) < 1e-4


def test_a_question_too_long_for_the_window_changes_nothing_for_anybody(frames):
    """Neither the session, which goes on as if it had not been asked, nor the memory that all share."""
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, tokenizer=tokenizer)
    served = set()
    for length in range(300, 480, 7):
        used = engine.pool.used
        try:
            session = engine.open(("a b " * length)[:length])
        except UserError as error:
            assert "raise the window" in str(error)
            served.add(False)
        else:
            session.feed_ahead()
            session.push(frames[0])  # there is room for a frame: a question that is taken is answered
            session.close()
            served.add(True)
        assert engine.pool.used == used
    assert served == {True, False}
    online, offline = engine.open(), open_session(cache="dynamic_sink", window=WINDOW)
    for k in range(3):
        with pytest.raises(UserError, match="raise the window"):
            online.ask("a b " * 500)
        online.feed_ahead()
        assert difference(online.push(frames[k]), offline.push(frames[k])) < 1e-4
    online.ask("what?")
    offline.ask("what?")
    assert difference(online.push(frames[3]), offline.push(frames[3])) < 1e-4


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


def test_a_reply_longer_than_the_spare_memory_takes_no_more_of_it(frames, monkeypatch):
    """What falls out of the window while the model speaks is free at once, where the reply stays."""
    model, tokenizer = golden_model()
    engine = OnlineEngine(model, window=WINDOW, tokenizer=tokenizer)
    session = engine.open("what?")
    for frame in frames[:6]:
        session.push(frame)
    forward, ending = model.lm_head.forward, torch.tensor([session.format.im_end_id])
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: forward(hidden).index_fill(-1, ending, -1e9))  # it does not end by itself
    session.respond(SLACK + 100)
    assert len(session.reply_ids) == SLACK + 100 and engine.pool.used == len(engine.scratch) + len(session.cache.slots)


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
