"""A cache on disk for numbers that depend on the annotations only: AHA_CACHE, else XDG_CACHE_HOME/aha, else ~/.cache/aha.

A missing, damaged or unwritable cache costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from aha.core.files import write_text
from aha.errors import UserError


def cache_folder() -> Path:
    if os.environ.get("AHA_CACHE"):
        return Path(os.environ["AHA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aha"


def load(name: str) -> dict[str, Any]:
    """The entries of a cache file."""
    try:
        entries = json.loads((cache_folder() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def store(name: str, entries: dict[str, Any]) -> None:
    with contextlib.suppress(UserError):
        write_text(cache_folder() / name, json.dumps(entries))
