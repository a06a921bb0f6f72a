"""Replies against the golden ones, and the policies that decide when to speak."""

from __future__ import annotations

import math

import pytest
from streaming_model import difference, embeds, golden, golden_difference, joined, open_session, run_golden

from aha.errors import UserError
from aha.streaming.policies import (
    Accumulated,
    AnyOf,
    MinimumGap,
    Threshold,
    UncertaintyHold,
    load_policy_state,
    policy_state,
)

LONG = (
    "portrait",
    "no_query",
)  # sessions with several replies of 200 tokens; default_sink_2048 repeats dynamic_as_run where nothing is evicted


def play(family: str, name: str, record: dict):
    wanted = record["settings"]
    heads = tuple(wanted["score_heads"])
    if wanted["stream_end_score_sum_threshold"] is not None:
        policy = Accumulated(wanted["stream_end_score_sum_threshold"], heads)
    else:
        policy = Threshold(wanted["stream_end_prob_threshold"], heads)
    session = open_session(
        family, cache="sink" if wanted.get("cache") == "default_sink" else "full", window=wanted.get("window_length"),
        sink_tokens=wanted.get("num_sink_tokens"), prompt_order="reference", policy=policy, frame_fps=record["fps"],
        cache_semantics="aha" if wanted.get("snapshot_restored_after_reply") else "reference",
        remove_assistant_turns=wanted["remove_assistant_turns"], repetition_penalty=wanted["repetition_penalty"],
    )  # fmt: skip
    if "fa2" in name:
        session.cache.causal = True
    return run_golden(session, family, record)


@pytest.mark.parametrize("family", ["mmduet", "aha"])
def test_replies_are_the_golden_ones(family):
    replies = 0
    for name, record in golden(family, "generation").items():
        if any(word in name for word in LONG) or ("2048" in name and "keep" not in name):
            continue
        scores, said = play(family, name, record)
        assert [(frame, ids) for frame, ids, _ in said] == [(r["frame"], r["token_ids"]) for r in record["responses"]], name
        assert [text for _, _, text in said] == [r["text"] for r in record["responses"]], name
        assert golden_difference(scores, record) < 1e-4, name
        replies += len(said)
    assert replies > 25


@pytest.mark.parametrize("order", ["aha", "reference"])
def test_the_probability_of_a_reply(order):
    """One token: the softmax over the vocabulary sums to 1. At most the most probable is called greedy; asking changes nothing that follows."""
    visual_FKH = embeds("aha", "landscape.mp4", 1)
    asked, plain = (open_session("aha", query="what is new?", prompt_order=order) for _ in range(2))
    for session in (asked, plain):
        session.push_embeds(visual_FKH[:3])
    words = [asked.format.tokenizer.decode([token]) for token in range(400)]
    single = [word for token, word in enumerate(words) if asked.format.encode(word) == [token]]
    found = {word: asked.log_probability(word) for word in single}
    assert len(found) > 50 and sum(math.exp(logarithm) for logarithm, _ in found.values()) <= 1 + 1e-4
    best = max(found, key=lambda word: found[word][0])
    assert all(word == best for word, (_, greedy) in found.items() if greedy)
    first, second = found[best][0], asked.log_probability(best * 2)[0]
    assert second < first < 0 and asked.log_probability("") == (0.0, True)  # more words are less probable
    assert asked.respond(5) == plain.respond(5)
    assert difference(asked.push_embeds(visual_FKH[3:5]), plain.push_embeds(visual_FKH[3:5])) == 0


@pytest.mark.parametrize("cache", ["full", "sink", "dynamic_sink", "sliding", "static"])
def test_a_removed_reply_leaves_no_trace(cache):
    visual_FKH = embeds("aha", "landscape.mp4", 1)
    settings = {"cache": cache, "window": 256, "query": "what is new?"}
    silent, speaking, keeping = (
        open_session(**settings, remove_assistant_turns=remove, max_new_tokens=60) for remove in (True, True, False)
    )
    scores = [[], [], []]
    for k in range(12):
        for session, row in zip((silent, speaking, keeping), scores):
            row.append(session.push_embeds(visual_FKH[k : k + 1]))
        if k in (3, 7, 8):
            assert speaking.respond() is not None and keeping.respond() is not None
    assert difference(joined(scores[0]), joined(scores[1])) == 0.0
    assert cache == "static" or difference(joined(scores[0]), joined(scores[2])) > 1e-3
    assert speaking.pool.used == len(speaking.cache.slots)


def row(time: float, informative: float, variance: float = 0.0) -> dict[str, float]:
    return {"time": time, "informative_score": informative, "relevance_score": 0.5, "uncertainty_score": variance}


def spoken(policy, rows: list[dict]) -> list[float]:
    times = []
    for r in rows:
        if policy.update(r):
            policy.spoke(r["time"])
            times.append(r["time"])
    return times


def test_threshold_is_strict_and_adds_heads():
    assert spoken(Threshold(0.5), [row(0, 0.5), row(1, 0.51)]) == [1]
    assert spoken(Threshold(1.0, ("informative_score", "relevance_score")), [row(0, 0.5), row(1, 0.51)]) == [1]


def test_accumulated_starts_anew_after_a_reply():
    assert spoken(Accumulated(1.0), [row(t, 0.4) for t in range(8)]) == [2, 5]


def test_uncertainty_hold_waits_then_decides():
    hold = UncertaintyHold(Threshold(0.5), variance=0.3, max_wait_frames=3)
    assert spoken(hold, [row(0, 0.9, 0.9), row(1, 0.9, 0.9), row(2, 0.9, 0.1), row(3, 0.1, 0.1)]) == [2]
    assert spoken(hold, [row(t, 0.9, 0.9) for t in range(9)]) == [3, 7]  # never sure: after three frames it decides all the same
    assert spoken(hold, [row(0, 0.9, 0.9), row(1, 0.1, 0.1), row(2, 0.1, 0.1)]) == []  # the wish passed while waiting


def test_minimum_gap_and_any_of():
    assert spoken(MinimumGap(Threshold(0.5), 3.0), [row(t, 0.9) for t in range(8)]) == [0, 3, 6]
    both = AnyOf([Threshold(0.8), Accumulated(1.0)])
    assert spoken(both, [row(0, 0.5), row(1, 0.4), row(2, 0.9), row(3, 0.4), row(4, 0.4), row(5, 0.4)]) == [2, 5]


def test_policy_state_round_trip():
    def build():
        return MinimumGap(UncertaintyHold(AnyOf([Accumulated(1.0), Threshold(0.8)]), 0.3, 2), 2.0)

    rows = [row(t, (7 * t % 10) / 10, (3 * t % 7) / 10) for t in range(40)]
    whole, first, second = build(), build(), build()
    expected = spoken(whole, rows)
    got = spoken(first, rows[:17])
    load_policy_state(second, policy_state(first))
    assert got + spoken(second, rows[17:]) == expected and len(expected) > 5


def test_bad_heads_are_refused():
    with pytest.raises(UserError, match="none of informative_score"):
        Threshold(0.5, ("informative",))
    with pytest.raises(UserError, match="gives no uncertainty_score"):
        Threshold(0.5, ("uncertainty_score",)).update({"time": 0.0, "informative_score": 0.1, "relevance_score": 0.2})
