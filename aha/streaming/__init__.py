"""Scoring a stream: sessions, caches, policies, chunked and online engines.

Caches and policies (`aha.streaming.caches`, `aha.streaming.policies`) can be imported without torch; it is loaded with the first of the
names below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aha.streaming.online import OnlineEngine
    from aha.streaming.session import Session, push_many

__all__ = ["OnlineEngine", "Session", "push_many"]
HOMES = {"OnlineEngine": "aha.streaming.online", "Session": "aha.streaming.session", "push_many": "aha.streaming.session"}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
