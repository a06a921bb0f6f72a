"""Labels against the golden batches of both families, and their invariants."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_next import PUBLISHED
from paths import shared_fixture

from aha.conversation import DEFAULT_SYSTEM_PROMPT, DuetFormat, Turn, load_tokenizer
from aha.data.collate import collate
from aha.data.labels import (
    dense_caption_turns,
    grounding_turns,
    keep_frames,
    label_arrays,
    question_answer_turns,
    relevance_turns,
    waiting_range,
)

CASES = [(f, n) for f in ("mmduet", "aha") for n in ("dvc", "dvc_clipped", "grounding", "magqa")] + [("aha", "hihd")]


@pytest.fixture(scope="module")
def duet() -> DuetFormat:
    return DuetFormat(load_tokenizer(shared_fixture("reference/mmduet-adapter")))


def annotations(name: str):
    return json.loads(shared_fixture(f"reference/annotations/{name}.json").read_text())


def golden_turns(name: str, case: dict) -> tuple[int, list[Turn]]:
    """Our turns for a golden sample. What the reference drew at random (request, waiting frames) is read off its text."""
    metadata = annotations("videos_metadata")
    landscape = metadata["landscape.mp4"]["duration"]
    fps = case["frame_fps"]
    request = re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", case["text"]).group(1)
    if name.startswith("dvc"):
        return 0, dense_caption_turns(annotations("dvc")["landscape.mp4"]["0"], landscape, fps, request)
    if name == "grounding":
        return 0, grounding_turns(annotations("grounding")[0]["timestamps"], landscape, fps, request)
    if name == "magqa":
        waiting = case["text"].split("<|im_start|>user")[0].count("<image>") // PUBLISHED.tokens
        annotation = annotations("magqa")[0]
        fewest, most = waiting_range(annotation, metadata["portrait.mp4"]["duration"], fps)
        assert fewest <= waiting <= most
        return question_answer_turns(annotation, metadata["portrait.mp4"]["duration"], fps, waiting)
    with open(shared_fixture("reference/annotations/hihd.csv"), newline="") as file:
        row = next(csv.DictReader(file))
    scores = json.loads(row["scores"])[: int(landscape * fps)]
    request_turn, stream = relevance_turns(scores, request)
    return 0, [request_turn, *(replace(stream, num_frames=1, relevance=(score,)) for score in stream.relevance)]  # a turn a frame


@pytest.mark.parametrize(("family", "name"), CASES)
def test_labels_are_exact(duet, family, name):
    case = json.loads(shared_fixture(f"reference/{family}/training.json").read_text())[name]
    batch = np.load(shared_fixture(f"reference/{family}/batch_{name}.npz"))
    _, turns = golden_turns(name, case)
    turns = [Turn("system", DEFAULT_SYSTEM_PROMPT), *keep_frames(turns, case["max_num_frames"])]
    assert sum(t.num_frames for t in turns) == case["num_frames"]
    rendered = duet.render(turns)
    assert rendered.text == case["text"]
    learned = [token for token, learn in zip(rendered.input_ids, rendered.learn_mask) if learn]
    words = "".join(case["text"][begin:end] for begin, end in case["learn_ranges"])
    assert duet.tokenizer.decode(learned, clean_up_tokenization_spaces=False) == words
    arrays = label_arrays(rendered, turns)
    sample = {
        **arrays, "sample_id": name, "frames": np.zeros((case["num_frames"], 3, 2, 2), np.uint8), "video_path": "x.mp4", "frame_fps": 1.0,
        "frame_times": [], "frame_indices": [],
    }  # fmt: skip
    ours = collate([sample], duet.pad_id)
    for key in ("input_ids", "attention_mask", "labels", "informative_labels", "relevance_labels"):
        assert np.array_equal(ours[f"{key}_BT"].numpy(), batch[key]), key


def test_magqa_starts_where_the_question_is(duet):
    case = json.loads(shared_fixture("reference/aha/training.json").read_text())["magqa"]
    start, turns = golden_turns("magqa", case)
    assert start == 2  # 2 frames before the question at 3.1 s, that is before frame 4
    assert [t.num_frames for t in turns if t.role == "stream"] == [2, 3, 1, 5]


def test_batch_of_two_is_padded_on_the_right(duet):
    def sample(name, n):
        turns = [Turn("system", "s"), *relevance_turns([0.5] * n, "q")]
        arrays = label_arrays(duet.render(turns), turns)
        frames = np.full((n, 3, 4, 4), n, np.uint8)
        return {**arrays, "sample_id": name, "frames": frames, "video_path": name, "frame_fps": 1.0, "frame_times": [], "frame_indices": []}

    batch = collate([sample("a", 2), sample("b", 3)], duet.pad_id)
    lengths = batch["attention_mask_BT"].sum(1).tolist()
    assert lengths[1] - lengths[0] == PUBLISHED.tokens
    assert batch["input_ids_BT"][0, lengths[0] :].unique().tolist() == [duet.pad_id]
    for key in ("labels_BT", "informative_labels_BT", "relevance_labels_BT"):
        assert batch[key][0, lengths[0] :].unique().tolist() == [-100]
    assert batch["frames"][:, 0, 0, 0].tolist() == [2, 2, 3, 3, 3]
    assert (batch["input_ids_BT"] == duet.image_id).sum().item() == PUBLISHED.tokens * len(batch["frames"])
    assert batch["relevance_labels_BT"].dtype == torch.float32
    assert batch["num_frames"] == [2, 3]


seconds = st.floats(0, 60, allow_nan=False)
narration = st.builds(
    lambda t, a, b, text: {"time": t, "timespan": [min(a, b), max(a, b)], "text": text}, seconds, seconds, seconds, st.sampled_from("abc")
)


@settings(max_examples=200, deadline=None)
@given(st.lists(narration, max_size=6), seconds, st.sampled_from([0.333, 0.5, 1, 2, 2.5]), st.integers(1, 30))
def test_captions_of_any_times_give_whole_conversations(narrations, duration, fps, limit):
    turns = dense_caption_turns(narrations, duration, fps, "q")
    assert sum(t.num_frames for t in turns) <= duration * fps + 1e-6
    kept = keep_frames(turns, limit)
    assert sum(t.num_frames for t in kept) == min(limit, sum(t.num_frames for t in turns))
    for before, after in zip(kept, [*kept[1:], None]):
        if before.role == "stream" and 1 in before.informative:
            assert after is not None and after.role == "assistant"
            # informative only at the end, in one run
            assert list(before.informative) == sorted(before.informative)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(seconds, seconds), max_size=4), seconds, st.sampled_from([0.333, 0.5, 1, 2]))
def test_grounding_marks_the_union_of_spans(spans, duration, fps):
    spans = [sorted(span) for span in spans]
    (stream,) = [t for t in grounding_turns(spans, duration, fps, "q") if t.role == "stream"]
    assert stream.num_frames == int(duration * fps)
    for k, label in enumerate(stream.relevance):
        assert label == any(int(a * fps) <= k < int(b * fps) for a, b in spans)


def test_third_of_a_frame_per_second_loses_no_frame():
    """(9 / 0.333 - 6 / 0.333) * 0.333 is below 3 in floating point."""
    narrations = [{"time": 3 * k / 0.333 - 0.1, "timespan": [0, 1], "text": str(k)} for k in range(1, 6)]
    turns = dense_caption_turns(narrations, 60, 0.333, "q")
    assert [t.num_frames for t in turns if t.role == "stream"] == [3, 3, 3, 3, 3]


def test_a_start_before_the_videos_is_the_videos():
    annotation = {"video_start_time": -1, "conversation": [{"role": "user", "content": "?", "time": 2.5}]}
    fewest, most = waiting_range(annotation, 7.0, 1.0)
    assert fewest == most == waiting_range({**annotation, "video_start_time": 0}, 7.0, 1.0)[0] > 0
