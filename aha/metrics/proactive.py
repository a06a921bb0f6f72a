"""When a streaming model spoke: marks of the proactive protocols, and what they do not see (timing errors, false alarms, duplicates).

Times are seconds from the start of the video; a reply is (second, words). Windows are inclusive at both ends, as in the published code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 2.0  # seconds
Reply = tuple[float, str]

# ---------------------------------------------------------------- StreamingBench, proactive output

LATEST = 4.0  # seconds after the truth until which a model is polled, or listened to


def mark(time: float, text: str, truth: float, wanted: str) -> tuple[float, float]:
    """(time correct, answer correct) of StreamingBench's count.py: within 2 s; then also the wanted text in the reply (case matters)."""
    in_time = abs(time - truth) <= TOLERANCE
    return float(in_time), float(in_time and wanted in text)


def seen(replies: Sequence[Reply], start: float, truth: float) -> list[Reply]:
    """The replies that count, in order of time: after the question, at most 4 s after the truth."""
    return sorted((r for r in replies if start < r[0] <= truth + LATEST), key=lambda r: r[0])


# ---------------------------------------------------------------- OVO-Bench, pushed forward part


def hits(truths: Sequence[float], replies: Sequence[float]) -> int:
    """True times that are met. Each, in the file's order, takes the first unused reply (in order of time) within 2 s; not the nearest."""
    unused, met = sorted(replies), 0
    for truth in truths:
        taken = next((time for time in unused if abs(time - truth) <= TOLERANCE), None)
        if taken is not None:
            unused.remove(taken)
            met += 1
    return met


# ---------------------------------------------------------------- ProactiveVideoQA

SILENT = 0.25  # PAUC of an answer without any point
OMEGAS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Span:
    """One true answer: related [start, end], reply [start, reply_end]."""

    start: float
    end: float
    reply_end: float
    answer: str


def read_points(reply: str) -> int | None:
    """The judge's 1, 2, 3 as 0, 1, 2: the last of them that is not next to a digit; None where there is none."""
    found = re.findall(r"(?<![0-9])[1-3](?![0-9])", reply)
    return int(found[-1]) - 1 if found else None


def judged(span: Span, replies: Sequence[Reply]) -> list[tuple[float, str]]:
    """(time, what the judge reads) of each reply that counts in a span: in order of time, equal texts once, all texts so far joined."""
    within: dict[str, float] = {}
    for time, text in sorted((r for r in replies if span.start <= r[0] <= span.reply_end), key=lambda r: r[0]):
        within.setdefault(text, time)
    texts = list(within)
    return [(within[text], " ".join(texts[: n + 1])) for n, text in enumerate(texts)]


def kept_points(span: Span, points: Sequence[tuple[float, int | None]]) -> list[tuple[float, int]]:
    """Points without the unreadable ones and, of two or more, without those after the related span that are below the last one inside."""
    readable = [(time, score) for time, score in points if score is not None]
    if len(readable) < 2:
        return readable
    inside = [score for time, score in readable if time <= span.end]
    last = inside[-1] if inside else 0
    return [(time, score) for time, score in readable if time <= span.end or score >= last]


def pauc(span: Span, points: Sequence[tuple[float, int]], omega: float) -> float:
    """Area under the steps (0.5 until the first point, then the latest score, 0 to 2) over the reply span, as a share of the largest."""
    length = span.reply_end - span.start
    if not points or length <= 0:
        return SILENT
    latest = {(time - span.start) * (1 - omega): float(score) for time, score in points}  # of two at one place the last judged wins
    edges = np.array([0.0, *latest, length])
    return float(np.diff(edges) @ np.array([0.5, *latest.values()]) / (2 * length))


# ---------------------------------------------------------------- beside every protocol

TIMING = ("timing_error", "early", "late", "never", "duplicates", "false_alarms")


def nearest_to(best: float, times: Sequence[float]) -> float:
    return min(times, key=lambda time: abs(time - best))


def timing(windows: Sequence[tuple[float, float, float]], replies: Sequence[float]) -> dict[str, float]:
    """What a share of correct answers does not say. windows: (from, best time, to) of each true answer.

    timing_error: mean seconds between an answer's best time and its nearest reply (undefined without replies). early, late: shares of the
    answers that no reply meets, whose nearest reply is before, after; never: without any reply. duplicates: replies that meet only answers
    that an earlier one had met; false_alarms: replies that meet none. Both are numbers of replies.
    """
    times = sorted(replies)
    if not times:
        return {**dict.fromkeys(TIMING, 0.0), "timing_error": np.nan, "never": float(bool(windows))}
    nearest = [nearest_to(best, times) for _, best, _ in windows]
    missed = [n < low for (low, _, high), n in zip(windows, nearest) if not any(low <= time <= high for time in times)]
    met: set[int] = set()
    duplicates = alarms = 0
    for time in times:
        here = {i for i, (low, _, high) in enumerate(windows) if low <= time <= high}
        alarms += not here
        duplicates += bool(here) and here <= met
        met |= here
    share = 1 / len(windows) if windows else 0.0
    return {
        "timing_error": float(np.mean([abs(n - best) for n, (_, best, _) in zip(nearest, windows)])) if windows else np.nan,
        "early": share * sum(missed), "late": share * (len(missed) - sum(missed)), "never": 0.0,
        "duplicates": float(duplicates), "false_alarms": float(alarms),
    }  # fmt: skip


def around(time: float) -> tuple[float, float, float]:
    """The window of one moment."""
    return time - TOLERANCE, time, time + TOLERANCE
