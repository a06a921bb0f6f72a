"""Loading base checkpoints: the LLaVA-NeXT layout and transformers' `llava-onevision-*-hf` layout.

    model = load_base("lmms-lab/llava-onevision-qwen2-7b-ov", dtype=torch.bfloat16, device="cuda")

The model is built without memory, then tensor after tensor is read from the safetensors files, converted and put in place: peak
memory is the weights plus one tensor. Every tensor must fit: missing, left-over and misshapen ones are errors that name them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import SiglipVisionConfig

from llava_next.config import SIGLIP_HEADS, LlavaNextConfig, text_settings
from llava_next.errors import CheckpointError
from llava_next.files import (
    UNUSABLE,
    check_finite,
    check_fit,
    first_line,
    iter_tensors,
    list_shards,
    read_json,
    resolve_folder,
    tensor_shapes,
)
from llava_next.memory import check_room
from llava_next.model import LlavaNextForCausalLM, pick_attention

TOWER = "model.vision_tower.vision_tower.vision_model."
Model = TypeVar("Model", bound=LlavaNextForCausalLM)

# ---- names ----

HF_RULES = [
    (r"^(?:model\.)?language_model\.model\.", "model."),
    (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
    (r"^model\.language_model\.", "model."),
    (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^(?:model\.)?vision_tower\.vision_model\.", TOWER),
    (r"^(?:model\.)?vision_tower\.(?!vision_tower\.)", TOWER),
    (r"^image_newline$", "model.image_newline"),
]


def published_name(name: str) -> str:
    """The LLaVA-NeXT name of a tensor in either layout (names already in that layout are returned as they are)."""
    for pattern, replacement in HF_RULES:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return renamed
    return name


# Tensors that published files may hold and this model has no use for.
UNUSED = re.compile(r"(\.rotary_emb\.inv_freq$)|(vision_model\.head\.)|(\.position_ids$)")


# ---- config ----


def infer_vision(shapes: dict[str, tuple[int, ...]], given: dict[str, Any], where: str) -> dict[str, Any]:
    """SigLIP settings: what config.json says (`given`), corrected and completed from the tensors' shapes.

    The number of layers is what is stored (the published layout drops the last one). Raises CheckpointError where the number of
    attention heads is neither given nor that of a published SigLIP.
    """
    try:
        width, channels, patch, _ = shapes[TOWER + "embeddings.patch_embedding.weight"]
        positions = shapes[TOWER + "embeddings.position_embedding.weight"][0]
        mlp = shapes[TOWER + "encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise CheckpointError(f"{where} lacks tensor {error.args[0]}: it holds no SigLIP vision tower.") from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{where}: the vision tower's tensors have no SigLIP's shapes; download it again.") from error
    layers = count_layers(shapes, TOWER + "encoder.layers.", where)
    heads = given.get("num_attention_heads") or SIGLIP_HEADS.get((width, mlp))
    if heads is None or width % heads:
        raise CheckpointError(
            f"{where}: the vision tower is {width} wide, no published SigLIP size, and config.json does not say its attention heads; "
            f'add "vision_config": {{"num_attention_heads": ...}}.'
        )
    side = round(positions**0.5)
    image = given.get("image_size") or {729: 384, 256: 256 if patch == 16 else 224}.get(positions, side * patch)
    if (image // patch) ** 2 != positions:
        raise CheckpointError(
            f"{where}: {positions} position embeddings do not fit images of {image} with patches of {patch}; check vision_config."
        )
    defaults = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0}
    kept = {key: given[key] for key in defaults if given.get(key) is not None}
    return SiglipVisionConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads, num_channels=channels,
        image_size=image, patch_size=patch, vision_use_head=False, **{**defaults, **kept},
    ).to_dict()  # fmt: skip


def read_config(
    folder: Path, shapes: dict[str, tuple[int, ...]], config_class: type[LlavaNextConfig] = LlavaNextConfig, **extra: Any
) -> LlavaNextConfig:
    """Settings of a base checkpoint folder in either layout; `shapes` are its tensors under their LLaVA-NeXT names. `tie_word_embeddings`
    is whether either section of config.json says so. Raises CheckpointError for settings that cannot be, or are not those of the tensors.

    A frame has the tokens that the published adapters were trained with (stride 4) whatever `mm_spatial_pool_stride` says: bases made for
    longer or finer videos differ in that number only, and their authors pass it at run time too. Our own `pool_stride` is obeyed.
    """
    path = folder / "config.json"
    raw = read_json(path)
    section = raw.get("text_config") or raw
    try:
        text = text_settings(section)
        if "hidden_size" not in text or "num_hidden_layers" not in text:
            raise CheckpointError(
                f"{path} does not describe a Qwen2 decoder (no hidden_size); it is not a LLaVA-OneVision-Qwen2 checkpoint."
            )
        check_depth(text["num_hidden_layers"], "model.layers.", shapes, folder)
        text["tie_word_embeddings"] = bool(raw.get("tie_word_embeddings") or section.get("tie_word_embeddings"))
        embedding = shapes.get("model.embed_tokens.weight")
        if embedding:
            text["vocab_size"] = embedding[0]
        config = config_class(
            vision_config=infer_vision(shapes, raw.get("vision_config") or {}, str(folder)),
            image_token_index=raw.get("image_token_index"),
            pool_stride=raw.get("pool_stride", 4),
            **text, **extra,
        )  # fmt: skip
    except UNUSABLE as error:
        raise CheckpointError(f"{path} has settings that cannot be used ({first_line(error)}); download it again.") from error
    check_sizes(config, shapes, folder)
    return config


def count_layers(shapes: dict[str, tuple[int, ...]], prefix: str, where: str) -> int:
    """Number of layers that are stored under `prefix`. Raises CheckpointError where numbers are left out: a model of a billion layers
    would be built for one tensor of that number."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)}
    if numbers != set(map(str, range(len(numbers)))):
        raise CheckpointError(f"{where}: the layers {prefix}* are not numbered 0 to {len(numbers) - 1}; download it again.")
    return len(numbers)


def check_depth(layers: Any, prefix: str, shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Raise CheckpointError where as many layers as config.json says are not stored: a configuration of a million takes half a minute."""
    if (stored := count_layers(shapes, prefix, str(folder))) != layers:
        raise CheckpointError(f"{folder}: config.json says {layers} layers {prefix}*, but {stored} are stored; download it again.")


def check_sizes(config: LlavaNextConfig, shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """The sizes of `config` against the stored tensors, before anything of these sizes is built. Raises CheckpointError."""
    path = folder / "config.json"
    try:
        vision = config.vision
    except UNUSABLE as error:
        raise CheckpointError(f"{path}: vision_config cannot be used ({first_line(error)}); download it again.") from error
    numbers = {
        **{name: getattr(config, name) for name in POSITIVE}, "pool_stride": config.pool_stride, "image_size": vision.image_size,
        "patch_size": vision.patch_size, "attention heads of vision_config": vision.num_attention_heads,
    }  # fmt: skip
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{path}: {name} is {value!r}; it must be a whole number above 0.")
    token = config.image_token_index
    if token is not None and (isinstance(token, bool) or not isinstance(token, int) or token < 0):
        raise CheckpointError(f"{path}: image_token_index is {token!r}; it must be the id of <image>.")
    for name, size, heads in (
        ("hidden_size", config.hidden_size, config.num_attention_heads),
        ("num_attention_heads", config.num_attention_heads, config.num_key_value_heads),
        ("hidden_size of vision_config", vision.hidden_size, vision.num_attention_heads),
    ):
        if heads is None or size % heads:
            raise CheckpointError(f"{path}: {name} is {size}, which cannot be divided among {heads} heads; download it again.")
    if config.pool_stride > config.patches_per_side:
        raise CheckpointError(f"{path}: pool_stride is {config.pool_stride}, more than a frame's {config.patches_per_side} patches a side.")
    check_depth(config.num_hidden_layers, "model.layers.", shapes, folder)
    check_depth(vision.num_hidden_layers, TOWER + "encoder.layers.", shapes, folder)
    hidden, width, head = config.hidden_size, vision.hidden_size, config.hidden_size // config.num_attention_heads
    patch = config.image_size // config.patches_per_side
    layer, tower = "model.layers.0.", TOWER + "encoder.layers.0."
    expected = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        layer + "self_attn.q_proj.weight": (hidden, hidden),
        layer + "self_attn.k_proj.weight": (config.key_heads * head, hidden),
        layer + "mlp.gate_proj.weight": (config.intermediate_size, hidden),
        TOWER + "embeddings.patch_embedding.weight": (width, vision.num_channels, patch, patch),
        TOWER + "embeddings.position_embedding.weight": (config.patches_per_side**2, width),
        tower + "mlp.fc1.weight": (vision.intermediate_size, width),
    }
    check_fit(expected, {name: shapes[name] for name in expected if name in shapes}, str(folder))


POSITIVE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings")  # fmt: skip


def base_config(path_or_hub_id: str | os.PathLike) -> LlavaNextConfig:
    """Settings of a base checkpoint from its config.json and the headers of its files; no weights are read. Raises CheckpointError."""
    folder = resolve_folder(path_or_hub_id)
    return read_config(folder, {published_name(name): shape for name, shape in tensor_shapes(list_shards(folder)).items()})


# ---- putting it together ----


def build_empty(model_class: type[Model], config: LlavaNextConfig, attn_implementation: str) -> Model:
    """The model with parameters on the meta device (no memory) and real buffers."""
    config._attn_implementation = attn_implementation
    try:
        with init_empty_weights(include_buffers=False):
            return model_class(config)
    except UNUSABLE as error:
        raise CheckpointError(f"config.json describes a model that cannot be built ({first_line(error)}); download it again.") from error


def place(model: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in the place of parameter `name`, keeping its requires_grad."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    setattr(owner, leaf, torch.nn.Parameter(tensor, requires_grad=old.requires_grad))


VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
PADDING = 128  # transformers' converter fills the vocabulary up to a multiple of 64, after adding two tokens


def vocabulary_rows(stored: int, replacements: dict[str, Tensor]) -> int | None:
    """Rows of the vocabulary where an adapter's are fewer than the base's by padding alone (the published llava-hf layouts: 152128 rows,
    of which the published adapters have 152064; no tokenizer gives the others); None where they are the same."""
    theirs = {len(replacements[name]) for name in VOCABULARY if name in replacements and replacements[name].ndim == 2}
    return theirs.pop() if len(theirs) == 1 and 0 < stored - max(theirs) <= PADDING else None


def fill(
    model: torch.nn.Module,
    shards: list[Path],
    rename: Callable[[str], str],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    where: str,
    optional: frozenset[str] = frozenset(),
    replacements: dict[str, Tensor] | None = None,
    rows: int | None = None,
) -> None:
    """Read every tensor of `shards` into `model`; names in `optional` may be absent from the files and stay unset. A tensor that
    `replacements` holds in the same shape is taken out of there and not read. rows: of the vocabulary's matrices, where the files hold
    more. Raises CheckpointError, also for a tensor that holds NaN or infinity, and before reading where memory is too small."""
    replacements = {} if replacements is None else replacements
    found = {rename(n): s for n, s in tensor_shapes(shards).items() if not UNUSED.search(n)}
    if rows is not None:
        found |= {name: (rows, *found[name][1:]) for name in VOCABULARY if name in found}
    expected = {name: tuple(p.shape) for name, p in model.named_parameters() if name not in optional or name in found}
    check_fit(expected, found, where)
    check_room(model, dtype, device, where)
    for name, tensor in iter_tensors(shards):
        if UNUSED.search(name):
            continue
        target = rename(name)
        if rows is not None and target in VOCABULARY:
            tensor = tensor[:rows]
        if target in replacements and replacements[target].shape == tensor.shape:
            tensor = replacements.pop(target)
        # .to copies even where nothing changes: a tensor backed by the mapped file would keep the file in use
        converted = tensor.to(device=device, dtype=dtype, copy=True)
        check_finite(converted, target, where, tensor)
        place(model, target, converted)


def finish(model: Model, device: str | torch.device) -> Model:
    """Move buffers, check that nothing stayed without memory, and switch to evaluation mode."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    unset = [name for name, p in model.named_parameters() if p.is_meta]
    if unset:
        raise RuntimeError(f"parameters without values: {unset}")
    return model.eval()


def load_base(
    path_or_hub_id: str | os.PathLike,
    *,
    model_class: type[Model] = LlavaNextForCausalLM,  # type: ignore[assignment]  # defaults of type variables are Python 3.13's
    config_class: type[LlavaNextConfig] = LlavaNextConfig,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    new_parameters: dict[str, Tensor] | None = None,
    replacements: dict[str, Tensor] | None = None,
    **config_extra: Any,
) -> Model:
    """Load a base checkpoint (either layout, local folder or hub id) into `model_class`.

    `new_parameters` gives values for parameters that the base does not have (a subclass's heads), `replacements` values that an adapter
    puts in place of the base's (so that the vocabulary matrix is not in memory twice); those that are used are taken out. `lm_head`
    may be absent where the config ties it to the embedding; it then starts as a copy. One that is stored is taken as it is.
    Raises CheckpointError.
    """
    folder = resolve_folder(path_or_hub_id)
    shards = list_shards(folder)
    shapes = {published_name(n): s for n, s in tensor_shapes(shards).items()}
    config = read_config(folder, shapes, config_class, **config_extra)
    tied, config.tie_word_embeddings = config.tie_word_embeddings and "lm_head.weight" not in shapes, False
    if not tied and "lm_head.weight" not in shapes:
        raise CheckpointError(
            f"{folder} lacks lm_head.weight, and its config.json does not say that the embedding is used in its place; if the model has no "
            'head of its own, set "tie_word_embeddings": true there.'
        )
    rows = vocabulary_rows(config.vocab_size, replacements or {})
    config.vocab_size = rows or config.vocab_size
    model = build_empty(model_class, config, pick_attention(device, attn_implementation))
    new_parameters = new_parameters or {}
    optional = {"model.image_newline", TOWER + "post_layernorm.weight", TOWER + "post_layernorm.bias", *new_parameters}
    if tied:
        optional.add("lm_head.weight")
    fill(
        model, shards, published_name, dtype=dtype, device=device, where=str(folder), optional=frozenset(optional),
        replacements=replacements, rows=rows,
    )  # fmt: skip
    if tied:
        place(model, "lm_head.weight", model.model.embed_tokens.weight.detach().clone())
    for name, value in new_parameters.items():
        place(model, name, value.to(device=device, dtype=dtype))
    for name in optional - new_parameters.keys():  # not stored, not used in the forward pass
        parameter = model.get_parameter(name)
        if parameter.is_meta:
            place(model, name, torch.zeros(parameter.shape, dtype=dtype, device=device))
    return finish(model, device)


def load_saved(
    folder: Path,
    config: LlavaNextConfig,
    *,
    model_class: type[Model],
    dtype: torch.dtype,
    device: str | torch.device,
    attn_implementation: str | None,
    float32: tuple[str, ...] = (),
) -> Model:
    """A folder whose tensors have the model's own names, as `write_shards` stored its parameters. `float32`: modules that stay in float32
    whatever `dtype` is. Raises CheckpointError."""
    check_sizes(config, tensor_shapes(list_shards(folder)), folder)
    model = build_empty(model_class, config, pick_attention(device, attn_implementation))
    fill(model, list_shards(folder), lambda name: name, dtype=dtype, device=device, where=str(folder))
    if dtype != torch.float32:
        for name, tensor in iter_tensors(list_shards(folder)):
            if name.split(".")[0] in float32:
                model.get_parameter(name).data = tensor.to(device=device, dtype=torch.float32)
    return finish(model, device)
