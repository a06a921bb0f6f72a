"""The files of the proactive benchmarks: annotations as published, and what models said, in the repositories' own outputs and in ours.

What a model said is `Said`: replies to what it was asked (polled), and replies at times that it chose itself (pushed). Layouts:

| layout | files | holds |
| --- | --- | --- |
| ours, and the push files of every repository | JSON Lines or list {question_id, model_response_list: [{role, time, content}]} | pushed |
| one answer a line | JSON Lines or list {question_id, response: "B"}; forward rows of OVO-Bench {question_id, responses: [...]} | polled |
| OVO-Bench | {backward, realtime, forward}: its rows with `response` (forward: one in each test_info) | polled |
| StreamingBench | its annotations with {model: reply}, or {model: {answered, dialog_history}} in every question | polled |

A folder may hold several of them. Numbers may be text where the repositories' code takes them; files may begin with a byte order mark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aha.core.checked import id_of
from aha.core.files import parse_json, read_text
from aha.core.lost_frames import Count
from aha.core.prediction_layouts import is_trained_on
from aha.errors import UserError
from aha.metrics.proactive import Reply

# ---------------------------------------------------------------- values


def seconds(value: Any, where: str, name: str) -> float:
    """A finite number, also written as text ("12.5"), or as a stamp of any number of parts ("0:01:30")."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        parts = [float(part) for part in str(value).strip().strip("[]").split(":")]
        total = 0.0
        for part in parts:
            total = total * 60 + part
        if not math.isfinite(total):
            raise ValueError
    except (ValueError, OverflowError) as error:
        shown = "missing" if value is None else repr(value)[:40]
        raise UserError(f"{where}: {name} is {shown}, not a time in seconds; repair the entry.") from error
    return total


def whole(value: Any, where: str, name: str) -> int:
    number = seconds(value, where, name)
    if number != int(number):
        raise UserError(f"{where}: {name} is {value!r}, not a whole number; repair the entry.")
    return int(number)


def words(value: Any, where: str, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a counted number that was not kept as text
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {'missing' if value is None else repr(value)[:40]}, not text; repair the entry.")
    return value


def said(value: Any, where: str) -> str | None:
    """A polled reply; None where nothing was said."""
    return None if value is None else words(value, where, "response")


def entries(value: Any, where: str, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UserError(f"{where}: {name} is {'missing' if value is None else 'no list of objects'}; repair the file.")
    return value


def name_of(entry: Mapping[str, Any], where: str) -> str:
    for key in ("question_id", "id", "qid"):
        if (name := id_of(entry.get(key))) is not None:
            return name
    raise UserError(f"{where} has no question_id; every entry names its question.")


# ---------------------------------------------------------------- documents


def read_document(path: Path, what: str) -> Any:
    """A JSON value, or the objects of JSON Lines as a list."""
    text = read_text(path, what)
    if not text.strip():
        raise UserError(f"{what} {path} is empty; check the path and the program that wrote it.")
    lines = [line for line in text.split("\n") if line.strip()]
    if path.suffix == ".jsonl" or (len(lines) > 1 and _is_json(lines[0]) and not _is_json(text)):
        return [parse_json(line, f"{what} {path}, line {number}") for number, line in enumerate(lines, 1)]
    value = parse_json(text, f"{what} {path}")
    return value


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def files_below(path: Path, what: str) -> list[Path]:
    """The file itself, or a folder's .json and .jsonl files by name."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.name.removesuffix(".gz").endswith((".json", ".jsonl")))
    if not found:
        raise UserError(f"{what} folder {path} holds no .json or .jsonl file; check the path.")
    return found


# ---------------------------------------------------------------- what models said


@dataclass
class Said:
    """polled: question -> what the benchmark's reader makes of it; pushed: question -> replies. notes: said in the files (policies); clock:
    frames that the model did not see."""

    polled: dict[str, Any] = field(default_factory=dict)
    pushed: dict[str, list[Reply]] = field(default_factory=dict)
    trained_on: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    clock: Count = field(default_factory=Count)

    def add(self, kind: str, key: str, value: Any, where: str) -> None:
        """The same answer twice is one (runs that were resumed repeat lines); two answers are an error."""
        held = getattr(self, kind)
        if key in held and held[key] != value:
            raise UserError(f"{where}: question {key} is answered twice; keep one answer for each question.")
        held[key] = value


def add_pushed(into: Said, listed: Iterable[Mapping[str, Any]], where: str, known: Iterable[str], reply_time: str) -> None:
    """Elements with a model_response_list. reply_time "interval_end": one step of the element's frame_fps later than it says."""
    known = set(known)
    for i, entry in enumerate(listed):
        here = f"{where}, element {i}"
        key = name_of(entry, here)
        if key not in known:
            raise UserError(f"{here}: question {key} is not in the annotations; check that both are of one data set.")
        step = 0.0
        if reply_time == "interval_end":
            rate = seconds(entry.get("frame_fps"), here, "frame_fps (--reply_time interval_end adds a step)")
            if rate <= 0:
                raise UserError(f"{here}: frame_fps is {rate:g}; frames a second are above zero.")
            step = 1 / rate
        turns = entry.get("model_response_list")
        replies = []
        for turn in entries([] if turns is None else turns, here, "model_response_list"):
            if turn.get("role", "assistant") == "assistant":
                content = turn.get("content")
                text = "" if content is None else words(content, here, "content of a reply")
                replies.append((seconds(turn.get("time"), here, "time of a reply") + step, text))
        into.add("pushed", key, replies, here)
        into.clock.add(entry)
        if is_trained_on(entry, here):
            into.trained_on.add(key)
        if isinstance(entry.get("policy"), str) and entry["policy"] not in into.notes:
            into.notes.append(entry["policy"])


def is_pushed(document: Any) -> bool:
    return isinstance(document, list) and any(isinstance(entry, dict) and "model_response_list" in entry for entry in document)


def is_answers(document: Any) -> bool:
    """One answer a line: {question_id, response} or {question_id, responses}."""
    return isinstance(document, list) and any(
        isinstance(entry, dict) and not entry.keys().isdisjoint(("response", "responses")) for entry in document
    )


def model_of(names: Iterable[str], wanted: str | None, where: str) -> str:
    """The model to be scored: the wanted one, or the only one."""
    found = list(dict.fromkeys(names))
    if wanted is not None and wanted in found:
        return wanted
    held = ", ".join(found) or "none"
    if wanted is not None:
        raise UserError(f"{where} holds no model {wanted}; it holds {held}.")
    if len(found) != 1:
        raise UserError(f"{where} holds {'several models' if found else 'no model'} ({held}); choose one with --model_name.")
    return found[0]
