"""Reads a large JSON file value by value in constant memory (the standard library's decoder on a window of the file)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aha.errors import UserError

WHITESPACE = " \t\n\r"
CHUNK = 1 << 16


class JsonStream:
    """A cursor over the JSON text of one file.

    Raises UserError, naming file, line and column, where the text is not valid JSON, is cut off, or is not UTF-8.
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        self.buffer, self.position, self.consumed, self.ended = "", 0, 0, False
        self.decoder = json.JSONDecoder()
        try:
            self.file = path.open(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"{what} {path} cannot be read ({error.strerror}); check the path.") from error

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _more(self) -> bool:
        """Append to the window as much as it holds already (so that long values cost linear time); False at the end of the file."""
        if self.position > CHUNK:
            self.buffer, self.consumed, self.position = self.buffer[self.position :], self.consumed + self.position, 0
        try:
            chunk = self.file.read(max(CHUNK, len(self.buffer)))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.what} {self.path} is not UTF-8 text ({error.reason}); check that this is the right file.") from error
        except OSError as error:
            raise UserError(f"{self.what} {self.path} cannot be read ({error.strerror}); check the path.") from error
        self.buffer += chunk
        self.ended = not chunk
        return bool(chunk)

    def error(self, problem: str, position: int | None = None) -> UserError:
        offset = self.consumed + (self.position if position is None else position)
        self.file.seek(0)
        before = self.file.read(offset)
        line, column = before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1
        return UserError(f"{self.what} {self.path} is not valid JSON (line {line}, column {column}: {problem}); repair or rewrite it.")

    def peek(self) -> str:
        """The next character that is not white space, without taking it; "" at the end of the file."""
        while True:
            while self.position < len(self.buffer):
                if self.buffer[self.position] not in WHITESPACE:
                    return self.buffer[self.position]
                self.position += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            raise self.error(f"{expected!r} expected, found {found!r}" if found else "the file is cut off")
        self.position += 1

    def value(self) -> Any:
        """Decode and take the next value. NaN and Infinity are let through: the caller names the video and index."""
        if not self.peek():
            raise self.error("the file is cut off")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                if self.ended or not self._more():
                    raise self.error("the file is cut off" if error.pos >= len(self.buffer) else error.msg, error.pos) from error
                continue
            except (RecursionError, ValueError) as error:  # nested a thousand deep, or a number of thousands of digits
                raise self.error(f"value too deep or too long: {error}") from error
            if end == len(self.buffer) and not self.ended and self._more():
                continue  # a number may go on in the next chunk
            self.position = end
            return value

    def elements(self) -> Iterator[Any]:
        """The elements of the array that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self.take("]")
                return
            self.take(",")

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; the caller takes each key's value before asking for the next key."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self.error("a key in double quotes expected" if self.peek() else "the file is cut off")
            key = self.value()
            self.take(":")
            yield key
            if self.peek() == "}":
                self.take("}")
                return
            self.take(",")

    def end(self) -> None:
        if self.peek():
            raise self.error("text after the end of the value")
