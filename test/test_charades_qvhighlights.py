"""Charades-STA and QVHighlights: golden numbers, published annotation layouts, bad input."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture

from aha.errors import UserError
from aha.eval import charades, qvhighlights
from aha.eval.charades import read_charades
from aha.eval.qvhighlights import read_qvhighlights
from aha.metrics import grounding, moments


def run(module, tmp_path, *arguments):
    output = tmp_path / "metrics.json"
    module.main([*map(str, arguments), "--output", str(output)])
    return json.loads(output.read_text())


def means(document, protocol):
    return {name: metric["mean"] for name, metric in document["protocols"][protocol].items()}


# ---------------------------------------------------------------- golden


def test_charades_windows_equal_golden(tmp_path):
    golden = json.loads(shared_fixture("eval/charades_golden.json").read_text())
    document = run(
        charades,
        tmp_path,
        "--predictions",
        shared_fixture("eval/charades_pred.jsonl"),
        "--annotations",
        shared_fixture("eval/charades_gt.jsonl"),
    )
    found = means(document, "univtg_windows")
    exact = golden["unrounded"]
    assert found["mIoU"] == pytest.approx(exact["mIoU"], abs=1e-6)
    for threshold, value in exact["R@1"].items():
        assert found[f"R@1@{threshold}"] == pytest.approx(value, abs=1e-6)
    for threshold, value in exact["mAP"].items():
        assert found["mAP" if threshold == "average" else f"mAP@{threshold}"] == pytest.approx(value, abs=1e-6)
    official = {key: value for key, value in golden.items() if key != "unrounded"}
    assert document["official_rounded_2_decimals"] == official


def test_papers_windows_stand_beside_ours_on_the_whole_test_set(tmp_path):
    files = ("--predictions", shared_fixture("eval/charades_pred.jsonl"), "--annotations", shared_fixture("eval/charades_gt.jsonl"))
    for more, comparable in ((), True), (("--limit", "1"), False):
        rows = run(charades, tmp_path, *files, "--published", *more)["published"]
        assert {row["comparable"] for row in rows if row["protocol"] == "univtg_windows"} == {comparable}


def test_grounding_from_scores_equals_golden(tmp_path):
    golden = json.loads(shared_fixture("eval/grounding_golden.json").read_text())
    weights = golden["score_parameters"]
    document = run(
        charades, tmp_path, "--predictions", shared_fixture("eval/grounding_pred.jsonl"),
        "--annotations", shared_fixture("eval/grounding_gold.json"), "--alpha", weights["alpha"], "--beta", weights["beta"],
        "--epsilon", weights["epsilon"], "--uncertainty_threshold", weights["uncertainty_threshold"],
    )  # fmt: skip
    sweep = document["sweep"]
    found = {(row["smooth_window_size"], round(row["threshold"], 2)): row["scores"] for row in sweep["fixed_threshold"]}
    for row in golden["fixed_threshold"]:
        assert found[row["smooth_window_size"], round(row["threshold"], 2)] == pytest.approx(row["scores"], abs=1e-6)
    for window, scores in golden["best_threshold_per_example"].items():
        assert [round(x, 2) for x in sweep["best_threshold_per_example"][window]] == scores
    assert document["videos"]["constant"] == ["q6"]
    # the protocols of the file are rows of the sweep
    assert list(means(document, "best_threshold_per_example_w8").values()) == pytest.approx(sweep["best_threshold_per_example"]["8"])


def test_qvhighlights_equals_golden(tmp_path):
    golden = json.loads(shared_fixture("eval/qvh_golden.json").read_text())
    document = run(
        qvhighlights, tmp_path, "--predictions", shared_fixture("eval/qvh_pred.jsonl"), "--annotations", shared_fixture("eval/qvh_gt.jsonl")
    )
    found = means(document, "moment_retrieval") | means(document, "highlight_detection")
    for name, value in golden["unrounded"].items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    rounded = golden["official_rounded_2_decimals"]
    assert document["official_rounded_2_decimals"] == rounded["brief"]
    for length in ("full", "short", "middle", "long"):
        for ours, official in (("mAP", "MR-mAP"), ("R1", "MR-R1")):
            for threshold, value in rounded[length][official].items():
                name = f"MR-{length}-{ours}" + ("" if threshold == "average" else f"@{threshold}")
                assert round(found[name], 2) == value, name


# ---------------------------------------------------------------- definitions


def test_hit1_beyond_the_table_is_a_miss_and_map_pads():
    table = np.zeros((3, 3))
    table[2] = [0, 0, 4]
    late = moments.highlight_metrics(np.array([0.1, 0.2, 0.3, 0.9]), table)
    assert late["HL-min-VeryGood-Hit1"] == 0
    assert late["HL-min-VeryGood-mAP"] == pytest.approx(100 / 3)  # one of three workers has a positive
    short = moments.highlight_metrics(np.array([-1.0]), table)  # two clips are padded with 0, above -1
    assert short["HL-min-Fair-mAP"] == pytest.approx(100 / 6)


def test_first_listed_window_counts_not_the_best_scored():
    windows, truth = np.array([[0.0, 10.0, 0.1], [20.0, 30.0, 0.9]]), np.array([[20.0, 30.0]])
    found = moments.retrieval_metrics([windows], [truth])
    assert found["MR-full-R1@0.5"][0] == 0
    assert found["MR-full-mAP@0.5"][0] == 100


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 6))
def test_smoothing_is_a_box_cut_at_the_ends(scores, window):
    smoothed = grounding.smooth(np.array(scores), window)
    assert smoothed[0] == pytest.approx(np.mean(scores[: window + 1]))
    assert smoothed[-1] == pytest.approx(np.mean(scores[-window - 1 :]))


def test_windows_from_scores_are_runs_ranked_by_mean():
    found = moments.windows_from_scores(np.array([0.0, 1.0, 0.6, 0.0, 0.7]), 2.0 * np.arange(5), 2.0, 0.5)
    np.testing.assert_allclose(found, [[2.0, 6.0, 0.8], [8.0, 10.0, 0.7]])
    assert moments.windows_from_scores(np.ones(5), np.arange(5.0), 1.0, 0.5).shape == (0, 3)


# ---------------------------------------------------------------- published layouts


def frames(question_id, scores, fps=1.0):
    return {"question_id": question_id, "debug_data": [{"time": i / fps, "relevance_score": s} for i, s in enumerate(scores)]}


def test_published_charades_text_file(tmp_path):
    annotations = tmp_path / "charades_sta_test.txt"
    annotations.write_text("3MSZA 2.0 4.0##person turn a light on.\n3MSZA 0.0 1.0##person flip the light switch.\n")
    assert [q.key for q in read_charades(annotations)] == ["3MSZA-1", "3MSZA-2"]
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps([frames("3MSZA-1", [0, 0, 1, 1, 1, 0])]))
    document = run(charades, tmp_path, "--predictions", predictions, "--annotations", annotations, "--report", tmp_path / "report")
    assert means(document, "fixed_threshold_w0_t0.50")["mIoU"] == 100
    assert document["videos"]["skipped"] == {"3MSZA-2": "no prediction"}
    assert "3MSZA-1" in (tmp_path / "report" / "report.html").read_text()
    with pytest.raises(UserError, match="no prediction for 1 .3MSZA-2., and --strict"):
        run(charades, tmp_path, "--predictions", predictions, "--annotations", annotations, "--strict")


def test_mmduet_files_with_two_class_scores_and_video_time(tmp_path):
    annotations, predictions = tmp_path / "test-random_prompt.json", tmp_path / "predictions.jsonl"
    annotations.write_text(json.dumps([
        {"question_id": "a", "video": "a.mp4", "conversation": [{"role": "user", "content": "when?", "time": 0}], "timestamps": [[1, 2]]}
    ]))  # fmt: skip
    heads = [{"video_time": float(i), "relevance_score": [1 - s, s]} for i, s in enumerate([0.1, 0.9, 0.8, 0.1])]
    predictions.write_text(json.dumps({"question_id": "a", "debug_data": heads}))
    assert (
        means(run(charades, tmp_path, "--predictions", predictions, "--annotations", annotations), "fixed_threshold_w0_t0.50")["R@0.7"]
        == 100
    )


def test_qvhighlights_from_frame_scores(tmp_path):
    annotations, predictions = tmp_path / "highlight_val_release.jsonl", tmp_path / "predictions.json"
    annotations.write_text(json.dumps({
        "qid": 7, "query": "a dog", "duration": 8, "vid": "x_60.0_210.0", "relevant_clip_ids": [2], "saliency_scores": [[4, 4, 4]],
        "relevant_windows": [[4, 6]],
    }))  # fmt: skip
    predictions.write_text(json.dumps([frames("7", [0.1, 0.1, 0.2, 0.1, 0.9, 0.8, 0.1, 0.1])]))
    document = run(qvhighlights, tmp_path, "--predictions", predictions, "--annotations", annotations, "--windows_from_scores", 0.5)
    assert means(document, "highlight_detection")["HL-min-VeryGood-Hit1"] == 100
    assert means(document, "moment_retrieval_from_scores")["MR-full-R1@0.7"] == 100
    assert read_qvhighlights(annotations)[0].queries == ((0.0, "a dog"),)


# ---------------------------------------------------------------- bad input

GOOD = {"question_id": "a", "debug_data": [{"time": 0.0, "relevance_score": 0.5}, {"time": 1.0, "relevance_score": 0.6}]}
BAD = [
    ("", "holds no predictions"),
    ("[]", "holds no predictions"),
    ("[1]", "is no object"),
    ('{"question_id": "a"', "not valid JSON"),
    ('[{"debug_data": []}]', "no video id"),
    (json.dumps([GOOD, GOOD]), "answered twice"),
    ('[{"question_id": "a", "debug_data": []}]', "no debug_data"),
    ('[{"question_id": "a", "debug_data": [3]}]', "frame 0 of debug_data is no object"),
    ('[{"question_id": "a", "debug_data": [{"time": 0, "relevance_score": NaN}]}]', "relevance_score 0 is nan"),
    ('[{"question_id": "a", "debug_data": [{"time": 0, "relevance_score": true}]}]', "relevance_score 0 is True"),
    ('[{"question_id": "a", "debug_data": [{"relevance_score": 1}]}]', "time 0 is null"),
    ('[{"question_id": "a", "debug_data": [{"time": 1, "relevance_score": 1}, {"time": 1, "relevance_score": 1}]}]', "times ascend"),
    ('[{"question_id": "zzz", "debug_data": [{"time": 0, "relevance_score": 1}]}]', "different data sets"),
    ('[{"question_id": "a", "pred_relevant_windows": [[3, 1]]}]', "ends .1 s. before it starts"),
    ('[{"question_id": "a", "pred_relevant_windows": 4}]', "pred_relevant_windows is no list"),
]


@pytest.mark.parametrize("content, message", BAD)
def test_bad_predictions_are_named(tmp_path, content, message):
    annotations, predictions = tmp_path / "gold.json", tmp_path / "predictions.json"
    annotations.write_text('[{"question_id": "a", "timestamps": [[0, 1]]}]')
    predictions.write_text(content)
    with pytest.raises(UserError, match=message):
        charades.main(["--predictions", str(predictions), "--annotations", str(annotations)])


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "no such form", "a.txt:1 is not of the form"),
        ("a.json", '[{"question_id": "a"}]', "no timestamps"),
        ("a.json", '[{"question_id": "a", "timestamps": [[0, 1]]}, {"question_id": "a", "timestamps": [[0, 1]]}]', "listed twice"),
    ],
)
def test_bad_charades_annotations_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_charades(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_files_never_end_in_a_traceback(tmp_path_factory, data):
    """Random edits of a good file: accepted or refused with a sentence, never another exception."""
    folder = tmp_path_factory.mktemp("mutated")
    gold = json.dumps([{"question_id": "a", "timestamps": [[0, 1]], "relevant_windows": [[0, 1]]}])
    texts = [gold, json.dumps([GOOD])]
    which = data.draw(st.integers(0, 1))
    text = list(texts[which])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position] = data.draw(st.sampled_from(["", '"', "[", "]", "{", "}", "-", "1e999", "null", ",", "NaN", "\ufffd", "9" * 30]))
    texts[which] = "".join(text)
    for name, content in zip(("gold.json", "predictions.json"), texts):
        (folder / name).write_text(content)
    with contextlib.suppress(UserError):
        charades.main(["--predictions", str(folder / "predictions.json"), "--annotations", str(folder / "gold.json")])
