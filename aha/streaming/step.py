"""The step of every stream: what lies before a frame is fed, the frames attend, their scores are read and the policies hear of them.

    scores = step(sessions, counts, run)      # counts[n] frames of sessions[n]

One session with a chunk of frames, many sessions with a frame each, and the online engine all go through here; they differ in `run`, which
takes the feeds and gives the scores: `run_feeds` plans each call anew, the engine (aha.streaming.online) replays a graph of fixed shapes
and does its two halves, `begin` and `end`, apart: a GPU works in between.

Shapes: N frames of all feeds, K tokens of a frame, T tokens of a feed, H decoder width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aha.models.model import FrameScores, WithHeads
from aha.streaming.caches import Block
from aha.streaming.decoder import Decoder
from aha.streaming.pool import KVPool

if TYPE_CHECKING:
    from aha.streaming.session import Session


@dataclass(frozen=True)
class Feed:
    """One block: `text` (ids; only of caches that join text to the frame after it), then the tokens of `frames` frames."""

    text: list[int]
    frames: int
    block: Block


@torch.inference_mode()
def step(sessions: Sequence[Session], counts: Sequence[int], run: Callable[[list[Feed]], FrameScores]) -> FrameScores:
    """counts[n] frames of sessions[n], each session once -> scores [N], session after session."""
    scores = run(begin(sessions, counts))
    end(sessions, counts, scores)
    return scores


def begin(sessions: Sequence[Session], counts: Sequence[int]) -> list[Feed]:
    """The first half: what is to be run."""
    check_each_once(sessions, len(counts))
    return [feed for session, count in zip(sessions, counts) for feed in session.open_frames(count)]


def check_each_once(sessions: Sequence[Session], frames: int) -> None:
    if not sessions or len(sessions) != frames or len({id(session) for session in sessions}) != len(sessions):
        raise ValueError(f"{frames} frames for {len(sessions)} sessions: one frame for each, and each session once")


def end(sessions: Sequence[Session], counts: Sequence[int], scores: FrameScores) -> None:
    """The second half: the scores [N] are there."""
    start = 0
    for session, count in zip(sessions, counts):
        session.close_frames(scores.rows(start, start + count))
        start += count


def run_feeds(model: WithHeads, decoder: Decoder, pool: KVPool, feeds: list[Feed], visual_NKH: Tensor) -> FrameScores:
    """Feeds of one pool and their frames' tokens; feeds of one shape that follow each other go into one call of the decoder
    (keys at positions of their own are not mixed with keys at their ranks)."""
    visual_NKH = visual_NKH.to(model.decoder_device, model.decoder_dtype)
    tokens = visual_NKH.shape[1]
    ends, start = [], 0
    for (text, frames, _), group in itertools.groupby(feeds, lambda f: (len(f.text), f.frames, f.block.positions is None)):
        same = list(group)
        end = start + frames * len(same)
        embeds_NTH = visual_NKH[start:end].reshape(len(same), frames * tokens, -1)
        if text:
            embeds_NTH = torch.cat([model.embed_tokens(torch.tensor([f.text for f in same], device=embeds_NTH.device)), embeds_NTH], 1)
        hidden_NTH = decoder(embeds_NTH, pool, decoder.plan([feed.block for feed in same]))
        ends.append(hidden_NTH[:, text + tokens - 1 :: tokens].flatten(0, 1))  # the last token of each frame
        start = end
    return model.score(torch.cat(ends))
