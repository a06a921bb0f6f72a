"""Folders of models: a base with its adapter, or a whole model in the hub's layout (config.json, safetensors, tokenizer, model card).

`AhaModel.from_base`, `from_pretrained` and `save_pretrained` are `load_from_base`, `load_saved` and `save_whole`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from llava_next import (
    UNUSABLE,
    CheckpointError,
    check_depth,
    check_fit,
    first_line,
    list_shards,
    read_json,
    resolve_folder,
    tensor_shapes,
    write_shards,
)
from llava_next import load_saved as load_base_saved

from aha.core.files import write_text
from aha.core.heads import HEADS, MODULES
from aha.models.adapters import Model, base_of, load_with_adapter, lora_layers
from aha.models.model import WithHeads

CARD = """---
library_name: aha-video
pipeline_tag: video-text-to-text
license: apache-2.0
---
# Aha! model

LLaVA-OneVision / Qwen2 with {heads} heads ({parameters:.2f} B parameters).

```python
from aha.models import AhaModel

model = AhaModel.from_pretrained("this-folder-or-hub-id")
```
"""


def save_whole(model: WithHeads, folder: Path, *, tokenizer, card: str | None, max_shard_bytes: int) -> None:
    """What `AhaModel.save_pretrained` does."""
    if lora_layers(model):
        raise ValueError(
            "the model still has LoRA layers; call aha.models.adapters.merge_adapter(model) first, or save_adapter for the adapter alone."
        )
    (folder / "config.json").unlink(missing_ok=True)  # written last: a folder without it was not finished
    write_shards(dict(model.named_parameters()), folder, max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    write_text(folder / "README.md", card or CARD.format(parameters=parameters, heads=", ".join(model.config.heads)))
    write_text(folder / "config.json", model.config.to_json_string(use_diff=False))


def load_from_base(
    model_class: type[Model],
    base: str | os.PathLike,
    adapter: str | os.PathLike | None,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attn_implementation: str | None,
    merge: bool,
    seed: int,
) -> Model:
    """What `AhaModel.from_base` does: a folder that holds a whole model is read as one, any other is a base. Raises CheckpointError."""
    folder = resolve_folder(base)
    if read_json(folder / "config.json").get("model_type") != model_class.config_class.model_type:
        return load_with_adapter(
            model_class, folder, adapter, dtype=dtype, device=device, attn_implementation=attn_implementation, merge=merge, seed=seed
        )
    if adapter is not None:
        raise CheckpointError(f"{folder} is a whole Aha model already; give the LLaVA-OneVision base, or leave the adapter {adapter} out.")
    return load_saved(model_class, folder, dtype=dtype, device=device, attn_implementation=attn_implementation)


def load_saved(
    model_class: type[Model],
    path_or_hub_id: str | os.PathLike,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attn_implementation: str | None,
) -> Model:
    """What `AhaModel.from_pretrained` does."""
    folder = resolve_folder(path_or_hub_id)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return load_from_base(
            model_class, base_of(folder), folder, dtype=dtype, device=device, attn_implementation=attn_implementation, merge=True, seed=0
        )
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != model_class.config_class.model_type:
        raise CheckpointError(
            f"{folder} is a {raw.get('model_type')} checkpoint, not one that save_pretrained wrote; use AhaModel.from_base(base, adapter)."
        )
    shapes = tensor_shapes(list_shards(folder))
    check_depth(raw.get("num_hidden_layers"), "model.layers.", shapes, folder)
    try:
        config = model_class.config_class.from_dict(raw)
        heads: dict[str, tuple[int, ...]] = {
            head.weight: (config.heads[head.name], config.hidden_size) for head in HEADS if head.name in config.heads
        }
    except UNUSABLE as error:
        raise CheckpointError(f"{folder / 'config.json'} has settings that cannot be used ({first_line(error)}).") from error
    check_fit(heads, {head.weight: shapes[head.weight] for head in HEADS if head.weight in shapes}, str(folder))
    return load_base_saved(
        folder, config, model_class=model_class, dtype=dtype, device=device,
        attn_implementation=attn_implementation,
        float32=MODULES,
    )  # fmt: skip
