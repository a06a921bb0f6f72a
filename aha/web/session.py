"""One visitor of the demo page: a video that is scored in a thread of its own, questions, and the files made from it.

Visitors share the model and nothing else. The model is used a few frames at a time, whoever waited longest first. What goes wrong in one
visitor's thread is shown to that visitor; the others do not notice.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from aha.api import Highlighter, checked_query
from aha.errors import UserError
from aha.highlights.result import Options, Result, find_highlights, write_result
from aha.highlights.timeline import ScoreTrack
from aha.video.container import Limits as VideoLimits
from aha.video.reader import VideoInfo, iter_frames, probe
from aha.web.limits import Limits

BATCH = 4  # frames scored before the next visitor has a turn
REPLY_TOKENS = 40


def without_folder(message: str, video: Path) -> str:
    """An error message for visitors: it names the upload, not where the server keeps it."""
    return message.replace(str(video), video.name)


def _log_failure(done: Future[None]) -> None:
    """What went wrong in a thread is logged, and holds the model's session no longer."""
    error = done.exception()
    if error is not None:
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = error.__context__ = error.__cause__ = None


class Turns:
    """A lock that is given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._serving = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._changed:
            ticket = self._next
            self._next += 1
            while self._serving != ticket:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._serving += 1
                self._changed.notify_all()


class Visitor:
    """The state of one browser tab. All methods may be called from any thread; of two that start or end at once one waits or is refused."""

    def __init__(self, model: Highlighter, turns: Turns, root: Path, limits: Limits, use: Callable[[Path, int], None]):
        """use(video, 1 or -1): this visitor looks at an upload, or no longer does."""
        self.model, self.turns, self.limits, self._use = model, turns, limits, use
        self.folder = Path(tempfile.mkdtemp(prefix="visitor-", dir=root))
        self.video: Path | None = None
        self.info: VideoInfo | None = None
        self.query = ""
        self.answers: list[tuple[float, str, str]] = []  # time, who, text
        self.version = 0  # grows with everything that is shown
        self.touched = time.monotonic()  # when the visitor last did something; looking on is nothing
        self._lock = threading.Lock()  # of what is shown
        self._starting = threading.Lock()  # of the thread: held while it is started or ended
        self._making = threading.Lock()  # of the files
        self._closed = self._resting = False
        self._rows: list[tuple[int, dict[str, float], np.ndarray]] = []  # frame number, `debug_data` row, mean token
        self._questions: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._running = threading.Event()
        self._stop = threading.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._done: Future[None] | None = None
        self._scored_all = False
        self._cached: tuple[tuple[int, Options], Result, float, float] | None = None  # made of what, result, seconds it took, when

    # ---- what the visitor does ----

    def start(self, video: str | Path, query: str) -> None:
        """Score a video from its beginning; what was there before is dropped. Raises UserError for what is not allowed."""
        if not self._starting.acquire(blocking=False):
            raise UserError("this tab is starting a video already; wait a moment.")
        try:
            self._start(Path(video), checked_query(query))
        finally:
            self._starting.release()

    def _start(self, video: Path, query: str) -> None:
        try:
            size = os.path.getsize(video)
        except OSError as error:
            raise UserError("this video is here no longer; upload it again.") from error
        if size > self.limits.upload_bytes:
            raise UserError(
                f"the video has {size / 1e6:.0f} MB, more than the {self.limits.megabytes:g} MB that this page takes; cut it shorter."
            )
        info = probe(video, self._video_limits)
        if info.duration > self.limits.minutes * 60:
            minutes = info.duration / 60
            raise UserError(
                f"the video lasts {minutes:.1f} minutes, more than the {self.limits.minutes:g} that this page takes; cut it shorter."
            )
        self._halt()
        if self._closed:
            raise UserError("this visit has ended; load the page again.")
        with self._lock:
            before, self.video, self.info, self.query = self.video, video, info, query
            self._rows, self.answers, self._cached, self._scored_all, self._resting = [], [], None, False, False
            self._questions = queue.SimpleQueue()
            self.version += 1
        self.touched = time.monotonic()
        self._use(self.video, 1)
        if before is not None:
            self._use(before, -1)
        self._stop.clear()
        self._running.set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aha-visitor")
        self._done = self._thread.submit(self._score)
        self._done.add_done_callback(_log_failure)

    @property
    def _video_limits(self) -> VideoLimits:
        return VideoLimits(pixels=self.limits.pixels)

    def pause(self, paused: bool) -> None:
        self.touched = time.monotonic()
        (self._running.clear if paused else self._running.set)()
        self.version += 1

    @property
    def paused(self) -> bool:
        return self._thread is not None and not self._running.is_set()

    def ask(self, text: str) -> None:
        """Ask about what was seen so far; the answer comes between two frames. Raises UserError."""
        text = checked_query(text)
        if self._done is None:
            raise UserError("there is no video yet; start one, then ask.")
        if self._done.done():
            raise UserError("this video was stopped; start it again to ask.")
        if self._questions.qsize() >= self.limits.questions:
            raise UserError(f"{self.limits.questions} questions wait already; wait for their answers.")
        self.touched = time.monotonic()
        self._questions.put(text)

    def rest(self) -> bool:
        """End the thread of a visitor who does nothing; what was scored stays. Returns whether there was one."""
        with self._starting:
            if self._thread is None:
                return False
            self._halt()
            with self._lock:
                self._resting = True
                self.version += 1
            return True

    def _halt(self) -> None:
        """End the thread."""
        self._stop.set()
        self._running.set()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    def close(self) -> None:
        """The visitor has left: end the thread, remove uploads and files."""
        with self._starting:
            self._halt()
            was_closed, self._closed = self._closed, True
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.video is not None and not was_closed:
            self._use(self.video, -1)

    # ---- what the visitor sees ----

    @property
    def error(self) -> str | None:
        """What went wrong in the thread, in one sentence."""
        failure = self._done.exception() if self._done is not None and self._done.done() else None
        if failure is None or self.video is None:
            return None
        if isinstance(failure, UserError):
            return without_folder(str(failure), self.video)
        return f"the scoring failed ({type(failure).__name__}); start again."  # what it says may name files; it is in the server's log

    @property
    def status(self) -> str:
        if self._done is None or self.info is None:
            return "Choose a video, say what to look for, and press Start."
        if self.error:
            return f"Error: {self.error}"
        seen = self._rows[-1][1]["time"] if self._rows else 0.0
        if self._resting and not self._scored_all:
            return f"Stopped after {seen:.0f} of {self.info.duration:.0f} s, as nothing was done here for long; press Start to watch again."
        if self._scored_all:
            return f"Done: {len(self._rows)} frames of {self.info.duration:.0f} s scored. Move the sliders, click the curve, ask."
        state = "Paused" if self.paused else "Watching"
        return f"{state}: {seen:.0f} of {self.info.duration:.0f} s, {len(self._rows)} frames scored."

    @property
    def finished(self) -> bool:
        return self._scored_all

    @property
    def is_scoring(self) -> bool:
        """Whether the thread has frames to score."""
        return self._done is not None and not self._done.done() and not self._scored_all

    def track(self) -> ScoreTrack | None:
        """The scores so far; None before the first."""
        with self._lock:
            rows, info = list(self._rows), self.info
        if not rows or info is None:
            return None
        frames, scores, features = zip(*rows)
        end = info.duration if self._scored_all else scores[-1]["time"] + 1 / self.limits.fps
        return ScoreTrack.of_rows(scores, frames, min(end, info.duration), np.stack(features))

    def result(self, options: Options) -> Result | None:
        """Highlights of what was scored so far, without scoring anything again."""
        track = self.track()
        if track is None or self.info is None:
            return None
        key = (len(track) + self._scored_all, options)
        if self._cached is not None:
            made_of, result, cost, at = self._cached
            # Of a long video finding highlights takes a while: while it is watched that may be a fifth of the time.
            if made_of == key or (made_of[1] == options and not self._scored_all and time.monotonic() - at < min(5 * cost, 2.0)):
                return result
        begin = time.monotonic()
        result = find_highlights(track, self.query, options, self.info.fps)
        self._cached = (key, result, time.monotonic() - begin, time.monotonic())
        return result

    def files(self, options: Options) -> tuple[str, str]:
        """Make reel and report of what was scored so far -> their paths. Raises UserError."""
        result = self.result(options)
        if result is None or self.video is None:
            raise UserError("nothing is scored yet; start a video first.")
        if not self._making.acquire(blocking=False):
            raise UserError("reel and report are being made already; wait a moment.")
        try:
            self.touched = time.monotonic()
            before = list(self.folder.iterdir())
            folder = Path(tempfile.mkdtemp(prefix="files-", dir=self.folder))
            write_result(result, self.video, folder, frame_fps=self.limits.fps, note=self.model.note)
            for old in before:
                shutil.rmtree(old, ignore_errors=True)
        finally:
            self._making.release()
        return str(folder / "reel.mp4"), str(folder / "report.html")

    # ---- the thread ----

    def _score(self) -> None:
        session = self.model.stream(self.query, frame_fps=self.limits.fps)
        side = self.model.model.config.frame.side
        assert self.video is not None  # a thread is started for a video
        frames, batch = iter_frames(self.video, fps=self.limits.fps, size=side, limits=self._video_limits), []
        for frame in frames:
            batch.append(frame)
            if len(batch) == BATCH:
                self._push(session, batch)
                batch = []
            while not self._stop.is_set() and (self.paused or not self._questions.empty()):
                self._push(session, batch)
                batch = []
                self._answer(session, timeout=0.1)
            if self._stop.is_set():
                return
        self._push(session, batch)
        with self._lock:
            self._scored_all = True
            self.version += 1
        while not self._stop.is_set():  # questions may still come
            self._answer(session, timeout=0.2)

    def _push(self, session, batch) -> None:
        if not batch:
            return
        with self.turns.turn():
            rows = [(scored.frame.frame_index, scored.row, scored.feature_H) for scored in self.model.push(session, batch)]
        with self._lock:
            self._rows += rows
            self.version += 1

    def _answer(self, session, timeout: float) -> None:
        try:
            text = self._questions.get(timeout=timeout)
        except queue.Empty:
            return
        with self.turns.turn():
            session.ask(text)
            reply = session.respond(max_new_tokens=REPLY_TOKENS).strip() if session.frames else ""
        seconds = self._rows[-1][1]["time"] if self._rows else 0.0
        with self._lock:
            said = [(seconds, "you", text), (seconds, "model", reply or "(nothing)")]
            self.answers = [*self.answers, *said][-2 * self.limits.answers :]
            self.version += 1
