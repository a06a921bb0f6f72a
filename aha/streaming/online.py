"""The online engine: one frame of each stream as it arrives, from uint8 picture to scores, with little around the matrix products.

    engine = OnlineEngine(model, window=2048, max_streams=8)
    session = engine.open(query="someone falls", cache="dynamic_sink")
    scores = session.push(frame)                       # one stream
    scores = engine.push(sessions, frames)             # several in one forward call

All shapes are fixed: a pool of key-value slots, `window` slots read by each stream, buffers for frames and slot numbers. On a GPU each
size of batch (1, 2, 4, ... streams) is captured once as a CUDA graph, before the first frame, and replayed; the only wait is for the
scores. Elsewhere the same step runs without a graph. The scores are those of the other engines.

Shapes: B streams of a batch (padded to a captured size), T tokens of a frame, W window, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aha.models.model import AhaModel, FrameScores
from aha.streaming.caches import DEFAULT_WINDOW
from aha.streaming.decoder import ALIGNMENT, Decoder, Plan
from aha.streaming.pool import KVPool
from aha.streaming.session import SLACK, Session, tokenizer_of
from aha.streaming.step import Feed, step

WARM_UP_RUNS = 3


class _Graph:
    """The step of B streams in fixed shapes: its buffers and, on a GPU, its CUDA graph."""

    def __init__(self, engine: OnlineEngine, size: int):
        device, window = engine.decoder.device, engine.window
        side, tokens = engine.model.config.frame.side, engine.tokens
        self.engine, self.size = engine, size
        pinned = device.type == "cuda"

        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
            """(on the host, on the device)"""
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned), torch.zeros(shape, dtype=dtype, device=device)

        self.frames = buffer(size, 3, side, side, dtype=torch.uint8)
        # for each stream: slots to write, slots to read, position of the first token
        self.slots = buffer(size, tokens + window + 1)
        self.write, self.read, self.position = (part.numpy() for part in self._parts(self.slots[0]))
        self.write[:] = engine.scratch.reshape(-1, tokens)[:size]
        self.scores_host = torch.zeros(len(engine.heads), size, pin_memory=pinned)
        self.graph = None
        if pinned:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles, and lets the libraries choose their kernels
                for _ in range(WARM_UP_RUNS):
                    self.move_and_compute()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=engine.graph_memory):  # shared: graphs never run at the same time
                self.move_and_compute()

    def _parts(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        write, read, position = slots.split([self.engine.tokens, self.engine.window, 1], dim=1)
        return write, read, position[:, 0]

    def move_and_compute(self) -> None:
        """From the host buffers to the scores on the host: all of it is in the graph."""
        for host, on_device in (self.frames, self.slots):
            on_device.copy_(host, non_blocking=True)
        self.scores_host.copy_(self.compute(), non_blocking=True)

    def compute(self) -> Tensor:
        """Scores [heads, B] of what lies in the device buffers."""
        engine = self.engine
        write, read, position = self._parts(self.slots[1])
        position_BT = position[:, None] + engine.offsets
        plan = Plan(
            write.reshape(-1), read, engine.cos[position_BT], engine.sin[position_BT], engine.cos[None, : engine.window],
            engine.sin[None, : engine.window], engine.decoder.causal_mask(position + engine.tokens, engine.tokens, engine.window),
        )  # fmt: skip
        hidden_BTH = engine.decoder(engine.model.visual_embed(self.frames[1]), engine.pool, plan)
        scores = engine.model.score(hidden_BTH[:, -1])._asdict()
        return torch.stack([scores[head] for head in engine.heads])

    def run(self) -> Tensor:
        """Scores [heads, B], on the host, of what lies in the host buffers."""
        if self.graph is None:
            self.move_and_compute()
        else:
            self.graph.replay()
            torch.cuda.current_stream().synchronize()
        return self.scores_host.clone()


class OnlineEngine:
    """Streams of one model. window: tokens that a stream keeps at most (all streams alike). max_streams: open at the same time.
    compiled: see Decoder; here the vision tower too. Memory: (window + 512) slots a stream, all taken at the start."""

    @torch.inference_mode()
    def __init__(
        self, model: AhaModel, *, window: int = DEFAULT_WINDOW, max_streams: int = 1, tokenizer: Any = None, compiled: bool = False,
        max_batch: int | None = None,
    ):  # fmt: skip
        self.heads = list(model.config.heads)
        self.model, self.window = model, window + -window % ALIGNMENT
        self.tokenizer = tokenizer if tokenizer is not None else tokenizer_of(model)
        self.decoder, self.tokens = Decoder(model, compiled), model.config.tokens_per_frame
        if compiled:  # in large batches the tower is as fast as it is, and needs no seconds to compile
            model.compile_vision()
        self.max_batch = min(max_batch or max_streams, max_streams)
        self.pool = KVPool.of_model(model, max_streams * (self.window + SLACK) + self.max_batch * self.tokens, fixed=True)
        self.scratch = self.pool.take(self.max_batch * self.tokens)  # where padding writes
        self.offsets = torch.arange(self.tokens, device=self.decoder.device)
        cos, sin = self.decoder.rotary_table(torch.arange(self.window, device=self.decoder.device)[None])
        self.cos, self.sin = cos[0], sin[0]  # [W, 1, D]
        self.graph_memory = torch.cuda.graph_pool_handle() if self.decoder.device.type == "cuda" else None
        sizes = {self.max_batch, *(2**k for k in range(self.max_batch.bit_length()) if 2**k <= self.max_batch)}
        self.graphs = [_Graph(self, size) for size in sorted(sizes)]

    def open(self, query: str | None = None, **settings: Any) -> Session:
        """A session (settings as in Session, its cache bounded by the engine's window) whose frames go through this engine."""
        settings = {"cache": "dynamic_sink", "window": self.window, **settings}
        if settings["cache"] == "full" or settings.get("cache_semantics", "aha") != "aha" or settings["window"] > self.window:
            raise ValueError(f"the online engine serves our bounded caches with windows up to {self.window} tokens")
        return Session(self.model, query, tokenizer=self.tokenizer, pool=self.pool, decoder=self.decoder, engine=self, **settings)

    @torch.inference_mode()
    def push(self, sessions: Sequence[Session], frames: Sequence[np.ndarray | Tensor]) -> FrameScores:
        """One uint8 frame [3, S, S] (on the host) for each of several sessions -> scores [B] on the host, in their order."""
        return step(sessions, [1] * len(frames), lambda feeds: self._run(feeds, frames))

    def _run(self, feeds: list[Feed], frames: Sequence[np.ndarray | Tensor]) -> FrameScores:
        scores = torch.cat(
            [self._run_batch(feeds[k : k + self.max_batch], frames[k : k + self.max_batch]) for k in range(0, len(feeds), self.max_batch)],
            dim=1,
        )
        return FrameScores(**dict(zip(self.heads, scores)))

    def _run_batch(self, feeds: list[Feed], frames: Sequence[np.ndarray | Tensor]) -> Tensor:
        """Scores [heads, B]: the smallest step that is large enough, filled up with streams that write into scratch slots."""
        graph = next(graph for graph in self.graphs if graph.size >= len(feeds))
        for n, (feed, frame) in enumerate(zip(feeds, frames)):
            graph.frames[0][n] = torch.from_numpy(frame) if isinstance(frame, np.ndarray) else frame
            graph.write[n], graph.position[n] = feed.block.write, feed.block.new_position
            graph.read[n, : len(feed.block.read)] = feed.block.read
        graph.write[len(feeds) :] = self.scratch.reshape(-1, self.tokens)[len(feeds) : graph.size]
        graph.position[len(feeds) :] = 0
        return graph.run()[:, : len(feeds)]
