"""Scoring a stream: sessions, caches, policies, chunked and online engines."""

from aha.streaming.session import Session

__all__ = ["Session"]
