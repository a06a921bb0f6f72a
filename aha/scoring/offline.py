"""Scoring a whole video: threads read frames ahead, they go through the vision tower in batches and through the decoder in chunks.

    scorer = Scorer(*ModelChoice(base, adapter).load(), ScoreConfig(frame_fps=2))
    prediction = scorer.score("clip.mp4", [Query("how to repair a tyre")])

The scores are those of pushing frame by frame: a frame's score does not depend on later frames.

Shapes: N frames of a chunk, K tokens of a frame, P patches kept of a frame, C tower width.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from llava_next import PUBLISHED
from torch import Tensor

from aha.conversation import Query, QuerySchedule
from aha.core.prediction import Prediction
from aha.data.feature_cache import FeatureCache, VideoFeatures, tower_key, video_key
from aha.errors import UserError
from aha.models.model import AhaModel
from aha.scoring.config import ScoreConfig
from aha.streaming.chunks import Chunk, ReadAhead, embed_chunks, pixel_chunks, score_frames
from aha.streaming.decoder import Decoder
from aha.streaming.session import Session
from aha.streaming.stream_clock import StreamClock
from aha.video.reader import Frame, iter_frames, probe

FRAMES_AHEAD = 512  # decoded and not scored yet, for one video
WARM_UP = 4  # frames


class OpenVideo:
    """A video whose frames a thread is reading already: a file, or a list of images, which are its frames at `config.frame_fps`. Raises
    UserError where it cannot be read.

    duration: seconds. fps: of the sampled frames. chunks: `config.chunk_frames` frames each, with stored features in place of pixels where
    `features` has them, which `stored` says. side: height and width of the pictures, in pixels.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[Path],
        config: ScoreConfig,
        features: FeatureCache | None = None,
        pinned: bool = False,
        side: int = PUBLISHED.side,
    ):
        reading = config.reading()
        if not isinstance(path, str | os.PathLike):
            if not config.frame_fps:
                raise UserError("images are the frames of a video at --frame_fps; give it above 0 for them.")
            self.path, self.video_fps, self.duration = Path(path[0]), config.frame_fps, len(path) / config.frame_fps
            reading["source_fps"] = config.frame_fps
        else:
            info = probe(path)
            self.path, self.video_fps, self.duration = Path(path), info.fps, info.duration
        self.fps = config.frame_fps or (config.max_num_frames or 1) / self.duration
        self.chunk_frames, self.stored = config.chunk_frames, False
        self.limit = reading.pop("max_frames")
        self.chunks: Iterable[Chunk] = ()
        self.stores: tuple[FeatureCache, str] | None = None  # where its features lie or go, and under which key
        if features is not None and config.corruption is None and isinstance(path, str | os.PathLike):
            self.stores = features, video_key(path, **reading)
            if (found := features.get(self.stores[1], self.limit)) is not None:
                self._take(found)
                return
        frames: Iterable[Frame] = iter_frames(path, max_frames=self.limit, size=side, **reading)
        if config.corruption is not None:
            frames = config.corruption.apply(frames, self.duration, self.path.stem)
        if config.measured:  # nothing else is done while the model's time is taken
            self.chunks = pixel_chunks(frames, 1, pinned)
        else:
            self.chunks = ReadAhead(pixel_chunks(frames, config.chunk_frames, pinned), max(FRAMES_AHEAD // config.chunk_frames, 1))

    def _take(self, features: VideoFeatures) -> None:
        size = self.chunk_frames
        starts = range(0, len(features.frames), size)
        self.chunks, self.stored = [(features.frames[k : k + size], features.features_FPC[k : k + size]) for k in starts], True

    def with_features(self, features: VideoFeatures) -> OpenVideo:
        """The same video, its frames from features that were computed before."""
        video = copy.copy(self)
        video._take(features)
        return video

    def embed(self, model: AhaModel) -> Iterator[Chunk]:
        """Chunks of frames and their tokens [N, K, H]; features that the cache lacks are stored in it."""
        seen: list[Frame] = []
        kept: list[Tensor] = []

        def keep(frames: list[Frame], features_NPC: Tensor) -> None:
            seen.extend(frames)
            kept.append(features_NPC.cpu())

        yield from embed_chunks(model, self.chunks, None if self.stores is None else keep)
        if kept and self.stores is not None:
            cache, key = self.stores
            complete = self.limit is None or len(seen) < self.limit
            cache.put(key, VideoFeatures(seen, torch.cat(kept), complete))

    def close(self) -> None:
        if isinstance(self.chunks, ReadAhead):
            self.chunks.close()


def warn_other_prompt(trained: str, given: str | None) -> None:
    """Say loudly, on rank 0, that --system_prompt is not what the model knows."""
    if given not in (None, trained) and int(os.environ.get("RANK", 0)) == 0:
        line = "!" * 78
        print(
            f"{line}\nWARNING: --system_prompt is not the one that the model was trained with; scores may be worse.\n"
            f"  trained with: {trained}\n  given:        {given}\n{line}",
            file=sys.stderr,
        )


class Scorer:
    """A loaded model and how to score with it; its decoder is made once for all videos."""

    def __init__(self, model: AhaModel, tokenizer: Any, config: ScoreConfig):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        warn_other_prompt(model.system_prompt, config.system_prompt)
        self.decoder = Decoder(model, config.compile)
        if config.compile and self.decoder.device.type == "cuda":
            model.fuse_vision()
        self.features = FeatureCache(config.feature_cache, tower_key(model)) if config.feature_cache is not None else None
        if config.measured:
            self.warm_up()

    def warm_up(self) -> None:
        """Score some black frames, and make a reply where replies are wanted: the first calls of a process are slow, and this takes them
        before a stream's clock runs."""
        side = self.model.config.frame.side
        session = self.session(1.0)
        for _ in range(WARM_UP):
            session.push(torch.zeros(3, side, side, dtype=torch.uint8))
        if self.config.speaks:
            session.respond()

    def open(self, path: str | os.PathLike | Sequence[Path]) -> OpenVideo:
        return OpenVideo(path, self.config, self.features, self.decoder.device.type == "cuda", self.model.config.frame.side)

    def session(self, fps: float) -> Session:
        return Session(self.model, tokenizer=self.tokenizer, frame_fps=fps, decoder=self.decoder, **self.config.session())

    def score(
        self,
        video: str | os.PathLike | Sequence[Path] | OpenVideo,
        queries: Sequence[Query],
        progress: Callable[[int], None] | None = None,
        *,
        video_id: str | None = None,
        trained_on: bool = False,
        **extra: Any,
    ) -> Prediction:
        """Score a video. progress: told the number of frames after each. video_id: default the file's name; extra: see Prediction.

        Raises UserError for a video that cannot be read and for scores that are not finite.
        """
        opened = video if isinstance(video, OpenVideo) else self.open(video)
        session = self.session(opened.fps)
        clock = self.config.stream_clock()
        indices: list[int] = []
        rows: list[dict[str, float]] = []
        turns: list[dict[str, Any]] = []
        schedule = QuerySchedule(queries, self.config.prompt_order, opened.fps)
        for scored in score_frames(session, self._chunks(opened, clock), schedule, clock):
            indices.append(scored.frame.frame_index)
            rows.append(scored.row)
            if scored.reply is not None:
                turns.append({"role": "assistant", "time": scored.said, "content": scored.reply})
            if progress is not None:
                progress(len(rows) if clock is None else clock.arrived)
        if clock is not None:
            extra["clock"] = clock.summary()
        text = " ".join(query.text for query in queries)
        return Prediction.of_scores(
            video_id or opened.path.stem, text, opened.duration, opened.fps, indices, rows, turns, trained_on=trained_on, **extra
        )

    def _chunks(self, video: OpenVideo, clock: StreamClock | None) -> Iterable[Chunk]:
        """The frames that the model sees, and their tokens. Where the model's time is measured, the vision tower's is part of it."""
        if clock is None:
            return video.embed(self.model)
        if clock.cost is None:
            return embed_chunks(self.model, clock.taken(video.chunks, singly=True))
        return clock.taken(video.embed(self.model), singly=self.config.speaks)
