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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aha.api import Highlighter, checked_query, queries_of
from aha.demo.world import OTHER_WORLD, looks_like_demo
from aha.errors import UserError
from aha.highlights.evidence import variations
from aha.highlights.result import Options, Result, find_highlights, write_result
from aha.highlights.thumbnails import jpeg_address, small
from aha.highlights.timeline import ScoreTrack
from aha.streaming.policies import check_heads, speaking_policy
from aha.video.container import Limits as VideoLimits
from aha.video.reader import VideoInfo, iter_frames, probe
from aha.web.limits import Limits

BATCH = 4  # frames scored before the next visitor has a turn
REPLY_TOKENS = 40
PICTURE_SIDE = 160  # pixels of a small picture


@dataclass(frozen=True)
class Speaking:
    """How a video is watched: `fps` frames a second (None: the page's), and when the model speaks by itself (None: it does not).

    threshold: of one frame's sum of `heads`; accumulated: of their sum since the last reply; forget: a reply leaves no trace in what the
    model remembers. Raises UserError for heads that are none.
    """

    threshold: float | None = None
    accumulated: float | None = None
    heads: tuple[str, ...] = ("informative_score",)
    forget: bool = False
    fps: float | None = None

    def __post_init__(self) -> None:
        check_heads(self.heads)

    def policy(self) -> Any:
        return speaking_policy(self.threshold, self.accumulated, self.heads, None, 0)


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
        self.other_world = False  # the demo model looks at a video that is not of its world
        self.queries: list[str] = []
        self.speaking = Speaking()
        self.answers: list[tuple[float, str, str]] = []  # time, who, text
        self.made: tuple[int, int] | None = None  # frames of the reel that are written, and of how many
        self.version = 0  # grows with everything that is shown
        self.touched = time.monotonic()  # when the visitor last did something; looking on is nothing
        self._lock = threading.Lock()  # of what is shown
        self._starting = threading.Lock()  # of the thread: held while it is started or ended
        self._making = threading.Lock()  # of the files
        self._closed = self._resting = False
        self._seen: list[tuple[int, np.ndarray, str]] = []  # of each scored frame: number, mean token, small picture
        self._compared: list[str] = []  # queries that are scored for the evidence only: the unrelated ones, and variations of the visitor's
        self._rows: list[list[dict[str, float]]] = []  # of each query, then of each compared one: `debug_data` rows
        self._questions: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()  # to which query's session, what
        self._running = threading.Event()
        self._stop = threading.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._done: Future[None] | None = None
        self._scored_all = False
        self._cached: tuple[tuple[int, int, Options], Result, float, float] | None = None  # made of what, result, seconds it took, when

    # ---- what the visitor does ----

    def start(self, video: str | Path, queries: str, speaking: Speaking | None = None) -> None:
        """Score a video from its beginning; what was there before is dropped. queries: one a line. Raises UserError for what is not
        allowed."""
        if not self._starting.acquire(blocking=False):
            raise UserError("this tab is starting a video already; wait a moment.")
        try:
            texts = queries_of([line for line in queries.splitlines() if line.strip()] or [queries])
            if len(texts) > self.limits.queries:
                raise UserError(
                    f"{len(texts)} queries are more than the {self.limits.queries} that this page takes at once; give fewer lines."
                )
            speaking = speaking or Speaking()
            if speaking.fps is not None and not 0 < speaking.fps <= self.limits.most_fps:
                raise UserError(f"frames a second must be above 0 and at most {self.limits.most_fps:g}, not {speaking.fps:g}.")
            self._start(Path(video), texts, speaking)
        finally:
            self._starting.release()

    def _start(self, video: Path, queries: list[str], speaking: Speaking) -> None:
        try:
            size = os.path.getsize(video)
        except OSError as error:
            raise UserError("this video is here no longer; upload it again.") from error
        self.limits.check_size(size)
        info = probe(video, self._video_limits)
        if info.duration > self.limits.minutes * 60:
            minutes = info.duration / 60
            raise UserError(
                f"the video lasts {minutes:.1f} minutes, more than the {self.limits.minutes:g} that this page takes; cut it shorter."
            )
        other_world = self.model.is_demo and not looks_like_demo(video)
        self._halt()
        if self._closed:
            raise UserError("this visit has ended; load the page again.")
        with self._lock:
            self.other_world = other_world
            before, self.video, self.info, self.queries, self.speaking = self.video, video, info, queries, speaking
            self._seen, self.answers, self._cached, self._scored_all, self._resting = [], [], None, False, False
            varied = [other for query in queries for other in variations(query)]
            self._compared = list(dict.fromkeys([*self.model.unrelated_queries, *varied]))  # two queries may have the same
            self._rows = [[] for _ in (*queries, *self._compared)]
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

    def ask(self, text: str, which: int = 0) -> None:
        """Ask, where the query of number `which` is looked for, about what was seen so far; the answer comes between two frames. Raises
        UserError."""
        text = checked_query(text)
        if self._done is None:
            raise UserError("there is no video yet; start one, then ask.")
        if self._done.done():
            raise UserError("this video was stopped; start it again to ask.")
        if self._questions.qsize() >= self.limits.questions:
            raise UserError(f"{self.limits.questions} questions wait already; wait for their answers.")
        self.touched = time.monotonic()
        self._questions.put((which, text))

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
        if self._done is None or self.info is None or self.video is None:
            return "Choose a video, say what to look for, and press Start."
        return f"{self._state(self.info)} WARNING: {self.video.name} {OTHER_WORLD}." if self.other_world else self._state(self.info)

    def _state(self, info: VideoInfo) -> str:
        if self.error:
            return f"Error: {self.error}"
        if self.made is not None:
            return f"Making the reel: {self.made[0]} of {self.made[1]} frames."
        seen = self._time
        if self._resting and not self._scored_all:
            return f"Stopped after {seen:.0f} of {info.duration:.0f} s, as nothing was done here for long; press Start to watch again."
        if self._scored_all:
            return f"Done: {len(self._seen)} frames of {info.duration:.0f} s scored. Move the sliders, click the curve, ask."
        state = "Paused" if self.paused else "Watching"
        return f"{state}: {seen:.0f} of {info.duration:.0f} s, {len(self._seen)} frames scored."

    @property
    def fps(self) -> float:
        """Frames a second that are scored."""
        return self.speaking.fps or self.limits.fps

    @property
    def _time(self) -> float:
        """Seconds of the video at the last scored frame."""
        return self._rows[0][-1]["time"] if self._seen else 0.0

    @property
    def finished(self) -> bool:
        return self._scored_all

    @property
    def is_scoring(self) -> bool:
        """Whether the thread has frames to score."""
        return self._done is not None and not self._done.done() and not self._scored_all

    def track(self, which: int = 0, with_features: bool = True) -> ScoreTrack | None:
        """The scores so far for the query of number `which` (those behind the visitor's are the compared ones); None before the first."""
        with self._lock:
            seen, info = list(self._seen), self.info
            rows = list(self._rows[which]) if which < len(self._rows) else []
        if not rows or info is None:
            return None
        frames, features, _ = zip(*seen)
        end = info.duration if self._scored_all else rows[-1]["time"] + 1 / self.fps
        return ScoreTrack.of_rows(rows, frames, min(end, info.duration), np.stack(features) if with_features else None)

    def result(self, options: Options, which: int = 0) -> Result | None:
        """Highlights of what was scored so far, without scoring anything again. How strong the evidence is is said when all is."""
        which = min(which, max(len(self.queries) - 1, 0))
        track = self.track(which)
        if track is None or self.info is None:
            return None
        key = (len(track) + self._scored_all, which, options)
        if self._cached is not None:
            made_of, result, cost, at = self._cached
            # Of a long video finding highlights takes a while: while it is watched that may be a fifth of the time.
            if made_of == key or (made_of[1:] == key[1:] and not self._scored_all and time.monotonic() - at < min(5 * cost, 2.0)):
                return result
        begin = time.monotonic()
        evidence = None
        if self._scored_all:
            evidence = self.model.evidence(
                track, self._tracks_of(self.model.unrelated_queries), self._tracks_of(variations(self.queries[which]))
            )
        result = find_highlights(track, self.queries[which], options, self.info.fps, evidence)
        self._cached = (key, result, time.monotonic() - begin, time.monotonic())
        return result

    def _tracks_of(self, compared: Sequence[str]) -> list[ScoreTrack]:
        numbers = {words: len(self.queries) + number for number, words in enumerate(self._compared)}
        tracks = [self.track(numbers[words], False) for words in compared if words in numbers]
        return [track for track in tracks if track is not None]

    def picture(self, frame: int) -> str:
        """The small picture of a scored frame, by its number in the video, as an address for HTML."""
        with self._lock:
            return next((picture for number, _, picture in self._seen if number == frame), "")

    def files(self, options: Options, which: int = 0) -> tuple[str | None, str]:
        """Make reel and report of what was scored so far -> their paths; no reel where no moment is chosen. Raises UserError."""
        result = self.result(options, which)
        if result is None or self.video is None:
            raise UserError("nothing is scored yet; start a video first.")
        if not self._making.acquire(blocking=False):
            raise UserError("reel and report are being made already; wait a moment.")
        try:
            self.touched = time.monotonic()
            before = list(self.folder.iterdir())
            folder = Path(tempfile.mkdtemp(prefix="files-", dir=self.folder))
            reel = write_result(result, self.video, folder, frame_fps=self.fps, note=self.model.note, progress=self._making_reel)
            for old in before:
                shutil.rmtree(old, ignore_errors=True)
        finally:
            with self._lock:
                self.made = None
                self.version += 1
            self._making.release()
        return None if reel is None else str(folder / "reel.mp4"), str(folder / "report.html")

    def _making_reel(self, done: int, total: int) -> None:
        if done % max(1, total // 50) == 0:
            with self._lock:
                self.made = (done, total)
                self.version += 1

    # ---- the thread ----

    def _score(self) -> None:
        own, fps = self.speaking, self.fps
        sessions = [
            self.model.stream(query, frame_fps=fps, policy=own.policy(), remove_assistant_turns=own.forget, max_new_tokens=REPLY_TOKENS)
            for query in self.queries
        ] + [self.model.stream(query, frame_fps=fps) for query in self._compared]
        side = self.model.model.config.frame.side
        assert self.video is not None  # a thread is started for a video
        frames, batch = iter_frames(self.video, fps=fps, size=side, limits=self._video_limits), []
        for frame in frames:
            batch.append(frame)
            if len(batch) == BATCH:
                self._push(sessions, batch)
                batch = []
            while not self._stop.is_set() and (self.paused or not self._questions.empty()):
                self._push(sessions, batch)
                batch = []
                self._answer(sessions, timeout=0.1)
            if self._stop.is_set():
                return
        self._push(sessions, batch)
        del sessions[len(self.queries) :]  # nobody asks those, and their caches are large
        with self._lock:
            self._scored_all = True
            self.version += 1
        while not self._stop.is_set():  # questions may still come
            self._answer(sessions, timeout=0.2)

    def _push(self, sessions, batch) -> None:
        if not batch:
            return
        with self.turns.turn():
            chunk = self.model.embed(batch)
            scored = [self.model.push(session, chunk) for session in sessions]
        pictures = [self._small_picture(frame.frame_CHW) for frame in batch]
        with self._lock:
            self._seen += [(one.frame.frame_index, one.feature_H, picture) for one, picture in zip(scored[0], pictures)]
            for rows, of_query in zip(self._rows, scored):
                rows += [one.row for one in of_query]
            for number, of_query in enumerate(scored[: len(self.queries)]):
                self._say([(one.frame.time, self._called("model", number), one.reply) for one in of_query if one.reply is not None])
            self.version += 1

    def _small_picture(self, frame_CHW: np.ndarray) -> str:
        """Without the black bars of the letterbox."""
        assert self.info is not None  # it is what is being scored
        side, shape = frame_CHW.shape[-1], (self.info.width, self.info.height)
        width, height = (max(1, round(side * length / max(shape))) for length in shape)
        x, y = (side - width) // 2, (side - height) // 2
        picture = Image.fromarray(np.ascontiguousarray(frame_CHW.transpose(1, 2, 0)))
        return jpeg_address(small(picture.crop((x, y, x + width, y + height)), PICTURE_SIDE))

    def _called(self, who: str, which: int) -> str:
        """Of several queries it is said which one is meant."""
        return who if len(self.queries) < 2 else f"{who} ({self.queries[which][:40]})"

    def _say(self, said: list[tuple[float, str, str]]) -> None:
        self.answers = [*self.answers, *((time, who, text.strip() or "(nothing)") for time, who, text in said)][-2 * self.limits.answers :]

    def _answer(self, sessions, timeout: float) -> None:
        try:
            which, text = self._questions.get(timeout=timeout)
        except queue.Empty:
            return
        session = sessions[min(which, len(self.queries) - 1)]
        with self.turns.turn():
            session.ask(text)
            reply = session.respond(max_new_tokens=REPLY_TOKENS) if session.frames else ""
        with self._lock:
            self._say([(self._time, "you", text), (self._time, self._called("model", which), reply)])
            self.version += 1
