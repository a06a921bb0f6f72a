"""What the question benchmarks share: a Question, the readers of their annotation files' parts, and where a question's video lies.

Each benchmark reads its published annotations and those that MMDuet and Aha redistribute ({"question_id", "video", "conversation", ...}).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core.checked import interval, listed, number, text
from aha.core.files import parse_json, read_text
from aha.core.fusion import Fusion
from aha.core.prediction import Prediction, check_covered
from aha.errors import UserError
from aha.eval.command import select, select_protocols
from aha.eval.task import Item, Task
from aha.results.layout import Protocol

if TYPE_CHECKING:
    from aha.results.figures import Curve


@dataclass(frozen=True)
class Question(Item):
    """One question about one video, with its truth. Times in seconds.

    spans: ground-truth intervals (charades, qvh windows; youcook2 and magqa: one for each answer). answers: words of each span.
    clips, opinions: QVHighlights' relevant 2-second clips and each worker's 0..4 opinion of them.
    """

    spans: tuple[tuple[float, float], ...] = ()
    answers: tuple[str, ...] = ()
    clips: tuple[int, ...] = ()
    opinions: tuple[tuple[int, ...], ...] = ()


# ---------------------------------------------------------------- annotation files


def question(key: str, video: str, queries: tuple[tuple[float, str], ...], duration: float | None, **truth: Any) -> Question:
    """A Question whose element of a prediction file carries its id."""
    return Question(key, video, queries, duration, extra={"question_id": key}, **truth)


def read_entries(path: str | Path, what: str) -> list[tuple[str, dict[str, Any]]]:
    """Objects of a JSON list or of JSON Lines, each with the words that say where it stands. Raises UserError naming file and line."""
    path = Path(path)
    content = read_text(path, what)
    if content.lstrip()[:1] == "[":
        entries = [(f"{path}, element {i}", entry) for i, entry in enumerate(parse_json(content, f"{what} {path}"))]
    else:
        entries = []
        for line_number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                try:
                    entries.append((f"{path}:{line_number}", json.loads(line)))
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path}:{line_number} is not valid JSON (column {error.colno}: {error.msg}); repair the line."
                    ) from error
                except RecursionError as error:
                    raise UserError(f"{path}:{line_number} is nested too deeply to be {what}; check the file.") from error
    if not entries:
        raise UserError(f"{what} {path} is empty; check the path and the program that wrote it.")
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {type(entry).__name__}, not an object; expected one object for each question.")
    return entries


def conversation(entry: dict[str, Any], where: str) -> tuple[tuple[float, str], ...]:
    """User turns of a redistributed entry, by time; of a published one its bare query."""
    if "conversation" not in entry:
        return ((0.0, str(entry["query"])),) if entry.get("query") else ()
    turns = []
    for i, turn in enumerate(listed(entry["conversation"], where, "conversation")):
        if not isinstance(turn, dict):
            raise UserError(f"{where}: turn {i} of the conversation is no object; repair the entry.")
        if turn.get("role") == "user":
            turns.append(
                (number(turn.get("time", 0), where, f"time of turn {i}", 0.0), text(turn.get("content"), where, f"content of turn {i}"))
            )
    return tuple(sorted(turns, key=lambda turn: turn[0]))


def duration(entry: dict[str, Any], where: str) -> float | None:
    return number(entry["duration"], where, "duration", 0.0) if "duration" in entry else None


def gold_answers(entry: dict[str, Any], where: str) -> tuple[tuple[tuple[float, float], ...], tuple[str, ...]]:
    turns = listed(entry.get("answer"), where, "answer")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise UserError(f"{where}: answer {i} is no object; expected {{time: [start, end], content: words}}.")
    spans = tuple(interval(turn.get("time"), where, f"time of answer {i}") for i, turn in enumerate(turns))
    return spans, tuple(text(turn.get("content"), where, f"content of answer {i}") for i, turn in enumerate(turns))


def read_answers(path: str | Path, what: str, default_query: str | None) -> list[Question]:
    questions = []
    for where, entry in read_entries(path, what):
        spans, answers = gold_answers(entry, where)
        queries = conversation(entry, where)
        if not queries and default_query is not None:
            queries = ((0.0, default_query),)
        video = str(entry.get("video", ""))
        questions.append(
            question(Prediction(entry, where).question_id, video, queries, duration(entry, where), spans=spans, answers=answers)
        )
    return unique(questions, path)


def unique(questions: list[Question], path: str | Path) -> list[Question]:
    seen: set[str] = set()
    for one in questions:
        if one.key in seen:
            raise UserError(f"{path}: question {one.key} is listed twice; question ids must differ.")
        seen.add(one.key)
    return questions


def find_annotations(task: Task, given: str | Path | None = None) -> Path:
    """`given` (a file, or the folder of the data set), else the annotation file of a benchmark under datasets/.

    Raises UserError naming what to fetch.
    """
    if given is not None and not Path(given).is_dir():
        return Path(given)
    folder = Path(given) if given is not None else task.folder
    for file in task.data.files:
        if (folder / file.path).is_file():
            return folder / file.path
    names = " or ".join(Path(file.path).name for file in task.data.files)
    raise UserError(
        f"no {task.name} annotations ({names}) in {folder / 'annotations'}; `python -m aha.data.prepare {task.name}` says where to get "
        "them, or give --annotations."
    )


def opened(
    task: Task,
    read: Callable[[Path], list[Question]],
    known: Sequence[Protocol],
    annotations: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """The fields of a Benchmark that all benchmarks of questions have: its questions, and those that the flags select."""
    path = find_annotations(task, annotations)
    questions = {one.key: one for one in read(path)}
    return {
        "annotations": str(path), "questions": questions, "chosen": select(list(questions), str(path), video_ids, limit),
        "protocols": select_protocols(known, protocols),
        "categories": {key: one.category for key, one in questions.items() if one.category},
    }  # fmt: skip


def warn_of_counts(path: Path, counts: Mapping[str, tuple[int, int]]) -> None:
    """Say aloud where clip scores are listed and are not as many as the clips: (listed, clips) of each. The official tools cut the list or
    fill it up, in silence."""
    if odd := [key for key, (listed_there, clips) in counts.items() if listed_there != clips]:
        listed_there, clips = counts[odd[0]]
        print(
            f"WARNING: {path}: {len(odd)} of {len(counts)} have another number of clip scores than the video has clips ({odd[0]}: "
            f"{listed_there} for {clips}); as in the official tool what is missing counts 0 or not at all, and what is too many is cut.",
            file=sys.stderr,
        )


def whole_scores(prediction: Prediction, fusion: Fusion, annotated: float | None) -> tuple[np.ndarray, np.ndarray]:
    """`Prediction.timed_scores` over the whole video, whose length is what the prediction says, else the annotated one (seconds). Raises
    UserError for scores of a part of it."""
    times, scores = prediction.timed_scores(fusion)
    seconds = prediction.record.get("video_duration")
    length = annotated if seconds is None else number(seconds, prediction.name, "video_duration", 0.0)
    if length:
        check_covered(times, length, prediction.name)
    return times, scores


# ---------------------------------------------------------------- curves


def timed_curves(
    answers: Mapping[str, Prediction], questions: Mapping[str, Question], fusion: Fusion, wanted: Sequence[str]
) -> Iterator[Curve]:
    """Frame scores over the true spans, for the questions that have frame scores."""
    from aha.results.figures import Curve  # matplotlib: only here

    for key, prediction in answers.items():
        if key in wanted and prediction.has_scores:
            times, scores = prediction.timed_scores(fusion)
            one = questions[key]
            asked = one.queries[0][1] if one.queries else ""
            end = max(one.duration or 0.0, float(times[-1]))
            yield Curve(key, asked, end, {"prediction": (times, scores)}, spans=("true spans", one.spans))
