"""Corruptions and prompt styles: exact share, same pictures for the same seed, no video keeps its own query."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.core.prompts import ANYTHING, TVSUM_AMBIGUOUS, restyle
from aha.errors import UserError
from aha.video.corrupt import KINDS, Corruption
from aha.video.reader import Frame


def clip(seconds, fps=2, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (seconds * fps, 3, 64, 96), dtype=np.uint8)
    return [Frame(frame, 10 * i, i / fps, i / fps) for i, frame in enumerate(frames)]


@given(st.floats(0.5, 700), st.floats(0, 1), st.integers(0, 5), st.text(max_size=8))
def test_the_share_is_exact_and_within_the_video(duration, ratio, seed, name):
    hit = Corruption("blackout", ratio, seed).bad_seconds(duration, name)
    assert len(hit) == round(ratio * max(1, math.ceil(duration - 1e-9)))
    assert all(0 <= second < math.ceil(duration) for second in hit)


def test_stretches_are_short_and_apart_where_there_is_room():
    for seed in range(50):
        hit = sorted(Corruption("quality", 0.2, seed).bad_seconds(300, "v"))
        runs = np.split(hit, np.flatnonzero(np.diff(hit) > 1) + 1)
        assert max(map(len, runs)) <= 5
    assert len({Corruption("quality", 0.2, seed).bad_seconds(300, "v") for seed in range(20)}) == 20
    assert Corruption("quality").bad_seconds(300, "v") != Corruption("quality").bad_seconds(300, "w")


@pytest.mark.parametrize("kind", KINDS)
def test_only_bad_seconds_change_and_any_part_gives_the_same_pictures(kind):
    frames, corruption = clip(20), Corruption(kind, 0.3, seed=4)
    hit = corruption.bad_seconds(20, "v")
    whole = list(corruption.apply(frames, 20, "v"))
    assert len(hit) == 6
    for before, after in zip(frames, whole):
        assert after.frame_CHW.dtype == np.uint8
        if int(before.time) not in hit:
            assert after.frame_CHW is before.frame_CHW
        elif kind == "blackout":
            assert not after.frame_CHW.any()
    touched = [f for f in whole if int(f.time) in hit]
    assert any((f.frame_CHW != b.frame_CHW).any() for f, b in zip(whole, frames)), touched
    alone = list(corruption.apply(frames[11:23], 20, "v"))  # the reader started later: the same pictures
    for one, other in zip(alone, whole[11:23]):
        np.testing.assert_array_equal(one.frame_CHW, other.frame_CHW)


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="none of quality, block_noise"):
        Corruption("fog")
    with pytest.raises(UserError, match="not between 0 and 1"):
        Corruption("quality", 1.5)


# ---------------------------------------------------------------- prompts

QUERIES = {f"v{i}": ((0.0, f"title {i}"),) for i in range(10)}
CATEGORIES = {f"v{i}": ["VT", "GA", "MS", "BK", "DS"][i // 2] for i in range(10)}


def test_styles():
    assert restyle(QUERIES, "specific") == QUERIES
    assert set(restyle(QUERIES, "none").values()) == {()}
    assert restyle(QUERIES, "ambiguous", CATEGORIES)["v0"] == ((0.0, TVSUM_AMBIGUOUS["VT"]),)
    assert restyle({"q": ((2.0, "x"), (5.0, "y"))}, "ambiguous") == {"q": ((2.0, ANYTHING), (5.0, ANYTHING))}
    with pytest.raises(UserError, match="none of specific"):
        restyle(QUERIES, "vague")


@settings(max_examples=40)
@given(st.integers(0, 100), st.lists(st.sampled_from("ABC"), min_size=4, max_size=12))
def test_unrelated_is_a_permutation_without_fixed_points(seed, letters):
    queries = {f"v{i}": ((0.0, f"title {i}"),) for i in range(len(letters))}
    categories = {f"v{i}": letter for i, letter in enumerate(letters)}
    found = restyle(queries, "unrelated", categories, seed)
    assert sorted(found.values()) == sorted(queries.values())
    assert all(found[video] != queries[video] for video in queries)
    if max(map(letters.count, letters)) <= len(letters) / 2:  # then every video can get another category's
        owner = {asked: video for video, asked in queries.items()}
        assert all(categories[owner[found[video]]] != categories[video] for video in queries)


def test_unrelated_needs_another_query():
    with pytest.raises(UserError, match="no other query to borrow"):
        restyle({"a": ((0.0, "same"),), "b": ((0.0, "same"),)}, "unrelated")
