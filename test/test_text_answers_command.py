"""`--answers text` through the commands: what the released code prints for answers of offline models."""

from __future__ import annotations

import json

import pytest
from paths import shared_fixture

from aha.errors import UserError
from aha.eval import charades, magqa, qvhighlights, youcook2
from aha.metrics.java_captions import why_no_java

needs_java = pytest.mark.skipif(why_no_java() is not None, reason=f"METEOR: {why_no_java()}")


def fixture(name: str):
    return shared_fixture(f"published/{name}")


def run(tmp_path, command, predictions, annotations, *more):
    output = tmp_path / "m.json"
    flags = ["--predictions", predictions, "--annotations", annotations, "--answers", "text", "--output", output, *more]
    command.main([str(flag) for flag in flags])
    return json.loads(output.read_text())


def test_grounding_equals_the_released_code(tmp_path):
    golden = json.loads(fixture("text_grounding_golden.json").read_text())
    document = run(tmp_path, charades, fixture("text_grounding_pred.jsonl"), fixture("text_grounding_gold.json"))
    for protocol, key in (
        ("text_grounding", "released_code_unparsed_left_out"),
        ("text_grounding_unparsed_zero", "own_only_unparsed_count_zero"),
    ):
        for metric, value in golden[key].items():
            assert document["protocols"][protocol][metric]["mean"] == pytest.approx(value, abs=1e-6), (protocol, metric)
    assert document["protocols"]["text_grounding"]["mIoU"]["videos"] == golden["parsed"]
    assert document["videos"]["scored"] == golden["answers"]


@needs_java
@pytest.mark.parametrize("form", ["timechat", "vtimellm"])
def test_captions_equal_what_the_released_code_prints(tmp_path, form):
    printed = json.loads(fixture("text_captions_golden.json").read_text())[form]["printed_by_released_code"]
    document = run(tmp_path, youcook2, fixture(f"text_captions_{form}_pred.jsonl"), fixture("text_captions_gold.json"))
    found = document["protocols"]["dense_captioning"]
    for metric, value in printed.items():
        ours = {"SODA_c_2": "SODA_c_released_code"}.get(metric, metric)
        if metric != "SODA_c_1":
            scale = 1 if metric == "n_preds" else 100
            assert scale * found[ours]["mean"] == pytest.approx(value, abs=0.0500001), metric


def test_windows_of_words_and_bad_files(tmp_path):
    gold = {
        "qid": 1,
        "vid": "v",
        "query": "a dog",
        "duration": 20,
        "relevant_clip_ids": [2],
        "saliency_scores": [[4, 4, 4]],
        "relevant_windows": [[4, 6]],
    }
    (tmp_path / "gt.jsonl").write_text(json.dumps(gold))
    predictions = tmp_path / "p.jsonl"
    predictions.write_text(json.dumps({"qid": 1, "vid": "v", "model_response": ["From 30 to 20"], "video_duration": 20}))
    document = run(tmp_path, qvhighlights, predictions, tmp_path / "gt.jsonl")
    assert document["protocols"]["moment_retrieval"]["MR-full-R1@0.7"]["mean"] == 100
    predictions.write_text(json.dumps({"qid": 1, "vid": "v", "pred_relevant_windows": [[0, 1, 1]], "video_duration": 20}))
    with pytest.raises(UserError, match="has no model_response"):
        run(tmp_path, qvhighlights, predictions, tmp_path / "gt.jsonl")


def test_magqa_answers_become_timed_replies(tmp_path):
    gold = [{"question_id": "q", "video": "v", "conversation": [{"role": "user", "content": "what?", "time": 0}], "answer": [{"role": "assistant", "time": [0, 5], "content": "a dog"}]}]  # fmt: skip
    (tmp_path / "gt.json").write_text(json.dumps(gold))
    answer = {"question_id": "q", "model_response": ["1.0 - 3.0 seconds, a dog\n8.0 - 9.0 seconds, a cat"], "video_duration": 10.0}
    (tmp_path / "p.jsonl").write_text(json.dumps(answer))
    batch = ["--judge", "batch", "--judge_model", "m", "--batch_dir", tmp_path / "batch", "--judge_cache", tmp_path / "cache.jsonl"]
    with pytest.raises(UserError, match="1 answers are not graded yet"):  # the reply at 2 s; the one at 8.5 s is in no span
        run(tmp_path, magqa, tmp_path / "p.jsonl", tmp_path / "gt.json", *batch)
    request = json.loads((tmp_path / "batch/input.jsonl").read_text())
    assert "Given answer: a dog" in request["body"]["messages"][1]["content"]
