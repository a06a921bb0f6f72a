"""Frames in chunks: read ahead by a thread, scored a chunk at a time, with what is asked and said in between.

The scores are those of pushing frame by frame: a frame's score does not depend on later frames. Needs no video decoder: frames may come
from anywhere.

Shapes: N frames of a chunk, K tokens of a frame, P patches kept of a frame, C tower width, H decoder width.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from aha.conversation import Query, QuerySchedule
from aha.core.prediction import score_rows
from aha.models.model import FrameScores
from aha.streaming.session import Session

if TYPE_CHECKING:
    from aha.video.reader import Frame

Item = TypeVar("Item")
Chunk = tuple[list["Frame"], Tensor]  # frames, and their pixels uint8 [N, 3, H, W] or tower features [N, P, C]


# ---- reading ahead ----


class ReadAhead(Iterable[Item]):
    """The same items, made in a thread that starts at once and stays up to `depth` ahead; its exceptions come out where they are read."""

    def __init__(self, items: Iterable[Item], depth: int):
        self.stopped = threading.Event()
        self.waiting: queue.Queue = queue.Queue(maxsize=depth)
        self.thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self.thread.start()

    def _put(self, item: Any) -> None:
        while not self.stopped.is_set():
            try:
                return self.waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _work(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                self._put((item, None))
                if self.stopped.is_set():
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001 (raised again in the reader's thread)
            self._put((None, error))

    def __iter__(self) -> Iterator[Item]:
        try:
            while (got := self.waiting.get()) is not None:
                item, error = got
                if error is not None:
                    raise error
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading; what was read is thrown away."""
        self.stopped.set()
        self.thread.join()


def read_ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    return iter(ReadAhead(items, depth))


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def pixel_chunks(frames: Iterable[Frame], size: int, pinned: bool) -> Iterator[Chunk]:
    """Frames `size` at a time with their pixels in one tensor, `pinned` in memory that a GPU can copy from while it computes."""
    for batch in in_batches(frames, size):
        pixels_NCHW = torch.empty((len(batch), *batch[0].frame_CHW.shape), dtype=torch.uint8, pin_memory=pinned)
        for k, frame in enumerate(batch):
            pixels_NCHW.numpy()[k] = frame.frame_CHW
        yield [frame._replace(frame_CHW=None) for frame in batch], pixels_NCHW  # one copy of the pixels is enough


# ---- scoring ----


def debug_rows(times: Sequence[float], scores: FrameScores) -> list[dict[str, float]]:
    """`debug_data` of a prediction file for N frames; scores unrounded."""
    return score_rows(times, *(None if values_N is None else values_N.tolist() for values_N in scores))


@dataclass(frozen=True)
class ScoredFrame:
    """A frame, its `debug_data` row, the queries asked before it and the reply made after it (None: nothing was said)."""

    frame: Frame
    row: dict[str, float]
    asked: list[Query]
    reply: str | None = None


def score_frames(session: Session, chunks: Iterable[tuple[list[Frame], Tensor]], schedule: QuerySchedule) -> Iterator[ScoredFrame]:
    """Ask the queries when they are due, score every frame, and reply where the session's policy wants it.

    chunks: frames and their tokens [N, K, H]. Without a policy the decoder takes a chunk at once; with one it goes frame by frame, for
    a reply changes what follows. Scores are read one chunk late, so that a GPU need not wait for the next chunk to be launched.
    """
    waiting: list[tuple[list[Frame], FrameScores, list[list[Query]], str | None]] = []
    for frames, visual_NKH in chunks:
        asked = [schedule.due(frame.time) for frame in frames]
        starts = [k for k in range(len(frames)) if k == 0 or asked[k] or session.policy is not None]
        launched = []
        for start, end in zip(starts, [*starts[1:], len(frames)]):
            for query in asked[start]:
                session.ask(query.text)
            scores = session.push_embeds(visual_NKH[start:end])
            reply = session.respond() if session.wants_to_speak else None
            launched.append((frames[start:end], scores, asked[start:end], reply))
        yield from _scored(waiting)
        waiting = launched
    yield from _scored(waiting)


def _scored(pieces: Iterable[tuple[list[Frame], FrameScores, list[list[Query]], str | None]]) -> Iterator[ScoredFrame]:
    """Wait for the scores; a reply belongs to the last frame of its piece."""
    for frames, scores, asked, reply in pieces:
        for k, row in enumerate(debug_rows([frame.time for frame in frames], scores)):
            yield ScoredFrame(frames[k], row, asked[k], reply if k == len(frames) - 1 else None)
