"""Dense captioning with more than ten captions, paragraphs, and YouTube Highlights' AP: golden numbers of the released code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import shared_fixture

from aha.eval import youcook2
from aha.metrics import captions
from aha.metrics.highlights import all_clips_ap
from aha.metrics.java_captions import Meteor, why_no_java

needs_java = pytest.mark.skipif(why_no_java() is not None, reason=f"METEOR: {why_no_java()}")


def document(name: str):
    return json.loads(shared_fixture(f"published/{name}.json").read_text())


def clean(text: str) -> list[str]:
    return text.lower().replace(",", "").replace(".", "").split()


@pytest.fixture(scope="module")
def videos():
    """Each video's gold entry and golden captions."""
    gold = {entry["question_id"]: entry["answer"] for entry in document("dvc_many_gold")}
    return {name: (gold[name], listed) for name, listed in document("dvc_many_golden")["captions"].items()}


def paragraphs(videos) -> list[tuple[list[str], list[str]]]:
    return [
        (
            captions.paragraph_words([caption["caption"] for caption in listed], ". "),
            captions.paragraph_words([answer["content"] for answer in gold], " "),
        )
        for gold, listed in videos.values()
    ]


def test_paragraph_cider_equals_the_released_code(videos):
    assert captions.cider_d(paragraphs(videos)) == pytest.approx(document("dvc_many_golden")["paragraph"]["Para_CIDER"], abs=1e-9)


@needs_java
def test_paragraph_meteor_equals_the_released_code(videos):
    with Meteor() as meteor:
        got = meteor.corpus(paragraphs(videos))[0]
    assert got == pytest.approx(document("dvc_many_golden")["paragraph"]["Para_METEOR"], abs=1e-9)


@needs_java
def test_soda_c_official_and_as_released_differ_from_ten_captions_on(videos):
    golden = document("dvc_many_golden")["per_video"]
    with Meteor() as meteor:
        for name, (gold, listed) in videos.items():
            iou = captions.segment_iou(
                np.array([caption["timestamp"] for caption in listed]).reshape(-1, 2), np.array([answer["time"] for answer in gold])
            )
            words = [clean(answer["content"].replace(". ", ", ")) for answer in gold]
            similarity = meteor.corpus([(g, clean(caption["caption"])) for caption in listed for g in words])[1]
            similarity_PG = np.array(similarity).reshape(iou.shape)
            assert captions.soda_c(iou, similarity_PG) == pytest.approx(golden[name]["SODA_c"], abs=1e-9)
            released = captions.soda_c_released_code(iou, similarity_PG)
            assert released == pytest.approx(golden[name]["SODA_c_released_code"], abs=1e-9)
            assert (released == captions.soda_c(iou, similarity_PG)) == (len(listed) <= 10)
    assert max(len(listed) for _, listed in videos.values()) > 10


@pytest.mark.parametrize("predictor", ["untied", "tied", "const", "longer", "shorter"])
def test_youtube_highlights_ap_equals_umt_and_lighthouse(predictor):
    golden = document("youtube_highlight_golden")[predictor]
    lines = [shared_fixture(f"published/youtube_highlight_{name}.jsonl").read_text() for name in ("synthetic_val", f"pred_{predictor}")]
    truths, predictions = ({entry["vid"]: entry for entry in map(json.loads, text.splitlines())} for text in lines)
    domains: dict[str, list[dict[str, float]]] = {}
    for name, truth in truths.items():
        got = all_clips_ap(np.array(truth["label"])[:, 0], np.array(predictions[name]["pred_saliency_scores"]))
        domains.setdefault(truth["domain"], []).append(got)
        for tie in ("first", "last", "mean"):
            want = golden["per_video"][name][f"ap_tie_{tie}"]
            assert got[f"umt_tie_{tie}"] == pytest.approx(0.0 if want is None else want, abs=1e-9)
    means = {domain: {metric: float(np.nanmean([row[metric] for row in rows])) for metric in rows[0]} for domain, rows in domains.items()}
    for domain, metrics in means.items():
        for metric, value in metrics.items():
            assert value == pytest.approx(golden["domain"][domain][metric], abs=1e-9), (domain, metric)
    for metric, value in golden["mean_of_domains"].items():
        assert np.mean([metrics[metric] for metrics in means.values()]) == pytest.approx(value, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_ap_of_all_clips_lies_between_the_two_orders(clips):
    labels, scores = (np.array(column) for column in zip(*clips))
    got = all_clips_ap(labels, scores)
    low, high = sorted((got["umt_tie_first"], got["umt_tie_last"]))
    assert 0 <= low <= got["umt_tie_mean"] <= high <= 1
    assert np.isnan(got["lighthouse_tie_mean"]) == (not labels.any())
    if labels.all():
        assert low == pytest.approx(1)


@needs_java
def test_the_command_equals_the_released_code_and_the_official_tool(tmp_path):
    golden = document("dvc_many_golden")
    output = tmp_path / "m.json"
    arguments = ["--predictions", "dvc_many_pred.jsonl", "--annotations", "dvc_many_gold.json"]
    arguments = [argument if argument.startswith("--") else str(shared_fixture(f"published/{argument}")) for argument in arguments]
    youcook2.main([*arguments, "--first_caption", "drop", "--output", str(output)])
    found = json.loads(output.read_text())["protocols"]["dense_captioning"]
    for metric, value in {**golden["mean_over_videos"], **golden["paragraph"]}.items():
        if metric not in ("SODA_c_precision", "SODA_c_recall"):
            assert found[metric]["mean"] == pytest.approx(value, abs=1e-6), metric
    for name, numbers in golden["per_video"].items():
        for metric, value in numbers.items():
            if metric in found:
                assert found[metric]["per_video"][name] == pytest.approx(value, abs=1e-6), (name, metric)
    assert found["SODA_c"]["mean"] > found["SODA_c_released_code"]["mean"] + 0.05
