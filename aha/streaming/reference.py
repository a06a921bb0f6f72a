"""The caches of the released Aha code, quirks included (cache_semantics="reference"), so that published numbers can be compared one by one.

How they differ from ours (aha.streaming.caches):

- text and the frame after it are fed in one call, and a call's first position is the cached length L, even where the window overflows;
- sink: once L + T reaches the window (also when it reaches it exactly and nothing is dropped), every kept key but the sinks is turned
  back by T, the number of new tokens, and not by that of dropped ones: positions may go below zero or lie ahead of the new tokens;
- sliding: keys are never turned back; new blocks lie on top of each other at positions W to W + T - 1;
- static: only the first call is kept, later ones see it and not themselves;
- with sdpa and eager, the causal mask is built for positions from L on and then cut to the window: in a full cache every token of a
  block sees the whole block. With flash attention 2 the mask is causal (`causal=True`).

Checked against the golden `caches.json` and `sink_positions.json`. Shapes: T new tokens of a block, L cached tokens, W window.
"""

from __future__ import annotations

import numpy as np

from aha.streaming.caches import NOTHING, Block, Cache


class ReferenceCache(Cache):
    """kind: sink, sliding or static. positions: [L], rotary position of every cached key (may be negative)."""

    joins_text = True
    window: int

    def __init__(self, kind: str, window: int, sink_tokens: int = 0, *, causal: bool = False):
        super().__init__(kind, window, sink_tokens)
        self.causal = causal
        self.positions = NOTHING

    def piece(self) -> int | None:
        return None

    def block(self, new: np.ndarray, role: str) -> Block:
        del role
        cached, count = len(self.slots), len(new)
        new_positions = np.arange(cached, cached + count)
        if self.kind == "static" and self.seen:
            self.seen += count
            self.dropped = [*self.dropped, new]
            return self._block(new, cached, self.slots, self.positions)
        slots, positions = np.concatenate([self.slots, new]), np.concatenate([self.positions, new_positions])
        if self.kind == "sliding":
            keep = np.arange(len(slots)) >= len(slots) - self.window
        elif self.kind == "sink" and len(slots) >= self.window:
            start = -self.window + self.sink_tokens + count  # the released slice, also where it is not negative
            kept = np.arange(cached)[start:] if start else np.arange(cached)
            positions[kept] -= count
            keep = np.zeros(len(slots), bool)
            keep[kept] = keep[cached:] = keep[: self.sink_tokens] = True
        else:
            keep = np.ones(len(slots), bool)
        self.dropped = [*self.dropped, slots[~keep]]
        self.slots, self.positions, self.pinned = slots[keep], positions[keep], np.zeros(int(keep.sum()), bool)
        self.seen += count
        return self._block(new, cached, self.slots, self.positions)

    def _block(self, new: np.ndarray, cached: int, read: np.ndarray, positions: np.ndarray) -> Block:
        visible_TL = None
        if not self.causal:
            visible_TL = np.arange(len(read)) <= cached + np.arange(len(new))[:, None]
        elif self.kind == "static" and len(read) == cached:
            visible_TL = np.tri(len(new), len(read), len(read) - len(new), dtype=bool)
        return Block(write=new, read=read, new_position=cached, positions=positions, visible=visible_TL)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "positions": self.positions.tolist()}

    def load_state_dict(self, state: dict, slots: np.ndarray) -> None:
        super().load_state_dict(state, slots)
        self.positions = np.array(state["positions"], np.int64)
