"""`aha watch SOURCE --query TEXT`: events of a stream as JSON Lines on standard output.

    aha watch talk.mp4 --query "the tyre comes off"
    aha watch rtsp://camera/stream --query "someone falls"
    ffmpeg -i anything -f mpegts - | aha watch - --query "a red star"

Events: start, segment, highlight, say, question, behind, lost, reconnected, end. Type a question and press Enter at any time.
Ctrl-C ends with the summary.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import re
import signal
import sys
import threading
import time
from typing import Any, TextIO

from aha.api import Highlighter, checked_query
from aha.core.addresses import shown_address, without_secrets
from aha.core.fusion import Fusion
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.streaming.policies import MinimumGap, speaking_policy
from aha.video.reader import BACKENDS
from aha.watch.feed import Feed
from aha.watch.sources import (
    Lost,
    Reconnected,
    SourceFrame,
    camera_of,
    check_file,
    is_network,
    open_network,
    read_camera,
    read_file,
    read_pipe,
)
from aha.watch.watcher import Watcher, WatchSettings

BEHIND_SECONDS = 2.0  # a frame that waited longer is worth an event ...
BEHIND_EVERY = 5.0  # ... but not more often than this


def watch_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help='file, "camera" or "camera:1", rtsp:// or http:// address, or - (video on standard input)')
    parser.add_argument("--query", metavar="TEXT", help="what to look for, in plain words")
    parser.add_argument("--frame_fps", type=float, default=2.0, help="frames a second that are scored (default %(default)s)")
    parser.add_argument("--video_backend", choices=tuple(BACKENDS), default="pyav", help="who decodes a file (default %(default)s)")
    parser.add_argument(
        "--live", action="store_true", help="play a file at its own speed, and drop frames of a file or pipe rather than make it wait"
    )
    parser.add_argument(
        "--buffer_seconds",
        type=float,
        default=4.0,
        help="frames that may wait; of a live source the oldest is dropped when there are more (default %(default)s)",
    )
    parser.add_argument(
        "--reconnect_attempts",
        type=int,
        default=8,
        help="failures in a row after which a lost network stream is given up (default %(default)s)",
    )
    parser.add_argument("--raw_size", metavar="WIDTHxHEIGHT", help="standard input holds bare rgb24 pictures of this size")
    parser.add_argument("--raw_fps", type=float, default=25.0, help="and so many a second (default %(default)s)")
    parser.add_argument(
        "--highlight_share",
        type=float,
        default=0.15,
        help="a segment is a highlight if its mean score is in this top share of the last 3,600 scored frames (default %(default)s)",
    )
    parser.add_argument("--highlight_score", type=float, metavar="X", help="or, if given, at least X")
    parser.add_argument(
        "--stream_end_prob_threshold",
        type=float,
        metavar="X",
        help="the model speaks when the informative score is above X (default: never)",
    )
    parser.add_argument(
        "--stream_end_score_sum_threshold",
        type=float,
        metavar="X",
        help="or when the informative scores since it last spoke add up to more",
    )
    parser.add_argument("--speak_gap", type=float, default=5.0, help="seconds between two replies at least (default %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=60, help="longest reply in tokens (default %(default)s)")
    parser.add_argument(
        "--cache",
        default="dynamic_sink",
        choices=("dynamic_sink", "sink", "sliding"),
        help="which past the model keeps (default %(default)s)",
    )
    parser.add_argument("--window", type=int, default=2048, help="how much of it, in tokens, 49 a frame (default %(default)s)")


def _check(args: argparse.Namespace) -> None:
    for name in ("frame_fps", "buffer_seconds", "raw_fps"):
        if not 0 < getattr(args, name) < float("inf"):
            raise UserError(f"{name} must be above 0, not {getattr(args, name)}.")
    if not 0 < args.highlight_share <= 1:
        raise UserError(f"highlight_share is a share above 0 and at most 1, not {args.highlight_share}.")
    if args.highlight_score is not None and not math.isfinite(args.highlight_score):
        raise UserError(f"highlight_score must be a finite number, not {args.highlight_score}.")
    if args.raw_size and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", args.raw_size):
        raise UserError(f"raw_size is WIDTHxHEIGHT in pixels, such as 640x480, not {args.raw_size}.")


def open_feed(args: argparse.Namespace, side: int) -> Feed:
    """The feed of the source that the flags name, in pictures of `side` x `side` pixels. Raises UserError."""
    fps, source = args.frame_fps, args.source
    paced = False
    if source == "-":
        items, live = read_pipe(fps, args.raw_size, args.raw_fps, side), args.live
    elif (camera := camera_of(source)) is not None:
        items, live = read_camera(camera, fps, side), True
    elif is_network(source):
        items, live = open_network(source, fps, args.reconnect_attempts, side)
    else:
        check_file(source)
        items, live, paced = read_file(source, fps, side, args.video_backend), args.live, args.live
    return Feed(items, max(1, round(args.buffer_seconds * fps)), live, paced)


def policy_of(args: argparse.Namespace) -> MinimumGap | None:
    """When the model speaks unasked; None = never."""
    policy = speaking_policy(
        args.stream_end_prob_threshold, args.stream_end_score_sum_threshold, ("informative_score",),
        args.uncertainty_wait_threshold, args.max_wait_frames,
    )  # fmt: skip
    return None if policy is None else MinimumGap(policy, args.speak_gap)


class Questions:
    """Lines typed while the stream runs; from the terminal itself where standard input is the video."""

    def __init__(self, source: str):
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(source,), name="aha-watch-questions", daemon=True).start()

    def _read(self, source: str) -> None:
        if source != "-":
            self._lines_of(sys.stdin)
            return
        try:
            with open("/dev/tty", encoding="utf-8", errors="replace") as terminal:
                self._lines_of(terminal)
        except OSError:
            return  # no terminal: no questions

    def _lines_of(self, file: TextIO) -> None:
        for line in file:
            if line.strip():
                self.lines.put(line.strip())

    def take(self) -> list[str]:
        taken = []
        while not self.lines.empty():
            taken.append(self.lines.get())
        return taken


def run_watch(args: argparse.Namespace, model: Highlighter, fusion: Fusion, online: OnlineSettings) -> None:
    """Watch until the source ends or Ctrl-C. Raises UserError where the source cannot be opened."""
    _check(args)
    settings = WatchSettings(online, fusion, args.highlight_share, args.highlight_score, frame_seconds=1 / args.frame_fps)
    watcher = Watcher(
        model, args.query, settings, cache=args.cache, window=args.window, policy=policy_of(args), max_new_tokens=args.max_new_tokens
    )
    stopped = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: _stop(stopped))
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    feed = open_feed(args, model.model.config.frame.side)
    try:
        _loop(args, watcher, feed, Questions(args.source), stopped)
    finally:
        feed.stop()
        signal.signal(signal.SIGINT, previous)
    if not feed.complete and feed.error is None and not stopped.is_set():
        raise RuntimeError("the reading thread failed; its traceback is above")
    if feed.error is not None and not watcher.frames:
        if isinstance(feed.error, UserError):
            raise feed.error
        shown = shown_address(args.source)
        raise UserError(f"{shown} cannot be read ({without_secrets(str(feed.error), args.source)}); check the source.")


def _stop(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise KeyboardInterrupt  # the second Ctrl-C does not wait
    stopped.set()


def emit(event: dict[str, Any]) -> None:
    rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in event.items()}
    print(json.dumps(rounded, ensure_ascii=False), flush=True)


def _loop(args: argparse.Namespace, watcher: Watcher, feed: Feed, questions: Questions, stopped: threading.Event) -> None:
    about = {"source": shown_address(args.source), "query": args.query, "model": watcher.model.name, "frame_fps": args.frame_fps}
    emit({"event": "start", "time": 0.0, **about})
    told, dropped_before, worst = -BEHIND_EVERY, 0, 0.0
    while not stopped.is_set() and not feed.empty:
        for line in questions.take():
            try:
                for event in watcher.ask(checked_query(line)):
                    emit(event)
            except UserError as error:
                print(f"note: {error}", file=sys.stderr)
        item = feed.get(timeout=0.2)
        if isinstance(item, Lost):
            emit({"event": "lost", "time": watcher.time, "cause": item.cause, "retry_in": item.retry_in})
        elif isinstance(item, Reconnected):
            emit({"event": "reconnected", "time": watcher.time, "gap": item.gap})
        elif isinstance(item, SourceFrame):
            for event in watcher.push(item.image_CHW, item.time):
                emit(event)
            behind = time.monotonic() - item.arrived
            if feed.live:
                worst = max(worst, behind)
                late = behind > BEHIND_SECONDS or feed.dropped > dropped_before
                if late and time.monotonic() - told > BEHIND_EVERY:
                    dropped = {"dropped": feed.dropped - dropped_before, "dropped_in_all": feed.dropped}
                    emit({"event": "behind", "time": watcher.time, "seconds": behind, **dropped})
                    told, dropped_before = time.monotonic(), feed.dropped
    *events, summary = watcher.finish()
    for event in events:
        emit(event)
    ended = "stopped" if stopped.is_set() else "failed" if feed.error is not None else "end of stream"
    emit(
        {
            **summary,
            "ended": ended,
            "dropped": feed.dropped,
            "behind_most": worst,
            **({"cause": without_secrets(str(feed.error), args.source)} if feed.error else {}),
        }
    )
