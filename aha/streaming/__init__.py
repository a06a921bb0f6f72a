"""Scoring a stream: sessions, caches, policies, chunked and online engines."""

from aha.streaming.online import OnlineEngine
from aha.streaming.session import Session, push_many

__all__ = ["OnlineEngine", "Session", "push_many"]
