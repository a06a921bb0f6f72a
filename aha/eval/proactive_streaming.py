"""StreamingBench: proactive output (polled and pushed) and multiple choice. Definitions: test/data/proactive/README.md.

The annotations name no question; its id is its running number over the file, from 0. All numbers are fractions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.errors import UserError
from aha.eval.proactive_files import (
    Said,
    add_pushed,
    entries,
    files_below,
    is_answers,
    is_pushed,
    model_of,
    name_of,
    read_document,
    said,
    seconds,
    words,
)  # fmt: skip
from aha.eval.task import Item
from aha.metrics.proactive import LATEST, TIMING, around, mark, seen, timing
from aha.metrics.proactive_answers import LETTERS, MCQ_RULES
from aha.results.layout import Protocol
from aha.results.tree import Column, Pooled

PO_FILES = ("questions_proactive.json", "questions_proactive_50.json")
MCQ_FILES = ("questions_real.json", "questions_omni.json")
BESIDE = "timing_error in seconds; early, late, never: shares of the questions; duplicates, false alarms: replies a question"
MARKS = ("time_accuracy", "answer_accuracy")
RECALL = ("recall@2s", "accuracy@2s", "recall@1s", "accuracy@1s")
PO_PROTOCOLS = (
    Protocol(
        "streamingbench_po_poll", "asked every second until the truth + 4 s, given the wanted text (StreamingBench's "
        f"StreamingBenchProactive.py, count.py); {BESIDE}", MARKS + TIMING,
    ),
    Protocol(
        "streamingbench_po_push", f"the first reply after the question, marked by count.py (paper C.1); {BESIDE}", MARKS + TIMING
    ),
    Protocol("streamingbench_po_push_recall", "any reply, and the first, within 2 s and 1 s (Em-Garde); text is not marked", RECALL),
)  # fmt: skip
FIELDS = {  # of a published question: every other field is a model's
    "task_type", "question", "time_stamp", "answer", "options", "required_ability", "ground_truth_time_stamp", "ground_truth_output",
    "question_id", "id", "temporal_clue_type", "frames_required", "context", "timestamp", "ground_truth", "category",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One question. truth, wanted: of proactive output; answer, options: of multiple choice. Times in seconds."""

    key: str
    video: str
    question: str
    start: float
    task: str = ""
    truth: float = 0.0
    wanted: str = ""
    answer: str = ""
    options: tuple[str, ...] = ()


def _questions(document: Any, path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, video, question as published) in the file's order."""
    number = 0
    for i, entry in enumerate(entries(document, str(path), "its content")):
        for k, asked in enumerate(entries(entry.get("questions"), f"{path}, element {i}", "questions")):
            yield f"{path}, element {i}, question {k} (id {number})", str(entry.get("video_path", "")), asked
            number += 1


def _file(path: str | Path, names: tuple[str, ...]) -> Path:
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in names if (path / name).is_file()]
    return found[0] if found else path / names[0]


def read_po(path: str | Path) -> dict[str, Asked]:
    """Questions of the proactive output. Raises UserError naming file, element and field."""
    path = _file(path, PO_FILES)
    found: dict[str, Asked] = {}
    for where, video, one in _questions(read_document(path, "StreamingBench annotations"), path):
        key = str(len(found))
        start = seconds(one.get("time_stamp"), where, "time_stamp")
        truth = seconds(one.get("ground_truth_time_stamp"), where, "ground_truth_time_stamp")
        wanted = words(one.get("ground_truth_output"), where, "ground_truth_output")
        found[key] = Asked(key, video, words(one.get("question"), where, "question"), start, "", truth, wanted)
    return _some(found, path)


def read_mcq(path: str | Path) -> dict[str, Asked]:
    """Multiple-choice questions. Raises UserError naming file, element and field."""
    path = _file(path, MCQ_FILES)
    found: dict[str, Asked] = {}
    for where, video, one in _questions(read_document(path, "StreamingBench annotations"), path):
        key = str(len(found))
        answer = words(one.get("answer"), where, "answer")
        options = one.get("options") or []
        start = seconds(one.get("time_stamp", 0), where, "time_stamp")
        task = words(one.get("task_type"), where, "task_type")
        asked = words(one.get("question"), where, "question")
        found[key] = Asked(key, video, asked, start, task, answer=answer, options=tuple(map(str, options)))
    return _some(found, path)


def _some(found: dict[str, Asked], path: Path) -> dict[str, Asked]:
    if not found:
        raise UserError(f"{path} holds no questions; is this the data set's annotation file?")
    return found


# ---------------------------------------------------------------- what models said


def read_said(path: Path, questions: Mapping[str, Asked], model_name: str | None, reply_time: str, dialogs: bool) -> Said:
    """polled: (second, words) of the dialogue's last turn and whether it was an answer (dialogs), else the reply. Raises UserError."""
    found = Said()
    for file in files_below(path, "predictions"):
        document = read_document(file, "prediction file")
        where = str(file)
        if dialogs and is_pushed(document):
            add_pushed(found, entries(document, where, "its content"), where, questions, reply_time)
        elif not dialogs and is_answers(document):
            for i, entry in enumerate(entries(document, where, "its content")):
                here = f"{where}, element {i}"
                if (key := name_of(entry, here)) not in questions:
                    raise UserError(f"{here}: question {key} is not in the annotations, whose ids count from 0.")
                found.add("polled", key, said(entry.get("response"), here), here)
        elif isinstance(document, list) and any(isinstance(e, dict) and "questions" in e for e in document):
            _add_annotated(found, document, file, questions, model_name, dialogs)
        elif not path.is_dir():
            expected = "model_response_list" if dialogs else "response"
            raise UserError(f"{file} is no StreamingBench output: expected its annotations with replies, or lines with {expected}.")
    return found


def _add_annotated(found: Said, document: Any, file: Path, questions: Mapping[str, Asked], model: str | None, dialogs: bool) -> None:
    """The repository's own output. Its questions are found by video, time and text, so its order may be another."""
    places: dict[tuple[str, float, str], list[str]] = defaultdict(list)
    for key, asked in questions.items():
        places[asked.video, asked.start, asked.question].append(key)
    listed = list(_questions(document, file))

    def is_reply(name: str, value: Any) -> bool:
        return isinstance(value, dict) and "dialog_history" in value if dialogs else name not in FIELDS and isinstance(value, str)

    named = [name for _, _, one in listed for name, value in one.items() if is_reply(name, value)]
    name = model_of(named, model, str(file))
    for where, video, one in listed:
        start = seconds(one.get("time_stamp", 0), where, "time_stamp")
        same = places.get((video, start, str(one.get("question"))))
        if not same:
            raise UserError(
                f"{where}: question {one.get('question')!r:.60} is not in the annotations; check that both are of one data set."
            )
        key = same.pop(0)
        if name in one:
            found.add("polled", key, _last_turn(one[name], where) if dialogs else said(one[name], where), where)


def _last_turn(value: Any, where: str) -> tuple[float, str, bool]:
    """(time, words, whether the model spoke): the dialogue's last turn is the reply to the question, or the last poll."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: the model's entry is no object {{answered, dialog_history}}; repair the entry.")
    turns = entries(value.get("dialog_history"), where, "dialog_history")
    if not turns:
        raise UserError(f"{where}: dialog_history is empty; leave the model out of a question that was not run.")
    content = turns[-1].get("content")
    time = seconds(turns[-1].get("time"), where, "time of the last turn")
    return time, "" if content is None else words(content, where, "content"), value.get("answered", True) not in (False, None)


# ---------------------------------------------------------------- numbers


def po_columns(questions: Mapping[str, Asked], found: Said) -> list[Column]:
    result = []
    polled = [key for key in questions if key in found.polled]
    if polled:
        marks = [mark(found.polled[key][0], found.polled[key][1], questions[key].truth, questions[key].wanted) for key in polled]
        spoke = [[found.polled[key][0]] if found.polled[key][2] else [] for key in polled]
        result += _marked("streamingbench_po_poll", questions, polled, marks, spoke)
    pushed = [key for key in questions if key in found.pushed]
    if pushed:
        heard = {key: seen(found.pushed[key], questions[key].start, questions[key].truth) for key in pushed}
        marks = [mark(*heard[key][0], questions[key].truth, questions[key].wanted) if heard[key] else (0.0, 0.0) for key in pushed]
        times = [[time for time, _ in found.pushed[key] if time > questions[key].start] for key in pushed]
        result += _marked("streamingbench_po_push", questions, pushed, marks, times)
        for limit in (2, 1):
            near = [[abs(time - questions[key].truth) <= limit for time, _ in heard[key]] for key in pushed]
            for metric, values in (("recall", [any(row) for row in near]), ("accuracy", [bool(row and row[0]) for row in near])):
                result.append(Column("streamingbench_po_push_recall", f"{metric}@{limit}s", "", pushed, np.array(values, float)))
    return result


def _marked(protocol: str, questions: Mapping[str, Asked], ids: list[str], marks: list[tuple[float, float]], times: Any) -> list[Column]:
    beside = [timing([around(questions[key].truth)], spoken) for key, spoken in zip(ids, times)]
    table = {name: np.array(values) for name, values in zip(MARKS, zip(*marks))}
    table |= {name: np.array([row[name] for row in beside]) for name in TIMING}
    return [Column(protocol, name, "", ids, values) for name, values in table.items()]


def mcq_protocols(questions: Mapping[str, Asked]) -> tuple[Protocol, ...]:
    tasks = tuple(dict.fromkeys(one.task for one in questions.values()))
    about = {
        "first_character": "the reply's first character (StreamingBench's count.py)",
        "after_prefixes": "announcing phrases out, then the first of A to D (TimeChat-Online)",
        "whole_word": "the first lone letter, else the first lone 1 to 4 (SimpleStream)",
        "normalised": "an announced, leading or lone letter (VLMEvalKit)",
    }
    return tuple(
        Protocol(f"streamingbench_mcq_{rule}", f"{about[rule]}; micro: over questions, macro: over tasks", ("micro", "macro", *tasks))
        for rule in MCQ_RULES
    )


def _mean_over_tasks(sums_BK: np.ndarray) -> np.ndarray:
    """[right answers of each task, questions of each task] -> the mean of the tasks' shares [B]."""
    right, asked = np.split(sums_BK, 2, axis=1)
    return np.nanmean(right / asked, axis=1)


def mcq_columns(questions: Mapping[str, Asked], found: Said) -> list[Column]:
    ids = [key for key in questions if key in found.polled]
    tasks = list(dict.fromkeys(questions[key].task for key in ids))
    inside = np.array([[questions[key].task == task for task in tasks] for key in ids], float).reshape(len(ids), len(tasks))
    result = []
    for rule, letter in MCQ_RULES.items() if ids else ():
        marks = np.array([float(letter(found.polled[key] or "") == questions[key].answer) for key in ids])
        sums = np.concatenate([inside * marks[:, None], inside], axis=1)
        protocol = f"streamingbench_mcq_{rule}"
        result.append(Column(protocol, "micro", "", ids, marks))
        result.append(Column(protocol, "macro", "", ids, marks, pooled=Pooled(sums, _mean_over_tasks)))
        result += [Column(protocol, task, "", ids, np.where(inside[:, k] > 0, marks, np.nan)) for k, task in enumerate(tasks)]
    return result


# ---------------------------------------------------------------- models that look at no frame


def blind_po(questions: Mapping[str, Asked]) -> dict[str, Said]:
    """Row name -> what it says. Polled, it says yes at the first poll after its delay, and then its text."""

    def polled(delay: float | None, text: str | None) -> dict[str, tuple[float, str, bool]]:
        answers = {}
        for key, one in questions.items():
            last = one.truth + LATEST
            when = last + 1 if delay is None else one.start + delay
            answers[key] = (when, one.question if text is None else text, True) if when <= last else (last, "No", False)
        return answers

    def pushed(step: float, text: str | None) -> dict[str, list[tuple[float, str]]]:
        return {
            key: [
                (one.start + step * k, one.question if text is None else text)
                for k in range(1, int((one.truth + LATEST - one.start) / step) + 1)
            ]
            for key, one in questions.items()
        }

    return {
        "silence": Said(polled(None, ""), {key: [] for key in questions}),
        "always_yes": Said(polled(1.0, "Yes"), pushed(1.0, "Yes")),
        "abcde": Said(polled(1.0, LETTERS), pushed(1.0, LETTERS)),
        "every_5_s": Said(polled(5.0, None), pushed(5.0, None)),
        "echo_after_6_s": Said(polled(6.0, None), {key: [(one.start + 6.0, one.question)] for key, one in questions.items()}),
    }


def blind_mcq(questions: Mapping[str, Asked]) -> dict[str, Said]:
    return {
        "silence": Said(dict.fromkeys(questions, "")),
        "always_yes": Said(dict.fromkeys(questions, "Yes")),
        "abcde": Said(dict.fromkeys(questions, LETTERS)),
        "always_a": Said(dict.fromkeys(questions, "A")),
        "echo_after_6_s": Said({key: one.question for key, one in questions.items()}),
    }


def items(questions: Mapping[str, Asked]) -> list[Item]:
    return [
        Item(key, Path(one.video).name, ((one.start, one.question),), None, one.task, extra={"question_id": key})
        for key, one in questions.items()
    ]
