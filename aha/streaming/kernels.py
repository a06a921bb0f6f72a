"""Attention of the online step in two Triton kernels (GPU only): keys are gathered from their slots, rotated to their ranks and met by all
query heads that share them, without a copy; the window is cut into parts, so that one frame fills the GPU, and the parts are joined.

The same numbers as `attend_folded` over `read_slots` (aha.streaming), up to the rounding of half precision. Split over keys as in
Flash-Decoding (Dao et al. 2023).

Shapes: B streams, T new tokens of a stream, W window (slots read at most), Q query heads, G key-value heads, D head width, S parts of the
window. Rows: the Q / G * T queries that share a key head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, KEYS = 64, 64  # of a tile
# keys that one program reads, by the number of streams: one stream alone must be cut up to fill the GPU (measured on an H100)
PARTS = ((1, 256), (8, 512), (1 << 30, 2048))


@triton.jit
def _part(
    query, keys, values, read, first_B, cos, sin, seen, lse, scale,
    T: tl.constexpr, W: tl.constexpr, G: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One tile of rows over one part of the window. Row r of group g is query head g * SHARE + r // T at token r % T."""
    half: tl.constexpr = D // 2
    tile, part, stream_group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    stream, group = stream_group // G, stream_group % G
    start = tl.load(first_B + stream).to(tl.int32)  # rank of the first new token
    rows = tile * ROWS + tl.arange(0, ROWS)
    token, head = rows % T, group * SHARE + rows // T
    there = rows < SHARE * T
    out = ((stream_group * S + part) * (SHARE * T) + rows).to(tl.int64)
    if part * PART >= start + T:  # nothing of this stream lies there
        tl.store(lse + out, tl.full([ROWS], -float("inf"), tl.float32), mask=there)
        return
    d = tl.arange(0, half)
    q_at = query + ((stream * T + token) * (G * SHARE) + head)[:, None] * D + d[None, :]
    q1 = tl.load(q_at, mask=there[:, None], other=0.0).to(tl.float32)
    q2 = tl.load(q_at + half, mask=there[:, None], other=0.0).to(tl.float32)
    rank = start + token
    c = tl.load(cos + rank[:, None] * D + d[None, :])
    s = tl.load(sin + rank[:, None] * D + d[None, :])
    kind = values.dtype.element_ty
    a1, a2 = (q1 * c - q2 * s).to(kind), (q2 * c + q1 * s).to(kind)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    wide = tl.arange(0, D)
    end = tl.minimum((part + 1) * PART, start + T)
    for at in range(part * PART, end, KEYS):
        key = at + tl.arange(0, KEYS)
        inside = key < start + T
        slot = tl.load(read + stream * W + key, mask=inside, other=0)
        k_at = keys + (slot * G + group)[:, None] * D + d[None, :]
        k1 = tl.load(k_at, mask=inside[:, None], other=0.0).to(tl.float32)
        k2 = tl.load(k_at + half, mask=inside[:, None], other=0.0).to(tl.float32)
        kc = tl.load(cos + key[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        ks = tl.load(sin + key[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        b1, b2 = (k1 * kc - k2 * ks).to(kind), (k2 * kc + k1 * ks).to(kind)
        scores = tl.dot(a1, tl.trans(b1)) + tl.dot(a2, tl.trans(b2))
        scores = tl.where(key[None, :] <= rank[:, None], scores * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(scores - base[:, None])
        shrink = tl.exp(top - base)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + (slot * G + group)[:, None] * D + wide[None, :], mask=inside[:, None], other=0.0)
        sums = sums * shrink[:, None] + tl.dot(weight.to(kind), v)
        top = higher
    total_safe = tl.where(total == 0.0, 1.0, total)
    tl.store(seen + out[:, None] * D + wide[None, :], sums / total_safe[:, None], mask=there[:, None])
    tl.store(lse + out, tl.where(total == 0.0, -float("inf"), top + tl.log(total_safe)), mask=there)


@triton.jit
def _join(seen, lse, result, T: tl.constexpr, G: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, S: tl.constexpr, PARTS: tl.constexpr):
    """One row: its parts weighted by their sums of exponentials -> result [B, T, Q, D]."""
    row, stream_group = tl.program_id(0), tl.program_id(1)
    stream, group = stream_group // G, stream_group % G
    part, d = tl.arange(0, PARTS), tl.arange(0, D)
    at = (stream_group * S + part) * (SHARE * T) + row
    sums = tl.load(lse + at, mask=part < S, other=-float("inf"))
    weight = tl.exp(sums - tl.max(sums, 0))
    used = sums > -float("inf")
    values = tl.load(seen + at[:, None] * D + d[None, :], mask=used[:, None], other=0.0)
    joined = tl.sum(values * weight[:, None], 0) / tl.sum(weight, 0)
    place = (stream * T + row % T) * (G * SHARE) + group * SHARE + row // T
    tl.store(result + place * D + d, joined.to(result.dtype.element_ty))


def attend_slots(
    query_BTQD: Tensor, keys_CGD: Tensor, values_CGD: Tensor, read_BW: Tensor, first_B: Tensor, cos_WD: Tensor, sin_WD: Tensor
) -> Tensor:
    """Causal attention of each stream's T newest tokens, of ranks first_B and up, over the first (first_B + T) slots of its row of
    `read_BW`; keys and queries are rotated here, in float32 and rounded once, by the tables [W, D]. -> [B, T, Q, D]."""
    streams, new, heads, width = query_BTQD.shape
    groups, window = keys_CGD.shape[1], read_BW.shape[1]
    part = next(keys for most, keys in PARTS if streams <= most)
    share, parts = heads // groups, triton.cdiv(window, part)
    seen = torch.empty(streams * groups, parts, share * new, width, dtype=torch.float32, device=query_BTQD.device)
    lse = torch.empty(streams * groups, parts, share * new, dtype=torch.float32, device=query_BTQD.device)
    result = torch.empty_like(query_BTQD)
    sizes = {"T": new, "G": groups, "SHARE": share, "D": width, "S": parts}
    _part[triton.cdiv(share * new, ROWS), parts, streams * groups](
        query_BTQD, keys_CGD, values_CGD, read_BW, first_B, cos_WD, sin_WD, seen, lse, width**-0.5, W=read_BW.stride(0), ROWS=ROWS,
        KEYS=KEYS, PART=part, num_warps=4, **sizes,
    )  # fmt: skip
    _join[share * new, streams * groups](seen, lse, result, PARTS=triton.next_power_of_2(parts), num_warps=1, **sizes)
    return result
