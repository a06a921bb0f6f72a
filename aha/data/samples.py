"""What a data set is made of: samples. One sample = one video file, an annotation, and the conversation that is made of the two.

Shapes: F frames of a sample, n frames of its video file.
"""

from __future__ import annotations

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aha.conversation import IGNORE_INDEX, Turn
from aha.data.labels import (
    CAPTION_REQUESTS,
    GROUNDING_REQUESTS,
    dense_caption_turns,
    grounding_turns,
    question_answer_turns,
    relevance_turns,
    waiting_range,
)
from aha.errors import UserError
from aha.eval.grids import frames_at, same_frames
from aha.video.degrade import degrade
from aha.video.reader import VideoFrames


@dataclass(frozen=True)
class Sample(ABC):
    """sample_id: unique in a mixture, e.g. "tvsum/AwmHb44_ouw"; video_id: the benchmark's name of the video; duration in seconds."""

    sample_id: str
    video_id: str
    video_path: str
    duration: float

    @abstractmethod
    def conversation(self, fps: float, rng: random.Random) -> tuple[int, list[Turn]]:
        """(k of the first frame, labelled turns without the system turn). The frames are k, k+1, ... at k / fps seconds."""

    def finish(self, turns: list[Turn], frames: VideoFrames, rng: random.Random) -> tuple[list[Turn], np.ndarray]:
        """Turns and frames [F,3,H,W] once the frames are read and their exact places in the video known."""
        del rng
        return turns, frames.frames_TCHW


@dataclass(frozen=True)
class CaptionSample(Sample):
    narrations: Sequence[dict] = ()

    def conversation(self, fps, rng):
        return 0, dense_caption_turns(self.narrations, self.duration, fps, rng.choice(CAPTION_REQUESTS))


@dataclass(frozen=True)
class QuestionSample(Sample):
    annotation: Mapping[str, Any] = field(default_factory=dict)

    def conversation(self, fps, rng):
        fewest, most = waiting_range(self.annotation, self.duration, fps)
        return question_answer_turns(self.annotation, self.duration, fps, rng.randint(fewest, most))


@dataclass(frozen=True)
class GroundingSample(Sample):
    query: str = ""
    spans: Sequence[Sequence[float]] = ()

    def conversation(self, fps, rng):
        request = rng.choice(GROUNDING_REQUESTS).replace("%s", self.query)
        return 0, grounding_turns(self.spans, self.duration, fps, request)


@dataclass(frozen=True)
class RelevanceSample(Sample):
    """Importance scores in [0, 1], one per second (score_fps 1) or one per frame of the annotated video (score_fps = its frame rate).

    by_frame: score i belongs to frame i of this very file, so the frame's index decides and not its time (unless pictures are held).
    A copy's samples lie where the evaluation would place them (aha.eval.grids).
    held: a frame's label is the mean of the scores from it to the next sampled frame, the span that its prediction stands for. TVSum's
    ratings change one frame after each even second, so the single score at a frame taken there is that of the shot before (measured on
    the real annotations: 21% of the labels at 1 fps change with a slip of one frame).
    degradations: (start, end, kind) intervals in seconds in which the picture is made worse (HIHD).
    """

    request: str = ""
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    score_fps: float = 1.0
    by_frame: bool = False
    held: bool = False
    degradations: Sequence[tuple[float, float, str]] = ()

    def conversation(self, fps, rng):
        del rng
        times = np.arange(max(math.floor(self.duration * fps + 1e-6), 1)) / fps
        return 0, relevance_turns(self._at(np.floor(times * self.score_fps + 1e-6)), self.request)

    def finish(self, turns, frames, rng):
        held = len(set(frames.frame_indices)) < len(frames.frame_indices)  # a picture that stayed on screen repeats its number
        if self.by_frame and not held:
            places = frames.frame_indices
        elif self.held:  # scores of frames
            places = frames_at(np.array(frames.times), self.score_fps)
        else:  # scores of seconds
            places = np.floor(np.array(frames.times) * self.score_fps + 1e-6)
        relevance = tuple(self._at(np.asarray(places)).tolist())
        turns = [replace(turn, relevance=relevance) if turn.role == "stream" else turn for turn in turns]
        return turns, degrade(frames.frames_TCHW, frames.times, self.degradations, rng)

    def _at(self, places: np.ndarray) -> np.ndarray:
        """Scores at integer places; none past the last one."""
        places = places.astype(np.int64)
        last = len(self.scores) - 1
        scores = self.scores[np.minimum(places, last)].astype(np.float64)
        if self.held and len(places) > 1:
            ends = np.append(places[1:], places[-1] + round(np.diff(places).mean()))
            total = np.concatenate([[0.0], np.cumsum(self.scores, dtype=np.float64)])
            begin, end = np.minimum(places, last), np.clip(ends, 0, last + 1)
            scores = np.where(end > begin, (total[end] - total[begin]) / np.maximum(end - begin, 1), scores)
        return np.where(places < len(self.scores), scores, IGNORE_INDEX)


def samples_hash(samples: Sequence[Sample]) -> str:
    """A short hash of what training learns from: ids, requests, labels. Where the videos lie does not count."""
    digest = hashlib.sha256()
    for sample in samples:
        for name in sorted(vars(sample)):
            if name != "video_path":
                value = getattr(sample, name)
                digest.update(f"{name}=".encode() + (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()) + b"\n")
    return digest.hexdigest()[:16]


def annotated_file(facts: Mapping[str, Any], n_frames: int, length_s: float) -> tuple[bool, str]:
    """(by_frame, why the file is left out, "" if it is not) of a file with `facts` for a video whose n_frames are annotated."""
    if abs(facts["duration"] - length_s) > max(2.0, 0.02 * length_s):
        return False, f"the file lasts {facts['duration']:.1f} s, the annotated video {length_s:.1f} s"
    try:
        rate = facts["frame_count"] / facts["duration"]
        return same_frames(rate, facts["frame_count"], facts["duration"], n_frames, length_s), ""
    except UserError as error:
        return False, str(error)


@dataclass(frozen=True)
class Problem:
    """Something of a data set that is left out, and why."""

    dataset: str
    item: str
    reason: str
