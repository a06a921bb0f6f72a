"""From frames to scores, in chunks: read ahead by a thread, through the tower and the decoder, with what is asked and said in between.

The scores are those of pushing frame by frame: a frame's score does not depend on later frames. Needs no video decoder: frames may come
from anywhere.

Shapes: N frames of a chunk, K tokens of a frame, P patches kept of a frame, C tower width, H decoder width.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from aha.conversation import Query, QuerySchedule
from aha.core.prediction import score_rows
from aha.models.model import FrameScores, WithHeads
from aha.streaming.session import Session
from aha.streaming.stream_clock import StreamClock
from aha.video.reader import NO_PIXELS, Frame

Item = TypeVar("Item")
Chunk = tuple[list[Frame], Tensor]  # frames, and their pixels uint8 [N, 3, H, W], tower features [N, P, C] or tokens [N, K, H]


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


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def pixel_chunk(frames: Sequence[Frame], pinned: bool = False) -> Chunk:
    """Frames, and their pixels in one tensor, `pinned` in memory that a GPU can copy from while it computes."""
    pixels_NCHW = torch.empty((len(frames), *frames[0].frame_CHW.shape), dtype=torch.uint8, pin_memory=pinned)
    for k, frame in enumerate(frames):
        pixels_NCHW.numpy()[k] = frame.frame_CHW
    return [frame._replace(frame_CHW=NO_PIXELS) for frame in frames], pixels_NCHW  # one copy of the pixels is enough


def pixel_chunks(frames: Iterable[Frame], size: int, pinned: bool = False) -> Iterator[Chunk]:
    """Frames `size` at a time."""
    return (pixel_chunk(batch, pinned) for batch in in_batches(frames, size))


# ---- from pixels to tokens ----


def embed_chunks(model: WithHeads, chunks: Iterable[Chunk], keep: Callable[[list[Frame], Tensor], None] | None = None) -> Iterator[Chunk]:
    """Frames and their tokens [N, K, H]: pixels go through the vision tower, features [N, P, C] through the projector only.

    keep: told the frames and features of every chunk that went through the tower.
    """
    for frames, values in chunks:
        with torch.inference_mode():
            if values.dtype == torch.uint8:
                values = model.used_patches(model.tower_features(values))
                if keep is not None:
                    keep(frames, values)
            visual_NKH = model.project(values.to(model.decoder_device))
        yield frames, visual_NKH


# ---- scoring ----


@dataclass(frozen=True)
class ScoredFrame:
    """A frame, its `debug_data` row, its tokens [K, H], the queries asked before it and the reply made after it (None: nothing said).
    said: the second at which the reply is complete."""

    frame: Frame
    row: dict[str, float]
    visual_KH: Tensor
    asked: list[Query]
    reply: str | None = None
    said: float = 0.0

    @property
    def feature_H(self) -> np.ndarray:
        """Mean token of the frame: what tells one picture from another."""
        return self.visual_KH.float().mean(0).cpu().numpy()


@dataclass(frozen=True)
class _Piece:
    """Frames of one forward call; decided: when their scores are known, where that is later than the frames' own time."""

    frames: list[Frame]
    visual_NKH: Tensor
    scores: FrameScores
    asked: list[list[Query]]
    decided: list[float | None]
    reply: str | None = None
    said: float | None = None


def score_frames(
    session: Session, chunks: Iterable[Chunk], schedule: QuerySchedule | None = None, clock: StreamClock | None = None
) -> Iterator[ScoredFrame]:
    """Ask the queries when they are due, score every frame, and reply where the session's policy wants it.

    chunks: frames and their tokens [N, K, H]. Without a policy the decoder takes a chunk at once; with one it goes frame by frame, for
    a reply changes what follows. Scores are read one chunk late, so that a GPU need not wait for the next chunk to be launched.
    clock: whose `taken` the chunks went through; it is told what each frame and reply cost.
    """
    schedule = schedule or QuerySchedule([])
    waiting: list[_Piece] = []
    for frames, visual_NKH in chunks:
        passed = [clock.passed() if clock is not None else 0 for _ in frames]
        asked = [schedule.due(frame.time, lost) for frame, lost in zip(frames, passed)]
        starts = [k for k in range(len(frames)) if k == 0 or asked[k] or session.policy is not None]
        launched = []
        for start, end in zip(starts, [*starts[1:], len(frames)]):
            session.skip(sum(passed[start:end]))
            for query in asked[start]:
                session.ask(query.text)
            scores = session.push_embeds(visual_NKH[start:end])
            if clock is not None and clock.cost is None:
                _ = [values.tolist() for values in scores if values is not None]  # waits until they are there
            decided = [clock.decided(frame.time) if clock is not None else None for frame in frames[start:end]]
            reply = said = None
            if session.wants_to_speak:
                reply = session.respond()
                said = clock.said(len(session.reply_ids)) if clock is not None else None
            launched.append(_Piece(frames[start:end], visual_NKH[start:end], scores, asked[start:end], decided, reply, said))
        yield from _scored(waiting)
        waiting = launched
    yield from _scored(waiting)


def _scored(pieces: Iterable[_Piece]) -> Iterator[ScoredFrame]:
    """Wait for the scores; a reply belongs to the last frame of its piece."""
    for piece in pieces:
        heads: list[list[float] | None] = [None if values is None else values.tolist() for values in piece.scores]
        rows = score_rows([frame.time for frame in piece.frames], *heads)
        for k, (frame, row, decided) in enumerate(zip(piece.frames, rows, piece.decided)):
            if decided is not None:
                row["decided"] = decided
            reply = piece.reply if k == len(rows) - 1 else None
            yield ScoredFrame(frame, row, piece.visual_NKH[k], piece.asked[k], reply, frame.time if piece.said is None else piece.said)
