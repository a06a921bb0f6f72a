"""MMDuetIT -> samples: dense captioning (Shot2Story, COIN), multi-answer grounded QA (Shot2Story-MAGQA-39k), temporal grounding
(HiREST, DiDeMo, QueryD), from the JSON files published with MMDuet (Wang et al. 2024). Times in seconds; all of it is training data.

    captions:  {video: {annotation id: [{"time", "timespan": [start, end], "text", "learn"?}, ...]}}
    questions: [{"video_uid", "video_start_time"?, "conversation": [{"role", "content", "time", "timespan"? (answers), "learn"?}, ...]}]
    grounding: [{"video_uid", "query", "timestamps": [[start, end], ...]}]
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from aha.core.files import read_json
from aha.data.labels import question_answer_turns, waiting_range
from aha.data.samples import CaptionSample, GroundingSample, Problem, QuestionSample, Sample
from aha.errors import UserError
from aha.video.library import VideoFolder

Found = tuple[str, str, type[CaptionSample] | type[QuestionSample] | type[GroundingSample], dict[str, Any]]  # item, video, kind, fields


def load(entry: dict, folder: VideoFolder, fps: float) -> tuple[list[Sample], list[Problem]]:
    """Samples of an entry of type captions, questions or grounding. Raises UserError for a bad file, naming the entry that is wrong."""
    path = entry["annotations"]
    stored = read_json(path, f"{entry['name']} annotations")
    wanted = dict if entry["type"] == "captions" else list
    if not isinstance(stored, wanted):
        raise UserError(f"{path} holds a {type(stored).__name__}, not a {wanted.__name__}, so it is no file of type {entry['type']}.")
    samples: list[Sample] = []
    problems: list[Problem] = []
    readers: dict[str, Callable[[Any, str], Iterator[Found]]] = {"captions": _captions, "questions": _questions, "grounding": _grounding}
    for item, video, cls, content in readers[entry["type"]](stored, path):
        facts, reason = folder.find(video)
        if facts is not None:
            sample = cls(f"{entry['name']}/{item}", PurePosixPath(video).stem, facts["path"], facts["duration"], **content)
            reason = "" if _usable(sample, fps) else f"no frame or no reply within its {facts['duration']:.1f} s"
        if facts is None or reason:
            problems.append(Problem(entry["name"], item, reason))
            continue
        samples.append(sample)
    return samples, problems


def _usable(sample: Sample, fps: float) -> bool:
    """Whether any frame is left, also where the random part of the conversation is as short as it can be."""
    if isinstance(sample, QuestionSample):
        if not 0 < sample.annotation["conversation"][0]["time"] <= sample.duration:
            return False
        fewest, _ = waiting_range(sample.annotation, sample.duration, fps)
        _, turns = question_answer_turns(sample.annotation, sample.duration, fps, fewest)
    else:
        _, turns = sample.conversation(fps, random.Random(0))
    return any(turn.num_frames for turn in turns)


def _captions(stored: dict, path: str) -> Iterator[Found]:
    for video, by_annotation_id in stored.items():
        if not isinstance(by_annotation_id, dict):
            raise UserError(f"{path}: {video} is not {{annotation id: captions}}; check that this is a captioning file.")
        for annotation_id, narrations in by_annotation_id.items():
            where = f"{path}: {video}/{annotation_id}"
            _check(narrations, where, {"time": float, "timespan": list, "text": str})
            if narrations:
                yield f"{video}/{annotation_id}", video, CaptionSample, {"narrations": narrations}


def _questions(stored: list, path: str) -> Iterator[Found]:
    _check(stored, path, {"video_uid": str, "conversation": list})
    for i, annotation in enumerate(stored):
        where = f"{path}: entry {i} ({annotation['video_uid']})"
        conversation = annotation["conversation"]
        _check(conversation, where, {"role": str, "content": str, "time": float})
        _check([turn for turn in conversation if turn["role"] == "assistant"], where, {"timespan": list})
        if "video_start_time" in annotation:
            _check([annotation], where, {"video_start_time": float})
        if not conversation:
            continue
        roles = [turn["role"] for turn in conversation]
        if roles[0] != "user" or set(roles) - {"user", "assistant"}:
            raise UserError(f"{where}: the roles are {', '.join(roles)[:60]}; they must be user and assistant, the user first.")
        yield f"{annotation['video_uid']}/{i}", annotation["video_uid"], QuestionSample, {"annotation": annotation}


def _grounding(stored: list, path: str) -> Iterator[Found]:
    _check(stored, path, {"video_uid": str, "query": str, "timestamps": list})
    for i, annotation in enumerate(stored):
        spans = annotation["timestamps"]
        for span in spans:
            _check([{"timespan": span}], f"{path}: entry {i} ({annotation['video_uid']})", {"timespan": list})
        yield f"{annotation['video_uid']}/{i}", annotation["video_uid"], GroundingSample, {"query": annotation["query"], "spans": spans}


def _check(items: Any, where: str, fields: dict[str, type]) -> None:
    """Every item is an object with these fields; `float` stands for any number, and a field "timespan" must be [start, end]."""
    if not isinstance(items, list):
        raise UserError(f"{where}: a list is expected, not {str(items)[:40]!r}; check that the file is of the type that the mixture says.")
    for i, item in enumerate(items):
        for name, kind in fields.items():
            value: Any = item.get(name) if isinstance(item, dict) else None
            ok = is_number(value) if kind is float else isinstance(value, kind)
            if ok and name == "timespan":
                ok = len(value) == 2 and all(is_number(v) for v in value)
            if not ok:
                expected = {float: "a number", str: "a text", list: "a list", dict: "an object"}[kind]
                expected = "[start, end] in seconds" if name == "timespan" else expected
                raise UserError(f"{where}: item {i} has {name} = {str(value)[:40]!r}, not {expected}; repair the entry.")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e9
