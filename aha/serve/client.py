"""A client of `aha serve` in Python.

    from aha.serve.client import Client

    with Client("http://127.0.0.1:8420").session("a red star") as session:
        session.send(picture)                       # JPEG or PNG as bytes, or a uint8 RGB array [H, W, 3]
        for message in session:                     # scores and events as they are decided
            print(message)

    with Client().session("someone falls", source="rtsp://door/live") as session: ...
    session = Client().attach(ID)                   # one that is there already

Messages are collected by a thread from the moment the session begins; where the connection breaks it is made anew, and goes on after the
last message that came. The token is that of the environment (AHA_SERVE_TOKEN) unless one is given.
"""

from __future__ import annotations

import io
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from aha.errors import UserError
from aha.serve.limits import GONE, PORT, SHUTS, TOKEN

ATTEMPTS = 6  # to connect again
TIMEOUT = 60.0  # seconds that an answer may take
FINISH_TIMEOUT = 600.0  # seconds that it may take to score what waits


class Client:
    def __init__(self, address: str = f"http://127.0.0.1:{PORT}", token: str | None = None):
        self.address, self.token = address.rstrip("/"), token if token is not None else os.environ.get(TOKEN, "")

    def session(self, query: str | None = None, id: str | None = None, **settings: Any) -> RemoteSession:
        """A new session; settings: source, frame_fps, raw_size, max_alerts_per_hour, live. Raises UserError with what the server says."""
        session = RemoteSession(self, id or uuid.uuid4().hex)
        self.call("POST", "/sessions", {"query": query, **settings}, session.headers)
        session.listen()
        return session

    def attach(self, id: str, after: int = 0) -> RemoteSession:
        """A session that is there already; its messages after number `after`."""
        session = RemoteSession(self, id, after)
        session.about()
        session.listen()
        return session

    def sessions(self) -> list[dict[str, Any]]:
        return json.loads(self.call("GET", "/sessions"))

    def metrics(self) -> str:
        return self.call("GET", "/metrics").decode()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def call(self, method: str, path: str, value: Any = None, headers: dict[str, str] | None = None) -> bytes:
        """Raises UserError with what the server says."""
        data = None if value is None else json.dumps(value).encode()
        every = {**self.headers, **(headers or {}), "Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, every, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.address}{path}: {_detail(error.read())} ({error.code})") from error
        except OSError as error:
            raise UserError(f"{self.address} does not answer ({error}); check that aha serve runs there.") from error


class RemoteSession:
    """One session. Iterating gives its messages until it has ended."""

    def __init__(self, client: Client, id: str, after: int = 0):
        self.client, self.id = client, id
        self.headers = {"X-Session-Id": id}  # under Ray Serve: which replica
        self.last = after  # number of the last message
        self.failure: Exception | None = None
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._socket: ClientConnection | None = None
        self._connected = threading.Event()
        self._ended = threading.Event()
        self._left = self._raw = False
        self._leaving = threading.Lock()  # so that no connection is opened behind one that leaves

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except UserError:
            if kind is None and self.failure is not None:
                raise
        self.leave()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (message := self._messages.get()) is not None:
            yield message
        self._messages.put(None)  # who asks again hears the same
        if self.failure is not None:
            raise UserError(f"session {self.id}: {self.failure}")

    def send(self, picture: bytes | np.ndarray, time: float | None = None) -> None:
        """A picture, at `time` seconds of the stream (default: 1/frame_fps after the one before). An array is sent as it is where the
        session has a raw_size (then bytes are those of such an array), else as PNG."""
        if isinstance(picture, np.ndarray):
            picture = picture.tobytes() if self._raw else _png(picture)
        if time is not None:
            self._put(json.dumps({"time": time}))
        self._put(picture)

    def ask(self, text: str) -> list[str]:
        return json.loads(self._call("POST", "/ask", {"text": text}))["answers"]

    def suspend(self) -> dict[str, Any]:
        return json.loads(self._call("POST", "/suspend"))

    def resume(self) -> dict[str, Any]:
        return json.loads(self._call("POST", "/resume"))

    def about(self) -> dict[str, Any]:
        about = json.loads(self._call("GET", ""))
        self._raw = about["raw_size"] is not None
        return about

    def close(self) -> dict[str, Any]:
        """The session ends when what was sent is scored; the summary."""
        about = self.about()
        if about["state"] == "open" and about["source"] is None:
            self._put('{"finish": true}')  # after the pictures that are on their way
            self._ended.wait(FINISH_TIMEOUT)
        return json.loads(self._call("DELETE", ""))

    def finish(self) -> Iterator[dict[str, Any]]:
        """The session ends; its messages that were not read yet, to the last."""
        self.close()
        yield from self

    def leave(self) -> None:
        """Hang up; the session goes on."""
        with self._leaving:
            self._left, socket = True, self._socket
        if socket is not None:
            socket.close()

    # ---- the connection ----

    def listen(self) -> None:
        self.about()
        threading.Thread(target=self._listen, name="aha-serve-client", daemon=True).start()

    def _call(self, method: str, path: str, value: Any = None) -> bytes:
        return self.client.call(method, f"/sessions/{self.id}{path}", value, self.headers)

    def _put(self, data: str | bytes) -> None:
        until = time.monotonic() + TIMEOUT
        while self._connected.wait(max(0.0, until - time.monotonic())):
            socket = self._socket
            if self.failure is not None or socket is None:
                break
            try:
                socket.send(data)
                return
            except ConnectionClosed:
                time.sleep(0.1)  # the listening thread connects again
        raise UserError(f"session {self.id} cannot be reached ({self.failure or 'the connection is lost'}).")

    def _listen(self) -> None:
        address = f"ws{self.client.address.removeprefix('http')}/sessions/{self.id}/live"
        headers = {**self.client.headers, **self.headers}
        failures = 0
        while not self._left:
            try:
                with connect(f"{address}?after={self.last}", additional_headers=headers, compression=None, max_size=None) as socket:
                    with self._leaving:
                        if self._left:  # while it connected
                            break
                        self._socket = socket
                    self._connected.set()
                    for text in socket:
                        failures = 0
                        message = json.loads(text)
                        self.last = message.get("n", self.last)
                        self._messages.put(message)
                        if message["event"] == "end":
                            self._ended.set()
                    if socket.close_code == SHUTS:  # it has ended
                        break
                    cause: Exception = UserError(socket.close_reason or f"closed with code {socket.close_code}")
                    if socket.close_code == GONE:
                        failures = ATTEMPTS
            except (OSError, ConnectionClosed, InvalidHandshake) as error:
                cause = error
            self._connected.clear()
            failures += 1
            if failures > ATTEMPTS or self._left:
                self.failure = None if self._left else cause
                break
            time.sleep(min(5.0, 0.2 * 2**failures))
        self._connected.set()  # nobody waits for ever
        self._ended.set()
        self._messages.put(None)


def _detail(body: bytes) -> str:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200] or "no answer"
    return detail if isinstance(detail, str) else "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in detail)


def _png(picture_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture_HWC)).save(file, "PNG", compress_level=1)
    return file.getvalue()
