"""The files of a hub id: what of them is in the local cache, and the folder that holds them. Needs no torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from tqdm import tqdm

WEIGHT_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.md"]


class NoBar(tqdm):
    """For calls that download nothing: a bar that shows nothing."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **{**settings, "disable": True})


def in_cache(name: str) -> bool:
    """Whether the weights of a hub id lie whole in the local cache: an adapter's, or all files that the index of a model names."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=WEIGHT_FILES, local_files_only=True, tqdm_class=NoBar))
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    index = folder / "model.safetensors.index.json"
    try:
        needed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError):
        needed = set()  # a damaged index: loading says so
    here = {path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")}
    return bool(here) and needed <= here


def snapshot(name: str) -> Path:
    """The folder of a hub id, downloaded with a progress bar where it is not in the cache. Raises the hub client's errors.

    Looked up once in a process: what changes on the hub meanwhile counts from the next process on, so that all files of a run are of one
    revision.
    """
    return _snapshot(name, constants.HF_HUB_CACHE, constants.ENDPOINT)


@functools.cache
def _snapshot(name: str, cache: str, hub: str) -> Path:
    bar = NoBar if in_cache(name) else None
    folder = Path(snapshot_download(name, allow_patterns=WEIGHT_FILES, tqdm_class=bar))
    if (folder / "adapter_config.json").is_file() and not (folder / "adapter_model.safetensors").is_file():
        folder = Path(snapshot_download(name, allow_patterns=[*WEIGHT_FILES, "adapter_model.bin"], tqdm_class=bar))
    return folder
