"""The demo's data set: official layout, ratings like people's, importance that depends on the title, nothing shared between folds."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from itertools import combinations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from aha.core.folds import folds
from aha.demo import dataset
from aha.demo.scenes import PLACES, Scene, coverage, draw_background, draw_frame, letterbox, random_scene, random_thing
from aha.errors import UserError
from aha.eval.annotations import read_tvsum


@pytest.fixture(scope="module")
def plans() -> list[dataset.VideoPlan]:
    return dataset.plan_dataset(0)


def held_out(plans: list[dataset.VideoPlan]) -> list[list[str]]:
    return folds({plan.video_id: plan.category for plan in plans})


def test_size_and_categories(plans):
    assert len(plans) >= 24 and len({plan.category for plan in plans}) >= 4
    assert all(30 <= plan.seconds <= 60 for plan in plans)
    assert all(plan.num_frames == plan.seconds * plan.fps for plan in plans), "fps = frames / length, as in TVSum"
    assert len({plan.video_id for plan in plans}) == len(plans)


def test_plans_follow_from_the_seed(plans):
    assert dataset.plan_dataset(0) == plans
    assert dataset.plan_dataset(1) != plans


def test_no_scene_or_background_is_shared_between_folds(plans):
    by_id = {plan.video_id: plan for plan in plans}
    seeds = [{scene.background_seed for i in fold for scene, _ in by_id[i].scenes} for fold in held_out(plans)]
    assert all(not a & b for a, b in combinations(seeds, 2))


def test_pairs_share_scenes_that_matter_under_one_title_only(plans):
    seen: dict[int, list[tuple[str, float]]] = {}
    for plan in plans:
        for scene in {scene for scene, _ in plan.scenes}:
            seen.setdefault(scene.background_seed, []).append((plan.title, dataset.importance(plan.target, scene)))
    shared = [uses for uses in seen.values() if len(uses) > 1]
    assert len(shared) > 40
    differ = [uses for uses in shared if max(v for _, v in uses) > 0.7 and min(v for _, v in uses) < 0.1]
    assert len(differ) > 15, "the same scene is important under one title and not under another"


def test_ratings_agree_like_peoples(plans):
    """Kendall tau-b of annotator pairs, mean over pairs and videos: TVSum's people have 0.177."""
    taus = []
    for plan in plans[::4]:
        ratings = dataset.annotate(plan, 0)
        assert ratings.shape == (20, plan.num_frames) and ratings.min() >= 1 and ratings.max() <= 5
        seconds = ratings[:, :: int(plan.fps)]
        taus.append(np.mean([kendalltau(a, b).statistic for a, b in combinations(seconds, 2)]))
    assert 0.15 < np.mean(taus) < 0.30


@given(st.integers(40, 400), st.sampled_from([Fraction(10), Fraction(25, 2), Fraction(30000, 1001)]))
@settings(deadline=None, max_examples=40)
def test_opinions_change_at_tvsums_frames(num_frames, fps):
    shots = dataset.shot_of_frames(num_frames, fps)
    changes = np.flatnonzero(np.diff(shots)) + 1
    expected = [int(2 * k * fps) + 1 for k in range(1, num_frames) if int(2 * k * fps) + 1 < num_frames]
    assert changes.tolist() == expected


def test_tables_are_read_by_the_evaluation(plans, tmp_path):
    dataset.write_tables(plans[:12], tmp_path, 0)
    videos = read_tvsum(tmp_path / "ydata-tvsum50-anno.tsv")
    assert list(videos) == [plan.video_id for plan in plans[:12]]
    for plan in plans[:12]:
        video = videos[plan.video_id]
        assert (video.title, video.category, video.n_frames) == (plan.title, plan.category, plan.num_frames)
        np.testing.assert_array_equal(video.user_scores, dataset.annotate(plan, 0))
        assert video.fps == pytest.approx(float(plan.fps))


def short(plan: dataset.VideoPlan) -> dataset.VideoPlan:
    return dataclasses.replace(plan, scenes=tuple((scene, 2) for scene, _ in plan.scenes[:2]))


def test_video_file(plans, tmp_path):
    plan = short(plans[0])
    path = tmp_path / "a.mp4"
    dataset.write_video(plan, path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == plan.fps
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(pictures) == plan.num_frames
    true = draw_frame(plan.scenes[0][0], 0.0, plan.width, plan.height)
    assert np.abs(pictures[0].astype(int) - true).mean() < 12, "the first frame shows the first scene"
    first_bytes = path.read_bytes()
    dataset.write_video(plan, path)
    assert path.read_bytes() == first_bytes, "equal plans give equal files"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"], "nothing half-written is left"


def test_files_that_are_there_are_kept(plans, tmp_path, monkeypatch):
    few = [short(plan) for plan in plans[:2]]
    monkeypatch.setattr(dataset, "plan_dataset", lambda seed: few)
    root = dataset.make_dataset(tmp_path, processes=1)
    kept, missing = (root / "video" / f"{plan.video_id}.mp4" for plan in few)
    before = kept.stat().st_mtime_ns
    missing.unlink()
    killed = missing.with_name(f".{missing.stem}.x1y2.mp4")
    killed.write_bytes(b"half")
    dataset.make_dataset(tmp_path, processes=1)
    assert not killed.exists(), "what a killed run left is removed"
    assert kept.stat().st_mtime_ns == before and missing.is_file()
    with pytest.raises(UserError, match="other settings"):
        dataset.make_dataset(tmp_path, seed=5)


def test_importance_depends_on_the_title():
    random = np.random.default_rng(0)
    scene = random_scene(random, [random_thing(random, "red", "striped")], "sea")
    target = dataset.Target
    assert dataset.importance(target(colour="red"), scene) > 0.7
    assert dataset.importance(target(place="sea"), scene) > 0.7
    assert dataset.importance(target(colour="blue"), scene) < 0.1
    whole, half = (dataset.importance(target(colour="red", pattern=p), scene) for p in ("striped", "dotted"))
    assert whole > 2 * half > 0.3


# ---- pictures ----


@given(st.integers(0, 10_000), st.sampled_from(PLACES), st.sampled_from([(384, 288), (288, 384), (200, 120)]))
@settings(deadline=None, max_examples=15)
def test_pictures_and_their_truth(seed, place, size):
    width, height = size
    random = np.random.default_rng(seed)
    scene = random_scene(random, [random_thing(random) for _ in range(int(random.integers(0, 4)))], place)
    moment = float(random.uniform(0, 20))
    picture = draw_frame(scene, moment, width, height)
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    again = draw_frame(scene, moment, width, height, draw_background(place, scene.background_seed, width, height))
    np.testing.assert_array_equal(picture, again)
    seen = coverage(scene, moment, width, height)
    assert seen.shape == (len(scene.things) + 1, 7, 7) and seen.min() >= 0 and seen.sum(0).max() <= 1 + 1e-6
    assert seen.sum() / 49 == pytest.approx(width * height / 384**2, abs=0.08), "the shares add up to the picture's area"
    for thing in scene.things:
        x, y = thing.centre(moment, width, height)
        radius = thing.pixels(width, height)
        assert radius <= x <= width - radius and radius <= y <= height - radius


def test_coverage_says_where_a_thing_is():
    random = np.random.default_rng(3)
    thing = random_thing(random, "red", "plain")
    scene = Scene("night", 1, (dataclasses.replace(thing, shape="square"),))
    square = letterbox(draw_frame(scene, 0.0, 384, 288)).astype(int)
    red = (square[..., 0] > square[..., 1] + 60) & (square[..., 0] > square[..., 2] + 60)
    edges = [int(i * 384 / 7) for i in range(8)]
    cells = np.array([[red[a:b, c:d].mean() for c, d in zip(edges, edges[1:])] for a, b in zip(edges, edges[1:])])
    np.testing.assert_allclose(coverage(scene, 0.0, 384, 288)[0], cells, atol=0.2)
