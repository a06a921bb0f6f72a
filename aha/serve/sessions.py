"""Sessions of `aha serve`: each is a stream of the one engine (engine.py), which runs in a thread of its own.

    engine = Engine(lambda emit, seen: Watch(...))
    sessions = Sessions(engine, args, limits, folder)
    session = await sessions.create(id, query="a red star")
    session.feed.send(picture)
    answers = await sessions.ask(session, "what was that?")
    await sessions.suspend(session)                    # its place in the engine is free, its state on disk
    await sessions.resume(session)
    end = await sessions.close(session)

The engine never waits for a client: pictures come from feeds of bounded size, scores and events go into outboxes that are read or
overwritten.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aha.api import checked_query
from aha.core.addresses import shown_address
from aha.core.files import atomic_path, read_json, write_json
from aha.core.heads import SCORES
from aha.core.memory import give_memory_back
from aha.errors import UserError
from aha.serve.engine import Answer, Engine, Refused
from aha.serve.limits import ENDED, Limits
from aha.serve.metrics import Metrics
from aha.serve.outbox import Outbox
from aha.serve.pictures import Allowance, ClientFeed
from aha.watch.cameras import Camera
from aha.watch.engine import Source, Stream, Watch
from aha.watch.feed import Feed
from aha.watch.opening import check_source, open_feed, place_of

FEWEST_WAITING = 4  # pictures of a client that may wait, also where it sends one in many seconds
CLIENT = "client"  # stands for the address where the client sends the pictures
FINISH_SECONDS = 20.0  # that a closing session may take to score what waits
SWEEP_SECONDS = 2.0
TRIM_SECONDS = 30.0  # between two times that freed memory is given back
NEW_EVERY = 1.0  # seconds in which max_sessions sessions may begin or go on, after twice as many at once
WAIT_SECONDS = 0.01  # between two looks whether there is room for a picture


class Session:
    """What the server knows of one session. state: opening, open, suspending, suspended or ended."""

    def __init__(self, id: str, camera: Camera, live: bool, raw_size: tuple[int, int] | None, outbox: Outbox):
        self.id, self.camera, self.live, self.raw_size, self.outbox = id, camera, live, raw_size, outbox
        self.state = "opening"
        self.feed: Feed | None = None
        self.source: Source | None = None  # while it is open
        self.counts: dict[str, Any] = {"frames": 0, "time": 0.0, "behind": 0.0, "dropped": 0}  # of when it was open last
        self.end: dict[str, Any] | None = None
        self.counted = 0  # dropped frames that the metrics have counted already
        self.asking = False
        self.connections = 0
        self.touched = time.monotonic()

    def touch(self) -> None:
        self.touched = time.monotonic()

    async def send(self, data: bytes, seconds: float | None = None) -> bool:
        """A picture of the client, at `seconds` of the stream. False where one was dropped for it; where the session is not live the client
        waits instead. Raises UserError."""
        while isinstance(feed := self.feed, ClientFeed):
            if self.live or feed.has_room:
                return feed.send(data, seconds)
            await asyncio.sleep(WAIT_SECONDS)
            self.touch()
        raise Refused(409, f"this session is {self.state}." if self.state != "open" else "this session reads from its source.")

    def finish(self) -> None:
        """The client sends no more pictures: the session ends when those that wait are scored."""
        if isinstance(self.feed, ClientFeed):
            self.feed.finish()

    @property
    def from_client(self) -> bool:
        return self.camera.address == CLIENT

    def now(self) -> dict[str, Any]:
        """frames scored, seconds of the stream, seconds that the last frame waited, frames dropped."""
        if (source := self.source) is not None:
            self.counts = {"frames": source.frames, "time": source.time, "behind": source.behind, "dropped": source.dropped}
        return self.counts

    def about(self) -> dict[str, Any]:
        settings = {"query": self.camera.queries[0], "frame_fps": self.camera.frame_fps, "raw_size": self.raw_size}
        source = None if self.from_client else shown_address(self.camera.address)
        return {"id": self.id, "state": self.state, "source": source, **settings, **self.now(), "messages": self.outbox.last}


class Sessions:
    """All sessions. Its coroutines run in one event loop, `loop`. folder: of suspended sessions, also those of an earlier run. keep_all:
    at the end open sessions are suspended; else the folder is deleted."""

    def __init__(self, engine: Engine, args: argparse.Namespace, limits: Limits, folder: Path, keep_all: bool):
        self.engine, self.args, self.limits, self.folder = engine, args, limits, folder
        self.keep_all = keep_all
        self.all: dict[str, Session] = {}
        self.metrics = Metrics(self)
        self._new = Allowance(limits.max_sessions / NEW_EVERY, 2 * limits.max_sessions)
        self.loop: asyncio.AbstractEventLoop | None = None
        engine.emit, engine.seen = self._emit, self._seen

    # ---- what clients do ----

    async def create(
        self, id: str, query: str | None, source: str | None = None, frame_fps: float | None = None,
        raw_size: tuple[int, int] | None = None, max_alerts_per_hour: float | None = None, live: bool | None = None,
    ) -> Session:  # fmt: skip
        """Raises UserError. `source` has been looked at by guard.check_address."""
        if self.find(id) is not None:
            raise Refused(409, f"there is a session {id} already; choose another id.")
        self._make_room()
        if raw_size is not None and raw_size[0] * raw_size[1] > self.limits.max_pixels:
            raise UserError(f"raw_size {raw_size[0]}x{raw_size[1]} has more than {self.limits.max_pixels:,} pixels; send them smaller.")
        fps = self.args.frame_fps if frame_fps is None else frame_fps
        if not 0 < fps <= self.limits.max_fps:
            raise UserError(f"frame_fps must be above 0 and at most {self.limits.max_fps:g}, not {fps:g}.")
        budget = self.args.max_alerts_per_hour if max_alerts_per_hour is None else max_alerts_per_hour
        asked = None if query is None else checked_query(query)
        session = Session(
            id,
            Camera(id, source or CLIENT, (asked,), fps, (), budget),
            source is None if live is None else live,
            raw_size,
            Outbox(self._soon),
        )
        self.all[id] = session
        try:
            await self._open(session)
        except Exception:
            del self.all[id]
            raise
        return session

    async def ask(self, session: Session, text: str) -> list[str]:
        """What the model answers from what it has seen; from now on it scores by the question. Raises UserError."""
        text = checked_query(text)
        self._must_be_open(session)
        if session.asking:
            raise Refused(429, "this session is being asked already; wait for the answer.")
        session.asking = True
        try:
            return await self._call(session, lambda watch: watch.ask_one(session.id, text))
        finally:
            session.asking = False

    async def suspend(self, session: Session) -> None:
        """Its state goes to disk; pictures that wait are dropped. Raises UserError."""
        self._must_be_open(session)
        if len(list(self.folder.glob("*.json"))) >= self.limits.max_suspended:
            raise Refused(429, f"{self.limits.max_suspended} sessions are suspended already; resume or close one.")
        (saved,) = await self._call(session, lambda watch: watch.take_out(session.id))
        self._leaves(session, "suspending")
        try:
            await asyncio.to_thread(self._write, session, saved)
        except Exception as error:
            self._forget_file(session)
            self._ended(session, {"event": "end", "ended": "failed", **session.counts, "cause": "its state could not be written"})
            raise Refused(507, f"the state could not be written ({error}); the session has ended.") from error
        session.state = "suspended"
        session.outbox.put({"event": "suspended", "time": session.counts["time"]})

    async def resume(self, session: Session) -> None:
        """Go on where it was suspended. Raises UserError."""
        if session.state != "suspended":
            raise Refused(409, f"this session is {session.state}, not suspended.")
        self._make_room()
        session.state = "opening"
        try:
            saved = await asyncio.to_thread(torch.load, self._file(session, "state"), weights_only=True)
            await self._open(session, saved)
        except Exception as error:
            session.state = "suspended"
            if isinstance(error, OSError):
                raise Refused(409, f"the state of session {session.id} cannot be read ({error.strerror}); create another.") from error
            raise
        self._forget_file(session)

    async def close(self, session: Session, ended: str = "closed") -> dict[str, Any]:
        """The summary. What a client sent before is scored first, if that takes no longer than FINISH_SECONDS."""
        if session.state == "open" and session.from_client and ended == "closed":
            session.finish()
            number, until = session.outbox.last, time.monotonic() + FINISH_SECONDS
            while session.state == "open" and time.monotonic() < until:
                await session.outbox.wait(number, 0.5)
                number = session.outbox.last
        if session.state in ("open", "opening"):
            await asyncio.wrap_future(self.engine.call(lambda watch: self._close(watch, session.id, ended)))
        elif session.state == "suspended":
            self._forget_file(session)
            self._ended(session, {"event": "end", "ended": ended, **session.counts})
        elif session.state == "suspending":
            raise Refused(409, "this session is being suspended; wait a moment.")
        return session.end or {}

    def find(self, id: str) -> Session | None:
        """In memory, or suspended by another process or an earlier run."""
        if id not in self.all and (self.folder / f"{id}.json").is_file():
            values = read_json(self.folder / f"{id}.json", "suspended session")
            camera = Camera(**{**values["camera"], "queries": tuple(values["camera"]["queries"]), "on_event": ()})
            session = Session(id, camera, values["live"], values["raw_size"] and tuple(values["raw_size"]), Outbox(self._soon))
            session.state, session.counts, session.counted = "suspended", values["counts"], values["counts"]["dropped"]
            session.outbox.last = values["messages"]
            self.all[id] = session
        return self.all.get(id)

    # ---- while they run ----

    async def look_after(self) -> None:
        """For ever: close what nobody cares for, forget what has ended, give back the memory of those that left."""
        trimmed, left = time.monotonic(), 0
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self.limits.idle_seconds / 4))
            now = time.monotonic()
            if self.metrics.left > left and now - trimmed > TRIM_SECONDS:
                trimmed, left = now, self.metrics.left
                await asyncio.to_thread(give_memory_back)
            for session in list(self.all.values()):
                if session.connections or session.asking or now - session.touched < self.limits.idle_seconds:
                    continue
                if session.state == "open":
                    with contextlib.suppress(UserError):
                        await self.close(session, "idle")
                elif session.state in ("ended", "suspended"):  # that one is on disk
                    del self.all[session.id]

    async def close_all(self) -> None:
        if self.keep_all:
            for session in [one for one in self.all.values() if one.state == "open"]:
                with contextlib.suppress(UserError):  # it ends with the engine
                    await self.suspend(session)
        await asyncio.to_thread(self.engine.close)
        if not self.keep_all:
            await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def open(self) -> int:
        return sum(session.state in ("opening", "open") for session in self.all.values())

    # ---- inside ----

    def _make_room(self) -> None:
        """Raises Refused where as many sessions run as may."""
        if self.open >= self.limits.max_sessions:
            raise Refused(429, f"{self.limits.max_sessions} sessions run already, as many as this server takes; close one or try later.")
        if not self._new.take():
            raise Refused(429, "too many sessions begin at once; try again in a second.")
        ended = sorted((one for one in self.all.values() if one.state == "ended"), key=lambda one: one.touched)
        for session in ended[: max(0, len(self.all) + 1 - ENDED * self.limits.max_sessions)]:
            del self.all[session.id]

    def _must_be_open(self, session: Session) -> None:
        if session.state != "open":
            raise Refused(409, f"this session is {session.state}.")

    async def _call(self, session: Session, work: Callable[[Watch], Answer]) -> Answer:
        try:
            return await asyncio.wrap_future(self.engine.call(work))
        except KeyError as error:  # it ended meanwhile
            raise Refused(409, "this session has ended.") from error
        except MemoryError as error:
            await self.close(session, "failed")
            raise Refused(503, f"there is no memory left for this session ({error}); it is closed.") from error

    def _close(self, watch: Watch, id: str, ended: str) -> None:
        if id in watch.sources:  # else it has ended by itself
            watch.close(id, ended)

    async def _open(self, session: Session, saved: dict[str, Any] | None = None) -> None:
        def work(watch: Watch) -> None:
            feed = self._feed(session, watch, saved)
            try:
                watch.open(session.camera, feed, [saved] if saved else ())
            except BaseException:
                feed.leave()
                raise
            session.feed, session.source, session.state = feed, watch.sources[session.id], "open"

        await self._call(session, work)

    def _feed(self, session: Session, watch: Watch, saved: dict[str, Any] | None) -> Feed:
        camera, side, place = session.camera, watch.model.model.config.frame.side, place_of(saved) if saved else None
        if not session.from_client:
            check_source(camera.address)
            args = argparse.Namespace(**{**vars(self.args), "live": session.live})
            return open_feed(camera, args, side, False, place, watch.changed.set)
        size = max(FEWEST_WAITING, round(self.args.buffer_seconds * camera.frame_fps))
        last = None if place is None else place.time

        def told(sentence: str) -> None:
            self.metrics.wrong_pictures += 1
            session.outbox.put({"event": "error", "time": session.now()["time"], "text": sentence})

        return ClientFeed(camera.frame_fps, side, size, self.limits, session.raw_size, told, watch.changed.set, saved is not None, last)

    def _seen(self, stream: Stream, seconds: float, score: float, image_CHW: np.ndarray) -> None:
        """A frame was scored; in the engine's thread."""
        session = self.all[stream.source.camera.name]
        self.metrics.frame(stream.source.behind)
        values = {"score": score, **dict(zip(SCORES, stream.watcher.heads))}
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
        session.outbox.put({"event": "score", "time": seconds, **finite})

    def _emit(self, event: dict[str, Any], stream: Stream) -> None:
        """Something was decided; in the engine's thread."""
        session = self.all[stream.source.camera.name]
        if event["event"] == "end":
            self._ended(session, event)
        else:
            session.outbox.put(event)

    def _ended(self, session: Session, event: dict[str, Any]) -> None:
        session.end = event
        self._leaves(session, "ended")
        session.touch()
        session.outbox.put(event, last=True)

    def _leaves(self, session: Session, state: str) -> None:
        """Its place in the engine is free."""
        dropped = session.now()["dropped"]
        self.metrics.dropped += dropped - session.counted
        self.metrics.left += 1
        session.source, session.feed, session.state, session.counted = None, None, state, dropped

    def _soon(self, work: Callable[[], None]) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(work)

    def _file(self, session: Session, kind: str) -> Path:
        return self.folder / f"{session.id}.{kind}"

    def _write(self, session: Session, saved: dict[str, Any]) -> None:
        with atomic_path(self._file(session, "state")) as temporary:
            torch.save(saved, temporary)
        camera = {name: getattr(session.camera, name) for name in ("name", "address", "queries", "frame_fps", "max_alerts_per_hour")}
        about = {"camera": camera, "live": session.live, "raw_size": session.raw_size, "counts": session.counts}
        write_json(self._file(session, "json"), json.loads(json.dumps({**about, "messages": session.outbox.last + 1})))

    def _forget_file(self, session: Session) -> None:
        for kind in ("json", "state"):
            self._file(session, kind).unlink(missing_ok=True)
