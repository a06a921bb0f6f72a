"""Which decoder layers keep their activations for the backward pass, and which compute them again: as few as memory forces.

Recomputing all layers costs a third of the decoder's work. What a layer keeps is proportional to the batch's tokens, so the number is
chosen for every batch, before its forward pass: a formula at first, which each batch then corrects by what it took. Where memory runs
out all the same the batch is run again with more layers recomputed, and so are all later ones of its size. Where even that may not be
enough, the inputs of the layers wait on the host (spare.py).

The last layers keep theirs: they are used and freed first, before an earlier layer's recomputation needs room. No value changes by it.

What is promised: of --max_memory (else of the whole card) OUTSIDE_GIB stay free for what lies outside torch's allocator. The rest is `cap`.
With --max_memory the allocator itself refuses to reserve more than the cap, so reserved memory, with the holes between blocks, the loss's
moment and the optimizer's first step, never passes max_memory - OUTSIDE_GIB: a step that needs more is run again with more recomputed, and
where nothing is left to recompute the run ends with a sentence. Below the cap the plan leaves MARGIN of it for holes. Sizes are bytes.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from aha.models import AhaConfig, AhaModel
from aha.training.machine import GIB, OUTSIDE_GIB
from aha.training.spare import inputs_on_host

# of the cap, for what the allocator cannot use (blocks of other sizes): reserved was 2 to 3% above allocated memory on an H200
MARGIN = 0.06


@dataclass
class Cost:
    """Bytes a token: what a layer keeps when it is not recomputed (`kept`) and when it is (`inputs`), and what a whole pass needs for a
    moment (`moment`)."""

    kept: float
    inputs: float
    moment: float

    @classmethod
    def estimate(cls, config: AhaConfig, compiled: bool, width: int) -> Cost:
        """For values of `width` bytes. Measured on an H100, 7B, compiled, LoRA with dropout: 187 KB kept a token and layer (this: 185), and
        0.5 MB of a step. Layers as they are keep dropout's masks and the norms' float32 values besides."""
        intermediate, hidden = config.intermediate_size, config.hidden_size
        kept = width * (3 * intermediate + 10 * hidden)
        return cls(kept if compiled else 2.2 * kept, width * hidden, width * (10 * intermediate + 20 * hidden))


def set_flag(layer: nn.Module, name: str, value: bool) -> None:
    """A plain attribute; of a torch module type checkers expect tensors and modules only."""
    setattr(layer, name, value)


class Recompute:
    """Sets `layer.recomputed` of the decoder layers. `mode`: "auto", "all", "none", or a number of layers. `native`: layers that are not
    compiled, which transformers recomputes.

    `limit`: bytes of the device that the process may take (None: no planning, as on a CPU); `later`: bytes that the first steps have yet to
    allocate for good (gradients, optimizer).
    """

    def __init__(self, model: AhaModel, mode: str | int, cost: Cost, limit: float | None = None, later: float = 0.0, native: bool = False):
        self.layers: list[nn.Module] = list(model.decoder_layers)
        self.mode, self.cost, self.later, self.native = mode, cost, later, native
        self.cap = None if limit is None else allocator_cap(limit)
        self.planned = None if self.cap is None else self.cap * (1 - MARGIN)
        self.resident = 0.0  # most bytes in use before a forward pass
        self.spill = False  # the inputs of this batch's layers wait on the host
        self.forced: list[tuple[int, int]] = []  # (tokens, recomputed layers) that ran out of memory
        self.spilled_from: float = math.inf  # batches of so many tokens ran out of memory with all layers recomputed
        self.tokens, self.before, self.peak = 0, 0.0, 0.0
        self.moments = {False: cost.moment, True: cost.moment}  # by `spill`: more than the layers' inputs waits on the host then
        self.measured: set[bool] = set()
        self.apply(mode if isinstance(mode, int) else 0 if mode == "none" else len(self.layers))

    @property
    def plans(self) -> bool:
        return self.mode == "auto" and self.planned is not None

    def apply(self, count: int) -> None:
        """The first `count` layers are recomputed."""
        self.recomputed = min(count, len(self.layers))
        for i, layer in enumerate(self.layers):
            again = i < self.recomputed
            set_flag(layer, "recomputed", again)
            if self.native:
                set_flag(layer, "gradient_checkpointing", again)

    def plan(self, tokens: int, in_use: float) -> int:
        """How many layers a batch of `tokens` (padding included) must recompute when `in_use` bytes are taken before it."""
        self.resident = max(self.resident, in_use)
        count = len(self.layers)
        if self.planned is None:
            raise ValueError("nothing is planned without a limit")
        free = self.planned - self.resident - self.later - tokens * (self.moments[False] + count * self.cost.inputs)
        self.spill = free < 0 or tokens >= self.spilled_from
        keep = int(max(free, 0) // (tokens * (self.cost.kept - self.cost.inputs)))
        least = max((layers + 1 for size, layers in self.forced if tokens >= size), default=0)
        return min(max(count - keep, least, 0), count)

    def fits(self, tokens: int, in_use: float) -> bool:
        """Whether a batch fits with its layers' inputs on the device."""
        self.plan(tokens, in_use)
        return not self.spill

    def begin(self, tokens: int, device: torch.device) -> None:
        """Before the forward pass of a batch."""
        self.tokens = tokens
        if self.plans:
            self.before = float(torch.cuda.memory_allocated(device))
            self.peak = max(self.peak, float(torch.cuda.max_memory_allocated(device)))
            torch.cuda.reset_peak_memory_stats(device)
        self.apply(self.plan(tokens, self.before) if self.plans else self.recomputed)

    def keeping(self, shape: tuple[int, ...]) -> contextlib.AbstractContextManager:
        """Enter it for the forward pass of a batch whose hidden states have `shape`."""
        return inputs_on_host(shape) if self.spill else contextlib.nullcontext()

    def forward_ended(self, device: torch.device) -> bool:
        """Whether there is room for the backward pass. Asked before it begins: half of one cannot be repeated."""
        if not self.plans:
            return True
        in_use = float(torch.cuda.memory_allocated(device))
        self.learn_kept(in_use - self.before)
        return self.has_room(in_use)

    def has_room(self, in_use: float) -> bool:
        return self.cap is None or in_use + self.tokens * self.moments[self.spill] <= self.cap

    def learn_kept(self, kept: float) -> None:
        """`kept`: bytes that the forward pass left for the backward pass. With few layers among them the rest weighs too much to tell."""
        count = len(self.layers) - self.recomputed
        if count >= max(len(self.layers) // 4, 1):
            self.cost.kept = max(kept - self.tokens * self.recomputed * self.cost.inputs, 0) / (self.tokens * count)

    def backward_ended(self, device: torch.device, learn: bool) -> None:
        """learn: nothing but this batch took memory since `begin` (the first one allocates gradients, an optimizer step its state)."""
        if self.plans and learn:
            self.learn_moment(torch.cuda.max_memory_allocated(device) - self.resident)

    def learn_moment(self, peak: float) -> None:
        """`peak`: most bytes of a forward and backward pass above `resident`. The largest seen counts, by its share of a token."""
        count = len(self.layers)
        inputs = 0 if self.spill else self.cost.inputs
        kept = self.tokens * ((count - self.recomputed) * self.cost.kept + self.recomputed * inputs)
        seen = max((peak - kept) / self.tokens, 0.0)
        self.moments[self.spill] = max(seen, self.moments[self.spill]) if self.spill in self.measured else seen
        self.measured.add(self.spill)

    def step_ended(self) -> None:
        """An optimizer step is over: what it keeps is there."""
        self.later = 0.0

    def tighten(self) -> bool:
        """Memory ran out: recompute more of this batch and of larger ones; where all layers are, their inputs wait on the host. False where
        nothing is left to do."""
        if self.mode != "auto" or (self.recomputed >= len(self.layers) and (self.spill or not self.plans)):
            return False
        if self.recomputed >= len(self.layers):
            self.spilled_from = min(self.spilled_from, self.tokens)
            return True
        more = max(len(self.layers) // 8, 1)
        self.forced.append((self.tokens, min(self.recomputed + more, len(self.layers)) - 1))
        return True


# weights that ZeRO-3 has gathered at a time, of configs/deepspeed/zero3.json: those in use and about as many ahead
LIVE_WEIGHTS = 2e9
# of the vision tower, through which all frames of a sample go at once with ZeRO-3: bytes a token (7 GB for 400 frames of 49 tokens)
TOWER = 360e3


def same_for_all(model: AhaModel, cost: Cost, limit: float | None, later: float, tokens: int, world_size: int) -> int:
    """How many layers ZeRO-3 recomputes in a run whose longest batch has `tokens`: one number for all ranks and batches, because a layer
    that is recomputed gathers its weights at other moments, and a rank that did so alone would wait for the others for ever.

    A layer that keeps its activations keeps its gathered weights with them: autograd holds views of them.
    """
    if limit is None:
        return len(model.decoder_layers)
    width = model.lm_head.weight.element_size()
    layer = float(sum(p.numel() * width for p in model.decoder_layers[0].parameters()))
    cost = replace(cost, kept=cost.kept + layer / tokens)
    resident = weight_bytes(model) / world_size + LIVE_WEIGHTS * width + TOWER * tokens
    return Recompute(model, "auto", cost, limit, later).plan(tokens, resident)


def allocator_cap(limit: float) -> float:
    """Bytes that torch's allocator may reserve of a card of which the process may take `limit`."""
    return limit - OUTSIDE_GIB * GIB


def weight_bytes(model: AhaModel) -> float:
    """Bytes of all parameters and buffers."""
    return float(sum(t.numel() * t.element_size() for tensors in (model.parameters(), model.buffers()) for t in tensors))


def trained_bytes(model: AhaModel, *, zero: bool, low_memory: bool, world_size: int) -> float:
    """Bytes that training takes for good after the first step, on one GPU: gradients, AdamW's state, and ZeRO's float32 weights with the
    float32 gradients of a step."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if zero:
        return count * (2 + (4 + 4 + (4 if low_memory else 8)) / world_size)
    return count * (2 + 6 if low_memory else 4 + 8)


__all__ = ["Cost", "Recompute", "allocator_cap", "same_for_all", "trained_bytes", "weight_bytes"]
