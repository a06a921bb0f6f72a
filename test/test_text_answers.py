"""Free-text answers of other models, on golden data and as properties."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import shared_fixture

from aha.core import text_answers


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in shared_fixture(f"published/{name}.jsonl").read_text().splitlines()]


def document(name: str):
    return json.loads(shared_fixture(f"published/{name}.json").read_text())


def test_grounding_equals_the_released_code():
    golden = document("text_grounding_golden")
    gold = {entry["question_id"]: tuple(entry["timestamps"][0]) for entry in document("text_grounding_gold")}
    answers = {entry["question_id"]: entry for entry in lines("text_grounding_pred")}
    ious = []
    for want in golden["per_answer"]:
        answer = answers[want["question_id"]]
        span = text_answers.grounding_span(answer["model_response"][0], answer["video_duration"])
        if want["span"] is None:
            assert span is None
            continue
        assert span == pytest.approx(want["span"], abs=1e-9)
        ious.append(text_answers.span_iou(span, gold[want["question_id"]]))
        assert ious[-1] == pytest.approx(want["iou_with_first_gold_span"], abs=1e-9)
    means = golden["released_code_unparsed_left_out"]
    assert (len(answers), len(ious)) == (golden["answers"], golden["parsed"])
    assert 100 * np.mean(ious) == pytest.approx(means["mIoU"])
    assert [100 * np.mean(np.array(ious) >= t) for t in (0.3, 0.5, 0.7)] == pytest.approx([means[f"R@{t}"] for t in (0.3, 0.5, 0.7)])


@pytest.mark.parametrize("form", ["timechat", "vtimellm"])
def test_captions_and_turns_equal_the_released_code(form):
    golden = document("text_captions_golden")[form]
    assert text_answers.form_of(f"outputs/{form}/predictions.jsonl") == form
    for entry in lines(f"text_captions_{form}_pred"):
        response, duration = entry["model_response"], entry["video_duration"]
        text = response[0] if isinstance(response, list) else response
        found = text_answers.captions(text, duration, form)
        want = golden["captions"][entry["question_id"]]
        assert [caption.text for caption in found] == [caption["caption"] for caption in want]
        times = [time for caption in found for time in (caption.start, caption.end)]
        assert times == pytest.approx([time for caption in want for time in caption["timestamp"]])
        turns = text_answers.turns(text, duration)
        assert turns == [(pytest.approx(turn["time"]), turn["content"]) for turn in golden["magqa_turns"][entry["question_id"]]]


seconds = st.decimals(0, 500, places=1).map(float)
durations = st.floats(1, 1000)
words = st.text("abcdefghij ", min_size=1, max_size=20).map(str.strip).filter(bool)


@given(seconds, seconds, durations)
def test_the_same_two_numbers_are_seconds_or_percent(start, end, duration):
    assert text_answers.grounding_span(f"between {start} and {end} s", duration) == (start, end)
    assert text_answers.grounding_span(f"From {start} to {end} seconds.", duration) == pytest.approx(
        (start * duration / 100, end * duration / 100)
    )


@given(st.lists(seconds, max_size=5).filter(lambda numbers: len(numbers) != 2), durations)
def test_any_other_count_of_numbers_is_no_answer(numbers, duration):
    assert text_answers.grounding_span(" and ".join(map(str, numbers)), duration) is None


@given(st.lists(st.tuples(seconds, seconds, words), max_size=5), durations)
def test_timechat_form_is_read_back(captions, duration):
    text = "\n".join(f"{start} - {end} seconds, {said}" for start, end, said in captions)
    found = text_answers.captions(text, duration, "timechat")
    assert [(caption.start, caption.end, caption.text) for caption in found] == captions


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), words), max_size=5), durations)
def test_vtimellm_form_is_read_back(captions, duration):
    text = "\n".join(f"From {start:02d} to {end:02d}, {said}" for start, end, said in captions)
    found = text_answers.captions(text, duration, "vtimellm")
    assert [caption.text for caption in found] == [said for *_, said in captions]
    assert [100 * caption.start / duration for caption in found] == pytest.approx([start for start, *_ in captions])


@given(st.text(), durations)
def test_any_text_is_read_without_error_and_never_loses_a_magqa_answer(text, duration):
    text_answers.grounding_span(text, duration)
    assert text_answers.turns(text, duration)


@given(st.tuples(seconds, seconds), st.tuples(seconds, seconds))
def test_iou_lies_between_0_and_1(answered, gold):
    iou = text_answers.span_iou(answered, tuple(sorted(gold)))
    assert 0 <= iou <= 1
    assert text_answers.span_iou(tuple(sorted(gold)), tuple(sorted(gold))) == 1
