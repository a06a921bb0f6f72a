"""One training run from flags to the saved adapter; `python -m aha.train` calls `train`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from llava_next import base_config, resolve_folder
from transformers import ProgressCallback

from aha.conversation import DEFAULT_SYSTEM_PROMPT, load_tokenizer, recorded_system_prompt, tokenizer_folder
from aha.core.environment import lock_folder, prepare_wandb, versions
from aha.core.files import write_text
from aha.data.mixture import Mixture, build_mixture
from aha.data.samples import samples_hash
from aha.errors import UserError
from aha.eval.community import Split, chosen_split
from aha.models import AhaModel, aha_losses, mmduet_losses
from aha.models.losses import MMDUET_WEIGHTS, LossWeights
from aha.training import checkpoint
from aha.training.arguments import DataArguments, RunArguments, difference, parse, settings
from aha.training.card import model_card, upload
from aha.training.compiled import compile_layers
from aha.training.console import Progress
from aha.training.dashboard import Dashboard, send_summary
from aha.training.data import TrainingSet
from aha.training.features import VisionCache
from aha.training.logs import LogFile, Start
from aha.training.machine import GIB
from aha.training.model import build_model, content, fingerprint
from aha.training.recompute import Cost, Recompute, allocator_cap, same_for_all, trained_bytes, weight_bytes
from aha.training.spare import embeddings_on_host
from aha.training.speed import summary_line
from aha.training.trainer import PAD_ON_GPU, AhaTrainer
from aha.training.validation import Validation

FINISHED = "finished.json"
USUAL_TOKENS = 6000  # of a usual sample (120 frames): a card must have room for one with everything on it


def loss_weights(objective: str, given: list[str] | None) -> LossWeights:
    """The objective's weights with those that --loss_weights names ("relevance=4"). Raises UserError."""
    weights = LossWeights() if objective == "aha" else MMDUET_WEIGHTS
    for item in given or ():
        name, _, value = item.partition("=")
        if name not in asdict(weights) or not re.fullmatch(r"\d+(\.\d+)?([eE]-?\d+)?", value):
            raise UserError(f"--loss_weights {item}: write NAME=NUMBER, the names are {', '.join(asdict(weights))}.")
        weights = replace(weights, **{name: float(value)})
    return weights


def held_out_by(data: DataArguments) -> int | Split | None:
    """What says which TVSum videos are held out: a fold, a published split, or nothing."""
    if data.splits is not None:
        return chosen_split(data.splits, data.split)
    return None if data.fold < 0 else data.fold


def starting_prompt(data: DataArguments, folders: Iterable[Path], say: bool) -> str:
    """--system_prompt, else that of the training before; `data` has it then, for settings.json (None: the usual one)."""
    before = recorded_system_prompt(folders)
    if data.system_prompt not in (None, before) and say:
        print(f"WARNING: --system_prompt is not the one that the starting weights were trained with: {before}", flush=True)
    prompt = data.system_prompt or before
    data.system_prompt = None if prompt == DEFAULT_SYSTEM_PROMPT else prompt
    return prompt


def train(argv: list[str]) -> None:
    start = Start()
    model_args, data_args, run = parse(argv)
    main = run.process_index == 0
    lock = lock_folder(run.output_dir) if main else None
    base = resolve_folder(model_args.llm_pretrained)
    adapter = resolve_folder(model_args.lora_pretrained) if model_args.lora_pretrained else None
    tokenizer = load_tokenizer(tokenizer_folder((adapter, base)) or base)
    prompt = starting_prompt(data_args, filter(None, (adapter, base)), say=main)
    validate = run.eval_strategy != "no"
    build = functools.partial(
        build_mixture, data_args.dataset_config, tokenizer, data_args.frame_fps, data_args.max_num_frames, seed=run.seed,
        fold=held_out_by(data_args), limit=data_args.limit, validation=validate,
        frame=base_config(base).frame, video_backend=data_args.video_backend, system_prompt=prompt,
    )  # fmt: skip
    start.mark("process group")
    mixture = build()
    held_out = build(split="val") if validate else None
    record = checkpoint.Record(
        base=model_args.llm_pretrained, trained_on=mixture.trained_on_ids(), versions=versions(),
        settings={
            **settings(model_args, data_args, run), "mixture": contents(mixture), "base_fingerprint": fingerprint(base),
            "base_content": content(base), "adapter_content": None if adapter is None else content(adapter),
        },
    )  # fmt: skip
    stage = None
    if run.deepspeed_plugin is not None:
        stage = run.deepspeed_plugin.zero_stage
    resume = checkpoint.find_resume(run.resume_from_checkpoint, run.output_dir, run.world_size, stage, record.settings, difference)
    if main:
        prepare_folder(Path(run.output_dir), run, resume)
    checkpoint.barrier()
    wandb_config = prepare_wandb(run.output_dir, main) if "wandb" in run.loggers else {}

    start.mark("data and settings")
    torch.manual_seed(run.seed)
    dtype = torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else torch.float32
    limit_memory(run)
    try:
        model = build_model(model_args, dtype=dtype, device=run.device, seed=run.seed)
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ")[0]
        raise UserError(f"the weights alone do not fit: {said}. Give --load_in_4bit True, or a higher --max_memory.") from error
    if run.deepspeed_plugin is None and dtype != torch.float32 and not run.low_memory_optimizer:
        for parameter in model.parameters():  # steps of 2e-5 would be rounded away in 16 bits; DeepSpeed keeps its own float32 copy
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    recompute = prepare_layers(model, run, max(mixture.lengths))
    if main:
        print(run.chosen.line(), flush=True)
    weights = loss_weights(model_args.objective, model_args.loss_weights)
    objective = functools.partial(aha_losses if model_args.objective == "aha" else mmduet_losses, weights=weights)
    features = None if data_args.vision_cache is None else VisionCache(data_args.vision_cache, model)
    start.mark("model")
    if features is not None:
        for part in filter(None, (mixture, held_out)):
            if stage == 3:
                features.check_every_epoch(part)
            features.fill(part, model, run.process_index, run.world_size)
        checkpoint.barrier()
        start.mark("vision features")
    trainer = AhaTrainer(
        model, run, TrainingSet(mixture, features), recompute=recompute, objective=objective, tokenizer=tokenizer, record=record,
        validation=None if held_out is None else Validation(held_out, features),
    )  # fmt: skip
    if "wandb" in run.loggers:
        trainer.add_callback(Dashboard(record.settings, wandb_config))
    trainer.add_callback(LogFile(trainer.history))
    trainer.add_callback(start.watch(trainer.history))
    if not run.disable_tqdm:
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(Progress)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_model(run.output_dir)
    if main:
        if trainer.state.best_model_checkpoint is not None:
            keep_best(trainer, Path(trainer.state.best_model_checkpoint))
        write_text(Path(run.output_dir) / "README.md", model_card(run.output_dir, base=model_args.llm_pretrained, merged=False))
        if run.push_to_hub:
            print(f"uploaded: {upload(run.output_dir, run.hub_model_id or Path(run.output_dir).name)}", flush=True)
    checkpoint.barrier()
    finish(trainer)
    if lock is not None:
        lock.close()


def limit_memory(run: RunArguments) -> None:
    """With --max_memory torch's allocator refuses to reserve more than is left of it beside what lies outside."""
    if run.max_memory is not None and run.chosen.memory_gib is not None:
        whole = torch.cuda.get_device_properties(run.device).total_memory
        torch.cuda.set_per_process_memory_fraction(allocator_cap(run.chosen.memory_gib * GIB) / whole, run.device)


def prepare_layers(model: AhaModel, run: RunArguments, longest: int) -> Recompute:
    """Compile the layers if chosen, and say which of them are recomputed. Without compiling, transformers does the recomputing.
    longest: tokens of the longest sample."""
    chosen = run.chosen
    limit = None if chosen.memory_gib is None else chosen.memory_gib * GIB
    cost = Cost.estimate(model.config, chosen.compile_layers, model.lm_head.weight.element_size())
    zero = chosen.zero_stage is not None
    later = trained_bytes(model, zero=zero, low_memory=chosen.low_memory_optimizer, world_size=run.world_size)
    if chosen.zero_stage == 3 and chosen.recompute == "auto":
        tokens = run.per_device_train_batch_size * (longest + PAD_ON_GPU)
        counts = [same_for_all(model, cost, limit, later, tokens, run.world_size)] * run.world_size
        if run.world_size > 1:
            dist.all_gather_object(counts, counts[0])
        chosen = run.chosen = replace(chosen, recompute=max(counts))
    if (
        limit is not None
        and chosen.recompute == "auto"
        and not Recompute(model, "auto", cost, limit, later).fits(USUAL_TOKENS, weight_bytes(model))
    ):
        embeddings_on_host(model)
    if chosen.compile_layers:
        compile_layers(model, whole=chosen.zero_stage != 3)
    else:
        run.activation_checkpointing = chosen.recompute != "none"
        run.gradient_checkpointing = run.activation_checkpointing  # type: ignore[assignment]  # see RunArguments
    return Recompute(model, chosen.recompute, cost, limit, later, native=not chosen.compile_layers)


def contents(mixture: Mixture) -> list[dict[str, Any]]:
    """What a mixture is made of, for the settings: a resumed run must have the same."""
    return [
        {
            "name": s.entry["name"], "type": s.entry["type"], "weight": s.entry["weight"], "samples": len(s.samples), "fps": s.fps,
            "max_num_frames": s.max_num_frames, "content": samples_hash(s.samples),
        }
        for s in mixture.sources
    ]  # fmt: skip


def prepare_folder(folder: Path, run: RunArguments, resume: Path | None) -> None:
    """Report and remove what earlier runs left unfinished; say where this run starts."""
    for left in checkpoint.leftovers(folder):
        print(f"checkpoint {left} was not finished when the run ended; it is ignored and removed", flush=True)
        shutil.rmtree(left)
    if resume is not None:
        before, now = checkpoint.check_whole(resume)["world_size"], run.world_size
        resized = f", written by {before} processes (now {now}): the same samples in every full step, other dropout and rounding"
        print(f"resuming from {resume}{resized if before != now else ''}", flush=True)
    else:
        for old in checkpoint.complete(folder):
            shutil.rmtree(old)
        (folder / "wandb_run_id").unlink(missing_ok=True)
    (folder / FINISHED).unlink(missing_ok=True)


def keep_best(trainer: AhaTrainer, source: Path) -> None:
    """Copy the adapter of the best checkpoint, `source`, to `best/` of the run folder."""
    target = Path(trainer.args.output_dir) / "best"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith(("rng_state", "scheduler", "optimizer", "zero_to", "latest", checkpoint.COMPLETE)):
            shutil.copy2(path, target / path.name)
    metric = trainer.args.metric_for_best_model
    print(f"best by validation: step {trainer.state.best_global_step}, {metric} {trainer.state.best_metric:.4f}: {target}", flush=True)


def parameter_hash(trainer: AhaTrainer) -> str:
    """sha256 of all trained parameters as this rank holds them (ZeRO-3: as this rank gathers them)."""
    digest = hashlib.sha256()
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            with gathered(trainer, parameter):
                value = parameter.detach().contiguous().view(-1).view(torch.uint8).cpu()
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def gathered(trainer: AhaTrainer, parameter: torch.nn.Parameter):
    if checkpoint.zero_stage(trainer) != 3:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def finish(trainer: AhaTrainer) -> None:
    """Check that all ranks hold the same weights, say so, and leave the process group in order."""
    world = trainer.args.world_size
    hashes = [parameter_hash(trainer)]
    if world > 1:
        gathered_hashes: list[str] = [""] * world
        dist.all_gather_object(gathered_hashes, hashes[0])
        hashes = gathered_hashes
    equal = len(set(hashes)) == 1
    stage = checkpoint.zero_stage(trainer)
    if trainer.args.process_index == 0:
        how = "training: world size {}, no DeepSpeed" if stage is None else "deepspeed: world size {}, ZeRO stage {}"
        print(how.format(world, stage) + f", parameters equal on all ranks: {'yes' if equal else 'NO'}", flush=True)
        parts, imbalance = trainer.speed.summary(), trainer.speed.imbalance()
        if parts:
            print(summary_line(parts, imbalance if world > 1 else 0.0), flush=True)
            if "wandb" in trainer.args.loggers:
                send_summary(parts)
        facts = {
            "world_size": world, "zero_stage": stage, "parameters_equal": equal, "parameter_hash": hashes[0], "step_seconds": parts,
            "imbalance": imbalance,
        }  # fmt: skip
        trainer.history.event("finished", step=trainer.state.global_step, **facts)
        print(f"saved: {trainer.args.output_dir}", flush=True)
    if not equal:
        raise RuntimeError(f"the ranks hold different parameters after training: {hashes}")
    checkpoint.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


__all__ = ["train"]
