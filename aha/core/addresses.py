"""Addresses of streams as they may be shown: without user, password and query, which hold secrets (rtsp://bob:secret@host/live?token=...).

The same for what this process shows of itself: its line in `ps` is changed as well.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote

from aha.errors import UserError


def shown_address(address: str) -> str:
    """The address without what may be secret; whatever is no address (a file, "-", "camera") is given back as it is.

    A password may hold "@", ":", "?", "#" or "/" though it should not: where in doubt more is left out, never less.
    """
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*:)?//(.*)", address, re.DOTALL)
    if not match:
        forgotten = re.match(r"[^/\\\s:@]+:(?![\\/])\S+@[^/\\\s@]", address)  # bob:secret@host/live, without its rtsp://
        return address[address.rindex("@") + 1 :].split("?", 1)[0] if forgotten and not os.path.exists(address) else address
    scheme, rest = match[1] or "", match[2]
    host = rest.split("/", 1)[0]
    if "@" in host:
        rest = rest[host.rindex("@") + 1 :]
    elif "@" in rest and re.match(r"[^/?#\[\]]*:(?!\d*([/?#]|$))", host):  # what follows the colon is no port: a password with "/"
        rest = rest[rest.rindex("@") + 1 :]
    elif doubtful := re.match(r"[^/?#\[\]]+:\d+/[^?#]*[^/?#]@", rest):  # a port, or a password such as 12/34
        rest = rest[doubtful.end() :]
    return f"{scheme}//{re.split('[?#]', rest, maxsplit=1)[0]}"


def without_secrets(text: str, address: str) -> str:
    """`text` (a message of a library, say) with the address in it shown as above, and with none of the secrets by themselves."""
    shown = shown_address(address)
    place = shown.split("//", 1)[-1]  # host and path
    before, _, after = address.partition(place) if place else (address, "", "")
    login = before.split("//", 1)[-1].rstrip("@")
    secrets = {login, login.partition(":")[2], after, *(value.rpartition("=")[2] for value in re.split("[?&#]", after))}
    secrets |= {unquote(secret) for secret in secrets}
    text = text.replace(address, shown)
    for secret in sorted((secret for secret in secrets if len(secret) >= 4), key=len, reverse=True):  # shorter ones stand in many words
        text = text.replace(secret, "***")
    return text


def hide_argument(secret: str, shown: str) -> None:
    """Write `shown` over an argument in this process's command line, which all users of the machine can read (Linux; nothing elsewhere)."""
    if not sys.platform.startswith("linux"):
        return
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc(5), of which two stand before the bracket
    if not 0 < start < end:
        return
    line = ctypes.string_at(start, end - start)
    old = os.fsencode(secret)
    new = os.fsencode(shown)[: len(old)].ljust(len(old))
    ctypes.memmove(start, line.replace(old, new), len(line))


def local_file(name: str | os.PathLike) -> Path:
    """The path of a video file. Raises UserError for an address: what is scored more than once is fetched once."""
    text = os.fspath(name)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise UserError(
            f"{shown_address(text)} is an address: fetch the file first (curl -L -o video.mp4 ADDRESS; from video sites "
            "with yt-dlp ADDRESS) and give its path; live addresses are for aha watch."
        )
    return Path(text).expanduser()
