"""Lines typed while the streams run; from the terminal itself where standard input is a video."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterable

from aha.core.readers import Reader


class Questions:
    def __init__(self, stdin_is_video: bool):
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        Reader(self._read, stdin_is_video, name="aha-watch-questions").start()

    def _read(self, stdin_is_video: bool) -> None:
        try:
            if not stdin_is_video:
                self._lines_of(sys.stdin or ())
                return
            with open("/dev/tty", encoding="utf-8", errors="replace") as terminal:
                self._lines_of(terminal)
        except OSError:
            return  # no terminal: no questions

    def _lines_of(self, file: Iterable[str]) -> None:
        for line in file:
            if line.strip():
                self.lines.put(line.strip())

    def take(self) -> list[str]:
        taken = []
        while not self.lines.empty():
            taken.append(self.lines.get())
        return taken
