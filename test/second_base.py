"""A second tiny base: norms of queries and keys (as in Qwen3), average pooling to 9 tokens a frame. What `llava_next` says a base offers is
all that the rest may rely on."""

from __future__ import annotations

from dataclasses import field

import torch.nn.functional as F
from llava_next import LlavaNextConfig, LlavaNextForCausalLM
from torch import Tensor, nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from aha.models.config import HeadSettings
from aha.models.model import WithHeads

SIDE = 3  # tokens of a frame's side


class SecondConfig(LlavaNextConfig):
    model_type = "second"

    attention_bias: bool = False
    head_dim: int | None = None

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def tokens_per_side(self) -> int:
        return SIDE


class SecondForCausalLM(LlavaNextForCausalLM):
    config_class = SecondConfig

    def __init__(self, config: SecondConfig) -> None:
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            layer.self_attn = Qwen3Attention(config, i)

    def used_patches(self, features_NPC: Tensor) -> Tensor:
        return features_NPC

    def project(self, features_NPC: Tensor) -> Tensor:
        side = self.config.patches_per_side
        hidden_NPH = self.model.mm_projector(features_NPC.to(self.model.mm_projector[0].weight.dtype))
        grid_NHSS = hidden_NPH.transpose(1, 2).unflatten(2, (side, side))
        return F.avg_pool2d(grid_NHSS, side // SIDE).flatten(2).transpose(1, 2)

    @staticmethod
    def queries_keys_values(layer: nn.Module, hidden_NTH: Tensor, merged=None) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = LlavaNextForCausalLM.queries_keys_values(layer, hidden_NTH, merged)
        return layer.self_attn.q_norm(query), layer.self_attn.k_norm(key), value


class SecondHeadsConfig(HeadSettings, SecondConfig):
    model_type = "aha-second"

    heads: dict[str, int] = field(default_factory=dict)


class SecondWithHeads(WithHeads, SecondForCausalLM):
    config_class = SecondHeadsConfig
