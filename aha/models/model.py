"""AhaModel: the base video-language model with three heads on the decoder's hidden states.

    model = AhaModel.from_base("lmms-lab/llava-onevision-qwen2-7b-ov", "wangyueqian/MMDuet", dtype=torch.bfloat16, device="cuda")
    model = AhaModel.from_pretrained("path/or/hub-id")

The score of a frame is read at the last of its tokens. `forward` computes and returns; it logs nothing, reads no environment
and touches no file.

Shapes: B batch, T tokens, H decoder width, V vocabulary, K tokens of a frame (49), F frames in the batch, N scored frames (normally F),
M positions with language logits, P patches (729), C tower width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from llava_next import TOWER_BATCH, LlavaNextForCausalLM
from torch import Tensor, nn
from transformers.cache_utils import Cache

from aha.errors import UserError
from aha.models.config import AhaConfig

if TYPE_CHECKING:
    from aha.streaming import Session

HEADS = ("informative_head", "relevance_head", "uncertainty_head")


class FrameScores(NamedTuple):
    """What the model says of frames, each [N] float32.

    informative: probability that enough new has been seen to say something. relevance: importance for the task, in (0, 1).
    uncertainty: variance of the relevance, exp(log-variance); None for MMDuet, which has no such head.
    """

    informative: Tensor
    relevance: Tensor
    uncertainty: Tensor | None

    def rows(self, start: int, end: int) -> FrameScores:
        """Frames start to end - 1."""
        return FrameScores(*(None if values_N is None else values_N[start:end] for values_N in self))


@dataclass
class AhaOutput:
    """Named outputs of `AhaModel.forward`. Row n of the head outputs is the frame whose last token is (batch_N[n], position_N[n])."""

    informative_logits_N2: Tensor
    relevance_logits_NR: Tensor
    log_variance_N: Tensor | None
    batch_N: Tensor
    position_N: Tensor
    logits_MV: Tensor

    def scores(self) -> FrameScores:
        return scores_of(self.informative_logits_N2, self.relevance_logits_NR, self.log_variance_N)


def scores_of(informative_logits_N2: Tensor, relevance_logits_NR: Tensor, log_variance_N: Tensor | None) -> FrameScores:
    """Head outputs -> scores (design of Aha, section 1; the variance is not clamped at inference, as in the released code)."""
    informative = informative_logits_N2.float().softmax(-1)[..., 1]
    logits = relevance_logits_NR.float()
    relevance = logits.softmax(-1)[..., 1] if logits.shape[-1] == 2 else logits.squeeze(-1).sigmoid()
    return FrameScores(informative, relevance, None if log_variance_N is None else log_variance_N.float().exp())


class WithHeads:
    """What is added to a base model: `informative_head` [H -> 2], `relevance_head` [H -> 1 or 2] and `uncertainty_head` [H -> 1], none with
    a bias. Mixed into a class that offers what `llava_next` says a base offers."""

    config: AhaConfig

    def __init__(self, config: AhaConfig) -> None:
        super().__init__(config)
        self.informative_head = nn.Linear(config.hidden_size, 2, bias=False)
        self.relevance_head = nn.Linear(config.hidden_size, config.relevance_outputs, bias=False)
        self.uncertainty_head = nn.Linear(config.hidden_size, 1, bias=False) if config.uncertainty else None
        self.tokenizer_sources: tuple[str, ...] = ()  # folders or hub ids that the weights came from, the adapter before the base

    # ---- computing ----

    def heads(self, hidden_NH: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states of scored positions [N, H] -> informative logits [N, 2], relevance logits [N, R], log-variance [N] or None.

        Computed in the heads' own dtype (float32 at inference, whatever the decoder's is): bfloat16 would tie scores that differ.
        """
        hidden_NH = hidden_NH.to(self.informative_head.weight.dtype)
        log_variance_N = None if self.uncertainty_head is None else self.uncertainty_head(hidden_NH).squeeze(-1)
        return self.informative_head(hidden_NH), self.relevance_head(hidden_NH), log_variance_N

    def score(self, hidden_NH: Tensor) -> FrameScores:
        return scores_of(*self.heads(hidden_NH))

    def last_frame_tokens(self, input_ids_BT: Tensor) -> Tensor:
        """Boolean [B, T]: the last token of every frame, where its score is read."""
        image_BT = input_ids_BT == self.config.image_token_index
        return image_BT & (image_BT.cumsum(1) % self.config.tokens_per_frame == 0)

    def forward(
        self,
        input_ids: Tensor,
        frames: Tensor | None = None,
        vision_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        tower_batch: int = TOWER_BATCH,
    ) -> AhaOutput:
        """A batch of whole conversations, or the next piece of one with `past_key_values`.

        input_ids: [B, T] with K `<image>` placeholders a frame. frames: uint8 [F, 3, S, S] over the batch, in the order of the
        placeholders; or vision_features [F, P, C], the frozen tower's output. attention_mask: [B, T], 1 = token, 0 = padding.
        logits_mask: boolean [B, T], where language logits are wanted (none by default: the vocabulary is the largest matrix).
        tower_batch: frames that go through the vision tower at a time.
        """
        if vision_features is not None:
            visual_FKH = self.project(vision_features.to(self.decoder_device))
        elif frames is not None:
            visual_FKH = self.visual_embed(frames, tower_batch)
        else:
            visual_FKH = None
        hidden_BTH = self.decode(self.joint_embed(input_ids, visual_FKH), attention_mask, position_ids, past_key_values)
        batch_N, position_N = self.last_frame_tokens(input_ids).nonzero(as_tuple=True)
        informative, relevance, log_variance = self.heads(hidden_BTH[batch_N, position_N])
        # with an empty mask this still runs on 0 rows: the parameter stays in the graph and every rank does the same communication
        wanted_MH = hidden_BTH[logits_mask] if logits_mask is not None else hidden_BTH[:, :0].flatten(0, 1)
        return AhaOutput(informative, relevance, log_variance, batch_N, position_N, self.lm_head(wanted_MH.to(self.lm_head.weight.dtype)))

    # ---- streaming ----

    def stream(self, **settings) -> Session:
        """A streaming session on this model; see `aha.streaming.Session` for the settings."""
        from aha.streaming import Session  # above this module in the design: imported when used

        return Session(self, **settings)

    # ---- heads of the two families ----

    @torch.no_grad()
    def to_aha(self) -> Self:
        """Turn MMDuet's heads into Aha's, in place: softmax class 1 of (w0, w1) equals sigmoid of (w1 - w0); the uncertainty head
        starts at zero, that is at log-variance 0 (variance 1) for every frame. No change where they are Aha's already."""
        if self.config.relevance_outputs == 2:
            weight_2H = self.relevance_head.weight
            self.relevance_head = _linear((weight_2H[1].float() - weight_2H[0].float())[None].to(weight_2H.dtype))
            self.config.relevance_outputs = 1
        if self.uncertainty_head is None:
            self.uncertainty_head = _linear(torch.zeros_like(self.informative_head.weight[:1]))
            self.config.uncertainty = True
        return self

    # ---- loading and saving ----

    @classmethod
    def from_base(
        cls,
        base: str | os.PathLike,
        adapter: str | os.PathLike | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        attn_implementation: str | None = None,
        merge: bool = True,
        seed: int = 0,
    ) -> Self:
        """Base checkpoint (either published layout) plus a LoRA adapter (MMDuet's, Aha's or our own); folders or hub ids.

        merge: fold LoRA into the weights (for inference); False keeps it as trainable layers. Without an adapter the informative and
        relevance heads start from N(0, 0.02) with `seed` and the uncertainty head at zero. Raises UserError.
        """
        from aha.models.adapters import load_with_adapter  # that file builds AhaModels

        try:
            model = load_with_adapter(
                cls, base, adapter, dtype=dtype, device=device, attn_implementation=attn_implementation, merge=merge, seed=seed
            )
        except ValueError as error:  # transformers and PEFT refuse settings so
            raise UserError(str(error)) from error
        model.tokenizer_sources = tuple(os.fspath(source) for source in (adapter, base) if source is not None)
        return model

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        attn_implementation: str | None = None,
    ) -> Self:
        """A folder or hub id that `save_pretrained` wrote; or an adapter folder, whose base is the one it names. Raises UserError."""
        from aha.models.adapters import load_saved

        try:
            model = load_saved(cls, path_or_hub_id, dtype=dtype, device=device, attn_implementation=attn_implementation)
        except ValueError as error:  # transformers and PEFT refuse settings so
            raise UserError(str(error)) from error
        model.tokenizer_sources = (os.fspath(path_or_hub_id),)
        return model

    def save_pretrained(
        self, folder: str | os.PathLike, *, tokenizer=None, card: str | None = None, max_shard_bytes: int = 5 * 1024**3
    ) -> None:
        """Write config.json, safetensors and README.md (model card), and the tokenizer if given. LoRA must be merged first."""
        from aha.models.adapters import save_whole

        save_whole(self, Path(folder), tokenizer=tokenizer, card=card, max_shard_bytes=max_shard_bytes)


class AhaModel(WithHeads, LlavaNextForCausalLM):
    """The heads on the LLaVA-OneVision base."""

    config_class = AhaConfig


def _linear(weight_OH: Tensor) -> nn.Linear:
    linear = nn.Linear(weight_OH.shape[1], weight_OH.shape[0], bias=False, device=weight_OH.device, dtype=weight_OH.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight_OH)
    return linear
