"""Checkpoints: complete or not there. `checkpoint-<step>/` holds the adapter in the published layout and all that resuming needs.

Every rank writes its part into `partial-<step>/`; when all have finished, rank 0 adds complete.json and renames the folder. A run that
is killed at any moment leaves either a whole checkpoint or a `partial-` folder, which is reported, ignored and removed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers.trainer import TRAINER_STATE_NAME

from aha.core.files import read_json, write_json
from aha.errors import UserError
from aha.models import AhaModel
from aha.models.adapters import adapter_names, parameter_name, save_adapter
from aha.training import resize

if TYPE_CHECKING:
    from aha.training.trainer import AhaTrainer

COMPLETE = "complete.json"


@dataclass
class Record:
    """What every checkpoint carries beside the weights. `base`: the base checkpoint that the adapter belongs to."""

    base: str
    settings: dict[str, Any]
    trained_on: list[str]
    versions: dict[str, Any]

    def write(self, folder: Path) -> None:
        write_json(folder / "settings.json", self.settings)
        write_json(folder / "trained_on_videos.json", self.trained_on)
        write_json(folder / "versions.json", self.versions)


def barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def zero_stage(trainer: AhaTrainer) -> int | None:
    """ZeRO stage as the running engine says it; None without DeepSpeed."""
    return trainer.deepspeed.zero_optimization_stage() if trainer.deepspeed is not None else None


# ---- weights ----


def full_state(trainer: AhaTrainer) -> dict[str, torch.Tensor] | None:
    """The adapter's parameters, whole, on rank 0; None on other ranks. All ranks must call it. Under ZeRO-3 one parameter at a time is
    gathered and moved to the host, so that memory is bounded by the adapter itself."""
    named = [(n, trainer.model.get_parameter(n)) for n in adapter_names(trainer.model)]
    main = trainer.args.process_index == 0
    if zero_stage(trainer) != 3:
        return dict(named) if main else None
    import deepspeed

    state = {}
    for name, parameter in named:
        with deepspeed.zero.GatheredParameters([parameter]):
            if main:
                state[name] = parameter.detach().cpu().clone()
    return state if main else None


def save_weights(trainer: AhaTrainer, folder: str | os.PathLike) -> None:
    """Adapter, tokenizer and record into `folder`. Called by all ranks."""
    state = full_state(trainer)
    if state is not None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(trainer.model, folder, base=trainer.record.base, state=state, tokenizer=trainer.tokenizer)
        trainer.record.write(folder)


def load_weights(model: AhaModel, folder: str | os.PathLike) -> None:
    """Put a checkpoint's adapter tensors into `model` (runs without DeepSpeed, whose engine restores its own)."""
    tensors = {parameter_name(key): value for key, value in load_file(Path(folder) / "adapter_model.safetensors").items()}
    with torch.no_grad():
        for name, value in tensors.items():
            model.get_parameter(name).copy_(value)


# ---- saving ----


def save(trainer: AhaTrainer) -> None:
    """Write `checkpoint-<global step>` of `trainer`. Called by all ranks."""
    args, state = trainer.args, trainer.state
    run = Path(args.output_dir)
    partial, target = run / f"partial-{state.global_step}", run / f"checkpoint-{state.global_step}"
    main = args.process_index == 0
    if main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    save_weights(trainer, partial)
    if trainer.deepspeed is not None:
        # the base is frozen and lies elsewhere; what is trained is in the optimizer's own full-precision copy
        trainer.deepspeed.save_checkpoint(str(partial), exclude_frozen_parameters=True)
        if main:
            torch.save(trainer.lr_scheduler.state_dict(), partial / "scheduler.pt")
    else:
        trainer._save_optimizer_and_scheduler(str(partial))
        trainer._save_scaler(str(partial))
    trainer._save_rng_state(str(partial))
    trainer.store_flos()
    if main:
        state.save_to_json(str(partial / TRAINER_STATE_NAME))
    barrier()
    if main:
        if target.exists():
            shutil.rmtree(target)
        facts = {"step": state.global_step, "world_size": args.world_size, "zero_stage": zero_stage(trainer)}
        write_json(partial / COMPLETE, {**facts, "files": sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())})
        sync_folder(partial)
        os.replace(partial, target)
        trainer.history.event("checkpoint", step=state.global_step, folder=target.name)
        rotate(run, args.save_total_limit, keep=state.best_model_checkpoint)
    barrier()


def sync_folder(folder: Path) -> None:
    """Force the files of `folder` to the disk, so that the rename cannot outlive them in a power cut."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def rotate(run: Path, limit: int | None, keep: str | None) -> None:
    """Remove all but the last `limit` checkpoints and the best one."""
    if limit is None:
        return
    best = Path(keep).name if keep else None
    for folder in complete(run)[:-limit]:
        if folder.name != best:
            shutil.rmtree(folder)


# ---- loading ----


def load_training_state(trainer: AhaTrainer, folder: str | os.PathLike) -> None:
    """Optimizer, schedule and (with DeepSpeed) weights of a checkpoint into a prepared trainer. Random states follow later."""
    if trainer.deepspeed is not None and check_whole(Path(folder))["world_size"] != trainer.args.world_size:
        resize.load_resized(trainer, Path(folder))
    elif trainer.deepspeed is not None:
        # not strict: the frozen base is not in the checkpoint
        loaded, _ = trainer.deepspeed.load_checkpoint(str(folder), load_module_strict=False)
        if loaded is None:
            raise UserError(f"DeepSpeed cannot load checkpoint {folder}; remove the folder, the run goes on from the one before it.")
    trainer._load_optimizer_and_scheduler(str(folder))
    trainer._load_scaler(str(folder))


# ---- finding ----


def complete(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    named = [(m, p) for p in run.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [folder for _, folder in sorted((int(m.group(1)), p) for m, p in named if (p / COMPLETE).is_file())]


def leftovers(run: Path) -> list[Path]:
    """Folders of checkpoints that were not finished, or not read to the end."""
    whole = set(complete(run))
    return sorted(p for pattern in ("partial-*", "checkpoint-*", "universal-*") for p in run.glob(pattern) if p.is_dir() and p not in whole)


def check_whole(folder: Path) -> dict[str, Any]:
    """The facts of a complete checkpoint. Raises UserError where files are missing."""
    facts = read_json(folder / COMPLETE, "checkpoint record")
    absent = [name for name in facts["files"] if not (folder / name).is_file()]
    if absent:
        raise UserError(f"checkpoint {folder} lacks {', '.join(absent[:3])}; remove the folder, the run goes on from the one before it.")
    return facts


def find_resume(
    wanted: str | None,
    output_dir: str,
    world_size: int,
    stage: int | None,
    settings: dict[str, Any],
    difference: Callable[[dict[str, Any], dict[str, Any]], list[str]],
) -> Path | None:
    """The checkpoint to go on from, or None to start anew. `wanted`: auto, none, or a folder.

    Another number of processes may go on where an optimizer step has the same samples. Raises UserError where the checkpoint belongs to
    another ZeRO stage or other settings.
    """
    if wanted in (None, "none"):
        return None
    run = Path(output_dir)
    if wanted == "auto":
        folders = complete(run)
        if not folders:
            return None
        folder = folders[-1]
    else:
        folder = Path(wanted)
        if not (folder / COMPLETE).is_file():
            raise UserError(f"--resume_from_checkpoint {folder} is no complete checkpoint (it has no {COMPLETE}); give one, or auto.")
    facts = check_whole(folder)
    if facts["zero_stage"] != stage:
        raise UserError(
            f"checkpoint {folder} was written with ZeRO stage {facts['zero_stage']}, this run has {stage}; an exact resume needs the same. "
            f"To start from its weights only: --lora_pretrained {folder} and another --output_dir."
        )
    theirs = read_json(folder / "settings.json", "settings of a checkpoint")
    if facts["world_size"] != world_size:
        resize.check_batch(facts, theirs["training"], settings["training"], world_size, folder)
        theirs["training"]["gradient_accumulation_steps"] = settings["training"]["gradient_accumulation_steps"]
    changed = difference(settings, theirs)
    if changed:
        raise UserError(
            f"checkpoint {folder} was trained with other settings ({'; '.join(changed[:5])}); use the same, another --output_dir, or "
            "--resume_from_checkpoint none to start anew."
        )
    return folder
