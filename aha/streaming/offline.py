"""Scoring a whole video: frames are read ahead in a thread, go through the vision tower in batches and through the decoder in chunks.

The scores are those of pushing frame by frame: a frame's score does not depend on later frames.

Shapes: N frames of a chunk, K tokens of a frame (49), H decoder width.
"""

from __future__ import annotations

import copy
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from aha.conversation import Query, QuerySchedule
from aha.data.corrupt import Corruption
from aha.data.video import Frame, iter_frames, probe
from aha.errors import UserError
from aha.models.model import AhaModel, FrameScores
from aha.streaming.session import Session

Item = TypeVar("Item")


@dataclass(frozen=True)
class ScoreSettings:
    """How videos are scored. frame_fps: frames a second; 0 = `max_num_frames` frames spread over the video. chunk_frames: frames in one
    forward call (changes the speed, not the scores). session: settings of aha.streaming.Session. policy: when to speak (None:
    never). corruption: pictures made worse on purpose."""

    frame_fps: float = 1.0
    max_num_frames: int | None = None
    sampling: str = "timestamps"
    chunk_frames: int = 64
    session: dict[str, Any] | None = None
    policy: Any = None
    corruption: Corruption | None = None

    def __post_init__(self) -> None:
        if self.frame_fps < 0 or (self.frame_fps == 0 and not self.max_num_frames):
            raise UserError(f"--frame_fps is {self.frame_fps}; give frames a second above 0, or 0 together with --max_num_frames.")
        if self.chunk_frames < 1:
            raise UserError(f"--chunk_frames is {self.chunk_frames}; give at least 1.")


def read_ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, made in a thread up to `depth` ahead. Its exceptions come out here; leaving early stops it."""
    done, stop = object(), threading.Event()
    waiting: queue.Queue = queue.Queue(maxsize=depth)

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(done)
        except Exception as error:  # noqa: BLE001 (raised again in the caller's thread)
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not done:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def debug_rows(times: Sequence[float], scores: FrameScores) -> list[dict[str, float]]:
    """`debug_data` of a prediction file for N frames; scores unrounded."""
    rows = [
        {"time": time, "informative_score": informative, "relevance_score": relevance}
        for time, informative, relevance in zip(times, scores.informative.tolist(), scores.relevance.tolist())
    ]
    if scores.uncertainty is not None:
        for row, variance in zip(rows, scores.uncertainty.tolist()):
            row["uncertainty_score"] = variance
    return rows


@dataclass(frozen=True)
class ScoredFrame:
    """A frame, its `debug_data` row, the queries asked before it and the reply made after it (None: nothing was said)."""

    frame: Frame
    row: dict[str, float]
    asked: list[Query]
    reply: str | None = None


def _with_pixels(frames: list[Frame], pinned: bool) -> tuple[list[Frame], Tensor]:
    """The frames' pixels in one tensor [N, 3, H, W], in memory that a GPU can copy from while it computes."""
    pixels_NCHW = torch.empty((len(frames), *frames[0].frame_CHW.shape), dtype=torch.uint8, pin_memory=pinned)
    for k, frame in enumerate(frames):
        pixels_NCHW.numpy()[k] = frame.frame_CHW
    return frames, pixels_NCHW


def score_frames(session: Session, frames: Iterable[Frame], schedule: QuerySchedule, chunk_frames: int) -> Iterator[ScoredFrame]:
    """Ask the queries when they are due, score every frame, and reply where the session's policy wants it.

    Without a policy the decoder takes `chunk_frames` frames at once; with one it goes frame by frame, for a reply changes what follows.
    Reading frames, copying them to the device and computing overlap: scores are read one chunk late.
    """
    pinned = session.decoder.device.type == "cuda"
    batches = read_ahead((_with_pixels(batch, pinned) for batch in in_batches(frames, chunk_frames)), 2)
    waiting: list[tuple[list[Frame], FrameScores, list[list[Query]], str | None]] = []
    for batch, pixels_NCHW in batches:
        with torch.inference_mode():
            visual_NKH = session.model.visual_embed(pixels_NCHW)
        asked = [schedule.due(frame.time) for frame in batch]
        starts = [k for k in range(len(batch)) if k == 0 or asked[k] or session.policy is not None]
        launched = []
        for start, end in zip(starts, [*starts[1:], len(batch)]):
            for query in asked[start]:
                session.ask(query.text)
            scores = session.push_embeds(visual_NKH[start:end])
            reply = session.respond() if session.wants_to_speak else None
            launched.append((batch[start:end], scores, asked[start:end], reply))
        yield from _scored(waiting)
        waiting = launched
    yield from _scored(waiting)


def _scored(pieces: Iterable[tuple[list[Frame], FrameScores, list[list[Query]], str | None]]) -> Iterator[ScoredFrame]:
    """Wait for the scores; a reply belongs to the last frame of its piece."""
    for frames, scores, asked, reply in pieces:
        for k, row in enumerate(debug_rows([frame.time for frame in frames], scores)):
            yield ScoredFrame(frames[k], row, asked[k], reply if k == len(frames) - 1 else None)


def score_video(
    model: AhaModel,
    tokenizer: Any,
    video: str | os.PathLike,
    queries: Sequence[Query],
    settings: ScoreSettings,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Score a video file -> one element of a prediction file. `progress` is told the number of frames after each.

    Raises UserError for a video that cannot be read and for scores that are not finite.
    """
    info = probe(video)
    spread = settings.frame_fps == 0
    fps = settings.max_num_frames / info.duration if spread else settings.frame_fps
    frames = iter_frames(
        video, fps=None if spread else fps, num_frames=settings.max_num_frames if spread else None,
        max_frames=None if spread else settings.max_num_frames, sampling=settings.sampling,
    )  # fmt: skip
    if settings.corruption is not None:
        frames = settings.corruption.apply(frames, info.duration, Path(video).stem)
    policy = copy.deepcopy(settings.policy)  # it remembers scores: each video starts with a new one
    session = Session(model, tokenizer=tokenizer, policy=policy, frame_fps=fps, **(settings.session or {}))
    schedule = QuerySchedule(queries, session.state.prompt_order, fps)
    indices: list[int] = []
    rows: list[dict[str, float]] = []
    turns: list[dict[str, Any]] = []
    for scored in score_frames(session, frames, schedule, settings.chunk_frames):
        bad = [name for name, value in scored.row.items() if not np.isfinite(value)]
        if bad:
            raise UserError(f"video {video}: {bad[0]} of frame {len(rows)} is not finite; the weights are damaged, or try --dtype float32.")
        indices.append(scored.frame.frame_index)
        rows.append(scored.row)
        if scored.reply is not None:
            turns.append({"role": "assistant", "time": scored.frame.time, "content": scored.reply})
        if progress is not None:
            progress(len(rows))
    return {
        "video_uuid": Path(video).stem,
        "query": " ".join(query.text for query in queries),
        "video_duration": info.duration,
        "frame_fps": fps,
        "true_frames_list": indices,
        "debug_data": rows,
        "model_response_list": turns,
    }
