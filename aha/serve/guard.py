"""What stands between the network and the sessions: which requests come in, and which addresses a session may name.

Let in are: the names of this server (a Host that is none of them comes from a rebound name), no page of another site, whoever knows the
token if there is one, and bodies of a size. A session reads from addresses of the network by an allow list of protocols and containers
(aha.video.container), and from nothing that lies on this machine unless --allow_local_sources is given.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aha.core.addresses import shown_address
from aha.core.asgi import WRONG_SECRET_SECONDS, with_headers
from aha.core.hosts import Hosts
from aha.errors import UserError
from aha.serve.limits import TEXT_BYTES, TOKEN, Limits
from aha.serve.metrics import Metrics
from aha.watch.opening import check_source
from aha.watch.sources import is_network

OPEN = re.compile(r"/docs|/openapi\.json|/static-offline-docs/[\w.-]+|/healthz")  # the same for everybody, no token asked
PICTURES = re.compile(r"/sessions/[^/]+/frames")
READ_AWAY = 100_000_000  # bytes of a refused body that are still read
SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp")  # the others can be told to listen on this machine
ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "Cache-Control": "no-store"}


class Guard:
    """ASGI application around another one. hosts: the names of this server."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, hosts: Hosts, token: str | None):
        self.app, self.limits, self.metrics, self.hosts, self.token = app, limits, metrics, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self.app(scope, receive, with_headers(send, ALWAYS))
            return
        self.metrics.refused += 1
        status, sentence = refusal
        if status == 401 and "authorization" in headers:
            await asyncio.sleep(WRONG_SECRET_SECONDS)
        if status == 413:
            await _read_away(receive, int(headers["content-length"]))
        extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        response = JSONResponse({"detail": sentence}, status, extra)
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
        else:
            await response(scope, receive, with_headers(send, ALWAYS))

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        if not self.hosts.is_ours(headers.get("host", "")):
            return 421, "this server is not called so; its names are given with aha serve --host ADDRESS NAME ..."
        if self.hosts.is_other_site(headers):
            return 403, "requests of other sites are not answered."
        open_to_all = scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and OPEN.fullmatch(scope["path"])
        if self.token and not open_to_all and not _gives(self.token, headers):
            return 401, f"this server asks for its token: Authorization: Bearer TOKEN (in the environment of the client: {TOKEN})."
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return None
        if "transfer-encoding" in headers:
            return 411, "a request must say how long it is (Content-Length)."
        most = self.limits.picture_bytes if PICTURES.fullmatch(scope["path"]) else TEXT_BYTES
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "Content-Length is no number."
        if int(length) > most:
            return 413, f"the request is larger than {most:,} bytes."
        return None


def _gives(token: str, headers: Headers) -> bool:
    kind, _, given = headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


async def _read_away(receive: Receive, length: int) -> None:
    """A body that is a little too large is read, or its sender would hear of a broken connection and not why."""
    while length <= READ_AWAY and (message := await receive())["type"] == "http.request" and message.get("more_body"):
        continue


# ---- which addresses a session may name ----


def check_address(address: str, allow_local: bool) -> None:
    """Raises UserError for an address from which no session may read. Looks the host's name up."""
    shown = shown_address(address)
    if not address.isprintable() or re.search(r"[\s\\]", address) or address == "-":
        raise UserError("source is no address; give one that begins with rtsp:// or http://.")
    if allow_local:
        check_source(address)
        return
    if not is_network(address):
        raise UserError(
            f"source {shown} is no address on the network (rtsp://, http://); files and cameras of the server may be named only where it "
            "was started with --allow_local_sources."
        )
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"source {shown} is no valid address ({error}).") from error
    if parts.scheme.lower() not in SCHEMES or not host:
        raise UserError(f"source {shown} must begin with {', '.join(f'{scheme}://' for scheme in SCHEMES)} and name a host.")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise UserError(f"the host of source {shown} cannot be found ({error}); check the address.") from error
    if any(_is_here(str(place)) for place in found):
        raise UserError(f"source {shown} lies on the server itself; that is allowed only where it was started with --allow_local_sources.")


def _is_here(place: str) -> bool:
    """Whether a network address is this machine, or one that only this machine is told of (169.254.169.254 of clouds)."""
    ip = ipaddress.ip_address(place.split("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast:
        return True
    try:
        with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET) as probe:
            probe.bind((str(ip), 0))  # works for one's own addresses only
        return True
    except OSError:
        return False
