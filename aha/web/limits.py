"""What the page lets its visitors have."""

from __future__ import annotations

from dataclasses import dataclass

from aha.errors import UserError


@dataclass(frozen=True)
class Limits:
    """fps: frames a second that are scored. A megabyte is 10^6 bytes."""

    megabytes: float = 200  # of one upload
    minutes: float = 20  # of one video
    fps: float = 2.0
    most_fps: float = 4.0  # that a visitor may choose
    queries: int = 4  # of one visitor at a time
    pixels: int = 4096 * 2304  # of one picture, as of a picture that is sent to `aha serve`
    visitors: int = 32  # that have a video
    running: int = 24  # videos that are scored at the same time
    questions: int = 8  # of one visitor that wait for an answer
    answers: int = 200  # of one visitor that are shown
    idle_seconds: float = 30.0  # after which a visitor who is not connected has left
    idle_minutes: float = 30.0  # after which an open tab in which nothing is done loses its thread, and an unused upload is deleted

    def check_size(self, size: int) -> None:
        """Raises UserError for an upload of more bytes than one may have."""
        if size > self.upload_bytes:
            raise UserError(f"the video has {size / 1e6:.0f} MB, more than the {self.megabytes:g} MB that this page takes; cut it shorter.")

    @property
    def upload_bytes(self) -> int:
        return int(self.megabytes * 1e6)

    @property
    def megabytes_each(self) -> float:
        """Of all uploads of one visitor."""
        return 3 * self.megabytes

    @property
    def megabytes_all(self) -> float:
        """Of all uploads of all visitors."""
        return 20 * self.megabytes
