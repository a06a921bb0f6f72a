"""`aha watch SOURCE [SOURCE ...] --query TEXT`: events of streams as JSON Lines on standard output.

    aha watch talk.mp4 --query "the tyre comes off"
    aha watch rtsp://door/live rtsp://yard/live --query "someone falls" --format text
    aha watch --cameras cameras.toml --state outputs/watch
    ffmpeg -i anything -f mpegts - | aha watch - --query "a red star"

Events: start, segment, highlight, say, question, behind, silent, heard, lost, reconnected, resumed, status, end. Type a question (or
`NAME: question` for one camera) and press Enter at any time. The file of cameras is read again when it changes. Ctrl-C ends with the
summary.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.api import CACHE, Highlighter
from aha.core.addresses import shown_address, without_secrets
from aha.core.files import read_text, write_text
from aha.core.fusion import Fusion
from aha.core.memory import keep_for_good
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.streaming.caches import DEFAULT_WINDOW
from aha.video.reader import BACKENDS
from aha.watch.cameras import Camera, cameras_of, read_cameras, same_stream
from aha.watch.levels import JudgeSettings
from aha.watch.lines import FORMATS, printer
from aha.watch.opening import check_source
from aha.watch.processes import Inbox, engines_of, watch_on_several
from aha.watch.questions import Questions
from aha.watch.receivers import Delivery, sender_of
from aha.watch.state import Store
from aha.watch.watcher import WatchSettings

if TYPE_CHECKING:
    from aha.watch.engine import Stream, Watch

LAST_SECONDS = 5.0  # at the end, for events that are on their way
LOOK_EVERY = 2.0  # seconds between two looks at the file of cameras


def watch_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="*", help='file, "camera" or "camera:1", rtsp:// or http:// address, - (video on standard input)')
    parser.add_argument(
        "--cameras",
        metavar="FILE",
        help="TOML file of cameras instead, each with its name, address, queries, frame_fps, on_event, max_alerts_per_hour",
    )
    parser.add_argument("--query", metavar="TEXT", help="what to look for, in plain words")
    parser.add_argument("--format", choices=FORMATS, default="json", help="of events: JSON Lines, or text for people (default %(default)s)")
    parser.add_argument(
        "--on_event",
        action="append",
        default=[],
        metavar="RECEIVER",
        help="where events go too, may be repeated: https://HOOK, mqtt://BROKER/PREFIX, jsonl:FILE or command:PROGRAM",
    )
    parser.add_argument(
        "--live", action="store_true", help="play a file at its own speed, and drop frames of a file or pipe rather than make it wait"
    )
    parser.add_argument("--status_seconds", type=float, metavar="X", help="every X seconds: how far each stream is behind (default: never)")
    parser.add_argument("--raw_size", metavar="WIDTHxHEIGHT", help="standard input holds bare rgb24 pictures of this size")
    parser.add_argument("--raw_fps", type=float, default=25.0, help="and so many a second (default %(default)s)")
    parser.add_argument(
        "--max_streams",
        type=int,
        metavar="N",
        help="streams that there is memory for (default: those at the start; with --cameras twice as many)",
    )
    parser.add_argument(
        "--engines", type=int, metavar="N", help="processes that share the streams, on a GPU each (default: as many as there are GPUs)"
    )
    parser.add_argument(
        "--state", metavar="DIR", help="folder to go on from after a restart, also after kill -9: caches, segments, levels, counters"
    )
    parser.add_argument("--state_seconds", type=float, default=10.0, help="between two snapshots of a stream (default %(default)s)")
    stream_flags(parser)


def stream_flags(parser: Any) -> None:
    """How streams are read, judged and kept; also of `aha serve`."""
    parser.add_argument("--frame_fps", type=float, default=2.0, help="frames a second that are scored (default %(default)s)")
    parser.add_argument("--video_backend", choices=tuple(BACKENDS), default="pyav", help="who decodes a file (default %(default)s)")
    parser.add_argument(
        "--buffer_seconds",
        type=float,
        default=4.0,
        help="frames that may wait; of a live source the oldest is dropped when there are more (default %(default)s)",
    )
    parser.add_argument(
        "--reconnect_attempts",
        type=int,
        help="failures in a row after which a lost network stream is given up (default 8; with several sources never)",
    )
    parser.add_argument(
        "--silent_seconds", type=float, default=10.0, help="a stream that sends nothing for so long is worth an event (default %(default)s)"
    )
    parser.add_argument(
        "--highlight_share",
        type=float,
        help="a segment is a highlight if its mean score is in this top share of the stream's last 3,600 segments (default: if it is "
        "nearer to the best of them than to the ordinary ones)",
    )
    parser.add_argument("--highlight_score", type=float, metavar="X", help="or, if given, at least X")
    parser.add_argument(
        "--max_alerts_per_hour",
        type=float,
        metavar="N",
        help="at most N highlights of a stream in an hour: the level is learnt from its own segments, and unsure ones wait for better ones",
    )
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
        default=CACHE,
        choices=("dynamic_sink", "sink", "sliding"),
        help="which past the model keeps (default %(default)s)",
    )
    parser.add_argument("--window", type=int, default=DEFAULT_WINDOW, help="how much of it, in tokens, 49 a frame (default %(default)s)")
    parser.add_argument("--no_compile", action="store_true", help="on a GPU: start a minute earlier, and score more slowly")


def _check(args: argparse.Namespace) -> None:
    for name in ("frame_fps", "buffer_seconds", "raw_fps", "silent_seconds", "status_seconds", "state_seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} must be above 0, not {value}.")
    if args.raw_size and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", args.raw_size):
        raise UserError(f"raw_size is WIDTHxHEIGHT in pixels, such as 640x480, not {args.raw_size}.")
    if args.max_streams is not None and args.max_streams < 1:
        raise UserError(f"max_streams must be at least 1, not {args.max_streams}.")
    if bool(args.source) == bool(args.cameras):
        raise UserError("name what to watch: one or more sources, or --cameras FILE, and not both.")


def cameras_now(args: argparse.Namespace) -> list[Camera]:
    """Raises UserError."""
    about = (args.query, args.frame_fps, args.on_event, args.max_alerts_per_hour)
    return read_cameras(args.cameras, *about) if args.cameras else cameras_of(args.source, *about)


class CameraFile:
    """The file of cameras, read again when it changes; what is wrong with it then is said, and the old list stays."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.cameras = args, cameras_now(args)
        self._seen, self._looked = self._stamp(), time.monotonic()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = Path(self.args.cameras).stat()
            return stat.st_mtime_ns, stat.st_size
        except (OSError, TypeError):
            return None

    def changed(self) -> bool:
        if not self.args.cameras or time.monotonic() - self._looked < LOOK_EVERY:
            return False
        self._looked = time.monotonic()
        if (stamp := self._stamp()) is None or stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.cameras = cameras_now(self.args)
        except UserError as error:
            print(f"note: {error} The cameras stay as they were.", file=sys.stderr)
            return False
        return True


def run_watch(args: argparse.Namespace, load: Callable[[], Highlighter], fusion: Fusion, online: OnlineSettings) -> None:
    """Watch until the sources end or Ctrl-C. Raises UserError where none of them can be read."""
    _check(args)
    file = CameraFile(args)
    for camera in file.cameras:
        check_source(camera.address)
        for target in camera.on_event:
            sender_of(target, camera.name)
    settings = settings_of(args, fusion, online)
    stopped = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: _stop(stopped))
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        if (engines := engines_of(args, file.cameras)) > 1:
            watch_on_several(args, engines, fusion, online, file, stopped)
        else:
            questions = Questions(any(camera.address == "-" for camera in file.cameras))
            watch_here(args, load(), settings, file, questions, stopped)
    finally:
        signal.signal(signal.SIGINT, previous)


def settings_of(args: argparse.Namespace, fusion: Fusion, online: OnlineSettings) -> WatchSettings:
    judge = JudgeSettings(args.highlight_share, args.highlight_score, args.max_alerts_per_hour, args.max_wait_frames / args.frame_fps)
    return WatchSettings(online, fusion, judge)


def watch_here(
    args: argparse.Namespace, model: Highlighter, settings: WatchSettings, file: CameraFile | Inbox, questions: Questions | Inbox,
    stopped: threading.Event, lock: Any = None,
) -> None:  # fmt: skip
    """All streams in one engine of this process."""
    several = bool(args.cameras) or len(args.source) > 1
    streams = sum(camera.streams for camera in file.cameras)
    if args.max_streams is not None and streams > args.max_streams:  # before anybody hears of the first of them
        raise UserError(f"max_streams is {args.max_streams}, and {streams} streams are to be watched; give at least {streams}.")
    store = Store(args.state) if args.state else None
    show = printer(args.format, lock)
    delivery = Delivery(Path(args.state) / "spool" if args.state else tempfile.mkdtemp(prefix="aha-watch-"))

    def emit(event: dict[str, Any], stream: Stream) -> None:
        show(event)
        delivery.tell(event, stream)

    from aha.watch.engine import Watch  # torch is imported only now

    watch = Watch(
        model, args, settings, emit, max_streams=args.max_streams or max(1, 2 * streams if args.cameras else streams), named=several,
        run_id=run_id(args.state), store=store, seen=delivery.seen,
    )  # fmt: skip
    keep_for_good()
    told = [time.monotonic()]
    coming, at_start = deque(file.cameras), True

    def control() -> bool:
        nonlocal coming, at_start
        if file.changed():
            coming, at_start = change(watch, file.cameras), False
        if coming:  # one in a round: the frames of those that are watched already come in between
            try:
                watch.open(coming.popleft())
            except UserError as error:
                if at_start:
                    raise
                print(f"note: {error}", file=sys.stderr)
            watch.changed.set()
        else:
            for line in questions.take():
                try:
                    watch.ask(line)
                except UserError as error:
                    print(f"note: {error}", file=sys.stderr)
        if args.status_seconds is not None and time.monotonic() - told[0] >= args.status_seconds:
            told[0] = time.monotonic()
            for event in watch.status():
                show(event)
        return bool(coming)

    try:
        watch.run(stopped, control)
    finally:
        for source in watch.sources.values():
            source.feed.leave()
        if store is not None:
            store.close()
        left = delivery.close(LAST_SECONDS)
        if not args.state:
            shutil.rmtree(delivery.folder, ignore_errors=True)
        if left:
            fate = "go out when it starts again" if args.state else "are lost (--state keeps them)"
            print(f"note: {left} events were not taken by their receivers; they {fate}.", file=sys.stderr)
    if watch.crashed:
        raise RuntimeError("a reading thread failed; its traceback is above")
    if not watch.scored and watch.failures:
        camera, error = watch.failures[0]
        if isinstance(error, UserError):
            raise error
        shown = shown_address(camera.address)
        raise UserError(f"{shown} cannot be read ({without_secrets(str(error), camera.address)}); check the source.")


def change(watch: Watch, cameras: list[Camera]) -> deque[Camera]:
    """Streams come and go: what is gone from the list ends, what has changed too. Returns what is to begin: that, and what is new."""
    wanted = {camera.name: camera for camera in cameras}
    for name, source in list(watch.sources.items()):
        if name not in wanted or not same_stream(source.camera, wanted[name]):
            watch.close(name, "removed")
        else:
            source.camera = wanted[name]
    return deque(camera for camera in cameras if camera.name not in watch.sources and watch.complete.get(camera.name) != camera)


def run_id(state: str | None) -> str:
    """The first part of all ids of events: of this run, or of all runs of one --state."""
    fresh = uuid.uuid4().hex[:8]
    if state is None:
        return fresh
    path = Path(state) / "run"
    if not path.is_file():
        write_text(path, fresh + "\n")
    return read_text(path, "name of the run").strip()


def _stop(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise KeyboardInterrupt  # the second Ctrl-C does not wait
    stopped.set()
