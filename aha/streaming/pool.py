"""Memory for keys and values: one slot per token, shared by any number of streams.

Keys are stored before rotation. Who attends says at which positions: so dropping a token from the middle of a stream, or moving all
positions, costs nothing, and the keys of a stream need not lie side by side.

Shapes: C slots, G key-value heads, D head width.
"""

from __future__ import annotations

import numpy as np
import torch
from llava_next import LlavaNextForCausalLM
from torch import Tensor


class KVPool:
    """keys[layer], values[layer]: [C, G, D]. Grows by doubling where `fixed` is False; raises MemoryError otherwise."""

    def __init__(
        self, layers: int, heads: int, width: int, *, capacity: int, dtype: torch.dtype, device: torch.device, fixed: bool = False
    ):
        shape = (capacity, heads, width)
        # zeros, not empty: padding reads slot 0 under a mask, and NaN times zero is NaN
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.fixed = fixed
        self.fresh = 0  # slots from here on were never used
        self.freed = np.empty(0, np.int64)

    @classmethod
    def of_model(cls, model: LlavaNextForCausalLM, capacity: int, fixed: bool = False) -> KVPool:
        return cls(
            len(model.decoder_layers), model.config.key_heads, model.head_dim, capacity=capacity, dtype=model.decoder_dtype,
            device=model.decoder_device, fixed=fixed,
        )  # fmt: skip

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[0]

    @property
    def used(self) -> int:
        return self.fresh - len(self.freed)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def take(self, count: int) -> np.ndarray:
        """[count] slots, in ascending order where they are fresh."""
        if len(self.freed) >= count:
            slots, self.freed = self.freed[len(self.freed) - count :], self.freed[: len(self.freed) - count]
            return slots
        if self.fresh + count > self.capacity:
            if self.fixed:
                raise MemoryError(f"all {self.capacity} key-value slots are in use; end a stream, or make the pool larger")
            self._grow(max(2 * self.capacity, self.fresh + count))
        slots = np.arange(self.fresh, self.fresh + count)
        self.fresh += count
        return slots

    def give_back(self, slots: np.ndarray) -> None:
        self.freed = np.concatenate([self.freed, slots])

    def _grow(self, capacity: int) -> None:
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):  # one at a time: the peak is one layer above the new size
                tensors[layer] = new = old.new_zeros(capacity, *old.shape[1:])
                new[: self.fresh] = old[: self.fresh]

    def gather(self, slots: np.ndarray) -> Tensor:
        """A copy [2, layers, len(slots), G, D] of keys and values, for suspending a stream."""
        index = torch.from_numpy(slots).to(self.keys[0].device)
        return torch.stack([torch.stack([t[index] for t in tensors]) for tensors in (self.keys, self.values)])

    @torch.inference_mode()  # as the engine's own writes: its pool was made in it
    def scatter(self, slots: np.ndarray, saved: Tensor) -> None:
        """Put back what `gather` copied, into other slots perhaps."""
        index = torch.from_numpy(slots).to(self.keys[0].device)
        for tensors, stored in zip((self.keys, self.values), saved):
            for tensor, layer in zip(tensors, stored):
                tensor[index] = layer.to(tensor)
