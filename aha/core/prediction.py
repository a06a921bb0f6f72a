"""Prediction: the record of a scored video, or of one question about a video. Its only writer and its only reader.

    for prediction in read_predictions("scores.json"):
        samples = prediction.samples(Fusion())           # where the scores lie, and one number for each

N = scored frames. Layouts that are read, as a JSON list, as JSON Lines, or (the short forms) as one JSON object:

- ours, Aha's and MMDuet's: {"video_uuid" and/or "question_id", "true_frames_list" [N], "debug_data": N x {"time", "informative_score",
  "relevance_score", "uncertainty_score"}, "model_response_list"}; MMDuet lists both classes of a head, [not, is];
- QVHighlights' tools: {"qid", "vid", "pred_saliency_scores": one per 2-second clip, "pred_relevant_windows": [start, end, score]};
- short: {"videos": {id: {"frames": [N], "scores": [N]}}}, or {id: [N scores]}, with or without "videos" around it.

Where samples have no "time", "frame_fps" gives it: sample k lies at k / frame_fps seconds. Ids may be numbers, also whole ones written as
floats (300.0, as pandas does).

"trained_on": true on the top level or in an element says that the model has seen the video in training.

"clock" says which frames of the stream came while the model was busy and were not scored (aha.core.lost_frames). `rows()` gives the frames
that were scored; `samples()` and `head()` give a score for every frame that arrived.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.checked import id_of, interval, number, writable
from aha.core.files import write_text
from aha.core.fusion import Fusion
from aha.core.heads import SCORES
from aha.core.lost_frames import Held
from aha.core.prediction_layouts import QUESTION_IDS, VIDEO_IDS, elements
from aha.errors import UserError

LENGTHS_AGREE = 0.01  # of the length: a copy of the same video
LARGEST = 1e100  # of scores and times: sums and squares of them stay finite
CLIP_SECONDS = 2.0  # of pred_saliency_scores


@dataclass(frozen=True, slots=True)
class Samples:
    """Fused scores of one video. frames (index in the scored file), times (seconds) or clip_seconds say where they lie; with none of them
    the evaluation tells the grid from the number of scores. duration: of the scored file, in seconds."""

    video_id: str
    scores: np.ndarray  # [N] float64, finite
    frames: np.ndarray | None = None  # [N] int64, ascending; a held picture repeats its number, and then the times say where it lies
    times: np.ndarray | None = None  # [N] float64 seconds, ascending
    clip_seconds: float | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One element of a prediction file. `record` is the element as the file has it; the methods check what they hand out and raise
    UserError naming file, element and index. where: "FILE, element 3"."""

    record: Mapping[str, Any]
    where: str = "prediction"
    trained_on: bool = field(default=False)

    @classmethod
    def of_scores(
        cls,
        video_id: str,
        query: str,
        duration: float,
        frame_fps: float,
        frame_indices: Iterable[int],
        rows: Sequence[Mapping[str, float]],
        replies: Sequence[Mapping[str, Any]] = (),
        trained_on: bool = False,
        **extra: Any,
    ) -> Prediction:
        """A newly scored video. rows: `score_rows`; replies: {"role", "time", "content"}; extra: further keys, such as question_id."""
        record = {
            "video_uuid": video_id, **extra, "query": query, "video_duration": duration, "frame_fps": frame_fps,
            "true_frames_list": [int(index) for index in frame_indices], "debug_data": list(rows), "model_response_list": list(replies),
        }  # fmt: skip
        if trained_on:
            record["trained_on"] = True
        return cls(record, f"video {video_id}", trained_on)

    # ---- who ----

    @property
    def video_id(self) -> str:
        """The video, or the question where the file names no video."""
        return self._identity((*VIDEO_IDS, *QUESTION_IDS), "video id (video_uuid); a prediction names its video")

    @property
    def question_id(self) -> str:
        """The question, or the video in a file with one question a video."""
        return self._identity((*QUESTION_IDS, *VIDEO_IDS), "question_id (or qid); every entry names its question")

    def _identity(self, keys: Iterable[str], what: str) -> str:
        for key in keys:
            value = self.record.get(key)
            if isinstance(value, float) and not value.is_integer():  # the next key would name something else
                raise UserError(f"{self.where}: {key} is {value}, neither text nor a whole number; write ids as text.")
            if (name := id_of(value)) is not None:
                return name
        raise UserError(f"{self.where} has no {what}.")

    @property
    def name(self) -> str:
        """The element for error messages."""
        if any(key in self.record for key in QUESTION_IDS):
            return f"{self.where} (question {self.question_id})"
        return f"{self.where} (video {self.video_id})" if any(key in self.record for key in VIDEO_IDS) else self.where

    # ---- frame scores ----

    def samples(self, fusion: Fusion) -> Samples:
        """One fused score for each sample. Heads of weight 0 need not be there; one number a sample ("scores") is taken as it is."""
        record, video_id = self.record, self.video_id
        if len(given := [name for name in ("debug_data", "scores", "pred_saliency_scores") if record.get(name) is not None]) > 1:
            raise UserError(f"{self.name} has both {given[0]} and {given[1]}; keep the one that is meant.")
        seconds = record.get("video_duration")
        duration = None if seconds is None else number(seconds, self.name, "video_duration", 0.0) or None
        if "scores" in record or "pred_saliency_scores" in record:
            key = "scores" if "scores" in record else "pred_saliency_scores"
            scores = self._numbers(record[key], "score")
            times = self._regular_times(len(scores)) if key == "scores" else None
            frames = self._frames(record["frames"], len(scores), may_repeat=times is not None) if "frames" in record else None
            return Samples(video_id, scores, frames, times, None if key == "scores" else CLIP_SECONDS, duration)
        rows, held = self.rows(), self._held()
        heads = {name: self.head(name) if weight else None for name, weight in fusion.weights.items()}
        scores = self._fused(fusion, heads, len(rows) if held is None else len(held.times))
        if "true_frames_list" not in record:
            return Samples(video_id, scores, None, self._all_times(rows) if held is None else held.times, duration=duration)
        times = self._times(rows)
        frames = self._frames(record["true_frames_list"], len(rows), may_repeat=times is not None)
        if held is not None:
            times, frames = held.times, held.merged(frames, self._lost_frames(len(scores) - len(rows)))
            frames = self._frames(frames.tolist(), len(scores), may_repeat=True)
        return Samples(video_id, scores, frames, times, duration=duration)

    @property
    def has_scores(self) -> bool:
        """Whether it has scores of frames or clips, and not only windows or words ({id: [captions]} is read as a short form as well)."""
        scores = self.record.get("scores")
        captions = isinstance(scores, list) and bool(scores) and isinstance(scores[0], dict)
        return bool({"debug_data", "pred_saliency_scores"} & self.record.keys()) or ("scores" in self.record and not captions)

    def timed_scores(self, fusion: Fusion) -> tuple[np.ndarray, np.ndarray]:
        """(times [N], scores [N]). A frame without a relevance score counts 0, as in MMDuet's and Aha's grounding evaluation."""
        if "debug_data" not in self.record and self.has_scores:
            samples = self.samples(fusion)
            if samples.times is not None:
                return samples.times, samples.scores
            if samples.clip_seconds is not None:
                return samples.clip_seconds * np.arange(len(samples.scores)), samples.scores
            raise UserError(f"{self.name}: its scores say no times; give frame_fps (samples a second), or debug_data with a time each.")
        rows = self.rows()
        times = self._all_times(rows)
        scores = np.zeros(len(rows))
        there = [i for i, row in enumerate(rows) if "relevance_score" in row]
        if not there and fusion.beta:
            raise UserError(f"{self.name} has no relevance_score in any frame; score the video again, or give --beta 0.")
        if there:
            heads = {name: self.head(name, there) if weight else None for name, weight in fusion.weights.items()}
            scores[there] = self._fused(fusion, heads, len(there))
        held = self._held()
        return (times, scores) if held is None else (held.times, held.scores(scores))

    def rows(self) -> list[dict[str, Any]]:
        """`debug_data`: one object for each scored frame."""
        rows = self.record.get("debug_data")
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{self.name} has no debug_data (a list with one object for each scored frame); was it written by aha.score?")
        if not all(isinstance(row, dict) for row in rows):
            index = next(i for i, row in enumerate(rows) if not isinstance(row, dict))
            raise UserError(f"{self.name}: frame {index} of debug_data is no object; expected time and scores.")
        return rows

    def head(self, name: str, places: Sequence[int] | None = None) -> np.ndarray:
        """The scores of one head [N] (or those of the rows at `places`), finite."""
        rows = self.rows()
        chosen = range(len(rows)) if places is None else places
        values = [rows[i].get(name) for i in chosen]
        scores = self._numbers([value[1] if isinstance(value, list) and len(value) == 2 else value for value in values], name)
        held = self._held() if places is None else None
        return scores if held is None else held.scores(scores)

    @property
    def clock(self) -> Mapping[str, Any] | None:
        """What is said of frames that were lost; None: the model saw every frame."""
        clock = self.record.get("clock")
        if clock is None or isinstance(clock, dict):
            return clock
        raise UserError(f"{self.name}: clock is {clock!r:.40}, no object with speed, arrived, lost_times, lost_frames; repair the entry.")

    def _held(self) -> Held | None:
        """What stands for the scores of frames that were lost; None where none was."""
        clock = self.clock
        if clock is None or not clock.get("lost_times"):
            return None
        rows = self.rows()
        times = self._all_times(rows)
        decided = self._numbers([row.get("decided", time) for row, time in zip(rows, times.tolist())], "decided time")
        return Held.of(times, decided, self._numbers(clock["lost_times"], "lost time"), self.name)

    def _lost_frames(self, count: int) -> np.ndarray:
        frames = self._numbers((self.clock or {}).get("lost_frames"), "lost frame")
        if len(frames) != count:
            raise UserError(f"{self.name}: clock has {count} lost_times and {len(frames)} lost_frames; the two lists belong together.")
        return frames

    def _fused(self, fusion: Fusion, heads: Mapping[str, np.ndarray | None], count: int) -> np.ndarray:
        if all(head is None for head in heads.values()):
            return np.zeros(count)
        with np.errstate(over="ignore", invalid="ignore"):
            scores = fusion(*heads.values())
        if not np.isfinite(scores).all():
            index = int(np.argmin(np.isfinite(scores)))
            raise UserError(f"{self.name}: score {index} is not finite after weighting the heads; check the weights.")
        return scores

    def _times(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        """[N] seconds, as listed or by frame_fps; None where a frame has none."""
        values = [row.get("time", row.get("video_time")) for row in rows]
        if all(value is None for value in values):
            return self._regular_times(len(values))
        return None if any(value is None for value in values) else self._ascending(values)

    def _all_times(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """[N] seconds, where nothing else says when the scores are. Raises UserError for a frame without."""
        times = self._times(rows)
        return self._ascending([row.get("time", row.get("video_time")) for row in rows]) if times is None else times

    def _ascending(self, values: list[Any]) -> np.ndarray:
        times = self._numbers(values, "time")
        if len(times) > 1 and (np.diff(times) <= 0).any():
            raise UserError(f"{self.name}: time {int(np.argmax(np.diff(times) <= 0)) + 1} is not after the one before it; times ascend.")
        return times

    def _regular_times(self, count: int) -> np.ndarray | None:
        """[N] seconds of samples that lie 1 / frame_fps apart; None where the record does not say frame_fps."""
        fps = self.record.get("frame_fps")
        return None if fps is None else np.arange(count) / number(fps, self.name, "frame_fps", 1e-6)

    def _numbers(self, values: Any, name: str) -> np.ndarray:
        """A list of finite numbers -> [N] float64."""
        if not isinstance(values, list):
            raise UserError(f"{self.name}: {name}s are no list; expected one number for each scored frame.")
        if not values:
            raise UserError(f"{self.name} has no {name}s; leave a video out if it was not scored.")
        if not set(map(type, values)) <= {int, float}:
            index = next(i for i, value in enumerate(values) if type(value) not in (int, float))
            shown = "null" if values[index] is None else repr(values[index])[:40]
            raise UserError(f"{self.name}: {name} {index} is {shown}, not a number; score the video again.")
        try:
            numbers = np.array(values, dtype=np.float64)
        except OverflowError:
            numbers = np.array([value if abs(value) < 2**1000 else np.inf for value in values], dtype=np.float64)
        if not (usable := np.abs(numbers) < LARGEST).all():
            index = int(np.argmin(usable))
            what = "not a finite number" if abs(numbers[index]) > 1e308 or np.isnan(numbers[index]) else f"beyond {LARGEST:g}"
            raise UserError(f"{self.name}: {name} {index} is {numbers[index]}, {what}; score the video again.")
        return numbers

    def _frames(self, values: Any, count: int, may_repeat: bool = False) -> np.ndarray:
        """A list of `count` ascending frame numbers -> [N] int64. may_repeat: times tell samples of one (held) picture apart."""
        frames = self._numbers(values, "frame number")
        if len(frames) != count:
            raise UserError(f"{self.name} has {count} scores for {len(frames)} frames; the two lists must be of one length.")
        if (bad := (frames < 0) | (frames != np.floor(frames)) | (frames > 2**53)).any():
            raise UserError(f"{self.name}: frame number {int(np.argmax(bad))} is {frames[np.argmax(bad)]:g}, not a whole number from 0 on.")
        if count > 1 and (bad := np.diff(frames) < (0 if may_repeat else 1)).any():
            index = int(np.argmax(bad)) + 1
            raise UserError(f"{self.name}: frame number {index} ({frames[index]:g}) is not above the one before it; frames ascend.")
        return frames.astype(np.int64)

    # ---- what the question benchmarks read ----

    def windows(self) -> np.ndarray:
        """`pred_relevant_windows` [P, 3]: start, end, score (0 where none is given)."""
        listed = self.record.get("pred_relevant_windows")
        if not isinstance(listed, list):
            raise UserError(f"{self.name}: pred_relevant_windows is no list of [start, end, score].")
        rows = []
        for i, row in enumerate(listed):
            start, end = interval(row, self.name, f"window {i}")
            rows.append((start, end, number(row[2], self.name, f"score of window {i}") if len(row) > 2 else 0.0))
        return np.array(rows).reshape(-1, 3)

    def clip_scores(self) -> np.ndarray:
        """`pred_saliency_scores`: one score per 2-second clip."""
        listed = self.record.get("pred_saliency_scores")
        if not isinstance(listed, list) or not listed:
            raise UserError(f"{self.name}: pred_saliency_scores is no list of numbers, one for each 2-second clip.")
        return np.array([number(x, self.name, f"pred_saliency_scores {i}") for i, x in enumerate(listed)])

    def replies(self) -> list[tuple[float, str]]:
        """(second, words) of the assistant's turns, in the file's order."""
        turns = self.record.get("model_response_list")
        if not isinstance(turns, list):
            raise UserError(f"{self.name} has no model_response_list; score with --stream_end_prob_threshold.")
        replies = []
        for i, turn in enumerate(turns):
            if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
                raise UserError(f"{self.name}: reply {i} is no object with role, time and content.")
            if turn.get("role") == "assistant":
                replies.append((number(turn.get("time"), self.name, f"time of reply {i}"), turn["content"]))
        return replies


def has_uncertainty(path: str | Path) -> bool:
    """Whether the model of a prediction file of `aha score` has an uncertainty head. Raises UserError as `read_predictions` does."""
    return "uncertainty_score" in next(read_predictions(path)).rows()[0]


def check_covered(places: np.ndarray, length: float, where: str, unit: str = "s", least: float = 2.0) -> None:
    """Raises UserError for scores that leave out the beginning or the end of what they are scored on, or lie beyond it: held or padded they
    would give a number all the same. places [N], length, least: in `unit`; off by twice the largest step between samples, by 1% or by
    `least` is not too much."""
    slack = max(2 * float(np.diff(places).max(initial=0.0)), LENGTHS_AGREE * length, least)
    first, last = float(places[0]), float(places[-1])
    if first > slack or not length - slack <= last <= length + slack:
        raise UserError(
            f"{where}: the scores lie from {first:g} to {last:g} {unit} of a video of {length:g} {unit}; score the whole video."
        )


def score_rows(times: Iterable[float], *columns: Iterable[float] | None) -> list[dict[str, float]]:
    """`debug_data` of N frames, scores unrounded. times: seconds [N]; columns: a score [N] for each head, in the order of
    `aha.core.heads.HEADS`; a head that the model does not have (None, or left out at the end) is not written.

    Raises UserError for a score that is NaN or infinite: all scores of the model pass through here, so that none can reach a file."""
    given = {"time": times, **{name: column for name, column in zip(SCORES, columns) if column is not None}}
    rows = [dict(zip(given, map(float, row))) for row in zip(*given.values(), strict=True)]
    for row in rows:
        if bad := [name for name, value in row.items() if not math.isfinite(value)]:
            raise UserError(
                f"{bad[0]} of the frame at {row['time']:.2f} s is not finite; the model overflows, try --dtype float32 or bfloat16."
            )
    return rows


# ---------------------------------------------------------------- files


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write a prediction file, whole or not at all: a JSON list with one video a line (so that people and grep can read it), or JSON Lines
    where the name ends in .jsonl."""
    lines = [json_line(prediction.record) for prediction in predictions]
    text = "".join(line + "\n" for line in lines) if str(path).endswith(".jsonl") else "[" + ",\n".join(lines) + "]\n"
    write_text(path, text)


def json_line(record: Mapping[str, Any]) -> str:
    """One JSON object on one line. NaN or infinity raise ValueError: contracts write them as null."""
    return writable(json.dumps(record, ensure_ascii=False, allow_nan=False))


def read_predictions(path: str | Path) -> Iterator[Prediction]:
    """The predictions of a file in its order; memory stays constant where the file has one element a line (ours, and JSON Lines).

    Raises UserError, naming file and line, for text that is not JSON, for an element that is no object or names nothing, for a video or
    question that is listed twice, and for a file of no known layout, empty or cut off.
    """
    path = Path(path)
    seen: set[str] = set()
    for prediction in (Prediction(*element) for element in elements(path)):
        name = prediction.question_id if any(key in prediction.record for key in QUESTION_IDS) else prediction.video_id
        if name in seen:
            kind = "question" if any(key in prediction.record for key in QUESTION_IDS) else "video"
            done = "answered" if kind == "question" else "predicted"
            raise UserError(f"{prediction.where}: {kind} {name} is {done} twice; keep one prediction for each {kind}.")
        seen.add(name)
        yield prediction
    if not seen:
        raise UserError(f"{path} holds no predictions; check the path and the program that wrote it.")


def keyed(predictions: Iterable[Prediction], key_of: Callable[[Prediction], str], what: str = "video") -> Iterator[tuple[str, Prediction]]:
    """(key, prediction) by the key under which a benchmark knows each, which may be another name than the file's: the video of several
    questions, video_N. Raises UserError where two have one key: one of them would count, in silence."""
    seen: dict[str, str] = {}
    for prediction in predictions:
        if (key := key_of(prediction)) in seen:
            raise UserError(
                f"{prediction.name}: {what} {key} is predicted twice, before as {seen[key]}; keep one prediction for each {what}."
            )
        seen[key] = prediction.name
        yield key, prediction
