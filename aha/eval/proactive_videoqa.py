"""ProactiveVideoQA (2507.09313): PAUC of the replies within each true answer's span. Definitions: test/data/proactive/README.md.

A judge grades what was said so far against the true answer, 1 to 3. Percent, over all answers of a subset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.checked import interval
from aha.errors import UserError
from aha.eval.judge import Pair, Rubric
from aha.eval.proactive_files import Said, add_pushed, entries, is_pushed, name_of, read_document, seconds, words
from aha.eval.task import Item
from aha.metrics.proactive import OMEGAS, TIMING, Span, judged, kept_points, pauc, read_points, timing
from aha.metrics.proactive_answers import LETTERS
from aha.results.layout import Protocol
from aha.results.tree import Column, Pooled

SUBSETS = ("WEB", "EGO", "TV", "VAD")
NAMES = {omega: f"proactivevideoqa_pauc_w{omega:g}" for omega in OMEGAS}
BESIDE = "proactivevideoqa_timing"
PROTOCOLS = (
    *(
        Protocol(name, f"PAUC, weight of time {omega:g}: mean over answers; silence has 25 (ProactiveVideoQA); percent", SUBSETS, SUBSETS)
        for omega, name in NAMES.items()
    ),
    Protocol(
        BESIDE, "what PAUC does not see: timing_error, seconds between the starts of answers and their nearest replies; early, "
        "late, never: shares of the answers; duplicates, false alarms: replies a question", TIMING,
    ),
)  # fmt: skip
PAUC_RUBRIC = Rubric(
    "You compare what a system has said so far, while watching a video, with the correct answer. Reply with one digit alone: 3 where it "
    "says all that the correct answer says, 2 where it says part of it, 1 where it says none of it or contradicts it.",
    "Question: {question}\nCorrect answer: {gold}\nSaid so far: {predicted}\nDigit:",
    (1, 2, 3),
)
Judged = Callable[[str, int, str, str], int | None]  # question, number of the answer, true answer, what was said -> 0, 1, 2 or no point


@dataclass(frozen=True)
class Asked:
    """One question with its true answers."""

    key: str
    subset: str
    video: str
    queries: tuple[tuple[float, str], ...]
    duration: float
    spans: tuple[Span, ...]


def read_questions(path: str | Path) -> dict[str, Asked]:
    """Of a folder with SUBSET/anno.json, or of one subset's file. Raises UserError naming file, element and field."""
    path = Path(path)
    files = {path: _named(path)}
    if path.is_dir():
        files = {path / subset / "anno.json": subset for subset in SUBSETS if (path / subset / "anno.json").is_file()}
        if not files and (path / "anno.json").is_file():
            files = {path / "anno.json": _named(path / "anno.json")}
        if not files:
            raise UserError(f"{path} holds no {' or '.join(f'{subset}/anno.json' for subset in SUBSETS)}; check the path.")
    found: dict[str, Asked] = {}
    for file, subset in files.items():
        listed = entries(read_document(file, "ProactiveVideoQA annotations"), str(file), "its content")
        for i, entry in enumerate(listed):
            one = _question(entry, subset or _guess(entry), f"{file}, element {i}")
            if one.key in found:
                raise UserError(f"{file}, element {i}: question {one.key} is listed twice; ids must differ.")
            found[one.key] = one
    if not found:
        raise UserError(f"{path} holds no questions; is this the data set's anno.json?")
    return found


def _named(path: Path) -> str | None:
    """The subset that a file or its folder is named after."""
    return next((s for name in (path.parent.name, path.stem) for s in SUBSETS if name.upper() == s), None)


def _guess(entry: Mapping[str, Any]) -> str:
    """By the fields that only one subset has."""
    if "frame" in entry or "audio" in entry:
        return "TV"
    answers = [answer for answer in entry.get("answer") or [] if isinstance(answer, dict)]
    if "num_captions" in entry or any("num_captions" in answer for answer in answers):
        return "VAD"
    return "EGO" if any("type" in answer for answer in answers) else "WEB"


def _question(entry: Mapping[str, Any], subset: str, where: str) -> Asked:
    spans = []
    for k, answer in enumerate(entries(entry.get("answer"), where, "answer")):
        related, reply = (_interval(answer.get(name), f"{where}, answer {k}", name) for name in ("related_timespan", "reply_timespan"))
        spans.append(Span(reply[0], related[1], reply[1], words(answer.get("content"), f"{where}, answer {k}", "content")))
    turns = entries(entry.get("conversation", []), where, "conversation")
    queries = tuple(
        (seconds(turn.get("time", 0), where, "time of a turn"), words(turn.get("content"), where, "content of a turn"))
        for turn in turns if turn.get("role", "user") == "user"
    )  # fmt: skip
    duration = (
        seconds(entry["duration"], where, "duration")
        if entry.get("duration") is not None
        else max((s.reply_end for s in spans), default=0.0)
    )
    return Asked(name_of(entry, where), subset, str(entry.get("video", "")), queries, duration, tuple(spans))


def _interval(value: Any, where: str, name: str) -> tuple[float, float]:
    if isinstance(value, list) and len(value) == 2:
        value = [seconds(end, where, name) for end in value]
    return interval(value, where, name)


def rounds(one: Asked, fps: float) -> int:
    """Steps of the stream: up to the end of the last reply span, at least one; a reply in step r has the time (r + 1) / fps."""
    last = max((span.reply_end for span in one.spans), default=one.duration)
    return max(1, min(int(one.duration * fps), int(np.ceil(min(one.duration, last) * fps))))


# ---------------------------------------------------------------- what models said


def read_said(path: Path, questions: Mapping[str, Asked], reply_time: str) -> Said:
    """Of a folder with SUBSET.jsonl or SUBSET/predictions.jsonl, or of one file. Raises UserError."""
    found = Said()
    files = [path]
    if path.is_dir():
        subsets = dict.fromkeys(one.subset for one in questions.values())
        places = [place for s in subsets for place in (path / f"{s}.jsonl", path / s / "predictions.jsonl", path / f"{s}.json")]
        files = [place for place in (*places, path / "predictions.jsonl") if place.is_file()]
        if not files:
            raise UserError(f"{path} holds none of {', '.join(f'{s}.jsonl, {s}/predictions.jsonl' for s in subsets)}; check the path.")
    for file in files:
        document = read_document(file, "prediction file")
        if not is_pushed(document):
            raise UserError(f"{file} is no prediction file: expected lines {{question_id, model_response_list}}.")
        add_pushed(found, entries(document, str(file), "its content"), str(file), questions, reply_time)
    return found


def pairs(questions: Mapping[str, Asked], found: Said) -> dict[tuple[str, int, str], Pair]:
    """What a judge is asked: (question, number of the answer, what was said so far) -> pair."""
    return {
        (key, turn, said): Pair(one.queries[0][1] if one.queries else "", span.answer, said, PAUC_RUBRIC)
        for key, one in questions.items()
        for turn, span in enumerate(one.spans)
        for _, said in judged(span, found.pushed.get(key, ()))
    }


def read_replies(path: Path, questions: Mapping[str, Asked]) -> Judged:
    """A judge's replies, kept in a file: {question_id, turn, ground_truth, predicted, judge}, a list or lines."""
    found: dict[tuple[str, int, str], int | None] = {}
    for i, entry in enumerate(entries(read_document(path, "judge replies"), str(path), "its content")):
        where = f"{path}, element {i}"
        turn = int(seconds(entry.get("turn"), where, "turn"))
        reply = entry.get("judge")
        place = name_of(entry, where), turn, words(entry.get("predicted"), where, "predicted")
        points = None if reply is None else read_points(words(reply, where, "judge"))
        one = questions.get(place[0])
        if one is not None and turn < len(one.spans) and entry.get("ground_truth", one.spans[turn].answer) != one.spans[turn].answer:
            raise UserError(f"{where}: ground_truth is not answer {turn} of question {place[0]}; the file was made for other annotations.")
        if place in found and found[place] != points:
            raise UserError(f"{where}: question {place[0]}, turn {turn} is judged twice, differently; keep one reply for each pair.")
        found[place] = points

    def score(key: str, turn: int, answer: str, said: str) -> int | None:
        if (key, turn, said) not in found:
            raise UserError(f"{path} has no judge's reply for question {key}, turn {turn}, predicted {said!r:.60}; add it.")
        return found[key, turn, said]

    return score


# ---------------------------------------------------------------- numbers


def columns(questions: Mapping[str, Asked], found: Said, score: Judged | None) -> list[Column]:
    """PAUC where there is a judge, timing always; a question without a prediction is silent."""
    result = []
    for subset in SUBSETS:
        own = {key: one for key, one in questions.items() if one.subset == subset}
        if not own:
            continue
        ids = list(own)
        if score is not None:
            for omega, name in NAMES.items():
                sums = np.array([_pauc_sums(one, found.pushed.get(key, ()), omega, score) for key, one in own.items()])
                with np.errstate(invalid="ignore"):
                    values = 100 * sums[:, 0] / sums[:, 1]
                result.append(Column(name, subset, "", ids, values, pooled=Pooled(sums, lambda s: 100 * s[:, 0] / s[:, 1])))
        rows = [
            timing([(s.start, s.start, s.reply_end) for s in one.spans], [time for time, _ in found.pushed.get(key, ())])
            for key, one in own.items()
        ]
        result += [Column(BESIDE, name, subset, ids, np.array([row[name] for row in rows])) for name in TIMING]
    return result


def _pauc_sums(one: Asked, replies: Sequence[tuple[float, str]], omega: float, score: Judged) -> tuple[float, float]:
    """(sum of PAUC, number) of a question's answers."""
    total = 0.0
    for turn, span in enumerate(one.spans):
        points = [(time, score(one.key, turn, span.answer, said)) for time, said in judged(span, replies)]
        total += pauc(span, kept_points(span, points), omega)
    return total, float(len(one.spans))


def blind(questions: Mapping[str, Asked]) -> dict[str, Said]:
    """Row name -> what it says; its texts count as wrong (1) without asking the judge."""

    def every(step: float, text: Callable[[Asked], str]) -> dict[str, list[tuple[float, str]]]:
        return {key: [(step * k, text(one)) for k in range(1, int(one.duration / step) + 1)] for key, one in questions.items()}

    def asked(one: Asked) -> str:
        return one.queries[0][1] if one.queries else ""

    return {
        "silence": Said(pushed={key: [] for key in questions}),
        "always_yes": Said(pushed=every(1.0, lambda one: "Yes")),
        "abcde": Said(pushed=every(1.0, lambda one: LETTERS)),
        "every_5_s": Said(pushed=every(5.0, asked)),
        "echo_after_6_s": Said(
            pushed={key: [((one.queries[0][0] if one.queries else 0.0) + 6.0, asked(one))] for key, one in questions.items()}
        ),
    }


def items(questions: Mapping[str, Asked]) -> list[Item]:
    return [
        Item(key, f"{one.subset}/videos/{one.video}", one.queries, one.duration, one.subset, {"question_id": key})
        for key, one in questions.items()
    ]
