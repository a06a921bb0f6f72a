"""What the server and its clients both know, and what clients may have: each field of Limits is a flag."""

from __future__ import annotations

from dataclasses import dataclass

from aha.core.flags import flag
from aha.errors import UserError
from aha.web.limits import Limits as PageLimits

TOKEN = "AHA_SERVE_TOKEN"  # environment variable, of the server and of its clients
PORT = 8420
SHUTS, GONE, CANNOT_READ = 1000, 4404, 1003  # codes with which the server closes a WebSocket: over, no such session, nonsense
TEXT_BYTES = 65_536  # of a request that holds no picture, or of a message of text
KEPT = 512  # scores of a session that wait to be read, and as many events
WRONG_IN_A_ROW = 20  # pictures or messages that cannot be read, after which a session or connection is closed
ENDED = 4  # times max_sessions: sessions of all kinds that are remembered, so that their last events can be read


@dataclass(frozen=True)
class Limits:
    """A megabyte is 10^6 bytes. Raises UserError for values that cannot be."""

    max_sessions: int = flag(16, "sessions that are scored at once; memory is taken for all of them at the start", metavar="N")
    max_suspended: int = flag(64, "sessions that may be suspended, on disk", metavar="N")
    max_fps: float = flag(30.0, "pictures a second that a client may send to a session; more are dropped", metavar="FPS")
    max_megabytes: float = flag(8.0, "largest picture as it is sent, in MB", metavar="MB")
    max_pixels: int = flag(PageLimits.pixels, "largest picture, width times height in pixels", metavar="N")
    idle_seconds: float = flag(120.0, "a session that nobody reads, asks or sends to is closed after so many seconds", metavar="S")
    allow_local_sources: bool = flag(False, "sessions may name files, cameras and addresses of this machine itself")

    def __post_init__(self) -> None:
        for name in ("max_sessions", "max_suspended", "max_fps", "max_megabytes", "max_pixels", "idle_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--{name} must be above 0, not {getattr(self, name)}.")

    @property
    def picture_bytes(self) -> int:
        return int(self.max_megabytes * 1e6)
