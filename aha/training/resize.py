"""Going on from a checkpoint with another number of processes (8 GPUs yesterday, 4 today).

Without DeepSpeed a checkpoint holds the whole optimizer. DeepSpeed's holds one part for each rank that wrote it. Every rank maps these
files into memory and reads the ranges that are its own now: DeepSpeed loads its universal layout, and where it would read a parameter's
whole file it is given that range. (DeepSpeed's converter has one process write everything twice, and every rank reads all of it: a minute
for 7B.)
"""

from __future__ import annotations

import copy
import functools
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from aha.errors import UserError
from aha.training.optimizer import LowMemoryAdamW

if TYPE_CHECKING:
    from aha.training.trainer import AhaTrainer


KINDS = ("fp32", "exp_avg", "exp_avg_sq")


class Parts:
    """The optimizer's parts in folder `tag` of a checkpoint: where each parameter's values lie in the flat tensors of the ranks."""

    def __init__(self, tag: Path, stage: int) -> None:
        def files(pattern: str) -> list[Path]:
            return sorted(tag.glob(pattern), key=lambda path: int(re.findall(r"rank_(\d+)", path.name)[0]))

        # name -> the ranks' pieces in order: (flat tensors by kind, begin, length)
        self.pieces: dict[str, list[tuple[dict[str, Tensor], int, int]]] = {}
        read = functools.partial(torch.load, map_location="cpu", mmap=True, weights_only=False)
        states = [read(path)["optimizer_state_dict"] for path in files("*zero_pp_rank_*_optim_states.pt")]
        if stage < 3:
            for state in states:
                for group, names in enumerate(state["param_slice_mappings"]):
                    flat = {**state["base_optimizer_state"]["state"][group], "fp32": state["single_partition_of_fp32_groups"][group]}
                    for name, piece in names.items():
                        self.pieces.setdefault(name, []).append((flat, piece.start, piece.numel))
            base = states[0]["base_optimizer_state"]
            large = ("base_optimizer_state", "param_slice_mappings", "single_partition_of_fp32_groups")
            self.common = {name: value for name, value in states[0].items() if name not in large}
            self.common["param_groups"] = base["param_groups"]
        else:
            shapes = read(files("*zero_pp_rank_*_model_states.pt")[0])["param_shapes"]
            for rank, state in enumerate(states):
                for group, shape_of in enumerate(shapes):
                    flat = {**state["optimizer_state_dict"]["state"][group], "fp32": state["fp32_flat_groups"][group]}
                    begin = 0
                    for name, shape in shape_of.items():
                        share = -(-shape.numel() // len(states))  # the last ones' are padded
                        length = max(0, min(share, shape.numel() - rank * share))
                        self.pieces.setdefault(name, []).append((flat, begin, length))
                        begin += share
            base = states[0]["optimizer_state_dict"]
            self.common = {name: value for name, value in states[0].items() if name not in ("fp32_flat_groups", "optimizer_state_dict")}
            self.common["optimizer_state_dict"] = {
                "param_groups": base["param_groups"],
                "state": {0: {"step": base["state"][0].get("step")}},
            }
        self.step = copy.deepcopy(base["state"][0].get("step"))

    def read(self, name: str, kind: str, begin: int, length: int) -> Tensor:
        """Values `begin` to `begin + length` of a flat parameter; less where it ends before."""
        found = []
        for flat, start, count in self.pieces[name]:
            first, last = max(begin, 0), min(begin + length, count)
            if first < last:
                found.append(flat[kind].view(-1)[start + first : start + last])
            begin -= count
        return torch.cat(found) if found else torch.empty(0)


def read_own_ranges(optimizer: Any, parts: Parts, stage: int) -> None:
    """Have DeepSpeed's `optimizer` take what it loads from `parts`, in place of a file for each parameter and kind of value."""

    def into_fragment(parameter: Any, name: str, *_: Any, **__: Any) -> Any:
        mapping = parameter._hp_mapping
        mine = mapping.lp_fragment_address
        mapping.get_hp_fragment().data.copy_(parts.read(name, "fp32", mine.start, mine.numel))
        mapping.optim_fragment = {kind: parts.read(name, kind, mine.start, mine.numel) for kind in KINDS[1:]}
        return parts.step

    def share(folder: str, kind: str, param: Any) -> Tensor:
        rank, count = dist.get_rank(), dist.get_world_size()
        size = -(-param.ds_numel // count)
        values = parts.read(optimizer.param_names[param], kind, rank * size, size)
        return torch.nn.functional.pad(values, (0, size - len(values)))

    if stage == 3:
        optimizer.load_hp_checkpoint_state = share
        return
    for group in optimizer.bit16_groups:
        for parameter in group:
            parameter.load_hp_checkpoint_state = functools.partial(into_fragment, parameter, optimizer.param_names[parameter])


def load_resized(trainer: AhaTrainer, folder: Path) -> None:
    """DeepSpeed's part of checkpoint `folder`, written by another number of ranks, into the running engine. Called by all ranks."""
    begin = time.perf_counter()
    universal = Path(trainer.args.output_dir) / f"universal-{folder.name}"
    tag = (folder / "latest").read_text(encoding="utf-8").strip()
    engine: Any = trainer.deepspeed  # DeepSpeed has no types
    stage, main = engine.zero_optimization_stage(), trainer.args.process_index == 0
    parts = Parts(folder / tag, stage)
    if main:
        shutil.rmtree(universal, ignore_errors=True)
        (universal / tag / "zero").mkdir(parents=True)
        for path in (folder / tag).glob("*model_states.pt"):
            (universal / tag / path.name).symlink_to(path.resolve())
        torch.save(parts.common, universal / tag / "zero/optimizer_state.pt")
    dist.barrier()
    read_own_ranges(engine.optimizer, parts, stage)
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(universal), tag=tag, load_module_strict=False)
    engine._config.load_universal_checkpoint = False
    place_state(engine.optimizer.optimizer)
    parts.pieces.clear()  # DeepSpeed keeps the functions, which must not keep the files
    dist.barrier()
    if main:
        shutil.rmtree(universal)
        print(f"the optimizer's parts were read by other processes than wrote them, in {time.perf_counter() - begin:.1f} s", flush=True)


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
