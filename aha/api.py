"""Aha! in Python: load a model, encode a video once, ask it many things.

    from aha.api import load

    model = load("demo")
    video = model.encode("clip.mp4", fps=1)
    result = model.query(video, "where are the red things?")
    print(result.highlights[0])

`load("demo")` is the small model that ships with the project and knows only coloured shapes; `load("mmduet-7b")` is a real one (`aha
models` lists the names), and so is `load("lmms-lab/llava-onevision-qwen2-7b-ov", "path/or/hub-id/of/an/adapter")`.
Importing this module is light: torch is imported when a model is loaded.

F frames, K tokens of a frame (49), H decoder width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.conversation import LONGEST_QUERY as LONGEST_QUERY
from aha.conversation import checked_query
from aha.errors import UserError
from aha.highlights.evidence import DEMO_LEVEL, DEMO_UNRELATED, LEVEL, UNRELATED, Evidence, variations
from aha.highlights.result import Options, Result, evidence_of, find_highlights
from aha.highlights.timeline import ScoreTrack
from aha.scoring.config import ScoreConfig
from aha.scoring.model_choice import ModelChoice
from aha.video.reader import NO_PIXELS, Frame, probe

if TYPE_CHECKING:
    from torch import Tensor

    from aha.data.feature_cache import FeatureCache
    from aha.models.model import AhaModel
    from aha.scoring.offline import OpenVideo
    from aha.streaming import Session
    from aha.streaming.chunks import Chunk, ScoredFrame

DEMO_NOTE = "Scored by the embedded demo model, which knows only simple coloured shapes; name a real model for real videos."
BATCH = 16  # frames that go through the vision tower, or the decoder, at once
CACHE = "dynamic_sink"  # of the default window: constant memory, as `aha watch`


@dataclass(frozen=True)
class EncodedVideo:
    """A video after the vision tower: every query on it starts from these frame tokens."""

    path: str
    duration: float  # seconds
    video_fps: float  # average frames a second of the file
    sample_fps: float  # frames a second that were encoded
    frames_F: np.ndarray  # index of each encoded frame in the file
    times_F: np.ndarray  # seconds
    visual_FKH: Tensor
    features_FH: np.ndarray  # mean token of each frame

    def __len__(self) -> int:
        return len(self.times_F)


def load(
    model: str | os.PathLike = "demo",
    adapter: str | os.PathLike | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    weights: str | None = None,
) -> Highlighter:
    """Load a model for highlights.

    model: a name (`aha models`), a folder or hub id of a base checkpoint (with `adapter`), or of a whole Aha model or an adapter that
    names its base (without).
    device: "cpu" or "cuda" (default: cuda where there is one). dtype: float32, bfloat16, float16 (default: bfloat16 on cuda, else float32).
    weights: bf16, 8bit or 4bit, for a smaller card.
    Raises UserError where something is missing or does not fit.
    """
    named = {"model": os.fspath(model)} if adapter is None else {"llm_pretrained": os.fspath(model), "lora_pretrained": os.fspath(adapter)}
    return load_choice(ModelChoice(**named, dtype=dtype, device=device, attn_implementation=attn_implementation, weights=weights))


def load_choice(choice: ModelChoice) -> Highlighter:
    """`load` for the model that the flags of a command name. Raises UserError."""
    return Highlighter(*choice.load(), choice.name, choice.is_demo)


class Highlighter:
    """A loaded model. `encode` once, `query` many times."""

    def __init__(self, model: AhaModel, tokenizer: Any, name: str, is_demo: bool = False):
        self.model, self.tokenizer, self.name, self.is_demo = model, tokenizer, name, is_demo
        self._features: FeatureCache | None = None

    @property
    def note(self) -> str:
        """One sentence for reports: which model scored."""
        return DEMO_NOTE if self.is_demo else f"Scored by {self.name}."

    def open(
        self,
        video: str | os.PathLike,
        fps: float = 1.0,
        max_num_frames: int | None = None,
        video_backend: str = "pyav",
        keep_features: str | os.PathLike | None = None,
    ) -> OpenVideo:
        """A video whose frames a thread is reading already, `fps` a second; where that is more than `max_num_frames`, that many spread over
        the whole video. keep_features: a folder of what the vision tower gave for it, in this run or an earlier one.

        Raises UserError: missing or damaged file, no video in it.
        """
        from aha.data.feature_cache import FeatureCache, tower_key
        from aha.scoring.offline import OpenVideo

        if keep_features is not None and self._features is None:
            self._features = FeatureCache(keep_features, tower_key(self.model))
        if max_num_frames is not None and probe(video).duration * fps > max_num_frames:
            fps = 0.0
        spread = None if fps else max_num_frames
        config = ScoreConfig(frame_fps=fps, max_num_frames=spread, chunk_frames=BATCH, video_backend=video_backend)
        return OpenVideo(video, config, self._features if keep_features is not None else None, side=self.model.config.frame.side)

    def encode(
        self,
        video: str | os.PathLike | OpenVideo,
        fps: float = 1.0,
        max_num_frames: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        video_backend: str = "pyav",
    ) -> EncodedVideo:
        """Read a video (or go on with an opened one) and run its frames through the vision tower. fps, max_num_frames: see `open`.
        progress(done, total) is called after each batch.

        Raises UserError: missing or damaged file, no video in it.
        """
        import torch

        from aha.scoring.offline import OpenVideo

        opened = video if isinstance(video, OpenVideo) else self.open(video, fps, max_num_frames, video_backend)
        total = max(round(opened.duration * opened.fps), 1)
        seen: list[Frame] = []
        # One tensor for all frames: many small ones, made between the tower's large temporaries, leave holes of 15 times their own size.
        visual_FKH = torch.empty(0)
        for frames, visual_NKH in opened.embed(self.model):
            done = len(seen)
            if done == 0:  # the length that a file states may be wrong
                room = max(len(frames), min(total + 1, 1 << 14))
                visual_FKH = torch.empty((room, *visual_NKH.shape[1:]), dtype=visual_NKH.dtype)
            elif done + len(frames) > len(visual_FKH):
                visual_FKH = torch.cat([visual_FKH, torch.empty_like(visual_FKH)])
            visual_FKH[done : done + len(frames)] = visual_NKH
            seen += frames
            if progress:
                progress(len(seen), max(total, len(seen)))
        visual_FKH = visual_FKH[: len(seen)]
        features = [part.float().mean(1).numpy() for part in visual_FKH.split(256)]  # not of all at once: as large again in float32
        return EncodedVideo(
            os.fspath(opened.path),
            opened.duration,
            opened.video_fps,
            opened.fps,
            np.array([frame.frame_index for frame in seen]),
            np.array([frame.time for frame in seen]),
            visual_FKH,
            np.concatenate(features),
        )

    def stream(self, query: str | None, **settings: Any) -> Session:
        """A streaming session; constant memory unless `cache` says otherwise."""
        return self.model.stream(query=query, tokenizer=self.tokenizer, **{"cache": CACHE, **settings})

    def score(self, video: EncodedVideo, query: str, progress: Callable[[int, int], None] | None = None) -> ScoreTrack:
        """Score every encoded frame for one query, each from the frames before it only."""
        from aha.streaming.chunks import score_frames

        frames = [Frame(NO_PIXELS, int(index), float(time), float(time)) for index, time in zip(video.frames_F, video.times_F)]
        chunks = ((frames[k : k + BATCH], video.visual_FKH[k : k + BATCH]) for k in range(0, len(video), BATCH))
        rows = []
        for scored in score_frames(self.stream(checked_query(query)), chunks):
            rows.append(scored.row)
            if progress:
                progress(len(rows), len(video))
        return ScoreTrack.of_rows(rows, video.frames_F, video.duration, video.features_FH)

    def embed(self, frames: Sequence[Frame]) -> Chunk:
        """Run frames with their pixels through the vision tower now; the result can be pushed to any number of sessions."""
        from aha.streaming.chunks import embed_chunks, pixel_chunk

        return next(embed_chunks(self.model, [pixel_chunk(frames)]))

    def push(self, session: Session, chunk: Chunk) -> list[ScoredFrame]:
        """Run what `embed` gave through the decoder now: a score for each of its frames."""
        from aha.streaming.chunks import score_frames

        return list(score_frames(session, [chunk]))

    @property
    def unrelated_queries(self) -> tuple[str, ...]:
        """Queries that hardly a video answers: what the evidence for a query is measured against (aha.highlights.evidence)."""
        return DEMO_UNRELATED if self.is_demo else UNRELATED

    def evidence(self, track: ScoreTrack, unrelated: Sequence[ScoreTrack], varied: Sequence[ScoreTrack]) -> Evidence:
        """How clearly a video answers its query. unrelated, varied: the same video scored for `unrelated_queries`, and for the query's
        `variations` (aha.highlights.evidence)."""
        return evidence_of(track, unrelated, varied, DEMO_LEVEL if self.is_demo else LEVEL)

    def unrelated(self, video: EncodedVideo, progress: Callable[[int, int], None] | None = None) -> list[ScoreTrack]:
        """The video scored for queries that have nothing to do with it, against which `query` measures its evidence. Do it once a video."""
        return self._score_all(video, self.unrelated_queries, progress)

    def _score_all(self, video: EncodedVideo, queries: Sequence[str], progress: Callable[[int, int], None] | None) -> list[ScoreTrack]:
        """progress counts the frames of all of them."""
        frames = len(video)

        def after(query: int) -> Callable[[int, int], None] | None:
            return None if progress is None else lambda done, _: progress(query * frames + done, len(queries) * frames)

        return [self.score(video, words, after(number)) for number, words in enumerate(queries)]

    def query(
        self, video: EncodedVideo, query: str, *, budget: float | None = None, top: int | None = None, options: Options | None = None,
        progress: Callable[[int, int], None] | None = None, unrelated: Sequence[ScoreTrack] = (),
    ) -> Result:  # fmt: skip
        """Score, segment, choose and rank. budget: share of the video; top: number of moments (default: budget 0.15).

        unrelated: what `unrelated(video)` gave; with it the query's variations are scored too, `result.evidence` says how clear the answer
        is, and an unclear answer chooses no moment (but with `options.force`).
        """
        options = options or Options()
        if budget is not None or top is not None:
            options = replace(options, budget=budget, top=top, min_score=None)
        query = checked_query(query)
        track, *varied = self._score_all(video, [query, *(variations(query) if unrelated else ())], progress)
        evidence = self.evidence(track, unrelated, varied) if unrelated else None
        return find_highlights(track, query, options, video.video_fps, evidence)

    def say(self, video: EncodedVideo, result: Result, max_new_tokens: int = 40) -> Result:
        """A copy of the result in which the model says something about each highlight, having seen its frames up to the best one."""
        sentences = []
        for highlight in result.highlights:
            best = highlight.first + int(np.argmax(result.fused_F[highlight.first : highlight.last]))
            session = self.stream(result.query)
            session.push_embeds(video.visual_FKH[max(highlight.first, best + 1 - BATCH) : best + 1])
            sentences.append(session.respond(max_new_tokens=max_new_tokens).strip() or None)
        return result.with_sentences(sentences)


def queries_of(texts: Sequence[str]) -> list[str]:
    """Checked queries; the same one twice is an error. Raises UserError."""
    queries = [checked_query(text) for text in texts]
    for query in queries:
        if queries.count(query) > 1:
            raise UserError(f"the query {query[:60]!r} is given twice; give each once.")
    return queries
