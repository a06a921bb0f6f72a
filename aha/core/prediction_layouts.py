"""The elements of a prediction file, in any of its layouts: what is JSON, where an element stands, and what is not an element.

    for record, where, trained_on in elements(Path("scores.json")):
        ...                                     # {"video_uuid": ...}, "scores.json, element 3", False

Files with one element a line (JSON Lines, and the lists that `aha score` writes) are read line by line, so that a file of any size takes
constant memory; all others are read whole. `aha.core.prediction` says which layouts there are and checks what the elements hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aha.core.files import cure_of, read_json
from aha.errors import UserError

VIDEO_IDS = ("video_uuid", "video_id", "vid", "video")
QUESTION_IDS = ("question_id", "qid")
Element = tuple[Mapping[str, Any], str, bool]  # the record, "FILE, element 3" for errors, whether the model was trained on its video


def elements(path: Path) -> Iterator[Element]:
    """The elements of a file in its order; none for an empty file. Raises UserError, naming file and line, for a file that cannot be read,
    text that is not JSON, an element that is no object, a short form that has a video twice, and a list that is cut off."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "").strip()
        if not first:
            return
        if first[0] not in "[{":
            raise UserError(f"{path} is no prediction file: it starts with {first[0]!r} where a JSON list or object is expected.")
        if _one_a_line(first):
            yield from _lines(path)
        else:
            yield from _document(path)
    except FileNotFoundError as error:
        raise UserError(f"prediction file {path} does not exist; check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"prediction file {path} is not UTF-8 text ({error.reason}); {cure_of(path)}.") from error
    except OSError as error:
        raise UserError(f"prediction file {path} cannot be read ({error.strerror}); check the path.") from error


def _one_a_line(first: str) -> bool:
    """Whether the first line is one whole element: of JSON Lines, or of our lists."""
    try:
        value = json.loads(first.removeprefix("[").removesuffix("]").removesuffix(","))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (first[0] == "[" or _is_element(value))


def _is_element(value: Mapping[str, Any]) -> bool:
    """An element of a file, not one of the short forms {id: scores}."""
    if isinstance(value.get("videos"), dict):
        return False
    names_something = any(key in value and not isinstance(value[key], list | dict) for key in (*VIDEO_IDS, *QUESTION_IDS))
    return names_something or "debug_data" in value or (bool(value) and not any(_is_short(v) for v in value.values()))


def _is_short(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and "scores" in value)


def _lines(path: Path) -> Iterator[Element]:
    with path.open(encoding="utf-8-sig") as file:
        is_list, ended, index = False, False, 0
        for line_number, line in enumerate(file, 1):
            text = line.strip()
            if not text:
                continue
            if ended:
                raise UserError(
                    f"prediction file {path} is not valid JSON (line {line_number}: text after the end of the list); repair it."
                )
            if index == 0 and text[0] == "[":
                is_list, text = True, text[1:]
            if is_list:
                ended = text.endswith("]") and not _parses(text)
                text = text.removesuffix("]") if ended else text.removesuffix(",")
                if not text.strip():
                    continue
            where = f"{path}, element {index}" if is_list else f"{path}:{line_number}"
            yield _element(_parse(text, path, line_number), where)
            index += 1
        if is_list and not ended:
            raise UserError(f"prediction file {path} is not valid JSON (line {line_number}: the file is cut off); repair or rewrite it.")


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str, path: Path, line_number: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line_number}, column {error.colno}: {error.msg}"
        raise UserError(f"prediction file {path} is not valid JSON ({place}); repair or rewrite it.") from error
    except (RecursionError, ValueError) as error:  # nested a thousand deep, or a number of thousands of digits
        raise UserError(f"prediction file {path} is not valid JSON (line {line_number}: {error}); repair or rewrite it.") from error


def _document(path: Path) -> Iterator[Element]:
    """A file that is one JSON value: a list of elements, one element, or a short form."""
    document = read_json(path, "prediction file", lambda name: f"{path}: {name} is predicted twice; keep one prediction for each video.")
    if isinstance(document, list):
        for index, entry in enumerate(document):
            yield _element(entry, f"{path}, element {index}")
        return
    if _is_element(document):
        yield _element(document, f"{path}, element 0")
        return
    all_trained_on = is_trained_on(document, str(path))
    videos = document.get("videos", {key: value for key, value in document.items() if key != "trained_on"})
    if not isinstance(videos, dict):
        raise UserError(f'{path}: "videos" is no object {{id: scores}}; check the file.')
    for video_id, value in videos.items():
        where = f"{path}: video {video_id}"
        record = {"scores": value} if isinstance(value, list) else value
        if not isinstance(record, dict) or "scores" not in record:
            raise UserError(f'{where} has no list of scores; expected {{"frames": [...], "scores": [...]}} or a list of numbers.')
        yield {"video_uuid": video_id, **record}, str(path), all_trained_on or is_trained_on(record, where)


def _element(entry: Any, where: str) -> Element:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is no object; expected one object with video_uuid, true_frames_list and debug_data for each video.")
    return entry, where, is_trained_on(entry, where)


def is_trained_on(record: Mapping[str, Any], where: str) -> bool:
    """Whether it says that the model has seen the video in training. Raises UserError for anything but true and false, since a warning
    depends on it."""
    value = record.get("trained_on", False)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise UserError(f"{where}: trained_on is {value!r:.40}, neither true nor false; repair the entry.")
