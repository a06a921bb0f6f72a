"""Segmentation, ranking and summaries: causal where they say so, exact where they say so."""

from __future__ import annotations

import itertools
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.core.clock import clock, clock_ticks
from aha.core.files import UNFINISHED, check_output, finish_output, open_output
from aha.core.fusion import Fusion
from aha.core.prediction import read_predictions, write_predictions
from aha.errors import UserError
from aha.highlights.chapters import chapters_vtt, timestamp
from aha.highlights.offline import kernel_boundaries, segment_kernel, segment_uniform, split_long
from aha.highlights.online import MIN_SIDE, OnlineSegmenter, OnlineSettings, segment_online, step_statistic
from aha.highlights.ranking import diverse, peaks, ranked_highlights, smooth_causal, smooth_centred
from aha.highlights.result import Options, find_highlights, prediction
from aha.highlights.summary import select_budget, select_threshold, select_top, summarise_budget, summarise_top
from aha.highlights.timeline import ScoreTrack, Segment


def random_track(seed: int, frames: int | None = None, width: int = 12) -> ScoreTrack:
    """Scenes of random length with their own scores and pictures, plus noise; now and then spikes, constants and no uncertainty."""
    rng = np.random.default_rng(seed)
    frames = frames or int(rng.integers(1, 150))
    scene_F = np.cumsum(rng.random(frames) < 1 / 15)
    level = rng.random((scene_F[-1] + 1, 2))
    scores_F2 = np.clip(level[scene_F] + rng.normal(0, rng.choice([0, 0.05, 0.3]), (frames, 2)), 0, 1)
    features_FD = rng.normal(size=(scene_F[-1] + 1, width))[scene_F] * 3 + rng.normal(size=(frames, width)) * rng.choice([0, 0.3, 1])
    uncertainty_F = None if seed % 5 == 0 else rng.gamma(1, 0.1, frames)
    fps = rng.choice([0.5, 1, 2])
    times_F = np.arange(frames) / fps
    features = None if seed % 3 == 0 else features_FD
    return ScoreTrack(times_F, np.arange(frames) * 30, *scores_F2.T, uncertainty_F, frames / fps, features)


def prefix(track: ScoreTrack, frames: int) -> ScoreTrack:
    def cut(values):
        return None if values is None else values[:frames]

    return ScoreTrack(
        track.times_F[:frames], track.frames_F[:frames], track.informative_F[:frames], track.relevance_F[:frames],
        cut(track.uncertainty_F), track.duration, cut(track.features_FD),
    )  # fmt: skip


def random_settings(seed: int) -> OnlineSettings:
    rng = np.random.default_rng(seed)
    return OnlineSettings(
        information_threshold=rng.choice([1.5, 4.0, 10.0]), change_threshold=rng.choice([8.0, 30.0, 100.0]),
        min_frames=int(rng.integers(1, 7)), uncertainty_wait_threshold=rng.choice([None, 0.1, 0.3]), max_wait_frames=int(rng.integers(0, 6)),
        window=int(rng.choice([4, 8, 32])),
    )  # fmt: skip


def boundaries(track: ScoreTrack, settings: OnlineSettings) -> list[tuple[int, int, int, str]]:
    return [(s.first, s.last, s.decided_at, s.reason) for s in segment_online(track, settings) if s.reason != "end of stream"]


def test_online_segmentation_is_causal_on_200_streams():
    decided, reasons = 0, set()
    for seed in range(200):
        track, settings_ = random_track(seed), random_settings(seed)
        whole = boundaries(track, settings_)
        decided += len(whole)
        reasons |= {reason for *_, reason in whole}
        for frames in {len(track) // 2, len(track) - 1} - {0}:
            part = boundaries(prefix(track, frames), settings_)
            assert part == [b for b in whole if b[2] < frames], (seed, frames)
    assert decided > 500  # there was something to get wrong
    assert reasons == {"information", "change"}


@pytest.mark.parametrize("seed", range(20))
def test_online_segments_cover_the_stream_and_keep_the_minimum(seed):
    track, settings_ = random_track(seed), random_settings(seed)
    segments = segment_online(track, settings_)
    assert segments[0].first == 0 and segments[-1].last == len(track)
    assert segments[0].start == 0 and segments[-1].end == track.duration
    assert all(a.last == b.first and a.end == b.start for a, b in zip(segments, segments[1:]))
    assert all(s.last - s.first >= settings_.min_frames for s in segments[:-1])
    assert all(s.last - 1 <= s.decided_at for s in segments)


def test_information_alone_ends_a_segment_when_the_sum_is_reached():
    segmenter = OnlineSegmenter(OnlineSettings(information_threshold=2.0, change_threshold=None, min_frames=1))
    found = [b for frame in range(10) if (b := segmenter.push(0.5, 0.1))]
    assert [(b.first, b.last, b.decided_at) for b in found] == [(0, 4, 3), (4, 8, 7)]


def test_change_is_found_where_the_pictures_change():
    rng = np.random.default_rng(0)
    pictures = np.repeat(rng.normal(size=(3, 20)), 15, axis=0) + 0.05 * rng.normal(size=(45, 20))
    track = ScoreTrack(np.arange(45.0), np.arange(45), np.full(45, 0.1), np.full(45, 0.5), None, 45.0, pictures)
    segments = segment_online(track, OnlineSettings(information_threshold=None))
    assert [s.first for s in segments] == [0, 15, 30]
    assert [s.decided_at for s in segments[:2]] == [16, 31]  # two frames of the new scene


def test_slow_drift_is_no_change():
    angle = np.linspace(0, 0.6, 60)
    track = ScoreTrack(
        np.arange(60.0), np.arange(60), np.full(60, 0.1), np.full(60, 0.5), None, 60.0, np.stack([np.cos(angle), np.sin(angle)], 1)
    )
    assert len(segment_online(track, OnlineSettings(information_threshold=None))) == 1


def test_uncertainty_holds_a_boundary_back_but_not_for_ever():
    wait = OnlineSettings(information_threshold=2.0, change_threshold=None, min_frames=1, uncertainty_wait_threshold=0.2, max_wait_frames=3)
    sure_from = OnlineSegmenter(wait)
    found = [b for f in range(6) if (b := sure_from.push(0.5, 0.5, 0.5 if f < 5 else 0.1))]
    assert [(b.last, b.decided_at) for b in found] == [(6, 5)]
    never_sure = OnlineSegmenter(wait)
    found = [b for f in range(8) if (b := never_sure.push(0.5, 0.5, 0.5))]
    assert [(b.last, b.decided_at) for b in found] == [(7, 6)]  # due at frame 3, held for 3 frames


def test_segmenter_memory_is_bounded():
    segmenter = OnlineSegmenter(OnlineSettings(information_threshold=None, change_threshold=None, window=16))
    for _ in range(1000):
        segmenter.push(0.5, 0.5, 0.1, np.ones(4))
    held = [vars(part) for part in (segmenter, segmenter._scores, segmenter._features)]
    assert max(len(v) for part in held for v in part.values() if hasattr(v, "__len__")) == 64


@pytest.mark.parametrize("frames, width", [(4, 2), (5, 3), (32, 2), (32, 300)])
def test_the_step_statistic_is_its_definition(frames, width):
    rng = np.random.default_rng(frames + width)
    values = rng.normal(size=(frames, width)) + np.arange(frames)[:, None] // 9
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    expected, noise = [], 0.01
    for n in range(MIN_SIDE, frames - MIN_SIDE + 1):
        before, after = values[:n], values[n:]
        within = ((before - before.mean(0)) ** 2).sum() + ((after - after.mean(0)) ** 2).sum()
        apart = ((after.mean(0) - before.mean(0)) ** 2).sum()
        step = n * (frames - n) / frames * apart / max(within / (frames - 2), noise)
        jump = ((after[:2].mean(0) - before[-2:].mean(0)) ** 2).sum() / noise
        expected.append(min(step, jump))
    np.testing.assert_allclose(step_statistic(values @ values.T, noise), expected, rtol=1e-9)


def test_the_segmenter_looks_at_the_last_frames_of_its_segment_and_no_others():
    """Also where the window is full, after a boundary, and after going on from a saved state."""
    rng, settings_ = np.random.default_rng(3), OnlineSettings(information_threshold=9.0, window=12)
    segmenter = OnlineSegmenter(settings_)
    for frame in range(200):
        segmenter.push(*rng.uniform(size=2), 0.1, rng.normal(size=6) + 3 * (frame // 25 % 2))
        if frame % 17 == 0:
            state = segmenter.state_dict()
            segmenter = OnlineSegmenter(settings_)
            segmenter.load_state_dict(state)
        for evidence in (segmenter._scores, segmenter._features):
            assert len(evidence.values) == min(12, segmenter.frame + 1 - segmenter.first)
            if evidence.values:
                values = np.stack(evidence.values)
                np.testing.assert_allclose(evidence.products_WW, values @ values.T, rtol=1e-12)


def test_kernel_segmentation_finds_scenes_and_leaves_noise_whole():
    rng = np.random.default_rng(1)
    scenes = np.repeat(rng.normal(size=(5, 30)), [12, 7, 20, 9, 16], axis=0) + 0.1 * rng.normal(size=(64, 30))
    assert kernel_boundaries(scenes) == [12, 19, 39, 48]
    assert len(kernel_boundaries(rng.normal(size=(80, 30)))) <= 2
    assert kernel_boundaries(np.ones((50, 3))) == []
    assert kernel_boundaries(np.ones((1, 3))) == []


def test_kernel_segmentation_of_a_long_video_is_fast():
    rng = np.random.default_rng(2)
    scenes = np.repeat(rng.normal(size=(200, 16)), 50, axis=0) + 0.1 * rng.normal(size=(10_000, 16))
    begin = time.process_time()
    found = kernel_boundaries(scenes)
    assert time.process_time() - begin < 10
    assert found == list(range(50, 10_000, 50))


def test_uniform_shots_and_splitting():
    track = random_track(1, frames=25)
    track = ScoreTrack(np.arange(25) / 2, track.frames_F, track.informative_F, track.relevance_F, None, 12.5)
    assert [(s.start, s.end) for s in segment_uniform(track, 5.0)] == [(0, 5), (5, 10), (10, 12.5)]
    parts = split_long(track, segment_uniform(track, 5.0), 2.0)
    assert max(p.seconds for p in parts) <= 2.0 and parts[0].first == 0 and parts[-1].last == 25
    assert all(a.last == b.first for a, b in zip(parts, parts[1:]))
    assert [s.reason for s in segment_kernel(track)][0] == "kernel"


# ---- ranking ----


def test_causal_smoothing_is_causal_and_centred_is_not():
    scores = np.random.default_rng(0).random(60)
    for window, order in ((1, 0), (5, 1), (9, 2)):
        whole = smooth_causal(scores, window, order)
        for frames in (1, 3, 30):
            assert smooth_causal(scores[:frames], window, order) == pytest.approx(whole[:frames], abs=1e-12)
    assert smooth_centred(scores[:30], 9)[28] != pytest.approx(smooth_centred(scores, 9)[28], abs=1e-6)
    line = np.linspace(0, 1, 20)
    assert smooth_causal(line, 5, 1) == pytest.approx(line) and smooth_centred(line, 5) == pytest.approx(line)


def test_peaks_have_prominence_distance_and_ends():
    scores = np.array([0.9, 0.2, 0.5, 0.45, 0.5, 0.1, 0.8, 0.8, 0.8, 0.1, 0.3])
    assert peaks(scores, prominence=0.1).tolist() == [0, 7, 2, 4, 10]  # at the ends too, of a plateau the middle
    assert peaks(scores, prominence=0.25).tolist() == [0, 7, 2, 4]
    assert peaks(scores, distance=4).tolist() == [0, 7]
    assert peaks(np.full(5, 0.3)).tolist() == [2]


def test_near_duplicates_are_not_both_chosen():
    a, b, c = np.eye(3)
    vectors = np.stack([a, a + 1e-3 * b, b, c, c]) + 10.0  # all alike but for a little, as pictures of one video are
    assert diverse([0, 1, 2, 3, 4], vectors, 3) == [0, 2, 3]
    assert diverse([0, 1, 2, 3, 4], vectors, 5) == [0, 2, 3]
    assert diverse([4, 1], None, 5) == [4, 1]


# ---- summaries ----


def brute_force(values, lengths, capacity) -> float:
    best = 0.0
    for subset in itertools.product((0, 1), repeat=len(values)):
        if np.dot(subset, lengths) <= capacity:
            best = max(best, float(np.dot(subset, values)))
    return best


def test_knapsack_equals_brute_force_on_500_cases():
    rng = np.random.default_rng(3)
    for case in range(500):
        items = int(rng.integers(1, 11))
        values = rng.choice([rng.random(items), rng.integers(0, 4, items) / 4])
        lengths = rng.integers(1, 30, items) * int(rng.choice([1, 1, 15]))
        capacity = int(rng.integers(0, lengths.sum() + 2))
        chosen = select_budget(values, lengths, capacity)
        assert lengths[chosen].sum() <= capacity, case
        assert values[chosen].sum() == pytest.approx(brute_force(values, lengths, capacity), abs=1e-9), case


def test_knapsack_of_2000_shots_and_10000_frames_takes_a_moment():
    rng = np.random.default_rng(4)
    values, lengths = rng.random(2000), rng.integers(10, 90, 2000)
    begin = time.process_time()  # of this process: the machine may be busy with others
    chosen = select_budget(values, lengths, 10_000)
    assert time.process_time() - begin < 2.0
    assert 9_990 <= lengths[chosen].sum() <= 10_000


def test_top_and_threshold_selection():
    values = [0.1, 0.9, 0.5, 0.9]
    assert select_top(values, 3) == [1, 3, 2]
    assert select_threshold(values, 0.5) == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.floats(0.01, 1.0), fps=st.sampled_from([1.0, 24.0, 29.97]))
def test_a_summary_never_exceeds_its_budget(seed, budget, fps):
    track = random_track(seed)
    chosen = summarise_budget(track, track.relevance_F, segment_online(track), budget, fps)
    assert chosen
    assert sum(s.seconds for s in chosen) <= max(budget * track.duration, 1 / fps) + 1e-6
    assert all(a.end <= b.start + 1e-9 for a, b in zip(chosen, chosen[1:]))


def test_a_summary_takes_the_best_scenes():
    relevance = np.full(100, 0.2)
    relevance[20:25] = 0.9
    relevance[70:75] = 0.8
    track = ScoreTrack(np.arange(100.0), np.arange(100), np.full(100, 0.1), relevance, None, 100.0)
    chosen = summarise_budget(track, relevance, segment_uniform(track, 5.0), 0.1, 30)
    covered = {frame for s in chosen for frame in range(s.first, s.last)}
    assert covered == set(range(20, 25)) | set(range(70, 75))


def test_top_moments_differ_and_are_as_many_as_asked_for():
    rng = np.random.default_rng(5)
    looks = np.repeat(rng.normal(size=(4, 8)), 10, axis=0)
    looks[30:] = looks[:10]  # the last scene looks like the first one
    relevance = np.repeat([0.9, 0.3, 0.5, 0.85], 10) + 0.001 * rng.random(40)
    track = ScoreTrack(np.arange(40.0), np.arange(40), np.full(40, 0.1), relevance, None, 40.0, looks + 0.01 * rng.normal(size=(40, 8)))
    scenes = [Segment(i, i + 10, float(i), i + 10.0) for i in range(0, 40, 10)]
    chosen = summarise_top(track, relevance, scenes, 2)
    assert {int(s.first) // 10 for s in chosen} == {0, 2}
    plain = ScoreTrack(track.times_F, track.frames_F, track.informative_F, relevance, None, 40.0)
    assert len(summarise_top(plain, relevance, scenes, 3)) == 3


# ---- in one call, and files ----


def test_find_highlights_of_one_frame():
    track = ScoreTrack(np.zeros(1), np.zeros(1, int), np.array([0.5]), np.array([0.7]), None, 0.04, np.ones((1, 3)))
    for options in (Options(), Options(top=3), Options(min_score=0.1), Options(segmentation="kernel"), Options(segmentation="uniform")):
        result = find_highlights(track, "anything", options, 25)
        assert len(result.highlights) == 1 and result.highlights[0].rank == 1 and result.highlights[0].end <= 0.04 + 1e-9


def test_ranks_are_by_score_and_json_says_why():
    track = random_track(7, frames=60)
    fused = track.relevance_F
    highlights = ranked_highlights(track, fused, segment_uniform(track, 10.0))
    assert [h.rank for h in highlights] == list(range(1, len(highlights) + 1))
    assert all(a.score >= b.score for a, b in zip(highlights, highlights[1:]))
    written = highlights[0].to_json()
    assert {"start", "end", "score", "rank", "why"} <= set(written)
    assert written["why"]["relevance"] == fused[highlights[0].first : highlights[0].last].max()


def test_prediction_file_is_read_by_the_evaluation(tmp_path):
    track = random_track(8, frames=30)
    write_predictions(tmp_path / "scores.json", [prediction(find_highlights(track, "q"), "video", 1.0)])
    (read,) = read_predictions(tmp_path / "scores.json")
    for alpha, beta, epsilon, threshold in ((0, 1, 0, 0), (0.5, 2.0, 3.0, 0.2)):  # the formula is the same in both
        fused = find_highlights(track, "q", Options(Fusion(alpha, beta, epsilon, threshold), smooth_frames=1)).fused_F
        samples = read.samples(Fusion(alpha, beta, epsilon, threshold))
        assert samples.scores.tolist() == fused.tolist() and samples.frames.tolist() == track.frames_F.tolist()
    again = ScoreTrack.of_rows(read.rows(), samples.frames, track.duration)
    assert again.uncertainty_F.tolist() == track.uncertainty_F.tolist() and again.times_F.tolist() == track.times_F.tolist()


def test_options_are_checked():
    for wrong in (
        {"budget": 0},
        {"budget": 1.5},
        {"top": 0},
        {"smooth_frames": 4},
        {"budget": 0.1, "top": 2},
        {"shot_seconds": 0},
        {"min_score": np.nan},
    ):
        with pytest.raises(UserError):
            Options(**wrong)


def test_an_output_folder_is_not_overwritten_silently(tmp_path):
    (tmp_path / "old.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        open_output(tmp_path, False)
    assert open_output(tmp_path, True) == tmp_path
    assert not check_output(tmp_path / "new", False).exists()  # it is made when there is something to write
    new = open_output(tmp_path / "new", False)
    (new / "scores.json").touch()
    assert open_output(new, False) == new, "what a kill left unfinished is taken up again"
    finish_output(new)
    assert not (new / UNFINISHED).exists()
    with pytest.raises(UserError, match="not empty"):
        open_output(new, False)
    with pytest.raises(UserError, match="is a file"):
        open_output(tmp_path / "old.txt", True)


def test_ticks_of_a_time_axis_are_whole_even_and_few():
    for start, end in ((0.0, 0.4), (0.0, 7.0), (0.0, 12.0), (0.4, 61.0), (3.3, 600.0), (0.0, 5400.0), (0.0, 200000.0), (7.0, 7.0)):
        ticks = clock_ticks(start, end, 7)
        assert len(ticks) <= 7 and all(start - 1e-6 <= t <= end + 1e-6 and t == int(t) for t in ticks)
        assert len({round(b - a) for a, b in zip(ticks, ticks[1:])}) <= 1
    assert clock_ticks(0, 12, 7) == [0, 2, 4, 6, 8, 10, 12] and clock_ticks(0.5, 60, 7) == [10, 20, 30, 40, 50, 60]


def test_chapters_do_not_overlap_and_text_is_escaped():
    track = random_track(9, frames=80)
    result = find_highlights(track, "a --> b <i>&", Options(budget=0.3), 30)
    text = chapters_vtt(result.segments, result.highlights, result.query)
    cues = re.findall(r"(\d\d):(\d\d):(\d\d\.\d{3}) --> (\d\d):(\d\d):(\d\d\.\d{3})", text)
    spans = [(int(a) * 3600 + int(b) * 60 + float(c), int(d) * 3600 + int(e) * 60 + float(f)) for a, b, c, d, e, f in cues]
    assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(track.duration, abs=1e-3)
    assert all(a[1] == pytest.approx(b[0], abs=2e-3) for a, b in zip(spans, spans[1:]))
    assert text.startswith("WEBVTT\n\n") and "<i>" not in text and "a --&gt; b &lt;i&gt;&amp;" in text
    assert timestamp(3723.4567) == "01:02:03.457" and clock(3723) == "1:02:03" and clock(61.9) == "1:01"
