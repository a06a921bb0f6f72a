"""YouCook2 dense captioning: golden numbers with and without Java, merging of replies, bad input."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import shared_fixture

from aha.errors import UserError
from aha.eval import youcook2
from aha.eval.youcook2 import read_youcook2
from aha.metrics import captions
from aha.metrics.java_captions import simple_words, treebank_words, why_no_java

needs_java = pytest.mark.skipif(why_no_java() is not None, reason=f"METEOR and the Treebank tokenizer: {why_no_java()}")


def run(tmp_path, *arguments):
    output = tmp_path / "metrics.json"
    youcook2.main([*map(str, arguments), "--output", str(output)])
    return json.loads(output.read_text())


def golden_run(tmp_path, *arguments):
    return run(
        tmp_path, "--predictions", shared_fixture("eval/dvc_pred.json"), "--annotations", shared_fixture("eval/dvc_gold.json"), *arguments
    )


def test_without_java_equals_golden(tmp_path, capsys):
    golden = json.loads(shared_fixture("eval/dvc_golden.json").read_text())["java_free"]
    document = golden_run(tmp_path, "--no_java")
    found = document["protocols"]["dense_captioning"]
    for name, value in golden["mean"].items():
        assert found[name]["mean"] == pytest.approx(value, abs=1e-6), name
    for row in golden["per_video"]:
        for name, value in row.items():
            if name != "key":
                assert found[name]["per_video"][row["key"]] == pytest.approx(value, abs=1e-6), (row["key"], name)
    assert set(document["missing_metrics"]) == {"METEOR", "SODA_c", "SODA_c_released_code", "Para_METEOR"}
    assert "switched off" in capsys.readouterr().out


def test_missing_java_is_said_in_the_column(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(golden_run(tmp_path)["missing_metrics"].values()) == {"needs Java"}
    assert "needs Java" in capsys.readouterr().out


@needs_java
def test_with_java_equals_golden(tmp_path):
    golden = json.loads(shared_fixture("eval/dvc_golden.json").read_text())["java_full"]
    found = golden_run(tmp_path)["protocols"]["dense_captioning"]
    for name, ours in (("SODA_c_2", "SODA_c"), ("METEOR", "METEOR"), ("CIDER", "CIDER"), ("F1_Score", "F1_Score"), ("n_preds", "n_preds")):
        assert found[ours]["mean"] == pytest.approx(golden["mean"][name], abs=1e-6), name
        per_video = dict(zip(golden["order"], golden["per_video"][name]))
        assert found[ours]["per_video"] == pytest.approx(per_video, abs=1e-6), name


@needs_java
def test_simple_words_agree_with_the_treebank_on_ordinary_captions():
    texts = [
        "Don't add the onions, it's too hot.",
        "add salt & pepper",
        "cut into 1-inch pieces; mix well!",
        "chop\nthe onion",
        "the chef's knife",
    ]
    for text, theirs in zip(texts, treebank_words(texts)):
        assert list(simple_words(text)) == [word for word in theirs if word != "&"]


# ---------------------------------------------------------------- parts


def test_consecutive_equal_replies_are_one_caption():
    replies = [(2.0, "cut"), (4.0, "cut"), (6.0, "fry"), (9.0, "cut")]
    kept = youcook2.merge_replies(replies)
    assert kept.texts == ["cut", "fry", "cut"]
    np.testing.assert_array_equal(kept.segments, [[0, 4], [4, 6], [6, 9]])
    assert youcook2.merge_replies(replies, "drop").texts == ["fry", "cut"]
    assert youcook2.merge_replies([]).segments.shape == (0, 2)


@given(st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_ordered_assignment_equals_brute_force(n_predicted, n_gold, random):
    score = np.array([[random.choice([0.0, random.random()]) for _ in range(n_gold)] for _ in range(n_predicted)])
    best = 0.0
    for size in range(1, min(n_predicted, n_gold) + 1):
        for rows in itertools.combinations(range(n_predicted), size):
            for columns in itertools.combinations(range(n_gold), size):
                best = max(best, score[list(rows), list(columns)].sum())
    assert captions.best_ordered_sum(score) == pytest.approx(best)


def test_cider_of_equal_captions_is_ten_and_of_one_pair_nothing():
    words = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert captions.cider_d([(w, w) for w in words]) == pytest.approx(10)
    assert captions.cider_d([(words[0], words[0])]) == 0  # its document frequency is that of the only document
    assert captions.cider_d([(words[0], words[0]), (words[1], None)]) == pytest.approx(5)
    longer = [(words[0] + ["x"] * 6, words[0]), (words[1], words[1])]
    assert captions.cider_d(longer) < 5 + 5 * math.exp(-(6**2) / 72)


# ---------------------------------------------------------------- published layouts and bad input


def published(tmp_path):
    path = tmp_path / "youcookii_annotations_trainval.json"
    entry = {"duration": 60.0, "recipe_type": "113", "annotations": [
        {"segment": [0, 10], "id": 0, "sentence": "cut the onion"}, {"segment": [10, 30], "id": 1, "sentence": "fry the onion"},
    ]}  # fmt: skip
    path.write_text(json.dumps({"database": {"v1": {**entry, "subset": "validation"}, "v2": {**entry, "subset": "training"}}}))
    return path


def test_replies_against_the_published_annotations(tmp_path):
    annotations = published(tmp_path)
    assert [(q.key, q.video) for q in read_youcook2(annotations)] == [("v1", "validation/113/v1")]
    predictions = tmp_path / "predictions.jsonl"
    turns = [{"role": "user", "content": "?", "time": 0}, {"role": "assistant", "content": "Cut the onion.", "time": 5.0},
             {"role": "assistant", "content": "Cut the onion.", "time": 10.0}, {"role": "assistant", "content": "Fry the onion.", "time": 30.0}]  # fmt: skip
    predictions.write_text(json.dumps({"question_id": "v1", "model_response_list": turns}))
    document = run(tmp_path, "--predictions", predictions, "--annotations", annotations, "--no_java", "--report", tmp_path / "report")
    found = document["protocols"]["dense_captioning"]
    assert found["F1_Score"]["mean"] == 1
    assert found["CIDER"]["mean"] > 0
    assert (tmp_path / "report" / "report.html").exists()


def test_a_video_without_captions_counts_zero(tmp_path):
    predictions = tmp_path / "predictions.json"
    predictions.write_text('{"v1": []}')
    found = run(tmp_path, "--predictions", predictions, "--annotations", published(tmp_path), "--no_java")["protocols"]["dense_captioning"]
    assert {metric["mean"] for metric in found.values()} == {0}


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"v1": [{"timestamp": [3, 1], "caption": "x"}]}', "ends"),
        ('{"v1": [{"timestamp": [0, 1]}]}', "no object with timestamp and caption"),
        ('[{"question_id": "v1"}]', "no model_response_list"),
        ('[{"question_id": "v1", "model_response_list": [{"role": "assistant", "content": "x"}]}]', "time of reply 0 is missing"),
        ('{"other": []}', "different data sets"),
    ],
)
def test_bad_predictions_are_named(tmp_path, content, message):
    predictions = tmp_path / "predictions.json"
    predictions.write_text(content)
    with pytest.raises(UserError, match=message):
        run(tmp_path, "--predictions", predictions, "--annotations", published(tmp_path), "--no_java")
