"""Writing a base model: safetensors in shards, config.json last, so that a folder without it is known to be unfinished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llava_next.errors import CheckpointError
from llava_next.files import first_line
from llava_next.model import LlavaNextForCausalLM


def write_shards(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: int = 5 * 1024**3) -> None:
    """Write `tensors` as model.safetensors, or as numbered shards with an index where they exceed `max_shard_bytes`. What an earlier saving
    left in the folder goes, once all is written. Raises CheckpointError where the disk is full."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    names = (
        ["model.safetensors"] if len(groups) == 1 else [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    )
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {n: f for f, g in zip(names, groups) for n in g},
    }
    waiting = {name: folder / f".{name}.tmp" for name in names}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, group in zip(names, groups):
            save_file({n: t.detach().contiguous().cpu() for n, t in group.items()}, waiting[name], metadata={"format": "pt"})
            waiting[name].chmod(0o644)  # save_file makes it readable for its owner only
        written = folder / "model.safetensors.index.json"
        written.unlink(missing_ok=True)  # without it a folder that is between two savings is refused, not read
        for old in folder.glob("model*.safetensors"):
            if old.name not in names:
                old.unlink()
        for name, temporary in waiting.items():
            os.replace(temporary, folder / name)
        if len(groups) > 1:
            write_json(written, index)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise CheckpointError(f"the weights cannot be written into {folder} ({reason}); free the disk or choose another folder.") from error
    finally:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def save_llava_next(model: LlavaNextForCausalLM, folder: str | os.PathLike, max_shard_bytes: int = 5 * 1024**3) -> None:
    """Write the base model in the LLaVA-NeXT layout (config.json and safetensors; add the tokenizer yourself)."""
    folder = Path(folder)
    (folder / "config.json").unlink(missing_ok=True)
    write_shards(dict(model.named_parameters()), folder, max_shard_bytes)
    config = model.config
    assert config.rope_parameters is not None  # `text_settings` gives them
    raw = {key: value for key in TEXT_EXPORT if (value := getattr(config, key, None)) is not None}
    raw |= {
        "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava", "torch_dtype": str(model.dtype).removeprefix("torch."),
        "rope_theta": config.rope_parameters["rope_theta"], "mm_projector_type": "mlp2x_gelu", "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": config.pool_stride, "pool_stride": config.pool_stride, "mm_vision_select_layer": -2,
        "mm_hidden_size": config.vision.hidden_size, "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "vision_config": config.vision_config,
    }  # fmt: skip
    write_json(folder / "config.json", raw)


TEXT_EXPORT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "image_token_index",
)  # fmt: skip
