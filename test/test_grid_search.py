"""Fusion-weight search: golden rows, no leakage of the held-out fold, vectorised objectives equal one by one, speed."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from eval_data import write_hisum
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture

from aha.core.folds import folds
from aha.core.fusion import Fusion, add_fusion_flags, fusion_of
from aha.errors import UserError
from aha.eval import charades, grid_search
from aha.eval.grid_search import HeadScores, combinations, cross_validate, fused, metrics_at, objective_of, objective_table, tune
from aha.metrics.rank import rank_correlation


def annotations():
    return [
        "--annotations",
        str(shared_fixture("eval/ydata-tvsum50-anno.tsv.gz")),
        "--info",
        str(shared_fixture("eval/ydata-tvsum50-info.tsv")),
    ]


def videos_of(n, samples=40, seed=0):
    random = np.random.default_rng(seed)
    users = random.integers(1, 6, (n, 20, samples)).astype(float)
    return [
        HeadScores(f"v{i:02d}", "AB"[i % 2], random.random((3, samples)) * [[1], [1], [0.3]], users[i].mean(axis=0) / 5, users[i])
        for i in range(n)
    ]


GRID = {"alpha": [0.0, 1.0], "beta": [0.0, 0.5, 1.0], "epsilon": [-1.0, 0.0, 2.0], "uncertainty_threshold": [0.05, 0.2]}


def test_every_golden_row(tmp_path, capsys):
    golden = json.loads(shared_fixture("eval/tvsum_grid_golden.json").read_text())
    grid = [f"--grid_{name}={','.join(map(str, values))}" for name, values in golden["grid"].items()]
    output = tmp_path / "grid.json"
    predictions = str(shared_fixture("eval/tvsum_heads_pred.json"))
    grid_search.main(["--predictions", predictions, *annotations(), *grid, "--folds", "2", "--all_rows", "--output", str(output)])
    result = json.loads(output.read_text())
    assert len(result["rows"]) == len(golden["rows"]) == 66
    for ours, theirs in zip(result["rows"], golden["rows"]):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert result["best"] == pytest.approx(golden["best"], abs=1e-6)
    assert "tuned on test (no result)" in capsys.readouterr().out


@pytest.mark.parametrize("objective", grid_search.OBJECTIVES)
@pytest.mark.parametrize("ties", [False, True])
def test_vectorised_objectives_equal_one_by_one(objective, ties):
    video = videos_of(1, samples=37, seed=3)[0]
    if ties:
        video = HeadScores(video.video_id, video.category, np.round(video.heads * 3) / 3, video.mean, video.users)
    rows = combinations(GRID)
    found = objective_of(video, rows, objective)
    for k, row in enumerate(rows):
        scores = fused(video, row[None])[0]
        if objective == "spearman_annotators":
            expected = np.mean(rank_correlation(scores, video.users).spearman)
        else:
            expected = metrics_at(video, row)[objective]
        assert found[k] == pytest.approx(expected, abs=1e-9, nan_ok=True), (objective, row)


def test_the_held_out_fold_is_never_seen_in_tuning():
    """Whatever the held-out videos' scores and labels become, the parameters chosen for their fold stay the same."""
    videos = videos_of(12)
    rows = combinations(GRID)
    held_out = folds({video.video_id: video.category for video in videos}, 3)
    before = cross_validate(videos, rows, objective_table(videos, rows, "spearman"), held_out)
    strangers = {video.video_id: video for video in videos_of(12, seed=9)}
    for fold, members in enumerate(held_out):
        changed = [strangers[video.video_id] if video.video_id in members else video for video in videos]
        after = cross_validate(changed, rows, objective_table(changed, rows, "spearman"), held_out)
        assert after["folds"][fold]["parameters"] == before["folds"][fold]["parameters"]
        assert after["folds"][fold]["objective_on_tuning_videos"] == before["folds"][fold]["objective_on_tuning_videos"]
        assert after["folds"][fold]["held_out"] != before["folds"][fold]["held_out"]


def test_a_leak_would_show_as_a_perfect_held_out_score():
    """Every video rewards a combination of its own, and loses under all others: only a tuner that sees the held-out video can find it."""
    n = 6
    objective_VK = np.where(np.eye(n, dtype=bool), 1.0, 0.0)
    for video in range(n):
        others = [row for row in range(n) if row != video]
        assert objective_VK[video, tune(objective_VK[others])] == 0
    assert objective_VK[0, tune(objective_VK[[0]])] == 1  # what a leak looks like
    videos = videos_of(n)
    rows = combinations(GRID)[:n]
    result = cross_validate(videos, rows, objective_VK, [[video.video_id] for video in videos])
    chosen = [list(fold["parameters"].values()) for fold in result["folds"]]
    assert not any(np.allclose(row, own) for row, own in zip(chosen, rows))
    assert [fold["tuned_on"] for fold in result["folds"]] == [n - 1] * n


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_every_video_is_held_out_once(n_folds, seed):
    videos = videos_of(11, samples=12, seed=seed)
    rows = combinations({**GRID, "epsilon": [0.0], "uncertainty_threshold": [0.0]})
    held_out = folds({video.video_id: video.category for video in videos}, n_folds, seed)
    result = cross_validate(videos, rows, objective_table(videos, rows, "top5"), held_out)
    assert sorted(v for fold in result["folds"] for v in fold["held_out_videos"]) == sorted(video.video_id for video in videos)


def test_15000_combinations_over_50_videos_take_seconds():
    """At most 10 s of processor time on 2 cores (wall time depends on who else is running)."""
    videos = videos_of(50, samples=240)
    rows = combinations({name: grid_search.grid_values(text) for name, text in grid_search.DEFAULT_GRID.items()})
    assert len(rows) == 14_850  # 15,000 without alpha = beta = 0
    start = time.process_time()
    objective_table(videos, rows, "top5")
    assert time.process_time() - start < 20


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:0", "nan", "0:1:2000"])
def test_bad_grids_are_refused(text):
    with pytest.raises(grid_search.argparse.ArgumentTypeError):
        grid_search.grid_values(text)


def test_predictions_without_a_needed_head_are_named(tmp_path):
    predictions = str(shared_fixture("eval/tvsum_pred_noisy.json"))
    short = json.loads(Path(predictions).read_text())["videos"]
    entry = {"video_uuid": (name := next(iter(short))), "true_frames_list": short[name]["frames"]}
    entry["debug_data"] = [{"time": float(i), "relevance_score": s} for i, s in enumerate(short[name]["scores"])]
    (tmp_path / "p.json").write_text(json.dumps([entry]))
    with pytest.raises(UserError, match="informative_score 0 is null"):
        grid_search.main(["--predictions", str(tmp_path / "p.json"), *annotations()])
    with pytest.raises(UserError, match="alpha or beta other than 0"):
        grid_search.main(["--predictions", predictions, *annotations(), "--grid_alpha=0", "--grid_beta=0"])


def test_evaluators_read_the_result_of_the_search(tmp_path):
    """--fusion takes the tuned weights; a flag beside it wins; another file is one sentence."""
    parser = argparse.ArgumentParser()
    add_fusion_flags(parser)
    best = {"alpha": 0.5, "beta": 1.5, "epsilon": -1.0, "uncertainty_threshold": 0.1}
    (tmp_path / "grid.json").write_text(json.dumps({"best": best | {"top5": 0.9}, "folds": []}))
    weights = ["--fusion", str(tmp_path / "grid.json")]
    assert parser.parse_args(weights) == parser.parse_args(["--weights", weights[1]])  # its earlier name, where no model is loaded
    assert asdict(fusion_of(parser.parse_args(weights))) == best
    assert asdict(fusion_of(parser.parse_args([*weights, "--beta", "0"]))) == best | {"beta": 0.0}
    assert fusion_of(parser.parse_args([])) == Fusion()
    (tmp_path / "other.json").write_text('{"alpha": 1}')
    with pytest.raises(UserError, match="holds no numbers alpha, beta"):
        fusion_of(parser.parse_args(["--weights", str(tmp_path / "other.json")]))


SMALL = ["--grid_alpha", "0,1", "--grid_beta", "0,1", "--grid_epsilon", "0,1", "--grid_uncertainty_threshold", "0.1"]


def tuned(tmp_path, *arguments):
    grid_search.main([str(argument) for argument in (*arguments, *SMALL, "--folds", "2", "--output", tmp_path / "grid.json")])
    return json.loads((tmp_path / "grid.json").read_text())


def test_charades_is_tuned_on_other_videos_and_equals_the_evaluation(tmp_path):
    """The informative head is right, the relevance wrong: tuning finds it, folds keep a video together, numbers are the evaluator's."""
    random = np.random.default_rng(0)
    gold, entries = [], []
    for q in range(8):
        start = int(random.integers(1, 10))
        gold.append({"question_id": f"q{q}", "video": f"v{q // 2}", "query": "x", "timestamps": [[start, start + 4]]})
        rows = [
            {
                "time": float(t),
                "informative_score": float(start <= t <= start + 4),
                "relevance_score": float(random.random()),
                "uncertainty_score": 0.2,
            }
            for t in range(20)
        ]
        entries.append({"question_id": f"q{q}", "debug_data": rows})
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    (tmp_path / "p.json").write_text(json.dumps(entries))
    files = ["--predictions", tmp_path / "p.json", "--annotations", tmp_path / "gold.json"]
    result = tuned(tmp_path, "--dataset", "charades", *files)
    assert (result["best"]["alpha"], result["best"]["beta"]) == (1, 0) and result["cross_validation"]["mean"]["mIoU"] == 1
    for fold in result["cross_validation"]["folds"]:
        videos = {int(q[1:]) // 2 for q in fold["held_out_videos"]}
        assert len(fold["held_out_videos"]) == 2 * len(videos)
    flags = [str(flag) for flag in (*files, "--output", tmp_path / "m.json", "--smooth_windows", "0")]
    charades.main(flags)
    found = json.loads((tmp_path / "m.json").read_text())["protocols"]["fixed_threshold_w0_t0.50"]
    for metric in grid_search.GROUNDING:
        assert 100 * result["untuned"][metric] == pytest.approx(found[metric]["mean"]), metric
    charades.main([*flags, "--weights", str(tmp_path / "grid.json")])
    assert json.loads((tmp_path / "m.json").read_text())["protocols"]["fixed_threshold_w0_t0.50"]["mIoU"]["mean"] == 100


def test_hisum_is_tuned_on_other_videos(tmp_path):
    write_hisum(tmp_path)
    entries = []
    with h5py.File(tmp_path / "mr_hisum.h5") as file:
        for key in file:
            truth = np.asarray(file[key]["gtscore"])
            noise = np.random.default_rng(len(truth)).random(len(truth))
            rows = [
                {"time": float(t), "informative_score": float(truth[t]), "relevance_score": float(noise[t]), "uncertainty_score": 0.2}
                for t in range(len(truth))
            ]
            entries.append({"video_uuid": key, "debug_data": rows})
    (tmp_path / "p.json").write_text(json.dumps(entries))
    files = ["--predictions", tmp_path / "p.json", "--annotations", tmp_path / "mr_hisum.h5"]
    result = tuned(tmp_path, "--dataset", "hisum", "--objective", "spearman", *files)
    assert (result["best"]["alpha"], result["best"]["beta"]) == (1, 0)
    assert result["cross_validation"]["mean"]["spearman"] == pytest.approx(1) and result["untuned"]["spearman"] < 0.9
    with pytest.raises(UserError, match="mIoU is none of hisum"):
        tuned(tmp_path, "--dataset", "hisum", "--objective", "mIoU", *files)
