"""What the ranks of a scoring have finished, on disk: so a killed run goes on where it stopped.

    folder = parts_folder(output, choice, config, items)      # OUTPUT.parts-<hash of all that changes scores>
    done = read_parts(folder, items=items)                    # {key: record} of all ranks
    with part_writer(folder, rank, world) as write:
        write({"key": item.key, "entry": prediction.record})  # on the disk when it returns

A record is one JSON line: {"key", "video": bytes and time of change of the file, "entry": prediction, or "error": why there is none}.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.core.prediction import Prediction, json_line
from aha.errors import UserError
from aha.scoring.config import ScoreConfig
from aha.scoring.model_choice import ModelChoice

if TYPE_CHECKING:
    from aha.scoring.dataset import Item


def parts_folder(output: Path, choice: ModelChoice, config: ScoreConfig, items: Sequence[Item]) -> Path:
    """Beside the output; its name depends on everything that changes scores, so that parts of other settings are never mixed in.

    Raises UserError where an earlier version left a folder there: its name was made of other things.
    """
    for folder in output.parent.glob(f"{output.name}.parts-*"):
        if re.fullmatch(r"[0-9a-f]{12}", folder.name.rpartition("-")[2]):
            raise UserError(
                f"{folder} holds the beginning of a run of an earlier version (18f6d84), which named its settings in another way; "
                "finish it with that version, or remove the folder to start anew."
            )
    asked = [(item.key, item.path, [(q.text, q.time) for q in item.queries]) for item in items]
    settings = json.dumps([choice.weights_key(), config.key(), asked])
    return output.with_name(f"{output.name}.parts-{hashlib.sha256(settings.encode()).hexdigest()[:16]}")


def read_parts(folder: Path, left_out: list[str] | None = None, items: Sequence[Item] = ()) -> dict[str, dict[str, Any]]:
    """What all ranks have finished: {key: {"entry": prediction} or {"error": reason}}. Not counted, so that their videos are scored again:
    damaged lines, a last line that a kill cut off, and lines of an item (of `items`) whose video is another file by now.

    left_out: a list to which a sentence is added for each damaged line and each changed video.
    """
    files = {item.key: list(item.file) for item in items}
    done: dict[str, dict[str, Any]] = {}
    changed: dict[str, None] = {}
    damaged = []
    for path in sorted(folder.glob("rank-*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what follows the last line end is empty or cut off
            record = usable(line)
            if record is None:
                damaged.append(f"{path.name}:{number} is damaged")
            elif record["key"] in files and record.get("video", files[record["key"]]) != files[record["key"]]:
                changed[record["key"]] = None
            else:
                done[record["key"]] = record
    if left_out is not None:
        left_out += [*damaged, *(f"video {key} is another file by now" for key in changed if key not in done)]
    return done


def usable(line: bytes) -> dict[str, Any] | None:
    """A record of a part file; None where the line is damaged."""
    try:
        record = json.loads(line)
        key, error = record["key"], record.get("error")
        if not isinstance(key, str) or (error is None and not Prediction(record["entry"]).rows()) or not isinstance(error, str | None):
            return None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, UserError):
        return None
    return record


@contextmanager
def part_writer(folder: Path, rank: int, world: int) -> Iterator[Any]:
    """A function that appends one record and returns when it is on the disk."""
    path = folder / f"rank-{rank:04d}-of-{world:04d}.jsonl"
    with contextlib.ExitStack() as stack, written(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(path.open("ab", buffering=0))
        data = path.read_bytes()
        file.truncate(data.rfind(b"\n") + 1)  # a line that a kill cut off

        def write(record: dict[str, Any]) -> None:
            line = json_line(record).encode() + b"\n"
            with written(path):
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())

        yield write


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn a disk that refuses to take what is written into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); free the disk or choose another --output; the same command goes on."
        ) from error
