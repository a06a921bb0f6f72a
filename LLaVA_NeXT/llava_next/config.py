"""Settings of the base model, read from either published layout.

The text side is transformers' Qwen2Config; what a video adds is a SigLIP configuration and how its patches are pooled.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import Qwen2Config, SiglipVisionConfig

from llava_next.frame import FrameShape

# Attention heads of the published SigLIP towers: the one size that cannot be read off the tensors. Key: (hidden size, MLP size).
SIGLIP_HEADS = {(768, 3072): 12, (1024, 4096): 16, (1152, 4304): 16}


def _side(size: int | list[int] | tuple[int, int]) -> int:
    """transformers allows a height and a width; the published towers see squares."""
    if not isinstance(size, int):
        raise TypeError(f"pictures or patches of {size} are not square")
    return size


@functools.cache
def _defaults() -> SiglipVisionConfig:
    return SiglipVisionConfig()


class LlavaNextConfig(Qwen2Config):
    """Qwen2Config plus `vision_config` (SiglipVisionConfig as a dict) and `pool_stride`.

    A frame has (image_size // patch_size) ** 2 patches (27 x 27 = 729), pooled bilinearly with `pool_stride` 4 to
    ceil(27 / 4) ** 2 = 49 tokens. `image_token_index` is the id of the placeholder `<image>` in the text.
    """

    model_type = "llava_next_qwen2"

    vision_config: dict | None = None
    pool_stride: int = 4
    image_token_index: int | None = None

    @property
    def vision(self) -> SiglipVisionConfig:
        return SiglipVisionConfig(**{k: v for k, v in (self.vision_config or {}).items() if k != "model_type"})

    @property
    def image_token(self) -> int:
        """`image_token_index`, which every loaded model has."""
        if self.image_token_index is None:
            raise ValueError("the configuration has no image_token_index")
        return self.image_token_index

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, each shared by as many query heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def image_size(self) -> int:
        """Side of a frame in pixels."""
        return self._side_of("image_size")

    @property
    def patches_per_side(self) -> int:
        return self._side_of("image_size") // self._side_of("patch_size")

    def _side_of(self, name: str) -> int:
        """Read where it lies: every frame asks for it, and `vision` is made anew each time, which takes a millisecond."""
        given = self.vision_config or {}
        return _side(given[name] if name in given else getattr(_defaults(), name))

    @property
    def tokens_per_side(self) -> int:
        return -(-self.patches_per_side // self.pool_stride)

    @property
    def tokens_per_frame(self) -> int:
        return self.tokens_per_side**2

    @property
    def feature_shape(self) -> tuple[int, int]:
        """(P, C) of `tower_features`."""
        return self.patches_per_side**2, self.vision.hidden_size

    @property
    def frame(self) -> FrameShape:
        return FrameShape(self.tokens_per_frame, self.image_size)


TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings", "use_sliding_window", "max_window_layers",
    "attention_dropout", "bos_token_id", "eos_token_id",
)  # fmt: skip


def text_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """Qwen2 settings out of a config.json section of either layout (`raw`: the whole file, or its `text_config`)."""
    settings = {key: raw[key] for key in TEXT_KEYS if raw.get(key) is not None}
    if raw.get("rope_parameters"):
        settings["rope_parameters"] = raw["rope_parameters"]
    else:
        rope = dict(raw.get("rope_scaling") or {})
        rope_type = rope.pop("type", rope.pop("rope_type", "default"))
        settings["rope_parameters"] = {**rope, "rope_type": rope_type, "rope_theta": float(raw.get("rope_theta", 1_000_000.0))}
    if raw.get("use_sliding_window") and raw.get("sliding_window"):
        settings["sliding_window"] = raw["sliding_window"]
    return settings
