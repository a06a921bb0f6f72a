"""Caches: the released code's number for number, and ours by their definition."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture
from streaming_model import golden, golden_difference, open_session, run_golden

from aha.errors import UserError
from aha.streaming.caches import Cache
from aha.streaming.policies import Accumulated
from aha.streaming.reference import ReferenceCache
from aha.streaming.session import make_cache

KINDS = {"default_sink": "sink", "instruction_sink": "dynamic_sink", "sliding_window": "sliding", "static": "static", "dynamic": "full"}


@pytest.mark.parametrize("attention", ["sdpa", "fa2"])
def test_released_caches_give_the_golden_scores(attention):
    passed = Counter()
    for name, record in golden("aha", "caches").items():
        if not name.startswith(attention) or "drive" in name or name.endswith("/query_at_0"):  # the others take as long and say nothing new
            continue
        wanted = {"window_length": None, "num_sink_tokens": None, **record["settings"]}
        kind = KINDS[wanted.get("cache", "dynamic")]
        session = open_session(
            cache=kind, window=wanted["window_length"], sink_tokens=wanted["num_sink_tokens"], cache_semantics="reference",
            prompt_order="reference",
        )  # fmt: skip
        session.cache.causal = attention == "fa2"
        scores, _ = run_golden(session, "aha", record)
        assert golden_difference(scores, record) < (5e-4 if "long" in name else 1e-4), name
        passed[kind] += 1
    assert passed["sink"] >= 5 and passed["sliding"] >= 2 and passed["dynamic_sink"] >= 2 and passed["static"] >= 2


def runs(tokens: np.ndarray, positions: np.ndarray) -> list[dict]:
    """Consecutive tokens at consecutive positions, as in sink_positions.json."""
    breaks = np.flatnonzero((np.diff(tokens) != 1) | (np.diff(positions) != 1)) + 1
    return [
        {"token_first": int(t[0]), "token_last": int(t[-1]), "position_first": int(p[0]), "position_last": int(p[-1])}
        for t, p in zip(np.split(tokens, breaks), np.split(positions, breaks))
    ]


@pytest.mark.parametrize("kind", ["sink", "sliding"])
def test_released_caches_hold_the_golden_tokens_at_the_golden_positions(kind):
    record = golden("aha", "sink_positions")[kind]
    cache = ReferenceCache(kind, record["window_length"], record["num_sink_tokens"])
    fed = {}
    # The numbers of new tokens of every call come from the file; calls that it leaves out are single tokens.
    last = record["calls"][-1]["call"]
    sizes = {call["call"]: call["new_tokens"] for call in record["calls"]}
    total = 0
    for number in range(last + 1):
        count = sizes.get(number, 1)
        cached = len(cache.slots)
        block = cache.block(np.arange(total, total + count), "frame")
        total += count
        fed[number] = (cached, block.new_position, len(cache.slots), runs(cache.slots, cache.positions))
    for call in record["calls"]:
        wanted = (call["cache_len_before"], call["new_position_first"], call["cache_len_after"], call["runs"])
        assert fed[call["call"]] == wanted, call["call"]
    assert len(record["calls"]) > 20


def test_golden_session_of_sink_positions_says_the_same():
    record = golden("aha", "sink_positions")["sliding"]
    assert shared_fixture("reference/aha/sink_positions.json")
    queries = golden("aha", "caches")["sdpa/sliding_window-256/landscape/query_at_0_and_mid"]["queries"]
    played = {**record, "num_frames": 13, "queries": [queries[0], {**queries[1], "time": 12.0}]}
    policy = Accumulated(record["stream_end_score_sum_threshold"], tuple(record["score_heads"]))
    session = open_session(cache="sliding", window=256, cache_semantics="reference", prompt_order="reference", policy=policy)
    _, replies = run_golden(session, "aha", played)
    assert [(frame, ids) for frame, ids, _ in replies] == [(r["frame"], r["token_ids"]) for r in record["replies"]]


# ---- ours ----

blocks = st.lists(st.tuples(st.sampled_from(["prompt", "text", "frame", "frame", "frame", "reply"]), st.integers(1, 12)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(["full", "sink", "dynamic_sink", "sliding", "static"]), fed=blocks, sinks=st.integers(0, 6))
def test_our_caches_keep_what_they_say(kind, fed, sinks):
    window = 64
    cache = Cache(kind, None if kind in ("full", "static") else window, sinks if kind == "sink" else 0)
    roles: list[str] = []
    for role, count in fed:
        new = np.arange(len(roles), len(roles) + count)  # the slot of a token is its number
        roles += [role] * count
        pinned = [
            n for n, r in enumerate(roles)
            if (kind == "sink" and n < sinks) or (kind == "dynamic_sink" and r == "prompt") or (kind == "static" and r in ("prompt", "text"))
        ]  # fmt: skip
        try:
            block = cache.block(new, role)
        except UserError as error:
            assert len(set(pinned) - set(new)) + count > window and "raise the window" in str(error)
            return
        if kind == "full":
            expected = range(len(roles))
        elif kind == "static":
            previous = len(roles) - count
            while previous and roles[previous - 1] != "frame" and role != "frame":
                previous -= 1
            expected = None if role != "frame" else sorted({*pinned, *new})
        else:
            others = [n for n in range(len(roles)) if n not in pinned]
            room = window - len(pinned)
            # a prompt that was just pinned still made room for itself before it was
            expected = sorted({*pinned, *others[max(len(others) - room, 0) :]}) if role != "prompt" else None
        if expected is not None:
            assert block.read.tolist() == list(expected)
        assert block.new_position == len(block.read) - count and block.positions is None and block.visible is None
        assert (np.diff(block.read) > 0).all() and block.read[-count:].tolist() == new.tolist()
        if kind in ("sink", "dynamic_sink", "sliding"):
            assert len(block.read) <= window
        kept, dropped = set(cache.slots.tolist()), set(np.concatenate([[], *cache.dropped]).astype(int).tolist())
        assert kept | dropped == set(range(len(roles))) and not kept & dropped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ring", 256, 32), "none of full, sink"),
        (("sink", 100, 32), "must be at least 130"),
        (("sliding", 64, None), "must be at least 98"),
        (("sink", 256, -1), "below 0"),
        (("sink", 256, 32, "released"), "neither aha nor reference"),
    ],
)
def test_impossible_caches_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        make_cache(*arguments)


def test_a_prompt_that_fills_the_window_is_refused():
    with pytest.raises(UserError, match="window of 100 tokens cannot hold"):
        open_session(cache="dynamic_sink", window=100, query="a long question " * 30)


def test_names_of_caches_and_policies_are_had_without_torch():
    code = (
        "import sys, aha.conversation, aha.streaming.caches, aha.streaming.policies;"
        "print(aha.streaming.caches.CACHES, sorted({'torch', 'transformers'} & set(sys.modules)));"
        "from aha.streaming import Session; print('torch' in sys.modules, hasattr(aha.streaming, 'nothing'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["('full', 'sink', 'dynamic_sink', 'sliding', 'static') []", "True False"]
