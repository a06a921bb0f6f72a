"""Reads prediction files of every layout: ours (and Aha's, MMDuet's), the short form, and plain score lists.

N = number of scored frames of one video. Layouts, all JSON:
- a list (or JSON Lines) of {"video_uuid", "true_frames_list" [N], "debug_data": N x {"time", "informative_score", "relevance_score",
  "uncertainty_score"}};
- a list (or JSON Lines) of {"vid" or "video_uuid", "pred_saliency_scores": one score per 2-second clip} (QVHighlights tools);
- {"videos": {id: {"frames": [N], "scores": [N]}}};
- {id: [N scores]} or {id: {"frames", "scores"}}, with or without "videos" around it.
Optional: "trained_on": true on the top level or on one video (the model has seen the video in training).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.json_stream import JsonStream
from aha.errors import UserError

ENTRY_IDS = ("video_uuid", "video_id", "vid")
ENTRY_KEYS = {*ENTRY_IDS, "qid", "query", "video_duration", "frame_fps", "true_frames_list", "debug_data", "model_response_list",
              "pred_saliency_scores", "question_id", "conversation", "answer"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prediction:
    """Scores of one video. frames (index in the original video), else times (seconds), else clip_seconds say where they lie; with none of
    them the evaluation tells the grid from the number of scores."""

    video_id: str
    scores: np.ndarray  # [N] float64, finite
    frames: np.ndarray | None = None  # [N] int64, ascending
    times: np.ndarray | None = None  # [N] float64, ascending
    clip_seconds: float | None = None
    trained_on: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """Frame score = alpha * informative + beta * relevance - epsilon * max(0, uncertainty - threshold)."""

    alpha: float = 0.0
    beta: float = 1.0
    epsilon: float = 0.0
    threshold: float = 0.0


RELEVANCE_ONLY = Weights()


class PredictionStream:
    """Iterates over the predictions of a file in constant memory; after the iteration `trained_on` holds the file's top-level flag.

    Frame scores are fused with `weights`; heads of weight 0 need not be there.
    Raises UserError naming the file, video and index for scores that are NaN, infinite or no number, counts that differ, frames that are
    not ascending, a video listed twice, and a file that is of no known layout, empty or cut off.
    """

    def __init__(self, path: str | Path, weights: Weights = RELEVANCE_ONLY):
        self.path = Path(path)
        self.weights = weights
        self.trained_on = False

    def __iter__(self) -> Iterator[Prediction]:
        seen: set[str] = set()
        for prediction in self._parse():
            if prediction.video_id in seen:
                raise UserError(f"{self.path}: video {prediction.video_id} is predicted twice; keep one prediction for each video.")
            seen.add(prediction.video_id)
            yield prediction
        if not seen:
            raise UserError(f"{self.path} holds no predictions; check the path and the program that wrote it.")

    def _parse(self) -> Iterator[Prediction]:
        if not self.path.is_file():
            raise UserError(f"prediction file {self.path} does not exist; check the path.")
        with JsonStream(self.path, "prediction file") as stream:
            first = stream.peek()
            if first == "[":
                for index, entry in enumerate(stream.elements()):
                    yield self._entry(entry, f"element {index}")
            elif first == "{":
                yield from self._object(stream)
                index = 1
                while stream.peek() == "{":  # JSON Lines go on
                    yield self._entry(stream.value(), f"line {index + 1}")
                    index += 1
            elif not first:
                return
            else:
                raise UserError(f"{self.path} is no prediction file: it starts with {first!r} where a JSON list or object is expected.")
            stream.end()

    def _object(self, stream: JsonStream) -> Iterator[Prediction]:
        """{"videos": {...}}, {id: ...}, or the first line of JSON Lines, in one pass."""
        entry: dict[str, Any] = {}
        nested = False
        for key in stream.members():
            if key == "videos" and stream.peek() == "{":
                nested = True
                for video_id in stream.members():
                    yield self._short(video_id, stream.value())
                continue
            value = stream.value()
            if key == "trained_on" and isinstance(value, bool):
                self.trained_on = value
            looks_like_scores = isinstance(value, list) or (isinstance(value, dict) and "scores" in value)
            if not entry and not nested and key not in ENTRY_KEYS and looks_like_scores:
                yield self._short(key, value)
            elif key != "trained_on" or not isinstance(value, bool):
                entry[key] = value
        if entry and not nested:
            trained_on, self.trained_on = self.trained_on, False
            yield self._entry({**entry, "trained_on": trained_on}, "line 1")

    def _short(self, video_id: str, value: Any) -> Prediction:
        where = f"{self.path}: video {video_id}"
        if isinstance(value, list):
            return Prediction(video_id, self._numbers(value, where, "score"))
        if not isinstance(value, dict) or "scores" not in value:
            raise UserError(f'{where} has no list of scores; expected {{"frames": [...], "scores": [...]}} or a list of numbers.')
        scores = self._numbers(value["scores"], where, "score")
        frames = self._frames(value["frames"], len(scores), where) if "frames" in value else None
        return Prediction(video_id, scores, frames, trained_on=value.get("trained_on") is True)

    def _entry(self, entry: Any, where: str) -> Prediction:
        where = f"{self.path}, {where}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no object; expected one object with video_uuid, true_frames_list and debug_data for each video.")
        video_id = next((entry[key] for key in ENTRY_IDS if key in entry), None)
        if not isinstance(video_id, str):
            raise UserError(f"{where} has no video id (video_uuid); a prediction names its video.")
        where = f"{where} (video {video_id})"
        trained_on = entry.get("trained_on") is True
        if "pred_saliency_scores" in entry:
            return Prediction(
                video_id, self._numbers(entry["pred_saliency_scores"], where, "score"), clip_seconds=2.0, trained_on=trained_on
            )
        heads = entry.get("debug_data")
        if not isinstance(heads, list) or not all(isinstance(head, dict) for head in heads):
            raise UserError(f"{where} has no debug_data (a list with one object for each scored frame); was it written by aha.score?")
        scores = self._fuse(heads, where)
        times = self._times(heads, where, needed="true_frames_list" not in entry)
        frames = self._frames(entry["true_frames_list"], len(scores), where) if "true_frames_list" in entry else None
        return Prediction(video_id, scores, frames, times, trained_on=trained_on)

    def _times(self, heads: list[dict[str, Any]], where: str, needed: bool) -> np.ndarray | None:
        """[N] seconds; None if some are missing and the frame numbers say where the scores lie."""
        if not needed and not all("time" in head for head in heads):
            return None
        times = self._numbers([head.get("time") for head in heads], where, "time")
        if len(times) > 1 and (np.diff(times) <= 0).any():
            raise UserError(f"{where}: time {int(np.argmax(np.diff(times) <= 0)) + 1} is not after the one before it; times ascend.")
        return times

    def _fuse(self, heads: list[dict[str, Any]], where: str) -> np.ndarray:
        w = self.weights
        fused = np.zeros(len(heads))
        with np.errstate(over="ignore", invalid="ignore"):
            for weight, name in ((w.alpha, "informative_score"), (w.beta, "relevance_score"), (-w.epsilon, "uncertainty_score")):
                if weight == 0:
                    continue
                head = self._numbers([head.get(name) for head in heads], where, name)
                fused += weight * (np.maximum(0.0, head - w.threshold) if name == "uncertainty_score" else head)
        if not np.isfinite(fused).all():
            raise UserError(
                f"{where}: score {int(np.argmin(np.isfinite(fused)))} is not finite after weighting the heads; check the weights."
            )
        return fused

    def _numbers(self, values: Any, where: str, name: str) -> np.ndarray:
        """A list of finite numbers -> [N] float64."""
        if not isinstance(values, list):
            raise UserError(f"{where}: {name}s are no list; expected one number for each scored frame.")
        if not values:
            raise UserError(f"{where} has no {name}s; leave a video out if it was not scored.")
        if not set(map(type, values)) <= {int, float}:
            index = next(i for i, value in enumerate(values) if type(value) not in (int, float))
            raise UserError(f"{where}: {name} {index} is {_shown(values[index])}, not a number; score the video again.")
        try:
            numbers = np.array(values, dtype=np.float64)
        except OverflowError:
            numbers = np.array([value if abs(value) < 2**1000 else np.inf for value in values], dtype=np.float64)
        if not np.isfinite(numbers).all():
            index = int(np.argmin(np.isfinite(numbers)))
            raise UserError(f"{where}: {name} {index} is {numbers[index]}, not a finite number; score the video again.")
        return numbers

    def _frames(self, values: Any, count: int, where: str) -> np.ndarray:
        """A list of `count` ascending frame numbers -> [N] int64."""
        frames = self._numbers(values, where, "frame number")
        if len(frames) != count:
            raise UserError(f"{where} has {count} scores for {len(frames)} frames; the two lists must be of one length.")
        if (bad := (frames < 0) | (frames != np.floor(frames)) | (frames > 2**53)).any():
            raise UserError(f"{where}: frame number {int(np.argmax(bad))} is {frames[np.argmax(bad)]:g}, not a whole number from 0 on.")
        if count > 1 and (bad := np.diff(frames) <= 0).any():
            index = int(np.argmax(bad)) + 1
            raise UserError(f"{where}: frame number {index} ({frames[index]:g}) is not above the one before it; frames ascend.")
        return frames.astype(np.int64)


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)[:40]


def read_predictions(
    path: str | Path, alpha: float = 0.0, beta: float = 1.0, epsilon: float = 0.0, threshold: float = 0.0
) -> dict[str, Prediction]:
    """All predictions of a file by video id; see PredictionStream for layouts, score formula and errors."""
    stream = PredictionStream(path, Weights(alpha, beta, epsilon, threshold))
    videos = {prediction.video_id: prediction for prediction in stream}
    if stream.trained_on:
        videos = {i: Prediction(p.video_id, p.scores, p.frames, p.times, p.clip_seconds, True) for i, p in videos.items()}
    return videos
