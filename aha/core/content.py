"""What tells a big file from another one, by its content: a name, a size or a date does not.

    content_hash("talk.mp4")            # "9f2c..."
    local_identity("models/judge")      # "local models/judge (3d0a61c25f7e)"

A part of a large file is read, which is enough for what was trained or encoded again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

STRIDE, PIECE = 4 << 20, 4 << 10  # bytes
WHOLE = 16 * STRIDE  # a file up to this size is read whole


def sampled_bytes(path: str | os.PathLike) -> Iterator[bytes]:
    """All of a small file, of a larger one 4 KiB of every 4 MiB: training again moves every tensor and encoding again every packet, so that
    no such change is missed, and 15 GB are read in a second."""
    size = os.path.getsize(path)
    with Path(path).open("rb") as file:
        if size <= WHOLE:
            yield file.read()
            return
        for start in range(0, size, STRIDE):
            file.seek(start)
            yield file.read(PIECE)


def content_hash(path: str | os.PathLike) -> str:
    """A hash of the size and the sampled bytes of a file. Raises OSError."""
    digest = hashlib.sha256(f"{os.path.getsize(path)} ".encode())
    for piece in sampled_bytes(path):
        digest.update(piece)
    return digest.hexdigest()


def local_identity(model: str) -> str:
    """What a model that runs here is called in reports and in the keys of its cached replies: a folder can be filled with another model, so
    the content of its weights, settings and chat template is part of it; a hub id says which model it is."""
    folder = Path(model)
    if not folder.is_dir():
        return f"local {model}"
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json", ".jinja")):
        digest.update(f"{path.name} {content_hash(path)} ".encode())
    return f"local {model} ({digest.hexdigest()[:12]})"
