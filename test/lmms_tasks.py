"""What the tasks of test_lmms_eval.py name in their YAML files; lmms-eval imports this file from beside them."""

from __future__ import annotations


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def video(doc, lmms_eval_specific_kwargs=None):
    return [doc["video"]]


def pictures(doc, lmms_eval_specific_kwargs=None):
    from PIL import Image

    return [Image.new("RGB", (64, 48), "red"), Image.new("RGB", (48, 64), "blue")]


def next_round(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    """The prompt, and then rounds: the second sees the video again, the third goes on talking, the fourth is none."""
    if round_idx is None:
        return doc["question"]
    assert len(previous_output) == round_idx and (previous_round_info or 0) == round_idx - 1
    return (video(doc) if round_idx == 1 else None), "And now?", round_idx == 3, previous_output, round_idx


def said(doc, results):
    return {"words": len(results[0])}


def rounds_said(doc, results):
    return {"rounds": len(results[0])}
