"""Files that visitors send: what their first bytes must be, how much there may be, and when they are deleted.

Equal files are stored once, in a folder named by their contents; `Uploads` knows who sent each and who looks at it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from aha.errors import UserError
from aha.video.container import is_playlist
from aha.web.limits import Limits

HEAD = 1024  # bytes that decide whether a file can be a video

# Where in the file, with which bytes, and the media type that the player is told.
_SIGNATURES = (
    *((4, box, "video/mp4") for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),  # Matroska
    (8, b"AVI ", "video/x-msvideo"),
    (0, b"OggS", "video/ogg"),
    (0, b"FLV", "video/x-flv"),
    (0, bytes.fromhex("3026b2758e66cf11"), "video/x-ms-wmv"),
    (0, b"\0\0\1\xba", "video/mpeg"),
    (0, b"\0\0\1\xb3", "video/mpeg"),
    (0, bytes.fromhex("060e2b34"), "application/mxf"),
    (0, b"GIF8", "image/gif"),
    (0, b".RMF", "application/vnd.rn-realmedia"),
    (0, b"DKIF", "video/x-ivf"),
    (0, b"YUV4MPEG2", "video/x-yuv4mpeg"),
)


def media_type(head: bytes) -> str | None:
    """What kind of video begins with these bytes; None = none that is known here."""
    for at, signature, kind in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return kind
    for at, packet in ((0, 188), (4, 192)):  # MPEG-TS, also with the clock of a recorder before each packet
        if len(head) > at + packet and head[at] == head[at + packet] == 0x47:
            return "video/mp2t"
    return None


def check_first_bytes(head: bytes) -> str:
    """The media type. Raises UserError where this is no video."""
    kind = media_type(head)
    if kind is not None:
        return kind
    if is_playlist(head) and not head.lstrip().startswith(b"<"):
        raise UserError("this file is a playlist, not a video; upload the video itself.")
    raise UserError("this file is no video (its first bytes are those of no format that is known here); upload an MP4, WebM, MKV or MOV.")


@dataclass
class _Upload:
    size: int
    sender: str
    users: int = 0  # visitors that look at it
    since: float = field(default_factory=time.monotonic)  # when the last one left, or it came


class Uploads:
    """What lies in `folder`. All methods may be called from any thread."""

    def __init__(self, folder: Path, limits: Limits):
        self.folder, self.limits = folder, limits
        self._lock = threading.Lock()
        self._files: dict[Path, _Upload] = {}
        self._coming: list[tuple[str, int]] = []  # who, bytes

    def admit(self, sender: str, size: int) -> None:
        """Keep room for an upload that begins; `settle` ends that. Raises UserError where there is none."""
        limits = self.limits
        limits.check_size(size)
        with self._lock:
            held = [(upload.sender, upload.size) for upload in self._files.values()] + self._coming
            if sum(bytes_ for who, bytes_ in held if who == sender) + size > limits.megabytes_each * 1e6:
                raise UserError(
                    f"your uploads would be more than the {limits.megabytes_each:g} MB that one visitor may have here; close a tab, or try "
                    "again in a while."
                )
            if sum(bytes_ for _, bytes_ in held) + size > limits.megabytes_all * 1e6:
                raise UserError(f"this page holds its {limits.megabytes_all:g} MB of uploads already; try again in a while.")
            self._coming.append((sender, size))

    def settle(self, sender: str, size: int, arrived: list[Path]) -> None:
        """An upload that was admitted has ended; `arrived`: its files, none where it failed."""
        with self._lock:
            self._coming.remove((sender, size))
            for path in arrived:
                if path not in self._files and self.folder in path.parents and path.is_file():
                    self._files[path] = _Upload(path.stat().st_size, sender)

    def use(self, video: Path, by: int) -> None:
        """One visitor more (1) or less (-1) looks at a video. An upload that nobody looks at any more is deleted; examples stay."""
        with self._lock:
            upload = self._files.get(video)
            if upload is None:
                return
            upload.users, upload.since = upload.users + by, time.monotonic()
            if upload.users <= 0:
                self._delete(video)

    def sweep(self) -> None:
        """Delete uploads that nobody started, and what broken connections left."""
        patience = self.limits.idle_minutes * 60
        with self._lock:
            for path, upload in list(self._files.items()):
                if upload.users <= 0 and time.monotonic() - upload.since > patience:
                    self._delete(path)
        for path in self.folder.glob("tmp*"):
            if path.is_file() and time.time() - path.stat().st_mtime > patience:
                path.unlink(missing_ok=True)

    def _delete(self, path: Path) -> None:
        del self._files[path]
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
