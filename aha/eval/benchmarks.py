"""The question benchmarks as lists of questions: which video, which words at which second, and the ground truth.

Reads each benchmark's published annotations and those that MMDuet and Aha redistribute (`question_id, video, conversation, ...`):

| benchmark | published file | redistributed file |
| --- | --- | --- |
| charades (Charades-STA, ICCV 2017) | `charades_sta_test.txt` (`VIDEO START END##words`) | `test-random_prompt.json`, UniVTG JSON Lines |
| qvh (QVHighlights, Lei et al., NeurIPS 2021) | `highlight_val_release.jsonl` | `highlight_val-random_prompt.json` |
| youcook2 (Zhou et al., AAAI 2018) | `youcookii_annotations_trainval.json` | `val-random_prompt.json` |
| magqa (Shot2Story-MAGQA-39k, Wang et al. 2024) | `magqa_test.json` | the same |

No torch here: the evaluation reads its ground truth through these functions as well.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aha.core.files import read_json
from aha.errors import UserError
from aha.eval.task import Item

# What is asked where a file holds a bare sentence or nothing (the redistributed files hold whole questions). The bare sentence is the
# wording that grounding data had most often in training.
CAPTION_QUERY = "Please concisely narrate the video in real time."


@dataclass(frozen=True)
class Question:
    """One question about one video. Times in seconds.

    video: file name relative to the video folder, with or without suffix. queries: (second, words) in order of time.
    spans: ground-truth intervals (charades, qvh windows; youcook2 and magqa: one for each answer). answers: words of each span.
    clips, opinions: QVHighlights' relevant 2-second clips and each worker's 0..4 opinion of them.
    """

    question_id: str
    video: str
    queries: tuple[tuple[float, str], ...]
    duration: float | None = None
    spans: tuple[tuple[float, float], ...] = ()
    answers: tuple[str, ...] = ()
    clips: tuple[int, ...] = ()
    opinions: tuple[tuple[int, ...], ...] = ()


def read_entries(path: str | Path, what: str) -> list[tuple[str, dict[str, Any]]]:
    """Objects of a JSON list or of JSON Lines, each with the words that say where it stands. Raises UserError naming file and line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read ({error}); check the file.") from error
    if text.lstrip()[:1] == "[":
        entries = [(f"{path}, element {i}", entry) for i, entry in enumerate(read_json(path, what))]
    else:
        entries = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    entries.append((f"{path}:{number}", json.loads(line)))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number} is not valid JSON (column {error.colno}: {error.msg}); repair the line.") from error
                except RecursionError as error:
                    raise UserError(f"{path}:{number} is nested too deeply to be {what}; check the file.") from error
    if not entries:
        raise UserError(f"{what} {path} is empty; check the path and the program that wrote it.")
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {type(entry).__name__}, not an object; expected one object for each question.")
    return entries


def number(value: Any, where: str, name: str, low: float = -math.inf) -> float:
    """A finite number of at least `low`, or a UserError that says where it should be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        shown = "missing" if value is None else repr(value)[:40]
        raise UserError(
            f"{where}: {name} is {shown}, not a finite number{'' if low == -math.inf else f' of at least {low:g}'}; repair the entry."
        )
    return float(value)


def interval(value: Any, where: str, name: str) -> tuple[float, float]:
    """[start, end] in seconds with start <= end."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not [start, end] in seconds; repair the entry.")
    start, end = number(value[0], where, f"start of {name}"), number(value[1], where, f"end of {name}")
    if end < start:
        raise UserError(f"{where}: {name} ends ({end:g} s) before it starts ({start:g} s); repair the entry.")
    return start, end


def writable(text: str) -> str:
    """`text` with "?" for lone surrogates (half an emoji), which no file can hold as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def identity(entry: dict[str, Any], where: str) -> str:
    """The question id of an entry (`question_id`, `qid`, or the video id of a file with one question a video), as text."""
    for key in ("question_id", "qid", "video_uuid", "vid", "video"):
        if isinstance(entry.get(key), str | int) and not isinstance(entry.get(key), bool):
            return writable(str(entry[key]))
    raise UserError(f"{where} has no question_id (or qid); every entry names its question.")


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not text; repair the entry.")
    return value


def _list(value: Any, where: str, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not a list; repair the entry.")
    return value


def _conversation(entry: dict[str, Any], where: str) -> tuple[tuple[float, str], ...]:
    """User turns of a redistributed entry, by time."""
    turns = []
    for i, turn in enumerate(_list(entry["conversation"], where, "conversation")):
        if not isinstance(turn, dict):
            raise UserError(f"{where}: turn {i} of the conversation is no object; repair the entry.")
        if turn.get("role") == "user":
            turns.append(
                (number(turn.get("time", 0), where, f"time of turn {i}", 0.0), _text(turn.get("content"), where, f"content of turn {i}"))
            )
    return tuple(sorted(turns, key=lambda turn: turn[0]))


def _duration(entry: dict[str, Any], where: str) -> float | None:
    return number(entry["duration"], where, "duration", 0.0) if "duration" in entry else None


def _answers(entry: dict[str, Any], where: str) -> tuple[tuple[tuple[float, float], ...], tuple[str, ...]]:
    turns = _list(entry.get("answer"), where, "answer")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise UserError(f"{where}: answer {i} is no object; expected {{time: [start, end], content: words}}.")
    spans = tuple(interval(turn.get("time"), where, f"time of answer {i}") for i, turn in enumerate(turns))
    return spans, tuple(_text(turn.get("content"), where, f"content of answer {i}") for i, turn in enumerate(turns))


def read_charades(path: str | Path) -> list[Question]:
    """Charades-STA. Question ids of the published text file: `VIDEO-LINE`."""
    if Path(path).suffix == ".txt":
        return _read_charades_text(Path(path))
    questions = []
    for where, entry in read_entries(path, "Charades-STA annotations"):
        spans = entry.get("timestamps", entry.get("relevant_windows"))
        if not spans:
            raise UserError(f"{where} has no timestamps (or relevant_windows); is this a Charades-STA annotation file?")
        spans = tuple(interval(span, where, f"span {i}") for i, span in enumerate(_list(spans, where, "timestamps")))
        if "conversation" in entry:
            queries = _conversation(entry, where)
        else:
            queries = ((0.0, str(entry["query"])),) if entry.get("query") else ()
        questions.append(
            Question(identity(entry, where), str(entry.get("video", entry.get("vid", ""))), queries, _duration(entry, where), spans)
        )
    return _unique(questions, path)


def _read_charades_text(path: Path) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Charades-STA annotations {path} cannot be read ({error}); check the path.") from error
    questions = []
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"(\S+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.+)", line.strip())
        if not found:
            raise UserError(
                f"{path}:{line_number} is not of the form `VIDEO START END##sentence`; repair the line or download the file again."
            )
        # A span written backwards is read as the interval between the two seconds.
        start, end = sorted((float(found[2]), float(found[3])))
        questions.append(Question(f"{found[1]}-{line_number}", found[1], ((0.0, found[4].strip()),), None, ((start, end),)))
    if not questions:
        raise UserError(f"Charades-STA annotations {path} is empty; download it again.")
    return questions


def read_qvhighlights(path: str | Path) -> list[Question]:
    """QVHighlights with saliency scores (train or val; the test split has none)."""
    questions = []
    for where, entry in read_entries(path, "QVHighlights annotations"):
        truth = entry["answer"] if isinstance(entry.get("answer"), dict) else entry
        clips = _list(truth.get("relevant_clip_ids"), where, "relevant_clip_ids")
        rows = _list(truth.get("saliency_scores"), where, "saliency_scores")
        if len(clips) != len(rows):
            raise UserError(
                f"{where}: {len(rows)} saliency_scores for {len(clips)} relevant_clip_ids; the two lists must be of one length."
            )
        clips = tuple(int(number(clip, where, f"relevant_clip_ids {i}", 0)) for i, clip in enumerate(clips))
        opinions = tuple(
            tuple(int(number(score, where, f"saliency score of clip {clip}", 0)) for score in _list(row, where, f"saliency of clip {clip}"))
            for clip, row in zip(clips, rows)
        )
        if len({len(row) for row in opinions}) > 1:
            raise UserError(f"{where}: clips are rated by different numbers of workers; repair the entry.")
        spans = tuple(interval(w, where, f"window {i}") for i, w in enumerate(truth.get("relevant_windows") or ()))
        if "conversation" in entry:
            queries = _conversation(entry, where)
        else:
            queries = ((0.0, str(entry["query"])),) if entry.get("query") else ()
        duration = number(entry.get("duration", 150.0 if "conversation" in entry else None), where, "duration", 2.0)
        video = str(entry.get("vid", entry.get("video", "")))
        questions.append(Question(identity(entry, where), video, queries, duration, spans, (), clips, opinions))
    return _unique(questions, path)


def read_youcook2(path: str | Path) -> list[Question]:
    """YouCook2 dense captioning, the validation videos."""
    path = Path(path)
    document = read_json(path, "YouCook2 annotations")
    if isinstance(document, dict):
        database = document.get("database")
        if not isinstance(database, dict):
            raise UserError(f"{path} has no `database`; expected youcookii_annotations_trainval.json or val-random_prompt.json.")
        questions = []
        for video_id, entry in database.items():
            where = f"{path}, video {video_id}"
            if not isinstance(entry, dict) or entry.get("subset") != "validation":
                continue
            steps = _list(entry.get("annotations"), where, "annotations")
            spans = tuple(interval(step.get("segment"), where, f"segment {i}") for i, step in enumerate(steps))
            answers = tuple(_text(step.get("sentence"), where, f"sentence {i}") for i, step in enumerate(steps))
            video = f"validation/{entry['recipe_type']}/{video_id}" if "recipe_type" in entry else video_id
            questions.append(Question(writable(video_id), video, ((0.0, CAPTION_QUERY),), _duration(entry, where), spans, answers))
        if not questions:
            raise UserError(f"{path} holds no video of the validation subset; is it the train part only?")
        return questions
    return _read_answers(path, "YouCook2 annotations", CAPTION_QUERY)


def read_magqa(path: str | Path) -> list[Question]:
    """Shot2Story-MAGQA-39k test questions."""
    return _read_answers(path, "MAGQA annotations", None)


def _read_answers(path: str | Path, what: str, default_query: str | None) -> list[Question]:
    questions = []
    for where, entry in read_entries(path, what):
        spans, answers = _answers(entry, where)
        queries = _conversation(entry, where) if "conversation" in entry else ()
        if not queries and default_query is not None:
            queries = ((0.0, default_query),)
        questions.append(Question(identity(entry, where), str(entry.get("video", "")), queries, _duration(entry, where), spans, answers))
    return _unique(questions, path)


def _unique(questions: list[Question], path: str | Path) -> list[Question]:
    seen: set[str] = set()
    for question in questions:
        if question.question_id in seen:
            raise UserError(f"{path}: question {question.question_id} is listed twice; question ids must differ.")
        seen.add(question.question_id)
    return questions


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies under datasets/, and how the published results sampled it."""

    read: Callable[[str | Path], list[Question]]
    folder: Path
    annotations: tuple[str, ...]  # names looked for under folder/annotations, in this order
    frame_fps: float
    max_num_frames: int


BENCHMARKS = {
    "charades": Benchmark(read_charades, Path("datasets/charades"), ("test-random_prompt.json", "charades_sta_test.txt"), 2.0, 400),
    "qvh": Benchmark(
        read_qvhighlights, Path("datasets/qvh"), ("highlight_val_release.jsonl", "highlight_val-random_prompt.json"), 1.0, 400
    ),
    "youcook2": Benchmark(
        read_youcook2, Path("datasets/youcook2"), ("val-random_prompt.json", "youcookii_annotations_trainval.json"), 0.5, 200
    ),
    "magqa": Benchmark(read_magqa, Path("datasets/shot2story"), ("magqa_test.json",), 2.0, 400),
}


def find_annotations(name: str, given: str | Path | None = None) -> Path:
    """`given` (a file, or the folder of the data set), else the annotation file of a benchmark under datasets/.

    Raises UserError naming what to fetch.
    """
    benchmark = BENCHMARKS[name]
    if given is not None and not Path(given).is_dir():
        return Path(given)
    folder = Path(given) if given is not None else benchmark.folder
    for file in benchmark.annotations:
        if (folder / "annotations" / file).is_file():
            return folder / "annotations" / file
    raise UserError(
        f"no {name} annotations ({' or '.join(benchmark.annotations)}) in {folder / 'annotations'}; "
        f"`python -m aha.data.prepare {name}` says where to get them, or give --annotations."
    )


def question_items(name: str, root: str | Path) -> list[Item]:
    """The questions of the data set's folder as items, their ids under "question_id"."""
    questions = BENCHMARKS[name].read(find_annotations(name, root))
    return [Item(q.question_id, q.video, q.queries, q.duration, extra={"question_id": q.question_id}) for q in questions]
