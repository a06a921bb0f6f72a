"""Which model: the flags of every command that loads one, and the only place that chooses device and number format.

    choice = ModelChoice("lmms-lab/llava-onevision-qwen2-7b-ov", "path/or/hub-id/of/an/adapter")
    choice = ModelChoice(model="mmduet-7b")
    model, tokenizer = choice.load()

Importing this module is light: torch is imported when a model is loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.core.extras import need
from aha.core.files import read_json
from aha.core.flags import add_flags, check_choices, flag, from_args
from aha.errors import UserError
from aha.scoring.known_models import DEMO, KNOWN, fetch, is_hub_id

if TYPE_CHECKING:
    from aha.models import AhaModel

WEIGHTS = {"bf16": None, "8bit": 8, "4bit": 4}  # name -> bits of quantized weights
WEIGHT_FLAGS = ("model", "llm_pretrained", "lora_pretrained")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
READ_WITH = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
DEMO_BASE = DEMO / "llava-onevision-qwen2-demo-ov"
DEMO_ADAPTER = DEMO / "aha-demo"  # trained as `train_on_tvsum.sh --demo` does


@dataclass(frozen=True)
class ModelChoice:
    """Raises UserError for what cannot be: an unknown number format, an adapter without its base, a model named twice."""

    model: str | None = flag(
        None, f"{', '.join(KNOWN)} (aha models), or a folder or hub id of a whole model or of an adapter that names its base",
        metavar="NAME", kw_only=True,
    )  # fmt: skip
    llm_pretrained: str = flag(
        "demo", "base checkpoint (with --lora_pretrained) or a whole Aha model; demo: the embedded demo model", metavar="DIR|ID"
    )
    lora_pretrained: str | None = flag(None, "LoRA adapter on the base (MMDuet, Aha or our own)", metavar="DIR|ID")
    dtype: str | None = flag(None, "number format (default: bfloat16 on cuda, float32 on cpu)", choices=DTYPES)
    weights: str | None = flag(
        None, "for a smaller card: the decoder's weights in 16 bits, in 8 (needs torchao) or in 4 (default: as --dtype)",
        metavar="|".join(WEIGHTS), kw_only=True,
    )  # fmt: skip
    device: str | None = flag(None, "cpu or cuda (default: cuda where there is one)")
    attn_implementation: str | None = flag(None, "attention kernel (default: the best there is)", choices=ATTENTIONS)

    def __post_init__(self) -> None:
        check_choices(self)
        if self.weights is not None and self.weights not in WEIGHTS:
            grid = "; what a grid search found is given as --fusion FILE" if self.weights.endswith(".json") else ""
            raise UserError(f"--weights {self.weights} is none of {', '.join(WEIGHTS)}{grid}.")
        if self.weights == "bf16" and self.dtype not in (None, "bfloat16"):
            raise UserError(f"--weights bf16 means --dtype bfloat16, and --dtype {self.dtype} was given; leave one of them out.")
        if self.weights == "8bit":
            need("torchao", "quantized", "--weights 8bit")
        if self.model is not None and (self.llm_pretrained != "demo" or self.lora_pretrained is not None):
            raise UserError("--model names base and adapter together: give it, or --llm_pretrained with --lora_pretrained, not both.")
        if self.is_demo and self.lora_pretrained is not None:
            raise UserError("an adapter needs its base model: give --llm_pretrained with --lora_pretrained.")
        if self.model is not None and self.model not in KNOWN and not Path(self.model).expanduser().is_dir() and not is_hub_id(self.model):
            raise UserError(f"--model {self.model} is no name ({', '.join(KNOWN)}), no folder here and no hub id (org/name).")

    @property
    def is_demo(self) -> bool:
        return (self.model or self.llm_pretrained) == "demo"

    @property
    def sources(self) -> list[str]:
        """Folders or hub ids of the base and, where there is one, the adapter. Whether what --model names is a whole model or an adapter is
        seen in its files, so a hub id there is downloaded."""
        name = self.model or self.llm_pretrained
        if name in KNOWN and self.lora_pretrained is None:
            return KNOWN[name].sources()
        if self.model is not None:
            return [*_base_of(fetch(name)), name]
        return [os.fspath(source) for source in (self.llm_pretrained, self.lora_pretrained) if source is not None]

    @property
    def name(self) -> str:
        """For reports."""
        if self.is_demo:
            return "the embedded demo model"
        return self.model if self.model in KNOWN else " + ".join(self.sources)

    def fetch(self) -> list[Path]:
        """The folders of the sources; what is not here is downloaded, its size said first. Raises UserError."""
        return [fetch(source) for source in self.sources]

    def weights_key(self) -> list[Any]:
        """What tells these weights and how they compute from others: settings, size and time of change of the weight files, and the content
        of the files that say how they are read (the adapter's scale, the tokenizer). The setting `weights` is part of it only where it is
        given: it came later, and runs that were begun before it must still find their parts."""
        files = [path for folder in self.fetch() for path in sorted(folder.iterdir())]
        stats: list[Any] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.suffix in (".safetensors", ".bin")]
        stats += [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files if p.name in READ_WITH]
        return [self.sources, self.dtype, self.device, self.attn_implementation, *([self.weights] if self.weights else []), stats]

    def load(self) -> tuple[AhaModel, Any]:
        """(model in evaluation mode, tokenizer). Under torchrun each process takes the GPU of its LOCAL_RANK. Raises UserError."""
        import torch

        from aha.models import AhaModel
        from aha.streaming.session import tokenizer_of

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"--device {device} but torch sees no GPU; use --device cpu or repair the driver.")
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        if self.is_demo and (missing := [path for path in (DEMO_BASE, DEMO_ADAPTER) if not path.is_dir()]):
            raise UserError(
                f"the embedded demo model is not complete: {missing[0]} is not there; install the project again or name a model."
            )
        self.fetch()
        half = device.startswith("cuda") or self.weights == "bf16"
        dtype = getattr(torch, self.dtype or ("bfloat16" if half else "float32"))
        bits = WEIGHTS[self.weights] if self.weights else None
        # weights that become smaller pass through the host: whole they may not fit on the device
        settings: dict[str, Any] = {
            "dtype": dtype, "device": device if bits is None else "cpu", "attn_implementation": self.attn_implementation,
        }  # fmt: skip
        make = AhaModel.from_base if len(self.sources) == 2 else AhaModel.from_pretrained
        model = make(*self.sources, **settings)
        if bits is not None:
            from aha.models.quantized import quantize_weights

            quantize_weights(model, bits, torch.device(device))
        return model.eval(), tokenizer_of(model)


def _base_of(folder: Path) -> list[str]:
    """[base] of an adapter folder, as its adapter_config.json names it; [] for a whole model. Raises UserError for an adapter without
    one."""
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return []
    if not read_json(settings, "adapter settings").get("base_model_name_or_path"):
        raise UserError(f"{settings} does not name its base model; give --llm_pretrained BASE --lora_pretrained {folder}.")
    from aha.models.adapters import base_of  # torch

    return [os.fspath(base_of(folder))]


def base_and_adapter(args: argparse.Namespace, download: bool = False) -> tuple[str, str]:
    """Base and adapter that the flags WEIGHT_FLAGS name, for training and merging. download: fetch them now (on the first rank; the size is
    said first).

    Raises UserError: none named, named twice, a model without an adapter.
    """
    choice = choice_of(args)
    if len(choice.sources) != 2:
        raise UserError(f"{choice.name} is no adapter on a base; give --llm_pretrained BASE --lora_pretrained ADAPTER.")
    if download and int(os.environ.get("RANK", 0)) == 0:
        choice.fetch()
    return choice.sources[0], choice.sources[1]


def spelled_out(argv: Sequence[str], download: bool = False) -> list[str]:
    """`--model NAME` as the --llm_pretrained and --lora_pretrained that it stands for. Raises UserError as `base_and_adapter`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser, ModelChoice, only=WEIGHT_FLAGS)
    given, rest = parser.parse_known_args(argv)
    if not hasattr(given, "model"):
        return list(argv)
    base, adapter = base_and_adapter(given, download)
    return [*rest, "--llm_pretrained", base, "--lora_pretrained", adapter]


def choice_of(args: argparse.Namespace) -> ModelChoice:
    """The model of the flags, for commands that have none by default. Raises UserError where none is named."""
    if getattr(args, "model", None) is None and not hasattr(args, "llm_pretrained"):
        raise UserError("which model? Give --model NAME (aha models lists them), or --llm_pretrained with --lora_pretrained.")
    return from_args(ModelChoice, args)
