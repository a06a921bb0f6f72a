"""A streaming session: frames and questions go in, scores come out.

    session = model.stream(query="how to repair a tyre", cache="dynamic_sink")
    scores = session.push(frame)         # uint8 [3, 384, 384] or several [N, 3, 384, 384] -> FrameScores of [1] or [N]
    session.ask("which tool was that?")

All state is in the session: any number of them may run on one model. Pushing several frames at once gives the same scores as one by one.

Shapes: N frames, K tokens of a frame (49), T tokens, H decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llava_next import resolve_folder
from torch import Tensor

from aha.conversation import DEFAULT_SYSTEM_PROMPT, DuetFormat, DuetState, load_tokenizer
from aha.errors import UserError
from aha.models.model import AhaModel, FrameScores
from aha.streaming.caches import CACHES, Block, Cache
from aha.streaming.decoder import make_plan, run_layers
from aha.streaming.pool import KVPool

DEFAULT_WINDOW = 2048
DEFAULT_SINK_TOKENS = 32


def make_cache(
    kind: str = "full", window: int | None = None, sink_tokens: int | None = None, semantics: str = "aha", attention: str = "sdpa"
) -> Cache:
    """The cache of that name. window and sink_tokens in tokens (defaults 2048 and 32). Raises UserError for sizes that cannot work."""
    if kind not in CACHES:
        raise UserError(f"cache {kind!r} is none of {', '.join(CACHES)}.")
    if semantics not in ("aha", "reference"):
        raise UserError(f"cache_semantics {semantics!r} is neither aha nor reference.")
    window = DEFAULT_WINDOW if window is None else window
    sink_tokens = DEFAULT_SINK_TOKENS if sink_tokens is None else sink_tokens
    if kind in ("sink", "sliding", "dynamic_sink") and window < 2 * 49 + (sink_tokens if kind == "sink" else 0):
        raise UserError(f"a window of {window} tokens is too small: it must hold the sink and at least two frames of 49 tokens.")
    if sink_tokens < 0:
        raise UserError(f"sink_tokens is {sink_tokens}, below 0.")
    return Cache(kind, None if kind in ("full", "static") else window, sink_tokens if kind == "sink" else 0)


def family_of(model: AhaModel) -> str:
    return "mmduet" if model.config.relevance_outputs == 2 else "aha"


class Session:
    """One stream on a model.

    query: asked before the first frame. cache, window, sink_tokens, cache_semantics: see aha.streaming.caches. prompt_order: "aha" (as in
    training) or "reference". tokenizer: that of the checkpoint (default: where the model was loaded from). Raises UserError.
    """

    def __init__(
        self,
        model: AhaModel,
        query: str | None = None,
        *,
        tokenizer: Any = None,
        cache: str = "full",
        window: int | None = None,
        sink_tokens: int | None = None,
        cache_semantics: str = "aha",
        prompt_order: str = "aha",
        system_prompt: str = DEFAULT_SYSTEM_PROMPT,
        pool: KVPool | None = None,
    ):
        self.model = model
        self.format = DuetFormat(tokenizer if tokenizer is not None else tokenizer_of(model))
        self.state = DuetState(self.format, prompt_order, family_of(model), system_prompt)
        self.cache = make_cache(cache, window, sink_tokens, cache_semantics)
        self.pool = pool if pool is not None else KVPool.of_model(model, 4096 if self.cache.window is None else self.cache.window + 512)
        self.asked = False
        if query is not None:
            self.ask(query)

    @property
    def frames(self) -> int:
        """Frames pushed so far."""
        return self.state.frames

    # ---- what goes in ----

    def ask(self, text: str) -> None:
        """A question or task, from the next frame on."""
        self._feed_text(self.state.query(text), "text" if self.asked else "prompt")
        self.asked = True

    def push(self, frames: Tensor | np.ndarray) -> FrameScores:
        """uint8 RGB [3, H, W] or [N, 3, H, W], already scaled and padded to the tower's size (aha.data.video) -> scores [1] or [N]."""
        frames_NCHW = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
        if frames_NCHW.ndim == 3:
            frames_NCHW = frames_NCHW[None]
        with torch.inference_mode():
            return self.push_embeds(self.model.visual_embed(frames_NCHW))

    @torch.inference_mode()
    def push_embeds(self, visual_NKH: Tensor) -> FrameScores:
        """Frame tokens [N, 49, H] (`model.visual_embed`, or `model.project` of stored tower features) -> scores [N]."""
        if not len(visual_NKH):
            raise ValueError("push needs at least one frame")
        visual_NKH = visual_NKH.to(self.model.model.norm.weight)
        hidden: list[Tensor] = []
        start = 0
        while start < len(visual_NKH):
            text = self.state.frame()
            end = start + 1
            if text:
                role = "prompt" if self.state.frames == 1 else "text"
                if self.cache.joins_text:
                    joint = torch.cat([self._embed(text), visual_NKH[start : start + 1]], 1)
                    hidden.append(self._feed(joint, [self._block(joint.shape[1], "frame")])[:, -1])
                    start = end
                    continue
                self._feed_text(text, role)
            while end < len(visual_NKH):  # nothing comes between frames of an open stream turn
                self.state.frame()
                end += 1
            hidden.append(self._feed_frames(visual_NKH[start:end]))
            start = end
        return self.model.score(torch.cat(hidden))

    def _feed_frames(self, visual_NKH: Tensor) -> Tensor:
        """Frames with nothing between them -> hidden states of their last tokens [N, H]."""
        count, tokens, width = visual_NKH.shape
        if self.cache.kind == "full":  # one long causal block: the same keys for all, no copies
            hidden_1TH = self._feed(visual_NKH.reshape(1, count * tokens, width), [self._block(count * tokens, "frame")])
            return hidden_1TH.view(count, tokens, width)[:, -1]
        return self._feed(visual_NKH, [self._block(tokens, "frame") for _ in range(count)])[:, -1]

    # ---- feeding ----

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return self.model.embed_tokens(torch.tensor([ids], device=self.model.model.norm.weight.device))

    @torch.inference_mode()
    def _feed_text(self, ids: Sequence[int], role: str) -> Tensor:
        """Feed token ids, in pieces where the window is small -> hidden state of the last one [1, H]."""
        hidden = None
        while ids:
            size = self.cache.piece() or len(ids)
            piece, ids = ids[:size], ids[size:]
            hidden = self._feed(self._embed(piece), [self._block(len(piece), role)])[:, -1]
        return hidden

    def _block(self, tokens: int, role: str) -> Block:
        return self.cache.block(self.pool.take(tokens), role)

    def _feed(self, embeds_NTH: Tensor, blocks: list[Block]) -> Tensor:
        hidden_NTH = run_layers(self.model, embeds_NTH, self.pool, make_plan(self.model, blocks))
        self.pool.give_back(self.cache.take_dropped())
        return hidden_NTH


def tokenizer_of(model: AhaModel) -> Any:
    """The tokenizer of the folders that the model was loaded from. Raises UserError where there is none."""
    for source in model.tokenizer_sources:
        folder = resolve_folder(source)
        if (folder / "tokenizer_config.json").is_file():
            return load_tokenizer(folder)
    where = " and ".join(model.tokenizer_sources) or "a checkpoint folder (the model was not loaded from one)"
    raise UserError(f"no tokenizer in {where}; copy the tokenizer files of the base model there, or give tokenizer=load_tokenizer(folder).")
