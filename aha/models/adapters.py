"""LoRA adapters in the published PEFT layout: load, merge, save.

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
from typing import TypeVar

import torch
from llava_next import (
    UNUSABLE,
    CheckpointError,
    LlavaNextForCausalLM,
    base_config,
    check_finite,
    check_fit,
    first_line,
    load_base,
    open_shard,
    place,
    read_json,
    resolve_folder,
)
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from aha.core.files import atomic_path, write_json, write_text
from aha.core.heads import HEADS, MODULES
from aha.errors import UserError
from aha.models.lora_settings import lora_settings
from aha.models.model import AhaModel, WithHeads

PREFIX = "base_model.model."
Model = TypeVar("Model", bound=WithHeads)


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
    lora = lora_settings(folder / "adapter_config.json")
    tensors = {parameter_name(name): tensor for name, tensor in adapter_tensors(folder).items()}
    stored = [tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name and tensor.ndim]
    if (rank := max(lora.r, *(lora.rank_pattern or {}).values(), 0)) > max(stored, default=0):
        raise CheckpointError(
            f"{folder / 'adapter_config.json'} says rank {rank}, but the largest matrix has {max(stored, default=0)}; download it again."
        )
    for name, tensor in tensors.items():
        check_finite(tensor, name, f"adapter {folder}")
    return lora, tensors


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    if path.is_file():
        with open_shard(path) as shard:
            return {name: shard.get_tensor(name).clone() for name in shard.keys()}  # noqa: SIM118 (cloned: not backed by the mapped file)
    pickled = folder / "adapter_model.bin"
    if not pickled.is_file():
        raise CheckpointError(f"{folder} has no adapter_model.safetensors; give the folder of a LoRA adapter.")
    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, *UNUSABLE) as error:
        raise CheckpointError(f"{pickled} does not hold plain tensors ({first_line(error)}); convert it to safetensors.") from error
    if not isinstance(tensors, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items()):
        raise CheckpointError(f"{pickled} does not hold plain tensors under their names; convert it to safetensors.")
    return tensors


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
    """A base checkpoint with its adapter, or (None) with new heads. `AhaModel.from_base` says what the arguments mean."""
    base_folder = resolve_folder(base)
    lora: LoraConfig | None = None
    folder: Path | None = None
    tensors: dict[str, Tensor] = {}
    if adapter is not None:
        folder = resolve_folder(adapter)
        lora, tensors = read_adapter(folder)
        check_heads(tensors, folder)
        layers = {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
        heads = {head.weight: tensors.pop(head.weight) for head in HEADS if head.weight in tensors}
    else:
        heads = initial_heads(base_config(base_folder).hidden_size, seed)
    outputs = {head.name: len(heads[head.weight]) for head in HEADS if head.weight in heads}
    whole = {name: tensors.pop(name) for name in [*tensors] if ".lora_" not in name}
    replaced = [*whole]
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
    for name, weight in heads.items():  # heads stay in float32 in a 16-bit model too: see WithHeads.heads
        model.get_parameter(name).data = weight.to(device=device, dtype=torch.float32)
    if lora is not None:
        check_listed(model, lora.modules_to_save or [], {*heads, *replaced, *whole}, layers, folder)
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


def check_listed(model: WithHeads, listed: list[str], found: set[str], layers: set[str], folder: Path | None) -> None:
    """Raise CheckpointError where the adapter lacks a module that its own modules_to_save lists, and that the model has: the base's would
    stand in its place without a word. found: names of its whole tensors; layers: where its LoRA goes."""
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in layers]
    missing = [module for module in listed if any(module in n.split(".") and n not in found for n in names)]
    if missing:
        raise CheckpointError(
            f"adapter {folder} lacks {', '.join(missing)}, which modules_to_save of its adapter_config.json lists; it was not saved whole, "
            "take another checkpoint of that run or download it again."
        )


def set_image_token(model: WithHeads, folders: list[Path | None]) -> None:
    """The id of `<image>` is the tokenizer's (config.json of the base names the one of another tokenizer size now and then)."""
    from aha.conversation import load_tokenizer, tokenizer_folder

    folder = tokenizer_folder(folders)
    if folder is not None:
        tokenizer = load_tokenizer(folder)
        model.config.image_token_index = image = tokenizer.convert_tokens_to_ids("<image>")
        highest = max(id for id in tokenizer.get_vocab().values() if id != image)  # the id of <image> is never looked up
        if highest >= model.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer of {folder} has ids up to {highest}, but the model has {model.config.vocab_size} words; take its tokenizer."
            )
    elif model.config.image_token_index is None:
        raise CheckpointError(
            f"neither {' nor '.join(str(f) for f in folders if f)} holds a tokenizer or an image_token_index; "
            "copy the tokenizer files there."
        )


def apply_adapter(model: WithHeads, lora: LoraConfig, tensors: dict[str, Tensor], where: str) -> None:
    """Add LoRA layers to `model` and put every adapter tensor in its place; a tensor without a place (or the reverse) is an error.

    LoRA matrices keep float32 on a float32 base and take the base's dtype otherwise.
    """
    add_lora(model, lora, {name.partition(".lora_")[0] for name in tensors if ".lora_" in name})
    expected = {n: tuple(p.shape) for n, p in model.named_parameters() if ".lora_" in n}
    whole = {n: tuple(p.shape) for n, p in model.named_parameters() if n in tensors and ".lora_" not in n}
    check_fit({**expected, **whole}, {n: tuple(t.shape) for n, t in tensors.items()}, f"adapter {where}")
    for name, tensor in tensors.items():
        old = model.get_parameter(name)
        place(model, name, tensor.to(device=old.device, dtype=old.dtype))


def add_lora(model: WithHeads, lora: LoraConfig, layers: set[str] | None = None) -> None:
    """Put LoRA layers into `model` (B = 0: no change at the start). `modules_to_save` stay the plain modules that they are, and get no LoRA
    either, as in PEFT; but for those of `layers`, where an adapter has it. Raises CheckpointError for targets that are no layers."""
    whole = {
        name for name, _ in model.named_modules() if set(lora.modules_to_save or ()) & set(name.split(".")) and name not in (layers or ())
    }
    excluded: str | list[str] = sorted(whole)
    if isinstance(lora.exclude_modules, str):
        excluded = "|".join([f"(?:{lora.exclude_modules})", *map(re.escape, sorted(whole))])
    elif lora.exclude_modules:
        excluded = sorted({*lora.exclude_modules, *whole})
    try:
        inject_adapter_in_model(replace(lora, modules_to_save=None, exclude_modules=excluded or None), model)
    except UNUSABLE as error:
        raise CheckpointError(f"the adapter's target_modules cannot be used ({first_line(error)}); download it again.") from error
    model.peft_config = {"default": lora}  # type: ignore[dict-item]  # transformers' protocol asks for what it does not use


@torch.no_grad()
def merge_adapter(model: Model) -> Model:
    """Fold LoRA into the weights, in place: W + (alpha / r) B A, in float32 and rounded once; a bias of B likewise (lora_bias).
    Raises CheckpointError."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().get_parameter("weight").data for _, layer in layers]
    # one buffer for all layers: temporary matrices of changing sizes would fragment the heap and cost a fifth of the model's size on a CPU
    scratch = torch.empty(max((w.numel() for w in weights), default=0), dtype=torch.float32, device=weights[0].device if weights else None)
    for (name, layer), weight in zip(layers, weights):
        merged = scratch[: weight.numel()].view(weight.shape)
        a, b, scaling = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
        assert isinstance(a, nn.Linear) and isinstance(b, nn.Linear)  # of a linear layer
        merged.copy_(weight).addmm_(b.weight.float(), a.weight.float(), alpha=scaling)
        weight.copy_(merged)
        check_finite(weight, f"{name} with the adapter's matrices", "the merged model", merged)
        if b.bias is not None:
            bias = layer.get_base_layer().get_parameter("bias")
            bias.copy_(bias.float() + scaling * b.bias.float())
            check_finite(bias, f"{name}.bias with the adapter's", "the merged model")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    if layers:
        del model.peft_config
    return model.requires_grad_(False)


def lora_of(model: WithHeads) -> LoraConfig:
    """The settings with which `add_lora` gave the model its layers."""
    lora = model.peft_config["default"]
    assert isinstance(lora, LoraConfig)
    return lora


def lora_layers(model: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in model.modules())


def trainable(model: WithHeads, modules: list[str]) -> list[str]:
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


def adapter_names(model: WithHeads) -> list[str]:
    """Parameters that an adapter of this model holds: LoRA, and every module of its `modules_to_save`, also those that are not trained:
    what the starting adapter had put in place of the base's weights must be in the new adapter too."""
    modules = set(lora_of(model).modules_to_save or modules_to_save(type(model))) | set(MODULES)
    names = [name for name, _ in model.named_parameters()]
    return [n for n in names if ".lora_" in n or (modules & set(n.split(".")) and ".base_layer." not in n)]


def adapter_state(model: WithHeads, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's tensors under their published keys. state: the full parameters of `adapter_names` where the model's own are sharded
    (ZeRO-3); default: the model's."""
    state = dict(model.named_parameters()) if state is None else state
    return {adapter_key(name): state[name].detach().cpu().contiguous() for name in adapter_names(model)}


def portable_base(base: str) -> str:
    """How an adapter names its base, wherever it is read: the hub id, of a folder in the hub's cache too, else the folder's name."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", base + "/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    path = Path(base).expanduser()
    return path.resolve().name if path.is_dir() or base.count("/") != 1 else base


def save_adapter(model: WithHeads, folder: str | os.PathLike, *, base: str, state: dict[str, Tensor] | None = None, tokenizer=None) -> None:
    """Write the adapter in the published PEFT layout; `base` is the base checkpoint that it belongs to: a hub id, or a folder, whose name
    alone is published (adapter_config.json); its path is kept in `.base`, which is not uploaded."""
    folder = Path(folder)
    lora = lora_of(model)
    settings = lora.to_dict()
    saved = sorted(set(lora.modules_to_save or modules_to_save(type(model))) | set(MODULES))
    settings.update(base_model_name_or_path=portable_base(base), inference_mode=True, modules_to_save=saved)
    tensors = adapter_state(model, state)
    with atomic_path(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    for name in ("target_modules", "exclude_modules"):
        if isinstance(settings.get(name), set):
            settings[name] = sorted(settings[name])
    write_json(folder / "adapter_config.json", {k: getattr(v, "value", v) for k, v in settings.items()})
    if Path(base).expanduser().is_dir():
        write_text(folder / BASE_PATH, str(Path(base).expanduser().resolve()))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


BASE_PATH = ".base"


def base_of(folder: Path) -> str | Path:
    """The base of an adapter folder: where it was when the adapter was saved, else what adapter_config.json names: a folder beside the
    adapter, a path, a hub id. Raises CheckpointError where it names none."""
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{folder / 'adapter_config.json'} names no base model; use AhaModel.from_base(base, adapter).")
    remembered = folder / BASE_PATH
    places = [Path(remembered.read_text(encoding="utf-8").strip())] if remembered.is_file() else []
    places += [folder.resolve().parent / named, folder / named]
    return next((place for place in places if (place / "config.json").is_file()), named)
