"""Times and captions in the free text that other models answer with ("From 12 to 40, fry the onion").

The rules are those of MMDuet's and Aha's evaluation (`--is_online_model 0`), odd ones included, because published numbers rest on them:
- grounding: exactly two numbers, seconds; but percent of the video where the text holds "from" and "to" anywhere, so that "From 3.0 to 7.5
  seconds" is read as percent;
- captions: TimeChat's form `12.0 - 18.5 seconds, words` (decimal points needed), or VTimeLLM's `From 10 to 40, words` (whole percent).
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from aha.core.checked import number
from aha.core.prediction import Prediction
from aha.errors import UserError

Form = Literal["timechat", "vtimellm"]

NUMBER = re.compile(r"\d+\.?\d*")
TIMECHAT = re.compile(r"(\d+\.\d+) - (\d+\.\d+)\s*seconds,\s*(.*)")
VTIMELLM = re.compile(r"From (\d+) to (\d+), (.*)")


@dataclass(frozen=True, slots=True)
class TimedText:
    """A caption with its seconds; end may lie before start or beyond the video, as the model wrote it."""

    start: float
    end: float
    text: str


def grounding_span(text: str, duration: float) -> tuple[float, float] | None:
    """The answered (start, end) in seconds, not ordered and not clipped; None where the text does not hold exactly two numbers."""
    numbers = [float(found) for found in NUMBER.findall(text)]
    if len(numbers) != 2:
        return None
    start, end = numbers
    lowered = text.lower()
    if "from" in lowered and "to" in lowered:
        return start / 100 * duration, end / 100 * duration
    return start, end


def span_iou(answered: tuple[float, float], gold: tuple[float, float]) -> float:
    """max(0, min(ends) - max(starts) + 1) / (max(ends) - min(starts) + 1): frames' formula on seconds, as in the released code."""
    overlap = min(answered[1], gold[1]) - max(answered[0], gold[0]) + 1
    hull = max(answered[1], gold[1]) - min(answered[0], gold[0]) + 1
    return max(0.0, overlap) / hull if hull > 0 else 0.0


def captions(text: str, duration: float, form: Form) -> list[TimedText]:
    """The captions of an answer in one of the two forms, in its order. Of several spans in a line only the first is read."""
    if form == "timechat":
        return [TimedText(float(start), float(end), words) for start, end, words in TIMECHAT.findall(text)]
    return [TimedText(float(start) / 100 * duration, float(end) / 100 * duration, words) for start, end, words in VTIMELLM.findall(text)]


def form_of(path: str | os.PathLike) -> Form:
    """VTimeLLM's form iff the path of the prediction file holds "vtimellm", as the released code decides."""
    return "vtimellm" if "vtimellm" in str(path) else "timechat"


def turns(text: str, duration: float) -> list[tuple[float, str]]:
    """(second, words) for MAGQA: VTimeLLM's captions, then TimeChat's, each at its middle; else the whole text at second -1."""
    found = [*captions(text, duration, "vtimellm"), *captions(text, duration, "timechat")]
    return [((caption.start + caption.end) / 2, caption.text) for caption in found] or [(-1.0, text)]


# ---------------------------------------------------------------- elements of a prediction file


def _response(prediction: Prediction) -> Any:
    response = prediction.record.get("model_response")
    if not response or not isinstance(response, str | list) or not isinstance(response[0], str):
        raise UserError(f"{prediction.name} has no model_response (words, or a list with them first); leave --answers text out?")
    return response


def answer(prediction: Prediction) -> tuple[str, float]:
    """(words, duration in seconds) of an element: its model_response, of a list the first item."""
    response = _response(prediction)
    return response[0] if isinstance(response, list) else response, duration(prediction)


def grounded(prediction: Prediction) -> tuple[float, float] | None:
    """The answered span in seconds. As in the released code a bare string is read by its first character, so that it has none."""
    return grounding_span(_response(prediction)[0], duration(prediction))


def duration(prediction: Prediction) -> float:
    return number(prediction.record.get("video_duration"), prediction.name, "video_duration", 0.0)


def with_replies(prediction: Prediction) -> Prediction:
    """The element with its words as timed replies (`turns`), as the other benchmarks' code writes them."""
    replies = [{"role": "assistant", "time": time, "content": words} for time, words in turns(*answer(prediction))]
    return replace(prediction, record={**prediction.record, "model_response_list": replies})


def with_window(prediction: Prediction) -> Prediction:
    """The element with its answered span as the only window (ordered), without one as none."""
    span = grounded(prediction)
    return replace(prediction, record={**prediction.record, "pred_relevant_windows": [[*sorted(span), 1.0]] if span else []})


def add_answers_flag(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--answers", choices=("scores", "text"), default="scores",
        help="what the file holds: scores, windows and replies, or free text of other models (model_response)",
    )  # fmt: skip
