"""The functions that the highlight tasks' YAML files name: prompt, reading of an answer, metrics.

A document is one video. Any model that answers with text can take part: it is asked for one number per part of the video, in order, and its
numbers are scored with the project's own evaluation (aha.eval). The model `aha` answers with its score of every second instead.
S = seconds of the video, K = numbers in an answer.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np

MAX_PARTS = 60  # numbers asked for: more than this, and language models lose count
PROMPT = (
    "Title of the video: {query}\n"
    "The video is {seconds:.0f} seconds long. Cut it into {parts} parts of equal length, in order. For each part, say how important it is "
    "to someone who wants to see what the title promises: a number from 1 (not at all) to 5 (very). Answer with the {parts} numbers only, "
    "in square brackets, separated by commas."
)
# A video without an answer is scored as one score throughout: key shots and mAP get what the protocol gives such a prediction, so a model
# gains nothing by not answering; correlations are undefined.
SILENT = [0.0]
TVSUM_METRICS = ("tvsum_kendall", "tvsum_spearman", "tvsum_top5_map", "tvsum_f1", "tvsum_answered")
HISUM_METRICS = ("hisum_map50", "hisum_map15", "hisum_f1", "hisum_kendall", "hisum_spearman", "hisum_answered")


def parts_of(seconds: float) -> int:
    """How many numbers are asked for: one for every 2 seconds, at most MAX_PARTS."""
    return max(1, min(MAX_PARTS, int(seconds / 2)))


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict | None = None) -> str:
    return PROMPT.format(query=doc["query"], seconds=doc["seconds"], parts=parts_of(doc["seconds"]))


def doc_to_visual(doc: dict[str, Any], lmms_eval_specific_kwargs: dict | None = None) -> list[str]:
    return [doc["video"]]


def read_numbers(answer: str) -> list[float]:
    """The numbers of an answer: those of its last square brackets, else of the whole text; [] where there are fewer than two."""
    lists = re.findall(r"\[([^\[\]]*)\]", answer)
    text = lists[-1] if lists else answer
    numbers = [float(found) for found in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", text)]
    numbers = [number for number in numbers if math.isfinite(number)]
    return numbers if len(numbers) > 1 else []


def per_second(numbers: list[float], seconds: int) -> np.ndarray:
    """[S]: the K numbers as the scores of K equal parts of the video; S numbers stay as they are."""
    return np.array(numbers)[np.arange(seconds) * len(numbers) // seconds]


@functools.lru_cache(maxsize=4)
def _tvsum(annotations: str) -> dict[str, Any]:
    from aha.eval.annotations import read_tvsum

    return read_tvsum(annotations)


def process_tvsum(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Metrics of one video: correlations with each of 20 annotators at 1 fps, top-5 mAP of 2-second clips, F1 of the official summary."""
    from aha.eval.grids import second_frames
    from aha.eval.tvsum_protocols import Truth, score_video

    numbers = read_numbers(results[0])
    video = _tvsum(doc["annotations"])[doc["video_id"]]
    frames = second_frames(video.n_frames, video.fps)
    found = score_video(Truth(video), frames, per_second(numbers or SILENT, len(frames)), ["corr_1fps", "hd_top5", "f1_official60"])
    return {
        "tvsum_kendall": found["corr_1fps"]["kendall"], "tvsum_spearman": found["corr_1fps"]["spearman"],
        "tvsum_top5_map": found["hd_top5"]["top5_map"], "tvsum_f1": found["f1_official60"]["f1"], "tvsum_answered": float(bool(numbers)),
    }  # fmt: skip


def process_hisum(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Metrics of one video: Mr.HiSum's official mAP and F1 (percent), and rank correlations with the most-replayed scores."""
    from aha.eval.data_hisum import HiSumFile
    from aha.metrics.hisum import score_video

    numbers = read_numbers(results[0])
    with HiSumFile(doc["annotations"]) as file:
        video = file.read(doc["key"])
    scores = per_second(numbers or SILENT, len(video.gtscore))
    found = score_video(
        scores, video.gtscore, video.gt_summary, video.change_points, ["official", "score_correlation_and_padded_map_triplesumm"]
    )
    correlation = found["score_correlation_and_padded_map_triplesumm"]
    return {
        "hisum_map50": found["official"]["map50"], "hisum_map15": found["official"]["map15"], "hisum_f1": found["official"]["f1"],
        "hisum_kendall": correlation["kendall"], "hisum_spearman": correlation["spearman"], "hisum_answered": float(bool(numbers)),
    }  # fmt: skip


def mean(values: list[float], *_: Any) -> float:
    """Mean over the videos on which a metric is defined: equal numbers throughout, or no answer, have no correlation."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")
