"""The model to be trained: base + LoRA + whole modules + heads, checked before the first step."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from llava_next import list_shards, pick_attention, read_json, resolve_folder
from peft.tuners.lora import LoraLayer
from torch import nn

from aha.core.content import sampled_bytes
from aha.core.heads import HEADS, MODULES
from aha.errors import UserError
from aha.models import AhaModel
from aha.models.adapters import add_lora, lora_of, modules_to_save, new_lora, trainable
from aha.models.quantized import quantize_decoder
from aha.training.arguments import ModelArguments


def fingerprint(base: Path) -> str:
    """A short hash of a base checkpoint: names and shapes of all tensors, and the bytes at the start and end of every file."""
    digest = hashlib.sha256()
    for shard in list_shards(base):
        with shard.open("rb") as file:
            head = file.read(1 << 20)
            file.seek(max(shard.stat().st_size - (1 << 20), 0))
            digest.update(str(shard.stat().st_size).encode() + head + file.read())
    return digest.hexdigest()[:16]


def content(folder: Path) -> str:
    """A short hash of the weights in a folder (aha.core.content)."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in ("*.safetensors", "adapter_model.bin") for p in folder.glob(pattern)):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for piece in sampled_bytes(path):
            digest.update(piece)
    return digest.hexdigest()[:16]


def base_name(name: str) -> str:
    """The model's name in a path or hub id: the last part, or the repository of a hub cache folder. The same weights in transformers'
    layout are the same model: "-hf" does not count."""
    cached = re.search(r"models--[^/]+?--([^/]+)/snapshots/", name)
    return (cached.group(1) if cached else name.rstrip("/").rsplit("/", 1)[-1]).lower().removesuffix("-hf")


def check_base(adapter: Path, base: Path, given: str) -> None:
    """Raise UserError where `adapter` was trained on another base than `given`: by fingerprint for our adapters, by name for others."""
    settings = adapter / "settings.json"
    theirs = read_json(settings).get("base_fingerprint") if settings.is_file() else None
    named = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if theirs is not None:
        if theirs != fingerprint(base):
            raise UserError(
                f"adapter {adapter} was trained on a base ({named}) with other weights than {given}; give that base as --llm_pretrained."
            )
    elif named and base_name(named) not in (base_name(str(base)), base_name(given)):
        raise UserError(
            f"adapter {adapter} was trained on base {named}, not on {given}; give that base as --llm_pretrained (or, if it is the same one "
            "under another name, correct base_model_name_or_path in adapter_config.json)."
        )


def build_model(args: ModelArguments, *, dtype: torch.dtype, device: torch.device, seed: int) -> AhaModel:
    """The model with LoRA layers, heads for the objective, and requires_grad set. Raises UserError."""
    base = resolve_folder(args.llm_pretrained)
    if args.lora_pretrained is not None:
        check_base(resolve_folder(args.lora_pretrained), base, args.llm_pretrained)
    # with 4-bit weights the 16-bit ones pass through the host: they may not fit beside them on the device
    load_to = torch.device("cpu") if args.load_in_4bit else device
    attention = args.attn_implementation or pick_attention(device)
    model = AhaModel.from_base(
        base, args.lora_pretrained, dtype=dtype, device=load_to, attn_implementation=attention, merge=False, seed=seed
    )
    if args.objective == "aha":
        model.to_aha()
    elif args.lora_pretrained is None:
        to_mmduet(model, seed)
    elif model.config.family != "mmduet":
        raise UserError(f"--objective mmduet needs a relevance head of 2 outputs, but {args.lora_pretrained} has 1; use --objective aha.")
    if args.lora_pretrained is None:
        add_lora(model, new_lora(args.lora_r, args.lora_alpha, args.lora_dropout, type(model), args.lora_targets))
    set_dropout(model, args.lora_dropout)
    if args.load_in_4bit:
        quantize_decoder(model, device)
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper around torch's `to` loses the type of self
    present = [m for m in modules_to_save(type(model)) if m not in MODULES or getattr(model, m) is not None]
    trained = args.modules_to_save or present
    names = trainable(model, trained)
    lora = lora_of(model)  # what is saved: what is trained, and what the starting adapter put in place of the base's
    lora.modules_to_save = sorted({*trained, *(lora.modules_to_save or ())} if args.lora_pretrained is not None else {*trained})
    check_trained(model, names)
    return model


@torch.no_grad()
def to_mmduet(model: AhaModel, seed: int) -> None:
    """Heads of MMDuet in a new model: relevance with 2 outputs, no uncertainty."""
    weight = model.get_parameter("relevance_head.weight")
    generator = torch.Generator().manual_seed(seed + 1)
    start = torch.randn(2, model.config.hidden_size, generator=generator) * 0.02
    model.set_head("relevance", start.to(weight))
    for head in HEADS:
        if not head.required:
            model.set_head(head.name, None)


def set_dropout(model: AhaModel, p: float) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = nn.Dropout(p) if p else nn.Identity()
    lora_of(model).lora_dropout = p


def check_trained(model: AhaModel, names: list[str]) -> None:
    """Every head and LoRA must be trained. Raises UserError naming what is not."""
    missing = [head.module for head in HEADS if head.name in model.config.heads and head.weight not in names]
    if not any(".lora_" in name for name in names):
        missing.append("LoRA")
    if missing:
        raise UserError(f"{', '.join(missing)} would not be trained; add it to --modules_to_save (or leave that flag out).")


def check_optimizer(model: AhaModel, optimizer: torch.optim.Optimizer) -> None:
    """Every trained parameter must be in the optimizer. Raises UserError naming those that are not."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise UserError(f"the optimizer does not hold {', '.join(missing[:5])}, which would stay as they are; check --modules_to_save.")
