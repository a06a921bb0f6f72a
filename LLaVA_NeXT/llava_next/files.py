"""The files of a checkpoint folder: found, downloaded, opened and checked. What cannot be used is a CheckpointError that names it.

Nothing outside of the folder is read, and no pickle is opened.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_next.errors import CheckpointError
from llava_next.hub import snapshot

# What transformers and PEFT raise for settings of a wrong type or value.
UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RuntimeError, re.error, StrictDataclassError)


def first_line(error: Exception) -> str:
    """The first line of an error's text, at most 200 characters, to be quoted in a message of ours."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


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
        return snapshot(name)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise CheckpointError(
            f"{name} is neither a folder here nor a model on the hub; check the spelling (and HF_TOKEN for gated ones)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name} is not in the local hub cache and cannot be downloaded ({type(error).__name__}); download it on a machine with "
            f"network and give the folder instead."
        ) from error


NUMBERED = re.compile(r".+-\d+-of-\d+\.safetensors")


def list_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: those its index names, or all. Raises CheckpointError where one is missing, where the
    index names a file outside of the folder, and where two savings lie in one folder, of which one is old."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map {{tensor: file}}; download it again.")
        names = sorted(set(weight_map.values()))
        outside = [name for name in names if name != Path(name).name or not name.endswith(".safetensors")]
        if outside:
            raise CheckpointError(f"{index} names {outside[0]!r}, which is no safetensors file of this folder; download the folder again.")
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(f"{folder} lacks {', '.join(absent)}, which {index.name} names; download the folder again.")
        if single.is_file() and single.name not in names:
            raise CheckpointError(
                f"{folder} holds {single.name} and the shards of {index.name}, of which one is of an earlier saving; delete the old one."
            )
        return [folder / name for name in names]
    shards = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_model"))
    if numbered := [path.name for path in shards if NUMBERED.fullmatch(path.name)]:
        raise CheckpointError(f"{folder} holds {numbered[0]} but no {index.name}: it was not written to the end, save it again.")
    if not shards:
        others = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        hint = f" ({', '.join(others)} may run code when opened and is not read; convert it to safetensors)" if others else ""
        raise CheckpointError(f"{folder} holds no .safetensors file{hint}.")
    return shards


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; the folder is not a complete checkpoint.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and its permissions.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of thousands of digits, nested a thousand deep
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object {{name: value}}; download it again.")
    return value


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


# ---- do they fit ----


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


def check_finite(tensor: Tensor, name: str, where: str, stored: Tensor | None = None) -> None:
    """Raise CheckpointError where a tensor holds NaN or infinity. stored: as it was before it was converted, if it was."""
    if not tensor.is_floating_point() or not tensor.numel() or torch.isfinite(torch.stack(tensor.aminmax())).all():
        return
    if stored is not None and stored.dtype != tensor.dtype and torch.isfinite(torch.stack(stored.aminmax())).all():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{where}: {name} holds numbers up to {stored.abs().max().item():.3g}, too large for {dtype}; "
            "use bfloat16 or float32 (--dtype, --bf16)."
        )
    raise CheckpointError(f"{where}: {name} holds NaN or infinite values; download it again, or take an earlier checkpoint.")
