"""Addresses of streams as they may be shown: without user, password and query, which hold secrets (rtsp://bob:secret@host/live?token=...)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from aha.errors import UserError


def shown_address(address: str) -> str:
    """The address without what may be secret; whatever is no address (a file, "-", "camera") is given back as it is.

    A password may hold "@", ":", "?", "#" or "/" though it should not: where in doubt more is left out, never less.
    """
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*:)?//(.*)", address, re.DOTALL)
    if not match:
        return address
    scheme, rest = match[1] or "", match[2]
    host = rest.split("/", 1)[0]
    if "@" in host:
        rest = rest[host.rindex("@") + 1 :]
    elif re.match(r"[^/?#\[\]]*:(?!\d*([/?#]|$))", host) and "@" in rest:  # what follows the colon is no port: a password with "/"
        rest = rest[rest.rindex("@") + 1 :]
    return f"{scheme}//{re.split('[?#]', rest, maxsplit=1)[0]}"


def without_secrets(text: str, address: str) -> str:
    """`text` (a message of a library, say) with the address in it shown as above."""
    return text.replace(address, shown_address(address))


def local_file(name: str | os.PathLike) -> Path:
    """The path of a video file. Raises UserError for an address: what is scored more than once is fetched once."""
    text = os.fspath(name)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise UserError(
            f"{shown_address(text)} is an address: fetch the file first (curl -L -o video.mp4 ADDRESS; from video sites "
            "with yt-dlp ADDRESS) and give its path; live addresses are for aha watch."
        )
    return Path(text).expanduser()
