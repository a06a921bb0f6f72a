"""The online engine: one frame of each stream as it arrives, from uint8 picture to scores, with little around the matrix products.

    engine = OnlineEngine(model, window=2048, max_streams=8)
    session = engine.open(query="someone falls", cache="dynamic_sink")
    scores = session.push(frame)                       # one stream
    scores = engine.push(sessions, frames)             # several in one forward call
    engine.launch(sessions, frames)                    # the same in two halves: a GPU works while the caller does other things
    scores = engine.collect()

All shapes are fixed: a pool of key-value slots, `window` slots read by each stream, buffers for frames and slot numbers. On a GPU each
size of batch (1, 2, 4, ... streams) is captured once as CUDA graphs, before the first frame, and replayed; the only wait is for the
scores. Where the next frames are there already, the vision tower looks at them while the decoder works on those before. One stream alone
gets more: two of its frames are looked at together, because two cost a GPU little more than one, and its next step may be launched before
the last one's scores are there, so that the GPU never waits for Python. Elsewhere the same step runs without graphs. The scores are those
of the other engines.

Shapes: B streams of a batch (padded to a captured size), A batches that the tower looks at together, K or T tokens of a frame, W window,
D head width, H decoder width.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.cuda.green_contexts import GreenContext

from aha.models.model import FrameScores, WithHeads
from aha.streaming.caches import DEFAULT_WINDOW, Block
from aha.streaming.decoder import ALIGNMENT, Decoder, Plan
from aha.streaming.pool import KVPool
from aha.streaming.session import SLACK, Session, compile_words, tokenizer_of
from aha.streaming.step import begin, check_each_once, end

WARM_UP_RUNS = 3
Batch = Sequence[np.ndarray | Tensor]  # a frame of each of several streams


class _Host:
    """The host's side of one step that is under way: what the device reads from it, and what it writes there."""

    def __init__(self, graph: _Graph):
        pinned = graph.on_gpu
        self.slots = torch.zeros(graph.slots.shape, dtype=graph.slots.dtype, pin_memory=pinned)
        self.write, self.read, self.position = (part.numpy() for part in graph.parts(self.slots))
        self.scores = torch.zeros(graph.scores.shape, pin_memory=pinned)
        self.features = torch.zeros(graph.features_BH.shape, pin_memory=pinned)
        self.there = torch.cuda.Event() if pinned else None


class _Graph:
    """The step of B streams in fixed shapes: its buffers and, on a GPU, its CUDA graphs.

    Two halves: `look` takes frames through the vision tower to their tokens, `attend` takes the tokens in hand through the decoder to the
    scores. The tower looks ahead in a CUDA stream of its own (`engine.eyes`), while the decoder is at work: one computes where the other
    waits for memory. What it has seen is taken in hand when its turn comes.
    """

    def __init__(self, engine: OnlineEngine, size: int):
        device, hidden = engine.decoder.device, engine.model.config.hidden_size
        side, tokens = engine.model.config.frame.side, engine.tokens
        self.engine, self.size, self.ahead, self.on_gpu = engine, size, engine.depth, device.type == "cuda"
        frames = (self.ahead * size, 3, side, side)
        self.frames_host = torch.zeros(frames, dtype=torch.uint8, pin_memory=self.on_gpu)
        self.frames = torch.zeros(frames, dtype=torch.uint8, device=device)
        # for each stream: slots to write, slots to read, position of the first token
        self.slots = torch.zeros(size, tokens + engine.window + 1, dtype=torch.int64, device=device)
        self.parts(self.slots)[0][:] = torch.from_numpy(engine.scratch.reshape(-1, tokens)[:size])
        # tokens of the batches that were looked at, and of those in hand: the decoder works on the first, then the others move up
        self.seen_ABKH, self.hand_ABKH = (
            torch.zeros(self.ahead, size, tokens, hidden, dtype=engine.model.decoder_dtype, device=device) for _ in range(2)
        )
        self.scores = torch.zeros(len(engine.heads), size, device=device)
        self.features_BH = torch.zeros(size, hidden, device=device)
        self.hosts = deque(_Host(self) for _ in range(engine.depth))
        self.in_hand: list[Batch] = []  # whose tokens are in hand ...
        self.seen: list[Batch] = []  # ... and were looked at
        self.look, self.look_ahead, self.attend = self._look, self._look_ahead, self._attend
        if self.on_gpu:
            self.copied, self.looked = torch.cuda.Event(), torch.cuda.Event()
            here = torch.cuda.Stream()
            self.look, self.attend = self._captured(self._look, here, 0), self._captured(self._attend, here, 1)
            self.look_ahead = self._captured(self._look_ahead, engine.eyes, 0)

    def _captured(self, part: Callable[[], None], stream: torch.cuda.Stream, memory: int) -> Callable[[], None]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and lets the libraries choose their kernels
            for _ in range(WARM_UP_RUNS):
                part()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # memory is shared by graphs that never run at the same time: those of the tower, and those of the decoder
        with torch.cuda.graph(graph, pool=self.engine.graph_memory[memory], stream=stream):
            part()
        return graph.replay

    def parts(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        write, read, position = slots.split([self.engine.tokens, self.engine.window, 1], dim=1)
        return write, read, position[:, 0]

    def _look(self) -> None:
        """Frames of one batch -> their tokens."""
        self.seen_ABKH[0].copy_(self.engine.model.visual_embed(self.frames[: self.size]))

    def _look_ahead(self) -> None:
        """All frames -> their tokens."""
        self.seen_ABKH.copy_(self.engine.model.visual_embed(self.frames).view_as(self.seen_ABKH))

    def _attend(self) -> None:
        """Tokens in hand and slots -> scores, and the mean token of each frame; then the next tokens are in hand."""
        self.features_BH.copy_(self.hand_ABKH[0].float().mean(1))
        self.scores.copy_(self.compute())
        if self.ahead > 1:
            self.hand_ABKH[:-1].copy_(self.hand_ABKH[1:].clone())

    def compute(self) -> Tensor:
        """Scores [heads, B] of the tokens in hand and the slots."""
        engine = self.engine
        write, read, position = self.parts(self.slots)
        keys = engine.cos[None, : engine.window], engine.sin[None, : engine.window]
        if engine.decoder.attend_slots is not None:
            plan = Plan(write.reshape(-1), read, None, None, *keys, None, position.contiguous())
        else:
            position_BT = position[:, None] + engine.offsets
            mask = engine.decoder.causal_mask(position + engine.tokens, engine.tokens, engine.window)
            plan = Plan(write.reshape(-1), read, engine.cos[position_BT], engine.sin[position_BT], *keys, mask)
        hidden_BTH = engine.decoder(self.hand_ABKH[0], engine.pool, plan)
        scores = engine.model.score(hidden_BTH[:, -1])._asdict()
        return torch.stack([scores[head] for head in engine.heads])

    def launch(self, blocks: Sequence[Block], frames: Batch, upcoming: Sequence[Batch]) -> _Host:
        """`frames` at these places go through the model; the tower looks at the batches `upcoming` too, as far as it can. A GPU is not
        waited for: the scores will be in what is returned."""
        host = self.hosts[0]
        self.hosts.rotate(-1)
        for n, block in enumerate(blocks):
            host.write[n], host.position[n] = block.write, block.new_position
            host.read[n, : len(block.read)] = block.read
        # the step is filled up with streams that write into scratch slots
        host.write[len(blocks) :] = self.engine.scratch.reshape(-1, self.engine.tokens)[len(blocks) : self.size]
        host.position[len(blocks) :] = 0
        self.slots.copy_(host.slots, non_blocking=True)
        self._take_in_hand(frames)
        self.attend()
        host.scores.copy_(self.scores, non_blocking=True)
        host.features.copy_(self.features_BH, non_blocking=True)
        if host.there is not None:
            host.there.record()
        known = self.in_hand = self.in_hand[1:]
        if not (self.seen and _starts_with(upcoming, known + self.seen)):
            later = upcoming[len(known) :] if _starts_with(upcoming, known) else upcoming
            self._see(later[: self.ahead])
        return host

    def _take_in_hand(self, frames: Batch) -> None:
        if self.in_hand and _same(self.in_hand[0], frames):
            return
        if not (self.seen and _same(self.seen[0], frames)):
            if self.on_gpu:  # what the tower is at is not wanted; frames and tokens have one place
                torch.cuda.current_stream().wait_stream(self.engine.eyes)
            self._load([frames])
            self.look()
            self.seen = [frames]
        elif self.on_gpu:
            torch.cuda.current_stream().wait_event(self.looked)
        self.hand_ABKH.copy_(self.seen_ABKH)
        if self.on_gpu:
            self.engine.free.record()
        self.in_hand, self.seen = self.seen, []

    def _see(self, batches: Sequence[Batch]) -> None:
        """The tower begins to look at these, while the decoder is at work."""
        self.seen = list(batches)
        if not batches:
            return
        if not self.on_gpu:
            self._load(batches)
            return self.look_ahead()
        with torch.cuda.stream(self.engine.eyes):
            self.engine.eyes.wait_event(self.engine.free)
            self._load(batches)
            self.look_ahead()
            self.looked.record()

    def _load(self, batches: Sequence[Batch]) -> None:
        """By numpy, in this thread: torch would wake a thread for each core to copy half a megabyte."""
        if self.on_gpu:
            self.copied.synchronize()
        pictures_NCHW = self.frames_host.numpy()
        for a, frames in enumerate(batches):
            for n, frame in enumerate(frames):
                pictures_NCHW[a * self.size + n] = frame if isinstance(frame, np.ndarray) else frame.numpy()
        self.frames.copy_(self.frames_host, non_blocking=True)
        if self.on_gpu:
            self.copied.record()


def eyes_of(depth: int) -> tuple[torch.cuda.Stream, Any]:
    """Where the tower looks ahead, and what must be kept for that. Beside the decoder of one stream it gets half of the multiprocessors:
    the decoder, which waits for memory, then loses less, and each step as much as the other (measured: benchmarks/LOG.md). Where the
    driver cannot part them, and for many streams, whose frames fill a GPU, it gets all."""
    if depth > 1:
        half = torch.cuda.get_device_properties().multi_processor_count // 16 * 8  # they come by eights
        try:
            partition: Any = GreenContext.create(num_sms=half, device_id=torch.cuda.current_device())
            return partition.Stream(), partition
        except RuntimeError as error:
            print(f"note: the GPU's multiprocessors are not parted ({error}); one stream is a little slower.", file=sys.stderr)
    return torch.cuda.Stream(), None


def _starts_with(batches: Sequence[Batch], first: Sequence[Batch]) -> bool:
    return all(_same(one, other) for one, other in zip(batches, first))


def _same(some: Batch, others: Batch) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others))


class OnlineEngine:
    """Streams of one model. window: tokens that a stream keeps at most (all streams alike). max_streams: open at the same time.
    compiled: see Decoder; here the vision tower too. depth: steps that may be under way, and batches that the tower looks at together; more
    than one pays for one stream on a GPU, and is what that gets. Memory: (window + 512) slots a stream, all taken at the start."""

    @torch.inference_mode()
    def __init__(
        self, model: WithHeads, *, window: int = DEFAULT_WINDOW, max_streams: int = 1, tokenizer: Any = None, compiled: bool = False,
        max_batch: int | None = None, depth: int | None = None,
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
        self.depth = depth or (2 if self.works_alone and max_streams == 1 else 1)
        sizes = {self.max_batch, *(2**k for k in range(self.max_batch.bit_length()) if 2**k <= self.max_batch)}
        self.features_BH = torch.empty(0)  # on the host: the mean token of each frame of the last push, which tells pictures apart
        with self._current_gpu():
            if self.decoder.device.type == "cuda":
                self.graph_memory = torch.cuda.graph_pool_handle(), torch.cuda.graph_pool_handle()
                self.eyes, self._partition = eyes_of(self.depth)
                # what was seen last, by whichever graph, is in hand: they share the tower's memory, and one may follow a `look` of another
                self.free = torch.cuda.Event()
            self.graphs = [_Graph(self, size) for size in sorted(sizes)]
        self._launched: deque[tuple[_Host, Sequence[Session]]] = deque()
        if compiled:
            compile_words(self.open("words", cache="sliding"))

    def _current_gpu(self) -> contextlib.AbstractContextManager[Any]:
        """Streams, events and Triton's kernels belong to the current GPU: make it that of the model."""
        device = self.decoder.device
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()

    @property
    def foresight(self) -> int:
        """Batches after the one that is launched of which it is good to know the frames: those in hand, and those to be looked at."""
        return 2 * self.depth - 1

    @property
    def works_alone(self) -> bool:
        """Whether a launch comes back before its scores are there: on a GPU."""
        return self.decoder.device.type == "cuda"

    def open(self, query: str | None = None, **settings: Any) -> Session:
        """A session (settings as in Session, its cache bounded by the engine's window) whose frames go through this engine."""
        settings = {"cache": "dynamic_sink", "window": self.window, **settings}
        if settings["cache"] == "full" or settings.get("cache_semantics", "aha") != "aha" or settings["window"] > self.window:
            raise ValueError(f"the online engine serves our bounded caches with windows up to {self.window} tokens")
        return Session(self.model, query, tokenizer=self.tokenizer, pool=self.pool, decoder=self.decoder, engine=self, **settings)

    @torch.inference_mode()
    def push(self, sessions: Sequence[Session], frames: Batch, upcoming: Sequence[Batch] = ()) -> FrameScores:
        """One uint8 frame [3, S, S] (on the host) for each of several sessions -> scores [B] on the host, in their order.

        upcoming: the frames of the next calls, as far as they are known. Where all go into a step of one size, the vision tower looks at
        them while the decoder works on `frames`. Should the next call bring others, they are looked at then. A frame is known again as
        the same object: what was announced must not be written into before its scores are there.
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
    def launch(self, sessions: Sequence[Session], frames: Batch, upcoming: Sequence[Batch] = ()) -> None:
        """The first half of `push`, of at most max_batch sessions. Until `collect` nothing may be done with them, nor pushed, but the next
        of `depth` launches."""
        if len(self._launched) == self.depth:
            raise RuntimeError("frames are in the engine; collect their scores first")
        self._check_frames(itertools.chain(frames, *upcoming))
        feeds = begin(sessions, [1] * len(frames))
        graph = self._graph(len(feeds))
        known = itertools.takewhile(lambda batch: 0 < len(batch) <= self.max_batch and self._graph(len(batch)) is graph, upcoming)
        with self._current_gpu():
            self._launched.append((graph.launch([feed.block for feed in feeds], frames, list(known)), sessions))

    def _check_frames(self, frames: Iterable[np.ndarray | Tensor]) -> None:
        """Before anything has changed. NumPy would spread or round what has another shape or kind, and nobody would know."""
        side = self.model.config.frame.side
        for frame in frames:
            if frame.shape != (3, side, side) or frame.dtype not in (np.uint8, torch.uint8):
                raise ValueError(f"a frame is uint8 [3, {side}, {side}], not {frame.dtype} {list(frame.shape)}")

    @property
    def under_way(self) -> int:
        """Launches whose scores were not collected."""
        return len(self._launched)

    @torch.inference_mode()
    def collect(self) -> FrameScores:
        """The second half: waits for the scores [B] of the oldest launch, on the host."""
        if not self._launched:
            raise RuntimeError("no frames are in the engine; launch some first")
        host, sessions = self._launched.popleft()
        if host.there is not None:
            host.there.synchronize()
        count = len(sessions)
        # by numpy, as in _load
        self.features_BH = torch.from_numpy(host.features.numpy()[:count].copy())
        values = FrameScores(**dict(zip(self.heads, torch.from_numpy(host.scores.numpy()[:, :count].copy()))))
        end(sessions, [1] * count, values)
        return values

    def full_batch(self, waiting: int) -> int:
        """How many of `waiting` frames to take at once: what fills a captured step. A step that is padded takes as long as a full one; were
        steps rounded up, the frames that come meanwhile would keep them long for ever."""
        return max((graph.size for graph in self.graphs if graph.size <= waiting), default=waiting)

    def _graph(self, count: int) -> _Graph:
        """The smallest step that is large enough for `count` streams, which are at most max_batch."""
        return next(graph for graph in self.graphs if graph.size >= count)
