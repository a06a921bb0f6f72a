"""Features of the frozen vision tower on disk: one safetensors file per video and way of sampling it.

    cache = FeatureCache("outputs/features", tower_key(model))
    key = video_key("clip.mp4", fps=1, max_frames=120)
    features_FPC = cache.get(key)            # None where it is not there
    cache.put(key, features_FPC)

A key holds the file's path, size and time of change and how its frames were chosen; the folder's name holds a hash of the tower's
weights and their type. So what is stale is never found, and any number of processes and runs may share a folder.

Shapes: F frames, P patches of a frame, C tower width.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aha.core.files import atomic_path


def tower_key(model: nn.Module) -> str:
    """Hash of the vision tower's weights (bytes, so their type counts too) of a `LlavaNextForCausalLM`."""
    digest = hashlib.sha256()
    for name, parameter in model.vision_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def video_key(path: str | os.PathLike, *, fps: float, max_frames: int | None, start: float = 0.0, sampling: str = "timestamps") -> str:
    """Key of the frames that `aha.video.reader.read_video` gives for these arguments (fps in frames a second, start in seconds)."""
    path = Path(path).resolve()
    facts = path.stat()
    text = f"{path}|{facts.st_size}|{facts.st_mtime_ns}|{fps}|{max_frames}|{start}|{sampling}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class FeatureCache:
    """Tensors under keys, in `folder`/`tower_key`/. Files are written whole or not at all."""

    def __init__(self, folder: str | os.PathLike, tower_key: str):
        self.folder = Path(folder) / tower_key

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> Tensor | None:
        """The tensor under `key`; None where there is none or its file is damaged (it is then made again)."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                return file.get_tensor("tensor")
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, key: str, tensor: Tensor) -> None:
        """Store `tensor` (moved to the host, its type kept). Raises UserError where the disk is full or read-only."""
        with atomic_path(self._path(key)) as temporary:
            save_file({"tensor": tensor.detach().cpu().contiguous()}, temporary)
