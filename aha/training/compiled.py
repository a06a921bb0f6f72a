"""torch.compile for decoder layers. All layers share one compiled function, for any length.

Gradient checkpointing happens inside the compiled function: only a layer's input is kept, and the compiler leaves out of the
recomputation what no gradient needs, such as the last matrix product of a layer.

Random numbers and recomputation do not go together in every version of the compiler: torch 2.11 stops with an internal error, and 2.13
with `activation_memory_budget` draws other dropout masks in the recomputation, which gives silently wrong gradients. So LoRA's dropout
is here a function of the element's number and of a seed that is drawn once per forward pass, outside: the same wherever it is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from llava_next import run_layer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aha.models import AhaModel
from aha.models.adapters import lora_of
from aha.training.recompute import set_flag


def run_and_recompute(layer: nn.Module, *args, **kwargs):
    return checkpoint(run_layer, layer, *args, use_reentrant=False, **kwargs)


class SeededDropout(nn.Module):
    """Dropout whose mask is a hash (murmur3's finalizer) of element number and `seed`, an int32 tensor of one value.

    The number goes through an exclusive or before any product: the compiler would fold a product into its index arithmetic, where the
    factor times a row's length is out of range. The scale is a tensor: a product with a Python number is kept for the backward pass by
    the compiler in place of being recomputed, 0.5 GiB for each layer of a 7B model.
    """

    scale: Tensor
    seed: Tensor

    def __init__(self, p: float, seed: Tensor):
        super().__init__()
        self.threshold = int(p * 2**31)
        self.register_buffer("scale", torch.tensor(1 / (1 - p), device=seed.device), persistent=False)
        self.register_buffer("seed", seed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        h = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
        h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789 + self.seed  # 0x85ebca6b; the masks make shifts of negative numbers logical ones
        h = (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xc2b2ae35
        h = (h ^ ((h >> 16) & 0xFFFF)) & 0x7FFFFFFF
        return x * (h >= self.threshold).to(x.dtype) * self.scale


def seed_dropout(model: AhaModel) -> None:
    """Replace the dropout of all LoRA layers by `SeededDropout`; the seeds are drawn from torch's generator at every forward pass."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    seeds = torch.zeros(len(layers), dtype=torch.int32, device=model.decoder_device)
    for layer, seed in zip(layers, seeds.unbind()):
        p = lora_of(model).lora_dropout
        layer.lora_dropout["default"] = SeededDropout(p, seed) if p else nn.Identity()
    model.register_forward_pre_hook(lambda module, inputs: None if not module.training else draw(seeds))


def draw(seeds: Tensor) -> None:
    seeds.random_(-(2**31), 2**31 - 1)


def compile_layers(model: AhaModel, whole: bool = True) -> None:
    """Compile the layers of `model` in place, which must be where it will stay. A decoder layer whose `recomputed` is true (see
    recompute.py) keeps only its input for the backward pass; it takes the place of the model's own gradient checkpointing. The vision
    tower is not compiled: it would take 3% longer (benchmarks/train_kernels.py).

    whole: False where ZeRO-3 takes the weights apart. It gathers a layer's around its call, which the compiled function is inside of; the
    fused vision tower has copies of weights and calls parts of layers.
    """
    seed_dropout(model)
    if whole and model.decoder_device.type == "cuda":
        model.fuse_vision()
    functions = {False: torch.compile(run_layer, dynamic=True), True: torch.compile(run_and_recompute, dynamic=True)}
    layers: Sequence[nn.Module] = model.decoder_layers
    for layer in layers:
        set_flag(layer, "gradient_checkpointing", False)
        set_flag(layer, "recomputed", True)
        layer.forward = functools.partial(run_compiled, functions, layer)


def run_compiled(functions: dict, layer: nn.Module, *args, **kwargs):
    return functions[layer.recomputed and torch.is_grad_enabled()](layer, *args, **kwargs)
