"""Where events go besides standard output: `--on_event` and the `on_event` of a camera.

    https://example.org/hook       POST of the event as JSON; header X-Aha-Event-Id, and X-Aha-Signature: sha256=HMAC of the body where
                                   AHA_WEBHOOK_KEY is set in the environment
    mqtt://user@broker:1883/aha    topics aha/STREAM/event and aha/STREAM/picture, and what Home Assistant needs to find them
                                   (AHA_MQTT_PASSWORD; mqtts:// for TLS; extra mqtt)
    jsonl:FILE                     appended as a line
    command:PROGRAM ARGUMENTS      run for each event: JSON on its standard input, AHA_EVENT and AHA_EVENT_ID in its environment

All but segments and status go there; highlights with a picture of their best moment (JPEG) and its clip (MP4, sound kept; clips.py), in
JSON as base64 in "picture" and "clip". Each stream and receiver has a spool (spool.py) and a thread: an event is tried again, ever more
slowly, until it is taken, and a slow receiver stops nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from aha.core.addresses import shown_address, without_secrets
from aha.core.extras import need
from aha.errors import UserError
from aha.watch.lines import rounded
from aha.watch.spool import Entry, Spool

if TYPE_CHECKING:
    from aha.watch.engine import Stream

NOT_SENT = ("segment", "status")
FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0  # seconds
TIMEOUT = 10.0  # seconds until a receiver that hangs has failed
MOST_BYTES = 64 << 20  # of a spool
Send = Callable[[Entry], None]  # raises Failed


class Failed(Exception):
    """The receiver did not take the event."""


def sender_of(target: str, stream: str) -> Send:
    """Raises UserError for a receiver that is none."""
    kind, _, rest = target.partition(":")
    if kind in ("http", "https") and urlsplit(target).netloc:
        return Webhook(target)
    if kind in ("mqtt", "mqtts") and urlsplit(target).hostname:
        need("paho", "mqtt", f"--on_event {shown_address(target)}")
        from aha.watch.mqtt import Mqtt

        return Mqtt(target, stream)
    if kind == "jsonl" and rest:
        return JsonLines(rest)
    if kind == "command" and rest.strip():
        return Command(rest)
    raise UserError(f"{shown_address(target)!r} is no receiver of events; give http(s)://, mqtt(s)://, jsonl:FILE or command:PROGRAM.")


def json_of(entry: Entry) -> str:
    media = {"picture": entry.picture, "clip": entry.clip}
    shown = {name: base64.b64encode(data).decode() for name, data in media.items() if data is not None}
    return json.dumps({**entry.event, **shown}, ensure_ascii=False)


class Webhook:
    def __init__(self, address: str):
        self.address, self.key = address, os.environ.get("AHA_WEBHOOK_KEY")

    def __call__(self, entry: Entry) -> None:
        body = json_of(entry).encode()
        headers = {"Content-Type": "application/json", "X-Aha-Event-Id": entry.event["id"].encode("ascii", "backslashreplace").decode()}
        if self.key:
            headers["X-Aha-Signature"] = "sha256=" + hmac.new(self.key.encode(), body, hashlib.sha256).hexdigest()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address, body, headers), timeout=TIMEOUT) as answer:
                answer.read(1 << 16)
        except (OSError, ValueError) as error:  # URLError, a time-out, a connection that breaks
            raise Failed(without_secrets(str(error), self.address)) from error


class JsonLines:
    def __init__(self, path: str):
        self.path = Path(path)

    def __call__(self, entry: Entry) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(json_of(entry).encode() + b"\n")
        except OSError as error:
            raise Failed(str(error)) from error


class Command:
    def __init__(self, line: str):
        self.arguments = shlex.split(line)

    def __call__(self, entry: Entry) -> None:
        named = {"AHA_EVENT": entry.event["event"], "AHA_EVENT_ID": entry.event["id"]}
        try:
            done = subprocess.run(
                self.arguments, input=json_of(entry).encode(), stdout=subprocess.DEVNULL, timeout=TIMEOUT,
                env={**os.environ, **named}, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(str(error)) from error
        if done.returncode:
            raise Failed(f"it ended with exit code {done.returncode}")


class Receiver:
    """A receiver of one stream: its spool, and the thread that empties it."""

    def __init__(self, target: str, stream: str, spools: Path):
        self.target, self.send = target, sender_of(target, stream)
        self.spool = Spool(spools / hashlib.sha256(target.encode()).hexdigest()[:12], MOST_BYTES)
        self._more, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"aha-watch-{stream}", daemon=True)
        self._thread.start()

    def put(self, event: dict[str, Any], picture: bytes | None, clip: bytes | None) -> None:
        self.spool.put(event, picture, clip)
        self._more.set()

    def stop(self) -> None:
        """What waits is tried once more."""
        self._stop.set()
        self._more.set()

    def left(self, seconds: float) -> int:
        """How many events still wait after at most `seconds`."""
        self._thread.join(seconds)
        return len(self.spool)

    def _work(self) -> None:
        wait, told = FIRST_RETRY, False
        while True:
            entry = self.spool.oldest()
            if entry is None:
                if self._stop.is_set():
                    return
                self._more.wait(1.0)
                self._more.clear()
                continue
            try:
                self.send(entry)
            except Failed as error:
                if not told:
                    print(f"note: {shown_address(self.target)} does not take events ({error}); they wait.", file=sys.stderr)
                if self._stop.is_set():
                    return  # one attempt at the end, then no more
                told = True
                self._stop.wait(wait)
                wait = min(2 * wait, LONGEST_RETRY)
                continue
            self.spool.done(entry)
            wait, told = FIRST_RETRY, False


class Outbox:
    """All receivers of one stream."""

    def __init__(self, targets: tuple[str, ...], name: str, folder: Path):
        self.targets, self.pictures = targets, Pictures()
        self.receivers = [Receiver(target, name, folder) for target in targets]


class Delivery:
    """The outboxes of all streams. folder: of the spools; what is in them goes out first. Raises UserError."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.outboxes: dict[str, Outbox] = {}

    def _outbox(self, stream: Stream) -> Outbox:
        outbox, targets = self.outboxes.get(stream.key), stream.source.camera.on_event
        if outbox is None or outbox.targets != targets:
            if outbox is not None:
                self._close([outbox], 0.0)
            outbox = self.outboxes[stream.key] = Outbox(targets, stream.name, self.folder / stream.key)
        return outbox

    def seen(self, stream: Stream, time: float, score: float, image_CHW: np.ndarray) -> None:
        """A frame that may be the picture of a highlight."""
        if stream.source.camera.on_event:
            self._outbox(stream).pictures.add(time, score, image_CHW)

    def tell(self, event: dict[str, Any], stream: Stream) -> None:
        if not stream.source.camera.on_event or event["event"] in NOT_SENT:
            return
        outbox = self._outbox(stream)
        picture = clip = None
        if event["event"] == "highlight":
            picture, clip = outbox.pictures.at(event["peak_time"]), stream.source.clip(event["start"], event["end"])
        for receiver in outbox.receivers:
            receiver.put(rounded(event), picture, clip)

    def close(self, seconds: float) -> int:
        """Wait at most so long for what is on its way; how many events are still in the spools then."""
        return self._close(list(self.outboxes.values()), seconds)

    def _close(self, outboxes: list[Outbox], seconds: float) -> int:
        receivers = [receiver for outbox in outboxes for receiver in outbox.receivers]
        for receiver in receivers:
            receiver.stop()
        until = time.monotonic() + seconds
        return sum(receiver.left(max(0.0, until - time.monotonic())) for receiver in receivers)


class Pictures:
    """The frames of the last moments, and the best of what came before: for the picture of a highlight. At most RECENT + BEST."""

    RECENT, BEST = 24, 8

    def __init__(self) -> None:
        self._recent: list[tuple[float, float, np.ndarray]] = []  # time, score, frame
        self._best: list[tuple[float, float, np.ndarray]] = []

    def add(self, time: float, score: float, image_CHW: np.ndarray) -> None:
        self._recent.append((time, score, image_CHW))
        if len(self._recent) > self.RECENT:
            old = self._recent.pop(0)
            run = self._best[-1] if self._best else None
            if run is not None and abs(run[0] - old[0]) < 60 and abs(run[1] - old[1]) < 0.1:  # the same scene: the better of the two
                self._best[-1] = max(run, old, key=lambda entry: entry[1])
            else:
                self._best = [*self._best[1 - self.BEST :], old]

    def at(self, seconds: float) -> bytes | None:
        """JPEG of the kept frame that is nearest to a moment."""
        from PIL import Image

        kept = [*self._best, *self._recent]
        if not kept:
            return None
        _, _, image_CHW = min(kept, key=lambda entry: abs(entry[0] - seconds))
        data = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0))).save(data, "JPEG", quality=85)
        return data.getvalue()
