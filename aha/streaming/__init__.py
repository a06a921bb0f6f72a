"""Scoring a stream: sessions, caches, policies, chunked and online engines."""

from aha.streaming.session import Session, push_many

__all__ = ["Session", "push_many"]
