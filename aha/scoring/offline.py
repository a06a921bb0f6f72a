"""Scoring a whole video: threads read frames ahead, they go through the vision tower in batches and through the decoder in chunks.

The scores are those of pushing frame by frame: a frame's score does not depend on later frames.

Shapes: N frames of a chunk, K tokens of a frame (49), P patches kept of a frame (169), C tower width, H decoder width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aha.conversation import Query, QuerySchedule
from aha.data.feature_cache import FeatureCache, tower_key, video_key
from aha.errors import UserError
from aha.models.model import AhaModel
from aha.streaming.chunks import Chunk, ReadAhead, pixel_chunks, score_frames
from aha.streaming.session import Session
from aha.video.corrupt import Corruption
from aha.video.reader import Frame, iter_frames, probe

FRAMES_AHEAD = 512  # decoded and not scored yet, for one video


@dataclass(frozen=True)
class ScoreSettings:
    """How videos are scored. frame_fps: frames a second; 0 = `max_num_frames` frames spread over the video. chunk_frames: frames in one
    forward call (changes the speed, not the scores). session: settings of aha.streaming.Session. policy: when to speak (None:
    never). corruption: pictures made worse on purpose. feature_cache: folder of stored vision features, shared with training."""

    frame_fps: float = 1.0
    max_num_frames: int | None = None
    sampling: str = "timestamps"
    chunk_frames: int = 64
    session: dict[str, Any] | None = None
    policy: Any = None
    corruption: Corruption | None = None
    feature_cache: str | None = None

    def __post_init__(self) -> None:
        if self.frame_fps < 0 or (self.frame_fps == 0 and not self.max_num_frames):
            raise UserError(f"--frame_fps is {self.frame_fps}; give frames a second above 0, or 0 together with --max_num_frames.")
        if self.chunk_frames < 1:
            raise UserError(f"--chunk_frames is {self.chunk_frames}; give at least 1.")


class OpenVideo:
    """A video file whose frames a thread is reading already. Raises UserError where it cannot be read.

    duration in seconds; fps of the sampled frames; chunks: of `settings.chunk_frames` frames, with stored features in place of pixels
    where the feature cache has them.
    """

    def __init__(self, video: str | os.PathLike, settings: ScoreSettings, pinned: bool = False, features: FeatureCache | None = None):
        self.path, self.features = Path(video), features
        info = probe(video)
        self.duration = info.duration
        spread = settings.frame_fps == 0
        self.fps = settings.max_num_frames / info.duration if spread else settings.frame_fps
        self.key = None
        if features is not None and settings.corruption is None and not spread:
            self.key = video_key(video, fps=self.fps, max_frames=settings.max_num_frames, sampling=settings.sampling)
            features_FPC, facts_3F = features.get(self.key), features.get(f"{self.key}-facts")
            if features_FPC is not None and facts_3F is not None:
                self.key = None  # nothing to store
                frames = [Frame(None, int(index), time, shown) for index, time, shown in facts_3F.T.tolist()]
                size = settings.chunk_frames
                self.chunks: Iterable[Chunk] = [(frames[k : k + size], features_FPC[k : k + size]) for k in range(0, len(frames), size)]
                return
        frames = iter_frames(
            video, fps=None if spread else self.fps, num_frames=settings.max_num_frames if spread else None,
            max_frames=None if spread else settings.max_num_frames, sampling=settings.sampling,
        )  # fmt: skip
        if settings.corruption is not None:
            frames = settings.corruption.apply(frames, info.duration, self.path.stem)
        self.chunks = ReadAhead(pixel_chunks(frames, settings.chunk_frames, pinned), max(FRAMES_AHEAD // settings.chunk_frames, 1))

    def embed(self, model: AhaModel) -> Iterator[tuple[list[Frame], Tensor]]:
        """Frames and their tokens [N, 49, H]; stores the features if the cache lacks them."""
        kept: list[Tensor] = []
        seen: list[Frame] = []
        for frames, values in self.chunks:
            with torch.inference_mode():
                if values.dtype == torch.uint8:
                    values = model.used_patches(model.tower_features(values))
                    if self.key is not None:
                        kept.append(values.cpu())
                        seen += frames
                visual_NKH = model.project(values.to(model.model.norm.weight.device))
            yield frames, visual_NKH
        if kept:
            facts = [[f.frame_index for f in seen], [f.time for f in seen], [f.frame_time for f in seen]]
            self.features.put(f"{self.key}-facts", torch.tensor(facts, dtype=torch.float64))
            self.features.put(self.key, torch.cat(kept))

    def close(self) -> None:
        if isinstance(self.chunks, ReadAhead):
            self.chunks.close()


def score_video(
    model: AhaModel,
    tokenizer: Any,
    video: str | os.PathLike | OpenVideo,
    queries: Sequence[Query],
    settings: ScoreSettings,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Score a video file -> one element of a prediction file. `progress` is told the number of frames after each.

    Raises UserError for a video that cannot be read and for scores that are not finite.
    """
    if not isinstance(video, OpenVideo):
        video = OpenVideo(video, settings, is_gpu(model), feature_cache(model, settings))
    policy = copy.deepcopy(settings.policy)  # it remembers scores: each video starts with a new one
    session = Session(model, tokenizer=tokenizer, policy=policy, frame_fps=video.fps, **(settings.session or {}))
    schedule = QuerySchedule(queries, session.state.prompt_order, video.fps)
    indices: list[int] = []
    rows: list[dict[str, float]] = []
    turns: list[dict[str, Any]] = []
    for scored in score_frames(session, video.embed(model), schedule):
        bad = [name for name, value in scored.row.items() if not np.isfinite(value)]
        if bad:
            where = f"video {video.path}: {bad[0]} of frame {len(rows)}"
            raise UserError(f"{where} is not finite; the weights are damaged, or try --dtype float32.")
        indices.append(scored.frame.frame_index)
        rows.append(scored.row)
        if scored.reply is not None:
            turns.append({"role": "assistant", "time": scored.frame.time, "content": scored.reply})
        if progress is not None:
            progress(len(rows))
    return {
        "video_uuid": video.path.stem,
        "query": " ".join(query.text for query in queries),
        "video_duration": video.duration,
        "frame_fps": video.fps,
        "true_frames_list": indices,
        "debug_data": rows,
        "model_response_list": turns,
    }


def is_gpu(model: AhaModel) -> bool:
    return model.model.norm.weight.is_cuda


def feature_cache(model: AhaModel, settings: ScoreSettings) -> FeatureCache | None:
    return FeatureCache(settings.feature_cache, tower_key(model)) if settings.feature_cache is not None else None
