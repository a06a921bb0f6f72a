"""Many cameras on one model: one online engine scores the frames of all streams in batches, as they arrive.

    watch = Watch(model, args, settings, emit)
    watch.open(camera)
    watch.run(stopped, hear)            # until every source has ended

Each camera has a reading thread (feed.py) and a stream for each of its queries. The loop hands a few frames of a stream to the engine (the
one in work and the next; two and three where one stream has a GPU for itself); the others wait in the feed of their camera, which drops its
own oldest where it is live and too fast. So a stream that is behind costs no other one a frame, and one that is dead costs nothing.

A GPU is never without work while frames wait: the next batch is launched as soon as the scores of the last are there (one stream's next
frame before that), and what these decide (segments, highlights, receivers, disks) is worked out meanwhile. Without a GPU, or where the
model may speak unasked and so change what comes next, each batch is heard before the next begins.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aha.api import Highlighter, checked_query
from aha.core.addresses import shown_address, without_secrets
from aha.errors import UserError
from aha.streaming import OnlineEngine
from aha.streaming.live import LiveScores, LiveStreams
from aha.streaming.policies import MinimumGap, speaking_policy
from aha.streaming.session import make_cache
from aha.watch.cameras import Camera, slug
from aha.watch.clips import PacketRing, cut_file
from aha.watch.feed import Feed, Item
from aha.watch.opening import Place, is_file, open_feed, place_of, place_of_all
from aha.watch.sources import Lost, Reconnected, Resumed, SourceFrame
from aha.watch.state import Store
from aha.watch.watcher import Watcher, WatchSettings

BEHIND_SECONDS = 2.0  # a frame that waited longer is worth an event ...
BEHIND_EVERY = 5.0  # ... but not more often than this
NOTICES = ("lost", "reconnected", "resumed", "silent", "heard", "behind", "status", "question")  # of a moment, not of a frame
Event = dict[str, Any]


def policy_of(args: argparse.Namespace) -> MinimumGap | None:
    """When the model speaks unasked; None = never."""
    policy = speaking_policy(
        args.stream_end_prob_threshold, args.stream_end_score_sum_threshold, ("informative_score",),
        args.uncertainty_wait_threshold, args.max_wait_frames,
    )  # fmt: skip
    return None if policy is None else MinimumGap(policy, args.speak_gap)


def _unseen(stream: Stream, time: float, score: float, image_CHW: np.ndarray) -> None:
    """Nobody wants the frames."""


class Stream:
    """One query on one camera."""

    def __init__(self, source: Source, query: str | None, number: int, watcher: Watcher):
        self.source, self.query, self.watcher = source, query, watcher
        self.name = source.camera.name if source.camera.streams == 1 else f"{source.camera.name}#{number}"
        self.key = slug(self.name)
        self.pending: deque[SourceFrame] = deque()  # what the engine holds, and before it what was scored and is not heard yet
        self.unheard = 0
        # A file that is begun anew has the same events again; what comes from elsewhere has others at the same seconds.
        self.life = "" if is_file(source.camera.address) else uuid.uuid4().hex[:8]


class Source:
    """One camera: its feed and its streams."""

    def __init__(self, camera: Camera):
        self.camera = camera
        self.streams: list[Stream] = []
        self._feed: Feed | None = None
        self.ring = PacketRing() if camera.on_event else None  # for the clips of highlights
        self.lost_before = 0  # frames dropped before a restart
        self.told, self.dropped_before, self.worst, self.behind = -math.inf, 0, 0.0, 0.0
        self.heard = time.monotonic()  # when the last item came
        self.silent = False
        self.saved_at = time.monotonic()

    @property
    def frames(self) -> int:
        return max(stream.watcher.frames for stream in self.streams)

    @property
    def time(self) -> float:
        return max(stream.watcher.time for stream in self.streams)

    @property
    def dropped(self) -> int:
        return self.lost_before + (0 if self._feed is None else self._feed.dropped)

    @property
    def feed(self) -> Feed:
        assert self._feed is not None  # Watch.open gives it before anybody else sees the source
        return self._feed

    @feed.setter
    def feed(self, feed: Feed) -> None:
        self._feed = feed

    def clip(self, start: float, end: float) -> bytes | None:
        """The moment as a small video; None where its packets are gone."""
        if self.ring is not None and (data := self.ring.cut(start, end)) is not None:
            return data
        return cut_file(self.camera.address, start, end) if is_file(self.camera.address) else None

    def may_take(self, room: int) -> tuple[bool, bool]:
        """Whether the engine, which holds at most `room` frames of a stream, can take one more of each, and whether all were heard (then a
        notice is in order)."""
        held = max(len(stream.pending) - stream.unheard for stream in self.streams)
        return held < room, not any(stream.pending for stream in self.streams)


class Watch:
    """settings: of a stream, without budget and frame rate, which are its camera's. named: events say whose they are. run_id: the first
    part of all ids of events. emit(event, stream) is called in the loop's thread, and before it, for the frame at which the event was
    decided, seen(stream, seconds, score, frame)."""

    def __init__(
        self, model: Highlighter, args: argparse.Namespace, settings: WatchSettings, emit: Callable[[Event, Stream], None], *,
        max_streams: int, named: bool, run_id: str, store: Store | None = None,
        seen: Callable[[Stream, float, float, np.ndarray], None] = _unseen,
    ):  # fmt: skip
        # raises its UserError before the warm-up
        make_cache(args.cache, args.window, None, tokens_per_frame=model.model.config.tokens_per_frame)
        self.model, self.args, self.settings, self.emit = model, args, settings, emit
        self.named, self.run_id, self.store, self.seen = named, run_id, store, seen
        compiled = model.model.decoder_device.type == "cuda" and not args.no_compile
        self.engine = OnlineEngine(model.model, window=args.window, max_streams=max_streams, tokenizer=model.tokenizer, compiled=compiled)
        self.room = self.engine.depth + self.engine.foresight  # of a stream's frames: in work, and the next
        self.live = LiveStreams(self.engine, max_waiting=self.room)
        self.overlaps = self.engine.works_alone and policy_of(args) is None
        self.max_streams = max_streams
        self.sources: dict[str, Source] = {}
        self.by_session: dict[int, Stream] = {}
        self.changed = threading.Event()
        self.failures: list[tuple[Camera, Exception]] = []  # of sources that gave no frame
        self.complete: dict[str, Camera] = {}  # files and recordings that have ended
        self.crashed = False
        self.scored = 0
        self.noticed = 0  # microseconds of time.time() in the id of the last notice

    # ---- streams come and go ----

    def open(self, camera: Camera, feed: Feed | None = None, saved: Sequence[dict[str, Any]] = ()) -> None:
        """Begin to watch a camera, or go on where --state left it. feed: frames from elsewhere than its address. saved: go on with what
        `take_out` gave, whose camera this is.

        Raises UserError: no room, or settings that cannot work.
        """
        if sum(source.camera.streams for source in self.sources.values()) + camera.streams > self.max_streams:
            raise UserError(
                f"camera {camera.name!r} is one stream too many: memory was taken for {self.max_streams}; start again with --max_streams."
            )
        self._settle()
        source = Source(camera)
        try:
            self._begin(source, feed, saved)
        except BaseException:
            for stream in source.streams:
                self._free(stream)
            raise

    def _begin(self, source: Source, feed: Feed | None, saved: Sequence[dict[str, Any]]) -> None:
        camera, places = source.camera, []
        for number, query in enumerate(camera.queries, 1):
            judge = replace(self.settings.judge, max_alerts_per_hour=camera.max_alerts_per_hour)
            settings = replace(self.settings, judge=judge, frame_seconds=1 / camera.frame_fps)
            session = self.engine.open(
                query, cache=self.args.cache, window=self.args.window, policy=policy_of(self.args), frame_fps=camera.frame_fps,
                max_new_tokens=self.args.max_new_tokens,
            )  # fmt: skip
            stream = Stream(source, query, number, Watcher(session, settings))
            source.streams.append(stream)
            self.by_session[id(session)] = stream
            places.append(self._take_up(stream, saved[number - 1]) if saved else self._go_on(stream))
            session.feed_ahead()  # else the first frames of many streams would wait for each other's words
        for stream, place in zip(source.streams, places):
            if place is None and not saved:  # else it was told
                about = {"source": shown_address(camera.address), "query": stream.query, "model": self.model.name}
                self._tell(stream, {"event": "start", "time": 0.0, **about, "frame_fps": camera.frame_fps})
        side = self.model.model.config.frame.side
        source.feed = feed or open_feed(camera, self.args, side, self.named, place_of_all(places), self.changed.set, source.ring)
        self.sources[camera.name] = source

    def take_out(self, name: str) -> list[dict[str, Any]]:
        """A source leaves, to go on later: the state of each of its streams. Nothing is decided, its place in the engine is free."""
        self._settle()
        source = self.sources.pop(name)
        source.feed.leave()
        states = [self._state_of(stream) for stream in source.streams]
        for stream in source.streams:
            self._free(stream)
        return states

    def _free(self, stream: Stream) -> None:
        session = stream.watcher.session
        self.live.leave(session)
        session.close()
        del self.by_session[id(session)]

    def close(self, name: str, ended: str) -> None:
        """The end of a source: what is open is decided, and its place in the engine is free."""
        self._settle()
        source = self.sources.pop(name)
        source.feed.leave()
        for stream in source.streams:
            self.live.leave(stream.watcher.session)
            if self.store is not None and ended == "stopped":
                self._save(stream)
            *events, summary = stream.watcher.finish()
            for event in events:
                self._tell(stream, event)
            cause = {"cause": without_secrets(str(source.feed.error), source.camera.address)} if source.feed.error else {}
            self._tell(stream, {**summary, "ended": ended, "dropped": source.dropped, "behind_most": source.worst, **cause})
            if self.store is not None and ended != "stopped":
                self.store.forget(stream.key)
            self._free(stream)

    # ---- the loop ----

    def run(self, stopped: threading.Event, control: Callable[[], bool] = lambda: False) -> None:
        """Until stopped or no source is left. control: called in every round; True: more sources may come."""
        more = control()
        while not stopped.is_set() and (self.sources or more):
            self.changed.clear()
            scores = self._collect() if self.live.full else []  # of what an earlier round launched
            moved = [self._pump(source) for source in self.sources.values()]
            launched = self.live.launch()
            if not scores and (not launched or not self.overlaps):
                scores = self._collect()
            for scored in scores:
                self._hear(scored)
            for source in list(self.sources.values()):
                self._look_after(source)
            more = control()
            if not launched and not scores and not any(moved):
                self.changed.wait(0.2)
        for name in list(self.sources):
            self.close(name, "stopped")

    def ask(self, text: str) -> None:
        """A question of all streams, or `NAME: text` of those of one camera. Raises UserError."""
        name, colon, rest = text.partition(":")
        chosen = [self.sources[name]] if self.named and colon and name in self.sources else list(self.sources.values())
        text = checked_query(rest if len(chosen) == 1 and self.named and colon and name in self.sources else text)
        for source in chosen:
            self.ask_one(source.camera.name, text)

    def ask_one(self, name: str, text: str) -> list[str]:
        """A question of the streams of one camera -> what they answered, nothing before their first frame. Raises UserError."""
        self._settle()
        answers = []
        for stream in self.sources[name].streams:
            for event in stream.watcher.ask(text):
                answers += [event["text"]] if event["event"] == "say" else []
                self._tell(stream, event)
            stream.watcher.session.feed_ahead()
            if self.store is not None:
                self._save(stream)
        return answers

    def _pump(self, source: Source) -> bool:
        """Hand what has arrived to the engine. True: something was."""
        moved = False
        while (item := source.feed.take(*source.may_take(self.room))) is not None:
            moved = True
            if not isinstance(item, Lost):
                self._heard(source)
            if not isinstance(item, SourceFrame):
                self._notice(source, item)
                continue
            for stream in source.streams:
                if stream.watcher.frames and item.time <= stream.watcher.time + 1e-6:
                    continue  # after a restart one query may have seen a frame more than another
                stream.pending.append(item)
                self.live.offer(stream.watcher.session, item.image_CHW, item.time)
        return moved

    def _collect(self) -> list[LiveScores]:
        """The scores of the oldest launch, which are heard next."""
        scores = self.live.collect()
        for scored in scores:
            self.by_session[id(scored.session)].unheard += 1
        return scores

    def _settle(self) -> None:
        """What was launched is waited for and heard: only then may its sessions be asked, saved or closed, or others pushed."""
        while scores := self._collect():
            for scored in scores:
                self._hear(scored)

    def _hear(self, scored: LiveScores) -> None:
        stream = self.by_session[id(scored.session)]
        item = stream.pending.popleft()
        stream.unheard -= 1
        source = stream.source
        self.scored += 1
        source.behind = time.monotonic() - item.arrived
        events = stream.watcher.hear(scored.time, scored.scores, scored.feature_H)
        self.seen(stream, scored.time, stream.watcher.score, item.image_CHW)
        for event in events:
            self._tell(stream, event)
        if source.feed.live:
            source.worst = max(source.worst, source.behind)
            late = source.behind > BEHIND_SECONDS or source.feed.dropped > source.dropped_before
            if late and time.monotonic() - source.told > BEHIND_EVERY:
                dropped = {"dropped": source.feed.dropped - source.dropped_before, "dropped_in_all": source.dropped}
                self._tell(stream, {"event": "behind", "time": stream.watcher.time, "seconds": source.behind, **dropped})
                source.told, source.dropped_before = time.monotonic(), source.feed.dropped
        if self.store is not None and source.feed.live:
            self.store.frame(stream.key, scored.time, item.image_CHW)

    def _notice(self, source: Source, item: Item) -> None:
        for stream in source.streams:
            event: Event = {"time": stream.watcher.time}
            if isinstance(item, Lost):
                event = {"event": "lost", **event, "cause": item.cause, "retry_in": item.retry_in}
            elif isinstance(item, Reconnected):
                event = {"event": "reconnected", **event, "gap": item.gap}
            elif isinstance(item, Resumed):
                event = {"event": "resumed", **event, "lost": item.lost}
            self._tell(stream, event)

    def _heard(self, source: Source) -> None:
        """Something came of the stream: a silence is over."""
        if source.silent:
            for stream in source.streams:
                self._tell(stream, {"event": "heard", "time": stream.watcher.time, "silent": time.monotonic() - source.heard})
        source.silent, source.heard = False, time.monotonic()

    def _look_after(self, source: Source) -> None:
        now = time.monotonic()
        if source.feed.empty and all(not stream.pending for stream in source.streams):
            if not source.frames and source.feed.error is not None:
                self.failures.append((source.camera, source.feed.error))
            self.crashed |= not source.feed.complete and source.feed.error is None
            if source.feed.complete:
                self.complete[source.camera.name] = source.camera
            self.close(source.camera.name, "end of stream" if source.feed.complete else "failed")
            return
        if not source.silent and now - source.heard > self.args.silent_seconds:
            source.silent = True
            for stream in source.streams:
                self._tell(stream, {"event": "silent", "time": stream.watcher.time, "seconds": now - source.heard})
        if self.store is not None and now - source.saved_at > self.args.state_seconds:
            self._settle()
            for stream in source.streams:
                self._save(stream)
            source.saved_at = now

    def status(self) -> list[Event]:
        """One event for each stream: frames, how far it is behind, what was dropped."""
        now, events = time.monotonic(), []
        for source in self.sources.values():
            since = source.feed.waiting_since
            behind = source.behind if since is None else max(source.behind, now - since)
            for stream in source.streams:
                counts = {"frames": stream.watcher.frames, "behind": behind, "behind_most": source.worst, "dropped": source.dropped}
                events.append(self._marked(stream, {"event": "status", "time": stream.watcher.time, **counts}))
        return events

    # ---- events ----

    def _marked(self, stream: Stream, event: Event) -> Event:
        """With the name of the stream where there are several, and an id: the same event has the same one after a restart, and no other
        has it: what is told of a moment has the moment in it, for several may come between two frames."""
        kind, moment = event.pop("event"), event.pop("time")
        whose: dict[str, str | None] = {"stream": stream.source.camera.name} if self.named else {}
        if stream.source.camera.streams > 1:
            whose["query"] = stream.query
        parts = [self.run_id, stream.key, *([stream.life] if stream.life else []), kind, f"{moment:.9g}"]
        if "start" in event:
            parts.append(f"{event['start']:.9g}")
        if kind == "say":  # an answer may come at the second of another
            parts.append(str(stream.watcher.said))
        if kind in NOTICES:
            self.noticed = max(self.noticed + 1, time.time_ns() // 1000)  # two may come within a microsecond, and a clock may be set back
            parts.append(f"{self.noticed // 10**6}.{self.noticed % 10**6:06}")
        return {"event": kind, "time": moment, **whose, **event, "id": "-".join(parts)}

    def _tell(self, stream: Stream, event: Event) -> None:
        self.emit(self._marked(stream, event), stream)

    # ---- suspend and resume ----

    def _save(self, stream: Stream) -> None:
        if self.store is not None:
            self.store.snapshot(stream.key, self._state_of(stream))

    def _state_of(self, stream: Stream, wall: float | None = None) -> dict[str, Any]:
        """wall: when its last frame was scored (time.time), if that was not just now."""
        source, camera = stream.source, stream.source.camera
        return {
            "life": stream.life, "watcher": stream.watcher.state_dict(), "wall": wall or time.time() - (time.monotonic() - source.heard),
            "dropped": source.dropped, "query": stream.query, "address": camera.address,
            "frame_fps": camera.frame_fps, "model": self.model.name, "worst": source.worst,
        }  # fmt: skip

    def _take_up(self, stream: Stream, state: dict[str, Any]) -> Place | None:
        stream.watcher.load_state_dict(state["watcher"])
        stream.life = state.get("life", "")  # a state of before streams had one
        stream.source.lost_before, stream.source.worst = state["dropped"], state["worst"]
        return place_of(state)

    def _go_on(self, stream: Stream) -> Place | None:
        """Take up what --state holds of a stream; None: nothing. Frames that were scored after the snapshot are scored again."""
        if self.store is None:
            return None
        saved = self.store.load(stream.key)
        if saved is None or not self._fits(stream, saved.state):
            self.store.forget(stream.key)
            self._save(stream)
            return None
        self._take_up(stream, saved.state)
        watcher, wall = stream.watcher, saved.state["wall"]
        for frame in saved.frames:
            if frame.time > watcher.time or not watcher.frames:
                scores = watcher.session.push(np.array(frame.image_CHW))
                for event in watcher.hear(frame.time, scores, self.engine.features_BH[0]):
                    self._tell(stream, event)
                wall = frame.wall
        state = self._state_of(stream, wall)
        self.store.snapshot(stream.key, state)
        return place_of(state)

    def _fits(self, stream: Stream, state: dict[str, Any]) -> bool:
        camera = stream.source.camera
        expected = {"query": stream.query, "address": camera.address, "frame_fps": camera.frame_fps, "model": self.model.name}
        other = [what.replace("_", " ") for what, value in expected.items() if state[what] != value]
        if other:
            print(f"note: {stream.name} begins anew: its saved state has another {' and '.join(other)}.", file=sys.stderr)
        return not other
