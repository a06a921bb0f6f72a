"""The LLaVA-OneVision / Qwen2 video-language model that Aha! builds on. It knows nothing of heads, streams or highlights.

These names are public; what is not here may change. Errors and frame shapes can be imported without torch; it is loaded with the first of
the other names.

What a base offers, so that `aha` can train, stream and save it (a second base has the same; CONTRIBUTING.md):

    config.frame              FrameShape: placeholder tokens of a frame, and its picture's side in pixels
    config                    hidden_size, vocab_size, num_attention_heads, num_key_value_heads, image_token_index
    model.tower_features      uint8 frames -> frozen features [N, P, C];  model.used_patches: the patches of them that are looked at
    model.project             features -> frame tokens [N, K, H];  model.visual_embed: both;  model.vision_parameters, compile_vision,
                              fuse_vision, vision_flops
    model.embed_tokens, joint_embed, decode, lm_head          text and frames through the decoder in one call, as training does
    model.decoder_layers, queries_keys_values, merged_projections, after_attention, final_norm, rotary, head_dim    the same a layer
                              at a time, with keys and values kept by the caller: as streaming does
    model.decoder_dtype, decoder_device, lora_targets, projector
    load_base, base_config, save_llava_next                    from and to a folder
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llava_next.errors import CheckpointError, UserError
from llava_next.frame import PUBLISHED, FrameShape

if TYPE_CHECKING:
    from llava_next.checkpoint import base_config, build_empty, check_depth, load_base, load_saved, place
    from llava_next.config import LlavaNextConfig
    from llava_next.files import (
        UNUSABLE,
        check_finite,
        check_fit,
        first_line,
        list_shards,
        open_shard,
        read_json,
        resolve_folder,
        tensor_shapes,
    )
    from llava_next.model import TOWER_BATCH, LlavaNextForCausalLM, pick_attention, run_layer
    from llava_next.saving import save_llava_next, write_shards

HOMES = {
    "llava_next.checkpoint": ("base_config", "build_empty", "check_depth", "load_base", "load_saved", "place"),
    "llava_next.config": ("LlavaNextConfig",),
    "llava_next.files": (
        "UNUSABLE", "check_finite", "check_fit", "first_line", "list_shards", "open_shard", "read_json", "resolve_folder", "tensor_shapes",
    ),
    "llava_next.model": ("TOWER_BATCH", "LlavaNextForCausalLM", "pick_attention", "run_layer"),
    "llava_next.saving": ("save_llava_next", "write_shards"),
}  # fmt: skip
__all__ = [
    "PUBLISHED", "TOWER_BATCH", "UNUSABLE", "CheckpointError", "FrameShape", "LlavaNextConfig", "LlavaNextForCausalLM", "UserError",
    "base_config", "build_empty", "check_depth", "check_finite", "check_fit", "first_line", "list_shards", "load_base", "load_saved",
    "open_shard", "pick_attention", "place", "read_json", "resolve_folder", "run_layer", "save_llava_next", "tensor_shapes",
    "write_shards",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
