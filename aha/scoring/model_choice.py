"""Which model: the flags of every command that loads one, and the only place that chooses device and number format.

    choice = ModelChoice("lmms-lab/llava-onevision-qwen2-7b-ov", "path/or/hub-id/of/an/adapter")
    model, tokenizer = choice.load()

Importing this module is light: torch is imported when a model is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.core.flags import check_choices, flag
from aha.errors import UserError

if TYPE_CHECKING:
    from aha.models import AhaModel

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
DEMO = Path(__file__).parents[1] / "demo" / "checkpoints"
DEMO_BASE = DEMO / "llava-onevision-qwen2-demo-ov"
DEMO_ADAPTER = DEMO / "aha-demo"  # trained as `train_on_tvsum.sh --demo` does


@dataclass(frozen=True)
class ModelChoice:
    """Raises UserError for what cannot be: an unknown number format, an adapter without its base."""

    llm_pretrained: str = flag(
        "demo", "base checkpoint (with --lora_pretrained) or a whole Aha model; demo: the embedded demo model", metavar="DIR|ID"
    )
    lora_pretrained: str | None = flag(None, "LoRA adapter on the base (MMDuet, Aha or our own)", metavar="DIR|ID")
    dtype: str | None = flag(None, "number format (default: bfloat16 on cuda, float32 on cpu)", choices=DTYPES)
    device: str | None = flag(None, "cpu or cuda (default: cuda where there is one)")
    attn_implementation: str | None = flag(None, "attention kernel (default: the best there is)", choices=ATTENTIONS)

    def __post_init__(self) -> None:
        check_choices(self)
        if self.is_demo and self.lora_pretrained is not None:
            raise UserError("an adapter needs its base model: give --llm_pretrained with --lora_pretrained.")

    @property
    def is_demo(self) -> bool:
        return self.llm_pretrained == "demo"

    @property
    def sources(self) -> list[str]:
        """Folders or hub ids of the base and, where there is one, the adapter."""
        if self.is_demo:
            return [str(DEMO_BASE), str(DEMO_ADAPTER)]
        return [os.fspath(source) for source in (self.llm_pretrained, self.lora_pretrained) if source is not None]

    @property
    def name(self) -> str:
        """For reports."""
        return "the embedded demo model" if self.is_demo else " + ".join(self.sources)

    def weights_key(self) -> list[Any]:
        """What tells these weights and how they compute from others: settings, and size and time of change of the files."""
        from llava_next import resolve_folder

        files = [path for source in self.sources for path in sorted(resolve_folder(source).glob("*.safetensors"))]
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return [self.sources, self.dtype, self.device, self.attn_implementation, stats]

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
        dtype = getattr(torch, self.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
        settings: dict[str, Any] = {"dtype": dtype, "device": device, "attn_implementation": self.attn_implementation}
        make = AhaModel.from_base if len(self.sources) == 2 else AhaModel.from_pretrained
        model = make(*self.sources, **settings)
        return model.eval(), tokenizer_of(model)
