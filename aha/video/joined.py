"""Files joined end to end with `cat`: of MP4 only the first is read, because its header says where its pictures lie.

(AVI is read on past such a joint, and MPEG streams and Matroska, whose clock is aha/video/clock.py's.)
"""

from __future__ import annotations

import os
from typing import BinaryIO

MOST_BOXES = 10_000  # a file of fragments has two for each; what lies behind so many is not looked at


def first_file_ends(path: str) -> int | None:
    """The byte at which a second MP4 file begins inside this one; None where there is none. Reads 16 bytes a box.

    Boxes: length (4 bytes, 1 = in the 8 bytes after the name, 0 = to the end), name. A file has one `moov`, and `ftyp` before it.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        return _second_header(file, size)


def _second_header(file: BinaryIO, size: int) -> int | None:
    at, begins, headers = 0, 0, 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return None
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if name == b"moof":
            return None  # fragments: a player goes on with those of the second file
        if name == b"ftyp":
            begins = at
        elif name == b"moov":
            headers += 1
            if headers == 2:
                return begins or at
        if length < 8 or at + length > size:
            return None
        at += length
    return None
