"""The decoder over blocks of new tokens whose past lies in a KVPool: many frames of one stream, or frames of many streams, in one call.

The base's layers say what attends and what becomes of it (`queries_keys_values`, `after_attention`; with their norms, also those of
queries and keys where a base has them); only attention is done here, because keys are rotated when they are read (see pool.py) and
because each block reads its own slots.

Shapes: N blocks, T new tokens of a block, L tokens that a block reads (itself included), H decoder width, Q query heads, G key-value heads,
D head width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from aha.models.model import WithHeads
from aha.streaming.attention import attend_causal, attend_folded, merge, softmax
from aha.streaming.caches import Block
from aha.streaming.pool import KVPool

ALIGNMENT = 8  # masks of other widths are copied by the attention kernels, once per layer


@dataclass
class Plan:
    """A forward call's blocks as tensors on the device.

    write: [N * T] slots. read: [N, L] slots, or (first, end) where one block reads slots side by side. cos_q, sin_q: [N, T, 1, D];
    cos_k, sin_k: [N or 1, L, 1, D], float32. mask: [N, 1, Q / G * T, L], 0 or -inf, or None: causal, the new tokens last.
    first: [N] ranks of the first new tokens; given where all keys stand at their ranks and aha.streaming.kernels attends (then cos_q, sin_q
    and mask are not needed).
    """

    write: Tensor
    read: Tensor | tuple[int, int]
    cos_q: Tensor | None
    sin_q: Tensor | None
    cos_k: Tensor
    sin_k: Tensor
    mask: Tensor | None
    first: Tensor | None = None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in float32, rounded once. x: [N, X, heads, D]; cos, sin: [N or 1, X, 1, D]."""
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def before_attention(
    base: type[WithHeads], layer: Qwen2DecoderLayer, hidden_NTH: Tensor, keys_CGD: Tensor, values_CGD: Tensor, write: Tensor,
    cos_q: Tensor | None, sin_q: Tensor | None, folded: bool, merged: tuple[Tensor, Tensor | None] | None,
) -> Tensor:  # fmt: skip
    """Writes a layer's keys and values into their slots. Returns the queries [N, T, Q, D], rotated where cos_q is given, or `folded`: the
    query heads that share a key head side by side as more queries, [N, G, Q / G * T, D]."""
    query, key, value = base.queries_keys_values(layer, hidden_NTH, merged)
    groups, width = keys_CGD.shape[1:]
    keys_CGD[write] = key.reshape(-1, groups, width)
    values_CGD[write] = value.reshape(-1, groups, width)
    blocks, new = hidden_NTH.shape[:2]
    query_NTQD = query if cos_q is None or sin_q is None else rotate(query, cos_q, sin_q)
    if not folded:
        return query_NTQD
    return query_NTQD.view(blocks, new, groups, -1, width).permute(0, 2, 3, 1, 4).reshape(blocks, groups, -1, width)


def read_slots(keys_CGD: Tensor, values_CGD: Tensor, read_NL: Tensor, cos_k: Tensor, sin_k: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values of the slots that each block reads: [N, L, G, D] both."""
    return rotate(keys_CGD[read_NL], cos_k, sin_k), values_CGD[read_NL]


def after_attention(
    base: type[WithHeads], layer: Qwen2DecoderLayer, hidden_NTH: Tensor, seen: Tensor, folded: bool, zeros_H: Tensor | None = None
) -> Tensor:
    """seen: [N, Q, T, D], or folded [N, G, Q / G * T, D]. zeros_H: see the base's."""
    blocks, new = hidden_NTH.shape[:2]
    seen_NQTD = seen.reshape(blocks, -1, new, seen.shape[-1]) if folded else seen
    return base.after_attention(layer, hidden_NTH, seen_NQTD.transpose(1, 2).reshape(blocks, new, -1), zeros_H)


def slots_kernel(model: WithHeads) -> Callable | None:
    """`attend_slots` (aha.streaming.kernels) where it runs: NVIDIA GPU with Triton, half precision, head width a power of two."""
    usable = model.decoder_device.type == "cuda" and torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
    width = model.head_dim
    if not usable or model.decoder_dtype == torch.float32 or width & (width - 1) or model.config._attn_implementation == "eager":
        return None
    from aha.streaming.kernels import attend_slots

    return attend_slots


class Decoder:
    """Runs a model's decoder layers. compiled: let torch.compile fuse what lies between the matrix products, and keep merged copies of the
    query, key and value projections (6% more memory, none of weights in 8 or 4 bits; seconds at the first call; worth it on a GPU; the
    model's adapter must be merged).
    Stateless: any number of sessions may use one."""

    def __init__(self, model: WithHeads, compiled: bool = False):
        self.model, self.base = model, type(model)
        functions: Sequence[Callable[..., Any]] = (before_attention, read_slots, after_attention, rotate, softmax, merge)
        self.merged: list[tuple[Tensor, Tensor | None] | None] = [None] * len(model.decoder_layers)
        self.zeros_H: Tensor | None = None
        if compiled:
            if model.weight_bits is None:
                self.merged = [self.base.merged_projections(layer) for layer in model.decoder_layers]
                self.zeros_H = torch.zeros(model.config.hidden_size, dtype=model.decoder_dtype, device=model.decoder_device)
            # one compilation for all layers (they are arguments) and all sizes
            functions = [torch.compile(function, dynamic=True) for function in functions]
        self.before, self.read, self.after, self.rotate, self.softmax, self.merge = functions
        self.attend_slots = slots_kernel(model)

    @property
    def device(self) -> torch.device:
        return self.model.decoder_device

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.model.config.num_attention_heads // self.model.config.key_heads

    def rotary_table(self, positions_NX: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin [N, X, 1, D] float32."""
        cos, sin = self.model.rotary(positions_NX)
        return cos.unsqueeze(2), sin.unsqueeze(2)

    def plan(self, blocks: Sequence[Block]) -> Plan:
        """Blocks (all of T tokens) as tensors. Blocks that read less than the longest are padded with slots that they may not see."""
        new, longest = len(blocks[0].write), max(len(block.read) for block in blocks)
        side_by_side = len(blocks) == 1 and bool((np.diff(blocks[0].read) == 1).all())
        masked = len(blocks) > 1 or blocks[0].visible is not None
        if masked and not side_by_side:
            longest += -longest % ALIGNMENT
        write = self._tensor(np.concatenate([block.write for block in blocks]))
        query_NT = np.stack([np.arange(block.new_position, block.new_position + new) for block in blocks])
        positions = [block.positions for block in blocks if block.positions is not None]  # all blocks have them, or none
        key_NL = np.stack([_padded(one, longest) for one in positions]) if positions else np.arange(longest)[None]
        if side_by_side:
            read: Tensor | tuple[int, int] = (int(blocks[0].read[0]), int(blocks[0].read[-1]) + 1)
        else:
            read = self._tensor(np.stack([_padded(block.read, longest) for block in blocks]))
        mask = self._mask(blocks, new, longest) if masked else None
        return Plan(write, read, *self.rotary_table(self._tensor(query_NT)), *self.rotary_table(self._tensor(key_NL)), mask)

    def _mask(self, blocks: Sequence[Block], new: int, longest: int) -> Tensor:
        if all(block.visible is None for block in blocks):
            lengths_N = self._tensor(np.array([len(block.read) for block in blocks]))
            return self.causal_mask(lengths_N, new, longest)
        visible_NTL = self._tensor(np.stack([_visible(block, new, longest) for block in blocks]))
        return self.additive(visible_NTL)

    def causal_mask(self, lengths_N: Tensor, new: int, longest: int) -> Tensor:
        """Block n reads lengths_N[n] tokens, the last `new` of which are its own; padding comes after."""
        rank_NT1 = (lengths_N[:, None] - new + torch.arange(new, device=self.device))[..., None]
        return self.additive(torch.arange(longest, device=self.device) <= rank_NT1)

    def additive(self, visible_NTL: Tensor) -> Tensor:
        """Booleans -> 0 or -inf, laid out for `attend`."""
        mask_NTL = torch.zeros(visible_NTL.shape, dtype=self.model.decoder_dtype, device=self.device)
        mask_NTL = mask_NTL.masked_fill(~visible_NTL, float("-inf"))
        blocks, new, longest = visible_NTL.shape
        return mask_NTL[:, None].expand(-1, self.group, -1, -1).reshape(blocks, 1, self.group * new, longest)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def __call__(self, hidden_NTH: Tensor, pool: KVPool, plan: Plan) -> Tensor:
        """Embedded new tokens -> hidden states [N, T, H] after the final norm; their keys and values are written into the pool."""
        eager = self.model.config._attn_implementation == "eager"
        mask = plan.mask
        if eager and mask is None and plan.first is None:
            new, length = hidden_NTH.shape[1], plan.cos_k.shape[1]
            mask = self.causal_mask(torch.tensor([length], device=self.device), new, length)
        for keys_CGD, values_CGD, layer, merged in zip(pool.keys, pool.values, self.model.decoder_layers, self.merged):
            query = self.before(
                self.base, layer, hidden_NTH, keys_CGD, values_CGD, plan.write, plan.cos_q, plan.sin_q, mask is not None, merged
            )
            if plan.first is not None and self.attend_slots is not None:
                tables = plan.cos_k[0, :, 0], plan.sin_k[0, :, 0]
                seen_NTQD = self.attend_slots(query.contiguous(), keys_CGD, values_CGD, plan.read, plan.first, *tables)
                hidden_NTH = self.after(self.base, layer, hidden_NTH, seen_NTQD.transpose(1, 2), mask is not None, self.zeros_H)
                continue
            if isinstance(plan.read, tuple):
                first, end = plan.read
                key, value = self.rotate(keys_CGD[None, first:end], plan.cos_k, plan.sin_k), values_CGD[None, first:end]
            else:
                key, value = self.read(keys_CGD, values_CGD, plan.read, plan.cos_k, plan.sin_k)
            if mask is not None:
                seen = attend_folded(query, key, value, mask, eager, self.softmax)
            else:
                seen = attend_causal(query, key, value, self.merge)
            hidden_NTH = self.after(self.base, layer, hidden_NTH, seen, mask is not None)
        return self.model.final_norm(hidden_NTH)


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)))


def _visible(block: Block, new: int, longest: int) -> np.ndarray:
    visible_TL = np.tri(new, len(block.read), len(block.read) - new, dtype=bool) if block.visible is None else block.visible
    return np.pad(visible_TL, ((0, 0), (0, longest - len(block.read))))
