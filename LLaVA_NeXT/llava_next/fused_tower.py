"""The frozen vision tower on a GPU, with less to write and to compute; 16-bit values differ by rounding only.

- bias and GELU of an MLP's first product belong to the product's own kernel (cuBLASLt): the widest tensor is written once;
- of the last layer only the patches that pooling looks at are computed, 169 of 729: only its keys and values need all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipMLP


def fuse_layers(layers: nn.ModuleList, used_U: Tensor) -> None:
    """Change a tower's layers in place: it gives the patches `used_U` from now on, [N,U,C]."""
    for layer in layers:
        assert isinstance(layer, SiglipEncoderLayer)
        if fusible(layer.mlp):
            set_forward(layer.mlp, functools.partial(fused_mlp, layer.mlp))
    last = layers[-1]
    assert isinstance(last, SiglipEncoderLayer)
    set_forward(last, lambda hidden_NPC, *args, **kwargs: last_layer(last, hidden_NPC, used_U))


def set_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = forward


def fusible(mlp: SiglipMLP) -> bool:
    return mlp.config.hidden_act == "gelu_pytorch_tanh" and mlp.fc1.weight.is_cuda


def fused_mlp(mlp: SiglipMLP, x: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1]).to(mlp.fc1.weight.dtype)  # under autocast a norm gives float32
    wide = torch._addmm_activation(mlp.fc1.bias, flat, mlp.fc1.weight.t(), use_gelu=True)
    return mlp.fc2(wide).view(x.shape)


def last_layer(layer: SiglipEncoderLayer, hidden_NPC: Tensor, used_U: Tensor) -> Tensor:
    """transformers' SiglipEncoderLayer for the queries `used_U`: [N,P,C] -> [N,U,C]."""
    attention = layer.self_attn
    normed_NPC = layer.layer_norm1(hidden_NPC)
    count, patches, width = normed_NPC.shape

    def heads(x: Tensor) -> Tensor:
        return x.view(count, -1, attention.num_heads, width // attention.num_heads).transpose(1, 2)

    query, key, value = (
        heads(attention.q_proj(normed_NPC[:, used_U])),
        heads(attention.k_proj(normed_NPC)),
        heads(attention.v_proj(normed_NPC)),
    )
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, -1, width)
    hidden_NUC = hidden_NPC[:, used_U] + attention.out_proj(mixed)
    return hidden_NUC + layer.mlp(layer.layer_norm2(hidden_NUC))
