"""Events on standard output: JSON Lines for programs, text for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

FORMATS = ("json", "text")
SIDE = ("event", "time", "stream", "id")  # keys that a line of text shows in its own way, or not at all


def rounded(event: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in event.items()}


def line_of(event: dict[str, Any], format: str) -> str:
    if format == "json":
        return json.dumps(rounded(event), ensure_ascii=False)
    whose = f"{event['stream']}: " if "stream" in event else ""
    return f"{clock(event['time'])}  {whose}{event['event']:<9}  {_about(event)}".rstrip()


def _about(event: dict[str, Any]) -> str:
    kind = event["event"]
    if kind in ("segment", "highlight"):
        level = f" (level {event['level']:.3f})" if "level" in event else ""
        query = f"  {event['query']}" if event.get("query") else ""
        return f"{clock(event['start'])} – {clock(event['end'])}  score {event['score']:.3f}{level}{query}"
    if kind in ("say", "question"):
        return event["text"]
    if kind == "end":
        best = ", ".join(f"{clock(one['start'])} ({one['score']:.3f})" for one in event["best"])
        counts = f"{event['frames']} frames, {event['segments']} segments, {event['highlights']} highlights, {event['dropped']} dropped"
        return f"{event['ended']}: {counts}; best: {best or 'none'}" + (f"; {event['cause']}" if "cause" in event else "")
    shown = {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in event.items() if key not in SIDE}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items() if value is not None)


def clock(seconds: float) -> str:
    """3725.5 -> 1:02:05.5"""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def printer(format: str, lock: Any = None) -> Callable[[dict[str, Any]], None]:
    """What prints an event as one whole line, also where several processes (they share `lock`) print to one output."""

    def emit(event: dict[str, Any]) -> None:
        line = line_of(event, format)
        if lock is None:
            print(line, flush=True)
            return
        data = (line + "\n").encode(errors="backslashreplace")
        with lock:
            while data:
                data = data[os.write(sys.stdout.fileno(), data) :]

    return emit
