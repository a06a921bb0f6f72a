"""Which machine a server is: where it listens, by which names it is called, and which requests come from its own pages.

A Host that is none of the server's names comes from a rebound name, an Origin that is none of them from another site in somebody's browser.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from aha.errors import UserError

LOCAL = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "[::]")


def is_everywhere(host: str) -> bool:
    """Whether a server on this address can be reached from other machines."""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host != "localhost"


def check_secret(host: str, secret: str | None, kind: str, variable: str, what: str) -> None:
    """Raises UserError where a server on this address is open to others and nothing was set that they must know. kind: "password" or
    "token"; variable: the environment variable that holds it; what: "page" or "server"."""
    if is_everywhere(host) and not secret:
        raise UserError(
            f"--host {host} lets others on the network use this {what}; set a {kind} in the environment or in .env ({variable}=...), or "
            f"leave --host out to keep the {what} to this machine."
        )


class Hosts:
    """`names`: those by which the server is called; the first is the address it listens on."""

    def __init__(self, names: Collection[str]):
        self.names = {name.strip("[]").lower() for name in names} | set(LOCAL)
        self.any_address = any(name in EVERYWHERE for name in names)
        if self.any_address:
            self.names.add(socket.gethostname().lower())

    def is_ours(self, host: str) -> bool:
        """`host`: a Host header."""
        name = name_of(host)
        return name in self.names or (self.any_address and _is_address(name))

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Whether the page that asks is ours: of the host that it asks, or of a name that somebody gave, since a proxy that hides these
        names from us still sends their Origin."""
        place = urlsplit(origin).netloc
        return place.lower() == host.lower() or name_of(place) in self.names - {*LOCAL, *EVERYWHERE}

    def is_other_site(self, headers: Mapping[str, str]) -> bool:
        """Whether a request, of these headers, comes from a page of another site."""
        origin = headers.get("origin")
        if origin is not None and not self.is_own_origin(origin, headers.get("host", "")):
            return True
        return headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"


def name_of(host: str) -> str:
    """ "Example.org:7860" -> "example.org"; "[::1]:7860" -> "::1"."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]@/]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises UserError where it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} on {host} is taken or cannot be used ({error}); choose another with --port or --host.") from error
    return listening


def shown_host(host: str) -> str:
    """The host as it stands in an address for a browser."""
    return "localhost" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
