"""LoRA adapters in the published PEFT layout: load, merge, save. And folders that hold a whole model.

A published adapter folder has adapter_config.json and adapter_model.safetensors with keys `base_model.model.<parameter>`: LoRA
matrices, and whole copies of the modules in `modules_to_save` (mm_projector, lm_head, the heads). LoRA is PEFT's; the saved modules are
simply put in their places, so that no second copy of the vocabulary matrix is kept in memory.
"""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import torch
from llava_next import (
    CheckpointError,
    LlavaNextForCausalLM,
    base_config,
    check_fit,
    load_base,
    open_shard,
    place,
    read_json,
    resolve_folder,
    write_shards,
)
from llava_next import load_saved as load_base_saved
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from aha.core.files import atomic_path, write_json, write_text
from aha.core.heads import HEADS, MODULES
from aha.errors import UserError
from aha.models.model import AhaModel

PREFIX = "base_model.model."


def modules_to_save(base: type[LlavaNextForCausalLM]) -> list[str]:
    """The modules that an adapter holds whole."""
    return [base.projector, "lm_head", *MODULES]


def new_lora(
    r: int = 16, alpha: int = 32, dropout: float = 0.05, base: type[LlavaNextForCausalLM] = AhaModel, targets: list[str] | None = None
) -> LoraConfig:
    """LoRA settings with the published defaults (MMDuet: rank 16, alpha 32), for a model that starts without an adapter.

    targets: names of the decoder's linear layers (q_proj, ...), by default all of them. Raises UserError for one that is none."""
    if wrong := [name for name in targets or () if not re.fullmatch(base.lora_targets, f"model.layers.0.{name}")]:
        raise UserError(f"--lora_targets {wrong[0]}: the decoder has no such linear layer; it matches {base.lora_targets}.")
    pattern = rf"model\.layers.*\.({'|'.join(map(re.escape, targets))})$" if targets else base.lora_targets
    return LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, modules_to_save=modules_to_save(base),
        task_type="CAUSAL_LM",
    )  # fmt: skip


# ---- reading an adapter ----


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """LoRA settings and tensors, the latter under the model's own parameter names. Raises CheckpointError."""
    settings = read_json(folder / "adapter_config.json")
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder / 'adapter_config.json'} is of type {settings.get('peft_type')}; only LORA adapters can be loaded.")
    if settings.get("use_dora"):
        raise CheckpointError(f"{folder / 'adapter_config.json'} is a DoRA adapter; only plain LoRA adapters can be loaded.")
    known = LoraConfig.__dataclass_fields__
    lora = LoraConfig(**{key: value for key, value in settings.items() if key in known and value is not None})
    lora.inference_mode = False
    return lora, {parameter_name(name): tensor for name, tensor in adapter_tensors(folder).items()}


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    if path.is_file():
        with open_shard(path) as shard:
            return {name: shard.get_tensor(name).clone() for name in shard.keys()}  # noqa: SIM118 (cloned: not backed by the mapped file)
    pickled = folder / "adapter_model.bin"
    if not pickled.is_file():
        raise CheckpointError(f"{folder} has no adapter_model.safetensors; give the folder of a LoRA adapter.")
    try:
        return torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{pickled} does not hold plain tensors ({str(error).splitlines()[0]}); convert it to safetensors."
        ) from error


def parameter_name(key: str) -> str:
    """`base_model.model.lm_head.modules_to_save.default.weight` -> `lm_head.weight`; `..lora_A.weight` -> `..lora_A.default.weight`."""
    name = key.removeprefix(PREFIX).replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    for part in (".lora_A.", ".lora_B."):
        if part in name and part + "default." not in name:
            name = name.replace(part, part + "default.")
    return name


def adapter_key(name: str) -> str:
    """The published key of one of our parameters (inverse of `parameter_name`)."""
    return PREFIX + name.replace(".default.", ".")


# ---- loading ----


def initial_heads(hidden: int, seed: int) -> dict[str, Tensor]:
    """Values for all heads where no adapter gives them: N(0, 0.02) for informative and relevance, zero (log-variance 0) for uncertainty."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {head: (head.outputs[0], hidden) for head in HEADS}
    return {
        head.weight: torch.randn(shape, generator=generator) * head.start if head.start else torch.zeros(shape)
        for head, shape in shapes.items()
    }


def load_with_adapter(
    model_class: type[AhaModel],
    base: str | os.PathLike,
    adapter: str | os.PathLike | None,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attn_implementation: str | None,
    merge: bool,
    seed: int,
) -> AhaModel:
    """`AhaModel.from_base`."""
    base_folder = resolve_folder(base)
    if read_json(base_folder / "config.json").get("model_type") == model_class.config_class.model_type:
        model = load_saved(model_class, base_folder, dtype=dtype, device=device, attn_implementation=attn_implementation)
        if adapter is None:
            return model
        raise CheckpointError(
            f"{base_folder} is a whole Aha model already; give the LLaVA-OneVision base, or leave the adapter {adapter} out."
        )
    lora, tensors, folder = None, {}, None
    if adapter is not None:
        folder = resolve_folder(adapter)
        lora, tensors = read_adapter(folder)
        check_heads(tensors, folder)
        heads = {head.weight: tensors.pop(head.weight) for head in HEADS if head.weight in tensors}
    else:
        heads = initial_heads(base_config(base_folder).hidden_size, seed)
    outputs = {head.name: len(heads[head.weight]) for head in HEADS if head.weight in heads}
    whole = {name: tensors.pop(name) for name in [*tensors] if ".lora_" not in name}
    model = load_base(
        base_folder, model_class=model_class, config_class=model_class.config_class, dtype=dtype, device=device,
        attn_implementation=attn_implementation,
        new_parameters=heads, replacements=whole, heads=outputs,
    )  # fmt: skip
    check_fit(
        {n: (p.shape[0], model.config.hidden_size) for n, p in heads.items()},
        {n: tuple(p.shape) for n, p in heads.items()},
        str(folder or base_folder),
    )
    for name, weight in heads.items():  # float32 whatever the rest is: see WithHeads.heads
        model.get_parameter(name).data = weight.to(device=device, dtype=torch.float32)
    if lora is not None:
        apply_adapter(model, lora, {**tensors, **whole}, str(folder))
        if merge:
            merge_adapter(model)
    set_image_token(model, [folder, base_folder])
    return model.eval()


def check_heads(tensors: dict[str, Tensor], folder: Path) -> None:
    missing = [head.module for head in HEADS if head.required and head.weight not in tensors]
    if missing:
        raise CheckpointError(f"adapter {folder} has no {' and no '.join(missing)}; it is neither an MMDuet nor an Aha adapter.")
    for head in HEADS:
        weight = tensors.get(head.weight)
        if weight is not None and (weight.ndim != 2 or weight.shape[0] not in head.outputs):
            raise CheckpointError(
                f"adapter {folder}: {head.weight} is {list(weight.shape)}; its first size must be {' or '.join(map(str, head.outputs))}."
            )


def set_image_token(model: AhaModel, folders: list[Path | None]) -> None:
    """The id of `<image>` is the tokenizer's (config.json of the base names the one of another tokenizer size now and then)."""
    from aha.conversation import load_tokenizer

    for folder in folders:
        if folder is not None and (folder / "tokenizer_config.json").is_file():
            model.config.image_token_index = load_tokenizer(folder).convert_tokens_to_ids("<image>")
            return
    if model.config.image_token_index is None:
        raise CheckpointError(
            f"neither {' nor '.join(str(f) for f in folders if f)} holds a tokenizer or an image_token_index; "
            "copy the tokenizer files there."
        )


def apply_adapter(model: AhaModel, lora: LoraConfig, tensors: dict[str, Tensor], where: str) -> None:
    """Add LoRA layers to `model` and put every adapter tensor in its place; a tensor without a place (or the reverse) is an error.

    LoRA matrices keep float32 on a float32 base and take the base's dtype otherwise.
    """
    add_lora(model, lora)
    expected = {n: tuple(p.shape) for n, p in model.named_parameters() if ".lora_" in n}
    whole = {n: tuple(p.shape) for n, p in model.named_parameters() if n in tensors and ".lora_" not in n}
    check_fit({**expected, **whole}, {n: tuple(t.shape) for n, t in tensors.items()}, f"adapter {where}")
    for name, tensor in tensors.items():
        old = model.get_parameter(name)
        place(model, name, tensor.to(device=old.device, dtype=old.dtype))


def add_lora(model: AhaModel, lora: LoraConfig) -> None:
    """Put LoRA layers into `model` (B = 0: no change at the start). `modules_to_save` stay the plain modules that they are."""
    inject_adapter_in_model(replace(lora, modules_to_save=None), model)
    model.peft_config = {"default": lora}


@torch.no_grad()
def merge_adapter(model: AhaModel) -> AhaModel:
    """Fold LoRA into the weights, in place: W + (alpha / r) B A, in float32 and rounded once. Raises CheckpointError."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight.data for _, layer in layers]
    # one scratch for all layers: temporary matrices of changing sizes leave holes in the heap, a fifth of the model on a CPU
    scratch = torch.empty(max((w.numel() for w in weights), default=0), dtype=torch.float32, device=weights[0].device if weights else None)
    for (name, layer), weight in zip(layers, weights):
        merged = scratch[: weight.numel()].view(weight.shape).copy_(weight)
        merged.addmm_(layer.lora_B["default"].weight.float(), layer.lora_A["default"].weight.float(), alpha=layer.scaling["default"])
        if not torch.isfinite(merged.sum()):
            raise CheckpointError(f"the adapter's matrices for {name} hold NaN or infinite values; download the adapter again.")
        weight.copy_(merged)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    if layers:
        del model.peft_config
    return model.requires_grad_(False)


def lora_layers(model: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in model.modules())


def trainable(model: AhaModel, modules: list[str]) -> list[str]:
    """Freeze everything but LoRA and the modules named (`mm_projector`, `lm_head`, heads); return the trainable parameters' names.

    Raises UserError where a module of the list is not in the model.
    """
    model.requires_grad_(False)
    names = [n for n, _ in model.named_parameters()]
    for module in modules:
        if not any(module in n.split(".") for n in names):
            raise UserError(f"module {module} to be trained is not in the model; leave it out of --modules_to_save.")
    for name, parameter in model.named_parameters():
        if ".lora_" in name or any(module in name.split(".") for module in modules):
            parameter.requires_grad_(True)
    return [n for n, p in model.named_parameters() if p.requires_grad]


# ---- saving ----


def adapter_state(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's tensors under their published keys: LoRA, and every module of `modules_to_save` that the model has.

    `state`: the full parameters where the model's own are sharded (ZeRO-3); default: the model's.
    """
    modules = set(model.peft_config["default"].modules_to_save or modules_to_save(type(model))) | set(MODULES)
    state = dict(model.named_parameters()) if state is None else state
    return {
        adapter_key(name): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if ".lora_" in name or modules & set(name.split("."))
    }


def save_adapter(model: AhaModel, folder: str | os.PathLike, *, base: str, state: dict[str, Tensor] | None = None, tokenizer=None) -> None:
    """Write the adapter in the published PEFT layout; `base` is the base checkpoint that it belongs to."""
    folder = Path(folder)
    lora: LoraConfig = model.peft_config["default"]
    settings = lora.to_dict()
    saved = sorted(set(lora.modules_to_save or modules_to_save(type(model))) | set(MODULES))
    settings.update(base_model_name_or_path=base, inference_mode=True, modules_to_save=saved)
    tensors = adapter_state(model, state)
    with atomic_path(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    if isinstance(settings.get("target_modules"), set):
        settings["target_modules"] = sorted(settings["target_modules"])
    write_json(folder / "adapter_config.json", {k: getattr(v, "value", v) for k, v in settings.items()})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


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


def save_whole(model: AhaModel, folder: Path, *, tokenizer, card: str | None, max_shard_bytes: int) -> None:
    """`AhaModel.save_pretrained`."""
    if lora_layers(model):
        raise ValueError(
            "the model still has LoRA layers; call aha.models.adapters.merge_adapter(model) first, or save_adapter for the adapter alone."
        )
    write_shards(dict(model.named_parameters()), folder, max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    write_text(folder / "README.md", card or CARD.format(parameters=parameters, heads=", ".join(model.config.heads)))
    write_text(folder / "config.json", model.config.to_json_string(use_diff=False))


def load_saved(
    model_class: type[AhaModel],
    path_or_hub_id: str | os.PathLike,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attn_implementation: str | None,
) -> AhaModel:
    """`AhaModel.from_pretrained`."""
    folder = resolve_folder(path_or_hub_id)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        if not base:
            raise CheckpointError(f"{folder / 'adapter_config.json'} names no base model; use AhaModel.from_base(base, adapter).")
        return load_with_adapter(
            model_class, base, folder, dtype=dtype, device=device, attn_implementation=attn_implementation, merge=True, seed=0
        )
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != model_class.config_class.model_type:
        raise CheckpointError(
            f"{folder} is a {raw.get('model_type')} checkpoint, not one that save_pretrained wrote; use AhaModel.from_base(base, adapter)."
        )
    return load_base_saved(
        folder, model_class.config_class.from_dict(raw), model_class=model_class, dtype=dtype, device=device,
        attn_implementation=attn_implementation,
        float32=MODULES,
    )  # fmt: skip
