"""AhaModel: the base video-language model with heads (aha.core.heads) on the decoder's hidden states.

    model = AhaModel.from_base("lmms-lab/llava-onevision-qwen2-7b-ov", "wangyueqian/MMDuet", dtype=torch.bfloat16, device="cuda")
    model = AhaModel.from_pretrained("path/or/hub-id")

The score of a frame is read at the last of its tokens. `forward` computes and returns; it logs nothing, reads no environment
and touches no file.

Shapes: B batch, T tokens, H decoder width, V vocabulary, K tokens of a frame, F frames in the batch, N scored frames (normally F),
M positions with language logits, P patches, C tower width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from llava_next import TOWER_BATCH, LlavaNextForCausalLM, resolve_folder
from torch import Tensor, nn
from transformers.cache_utils import Cache

from aha.conversation import DEFAULT_SYSTEM_PROMPT, recorded_system_prompt
from aha.core.heads import HEADS, Head
from aha.errors import UserError
from aha.models.config import AhaConfig

if TYPE_CHECKING:
    from aha.streaming import Session

    Base = LlavaNextForCausalLM  # what WithHeads is mixed into offers what a base offers
else:
    Base = object  # each family names its own


class FrameScores(NamedTuple):
    """What the model says of frames, each [N] float32; one field for each head, in their order.

    informative: probability that enough new has been seen to say something. relevance: importance for the task, in (0, 1).
    uncertainty: variance of the relevance, exp(log-variance); None for MMDuet, which has no such head.
    """

    informative: Tensor
    relevance: Tensor
    uncertainty: Tensor | None = None

    def rows(self, start: int, end: int) -> FrameScores:
        """Frames start to end - 1."""
        return FrameScores._make(None if scores_N is None else scores_N[start:end] for scores_N in self)


assert FrameScores._fields == tuple(head.name for head in HEADS)  # a new head is a field here, too


@dataclass
class AhaOutput:
    """Outputs of `AhaModel.forward`. Row n of the head outputs is the frame whose last token is (batch_N[n], position_N[n]).

    head_logits: name of a head -> its outputs [N, outputs], before activation.
    """

    head_logits: dict[str, Tensor]
    batch_N: Tensor
    position_N: Tensor
    logits_MV: Tensor

    @property
    def log_variance_N(self) -> Tensor:
        return self.head_logits["uncertainty"].squeeze(-1)

    def scores(self) -> FrameScores:
        return scores_of(self.head_logits)


def scores_of(head_logits: dict[str, Tensor]) -> FrameScores:
    """Head outputs -> scores (design of Aha, section 1; the variance is not clamped at inference, as in the released code)."""
    return FrameScores(**{head.name: activate(head, head_logits[head.name].float()) for head in HEADS if head.name in head_logits})


def activate(head: Head, logits_NO: Tensor) -> Tensor:
    if head.activation == "variance":
        return logits_NO.squeeze(-1).exp()
    return logits_NO.softmax(-1)[..., 1] if logits_NO.shape[-1] == 2 else logits_NO.squeeze(-1).sigmoid()


class WithHeads(Base):
    """What is added to a base model: for each head of `aha.core.heads` a linear layer without bias, such as `informative_head` [H -> 2], or
    None where `config.heads` does not name it. Mixed into a class that offers what `llava_next` says a base offers."""

    config: AhaConfig

    def __init__(self, config: AhaConfig) -> None:
        super().__init__(config)
        for head in HEADS:
            outputs = config.heads.get(head.name)
            setattr(self, head.module, None if outputs is None else nn.Linear(config.hidden_size, outputs, bias=False))
        self.tokenizer_sources: tuple[str, ...] = ()  # folders or hub ids that the weights came from, the adapter before the base
        self.weight_bits: int | None = None  # 8 or 4 where the decoder's linear layers are quantized (aha.models.quantized)
        self.system_prompt = DEFAULT_SYSTEM_PROMPT  # that of its training, where the folders have it on record

    # ---- computing ----

    def heads(self, hidden_NH: Tensor) -> dict[str, Tensor]:
        """Hidden states of scored positions [N, H] -> outputs [N, outputs] of each head there is.

        Computed in the heads' own dtype (float32 at inference, whatever the decoder's is): bfloat16 would tie scores that differ.
        """
        modules = {head.name: getattr(self, head.module) for head in HEADS if head.name in self.config.heads}
        return {name: module(hidden_NH.to(module.weight.dtype)) for name, module in modules.items()}

    def score(self, hidden_NH: Tensor) -> FrameScores:
        return scores_of(self.heads(hidden_NH))

    def last_frame_tokens(self, input_ids_BT: Tensor) -> Tensor:
        """Boolean [B, T]: the last token of every frame, where its score is read."""
        image_BT = input_ids_BT.eq(self.config.image_token)
        return image_BT & (image_BT.cumsum(1) % self.config.tokens_per_frame == 0)

    def forward(  # type: ignore[override]  # a base's gives language logits alone
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
        head_logits = self.heads(hidden_BTH[batch_N, position_N])
        # without wanted positions this runs on 0 rows: lm_head stays in the graph, and all ranks communicate alike
        wanted_MH = hidden_BTH[logits_mask] if logits_mask is not None else hidden_BTH[:, :0].flatten(0, 1)
        return AhaOutput(head_logits, batch_N, position_N, self.lm_head(wanted_MH.to(self.lm_head.weight.dtype)))

    # ---- streaming ----

    def stream(self, **settings) -> Session:
        """A streaming session on this model; see `aha.streaming.Session` for the settings."""
        from aha.streaming import Session  # above this module in the design: imported when used

        return Session(self, **settings)

    # ---- heads of the two families ----

    @torch.no_grad()
    def to_aha(self) -> Self:
        """Turn MMDuet's heads into Aha's, in place: softmax class 1 of (w0, w1) equals sigmoid of (w1 - w0). Heads that the model lacks are
        added with zero weights, so that a new uncertainty head gives log-variance 0 (variance 1) for every frame. No change where the heads
        are Aha's already."""
        weight_OH = self.get_parameter("relevance_head.weight")
        if len(weight_OH) == 2:
            self.set_head("relevance", (weight_OH[1].float() - weight_OH[0].float())[None].to(weight_OH.dtype))
        for head in HEADS:
            if head.name not in self.config.heads:
                self.set_head(head.name, weight_OH.new_zeros(head.outputs[0], weight_OH.shape[1]))
        return self

    @torch.no_grad()
    def set_head(self, name: str, weight_OH: Tensor | None) -> None:
        """Replace the head of this name, if there is one, by one with this weight; None removes it."""
        linear = None
        if weight_OH is not None:
            linear = nn.Linear(weight_OH.shape[1], len(weight_OH), bias=False, device=weight_OH.device, dtype=weight_OH.dtype)
            linear.weight.copy_(weight_OH)
        setattr(self, f"{name}_head", linear)
        outputs = {**self.config.heads, name: 0 if weight_OH is None else len(weight_OH)}
        self.config.heads = {head.name: outputs[head.name] for head in HEADS if outputs.get(head.name)}

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
        from aha.models.folders import load_from_base  # that file builds AhaModels

        try:
            model = load_from_base(
                cls, base, adapter, dtype=dtype, device=device, attn_implementation=attn_implementation, merge=merge, seed=seed
            )
        except ValueError as error:  # how transformers and PEFT refuse settings
            raise UserError(str(error)) from error
        return model._came_from(adapter, base)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # of transformers' many options these are kept
        cls,
        path_or_hub_id: str | os.PathLike,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        attn_implementation: str | None = None,
    ) -> Self:
        """A folder or hub id that `save_pretrained` wrote; or an adapter folder, whose base is the one it names. Raises UserError."""
        from aha.models.folders import load_saved

        try:
            model = load_saved(cls, path_or_hub_id, dtype=dtype, device=device, attn_implementation=attn_implementation)
        except ValueError as error:  # how transformers and PEFT refuse settings
            raise UserError(str(error)) from error
        return model._came_from(path_or_hub_id)

    def _came_from(self, *sources: str | os.PathLike | None) -> Self:
        self.tokenizer_sources = tuple(os.fspath(source) for source in sources if source is not None)
        self.system_prompt = recorded_system_prompt(resolve_folder(source) for source in self.tokenizer_sources)
        return self

    def save_pretrained(  # type: ignore[override]  # likewise
        self, folder: str | os.PathLike, *, tokenizer=None, card: str | None = None, max_shard_bytes: int = 5 * 1024**3
    ) -> None:
        """Write config.json, safetensors and README.md (model card), and the tokenizer if given. LoRA must be merged first."""
        from aha.models.folders import save_whole

        save_whole(self, Path(folder), tokenizer=tokenizer, card=card, max_shard_bytes=max_shard_bytes)


class AhaModel(WithHeads, LlavaNextForCausalLM):
    """The heads on the LLaVA-OneVision base."""

    config_class = AhaConfig
