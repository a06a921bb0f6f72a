"""The flags of `python -m aha.train`: three dataclasses, one per concern. transformers' TrainingArguments gives the rest."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from llava_next import pick_attention
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import DataClassType

from aha.conversation import checked_system_prompt
from aha.core.addresses import hide_argument
from aha.core.extras import need
from aha.errors import UserError
from aha.training.machine import Choices, Machine, choose, without_deepspeed


@dataclass
class ModelArguments:
    """Which model is trained, and which part of it."""

    llm_pretrained: str = field(
        default="lmms-lab/llava-onevision-qwen2-7b-ov", metadata={"help": "Base checkpoint, either published layout: folder or hub id."}
    )
    lora_pretrained: str | None = field(
        default=None, metadata={"help": "LoRA adapter to start from: folder or hub id (MMDuet, Aha or our own). Default: a new adapter."}
    )
    objective: Literal["aha", "mmduet"] = field(
        default="aha",
        metadata={"help": "Loss: aha (relevance and its uncertainty; MMDuet's heads are converted) or mmduet (two classifications)."},
    )
    loss_weights: list[str] | None = field(
        default=None, metadata={"help": "Weights of loss parts, such as relevance=8 tv=0.05 (lm, informative, relevance, tv, uncertainty)."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of a new adapter (an adapter given by --lora_pretrained keeps its own)."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of a new adapter: LoRA adds alpha / r * B A."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on LoRA's input, from 0 to below 1."})
    lora_targets: list[str] | None = field(
        default=None, metadata={"help": "Layers of the decoder that a new adapter changes, such as q_proj v_proj. Default: all of them."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained whole beside LoRA: all heads, and by default mm_projector lm_head."}
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = field(
        default=None, metadata={"help": "Attention kernel. Default: flash_attention_2 where it is installed and there is a GPU, else sdpa."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: hold the frozen decoder in 4 bits (training fits a 24 GB card). Not with ZeRO-3."}
    )


@dataclass
class DataArguments:
    """Which videos, and how many frames of them."""

    dataset_config: str = field(default="configs/datasets/tvsum.json", metadata={"help": "Mixture of data sets (JSON)."})
    frame_fps: float = field(default=1.0, metadata={"help": "Frames a second of video, where the mixture does not say otherwise."})
    max_num_frames: int | None = field(
        default=None, metadata={"help": "Most frames of a sample, where the mixture does not say otherwise (default 128)."}
    )
    fold: int = field(default=0, metadata={"help": "TVSum: which fifth (0 to 4) is held out for testing; -1 trains on all videos."})
    splits: str | None = field(
        default=None,
        metadata={
            "help": "TVSum: splits file (PGL-SUM, DSNet, CSTA), or umt: UMT's fixed split; --split K holds out its test videos, in place "
            "of --fold."
        },
    )
    split: int | None = field(default=None, metadata={"help": "Which split of --splits, from 0; not needed where there is one."})
    limit: int | None = field(default=None, metadata={"help": "Use at most this many samples of each data set (smoke runs)."})
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "First words of every conversation; kept in settings.json, scoring takes them from there. Default: those that "
            "--lora_pretrained was trained with, else MMDuet's."
        },
    )
    video_backend: Literal["pyav", "decord", "torchcodec"] = field(default="pyav", metadata={"help": "Who decodes the videos."})
    vision_cache: str | None = field(
        default=None, metadata={"help": "Folder for the frozen tower's features: computed before training, no video is read after that."}
    )


@dataclass
class RunArguments(TrainingArguments):
    """transformers' TrainingArguments with the published hyper-parameters as defaults (Aha, arXiv 2509.16421, appendix A)."""

    output_dir: str = field(default="outputs/aha", metadata={"help": "Run folder: adapter, logs and checkpoints. One run, one folder."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Highest learning rate, after warm-up."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate over the run."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: a fraction of all steps (below 1) or a number of steps."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Samples per GPU and forward pass."})
    gradient_accumulation_steps: int = field(default=16, metadata={"help": "Forward passes per optimizer step."})
    gradient_checkpointing: str = field(  # type: ignore[assignment]  # of transformers' bool it makes a choice
        default="auto",
        metadata={
            "help": "Decoder layers that keep only their input and compute the rest again: auto (on a GPU: as few as memory forces, for "
            "each batch anew; else all), True (all), False (none), or how many."
        },
    )
    max_memory: float | None = field(default=None, metadata={"help": "GiB of a GPU that the run may take. Default: all of it."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the mixture."})
    logging_steps: float = field(default=1, metadata={"help": "Optimizer steps between two log lines."})
    save_steps: float = field(default=100, metadata={"help": "Optimizer steps between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept: the last N, and the best by validation."})
    ddp_timeout: int = field(default=600, metadata={"help": "Seconds after which a collective operation that hangs ends the job."})
    log_level: str = field(default="error", metadata={"help": "What transformers and DeepSpeed say on the console."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Unused: a loss that is not finite ends the run."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Unused: batches carry more than the model's inputs."})
    metric_for_best_model: str = field(default="kendall_tau", metadata={"help": "Validation metric: kendall_tau, spearman_rho or f1_15."})
    greater_is_better: bool = field(default=True, metadata={"help": "Whether a greater value of it is better."})
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "auto: go on from the last complete checkpoint of --output_dir, if any; none: start anew, removing earlier ones; "
            "or a checkpoint folder."
        },
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes per GPU that read videos ahead."})
    low_memory_optimizer: str = field(
        default="auto",
        metadata={
            "help": "AdamW with 16-bit state, 4 to 6 bytes a trained parameter instead of 12: True, False, or auto (where a GPU has less "
            "than 40 GiB, not with ZeRO-3)."
        },
    )
    compile_layers: str = field(
        default="auto",
        metadata={"help": "torch.compile for decoder layers, faster after a minute or two: True, False, or auto (on a GPU in 16 bits)."},
    )
    group_by_length: bool = field(
        default=True, metadata={"help": "Samples of similar length go to all GPUs at the same time (within an optimizer step)."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str) and "," in self.report_to:
            self.report_to = self.report_to.split(",")
        self.recomputation = self.gradient_checkpointing
        self.gradient_checkpointing = False  # type: ignore[assignment]  # transformers' own, which is switched on in run.py
        super().__post_init__()

    @property
    def loggers(self) -> list[str]:
        """`report_to` as a list."""
        return [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or ())

    @property
    def chosen(self) -> Choices:
        """What `parse` made of the flags on this machine."""
        return self._chosen

    @chosen.setter
    def chosen(self, choices: Choices) -> None:
        self._chosen = choices


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, RunArguments]:
    """Parse the command line. Without a GPU the run is set up for the CPU: gloo, and no DeepSpeed kernel that needs a compiler.

    Raises UserError for values that cannot work together.
    """
    machine = Machine.look()
    argv = without_deepspeed(argv, machine)
    with_deepspeed = any(a.split("=")[0] == "--deepspeed" for a in argv)
    if with_deepspeed:
        need("deepspeed", "train", "--deepspeed")
    if with_deepspeed and "WORLD_SIZE" not in os.environ:
        run_alone()
    if not torch.cuda.is_available():
        argv = ["--use_cpu", "True", "--dataloader_pin_memory", "False", *argv]
        if "WORLD_SIZE" in os.environ:
            argv = ["--ddp_backend", "gloo", *argv]
        if with_deepspeed:
            import deepspeed

            # would be compiled at the first step (a minute or more, and a C++ compiler); gloo does the same work
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    description = "Fine-tune the highlight model."
    classes = [DataClassType(arguments) for arguments in (ModelArguments, DataArguments, RunArguments)]
    parser = HfArgumentParser(classes, prog="python -m aha.train", description=description)
    try:
        model, data, run, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise UserError(f"flags cannot be used as given: {str(error).splitlines()[0]}") from error
    if rest:
        raise UserError(f"unknown flag {rest[0]}; see python -m aha.train --help.")
    for logger in {"wandb", "tensorboard"} & set(run.loggers):
        need(logger, "train", f"--report_to {logger}")
    run.chosen = chosen(machine, model, run)
    run.compile_layers, run.low_memory_optimizer = run.chosen.compile_layers, run.chosen.low_memory_optimizer
    check(model, data, run)
    hide_token(run)
    return model, data, run


def chosen(machine: Machine, model: ModelArguments, run: RunArguments) -> Choices:
    return choose(
        machine if not run.use_cpu else Machine(), compile_layers=run.compile_layers, low_memory_optimizer=run.low_memory_optimizer,
        gradient_checkpointing=run.recomputation, max_memory=run.max_memory, sixteen_bit=run.bf16,
        zero_stage=None if run.deepspeed_plugin is None else run.deepspeed_plugin.zero_stage,
        attention=model.attn_implementation or pick_attention(run.device),
    )  # fmt: skip


def hide_token(run: RunArguments) -> None:
    """A hub token of the command line goes into the environment, and out of everything that is written: settings, card, wandb's files."""
    if run.hub_token:
        os.environ["HF_TOKEN"] = run.hub_token
        hide_argument(run.hub_token, "***")
        sys.argv = [word.replace(run.hub_token, "***") for word in sys.argv]  # wandb keeps the command line too
        run.hub_token = None


def run_alone() -> None:
    """What torchrun would set for one process: DeepSpeed wants a process group even then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def check(model: ModelArguments, data: DataArguments, run: RunArguments) -> None:
    """Values that are out of range. Raises UserError."""
    positive = {
        "frame_fps": data.frame_fps, "max_num_frames": data.max_num_frames, "limit": data.limit, "lora_r": model.lora_r,
        "per_device_train_batch_size": run.per_device_train_batch_size, "gradient_accumulation_steps": run.gradient_accumulation_steps,
    }  # fmt: skip
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise UserError(f"--{name} is {value}; it must be above 0.")
    if run.deepspeed_plugin is not None and run.deepspeed_plugin.zero_stage == 3 and model.load_in_4bit:
        raise UserError("--load_in_4bit cannot be used with ZeRO-3, which takes weights apart; use configs/deepspeed/zero2.json.")
    checked_system_prompt(data.system_prompt)
    if model.lora_targets and model.lora_pretrained:
        raise UserError("--lora_targets is for a new adapter; the one of --lora_pretrained keeps its layers, leave one of the two out.")
    if data.splits is None and data.split is not None:
        raise UserError("--split K is for --splits FILE: which split of the file is held out.")
    if data.splits is not None and run.eval_strategy != "no":
        raise UserError("--eval_strategy needs validation videos, which published splits do not have; use --fold, or leave it out.")
    if not -1 <= data.fold <= 4:
        raise UserError(f"--fold is {data.fold}; it must be 0 to 4, or -1 for no held-out videos.")
    if run.eval_strategy != "no" and data.fold < 0:
        raise UserError("--eval_strategy needs held-out videos; give --fold 0 to 4 with it.")
    if not 0 <= model.lora_dropout < 1:
        raise UserError(f"--lora_dropout is {model.lora_dropout}; it must be at least 0 and below 1.")


# What decides the losses of a run: a resumed run must agree in all of these.
EXACT = (
    "seed", "data_seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "bf16", "fp16",
    "group_by_length", "optim", "low_memory_optimizer", "compile_layers",
)  # fmt: skip


def settings(model: ModelArguments, data: DataArguments, run: RunArguments) -> dict[str, Any]:
    """Everything that decides the result, as plain JSON values; written beside the weights and compared on resume. No secrets are in it."""
    training = run.to_dict()
    return {
        "model": asdict(model), "data": asdict(data), "training": {name: training[name] for name in EXACT}, "chosen": run.chosen.as_dict(),
        "command": [*sys.argv],
    }  # fmt: skip


BEFORE = {"video_backend": "pyav"}  # what runs of 18f6d84, which had no such setting, did


FINGERPRINTS = {"base_content": "weights of the base", "adapter_content": "weights of the starting adapter"}


def known(source: dict[str, Any]) -> dict[str, Any]:
    """A source of a mixture without the hash of its samples, which runs of before do not have."""
    return {name: value for name, value in source.items() if name != "content"}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of settings that differ, "flag: theirs -> ours"; the command line and where features are kept do not matter."""
    lines = []
    for part in ("model", "data", "training"):
        for name, value in ours[part].items():
            before = theirs.get(part, {}).get(name, BEFORE.get(name))
            if name != "vision_cache" and before != value:
                lines.append(f"--{name}: {before} -> {value}")
    for name, what in FINGERPRINTS.items():
        if theirs.get(name) is not None and ours[name] != theirs[name]:
            lines.append(f"{what}: {theirs[name]} -> {ours[name]}")
    before = theirs.get("mixture") or []
    if [known(source) for source in ours["mixture"]] != [known(source) for source in before]:
        lines.append(f"usable samples: {theirs.get('mixture')} -> {ours['mixture']}")
    lines += [
        f"samples, labels or requests of {source['name']}: {earlier['content']} -> {source['content']}"
        for source, earlier in zip(ours["mixture"], before)
        if earlier.get("content", source["content"]) != source["content"]
    ]
    return lines
