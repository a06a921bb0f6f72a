"""The online engine: one frame of each stream as it arrives, from uint8 picture to scores, with little around the matrix products.

    engine = OnlineEngine(model, window=2048, max_streams=8)
    session = engine.open(query="someone falls", cache="dynamic_sink")
    scores = session.push(frame)                       # one stream
    scores = engine.push(sessions, frames)             # several in one forward call
    engine.launch(sessions, frames)                    # the same in two halves: a GPU works while the caller does other things
    scores = engine.collect()

All shapes are fixed: a pool of key-value slots, `window` slots read by each stream, buffers for frames and slot numbers. On a GPU each
size of batch (1, 2, 4, ... streams) is captured once as CUDA graphs, before the first frame, and replayed; the only wait is for the
scores. Where the next frames are there already, the vision tower looks at them beside the decoder. Elsewhere the same step runs without
graphs. The scores are those of the other engines.

Shapes: B streams of a batch (padded to a captured size), T tokens of a frame, W window, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aha.models.model import FrameScores, WithHeads
from aha.streaming.caches import DEFAULT_WINDOW
from aha.streaming.decoder import ALIGNMENT, Decoder, Plan
from aha.streaming.pool import KVPool
from aha.streaming.session import SLACK, Session, tokenizer_of
from aha.streaming.step import begin, check_each_once, end

WARM_UP_RUNS = 3


class _Graph:
    """The step of B streams in fixed shapes: its buffers and, on a GPU, its CUDA graphs.

    Two halves: `look` takes the frames through the vision tower, `attend` takes their tokens through the decoder to the scores. `both` does
    the decoder's half of the frames in hand and the tower's half of the next ones side by side: one waits for memory where the other
    computes.
    """

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
        self.features_host = torch.zeros(size, engine.model.config.hidden_size, pin_memory=pinned)
        self.tokens_BKH = torch.zeros(size, tokens, engine.model.config.hidden_size, dtype=engine.model.decoder_dtype, device=device)
        self.held: list[np.ndarray | Tensor] = []  # the frames whose tokens these are
        self.look, self.attend, self.both = self._look, self._attend, self._both
        if pinned:
            self.side = torch.cuda.Stream()
            self.look, self.attend, self.both = (self._captured(part) for part in (self._look, self._attend, self._both))

    def _captured(self, part: Callable[[], None]) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and lets the libraries choose their kernels
            for _ in range(WARM_UP_RUNS):
                part()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.engine.graph_memory):  # shared: graphs never run at the same time
            part()
        return graph.replay

    def _parts(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        write, read, position = slots.split([self.engine.tokens, self.engine.window, 1], dim=1)
        return write, read, position[:, 0]

    def _embedded(self) -> Tensor:
        self.frames[1].copy_(self.frames[0], non_blocking=True)
        return self.engine.model.visual_embed(self.frames[1])

    def _look(self) -> None:
        """Host frames -> tokens."""
        self.tokens_BKH.copy_(self._embedded())

    def _attend(self) -> None:
        """Tokens and host slots -> scores, and the mean token of each frame, on the host."""
        self.slots[1].copy_(self.slots[0], non_blocking=True)
        self.features_host.copy_(self.tokens_BKH.float().mean(1), non_blocking=True)
        self.scores_host.copy_(self.compute(), non_blocking=True)

    def _both(self) -> None:
        """`attend` for the tokens in hand; meanwhile `look` for the host frames, whose tokens then take their place."""
        if not self.slots[1].is_cuda:
            self._attend()
            return self._look()
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            ahead_BKH = self._embedded()
        self._attend()
        current.wait_stream(self.side)
        self.tokens_BKH.copy_(ahead_BKH)
        return None

    def compute(self) -> Tensor:
        """Scores [heads, B] of the tokens and slots on the device."""
        engine = self.engine
        write, read, position = self._parts(self.slots[1])
        keys = engine.cos[None, : engine.window], engine.sin[None, : engine.window]
        if engine.decoder.attend_slots is not None:
            plan = Plan(write.reshape(-1), read, None, None, *keys, None, position.contiguous())
        else:
            position_BT = position[:, None] + engine.offsets
            mask = engine.decoder.causal_mask(position + engine.tokens, engine.tokens, engine.window)
            plan = Plan(write.reshape(-1), read, engine.cos[position_BT], engine.sin[position_BT], *keys, mask)
        hidden_BTH = engine.decoder(self.tokens_BKH, engine.pool, plan)
        scores = engine.model.score(hidden_BTH[:, -1])._asdict()
        return torch.stack([scores[head] for head in engine.heads])

    def load(self, frames: Sequence[np.ndarray | Tensor]) -> None:
        """By numpy, in this thread: torch would wake a thread for each core to copy half a megabyte."""
        pictures_BCHW = self.frames[0].numpy()
        for n, frame in enumerate(frames):
            pictures_BCHW[n] = frame if isinstance(frame, np.ndarray) else frame.numpy()

    def holds(self, frames: Sequence[np.ndarray | Tensor]) -> bool:
        return len(self.held) == len(frames) and all(one is other for one, other in zip(self.held, frames))

    def launch(self, frames: Sequence[np.ndarray | Tensor], upcoming: Sequence[np.ndarray | Tensor]) -> None:
        """`frames`, and what lies in the host slots, go through the model; the tower looks at `upcoming` too. A GPU is not waited for."""
        if not self.holds(frames):
            self.load(frames)
            self.look()
            if upcoming and self.scores_host.is_pinned():  # the copy out of the host buffer must be done before it is filled again
                torch.cuda.current_stream().synchronize()
        if upcoming:
            self.load(upcoming)
            self.both()
        else:
            self.attend()
        self.held = list(upcoming)

    def collect(self) -> tuple[Tensor, Tensor]:
        """Scores [heads, B] and mean tokens [B, H] of what was launched, on the host, when they are there."""
        if self.scores_host.is_pinned():
            torch.cuda.current_stream().synchronize()
        return self.scores_host.clone(), self.features_host.clone()


class OnlineEngine:
    """Streams of one model. window: tokens that a stream keeps at most (all streams alike). max_streams: open at the same time.
    compiled: see Decoder; here the vision tower too. Memory: (window + 512) slots a stream, all taken at the start."""

    @torch.inference_mode()
    def __init__(
        self, model: WithHeads, *, window: int = DEFAULT_WINDOW, max_streams: int = 1, tokenizer: Any = None, compiled: bool = False,
        max_batch: int | None = None,
    ):  # fmt: skip
        self.heads = list(model.config.heads)
        self.model, self.window = model, window + -window % ALIGNMENT
        self.tokenizer = tokenizer if tokenizer is not None else tokenizer_of(model)
        self.decoder, self.tokens = Decoder(model, compiled), model.config.tokens_per_frame
        if compiled:  # helps small batches; of large ones the plain tower is as fast and needs no compiling
            model.compile_vision()
        self.max_batch = min(max_batch or max_streams, max_streams)
        self.pool = KVPool.of_model(model, max_streams * (self.window + SLACK) + self.max_batch * self.tokens, fixed=True)
        self.scratch = self.pool.take(self.max_batch * self.tokens)  # where padding writes
        self.offsets = torch.arange(self.tokens, device=self.decoder.device)
        cos, sin = self.decoder.rotary_table(torch.arange(self.window, device=self.decoder.device)[None])
        self.cos, self.sin = cos[0], sin[0]  # [W, 1, D]
        self.graph_memory = torch.cuda.graph_pool_handle() if self.decoder.device.type == "cuda" else None
        sizes = {self.max_batch, *(2**k for k in range(self.max_batch.bit_length()) if 2**k <= self.max_batch)}
        self.features_BH = torch.empty(0)  # on the host: the mean token of each frame of the last push, which tells pictures apart
        self.graphs = [_Graph(self, size) for size in sorted(sizes)]
        self._launched: tuple[_Graph, Sequence[Session]] | None = None

    @property
    def works_alone(self) -> bool:
        """Whether a launch comes back before its scores are there: on a GPU."""
        return self.graph_memory is not None

    def open(self, query: str | None = None, **settings: Any) -> Session:
        """A session (settings as in Session, its cache bounded by the engine's window) whose frames go through this engine."""
        settings = {"cache": "dynamic_sink", "window": self.window, **settings}
        if settings["cache"] == "full" or settings.get("cache_semantics", "aha") != "aha" or settings["window"] > self.window:
            raise ValueError(f"the online engine serves our bounded caches with windows up to {self.window} tokens")
        return Session(self.model, query, tokenizer=self.tokenizer, pool=self.pool, decoder=self.decoder, engine=self, **settings)

    @torch.inference_mode()
    def push(
        self, sessions: Sequence[Session], frames: Sequence[np.ndarray | Tensor], upcoming: Sequence[np.ndarray | Tensor] = ()
    ) -> FrameScores:
        """One uint8 frame [3, S, S] (on the host) for each of several sessions -> scores [B] on the host, in their order.

        upcoming: the frames of the next call, as far as they are known. Where both calls go into a step of one size, the vision tower looks
        at them while the decoder works on `frames`. Should the next call bring others, they are looked at then.
        """
        check_each_once(sessions, len(frames))
        if len(sessions) > self.max_batch:
            upcoming = ()
        scores, features = [], []
        for k in range(0, len(sessions), self.max_batch):
            self.launch(sessions[k : k + self.max_batch], frames[k : k + self.max_batch], upcoming)
            scores.append(self.collect())
            features.append(self.features_BH)
        self.features_BH = torch.cat(features)
        return FrameScores(**{head: torch.cat([getattr(some, head) for some in scores]) for head in self.heads})

    @torch.inference_mode()
    def launch(
        self, sessions: Sequence[Session], frames: Sequence[np.ndarray | Tensor], upcoming: Sequence[np.ndarray | Tensor] = ()
    ) -> None:
        """The first half of `push`, of at most max_batch sessions. Until `collect` nothing else may be done with them, nor pushed."""
        if self._launched is not None:
            raise RuntimeError("frames are in the engine; collect their scores first")
        feeds = begin(sessions, [1] * len(frames))
        graph = self._graph(len(feeds))
        if not upcoming or len(upcoming) > self.max_batch or self._graph(len(upcoming)) is not graph:
            upcoming = ()
        for n, feed in enumerate(feeds):
            graph.write[n], graph.position[n] = feed.block.write, feed.block.new_position
            graph.read[n, : len(feed.block.read)] = feed.block.read
        # the step is filled up with streams that write into scratch slots
        graph.write[len(feeds) :] = self.scratch.reshape(-1, self.tokens)[len(feeds) : graph.size]
        graph.position[len(feeds) :] = 0
        graph.launch(frames, upcoming)
        self._launched = graph, sessions

    @torch.inference_mode()
    def collect(self) -> FrameScores:
        """The second half: waits for the scores [B] of what was launched, on the host."""
        if self._launched is None:
            raise RuntimeError("no frames are in the engine; launch some first")
        (graph, sessions), self._launched = self._launched, None
        scores, features_BH = graph.collect()
        count = len(sessions)
        self.features_BH = features_BH[:count]
        values = FrameScores(**dict(zip(self.heads, scores[:, :count])))
        end(sessions, [1] * count, values)
        return values

    def full_batch(self, waiting: int) -> int:
        """How many of `waiting` frames to take at once: what fills a captured step. A step that is padded takes as long as a full one; were
        steps rounded up, the frames that come meanwhile would keep them long for ever."""
        return max((graph.size for graph in self.graphs if graph.size <= waiting), default=waiting)

    def _graph(self, count: int) -> _Graph:
        """The smallest step that is large enough for `count` streams, which are at most max_batch."""
        return next(graph for graph in self.graphs if graph.size >= count)
