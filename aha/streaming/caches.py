"""Which tokens of a stream are kept, and what each new token may see. Pure bookkeeping in numpy: no model, no tensors.

A stream is fed in blocks: the tokens of a frame, or a piece of text. Before a block attends, as many old tokens are dropped as it
needs, so that what it sees, itself included, is at most `window` tokens; positions are their ranks, 0 to window - 1, so that they stay
contiguous and inside the range of training (StreamingLLM, Xiao et al. 2023, section 3.2). Inside a block attention is causal.

    full          nothing is dropped
    sink          the first `sink_tokens` tokens stay, of the others the most recent
    dynamic_sink  the prompt stays (system, what was asked before the first frame, and the first query if that comes later), of the others
                  the most recent (Aha, "dynamic sink")
    sliding       the most recent stay
    static        all that the user and the system said stays; of the video only the current frame

cache_semantics="reference" (aha.streaming.reference) does what the released Aha code does.

Shapes: T new tokens of a block, L tokens it sees.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from aha.errors import UserError

CACHES = ("full", "sink", "dynamic_sink", "sliding", "static")
SEMANTICS = ("aha", "reference")
DEFAULT_WINDOW = 2048  # tokens
LARGEST_WINDOW = 1 << 20  # tokens
DEFAULT_SINK_TOKENS = 32
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Block:
    """How one block attends. read: [L] slots, in order. new_position: of its first token. positions: [L], of the keys; None = ranks.
    visible: [T, L] booleans; None = causal, the block's tokens being the last T of `read`."""

    write: np.ndarray
    read: np.ndarray
    new_position: int
    positions: np.ndarray | None = None
    visible: np.ndarray | None = None


class Cache:
    """Our semantics. Arrays are replaced, never changed in place: a snapshot is a shallow copy.

    slots: [L] of the kept tokens, oldest first. pinned: [L], never dropped. dropped: slots that the owner of the pool may take back.
    """

    joins_text = False  # text and the frame after it are fed in one call

    def __init__(self, kind: str = "full", window: int | None = None, sink_tokens: int = 0):
        self.kind, self.window, self.sink_tokens = kind, window, sink_tokens
        self.slots, self.pinned = NOTHING, np.empty(0, bool)
        self.seen = 0  # tokens fed so far
        self.dropped: list[np.ndarray] = []

    def snapshot(self) -> Cache:
        return copy.copy(self)

    def block(self, new: np.ndarray, role: str) -> Block:
        """Feed a block into slots `new`. role: "prompt", "text" (queries, turn ends), "frame" or "reply".

        Raises UserError where it cannot fit.
        """
        keep = np.ones(len(self.slots), bool)
        if self.kind == "static" and role == "frame":
            keep = self.pinned
        if self.window is not None and (over := int(keep.sum()) + len(new) - self.window) > 0:
            oldest = np.flatnonzero(keep & ~self.pinned)[:over]
            if len(oldest) < over:
                raise self._too_small(int(self.pinned.sum()), len(new))
            keep = keep.copy()
            keep[oldest] = False
        if not keep.all():
            self.dropped = [*self.dropped, self.slots[~keep]]
        kept = self.slots[keep]
        pin = np.arange(self.seen, self.seen + len(new)) < self.sink_tokens
        if (self.kind == "dynamic_sink" and role == "prompt") or (self.kind == "static" and role in ("prompt", "text")):
            pin[:] = True
        self.slots, self.pinned = np.concatenate([kept, new]), np.concatenate([self.pinned[keep], pin])
        self.seen += len(new)
        return Block(write=new, read=self.slots, new_position=len(kept))

    def check_room(self, text: int, role: str, frame: int) -> None:
        """Raises UserError where a text of so many tokens would stay and leave no place for a frame: then no more could be fed."""
        if self.kind == "dynamic_sink" and role == "prompt" and self.window is not None:
            stay = int(self.pinned.sum()) + text
            if stay + frame > self.window:
                raise self._too_small(stay, frame)

    def _too_small(self, stay: int, new: int) -> UserError:
        return UserError(
            f"a window of {self.window} tokens cannot hold the {stay} tokens that stay and {new} new ones; "
            f"raise the window (--window) or shorten the prompt."
        )

    def piece(self) -> int | None:
        """The longest piece of text to feed at once; None = any."""
        return None if self.window is None else max((self.window - int(self.pinned.sum())) // 2, 1)

    def take_dropped(self) -> np.ndarray:
        dropped, self.dropped = self.dropped, []
        return np.concatenate([NOTHING, *dropped])

    def state_dict(self) -> dict:
        return {"pinned": self.pinned.tolist(), "seen": self.seen}

    def load_state_dict(self, state: dict, slots: np.ndarray) -> None:
        self.slots, self.pinned, self.seen, self.dropped = slots, np.array(state["pinned"], bool), state["seen"], []
