"""Features of the frozen vision tower on disk: one safetensors file per video and way of sampling it, shared by training and scoring.

    cache = FeatureCache("outputs/features", tower_key(model))
    key = video_key("clip.mp4", fps=1)
    stored = cache.get(key, max_frames=120)       # None where fewer frames are there
    cache.put(key, VideoFeatures(frames, features_FPC, complete=True))

A key holds the file's path, size and time of change and how its frames are chosen; the folder's name holds a hash of the tower's
weights and their type. So what is stale is never found, and any number of processes and runs may share a folder. How many frames were
wanted is no part of the key: the first frames of a longer sampling are those of a shorter one.

Shapes: F frames, P patches that pooling looks at, C tower width.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from llava_next import LlavaNextForCausalLM
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aha.core.files import atomic_path
from aha.video.reader import NO_PIXELS, Frame

LAYOUT = 2  # of the files; those of 1 (features and facts apart) have other names and are not looked at


def tower_key(model: LlavaNextForCausalLM) -> str:
    """Hash of the vision tower's weights (bytes, so their type counts too)."""
    digest = hashlib.sha256()
    for name, parameter in model.vision_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def video_key(
    path: str | os.PathLike,
    *,
    fps: float | None,
    num_frames: int | None = None,
    start: float = 0.0,
    sampling: str = "timestamps",
    backend: str = "pyav",
) -> str:
    """Key of the frames that `aha.video.reader.iter_frames` gives for these arguments (fps in frames a second, start in seconds)."""
    path = Path(path).resolve()
    facts = path.stat()
    rate = None if fps is None else float(fps)
    text = f"{LAYOUT}|{path}|{facts.st_size}|{facts.st_mtime_ns}|{rate}|{num_frames}|{float(start)}|{sampling}|{backend}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class VideoFeatures:
    """frames: [F], without pixels; complete: they are all that the sampling gives, not its beginning only."""

    frames: list[Frame]
    features_FPC: Tensor
    complete: bool


class FeatureCache:
    """Features under keys, in `folder`/`tower_key`/. Files are written whole or not at all."""

    def __init__(self, folder: str | os.PathLike, tower_key: str):
        self.folder = Path(folder) / tower_key

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str, max_frames: int | None = None) -> VideoFeatures | None:
        """The first `max_frames` frames (None: all) under `key`; None where they are not there, or in a damaged file (made again then)."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                complete = file.metadata()["complete"] == "True"
                rows = file.get_tensor("frames").tolist()  # index, time, time shown
                if not complete and (max_frames is None or len(rows) < max_frames):
                    return None
                frames = [Frame(NO_PIXELS, int(index), time, shown) for index, time, shown in rows[:max_frames]]
                return VideoFeatures(frames, file.get_slice("features")[:max_frames], complete and len(frames) == len(rows))
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, key: str, video: VideoFeatures) -> None:
        """Store features (moved to the host, their type kept). Raises UserError where the disk is full or read-only."""
        frames = torch.tensor([frame[1:] for frame in video.frames], dtype=torch.float64).reshape(-1, 3)
        tensors = {"frames": frames, "features": video.features_FPC.detach().cpu().contiguous()}
        with atomic_path(self._path(key)) as temporary:
            save_file(tensors, temporary, metadata={"complete": str(video.complete)})
