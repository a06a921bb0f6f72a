"""What the streaming benchmarks share: a random model, a tokenizer, pictures, and the hardware's floors.

Shapes: N frames; sizes as in load_checkpoint.py.
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import numpy as np
import torch
from llava_next import build_empty
from load_checkpoint import IMAGE_TOKEN, SIZES, synchronize, vision_of
from torch import nn

from aha.conversation import load_tokenizer
from aha.core.memory import peak_mib
from aha.models import AhaConfig, AhaModel
from aha.models.model import FrameScores
from aha.scoring.model_choice import DEMO_BASE

# (bytes a second, bf16 FLOPs a second) of the accelerators that figures were published for
DEVICES = {"H100": (3.35e12, 9.89e14), "H200": (4.8e12, 9.89e14), "A100": (2.0e12, 3.12e14)}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=tuple(SIZES), default="7b", help="7b needs a GPU with 40 GB")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--no_compile", action="store_true", help="without torch.compile (saves about a minute of warm-up)")


def settle(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    device = torch.device(args.device)
    return device, getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))


def random_model(size: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> AhaModel:
    """Weights ~ N(0, 1 / hidden size), made on the device in seconds; norms are one; heads are float32, as after loading a checkpoint."""
    torch.manual_seed(seed)
    config = AhaConfig(
        **SIZES[size], vision_config={**vision_of(size), "vision_use_head": False}, image_token_index=IMAGE_TOKEN[size],
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    model = build_empty(AhaModel, config, "sdpa")
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        in_head = owner.endswith("_head") and owner != "lm_head"
        value = torch.empty(parameter.shape, dtype=torch.float32 if in_head else dtype, device=device)
        is_scale = "norm" in owner and leaf == "weight"
        value = value.fill_(1) if is_scale else value.normal_(0, config.hidden_size**-0.5)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model.eval()


def tokenizer() -> Any:
    """The small tokenizer that ships with the demo: the words do not matter here."""
    return load_tokenizer(DEMO_BASE)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [N, 3, 384, 384] on the host: coloured squares that change from frame to frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 12, 12), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 1, 32, 32), np.uint8))


def floors(model: AhaModel, device: torch.device) -> dict[str, float] | None:
    """Frames a second that the device could score at best: online (weights read once a frame) and offline (all matrix products at the
    nominal rate, attention to the past left out). None for an unknown device."""
    if device.type != "cuda":
        return None
    name = next((known for known in DEVICES if known in torch.cuda.get_device_name(device)), None)
    if name is None:
        return None
    bandwidth, flops = DEVICES[name]
    decoder = sum(p.numel() for n, p in model.named_parameters() if n.startswith("model.layers"))
    tower = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n or "mm_projector" in n)
    vision, patches = model.config.vision, model.config.patches_per_side**2
    tower_flops = 2 * tower * patches + 4 * patches**2 * vision.hidden_size * vision.num_hidden_layers
    width = 2  # bytes of a weight
    return {
        "online": 1 / ((decoder + tower) * width / bandwidth + tower_flops / flops),
        "offline": flops / (2 * decoder * model.config.tokens_per_frame + tower_flops),
    }


def timed(device: torch.device, function, *args) -> tuple[float, Any]:
    """(seconds, result), the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    result = function(*args)
    synchronize(device)
    return time.perf_counter() - start, result


def gpu_gib(device: torch.device, peak: bool = True) -> float | None:
    if device.type != "cuda":
        return None
    return round((torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)) / 2**30, 3)


def environment(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    return {
        "size": args.size, "torch": torch.__version__, "compiled": not args.no_compile,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "host_peak_gib": round(peak_mib() / 1024, 2),
    }  # fmt: skip


def percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(np.array(seconds) * 1e3, [50, 95, 99, 100])
    return dict(zip(("p50_ms", "p95_ms", "p99_ms", "max_ms"), (round(float(v), 3) for v in values)))


def compare(a: FrameScores, b: FrameScores) -> dict[str, float]:
    """Largest differences, and the smallest Spearman rank correlation of the heads."""
    result: dict[str, float] = {}
    correlations = []
    for name, x, y in zip(FrameScores._fields, a, b):
        x, y = x.double().cpu().numpy(), y.double().cpu().numpy()
        result[f"max_diff_{name}"] = float(np.abs(x - y).max())
        ranks = np.argsort(np.argsort(x)), np.argsort(np.argsort(y))
        correlations.append(float(np.corrcoef(*ranks)[0, 1]))
    result["rank_correlation"] = round(min(correlations), 5)
    return {k: float(f"{v:.3g}") if k.startswith("max") else v for k, v in result.items()}
