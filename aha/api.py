"""Aha! in Python: load a model, encode a video once, ask it many things.

    from aha.api import load

    model = load("demo")
    video = model.encode("clip.mp4", fps=1)
    result = model.query(video, "where are the red things?")
    print(result.highlights[0])

`load("demo")` is the small model that ships with the project and knows only coloured shapes; `load("lmms-lab/llava-onevision-qwen2-7b-ov",
"path/or/hub-id/of/an/adapter")` is a real one. Importing this module is light: torch is imported when a model is loaded.

F frames, K tokens of a frame (49), H decoder width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.errors import UserError
from aha.highlights.result import Options, Result, find_highlights
from aha.highlights.timeline import ScoreTrack
from aha.video.reader import iter_frames, probe

if TYPE_CHECKING:
    from torch import Tensor

    from aha.models.model import AhaModel
    from aha.streaming import Session

DEMO = Path(__file__).parent / "demo" / "checkpoints"
DEMO_BASE = DEMO / "llava-onevision-qwen2-demo-ov"
DEMO_ADAPTER = DEMO / "aha-demo"  # trained as `train_on_tvsum.sh --demo` does
DEMO_NOTE = "Scored by the embedded demo model, which knows only simple coloured shapes; name a real model for real videos."
LONGEST_QUERY = 2000  # characters
BATCH = 16  # frames that go through the vision tower, or the decoder, at once
CACHE = {"cache": "dynamic_sink", "window": 2048}  # constant memory, as `aha watch`


@dataclass(frozen=True)
class EncodedVideo:
    """A video after the vision tower: what every query on it starts from."""

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
) -> Highlighter:
    """Load a model for highlights.

    model: "demo", a folder or hub id of a base checkpoint (with `adapter`), or of a whole Aha model (without).
    device: "cpu" or "cuda" (default: cuda where there is one). dtype: float32, bfloat16, float16 (default: bfloat16 on cuda, else float32).
    Raises UserError where something is missing or does not fit.
    """
    import torch

    from aha.models import AhaModel
    from aha.streaming.session import tokenizer_of

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype {dtype!r} is none of float32, bfloat16, float16.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no GPU; use device cpu or repair the driver.")
    is_demo = os.fspath(model) == "demo"
    if is_demo and adapter is not None:
        raise UserError("an adapter needs its base model: give --llm_pretrained with --lora_pretrained.")
    settings: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device, "attn_implementation": attn_implementation}
    if is_demo:
        if missing := [path for path in (DEMO_BASE, DEMO_ADAPTER) if not path.is_dir()]:
            raise UserError(
                f"the embedded demo model is not complete: {missing[0]} is not there; install the project again or name a model."
            )
        loaded = AhaModel.from_base(DEMO_BASE, DEMO_ADAPTER, **settings)
    elif adapter is not None:
        loaded = AhaModel.from_base(model, adapter, **settings)
    else:
        loaded = AhaModel.from_pretrained(model, **settings)
    name = "the embedded demo model" if is_demo else " + ".join(os.fspath(part) for part in (model, adapter) if part)
    return Highlighter(loaded.eval(), tokenizer_of(loaded), name, is_demo)


def checked_query(text: str) -> str:
    """The task as it is given to the model. Raises UserError for an empty or endless one."""
    text = text.strip()
    if not text:
        raise UserError("the query is empty; say in plain words what to look for.")
    if len(text) > LONGEST_QUERY:
        raise UserError(f"the query has {len(text):,} characters, more than {LONGEST_QUERY:,}; say it in fewer words.")
    return text


class Highlighter:
    """A loaded model. `encode` once, `query` many times."""

    def __init__(self, model: AhaModel, tokenizer: Any, name: str, is_demo: bool = False):
        self.model, self.tokenizer, self.name, self.is_demo = model, tokenizer, name, is_demo

    @property
    def note(self) -> str:
        """One sentence for reports: which model scored."""
        return DEMO_NOTE if self.is_demo else f"Scored by {self.name}."

    def encode(
        self,
        video: str | os.PathLike,
        fps: float = 1.0,
        max_num_frames: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> EncodedVideo:
        """Read `fps` frames a second and run them through the vision tower. progress(done, total) is called after each batch.

        Raises UserError: missing or damaged file, no video in it.
        """
        import torch

        info = probe(video)
        total = max(1, int(info.duration * fps))
        total = min(total, max_num_frames or total)
        frames_F, times_F, batch = [], [], []
        # One block for all: small pieces kept between the tower's large temporary ones cost 15 times their size over a long video.
        visual_FKH = torch.empty(0)
        done = 0

        def flush() -> None:
            nonlocal visual_FKH, done
            if batch:
                visual_NKH = self.embed(np.stack(batch))
                if done == 0:  # the length that a file says may be wrong
                    room = max(len(batch), min(total + 1, 1 << 14))
                    visual_FKH = torch.empty((room, *visual_NKH.shape[1:]), dtype=visual_NKH.dtype)
                elif done + len(batch) > len(visual_FKH):
                    visual_FKH = torch.cat([visual_FKH, torch.empty_like(visual_FKH)])
                visual_FKH[done : done + len(batch)] = visual_NKH
                done += len(batch)
                batch.clear()
                if progress:
                    progress(len(frames_F), max(total, len(frames_F)))

        for frame in iter_frames(video, fps=fps, max_frames=max_num_frames):
            batch.append(frame.frame_CHW)
            frames_F.append(frame.frame_index)
            times_F.append(frame.time)
            if len(batch) == BATCH:
                flush()
        flush()
        visual_FKH = visual_FKH[:done]
        features = [part.float().mean(1).numpy() for part in visual_FKH.split(256)]  # not of all at once: as large again in float32
        return EncodedVideo(
            os.fspath(video),
            info.duration,
            info.fps,
            fps,
            np.array(frames_F),
            np.array(times_F),
            visual_FKH,
            np.concatenate(features),
        )

    def embed(self, frames_NCHW: np.ndarray) -> Tensor:
        """uint8 [N, 3, 384, 384] -> frame tokens [N, 49, H]."""
        import torch

        with torch.inference_mode():
            return self.model.visual_embed(torch.from_numpy(frames_NCHW))

    def stream(self, query: str | None, **settings: Any) -> Session:
        """A streaming session; constant memory unless `cache` says otherwise."""
        return self.model.stream(query=query, tokenizer=self.tokenizer, **{**CACHE, **settings})

    def score(self, video: EncodedVideo, query: str, progress: Callable[[int, int], None] | None = None) -> ScoreTrack:
        """Score every encoded frame for one query, each from the frames before it only."""
        session = self.stream(checked_query(query))
        rows = []
        for start in range(0, len(video), BATCH):
            rows.append(self.push(session, video.visual_FKH[start : start + BATCH]))
            if progress:
                progress(min(start + BATCH, len(video)), len(video))
        informative, relevance, uncertainty = (None if column[0] is None else np.concatenate(column) for column in zip(*rows))
        return ScoreTrack(video.times_F, video.frames_F, informative, relevance, uncertainty, video.duration, video.features_FH)

    def push(self, session: Session, visual_NKH: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Informative, relevance and uncertainty [N] of frames that were embedded before."""
        scores = session.push_embeds(visual_NKH.to(self.model.model.norm.weight.device))
        return tuple(None if values is None else values.float().cpu().numpy().astype(np.float64) for values in scores)

    def query(
        self, video: EncodedVideo, query: str, *, budget: float | None = None, top: int | None = None, options: Options | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Result:  # fmt: skip
        """Score, segment, choose and rank. budget: share of the video; top: number of moments (default: budget 0.15)."""
        options = options or Options()
        if budget is not None or top is not None:
            options = replace(options, budget=budget, top=top, min_score=None)
        return find_highlights(self.score(video, query, progress), checked_query(query), options, video.video_fps)

    def say(self, video: EncodedVideo, result: Result, max_new_tokens: int = 40) -> Result:
        """A copy of the result in which the model says something about each highlight, having seen its frames up to the best one."""
        sentences = []
        for highlight in result.highlights:
            best = highlight.first + int(np.argmax(result.fused_F[highlight.first : highlight.last]))
            session = self.stream(result.query)
            self.push(session, video.visual_FKH[max(highlight.first, best + 1 - BATCH) : best + 1])
            sentences.append(session.respond(max_new_tokens=max_new_tokens).strip() or None)
        return result.with_sentences(sentences)


def queries_of(texts: Sequence[str]) -> list[str]:
    """Checked queries; the same one twice is an error. Raises UserError."""
    queries = [checked_query(text) for text in texts]
    for query in queries:
        if queries.count(query) > 1:
            raise UserError(f"the query {query[:60]!r} is given twice; give each once.")
    return queries
