"""Events that wait on disk until their receiver has taken them: bounded, in order, kept over kill -9.

    spool = Spool("outputs/state/spool/door-3f2a", most_bytes=64 << 20)
    spool.put(event, picture, clip)  # event: with its id; picture, clip: JPEG, MP4 or None. Never waits for the receiver
    spool.oldest()                   # the next one to deliver, or None
    spool.done(entry)

An event is one file, written whole: what is in the folder was told, and is delivered at least once. An event that was put before, also
before a restart, is not put again (KNOWN last ids are remembered). Where the folder would outgrow `most_bytes`, its oldest events go, and
`lost` counts them; the receiver hears of that with the next event ("lost_before").
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aha.core.files import write_text
from aha.errors import UserError

KNOWN = 2000  # ids


@dataclass(frozen=True)
class Entry:
    path: Path
    event: dict[str, Any]
    picture: bytes | None
    clip: bytes | None


class Spool:
    """Raises UserError where the folder cannot be made. May be used from two threads: one puts, one delivers."""

    def __init__(self, folder: str | os.PathLike, most_bytes: int):
        self.folder, self.most_bytes = Path(folder), most_bytes
        self.lost = 0  # events that were never delivered, since the last one that was
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(".*"):
                path.unlink()  # its writing was cut off
            known = (self.folder / "known").read_text(encoding="utf-8").split("\n") if (self.folder / "known").is_file() else []
            waiting = sorted(self.folder.glob("*.event"))
        except OSError as error:
            raise UserError(f"the spool {folder} cannot be used ({error.strerror}); choose another --state.") from error
        self._known: deque[str] = deque((line for line in known if line), maxlen=KNOWN)
        self._waiting: deque[tuple[Path, int, str]] = deque((path, path.stat().st_size, _id_of(path)) for path in waiting)
        self._bytes = sum(size for _, size, _ in self._waiting)
        self._number = int(waiting[-1].stem) if waiting else 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: dict[str, Any], picture: bytes | None = None, clip: bytes | None = None) -> bool:
        """False: it was put before."""
        with self._lock:
            if event["id"] in self._known or any(event["id"] == other for _, _, other in self._waiting):
                return False
            media = [None if data is None else base64.b64encode(data).decode() for data in (picture, clip)]
            text = json.dumps({"event": event, "media": media})
            while self._waiting and self._bytes + len(text) > self.most_bytes:
                self._drop()
            self._number += 1
            path = self.folder / f"{self._number:012}.event"
            try:
                write_text(path, text)
            except UserError:  # the disk is full: the event is lost, and that is said
                self.lost += 1
                return True
            self._waiting.append((path, len(text), event["id"]))
            self._bytes += len(text)
            return True

    def _drop(self) -> None:
        path, size, _ = self._waiting.popleft()
        path.unlink(missing_ok=True)
        self._bytes -= size
        self.lost += 1

    def oldest(self) -> Entry | None:
        with self._lock:
            while self._waiting:
                path = self._waiting[0][0]
                try:
                    value = json.loads(path.read_text(encoding="utf-8"))
                    media = [None if text is None else base64.b64decode(text) for text in value["media"]]
                    event = {**value["event"], **({"lost_before": self.lost} if self.lost else {})}
                    return Entry(path, event, *media)
                except (OSError, ValueError, KeyError):
                    self._drop()
            return None

    def done(self, entry: Entry) -> None:
        """It was delivered. Its id is remembered first: after a kill in between it is delivered twice, never lost."""
        with self._lock:
            self._known.append(entry.event["id"])
            self.lost -= entry.event.get("lost_before", 0)
            with contextlib.suppress(UserError):  # a full disk: it may come twice
                write_text(self.folder / "known", "\n".join(self._known))
            entry.path.unlink(missing_ok=True)
            if self._waiting and self._waiting[0][0] == entry.path:  # else it was dropped while it was on its way
                self._bytes -= self._waiting.popleft()[1]


def _id_of(path: Path) -> str:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["event"]["id"]
    except (OSError, ValueError, KeyError):
        return ""
