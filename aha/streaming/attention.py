"""Attention of a decoder layer over keys and values that were read from a KVPool, by the kernel that is fastest for the sizes at hand.

Shapes: N blocks, T new tokens of a block, L tokens that a block reads, Q query heads, G key-value heads, D head width, X = Q / G * T,
R = T * Q.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

FEW_SCORES = 2**20  # queries times keys of one key head up to which attention is faster as two matrix products

# cuDNN's kernel is 1.8 times as fast as PyTorch's flash kernel on a Hopper GPU, but needs 60 ms to get ready for each new size: so it gets
# pieces of these sizes only, and flash the rest.
KEYS = 4096  # of the past
QUERIES = 1568  # new tokens are padded to a multiple: 32 frames of 49 in the published base

Kernel = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def softmax(scores: Tensor, mask: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (scores * scale + mask).softmax(-1, dtype=torch.float32).to(dtype)


def cudnn(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """-> seen [N, Q, T, D], log of the sum of the exponentials [N, Q, T, 1]."""
    return torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, causal)[:2]


def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The same numbers as `cudnn`, by PyTorch's flash kernel."""
    seen, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[:2]
    return seen, lse[..., None]


def merge(seen: Tensor, lse: Tensor, seen_too: Tensor, lse_too: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, in float32 as `seen`, from attention over each, weighted by their sums of exponentials. All [R, D]
    or [R, 1]: in the order of memory (in another one the compiled kernel takes twice as long)."""
    share = torch.sigmoid(lse - lse_too)
    return seen * share + seen_too.float() * (1 - share), torch.logaddexp(lse, lse_too)


def attend_in_pieces(
    query_1TQD: Tensor, key_1LGD: Tensor, value_1LGD: Tensor, fixed: Kernel, flexible: Kernel, merge: Callable = merge
) -> Tensor:
    """Causal attention of one block, the new tokens last, whose kernel `fixed` meets few different sizes. -> [1, Q, T, D]."""
    new, heads, width = query_1TQD.shape[1:]
    past = key_1LGD.shape[1] - new
    query = part(query_1TQD, 0, new, QUERIES)
    seen, lse = rows(*fixed(query, part(key_1LGD, past, past + new, QUERIES), part(value_1LGD, past, past + new, QUERIES), True))
    seen = seen.float()
    for start in range(0, past, KEYS):
        end = min(start + KEYS, past)
        kernel = fixed if end - start == KEYS else flexible
        seen, lse = merge(seen, lse, *rows(*kernel(query, part(key_1LGD, start, end), part(value_1LGD, start, end), False)))
    return seen[: new * heads].to(query.dtype).view(1, new, heads, width).transpose(1, 2)


def rows(seen_1QTD: Tensor, lse_1QT1: Tensor) -> tuple[Tensor, Tensor]:
    """-> [R, D], [R, 1]; the kernels give heads side by side as the queries were, so that the first is a view."""
    return seen_1QTD.transpose(1, 2).flatten(0, 2), lse_1QT1.transpose(1, 2).flatten(0, 2)


def part(x_1LGD: Tensor, start: int, end: int, multiple: int = 1) -> Tensor:
    """Some of the tokens, padded to a multiple (after the last: causal attention does not look there) -> [1, G, end - start, D].

    The stride of the first dimension, which is of no use, becomes independent of L: for cuDNN other strides are another size.
    """
    x_LGD = x_1LGD[0, start:end]
    missing = -len(x_LGD) % multiple
    return (F.pad(x_LGD, (0, 0, 0, 0, 0, missing)) if missing else x_LGD).transpose(0, 1)[None]


def attend_causal(query_NTQD: Tensor, key_NLGD: Tensor, value_NLGD: Tensor, merge: Callable = merge) -> Tensor:
    """The new tokens are the last: -> [N, Q, T, D]."""
    new, heads, length, groups = *query_NTQD.shape[1:3], *key_NLGD.shape[1:3]
    if len(query_NTQD) == 1 and length - new >= KEYS and new > QUERIES / 2 and hopper(query_NTQD):
        return attend_in_pieces(query_NTQD, key_NLGD, value_NLGD, cudnn, flash, merge)
    query, key, value = (x.transpose(1, 2) for x in (query_NTQD, key_NLGD, value_NLGD))
    bias = causal_lower_right(new, length) if 1 < new < length else None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=new == length, enable_gqa=heads != groups)


def hopper(x: Tensor) -> bool:
    """Whether `x` is on an NVIDIA GPU of the Hopper generation or later, in half precision, and cuDNN's and the flash kernel are both
    allowed (`torch.backends.cuda`)."""
    if not x.is_cuda or x.element_size() != 2 or torch.version.cuda is None:
        return False
    allowed = torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    return allowed and torch.cuda.get_device_capability(x.device) >= (9, 0)


def attend_folded(
    query_NGXD: Tensor, key_NLGD: Tensor, value_NLGD: Tensor, mask: Tensor, eager: bool, softmax: Callable = softmax
) -> Tensor:
    """Under a mask, with folded queries: nothing is repeated, and any kernel that takes a mask will do. -> [N, G, Q / G * T, D].

    One frame of one stream is too little work for such a kernel to fill a GPU: there the scores are a matrix product of their own, in
    float32 as inside the kernels.
    """
    key, value = key_NLGD.transpose(1, 2), value_NLGD.transpose(1, 2)
    scale, half = query_NGXD.shape[-1] ** -0.5, query_NGXD.dtype != torch.float32
    if eager:
        return softmax(query_NGXD @ key.transpose(-1, -2), mask, scale, query_NGXD.dtype) @ value
    if query_NGXD.is_cuda and half and len(query_NGXD) == 1 and query_NGXD.shape[2] * key.shape[2] <= FEW_SCORES:
        scores_GXL = torch.bmm(query_NGXD[0], key[0].transpose(-1, -2), out_dtype=torch.float32)
        return (softmax(scores_GXL, mask[0], scale, query_NGXD.dtype) @ value[0])[None]
    return F.scaled_dot_product_attention(query_NGXD, key, value, attn_mask=mask)
