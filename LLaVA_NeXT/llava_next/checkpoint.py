"""Loading and saving base checkpoints: the LLaVA-NeXT layout and transformers' `llava-onevision-*-hf` layout.

    model = load_base("lmms-lab/llava-onevision-qwen2-7b-ov", dtype=torch.bfloat16, device="cuda")

The model is built without memory, then tensor after tensor is read from the safetensors files, converted and put in place: peak
memory is the weights plus one tensor. Every tensor must fit: missing, left-over and misshapen ones are errors that name them.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import SiglipVisionConfig

from llava_next.config import SIGLIP_HEADS, LlavaNextConfig, text_settings
from llava_next.errors import CheckpointError
from llava_next.model import LlavaNextForCausalLM, pick_attention

TOWER = "model.vision_tower.vision_tower.vision_model."
WEIGHT_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.md"]
Model = TypeVar("Model", bound=LlavaNextForCausalLM)


def resolve_folder(path_or_hub_id: str | os.PathLike) -> Path:
    """A local folder, or a hub id whose files are downloaded (or found in the cache). Raises CheckpointError where neither exists."""
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds config.json and the safetensors files.")
    name = os.fspath(path_or_hub_id)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir()
    if looks_local:
        raise CheckpointError(f"checkpoint folder {name} does not exist; check the path, or give a hub id such as org/name.")
    try:
        return Path(snapshot_download(name, allow_patterns=WEIGHT_FILES))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise CheckpointError(
            f"{name} is neither a folder here nor a model on the hub; check the spelling (and HF_TOKEN for gated ones)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name} is not in the local hub cache and cannot be downloaded ({type(error).__name__}); download it on a machine with "
            f"network and give the folder instead."
        ) from error


# ---- reading safetensors ----


def list_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: those its index names, or all. Raises CheckpointError where one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(f"{folder} lacks {', '.join(absent)}, which {index.name} names; download the folder again.")
        return [folder / name for name in names]
    shards = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_model"))
    if not shards:
        others = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        hint = f" ({', '.join(others)} may run code when opened and is not read; convert it to safetensors)" if others else ""
        raise CheckpointError(f"{folder} holds no .safetensors file{hint}.")
    return shards


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; the folder is not a complete checkpoint.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again.") from error


def open_shard(path: Path, device: str = "cpu"):
    """safe_open with plain errors for truncated files and pickles in disguise."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        size = path.stat().st_size
        # 8 bytes of header length, then the JSON header
        if start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):
            raise CheckpointError(
                f"{path} is a pickle (torch.save) file, which may run code when opened, not safetensors; convert it first."
            )
        if start[8:] != b"{" or struct.unpack("<Q", start[:8])[0] > size:
            raise CheckpointError(f"{path} is no complete safetensors file ({size} bytes); download it again.")
        return safe_open(path, framework="pt", device=device)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}); download it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and its permissions.") from error


def tensor_shapes(shards: list[Path]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the shards, from the headers alone. A name in two shards is an error."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in shards:
        with open_shard(path) as shard:
            for name in shard.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name in shapes:
                    raise CheckpointError(f"tensor {name} is in {path.name} and in another shard; delete the stale file.")
                shapes[name] = tuple(shard.get_slice(name).get_shape())
    return shapes


def iter_tensors(shards: list[Path], window_bytes: int = 64 * 1024**2) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor). A shard is mapped anew every `window_bytes`: pages that were read count as ours until it is unmapped."""
    for path in shards:
        with open_shard(path) as shard:
            waiting = {name: _bytes(shard.get_slice(name)) for name in shard.keys()}  # noqa: SIM118 (safe_open is no mapping)
        while waiting:
            with open_shard(path) as shard:
                read = 0
                while waiting and read < window_bytes:
                    name, size = next(iter(waiting.items()))
                    yield name, shard.get_tensor(name)
                    read += size
                    del waiting[name]


def _bytes(stored: Any) -> int:
    return math.prod(stored.get_shape()) * 4  # at most: float32 is the widest type of published weights


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
    layers = 1 + max(int(m.group(1)) for name in shapes if (m := re.match(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.", name)))
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
    """Settings of a base checkpoint folder in either layout; `shapes` are its tensors under their LLaVA-NeXT names."""
    raw = read_json(folder / "config.json")
    text = text_settings(raw.get("text_config") or raw)
    if raw.get("tie_word_embeddings") is not None:
        text["tie_word_embeddings"] = raw["tie_word_embeddings"]
    if "hidden_size" not in text or "num_hidden_layers" not in text:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a Qwen2 decoder (no hidden_size); it is not a LLaVA-OneVision-Qwen2 checkpoint."
        )
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is not None:
        text["vocab_size"] = embedding[0]
    return config_class(
        vision_config=infer_vision(shapes, raw.get("vision_config") or {}, str(folder)),
        image_token_index=raw.get("image_token_index"),
        pool_stride=raw.get("pool_stride", raw.get("mm_spatial_pool_stride") or 4),
        **text, **extra,
    )  # fmt: skip


def base_config(path_or_hub_id: str | os.PathLike) -> LlavaNextConfig:
    """Settings of a base checkpoint from its config.json and the headers of its files; no weights are read. Raises CheckpointError."""
    folder = resolve_folder(path_or_hub_id)
    return read_config(folder, {published_name(name): shape for name, shape in tensor_shapes(list_shards(folder)).items()})


# ---- putting it together ----


def build_empty(model_class: type[Model], config: LlavaNextConfig, attn_implementation: str) -> Model:
    """The model with parameters on the meta device (no memory) and real buffers."""
    config._attn_implementation = attn_implementation
    with init_empty_weights(include_buffers=False):
        return model_class(config)


def place(model: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in the place of parameter `name`, keeping its requires_grad."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    setattr(owner, leaf, torch.nn.Parameter(tensor, requires_grad=old.requires_grad))


def check_fit(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], where: str) -> None:
    """Raise CheckpointError naming missing, left-over or misshapen tensors (first few of each)."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"lacks {some(missing)}")
    if left_over := sorted(found.keys() - expected.keys()):
        problems.append(f"has {some(left_over)}, which the model does not have")
    misshapen = [
        f"{n} is {list(found[n])}, not {list(expected[n])}" for n in sorted(expected.keys() & found.keys()) if found[n] != expected[n]
    ]
    if misshapen:
        problems.append(f"has the wrong shape: {some(misshapen)}")
    if problems:
        raise CheckpointError(
            f"{where} does not fit this model: it {'; it '.join(problems)}. Check that base and adapter are of the same size and family."
        )


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
) -> None:
    """Read every tensor of `shards` into `model`; names in `optional` may be absent from the files and stay unset. A tensor that
    `replacements` holds in the same shape is taken out of there and not read."""
    replacements = {} if replacements is None else replacements
    found = {rename(n): s for n, s in tensor_shapes(shards).items() if not UNUSED.search(n)}
    expected = {name: tuple(p.shape) for name, p in model.named_parameters() if name not in optional or name in found}
    check_fit(expected, found, where)
    for name, tensor in iter_tensors(shards):
        if UNUSED.search(name):
            continue
        target = rename(name)
        if target in replacements and replacements[target].shape == tensor.shape:
            place(model, target, replacements.pop(target).to(device=device, dtype=dtype))
        else:
            # .to copies even where nothing changes: a tensor backed by the mapped file would keep the file in use
            place(model, target, tensor.to(device=device, dtype=dtype, copy=True))


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
    model_class: type[Model] = LlavaNextForCausalLM,
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
    may be absent where the config ties it to the embedding; it then starts as a copy. Raises CheckpointError.
    """
    folder = resolve_folder(path_or_hub_id)
    shards = list_shards(folder)
    shapes = {published_name(n): s for n, s in tensor_shapes(shards).items()}
    config = read_config(folder, shapes, config_class, **config_extra)
    tied, config.tie_word_embeddings = config.tie_word_embeddings, False
    model = build_empty(model_class, config, pick_attention(device, attn_implementation))
    new_parameters = new_parameters or {}
    optional = {"model.image_newline", TOWER + "post_layernorm.weight", TOWER + "post_layernorm.bias", *new_parameters}
    if tied:
        optional.add("lm_head.weight")
    fill(
        model, shards, published_name, dtype=dtype, device=device, where=str(folder), optional=frozenset(optional),
        replacements=replacements,
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
    model = build_empty(model_class, config, pick_attention(device, attn_implementation))
    fill(model, list_shards(folder), lambda name: name, dtype=dtype, device=device, where=str(folder))
    if dtype != torch.float32:
        for name, tensor in iter_tensors(list_shards(folder)):
            if name.split(".")[0] in float32:
                model.get_parameter(name).data = tensor.to(device=device, dtype=torch.float32)
    return finish(model, device)


def write_shards(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: int = 5 * 1024**3) -> None:
    """Write `tensors` as model.safetensors, or as numbered shards with an index where they exceed `max_shard_bytes`."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        ["model.safetensors"] if len(groups) == 1 else [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    )
    for filename, group in zip(names, groups):
        temporary = folder / f".{filename}.tmp"
        save_file({n: t.detach().contiguous().cpu() for n, t in group.items()}, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # save_file makes it readable for its owner only
        os.replace(temporary, folder / filename)
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
            "weight_map": {n: f for f, g in zip(names, groups) for n in g},
        }
        temporary = folder / ".index.tmp"
        temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.replace(temporary, folder / "model.safetensors.index.json")


def save_llava_next(model: LlavaNextForCausalLM, folder: str | os.PathLike, max_shard_bytes: int = 5 * 1024**3) -> None:
    """Write the base model in the LLaVA-NeXT layout (config.json and safetensors; add the tokenizer yourself)."""
    folder = Path(folder)
    write_shards(dict(model.named_parameters()), folder, max_shard_bytes)
    config = model.config
    raw = {key: value for key in TEXT_EXPORT if (value := getattr(config, key, None)) is not None}
    raw |= {
        "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava", "torch_dtype": str(model.dtype).removeprefix("torch."),
        "rope_theta": config.rope_parameters["rope_theta"], "mm_projector_type": "mlp2x_gelu", "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": config.pool_stride, "mm_vision_select_layer": -2, "mm_hidden_size": config.vision.hidden_size,
        "mm_vision_tower": "google/siglip-so400m-patch14-384", "vision_config": config.vision_config,
    }  # fmt: skip
    temporary = folder / ".config.tmp"
    temporary.write_text(json.dumps(raw, indent=2), encoding="utf-8")
    os.replace(temporary, folder / "config.json")


TEXT_EXPORT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "image_token_index",
)  # fmt: skip
