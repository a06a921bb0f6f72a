"""What a run chooses from the machine that it finds, where the flags say "auto": compiled layers, the optimizer's state, recomputation.

On a GPU with bfloat16 the fast settings are on without a flag; on a CPU everything is the plain implementation. What was chosen is printed
in one line and kept in settings.json under "chosen".
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from aha.core.files import read_json
from aha.errors import UserError

GIB = 2**30
# AdamW in float32 under ZeRO takes 9 GiB for the 602 M trained parameters of 7B, which a card of this size has to spare
AMPLE_GIB = 40.0
# below this one process trains without DeepSpeed, whose float32 copies (weights, and gradients during a step) would be 4.5 GiB of it
SMALL_GIB = 32.0
# of a run's memory, for what the process takes of a card outside torch's allocator: the CUDA context, kernels, NCCL's buffers
OUTSIDE_GIB = 1.5


@dataclass(frozen=True)
class Machine:
    """`memory_gib` of a GPU; `compiler`: torch.compile can make kernels (Triton, and a C compiler for their launchers)."""

    gpu: str | None = None
    memory_gib: float = 0.0
    compiler: bool = False

    @classmethod
    def look(cls) -> Machine:
        if not torch.cuda.is_available():
            return cls()
        index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
        facts = torch.cuda.get_device_properties(index)
        compiler = importlib.util.find_spec("triton") is not None and any(
            map(shutil.which, ("cc", "gcc", "clang", os.environ.get("CC", "")))
        )
        return cls(facts.name, facts.total_memory / GIB, compiler)


@dataclass(frozen=True)
class Choices:
    """`recompute`: "auto" (as many layers as memory forces), "all", "none", or a number of decoder layers. `memory_gib`: the limit that
    "auto" plans with, None on a CPU. `zero_stage`: None without DeepSpeed."""

    device: str
    compile_layers: bool
    low_memory_optimizer: bool
    recompute: str | int
    zero_stage: int | None
    attention: str
    memory_gib: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        memory = "" if self.memory_gib is None else f", at most {self.memory_gib:.1f} GiB"
        recompute = {"auto": "recomputing what memory forces", "all": "recomputing all layers", "none": "recomputing nothing"}
        parts = (
            "compiled layers" if self.compile_layers else "layers as they are",
            f"attention {self.attention}",
            recompute.get(str(self.recompute or "none"), f"recomputing {self.recompute} layers"),
            "AdamW with 16-bit state" if self.low_memory_optimizer else "AdamW",
            "no DeepSpeed" if self.zero_stage is None else f"ZeRO stage {self.zero_stage}",
        )
        return f"chosen for {self.device}{memory}: {', '.join(parts)}"


def switch(name: str, value: str | bool) -> bool | None:
    """ "auto" -> None, "True"/"False" (or yes, 1, no, 0) -> bool. Raises UserError."""
    known = {"auto": None, "true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise UserError(f"--{name} is {value}; it must be auto, True or False.") from None


def recomputation(value: str | bool) -> str | int:
    """The value of --gradient_checkpointing -> "auto", "all", "none" or a number of layers. Raises UserError."""
    text = str(value).lower()
    if text.isdigit():
        return int(text)
    try:
        return {"auto": "auto", "true": "all", "yes": "all", "false": "none", "no": "none"}[text]
    except KeyError:
        raise UserError(f"--gradient_checkpointing is {value}; it must be auto, True, False or a number of layers.") from None


def choose(
    machine: Machine, *, compile_layers: str, low_memory_optimizer: str, gradient_checkpointing: str, max_memory: float | None,
    sixteen_bit: bool, zero_stage: int | None, attention: str,
) -> Choices:  # fmt: skip
    """Flags and machine -> what the run does. Raises UserError for flags that are wrong."""
    compiled, low = switch("compile_layers", compile_layers), switch("low_memory_optimizer", low_memory_optimizer)
    recompute = recomputation(gradient_checkpointing)
    limit = None if machine.gpu is None else min(machine.memory_gib, max_memory or machine.memory_gib)
    if max_memory is not None and max_memory <= OUTSIDE_GIB:
        raise UserError(f"--max_memory is {max_memory}; it must be above {OUTSIDE_GIB} (GiB of one GPU, of which so much is CUDA's own).")
    fast = machine.gpu is not None and sixteen_bit
    if compiled is None:
        compiled = fast and machine.compiler
    if low is None:
        low = fast and limit is not None and limit < AMPLE_GIB and zero_stage != 3
    if recompute == "auto" and machine.gpu is None:
        recompute = "all"
    return Choices(machine.gpu or "the CPU", compiled, low, recompute, zero_stage, attention, limit)


def without_deepspeed(argv: list[str], machine: Machine) -> list[str]:
    """`argv` without --deepspeed where one process trains on a small card (or a small --max_memory), the config is ZeRO-1 or 2 without
    offloading, and --low_memory_optimizer is not False: ZeRO has nobody to share with there, and its float32 copies would not fit."""
    given: dict[str, str] = {}
    for i, word in enumerate(argv):  # the last one wins, as in argparse
        name, equals, value = word.partition("=")
        given[name.lstrip("-").replace("-", "_")] = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
    try:
        limit = min(machine.memory_gib, float(given.get("max_memory") or machine.memory_gib))
    except ValueError:
        return argv  # the parser says so
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if machine.gpu is None or not alone or limit >= SMALL_GIB or not Path(given.get("deepspeed", "")).is_file():
        return argv
    zero = read_json(Path(given["deepspeed"]), "DeepSpeed config").get("zero_optimization", {})
    wanted = switch("low_memory_optimizer", given.get("low_memory_optimizer", "auto"))
    if zero.get("stage") not in (1, 2) or "offload_optimizer" in zero or wanted is False:
        return argv
    kept, skip = [], False
    for word in argv:
        if not skip and word.split("=")[0] != "--deepspeed":
            kept.append(word)
        skip = word == "--deepspeed"
    return kept
