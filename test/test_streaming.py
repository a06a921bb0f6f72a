"""Invariants of streaming on the tiny model in float32: however frames are fed, the scores are the same."""

from __future__ import annotations

import io
import random
from functools import cache

import pytest
import torch
from streaming_model import difference, embeds, golden, golden_difference, golden_model, joined, open_session, run_golden

from aha.conversation import DuetFormat, Turn
from aha.errors import UserError
from aha.models.model import FrameScores
from aha.streaming import Session, push_many
from aha.streaming.policies import Accumulated
from aha.streaming.pool import KVPool
from aha.streaming.session import push_many_embeds

TOLERANCE = 1e-4
CACHES = [("full", "aha"), ("sink", "aha"), ("dynamic_sink", "aha"), ("sliding", "aha"), ("static", "aha")]
RELEASED = [("sink", "reference"), ("sliding", "reference")]
WINDOW = 256  # five frames: the bounded caches evict nearly all the time


@cache
def many_frames() -> torch.Tensor:
    return torch.cat([embeds("aha", video, fps) for video, fps in (("landscape.mp4", 1), ("portrait.mp4", 2), ("office.mp4", 2))])[:68]


def settings_of(kind: str, semantics: str) -> dict:
    return {"cache": kind, "window": WINDOW, "cache_semantics": semantics, "prompt_order": semantics}


def score(session: Session, chunk: int, asked: tuple[int, ...] = (30,), frames: int = 68) -> FrameScores:
    """Push in chunks, asking something before each frame of `asked`."""
    scores, start = [], 0
    while start < frames:
        if start in asked:
            session.ask(f"question at frame {start}")
        end = min([start + chunk, frames, *(k for k in asked if k > start)])
        scores.append(session.push_embeds(many_frames()[start:end]))
        start = end
    return joined(scores)


@cache
def frame_by_frame(kind: str, semantics: str) -> FrameScores:
    return score(open_session(query="what is it?", **settings_of(kind, semantics)), 1)


@pytest.mark.parametrize(("kind", "semantics"), CACHES + RELEASED)
def test_chunks_of_any_size_give_the_scores_of_frame_by_frame(kind, semantics):
    expected = frame_by_frame(kind, semantics)
    for chunk in (2, 7, 64):
        session = open_session(query="what is it?", **settings_of(kind, semantics))
        assert difference(score(session, chunk), expected) < TOLERANCE, chunk
        assert session.pool.used == len(session.cache.slots)


def test_the_caches_differ_from_each_other():
    scores = [frame_by_frame(kind, "aha") for kind, _ in CACHES]
    assert all(difference(a, b) > 1e-2 for i, a in enumerate(scores) for b in scores[:i])
    assert difference(frame_by_frame("sink", "aha"), frame_by_frame("sink", "reference")) > 1e-3


def test_dynamic_sink_keeps_the_first_query_also_when_it_comes_late():
    def last_score(cache: str, question: str) -> FrameScores:
        session = open_session(cache=cache, window=WINDOW)
        session.push_embeds(many_frames()[:10])
        session.ask(question)
        return session.push_embeds(many_frames()[10:45])  # 4 layers see 4 windows back

    def effect(cache: str) -> float:
        a, b = last_score(cache, "a red circle?"), last_score(cache, "who opens the door?")
        return float((a.relevance - b.relevance)[-5:].abs().max())

    assert effect("dynamic_sink") > 1e-3 and effect("sliding") < 1e-5


@pytest.mark.parametrize("kind", ["sink", "dynamic_sink", "sliding", "static"])
def test_memory_of_bounded_caches_does_not_grow(kind):
    session = open_session(query="what?", cache=kind, window=WINDOW)
    session.push_embeds(many_frames()[:1])
    size, used = session.pool.nbytes, []
    for k in range(1, 40):
        session.push_embeds(many_frames()[k : k + 1])
        used.append(session.pool.used)
    assert session.pool.nbytes == size and max(used) <= WINDOW and used[-1] == used[10]


@pytest.mark.parametrize("family", ["aha", "mmduet"])
def test_golden_scores_frame_by_frame(family):
    names = ("landscape/query_at_0_and_mid", "portrait/query_mid_only", "drive/no_query", "landscape/two_queries_same_time")
    for name in names:
        record = golden(family, "scores")["sessions"][name]
        scores, _ = run_golden(open_session(family, prompt_order="reference"), family, record)
        assert golden_difference(scores, record) < TOLERANCE, name


def test_eager_attention_gives_the_same_scores():
    model, tokenizer = golden_model()
    before = model.config._attn_implementation
    try:
        model.config._attn_implementation = "eager"
        for kind, semantics in [CACHES[0], CACHES[2], RELEASED[0]]:
            session = Session(model, "what is it?", tokenizer=tokenizer, **settings_of(kind, semantics))
            assert difference(score(session, 7, frames=32), first(frame_by_frame(kind, semantics), 32)) < TOLERANCE
    finally:
        model.config._attn_implementation = before


def first(scores: FrameScores, count: int) -> FrameScores:
    return FrameScores(*(None if values is None else values[:count] for values in scores))


# ---- training forward = streaming ----


def random_conversation(rng: random.Random) -> list[Turn]:
    words = ["what", "is", "new", "a", "red", "circle", "door", "日本", "🙂", "<|im_end|>", "\n"]
    turns = [Turn("system", " ".join(rng.choices(words, k=5)))]
    if rng.random() < 0.7:
        turns.append(Turn("user", " ".join(rng.choices(words, k=4))))
    for _ in range(rng.randint(1, 4)):
        turns.append(Turn("stream", num_frames=rng.randint(1, 4)))
        turns += rng.choice(
            [
                [Turn("user", " ".join(rng.choices(words, k=4)))],
                [Turn("assistant", " ".join(rng.choices(words, k=3)), learn=True)],
                [Turn("user", " ".join(rng.choices(words, k=2))), Turn("assistant", rng.choice(words))],
            ]
        )
    return [*turns, Turn("stream", num_frames=2)]


@torch.no_grad()
def test_training_forward_equals_streaming_on_random_conversations():
    model, tokenizer = golden_model()
    duet = DuetFormat(tokenizer)
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for _ in range(20):
        turns = random_conversation(rng)
        frames = sum(turn.num_frames for turn in turns)
        features_FPC = torch.randn(frames, 729, model.config.vision.hidden_size, generator=generator)
        rendered = duet.render(turns)
        trained = model(torch.tensor([rendered.input_ids]), vision_features=features_FPC).scores()
        visual_FKH = model.project(features_FPC)
        session = Session(model, tokenizer=tokenizer, system_prompt=turns[0].content)
        scores, start = [], 0
        for turn in turns[1:]:
            if turn.role == "stream":
                scores.append(session.push_embeds(visual_FKH[start : start + turn.num_frames]))
                start += turn.num_frames
            elif turn.role == "user":
                session.ask(turn.content)
            else:  # a reply with these words
                ids = [*duet.encode(turn.content), duet.im_end_id]
                session.feed_text([*session.state.begin_reply(), *ids[:-1]], "reply")
                session.state.end_reply(ids)
        largest = max(largest, difference(joined(scores), trained))
    assert largest < TOLERANCE


# ---- many streams ----


@pytest.mark.parametrize("kinds", [("dynamic_sink",) * 4, ("full", "sink", "static", "sliding"), ("sink", "sink", "full", "full")])
def test_batched_streams_that_come_and_go_score_as_alone(kinds):
    model, tokenizer = golden_model()
    pool = KVPool.of_model(model, 256)
    rng = random.Random(1)
    semantics = ["aha", "aha", "aha", "reference" if kinds[3] == "sliding" else "aha"]
    settings = [{"query": f"question {n}", **settings_of(kind, semantics[n])} for n, kind in enumerate(kinds)]
    alone = [open_session(**s) for s in settings]
    together = [Session(model, tokenizer=tokenizer, pool=pool, **s) for s in settings]
    offsets = [0, 11, 23, 36]
    for step in range(25):
        active = sorted(rng.sample(range(4), rng.randint(1, 4)))
        if step % 7 == 3:
            for n in active[:1]:
                alone[n].ask(f"again {step}")
                together[n].ask(f"again {step}")
        visual_NKH = torch.stack([many_frames()[offsets[n] + step] for n in active])
        batch = push_many_embeds([together[n] for n in active], visual_NKH)
        expected = joined([alone[n].push_embeds(many_frames()[offsets[n] + step][None]) for n in active])
        assert difference(batch, expected) < TOLERANCE
        if step == 12:  # one leaves, another takes its place and its memory
            used = pool.used
            together[0].close()
            assert pool.used < used
            alone[0] = open_session(**settings[0])
            together[0] = Session(model, tokenizer=tokenizer, pool=pool, **settings[0])
    assert pool.used == sum(len(session.cache.slots) for session in together)


def test_push_many_takes_pictures_and_refuses_strangers():
    model, tokenizer = golden_model()
    pool = KVPool.of_model(model, 256)
    frames = torch.randint(0, 255, (2, 3, 384, 384), dtype=torch.uint8)
    sessions = [Session(model, tokenizer=tokenizer, pool=pool, query=f"q{n}") for n in range(2)]
    scores = push_many(sessions, frames)
    expected = joined([open_session(query=f"q{n}").push(frames[n]) for n in range(2)])
    assert difference(scores, expected) < TOLERANCE
    with pytest.raises(ValueError, match="one pool"):
        push_many([sessions[0], open_session()], frames)
    with pytest.raises(ValueError, match="each session once"):
        push_many([sessions[0], sessions[0]], frames)


def test_a_fixed_pool_says_when_it_is_full():
    model, tokenizer = golden_model()
    session = Session(model, tokenizer=tokenizer, pool=KVPool.of_model(model, 200, fixed=True))
    with pytest.raises(MemoryError, match="all 200 key-value slots"):
        session.push_embeds(many_frames()[:8])


# ---- suspend and resume ----


@pytest.mark.parametrize(("kind", "semantics"), CACHES + RELEASED[:1])
def test_suspended_and_resumed_equals_uninterrupted(kind, semantics):
    def make() -> Session:
        return open_session(
            policy=Accumulated(2.0), max_new_tokens=6, repetition_penalty=1.2, frame_fps=2, query="what?", **settings_of(kind, semantics)
        )

    def play(session: Session, frames: range) -> list:
        events = []
        for k in frames:
            if k == 12:
                session.ask("and now?")
            events.append(session.push_embeds(many_frames()[k : k + 1]))
            if session.wants_to_speak:
                session.respond()
                events.append(session.reply_ids)
        return events

    expected = play(make(), range(20))
    session = make()
    events = play(session, range(9))
    file = io.BytesIO()
    torch.save(session.state_dict(), file)
    file.seek(0)
    resumed = make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    events += play(resumed, range(9, 20))
    replies = [event for event in expected if isinstance(event, list)]
    assert replies == [event for event in events if isinstance(event, list)] and replies
    scores = [joined([event for event in run if isinstance(event, FrameScores)]) for run in (expected, events)]
    assert difference(*scores) < 1e-6


def test_resuming_with_other_settings_is_refused():
    state = open_session(cache="sink", window=256).state_dict()
    with pytest.raises(UserError, match="cache window 256"):
        open_session(cache="sink", window=512).load_state_dict(state)
    with pytest.raises(UserError, match="policy"):
        open_session(cache="sink", window=256, policy=Accumulated(1.0)).load_state_dict(state)


def test_a_policy_wants_one_frame_at_a_time():
    with pytest.raises(ValueError, match="with a policy one at a time"):
        open_session(policy=Accumulated(1.0)).push_embeds(many_frames()[:2])
