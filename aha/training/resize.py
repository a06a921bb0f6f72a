"""Going on from a checkpoint with another number of processes (8 GPUs yesterday, 4 today).

Without DeepSpeed a checkpoint holds the whole optimizer. DeepSpeed's holds one part for each rank: rank 0 puts them together in DeepSpeed's
universal layout, in a folder beside the checkpoint that is removed after loading, and every rank reads its new part from there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from aha.errors import UserError
from aha.training.optimizer import LowMemoryAdamW

if TYPE_CHECKING:
    from aha.training.trainer import AhaTrainer


def load_resized(trainer: AhaTrainer, folder: Path) -> None:
    """DeepSpeed's part of checkpoint `folder`, written by another number of ranks, into the running engine. Called by all ranks."""
    universal = Path(trainer.args.output_dir) / f"universal-{folder.name}"
    tag = (folder / "latest").read_text(encoding="utf-8").strip()
    if trainer.args.process_index == 0:
        shutil.rmtree(universal, ignore_errors=True)
        convert(folder / tag, universal / tag)
    dist.barrier()
    engine: Any = trainer.deepspeed  # DeepSpeed has no types
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(universal), tag=tag, load_module_strict=False)
    engine._config.load_universal_checkpoint = False
    place_state(engine.optimizer.optimizer)
    dist.barrier()
    if trainer.args.process_index == 0:
        shutil.rmtree(universal)


def place_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a step counter of its own, where this optimizer's kernels look for it, and the state its types.

    DeepSpeed reads one counter for all parameter groups (ZeRO-3: each of them would count it up), on the CPU; torch's fused and
    capturable kernels want it beside the parameter. LowMemoryAdamW counts in a Python number.
    """
    beside = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for parameter, state in optimizer.state.items():  # ZeRO-3 shows its parameters to the groups during a step only
        step = state.get("step")
        if isinstance(optimizer, LowMemoryAdamW) and step is not None:
            state["step"] = int(step)
            optimizer.shrink(state)
        elif isinstance(step, Tensor):
            state["step"] = step.detach().to(device=parameter.device if beside else "cpu", dtype=torch.float32, copy=True)


def convert(source: Path, target: Path) -> None:
    """DeepSpeed's parts of all ranks -> one file for each parameter and kind of state, the same for any number of ranks."""
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(source), output_folder=str(target), num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False,
        strict=True, inject_missing_state=True,
    )  # fmt: skip
    target.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)


def check_batch(facts: dict, theirs: dict, ours: dict, world_size: int, folder: Path) -> None:
    """An optimizer step must see the samples that it would have seen. Raises UserError, with the flag to give."""
    per_gpu, steps = theirs["per_device_train_batch_size"], theirs["gradient_accumulation_steps"]
    batch = per_gpu * steps * facts["world_size"]
    wanted, rest = divmod(batch, per_gpu * world_size)
    if rest:
        cure = f"{batch} samples cannot be shared evenly by {world_size} processes, use a number that divides them."
    elif (ours["per_device_train_batch_size"], ours["gradient_accumulation_steps"]) != (per_gpu, wanted):
        cure = (
            f"for the same {batch} samples {world_size} processes need --per_device_train_batch_size {per_gpu} "
            f"--gradient_accumulation_steps {wanted}."
        )
    else:
        return
    raise UserError(
        f"checkpoint {folder} was written by {facts['world_size']} processes with {per_gpu} x {steps} samples each in an optimizer step; "
        + cure
    )
