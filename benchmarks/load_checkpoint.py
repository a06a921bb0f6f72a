"""Time and peak memory of loading, merging and scoring with a checkpoint of published size, on random weights in the published layout.

    python benchmarks/load_checkpoint.py --size 7b --device cuda --folder /tmp/random-7b

Writes a LLaVA-NeXT layout base (shards) and an MMDuet-layout adapter into --folder, loads them with AhaModel.from_base, merges, scores 16
random frames in bfloat16 and in float32, and prints one JSON line last: seconds, peak host memory over the weights' size, peak GPU
memory, largest differences. Each load runs in a process of its own, so that peaks are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from llava_next import LlavaNextConfig, LlavaNextForCausalLM, save_llava_next
from safetensors.torch import save_file

from aha.models import AhaModel

SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
SIZES = {
    "7b": dict(zip(TEXT, (3584, 18944, 28, 28, 4, 152064))),
    "0.5b": dict(zip(TEXT, (896, 4864, 24, 14, 2, 152000))),
    "tiny": dict(zip(TEXT, (64, 160, 4, 4, 2, 1024))),
}
IMAGE_TOKEN = {"7b": 151646, "0.5b": 151646, "tiny": 1003}
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def vision_of(size: str) -> dict[str, Any]:
    """Dimensions of the vision tower: SigLIP's, or small ones."""
    small = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {**SIGLIP, **small} if size == "tiny" else SIGLIP


def random_model(size: str, device: str, dtype: torch.dtype) -> LlavaNextForCausalLM:
    """A model of that size with weights ~ N(0, 0.02), made on the device in seconds; norms start at one."""
    config = LlavaNextConfig(
        **SIZES[size],
        vision_config=vision_of(size),
        image_token_index=IMAGE_TOKEN[size],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlavaNextForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    return model


def write_checkpoint(folder: Path, size: str, device: str) -> None:
    base, adapter = folder / "llava-base", folder / "mmduet-adapter"
    model = random_model(size, device, torch.bfloat16)
    save_llava_next(model, base)
    tensors = {}
    for name, module in model.model.layers.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in LORA_LAYERS:
            key = f"base_model.model.model.layers.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(16, module.in_features) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(module.out_features, 16) * 0.02
    for name, parameter in model.named_parameters():
        if "mm_projector" in name or name.startswith("lm_head"):
            tensors[f"base_model.model.{name}"] = parameter.detach().cpu().clone()
    for head in ("informative_head", "relevance_head"):
        tensors[f"base_model.model.{head}.weight"] = torch.randn(2, model.config.hidden_size) * 0.02
    adapter.mkdir(parents=True, exist_ok=True)
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 32,
        "target_modules": LlavaNextForCausalLM.lora_targets,
        "task_type": "CAUSAL_LM",
    }
    settings["modules_to_save"] = ["mm_projector", "lm_head", "informative_head", "relevance_head"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


def synchronize(device: str | torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read next counts it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes (Linux; getrusage would carry over the parent's)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def load_and_score(folder: Path, device: str, dtype: torch.dtype) -> dict:
    """One load in this process: seconds, peaks, and the scores of 16 random frames."""
    start_rss = peak_rss()
    start = time.perf_counter()
    model = AhaModel.from_base(folder / "llava-base", folder / "mmduet-adapter", dtype=dtype, device=device)
    synchronize(device)
    seconds = time.perf_counter() - start
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    peak_host = peak_rss()
    peak_gpu = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    frames = torch.randint(0, 256, (16, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.arange(100, 130), torch.full((16 * 49,), model.config.image_token_index)])[None].to(device)
    with torch.no_grad():
        scores = model.to_aha()(ids, frames=frames).scores()
    return {
        "load_seconds": round(seconds, 2), "weights_gib": round(weights / 2**30, 2), "host_start_gib": round(start_rss / 2**30, 2),
        "host_peak_gib": round(peak_host / 2**30, 2), "host_peak_over_weights": round((peak_host - start_rss) / weights, 3),
        "gpu_peak_gib": round(peak_gpu / 2**30, 2), "gpu_peak_over_weights": round(peak_gpu / weights, 3),
        "relevance": scores.relevance.tolist(), "informative": scores.informative.tolist(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is written (about 17 GB for 7b); reused if there")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="precisions to load in")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a load in a child process: its dtype
    args = parser.parse_args()
    if args.one:
        print(json.dumps(load_and_score(args.folder, args.device, getattr(torch, args.one))))
        return
    start = time.perf_counter()
    if not (args.folder / "mmduet-adapter" / "adapter_config.json").is_file():
        write_checkpoint(args.folder, args.size, args.device)
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
    result = {
        "benchmark": "load_checkpoint",
        "size": args.size,
        "device": args.device,
        "write_seconds": round(time.perf_counter() - start, 1),
    }
    for dtype in args.dtypes:
        command = [sys.executable, __file__, "--size", args.size, "--device", args.device, "--folder", str(args.folder), "--one", dtype]
        result[dtype] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])
    if {"bfloat16", "float32"} <= set(args.dtypes):
        for score in ("relevance", "informative"):
            pairs = zip(result["bfloat16"][score], result["float32"][score])
            result[f"largest_{score}_difference_bf16_fp32"] = max(abs(a - b) for a, b in pairs)
    for dtype in args.dtypes:
        del result[dtype]["relevance"], result[dtype]["informative"]
    gpu = torch.cuda.get_device_name() if args.device.startswith("cuda") else None
    print(
        json.dumps(
            result | {"machine": {"cpus": os.cpu_count(), "gpu": gpu, "python": platform.python_version(), "torch": torch.__version__}}
        )
    )


if __name__ == "__main__":
    main()
