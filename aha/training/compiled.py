"""torch.compile for decoder layers and vision layers. All layers of a kind share one compiled function, for any length.

Gradient checkpointing happens inside the compiled function: only a layer's input is kept, and the compiler leaves out of the
recomputation what no gradient needs, such as the last matrix product of a layer. (The compiler's own `activation_memory_budget` would do
the same with less text, but in torch 2.13 it draws other dropout masks in the recomputation: silently wrong gradients.)
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aha.models import AhaModel


def run_layer(layer: nn.Module, *args, **kwargs):
    return type(layer).forward(layer, *args, **kwargs)


def run_and_recompute(layer: nn.Module, *args, **kwargs):
    return checkpoint(run_layer, layer, *args, use_reentrant=False, **kwargs)


def compile_layers(model: AhaModel, recompute: bool = True) -> None:
    """Compile the layers of `model` in place. recompute: keep only layer inputs, in place of the model's own gradient checkpointing."""
    layer_function = torch.compile(run_and_recompute if recompute else run_layer, dynamic=True)
    for layer in model.model.layers:
        layer.gradient_checkpointing = False
        layer.forward = functools.partial(layer_function, layer)
    vision_function = torch.compile(run_layer, dynamic=True)
    for layer in model.model.vision_tower.vision_tower["vision_model"].encoder.layers:
        layer.forward = functools.partial(vision_function, layer)
