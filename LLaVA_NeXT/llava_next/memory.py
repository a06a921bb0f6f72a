"""Whether a model's weights fit into memory, asked before the first of them is read.

Without the question a machine that is too small works for minutes and then ends the process without a word (the system does that, so no
sentence of ours could be printed).
"""

from __future__ import annotations

import psutil
import torch
from torch import nn

from llava_next.errors import CheckpointError


def free_bytes(device: torch.device) -> int:
    """What can still be taken: on a GPU its free memory; on the host what is available, and the swap space."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available + psutil.swap_memory().free


def check_room(model: nn.Module, dtype: torch.dtype, device: str | torch.device, where: str) -> None:
    """`model`: built without memory. Raises CheckpointError where its weights alone are more than `device` has free; what scoring or
    training needs beside them is not counted."""
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        return
    numbers = sum(parameter.numel() for parameter in model.parameters())
    needed, free = numbers * dtype.itemsize, free_bytes(device)
    if needed <= free:
        return
    place = "of memory" if device.type == "cpu" else f"of the GPU's memory ({device})"
    name = str(dtype).removeprefix("torch.")
    cures = [f"--dtype bfloat16 needs {numbers * 2 / 1e9:.1f} GB"] if dtype.itemsize > 2 else []
    cures.append("--weights 4bit about a third of that" if device.type == "cuda" else "free memory, or take a larger machine")
    raise CheckpointError(
        f"the weights of {where} need {needed / 1e9:.1f} GB as {name}, and {free / 1e9:.1f} GB {place} are free; {', '.join(cures)}."
    )
