"""What stands between the network and the page: which requests reach Gradio at all, and how files leave.

Every request passes here first. Let in are: the names of this server (a Host that is none of them comes from a rebound name), the page's
own scripts (no other site: there is no CORS), whoever knows the password if there is one, and the routes that the page uses. Uploads are
looked at while they come; files are served from here, always as downloads and never from outside of the page's own folder.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aha.core.asgi import WRONG_SECRET_SECONDS, with_headers
from aha.core.hosts import Hosts
from aha.errors import UserError
from aha.web.uploads import HEAD, check_first_bytes, media_type
from aha.web.visitors import Visitors

API = "/gradio_api"
ROUTES = {
    "GET": re.compile(
        rf"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(static|assets|svelte)/.+|"
        rf"{API}/(info/?|startup-events|app_id/?|login_check/?|user/?|theme\.css|queue/data|upload_progress|heartbeat/[^/]+|file=.+)"
    ),
    "POST": re.compile(rf"{API}/(queue/join/?|run/predict/?|upload/?|cancel|reset/?)"),
}
ROUTES["HEAD"] = ROUTES["GET"]
LARGEST_EVENT = 256_000  # bytes of a request that is no upload
ROOM_FOR_HEADERS = 16_384  # of an upload, in bytes

ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "SAMEORIGIN"}
FOR_FILES = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private",
}


class Refusal(Exception):
    """An answer that is given instead of the page's: status, sentence, headers."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.response = PlainTextResponse(sentence, status, headers)


class Guard:
    """ASGI application around another one. `hosts`: the names by which this server is called; the first is the address it listens on."""

    def __init__(self, app: ASGIApp, visitors: Visitors, hosts: Collection[str], password: str | None):
        self.app, self.visitors, self.password = app, visitors, password
        self.root = visitors.root.resolve()
        self.hosts = Hosts(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        send = with_headers(send, ALWAYS)
        request = Request(scope, receive)
        try:
            await self._check(request)
            path = request.url.path
            if path.startswith(f"{API}/file="):
                await self._file(path.removeprefix(f"{API}/file="))(scope, receive, send)
            elif path.startswith(f"{API}/heartbeat/"):
                with self.visitors.connected(self._session(path.rsplit("/", 1)[1])):
                    await self.app(scope, receive, send)
            elif path.rstrip("/") == f"{API}/upload":
                await self._upload(request, scope, receive, send)
            elif request.method == "POST":
                await self.app(scope, await self._event(request), send)
            else:
                await self.app(scope, receive, send)
        except Refusal as refusal:
            await refusal.response(scope, receive, send)

    # ---- who may come in ----

    async def _check(self, request: Request) -> None:
        """Raises Refusal."""
        headers = request.headers
        if not self.hosts.is_ours(headers.get("host", "")):
            raise Refusal(421, "This page is not served under this name; its names are given with aha demo --host ADDRESS NAME ...\n")
        if self.hosts.is_other_site(headers):
            raise Refusal(403, "Requests of other sites are not answered.\n")
        if self.password and not _gives(self.password, headers):
            if "authorization" in headers:
                await asyncio.sleep(WRONG_SECRET_SECONDS)
            raise Refusal(401, "This page asks for a password.\n", {"WWW-Authenticate": 'Basic realm="Aha!", charset="UTF-8"'})
        allowed = ROUTES.get(request.method)
        if allowed is None or not allowed.fullmatch(request.url.path):
            raise Refusal(404, "There is nothing here.\n")

    def _session(self, session_hash: Any) -> str:
        """A session hash that counts as seen. Raises Refusal."""
        if not isinstance(session_hash, str) or not re.fullmatch(r"[\w-]{1,64}", session_hash):
            raise Refusal(400, "This request names no session; load the page again.\n")
        try:
            self.visitors.seen(session_hash)
        except UserError as error:
            raise Refusal(429, f"{error}\n") from error
        return session_hash

    # ---- events ----

    async def _event(self, request: Request) -> Receive:
        """The request's body, read and checked, to be read again. Raises Refusal."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_EVENT:
                raise Refusal(413, "This request is too large.\n")
        try:
            event = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "This request is no JSON.\n") from error
        if request.url.path.startswith((f"{API}/queue/join", f"{API}/run/")):
            self._session(event.get("session_hash") if isinstance(event, dict) else None)
        for path in _paths_in(event):
            if self._inside(path) is None:
                raise Refusal(403, "This request names a file that was not uploaded here.\n")
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await request.receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay

    def _inside(self, path: Any) -> Path | None:
        """A file that visitors may name: an upload, an example, a result. None for all others."""
        if not isinstance(path, str) or "\0" in path or "://" in path:
            return None
        try:
            real = Path(path).resolve()
        except (OSError, RuntimeError, ValueError):
            return None
        return real if self.root in real.parents and real.is_file() else None

    # ---- files ----

    def _file(self, path: str) -> Response:
        file = self._inside(path)
        if file is None:
            raise Refusal(404, "There is no such file.\n")
        with file.open("rb") as opened:
            kind = media_type(opened.read(HEAD)) or "application/octet-stream"
        return FileResponse(file, headers=FOR_FILES, media_type=kind, filename=file.name, content_disposition_type="attachment")

    # ---- uploads ----

    async def _upload(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            raise Refusal(411, "An upload must say how long it is.\n")
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refusal(400, "This is no upload of a file.\n")
        sender, size = request.client.host if request.client else "", max(0, int(length) - ROOM_FOR_HEADERS)
        try:
            self.visitors.uploads.admit(sender, size)
        except UserError as error:
            raise Refusal(413, f"{error}\n") from error
        arrived: list[Path] = []
        answer = _Answer(send)
        try:
            await self.app(scope, _looked_at(receive, options[b"boundary"]), answer)
            if answer.status == 200:
                arrived = [Path(path) for path in json.loads(answer.body)]
        finally:
            self.visitors.uploads.settle(sender, size, arrived)
        await answer.give()


def _looked_at(receive: Receive, boundary: bytes) -> Receive:
    """The parts of an upload as they come. A second part, or first bytes of no video, end it: Gradio deletes what has come so far and
    answers with the sentence."""
    head, parts, decided = b"", 0, False

    def begin() -> None:
        nonlocal parts
        parts += 1
        if parts > 1:
            raise MultiPartException("one video at a time, please.")

    def data(chunk: bytes, start: int, end: int) -> None:
        nonlocal head
        if len(head) < HEAD:
            head += chunk[start : min(end, start + HEAD)]
        decide(len(head) >= HEAD)

    def decide(enough: bool) -> None:
        nonlocal decided
        if enough and not decided:
            try:
                check_first_bytes(head)
            except UserError as error:
                raise MultiPartException(str(error)) from error
            decided = True

    parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_part_end": lambda: decide(True)})

    async def read() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            parser.write(message.get("body", b""))
        return message

    return read


class _Answer:
    """An answer that is held back until the upload is accounted for."""

    def __init__(self, send: Send):
        self._send = send
        self._messages: list[Message] = []
        self.status, self.body = 0, b""

    async def __call__(self, message: Message) -> None:
        self._messages.append(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")

    async def give(self) -> None:
        for message in self._messages:
            await self._send(message)


def _gives(password: str, headers: Headers) -> bool:
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        given = base64.b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return False
    return hmac.compare_digest(given, password.encode())


def _paths_in(value: Any) -> list[Any]:
    """The files that a request names: Gradio's file data is {"path": ..., "meta": {"_type": "gradio.FileData"}}."""
    found, waiting = [], [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                found.append(value["path"])
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found
