"""The random states of a rank in a checkpoint: Python's, numpy's, torch's, and that of the rank's own GPU.

transformers keeps the states of all GPUs that a process sees, of which it uses one, and cannot set them back where it sees another number.
The files are transformers' (`rng_state_<rank>.pth`, `rng_state.pth` of a single process), also those that it wrote.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals


def file_of(folder: Path, rank: int, world_size: int) -> Path:
    return folder / ("rng_state.pth" if world_size == 1 else f"rng_state_{rank}.pth")


def save_states(folder: Path, rank: int, world_size: int, device: torch.device) -> None:
    """Write this rank's states to checkpoint `folder`."""
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    torch.save(states, file_of(folder, rank, world_size))


def load_states(folder: Path, rank: int, world_size: int, device: torch.device) -> None:
    """Set this rank's states back to those of `folder`, which as many ranks wrote."""
    with safe_globals():
        states = torch.load(file_of(folder, rank, world_size), weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        cuda = states["cuda"]
        # a list is transformers': of all GPUs that the process saw, and ranks took them in order
        torch.cuda.set_rng_state(cuda if isinstance(cuda, torch.Tensor) else cuda[rank % len(cuda)], device)


def seed_states(seed: int, step: int, rank: int) -> None:
    """States for going on after `step` with another number of ranks, of which no file tells: other ones for each rank, and none that the
    run had before."""
    of_python, of_numpy, low, high = (int(word) for word in np.random.SeedSequence([seed, step, rank]).generate_state(4))
    random.seed(of_python)
    np.random.seed(of_numpy)
    torch.manual_seed(high << 32 | low)  # the GPUs' too
