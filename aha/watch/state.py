"""What a watch remembers on disk, so that it goes on after kill -9: a snapshot of each stream, and the frames that were scored since.

    store = Store("outputs/state")
    saved = store.load("door")            # None, or Saved: the last snapshot, and the frames to score again
    store.frame("door", time, image)      # of streams that cannot be read again; written by a thread
    store.snapshot("door", state)         # likewise; the frames before it are not needed any more

Files of a stream, in DIR/streams: NAME.state (torch, plain values and tensors, renamed into place whole) and NAME.N.frames, the frames
since snapshot N, each with its moment and length, packed without loss. A frame whose writing was cut off counts as not read. Bounded: one
snapshot, and frames up to the next. A disk that is full or slow never stops the scoring: what could not be written is counted (`failed`).
"""

from __future__ import annotations

import os
import queue
import re
import struct
import sys
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.files import atomic_path
from aha.errors import UserError

HEAD = struct.Struct("<ddIII")  # seconds of the stream, time.time(), side, bytes, crc32 of them
WAITING = 256  # frames and snapshots that may wait for the disk


@dataclass(frozen=True)
class SavedFrame:
    time: float  # seconds of the stream
    wall: float  # time.time() when it was scored
    image_CHW: np.ndarray


@dataclass(frozen=True)
class Saved:
    state: dict[str, Any]
    frames: list[SavedFrame]


class Store:
    """Raises UserError where the folder cannot be made or is in use."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder) / "streams"
        self.failed = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--state {folder} cannot be made ({error.strerror}); choose another folder.") from error
        self._numbers: dict[str, int] = {}  # of the last snapshot of each stream
        self._jobs: queue.Queue[tuple[str, str, Any] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="aha-watch-state", daemon=True)
        self._thread.start()

    def load(self, name: str) -> Saved | None:
        import torch

        path = self.folder / f"{name}.state"
        for other in self.folder.iterdir():
            if re.fullmatch(rf"\.{re.escape(name)}\.[^.]+\.state", other.name):
                other.unlink()  # a snapshot whose writing was cut off
        if not path.is_file():
            return None
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            raise UserError(f"{path} cannot be read ({error}); delete it to start this stream anew.") from error
        self._numbers[name] = number = state["number"]
        later = sorted(n for n in (self._number_of(name, other) for other in self.folder.iterdir()) if n is not None and n >= number)
        frames = [frame for n in later for frame in read_frames(self.folder / f"{name}.{n}.frames")]
        self._numbers[name] = max([number, *later])
        return Saved(state, frames)

    def frame(self, name: str, seconds: float, image_CHW: np.ndarray) -> None:
        self._put(("frame", name, (self._numbers.get(name, 0), seconds, time.time(), image_CHW)))

    def snapshot(self, name: str, state: dict[str, Any]) -> None:
        """The state must not change afterwards (it is written later)."""
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        self._put(("snapshot", name, {**state, "number": number}))

    def forget(self, name: str) -> None:
        """The stream is over: nothing to go on with."""
        self._jobs.put(("forget", name, None))

    def close(self) -> None:
        """Everything is on disk afterwards."""
        self._jobs.put(None)
        self._thread.join()

    def _put(self, job: tuple[str, str, Any]) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self.failed += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            what, name, value = job
            try:
                if what == "frame":
                    self._write_frame(name, *value)
                elif what == "snapshot":
                    self._write_snapshot(name, value)
                else:
                    (self.folder / f"{name}.state").unlink(missing_ok=True)
                    self._delete_frames(name, sys.maxsize)
            except (OSError, UserError) as error:
                self.failed += 1
                if self.failed == 1:
                    print(f"note: the state of {name} could not be written ({error}); the watch goes on.", file=sys.stderr)

    def _write_frame(self, name: str, number: int, seconds: float, wall: float, image_CHW: np.ndarray) -> None:
        data = zlib.compress(image_CHW.tobytes(), 1)
        record = HEAD.pack(seconds, wall, image_CHW.shape[-1], len(data), zlib.crc32(data)) + data
        with (self.folder / f"{name}.{number}.frames").open("ab", buffering=0) as file:
            before = file.tell()
            if file.write(record) != len(record):
                file.truncate(before)
                raise OSError("the disk is full")

    def _write_snapshot(self, name: str, state: dict[str, Any]) -> None:
        import torch

        with atomic_path(self.folder / f"{name}.state") as temporary:
            torch.save(state, temporary)
        self._delete_frames(name, state["number"])

    def _delete_frames(self, name: str, before: int) -> None:
        for path in self.folder.iterdir():
            number = self._number_of(name, path)
            if number is not None and number < before:
                path.unlink(missing_ok=True)

    def _number_of(self, name: str, path: Path) -> int | None:
        match = re.fullmatch(re.escape(name) + r"\.(\d+)\.frames", path.name)
        return int(match[1]) if match else None


def read_frames(path: Path) -> list[SavedFrame]:
    """The whole frames of a file; what was cut off or is damaged ends it."""
    frames = []
    with path.open("rb") as file:
        while len(head := file.read(HEAD.size)) == HEAD.size:
            seconds, wall, side, count, check = HEAD.unpack(head)
            data = file.read(count)
            if len(data) < count or zlib.crc32(data) != check:
                break
            frames.append(SavedFrame(seconds, wall, np.frombuffer(zlib.decompress(data), np.uint8).reshape(3, side, side)))
    return frames
