"""The decoder over blocks of new tokens whose past lies in a KVPool: many frames of one stream, or frames of many streams, in one call.

transformers' layers give the weights, norms and MLPs; only attention is done here, because keys are rotated when they are read (see
pool.py) and because each block reads its own slots.

Shapes: N blocks, T new tokens of a block, L tokens that a block reads (itself included), H decoder width, Q query heads, G key-value heads,
D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from aha.streaming.caches import Block
from aha.streaming.pool import KVPool


@dataclass
class Plan:
    """A forward call's blocks as tensors on the device.

    write: [N * T] slots. read: [N, L] slots, or (first, end) where one block reads slots side by side. cos_q, sin_q: [N, T, 1, D];
    cos_k, sin_k: [N or 1, L, 1, D], float32. mask: [N, 1, heads per group * T, L] booleans, or None: causal, the new tokens last.
    """

    write: Tensor
    read: Tensor | tuple[int, int]
    cos_q: Tensor
    sin_q: Tensor
    cos_k: Tensor
    sin_k: Tensor
    mask: Tensor | None


def rotary_table(model, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """cos, sin [N, X, 1, D] float32 for positions [N, X]."""
    device = model.model.norm.weight.device
    position_NX = torch.from_numpy(np.ascontiguousarray(positions)).to(device)
    cos, sin = model.model.rotary_emb(torch.empty(0, device=device), position_NX)
    return cos.unsqueeze(2), sin.unsqueeze(2)


def make_plan(model, blocks: Sequence[Block]) -> Plan:
    """Blocks (all of T tokens) -> Plan. Blocks that read less than the longest are padded with slots that they may not see."""
    device = model.model.norm.weight.device
    new, longest = len(blocks[0].write), max(len(b.read) for b in blocks)
    write = torch.from_numpy(np.concatenate([b.write for b in blocks])).to(device)
    query_NT = np.stack([np.arange(b.new_position, b.new_position + new) for b in blocks])
    causal = all(b.visible is None for b in blocks)
    side_by_side = len(blocks) == 1 and bool((np.diff(blocks[0].read) == 1).all())
    if side_by_side:
        read: Tensor | tuple[int, int] = (int(blocks[0].read[0]), int(blocks[0].read[-1]) + 1)
    else:
        read_NL = np.stack([np.pad(b.read, (0, longest - len(b.read))) for b in blocks])
        read = torch.from_numpy(read_NL).to(device)
    if all(b.positions is None for b in blocks):
        key_NL = np.arange(longest)[None]
    else:
        key_NL = np.stack([np.pad(b.positions, (0, longest - len(b.read))) for b in blocks])
    mask = None
    if not (causal and len(blocks) == 1):
        if causal:  # by rank: block n's token t is number len(read) - T + t of what it reads; padding comes after
            last_N = torch.tensor([len(b.read) for b in blocks], device=device)
            rank_NT1 = (last_N[:, None] - new + torch.arange(new, device=device))[..., None]
            visible_NTL = torch.arange(longest, device=device) <= rank_NT1
        else:
            visible_NTL = torch.from_numpy(np.stack([_visible(b, new, longest) for b in blocks])).to(device)
        group = model.config.num_attention_heads // model.config.num_key_value_heads
        mask = visible_NTL[:, None].expand(-1, group, -1, -1).reshape(len(blocks), 1, group * new, longest)
    return Plan(write, read, *rotary_table(model, query_NT), *rotary_table(model, key_NL), mask)


def _visible(block: Block, new: int, longest: int) -> np.ndarray:
    visible_TL = np.tri(new, len(block.read), len(block.read) - new, dtype=bool) if block.visible is None else block.visible
    return np.pad(visible_TL, ((0, 0), (0, longest - len(block.read))))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in float32, rounded once. x: [N, X, heads, D]."""
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def attend(query_NTQD: Tensor, key_NLGD: Tensor, value_NLGD: Tensor, mask: Tensor | None, implementation: str) -> Tensor:
    """Attention -> [N, T, Q * D]. With a mask, the query heads that share a key head are laid side by side as more queries: nothing is
    repeated, and any kernel that takes a mask will do."""
    blocks, new, heads, width = query_NTQD.shape
    length, groups = key_NLGD.shape[1:3]
    key, value = key_NLGD.transpose(1, 2), value_NLGD.transpose(1, 2)
    if mask is None and implementation != "eager":
        query = query_NTQD.transpose(1, 2)
        if new == length:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != groups)
        else:
            bias = causal_lower_right(new, length) if new > 1 else None
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=heads != groups)
        return out.transpose(1, 2).reshape(blocks, new, heads * width)
    folded = (blocks, groups, heads // groups * new, width)
    query = query_NTQD.view(blocks, new, groups, heads // groups, width).permute(0, 2, 3, 1, 4).reshape(folded)
    if implementation == "eager":
        if mask is None:
            mask = torch.ones(new, length, dtype=torch.bool, device=query.device).tril(length - new).repeat(heads // groups, 1)[None, None]
        weights = (query @ key.transpose(-1, -2) * width**-0.5).masked_fill(~mask, float("-inf"))
        out = weights.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.view(blocks, groups, heads // groups, new, width).permute(0, 3, 1, 2, 4).reshape(blocks, new, heads * width)


def run_layers(model, hidden_NTH: Tensor, pool: KVPool, plan: Plan) -> Tensor:
    """Embedded new tokens -> hidden states [N, T, H] after the final norm; their keys and values are written into the pool."""
    blocks, new, _ = hidden_NTH.shape
    implementation = model.config._attn_implementation
    for keys, values, layer in zip(pool.keys, pool.values, model.model.layers):
        attention = layer.self_attn
        shape = (blocks, new, -1, attention.head_dim)
        x = layer.input_layernorm(hidden_NTH)
        query = rotate(attention.q_proj(x).view(shape), plan.cos_q, plan.sin_q)
        keys[plan.write] = attention.k_proj(x).view(-1, *keys.shape[1:])
        values[plan.write] = attention.v_proj(x).view(-1, *values.shape[1:])
        if isinstance(plan.read, tuple):
            first, end = plan.read
            key, value = keys[None, first:end], values[None, first:end]
        else:
            key, value = keys[plan.read], values[plan.read]
        seen = attend(query, rotate(key, plan.cos_k, plan.sin_k), value, plan.mask, implementation)
        hidden_NTH = hidden_NTH + attention.o_proj(seen)
        hidden_NTH = hidden_NTH + layer.mlp(layer.post_attention_layernorm(hidden_NTH))
    return model.model.norm(hidden_NTH)
