"""The decoder's weights in fewer bits: for a smaller card, at inference in 8 or 4 bits, in training in 4 under LoRA.

4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): the decoder of a 7B model in 3.8 GB instead of 13. A weight is cut into blocks of 64
along its input; each value becomes the nearest of 16 NormalFloat levels times the block's largest magnitude. The layer computes with the
16-bit weight that these give, made when it is needed and not kept.
8 bits: torchao's, whole numbers times one scale for each output.

The vision tower, the projector, the vocabulary and the heads keep their numbers.
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from aha.models.model import AhaModel

BLOCK = 64
# NormalFloat-4 levels (QLoRA, appendix E): quantiles of a normal distribution, scaled to [-1, 1], with an exact zero.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def quantize(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """[O, I] -> packed uint8 [O, I / 2] (first value in the high half) and bfloat16 scales [O, I / 64]."""
    rows, columns = weight_OI.shape
    blocks = weight_OI.float().view(rows, -1, math.gcd(columns, BLOCK))
    scale = blocks.abs().amax(-1).clamp_min(1e-12).to(torch.bfloat16)
    levels = torch.tensor(LEVELS, device=weight_OI.device)
    index = torch.bucketize(blocks / scale.float()[..., None], (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(rows, columns)
    return (index[:, 0::2] << 4) | index[:, 1::2], scale


def dequantize(packed: Tensor, scale: Tensor, levels: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantize`, up to rounding: [O, I]."""
    pairs = torch.cartesian_prod(levels, levels)  # [256, 2]: both values of a byte at once
    rows = packed.shape[0]
    values = F.embedding(packed.int(), pairs).view(rows, scale.shape[1], -1).mul_(scale.float()[..., None])
    return values.view(rows, -1).to(dtype)


class Linear4bit(nn.Module):
    """A frozen linear layer with a 4-bit weight; `device`: where it lives from now on."""

    packed: Tensor
    scale: Tensor
    levels: Tensor

    def __init__(self, linear: nn.Linear, device: torch.device):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed, scale = quantize(linear.weight.detach().to(device))
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("levels", torch.tensor(LEVELS, device=device), persistent=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize(self.packed, self.scale, self.levels, x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def quantize_decoder(model: AhaModel, device: torch.device) -> None:
    """Training: replace the frozen weight under every LoRA layer by its 4-bit form on `device`, one layer at a time."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            linear = module.base_layer
            assert isinstance(linear, nn.Linear)  # LORA's layers are those of the decoder
            module.base_layer = Linear4bit(linear, device)


@torch.no_grad()
def quantize_weights(model: AhaModel, bits: int, device: torch.device) -> AhaModel:
    """Inference: replace the weights of the decoder's linear layers by their form in 8 or 4 bits on `device`, one at a time, and move the
    rest there: on `device` there is never more than the result and one layer. The adapter must be merged.

    8 bits need torchao (the extra `quantized`), which is imported here.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and re.match(model.lora_targets, name)
    }
    for name in list(layers):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, _smaller(layers.pop(name), bits, device))  # and nothing holds the whole one any more
    model.weight_bits = bits
    nn.Module.to(model, device)
    return model


def _smaller(linear: nn.Linear, bits: int, device: torch.device) -> nn.Module:
    if bits == 4:
        return Linear4bit(linear, device)
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    linear = linear.to(device)
    quantize_(linear, Int8WeightOnlyConfig(set_inductor_config=False))  # torch.compile's settings are not a library's to change
    return linear
