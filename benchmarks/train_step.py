"""Time and memory of one training step, from decoded uint8 frames on the host to the optimizer's step, on random weights.

    python benchmarks/train_step.py --size 7b --frames 120                     # the trainer's fast settings
    python benchmarks/train_step.py --size 7b --frames 120 --compare 20        # and its losses against the plain implementation
    python benchmarks/train_step.py --size 7b --frames 120 --load_in_4bit
    python benchmarks/train_step.py --size tiny --frames 8 --device cpu        # a machine without a GPU

LoRA r 16 on every linear layer of the decoder, and projector, lm_head and heads whole, are trained with gradient checkpointing, batch 1,
dropout 0.05. Fast: compiled layers, bfloat16 AdamW state, logits at labels only. Plain: PEFT's layers as they are, transformers'
checkpointing, an attention mask, logits at every position, float32 master weights and AdamW. Weights are N(0, 0.02), made on the device
in seconds; the loss is aha's on random labels. Prints a table for people and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch
from llava_next import TOWER_BATCH, build_empty
from load_checkpoint import IMAGE_TOKEN, SIZES, synchronize, vision_of
from torch import Tensor, nn

from aha.errors import UserError, run_command
from aha.models import AhaConfig, AhaModel, aha_losses
from aha.models.adapters import add_lora, modules_to_save, new_lora, trainable
from aha.models.quantized import quantize_decoder
from aha.training.compiled import compile_layers
from aha.training.optimizer import LowMemoryAdamW
from aha.training.recompute import Cost, Recompute
from aha.training.speed import ModelFlops, peak_flops

GIB = 2**30


def random_model(size: str, device: torch.device, dtype: torch.dtype, seed: int, dropout: float) -> AhaModel:
    """A model with LoRA whose weights are N(0, 0.02), made on `device`; LoRA's B starts at N(0, 0.002), so that A has a gradient."""
    torch.manual_seed(seed)
    config = AhaConfig(
        **SIZES[size], vision_config=vision_of(size), image_token_index=IMAGE_TOKEN[size],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    model = build_empty(AhaModel, config, "sdpa")
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            value = value.fill_(1) if "norm" in type(module).__name__.lower() and name == "weight" else value.normal_(0, 0.02)
            setattr(module, name, nn.Parameter(value))
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = buffer
    add_lora(model, new_lora(dropout=dropout))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(device=device, dtype=dtype)
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.002)
    trainable(model, modules_to_save(type(model)))
    return model.train()


class Sample:
    """A conversation: 26 tokens of text, `frames` frames, and a reply of 10 tokens that is learned.

    Frames [F,3,384,384] are on the host, as the video reader gives them.
    """

    def __init__(self, model: AhaModel, frames: int, seed: int, device: torch.device):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (frames, 3, 24, 24), generator=generator, dtype=torch.uint8)
        self.frames = pixels.repeat_interleave(16, 2).repeat_interleave(16, 3)
        if device.type == "cuda":
            self.frames = self.frames.pin_memory()
        words = torch.randint(0, 1000, (36,), generator=generator)
        image = torch.full((frames * model.config.tokens_per_frame,), model.config.image_token_index)
        ids = torch.cat([words[:26], image, words[26:]])
        labels = torch.full_like(ids, -100)
        labels[-11:-1] = ids[-10:]
        ends = torch.arange(26 + model.config.tokens_per_frame - 1, 26 + len(image), model.config.tokens_per_frame)
        relevance = torch.full(ids.shape, -100.0)
        relevance[ends] = torch.rand(frames, generator=generator)
        informative = torch.full_like(ids, -100)
        informative[ends] = torch.randint(0, 2, (frames,), generator=generator)
        self.ids, self.labels, self.informative, self.relevance = (t[None].to(device) for t in (ids, labels, informative, relevance))

    def loss(self, model: AhaModel, plain: bool = False, tower_batch: int = TOWER_BATCH) -> Tensor:
        inputs = {"input_ids": self.ids, "frames": self.frames, "tower_batch": tower_batch}
        if plain:  # logits of all positions, and an explicit mask
            everywhere = torch.ones_like(self.labels, dtype=torch.bool)
            output = model(**inputs, attention_mask=torch.ones_like(self.ids), logits_mask=everywhere)
            output.logits_MV = output.logits_MV[(self.labels != -100).flatten()]
        else:
            output = model(**inputs, logits_mask=self.labels != -100)
        return aha_losses(output, self.labels, self.informative, self.relevance).total


def run_fast(args: argparse.Namespace, device: torch.device, dtype: torch.dtype, steps: int, dropout: float, timed: bool) -> dict:
    """`steps` optimizer steps with the trainer's fast settings -> losses, and times after `args.warmup` steps if `timed`."""
    model = random_model(args.size, device, dtype, 0, dropout)
    model_flops = ModelFlops(model)
    if args.load_in_4bit:
        quantize_decoder(model, device)
    if args.compile:
        compile_layers(model)
        Recompute(model, args.recompute, Cost.estimate(model.config, True, 2))
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    low_memory = args.optimizer == "low_memory"
    optimizer = LowMemoryAdamW(parameters, lr=2e-5) if low_memory else torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0, fused=True)
    samples = [Sample(model, args.frames, k, device) for k in range(4)]
    losses, seconds, waits = [], [], []
    for step in range(steps):
        if not timed:  # as in one epoch: each step sees another sample
            samples = [Sample(model, args.frames, step, device)]
        if device.type == "cuda" and step == args.warmup:
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        begin = time.perf_counter()
        loss = samples[step % len(samples)].loss(model)
        synchronize(device)
        middle = time.perf_counter()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
        waits.append(middle - begin)
        losses.append(loss.item())
    result = {"losses": losses}
    if timed:
        tokens = samples[0].ids.numel()
        step_s = sorted(seconds[args.warmup :])[len(seconds[args.warmup :]) // 2]
        flops = model_flops(1, tokens, args.frames)
        result |= {
            "step_s": step_s, "forward_s": sorted(waits[args.warmup :])[len(waits[args.warmup :]) // 2], "first_step_s": seconds[0],
            "tokens": tokens, "tokens_per_s": tokens / step_s, "frames_per_s": args.frames / step_s, "model_tflops": flops / 1e12,
            "trained_parameters": sum(p.numel() for p in parameters),
        }  # fmt: skip
        result["preprocessing_s"] = preprocessing_seconds(model, samples[0], device)
        if peak := peak_flops(device):
            result["mfu"] = flops / step_s / peak
        if device.type == "cuda":
            result["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
            result["reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
    return result


@torch.no_grad()
def preprocessing_seconds(model: AhaModel, sample: Sample, device: torch.device) -> float:
    """Bytes to the device and normalisation, part of the step's time."""
    model.pixel_values(sample.frames)
    synchronize(device)
    begin = time.perf_counter()
    model.pixel_values(sample.frames)
    synchronize(device)
    return time.perf_counter() - begin


def run_plain(args: argparse.Namespace, device: torch.device, dtype: torch.dtype, steps: int) -> list[float]:
    """Losses of the plain implementation; dropout off, so that both see the same numbers."""
    model = random_model(args.size, device, dtype, 0, 0.0)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    masters = [nn.Parameter(p.detach().float()) for p in parameters]
    optimizer = torch.optim.AdamW(masters, lr=2e-5, weight_decay=0.0)
    losses = []
    for step in range(steps):
        loss = Sample(model, args.frames, step, device).loss(model, plain=True)
        loss.backward()
        for master, parameter in zip(masters, parameters):
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, parameters):
                parameter.copy_(master)
        losses.append(loss.item())
    return losses


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("train_step.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7b", choices=SIZES, help="model dimensions (default %(default)s)")
    parser.add_argument("--frames", type=int, default=120, help="frames of the sample (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed optimizer steps (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of weights (default %(default)s)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="run the layers as they are")
    parser.add_argument("--recompute", type=int, default=99, help="compiled layers that are recomputed (default: all)")
    parser.add_argument("--optimizer", default="low_memory", choices=("low_memory", "adamw"), help="AdamW's state (default %(default)s)")
    parser.add_argument("--load_in_4bit", action="store_true", help="4-bit decoder weights (QLoRA)")
    parser.add_argument("--compare", type=int, default=0, metavar="STEPS", help="also compare so many losses with plain")
    args = parser.parse_args(argv)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch finds no GPU; use --device cpu --size tiny.")
    result = run_fast(args, device, dtype, args.warmup + args.steps, 0.05, timed=True)
    result.pop("losses")
    if args.compare:
        fast = run_fast(args, device, dtype, args.compare, 0.0, timed=False)["losses"]
        plain = run_plain(args, device, dtype, args.compare)
        result["largest_relative_loss_difference"] = max(abs(a - b) / abs(b) for a, b in zip(fast, plain))
        result["losses"] = {"fast": fast, "plain": plain}
        for step, (a, b) in enumerate(zip(fast, plain), 1):
            print(f"step {step:3d}   fast {a:.6f}   plain {b:.6f}   difference {a - b:+.2e}")
    for name, value in result.items():
        if isinstance(value, (int, float)):
            print(f"{name:36s}{value:.4g}" if isinstance(value, float) else f"{name:36s}{value:,}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    settings = {key: getattr(args, key) for key in ("size", "frames", "dtype", "compile", "recompute", "optimizer", "load_in_4bit")}
    print(json.dumps({"benchmark": "train_step", "device": name, "torch": torch.__version__, **settings, **result}))


if __name__ == "__main__":
    run_command(main)
