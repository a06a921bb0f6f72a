"""Which forms of the training step's two largest parts are fastest on this GPU: the vision tower, and a linear layer with LoRA.

    python benchmarks/train_kernels.py                                              # a GPU, 7B dimensions, bfloat16
    python benchmarks/train_kernels.py --device cpu --size tiny --frames 4          # do the forms agree?

Milliseconds are medians, after compiling. The tower: the frames of one sample without gradient. The linear layers: the decoder's widest
ones, forward and backward, 49 tokens a frame, dropout on. "one product" writes LoRA's B beside the frozen weight, so that one matrix
product gives x W^T + (x A^T) B^T. Differences are relative, against the form that the trainer uses. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from llava_next.checkpoint import build_empty
from llava_next.fused_tower import fused_mlp
from llava_next.model import run_layer
from load_checkpoint import IMAGE_TOKEN, SIZES, vision_of
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from aha.errors import run_command
from aha.models import AhaConfig, AhaModel
from aha.training.compiled import SeededDropout


def milliseconds(function, device: torch.device, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[2:])


def difference(value: Tensor, reference: Tensor) -> float:
    return ((value.float() - reference.float()).norm() / reference.float().norm()).item()


# ---- the vision tower ----


def random_tower(size: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    config = AhaConfig(**SIZES[size], vision_config=vision_of(size), image_token_index=IMAGE_TOKEN[size])
    tower = build_empty(AhaModel, config, "sdpa").model.vision_tower.vision_tower["vision_model"]
    torch.manual_seed(0)
    for module in tower.modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(0, 0.02)
            setattr(module, name, nn.Parameter(value.fill_(1) if "norm" in type(module).__name__.lower() and name == "weight" else value))
    tower.embeddings.position_ids = torch.arange(tower.embeddings.num_positions, device=device)[None]
    return tower.requires_grad_(False).eval()


def joined_layer(layer: nn.Module):
    """A SigLIP layer with one product for queries, keys and values. hidden [N,P,C] -> [N,P,C]."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, bias = torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
    heads = attention.num_heads

    def forward(hidden_NPC: Tensor) -> Tensor:
        count, patches, width = hidden_NPC.shape
        qkv = F.linear(layer.layer_norm1(hidden_NPC), weight, bias).view(count, patches, 3, heads, width // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, patches, width)
        hidden_NPC = hidden_NPC + attention.out_proj(mixed)
        return hidden_NPC + mlp(layer.layer_norm2(hidden_NPC))

    return forward


def gelu_layer(layer: nn.Module):
    """A SigLIP layer whose MLP is the trainer's (llava_next/fused_tower.py)."""

    def forward(hidden_NPC: Tensor) -> Tensor:
        hidden_NPC = hidden_NPC + layer.self_attn(layer.layer_norm1(hidden_NPC))[0]
        return hidden_NPC + fused_mlp(layer.mlp, layer.layer_norm2(hidden_NPC))

    return forward


def tower_forms(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    tower = random_tower(args.size, device, dtype)
    pixels = torch.rand(args.frames, 3, 384, 384, device=device).mul(2).sub(1).to(dtype)
    layers = tower.encoder.layers
    compiled = torch.compile(run_layer, dynamic=True)
    joined = [joined_layer(layer) for layer in layers]
    compiled_joined = [torch.compile(function, dynamic=True) for function in joined]

    @torch.no_grad()
    def run(layer_functions, batch: int) -> Tensor:
        parts = []
        for chunk in pixels.split(batch):
            hidden = tower.embeddings(chunk).contiguous()
            for function in layer_functions:
                hidden = function(hidden)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            parts.append(hidden)
        return torch.cat(parts)

    plain = [lambda h, layer=layer: layer(h, None) for layer in layers]
    fused = [lambda h, layer=layer: compiled(layer, h, None) for layer in layers]
    gelu_inside = [gelu_layer(layer) for layer in layers]
    forms = {
        "tower: layers as they are, 64 frames at a time": (plain, 64, None),
        "tower: compiled, 64": (fused, 64, None),
        "tower: compiled, all frames": (fused, args.frames, None),
        "tower: compiled, 32": (fused, 32, None),
        "tower: one q-k-v product, not compiled, 64": (joined, 64, None),
        "tower: one q-k-v product, compiled, 64": (compiled_joined, 64, None),
        "tower: bias and GELU inside the product, 64": (gelu_inside, 64, None),
    }
    if device.type == "cuda":
        forms["tower: compiled, 64, flash attention"] = (fused, 64, SDPBackend.FLASH_ATTENTION)
        forms["tower: compiled, 64, cuDNN attention"] = (fused, 64, SDPBackend.CUDNN_ATTENTION)
        forms["tower: as they are, 64, cuDNN attention"] = (plain, 64, SDPBackend.CUDNN_ATTENTION)
    reference = run(plain, 64)
    results = {}
    for name, (functions, batch, backend) in forms.items():
        with sdpa_kernel(backend) if backend is not None else torch.no_grad():
            results[name] = (milliseconds(lambda f=functions, b=batch: run(f, b), device), difference(run(functions, batch), reference))
    return results


# ---- a linear layer with LoRA ----


class OneProduct(torch.autograd.Function):
    """x [T,I], joint weight [O,I+r] = W beside B, A [r,I], B [O,r], dropped x -> x W^T + (dropped A^T) B^T, [T,O]."""

    @staticmethod
    def forward(ctx, x, joint, a, b, dropped):
        low = dropped @ a.T
        ctx.save_for_backward(joint, a, dropped, low)
        return torch.cat([x, low], 1) @ joint.T

    @staticmethod
    def backward(ctx, grad):
        joint, a, dropped, low = ctx.saved_tensors
        both = grad @ joint
        grad_x, grad_low = both[:, : a.shape[1]], both[:, a.shape[1] :]
        return grad_x, None, grad_low.T @ dropped, grad.T @ low, grad_low @ a


def linear_forms(inputs: int, outputs: int, tokens: int, device: torch.device, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(inputs, outputs, bias=False)).to(device, dtype)
    layer = inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, lora_dropout=0.05, target_modules=["0"]), base).to(dtype)[0]
    layer.base_layer.requires_grad_(False)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    b.data.normal_(0, 0.02)
    dropout = layer.lora_dropout["default"] = SeededDropout(0.05, torch.tensor(7, dtype=torch.int32, device=device))
    x = torch.randn(tokens, inputs, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(tokens, outputs, device=device, dtype=dtype)
    joint = torch.cat([layer.base_layer.weight, b], 1).detach().contiguous()

    def step(function, *given):
        x.grad = a.grad = b.grad = None
        output = function(*given)
        output.backward(grad)
        return output.detach(), x.grad, a.grad, b.grad

    forms = {
        "trainer": (torch.compile(layer.forward), x),
        "one product": (torch.compile(lambda x, joint, a, b: OneProduct.apply(x, joint, a, b, dropout(x))), x, joint, a, b),
        "without LoRA": (layer.base_layer, x),
    }
    reference = step(*forms["trainer"])
    results = {}
    for name, form in forms.items():
        worst = max(difference(v, r) for v, r in zip(step(*form), reference) if v is not None)
        results[f"linear {inputs} -> {outputs}: {name}"] = (milliseconds(lambda f=form: step(*f), device), worst)
    return results


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("train_kernels.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7b", choices=SIZES, help="model dimensions (default %(default)s)")
    parser.add_argument("--frames", type=int, default=120, help="frames of the sample (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden, wide = SIZES[args.size]["hidden_size"], SIZES[args.size]["intermediate_size"]
    results: dict[str, tuple[float, float]] = {}
    for inputs, outputs in ((hidden, hidden), (hidden, wide), (wide, hidden)):
        results |= linear_forms(inputs, outputs, args.frames * 49 + 40, device, dtype)
    results |= tower_forms(args, device, dtype)
    for name, (ms, worst) in results.items():
        print(f"{name:52s}{ms:10.2f} ms   difference {worst:.1e}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    print(json.dumps({"benchmark": "train_kernels", "device": name, "torch": torch.__version__, "size": args.size, "frames": args.frames,
                      "forms": {form: {"ms": ms, "difference": worst} for form, (ms, worst) in results.items()}}))  # fmt: skip


if __name__ == "__main__":
    run_command(main)
