"""What the host's memory can hold in place of a small card's: the table of word embeddings (1 GiB at 7B), of which a sample needs a few
rows, and the inputs of recomputed layers between their forward and backward pass (1.1 GiB for 120 frames)."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models import AhaModel


class HostEmbedding(nn.Module):
    """A frozen embedding whose table stays on the host, wherever the model is moved to; rows are looked up there."""

    table_VH: Tensor

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.device = embedding.weight.device
        table_VH = embedding.weight.detach().cpu()
        self.__dict__["table_VH"] = table_VH.pin_memory() if self.device.type == "cuda" else table_VH  # no buffer: it must not be moved

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids.cpu(), self.table_VH).to(self.device, non_blocking=True)


def embeddings_on_host(model: AhaModel) -> None:
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    model.set_input_embeddings(HostEmbedding(table))


def inputs_on_host(shape: tuple[int, ...]) -> contextlib.AbstractContextManager:
    """While this is entered, tensors of `shape` that the backward pass needs (the inputs of layers, [B,T,H]) wait for it on the host."""

    def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if tuple(tensor.shape) != shape:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        host.copy_(tensor, non_blocking=True)
        return tensor.device, host

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, host = packed
        return host.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
