"""Attention in pieces is attention: any sizes, any cut, and each kernel meets only the sizes that it may meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming_model import difference, open_session
from test_streaming import TOLERANCE, frame_by_frame, score

from aha.streaming import attention


def plain(query, key, value, causal):
    """The kernels' contract in float64: seen, and the log of the sum of the exponentials."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1).double() for x in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return (scores.softmax(-1) @ value).to(query.dtype), scores.logsumexp(-1, keepdim=True).float()


def tokens(new: int, past: int, heads: int, groups: int, seed: int = 0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    query = scale * torch.randn(1, new, heads, 8, generator=generator)
    key, value = (torch.randn(1, past + new, groups, 8, generator=generator) for _ in range(2))
    return query, key, value


@settings(max_examples=60, deadline=None)
@given(
    new=st.integers(1, 23), past=st.integers(0, 40), heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]), scale=st.sampled_from([0.0, 1, 40])
)
def test_attention_in_pieces_equals_attention(new, past, heads, scale):
    query, key, value = tokens(new, past, *heads, scale=scale)
    sizes: set[tuple[int, int]] = set()

    def fixed(query, key, value, causal):
        sizes.add((query.shape[2], key.shape[2]))
        return plain(query, key, value, causal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "KEYS", 8)
        patch.setattr(attention, "QUERIES", 5)
        seen = attention.attend_in_pieces(query, key, value, fixed, plain)
    torch.testing.assert_close(seen, attention.attend_causal(query, key, value), atol=2e-5, rtol=1e-4)
    padded = new + -new % 5
    assert sizes <= {(padded, padded), (padded, 8)}  # two sizes for each padded number of new tokens, however long the past


def test_strides_tell_neither_how_long_the_past_is_nor_what_was_padded():
    """cuDNN gets ready anew (60 ms) for strides that it has not met, that of the first dimension too."""
    strides: list[list[tuple]] = []

    def fixed(query, key, value, causal):
        strides[-1].append((query.stride(), key.stride(), value.stride()))
        return plain(query, key, value, causal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "KEYS", 8)
        patch.setattr(attention, "QUERIES", 5)
        for new, past in ((5, 16), (5, 24), (4, 16)):
            strides.append([])
            seen = attention.attend_in_pieces(*tokens(new, past, 4, 2), fixed, plain)
            assert seen.stride() == (new * 4 * 8, 8, 4 * 8, 1)  # what is compiled for the layers around must not be compiled again
    assert [len(calls) for calls in strides] == [3, 4, 3] and set(strides[0]) == set(strides[1]) == set(strides[2])


def test_half_precision_is_rounded_once():
    query, key, value = (x.bfloat16() for x in tokens(7, 60, 4, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "KEYS", 4)
        parts = attention.attend_in_pieces(query, key, value, plain, plain)
    exact = attention.attend_causal(query.double(), key.double(), value.double())
    assert parts.dtype == torch.bfloat16
    assert (parts.double() - exact).abs().max() < 0.006  # 15 roundings of the sum would give several times as much


@pytest.mark.parametrize("chunk", [7, 33, 64])
def test_scores_of_a_long_stream_in_pieces_are_those_of_frame_by_frame(chunk, monkeypatch):
    """The whole path of a Hopper GPU, its kernels replaced by the same arithmetic."""
    expected = frame_by_frame("full", "aha")
    calls = []

    def kernel(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    for name, value in {"KEYS": 512, "QUERIES": 196, "hopper": lambda x: True, "cudnn": kernel, "flash": kernel}.items():
        monkeypatch.setattr(attention, name, value)
    assert difference(score(open_session(query="what is it?", cache="full"), chunk), expected) < TOLERANCE
    assert len(calls) >= 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("new, past", [(3136, 9441), (2303, 4096), (1568, 4129)])
def test_gpu_kernels_agree(new, past):
    query, key, value = (x.repeat(1, 1, 1, 16).to("cuda", torch.bfloat16) for x in tokens(new, past, 28, 4))
    exact = attention.attend_causal(query.float(), key.float(), value.float())
    assert (attention.attend_causal(query, key, value).float() - exact).abs().max() < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("firsts", [[0], [1999], [0, 500, 1999], [1999] * 9])
def test_gpu_kernel_over_slots_is_the_same_attention(firsts):
    """aha.streaming.kernels against rotation, gathering and attention done one after the other in float32."""
    from aha.streaming.decoder import rotate
    from aha.streaming.kernels import attend_slots

    new, heads, groups, width, window, slots = 49, 28, 4, 128, 2048, 9000
    generator = torch.Generator("cuda").manual_seed(0)
    query, keys, values = (
        torch.randn(*shape, device="cuda", generator=generator).bfloat16()
        for shape in ((len(firsts), new, heads, width), (slots, groups, width), (slots, groups, width))
    )
    angles = torch.arange(window, device="cuda")[:, None] * 1e6 ** (-torch.arange(0, width, 2, device="cuda") / width)
    cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()
    # as in the engine: rows and first ranks are columns of one buffer
    buffer = torch.stack(
        [torch.cat([torch.randperm(slots, generator=generator, device="cuda")[:window], torch.tensor([n], device="cuda")]) for n in firsts]
    )
    read, first = buffer.split([window, 1], dim=1)
    got = attend_slots(query, keys, values, read, first[:, 0].contiguous(), cos, sin).float()
    for n, rank in enumerate(firsts):
        end = rank + new
        key = rotate(keys[read[n, :end]][None], cos[:end, None], sin[:end, None]).float()
        turned = rotate(query[n : n + 1], cos[rank:end, None], sin[rank:end, None]).float()
        expected = attention.attend_causal(turned, key, values[read[n, :end]][None].float())[0].transpose(0, 1)
        assert (got[n] - expected).norm() < 0.01 * expected.norm()
