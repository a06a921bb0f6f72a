"""Each importer: a file as the other code writes it -> our prediction file -> the same scores, windows and words."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture

from aha.core.fusion import Fusion
from aha.core.prediction import read_predictions
from aha.errors import UserError
from aha.eval import importers
from aha.eval.community import read_h5
from aha.metrics import keyshots_h5

PICKS = np.array([0, 15, 30])


@pytest.fixture
def data_set(tmp_path):
    path = tmp_path / "eccv16.h5"
    with h5py.File(path, "w") as file:
        for name in ("video_1", "video_2", "video_10"):
            for key, value in {
                "user_summary": np.ones((2, 40)),
                "change_points": [[0, 19], [20, 39]],
                "n_frames": 40,
                "picks": PICKS,
            }.items():
                file.create_dataset(f"{name}/{key}", data=value)
    return path


def run(tmp_path, *arguments, output="predictions.json"):
    importers.main([*map(str, arguments), "--output", str(tmp_path / output)])
    return list(read_predictions(tmp_path / output))


SCORES = {"video_1": [0.1, 0.25, 0.9], "video_2": [0.3, 0.3, 1 / 3], "video_10": [1.5, -2.0, 0.0]}


def written(tmp_path, form):
    if form == "npy":
        (tmp_path / "scores").mkdir()
        for name, scores in SCORES.items():
            np.save(tmp_path / "scores" / f"{name}.npy", np.array(scores)[None])
        return tmp_path / "scores"
    path = tmp_path / f"scores.{form.split('-')[0]}"
    if form == "json":
        path.write_text(json.dumps(SCORES))
    elif form == "npz":
        np.savez(path, **SCORES)
    else:
        with h5py.File(path, "w") as file:
            for name, scores in SCORES.items():
                file.create_dataset(name if form == "h5-plain" else f"{name}/score", data=scores)
    return path


@pytest.mark.parametrize("form", ["json", "npy", "npz", "h5-plain", "h5-group"])
@pytest.mark.parametrize("source", ["pgl-sum", "csta"])
def test_scores_at_picks(tmp_path, data_set, source, form):
    found = run(tmp_path, written(tmp_path, form), "--source", source, "--h5", data_set)
    assert [prediction.video_id for prediction in found] == ["video_1", "video_2", "video_10"]
    for prediction in found:
        samples = prediction.samples(Fusion())
        assert samples.scores.tolist() == SCORES[prediction.video_id] and samples.frames.tolist() == PICKS.tolist()


@pytest.mark.parametrize("form", ["json", "npy", "h5-plain"])
def test_scores_every_second(tmp_path, form):
    for prediction in run(tmp_path, written(tmp_path, form), "--source", "triplesumm"):
        samples = prediction.samples(Fusion())
        assert samples.scores.tolist() == SCORES[prediction.video_id] and samples.times.tolist() == [0, 1, 2]


def test_an_imported_file_scores_as_the_released_code_says(tmp_path):
    """PGL-SUM's own layout, made of a golden predictor that scores the picks: the golden F."""
    h5 = shared_fixture("published/eccv16_dataset_summe_synthetic.h5")
    golden = json.loads(shared_fixture("published/summe_golden.json").read_text())["predictors"]["ties"]["per_video"]
    given_scores = json.loads(shared_fixture("published/summe_pred_ties.json").read_text())["videos"]
    (tmp_path / "SumMe_199.json").write_text(json.dumps({name: video["scores"] for name, video in given_scores.items()}))
    videos = read_h5(h5)
    found = run(tmp_path, tmp_path / "SumMe_199.json", "--source", "pgl-sum", "--h5", h5)
    assert len(found) == len(golden)
    for prediction in found:
        samples, truth = prediction.samples(Fusion()), videos[prediction.video_id].truth
        summary = keyshots_h5.machine_summary(keyshots_h5.frame_scores(samples.frames, samples.scores, truth.n_frames), truth.shots)
        assert keyshots_h5.f_scores(summary, truth)["f_max"] == pytest.approx(golden[prediction.video_id]["f_max"], abs=1e-6)


@pytest.mark.parametrize("source", ["lighthouse", "moment_detr"])
def test_clips_and_windows(tmp_path, source):
    line = {
        "qid": 7,
        "query": "a dog",
        "vid": "abc_0_10",
        "pred_relevant_windows": [[0, 4.5, 0.9], [6, 10, 0.1]],
        "pred_saliency_scores": [1, -2.5],
    }
    path = tmp_path / "hl_val_submission.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "qid": 8, "pred_relevant_windows": None}))
    first, second = run(tmp_path, path, "--source", source, output="predictions.jsonl")
    assert (first.question_id, first.video_id) == ("7", "abc_0_10")
    assert first.windows().tolist() == [[0, 4.5, 0.9], [6, 10, 0.1]] and second.clip_scores().tolist() == [1, -2.5]
    assert first.samples(Fusion()).scores.tolist() == [1, -2.5]


def test_mmduet_rows_hold_both_classes(tmp_path):
    entry = {
        "question_id": "q1", "video_duration": 3.0,
        "debug_data": [{"time": 0.0, "informative_score": [0.7, 0.3], "relevance_score": [0.9, 0.1]}, {"time": 1.0, "informative_score": [0.5, 0.5]}],
        "model_response_list": [{"role": "user", "time": 0, "content": "what"}, {"role": "assistant", "time": 1.0, "content": "a dog"}],
    }  # fmt: skip
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps(entry))
    (found,) = run(tmp_path, path, "--source", "mmduet")
    times, scores = found.timed_scores(Fusion())
    assert (times.tolist(), scores.tolist()) == ([0, 1], [0.1, 0.0])
    assert found.replies() == [(1.0, "a dog")] and found.head("informative_score").tolist() == [0.3, 0.5]


def test_aha_rows_hold_three_numbers(tmp_path):
    rows = [{"video_time": t, "informative_score": 0.2, "relevance_score": 0.4 + t, "uncertainty_score": 0.05} for t in (0.0, 0.5)]
    (tmp_path / "a.json").write_text(json.dumps([{"video_uuid": "v", "true_frames_list": [0, 12], "debug_data": rows}]))
    (found,) = run(tmp_path, tmp_path / "a.json", "--source", "aha")
    samples = found.samples(Fusion(1.0, 1.0, 2.0, 0.0))
    assert samples.scores == pytest.approx([0.5, 1.0]) and samples.frames.tolist() == [0, 12]


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.from_regex(r"video_[1-9][0-9]?", fullmatch=True), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), min_size=1)
)
def test_no_score_is_rounded_or_lost(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("scores")
    (folder / "s.json").write_text(json.dumps(table))
    found = run(folder, folder / "s.json", "--source", "triplesumm")
    assert {prediction.video_id: prediction.samples(Fusion()).scores.tolist() for prediction in found} == table


@pytest.mark.parametrize(
    ("content", "source", "said"),
    [
        ("{}", "pgl-sum", "holds no scores"),
        ('{"video_3": [1, 2, 3]}', "pgl-sum", "video_3 is not in"),
        ('{"video_1": [1]}', "csta", "1 scores for 3 picks"),
        ('{"video_1": [1, null, 2]}', "csta", "no list of numbers"),
        ('{"video_1": ["a"]}', "csta", "no list of numbers"),
        ("[1]", "triplesumm", "is no object"),
        ('{"qid": 1, "vid": "a"}', "lighthouse", "neither pred_saliency_scores"),
        ('{"qid": 1, "pred_relevant_windows": [[3, 1]]}', "moment_detr", "ends .* before it starts"),
        ('{"question_id": 1}', "mmduet", "neither debug_data"),
        ('{"question_id": 1, "debug_data": [{"time": 0, "relevance_score": [1, 2, 3]}]}', "aha", "frame 0: relevance_score"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, data_set, content, source, said):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=said):
        importers.import_predictions(tmp_path / "bad.json", source, data_set if source in ("pgl-sum", "csta") else None)


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "video_1.npy", np.array([{"video_1": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="pickled object could run any program"):
        importers.import_predictions(tmp_path, "triplesumm")
