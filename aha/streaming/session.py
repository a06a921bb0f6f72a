"""A streaming session: frames and questions go in, scores and replies come out.

    session = model.stream(query="how to repair a tyre", cache="dynamic_sink", policy=Threshold(0.6))
    scores = session.push(frame)         # uint8 [3, S, S] or several [N, 3, S, S], S = model.config.frame.side -> FrameScores of [1] or [N]
    if session.wants_to_speak:
        print(session.respond())
    session.ask("which tool was that?")

All state is in the session: any number of them may run on one model. Pushing several frames at once gives the same scores as one by one;
frames of several sessions go into one forward call with `push_many`.

Shapes: N frames, K tokens of a frame (49 in the published base), T tokens, H decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llava_next import PUBLISHED, resolve_folder
from torch import Tensor

from aha.conversation import DuetFormat, DuetState, load_tokenizer, tokenizer_folder
from aha.core.prediction import score_rows
from aha.errors import UserError
from aha.models.model import FrameScores, WithHeads
from aha.streaming.caches import CACHES, DEFAULT_SINK_TOKENS, DEFAULT_WINDOW, LARGEST_WINDOW, SEMANTICS, Block, Cache
from aha.streaming.decoder import Decoder
from aha.streaming.policies import load_policy_state, policy_state
from aha.streaming.pool import KVPool
from aha.streaming.reference import ReferenceCache
from aha.streaming.step import Feed, run_feeds, step

if TYPE_CHECKING:
    from aha.streaming.online import OnlineEngine

SLACK = 512  # slots beyond the window: the frames of a chunk, and a reply that may be taken back


class Session:
    """One stream on a model.

    query: asked before the first frame. cache: full, sink, dynamic_sink, sliding or static, with `window` and `sink_tokens` in tokens
    (defaults 2048 and 32) and cache_semantics "aha" or "reference": see aha.streaming.caches. prompt_order: "aha" (as in training) or
    "reference". system_prompt: default that of the model's training. tokenizer: that of the checkpoint (default: where the model was loaded
    from). policy: when to speak (aha.streaming.policies); needs frame_fps, the frames pushed per second of video, for its clock.
    remove_assistant_turns: a reply leaves no trace in the cache (with cache_semantics="reference" on an Aha model it does: the released
    code forgets to remove it). pool: shared memory (push_many). decoder: a compiled one, for GPUs (aha.streaming.decoder). engine: through
    which single frames go (aha.streaming.online).
    Raises UserError for settings that cannot work.
    """

    def __init__(
        self,
        model: WithHeads,
        query: str | None = None,
        *,
        tokenizer: Any = None,
        cache: str = "full",
        window: int | None = None,
        sink_tokens: int | None = None,
        cache_semantics: str = "aha",
        prompt_order: str = "aha",
        system_prompt: str | None = None,
        policy: Any = None,
        frame_fps: float = 1.0,
        remove_assistant_turns: bool = False,
        max_new_tokens: int = 200,
        repetition_penalty: float | None = None,
        pool: KVPool | None = None,
        decoder: Decoder | None = None,
        engine: OnlineEngine | None = None,
    ):
        if max_new_tokens < 1 or frame_fps <= 0 or (repetition_penalty is not None and repetition_penalty <= 0):
            raise UserError("max_new_tokens must be at least 1, frame_fps and repetition_penalty above 0.")
        self.model = model
        self.format = DuetFormat(tokenizer if tokenizer is not None else tokenizer_of(model), model.config.tokens_per_frame)
        system_prompt = model.system_prompt if system_prompt is None else system_prompt
        self.state = DuetState(self.format, prompt_order, model.config.family, system_prompt)
        self.cache = make_cache(
            cache, window, sink_tokens, cache_semantics, len(self.format.system(system_prompt)), model.config._attn_implementation,
            model.config.tokens_per_frame,
        )  # fmt: skip
        self.keeps_removed_replies = cache_semantics == "reference" and model.config.family == "aha"
        self.policy, self.frame_fps = policy, frame_fps
        self.remove_assistant_turns, self.max_new_tokens, self.repetition_penalty = (
            remove_assistant_turns,
            max_new_tokens,
            repetition_penalty,
        )
        self.pool = pool if pool is not None else KVPool.of_model(model, (self.cache.window or 2 * DEFAULT_WINDOW) + SLACK)
        self.decoder = decoder if decoder is not None else Decoder(model)
        self.engine = engine
        self.asked = False
        self._ahead: Cache | None = None  # the cache with the text before the next frame in it, where `feed_ahead` has fed that
        self.lost = 0  # frames of the stream that were never pushed
        self.wants_to_speak = False
        self.reply_ids: list[int] = []  # tokens of the last reply, with its <|im_end|>
        self.penalised: list[int] = []  # words of all replies, which the repetition penalty makes less likely (ending never is)
        if query is not None:
            try:
                self.ask(query)
            except BaseException:  # nobody will have this session: the pool is shared, and what it took goes back
                self.close()
                raise

    @property
    def frames(self) -> int:
        """Frames pushed so far."""
        return self.state.frames

    @property
    def time(self) -> float:
        """Seconds of video at the last frame pushed."""
        return max(self.frames + self.lost - 1, 0) / self.frame_fps

    # ---- what goes in ----

    def ask(self, text: str) -> None:
        """A question or task, from the next frame on. Raises UserError, and changes nothing, where the window is too small for it."""
        state, role = self.state.copy(), "text" if self.asked else "prompt"
        ids = state.query(text)
        header = len(self.format.stream_header) if self.frames == 0 else 0  # which stays as well
        self.cache.check_room(len(ids), role, header + len(self.format.frame_ids))
        self.state = state
        self.feed_text(ids, role)
        self.asked = True

    def feed_ahead(self) -> None:
        """Feed now the text that lies before the next frame, which then does not wait for it. Nothing else changes: a question, a reply, a
        suspended session are as if this had not been called."""
        text = self.state.copy().frame()
        if text and self._ahead is None and not self.cache.joins_text:
            before, self.cache = self.cache, self.cache.snapshot()
            try:
                self.feed_text(text, self._role_before_frame, hold=True)
            except BaseException:
                self._ahead, self.cache = self.cache, before
                self._forget_ahead()
                raise
            self._ahead, self.cache = self.cache, before

    def skip(self, frames: int) -> None:
        """So many frames of the stream were lost: the session's time goes on, the model does not hear of it."""
        self.lost += frames

    def push(self, frames: Tensor | np.ndarray) -> FrameScores:
        """uint8 RGB [3, H, W] or [N, 3, H, W], already scaled and padded to the tower's size (aha.video.reader) -> scores [1] or [N].

        With a policy one frame at a time: look at `wants_to_speak` after each.
        """
        frames_NCHW = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
        if frames_NCHW.ndim == 3:
            frames_NCHW = frames_NCHW[None]
        if self.engine is not None and len(frames_NCHW) == 1:
            return self.engine.push([self], [frames_NCHW[0]])
        with torch.inference_mode():
            return self.push_embeds(self.model.visual_embed(frames_NCHW))

    def push_embeds(self, visual_NKH: Tensor) -> FrameScores:
        """Frame tokens [N, K, H] (`model.visual_embed`, or `model.project` of stored tower features) -> scores [N]."""
        if not len(visual_NKH) or (self.policy is not None and len(visual_NKH) > 1):
            raise ValueError(f"push of {len(visual_NKH)} frames: at least one, and with a policy one at a time")
        return step([self], [len(visual_NKH)], lambda feeds: run_feeds(self.model, self.decoder, self.pool, feeds, visual_NKH))

    # ---- the two halves of a step (aha.streaming.step) ----

    def open_frames(self, count: int) -> list[Feed]:
        """Feed the text that lies before the next `count` frames, and take slots for them."""
        role = self._role_before_frame
        # all of it lies before the first frame: later frames of an open turn add none
        text = [token for _ in range(count) for token in self.state.frame()]
        if self._ahead is not None:
            self.cache, self._ahead, text = self._ahead, None, []
        tokens, feeds = len(self.format.frame_ids), []
        if text and self.cache.joins_text:
            feeds.append(Feed(text, 1, self._block(len(text) + tokens, "frame")))
            count -= 1
        else:
            self.feed_text(text, role)
        if self.cache.kind == "full" and count:  # one long causal block: the same keys for all, no copies
            return [*feeds, Feed([], count, self._block(count * tokens, "frame"))]
        return feeds + [Feed([], 1, self._block(tokens, "frame")) for _ in range(count)]

    def close_frames(self, scores: FrameScores) -> None:
        """The frames of `open_frames` have these scores [N]: memory goes back, and the policy hears of them."""
        self.pool.give_back(self.cache.take_dropped())
        if self.policy is not None:
            (row,) = score_rows([self.time], *scores)
            self.wants_to_speak = self.policy.update(row)

    # ---- what comes out ----

    @torch.inference_mode()
    def respond(self, max_new_tokens: int | None = None) -> str:
        """Let the model speak now: greedy, until `<|im_end|>` or the limit. Returns the text; `reply_ids` holds the tokens."""
        before, removed = self.cache.snapshot(), self.remove_assistant_turns and not self.keeps_removed_replies
        penalised = torch.tensor(self.penalised, dtype=torch.long, device=self.model.decoder_device)
        hidden_1H = self.feed_text(self.state.begin_reply(), "reply", hold=removed)
        ids: list[int] = []
        limit = max_new_tokens or self.max_new_tokens
        while True:
            logits_V = self.model.lm_head(hidden_1H.to(self.model.lm_head.weight.dtype))[0].float()
            if self.repetition_penalty is not None:
                chosen = logits_V[penalised]
                logits_V[penalised] = torch.where(chosen > 0, chosen / self.repetition_penalty, chosen * self.repetition_penalty)
            token = logits_V.argmax()  # where logits are NaN, the place of the first NaN, which is checked next
            if not torch.isfinite(logits_V[token]):
                raise UserError("the reply's logits are not finite; the model overflows, try --dtype float32 or bfloat16.")
            ids.append(int(token))
            if ids[-1] == self.format.im_end_id or len(ids) == limit:
                break
            if self.repetition_penalty is not None:
                penalised = torch.cat([penalised, token[None]])
            hidden_1H = self.feed_text(ids[-1:], "reply", hold=removed)
        self.state.end_reply(ids, removed=self.remove_assistant_turns)
        if removed:
            self._restore(before)
        self.pool.give_back(self.cache.take_dropped())
        if self.repetition_penalty is not None:
            self.penalised += [token for token in ids if token != self.format.im_end_id]
        self.reply_ids, self.wants_to_speak = ids, False
        if self.policy is not None:
            self.policy.spoke(self.time)
        return self.format.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.inference_mode()
    def log_probability(self, reply: str) -> tuple[float, bool]:
        """Natural log of the probability that the model, speaking now, begins with `reply`, and whether greedy decoding would. The
        conversation stays as it was."""
        cache, state = self.cache.snapshot(), self.state.copy()
        hidden_1H = self.feed_text(self.state.begin_reply(), "reply", hold=True)
        total, greedy = 0.0, True
        ids = self.format.encode(reply)
        for place, token in enumerate(ids):
            log_V = self.model.lm_head(hidden_1H.to(self.model.lm_head.weight.dtype))[0].float().log_softmax(-1)
            total, greedy = total + float(log_V[token]), greedy and int(log_V.argmax()) == token
            if place + 1 < len(ids):
                hidden_1H = self.feed_text([token], "reply", hold=True)
        self._restore(cache)
        self.pool.give_back(self.cache.take_dropped())
        self.state = state
        return total, greedy

    def _restore(self, before: Cache) -> None:
        """Go back to an earlier state of the cache; what came since is dropped. Slots dropped since must not have been given back."""
        since = np.concatenate([self.cache.slots, *self.cache.dropped])
        before.dropped = [np.setdiff1d(since, before.slots)]
        self.cache = before

    def close(self) -> None:
        """Give the memory back to a shared pool; the session cannot be used afterwards."""
        self._forget_ahead()
        self.pool.give_back(np.concatenate([self.cache.slots, self.cache.take_dropped()]))
        self.cache.slots = self.cache.slots[:0]

    # ---- suspend and resume ----

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on, as plain values and one tensor: `torch.save` it, `torch.load(weights_only=True)` it."""
        return {
            "conversation": conversation_state(self.state),
            "cache": {
                "kind": self.cache.kind,
                "window": self.cache.window,
                "sink_tokens": self.cache.sink_tokens,
                **self.cache.state_dict(),
            },
            "kv": self.pool.gather(self.cache.slots).cpu(),
            "asked": self.asked,
            "lost": self.lost,
            "wants_to_speak": self.wants_to_speak,
            "penalised": list(self.penalised),
            "policy": policy_state(self.policy) if self.policy is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the session must have been made with the same settings. Raises UserError where it was not."""
        for name in ("kind", "window", "sink_tokens"):
            if state["cache"][name] != getattr(self.cache, name):
                raise UserError(
                    f"the suspended session has cache {name} {state['cache'][name]}, this one {getattr(self.cache, name)}; use the same."
                )
        if (state["policy"] is None) != (self.policy is None):
            raise UserError("the suspended session and this one must both have a policy, or neither.")
        self.close()
        slots = self.pool.take(state["kv"].shape[2])
        self.pool.scatter(slots, state["kv"])
        self.cache.load_state_dict(state["cache"], slots)
        for name, value in state["conversation"].items():
            setattr(self.state, name, value)
        self.asked, self.wants_to_speak, self.penalised = state["asked"], state["wants_to_speak"], list(state["penalised"])
        self.lost = state.get("lost", 0)  # a state of before this was counted has none
        if self.policy is not None:
            load_policy_state(self.policy, state["policy"])

    # ---- feeding ----

    @torch.inference_mode()
    def feed_text(self, ids: Sequence[int], role: str, hold: bool = False) -> Tensor:
        """Feed token ids, in pieces where the window is small -> hidden state of the last one [1, H], of none [0, H].
        role: see Cache.block. hold: what the cache drops is not given back yet."""
        self._forget_ahead()
        hidden = torch.empty(0, self.model.config.hidden_size)
        while ids:
            size = self.cache.piece() or len(ids)
            piece, ids = ids[:size], ids[size:]
            embeds_1TH = self.model.embed_tokens(torch.tensor([piece], device=self.model.decoder_device))
            plan = self.decoder.plan([self._block(len(piece), role)])
            hidden = self.decoder(embeds_1TH, self.pool, plan)[:, -1]
            if not hold:
                self.pool.give_back(self.cache.take_dropped())
        return hidden

    def _block(self, tokens: int, role: str) -> Block:
        slots = self.pool.take(tokens)
        try:
            return self.cache.block(slots, role)
        except UserError:
            self.pool.give_back(slots)
            raise

    @property
    def _role_before_frame(self) -> str:
        return "prompt" if self.frames == 0 else "text"

    def _forget_ahead(self) -> None:
        """Something else comes before the next frame than `feed_ahead` has fed."""
        if self._ahead is not None:
            fed = np.concatenate([self._ahead.slots, *self._ahead.dropped])
            self.pool.give_back(np.setdiff1d(fed, np.concatenate([self.cache.slots, *self.cache.dropped])))
            self._ahead = None


def compile_words(session: Session) -> None:
    """All that a compiled decoder compiles for text, now and not while streams wait for it: slots side by side and apart, and one token
    alone. The session is new, has slots side by side, and is closed."""
    between = session.pool.take(1)
    for ids in (session.format.stream_header, session.format.newline_ids[:1]):
        session.feed_text(ids, "text")
    session.close()
    session.pool.give_back(between)


def conversation_state(state: DuetState) -> dict[str, Any]:
    """What a DuetState remembers between events, as plain values."""
    return {"open_turn": state.open_turn, "frames": state.frames, "_pending": list(state._pending)}


def push_many(sessions: Sequence[Session], frames: Tensor | Sequence[Tensor]) -> FrameScores:
    """One frame for each of several sessions of one model and one pool, in one forward call -> scores [N], in the order of the sessions.

    frames: uint8 [N, 3, H, W], or N of [3, H, W]. Sessions may come and go between calls. The scores are those of pushing alone.
    """
    frames_NCHW = frames if isinstance(frames, Tensor) else torch.stack(list(frames))
    with torch.inference_mode():
        return push_many_embeds(sessions, sessions[0].model.visual_embed(frames_NCHW))


def push_many_embeds(sessions: Sequence[Session], visual_NKH: Tensor) -> FrameScores:
    """`push_many` for frame tokens [N, K, H]."""
    pool, model, decoder = sessions[0].pool, sessions[0].model, sessions[0].decoder
    if any(session.pool is not pool or session.model is not model for session in sessions):
        raise ValueError("push_many needs sessions of one model and one pool (Session(model, pool=pool))")
    return step(sessions, [1] * len(visual_NKH), lambda feeds: run_feeds(model, decoder, pool, feeds, visual_NKH))


def make_cache(
    kind: str, window: int | None, sink_tokens: int | None, semantics: str = "aha", prompt_tokens: int = 0, attention: str = "sdpa",
    tokens_per_frame: int = PUBLISHED.tokens,
) -> Cache:  # fmt: skip
    """The cache of that name. Raises UserError for sizes that cannot work."""
    if kind not in CACHES:
        raise UserError(f"cache {kind!r} is none of {', '.join(CACHES)}.")
    if semantics not in SEMANTICS:
        raise UserError(f"cache_semantics {semantics!r} is neither {' nor '.join(SEMANTICS)}.")
    window = DEFAULT_WINDOW if window is None else window
    sinks = DEFAULT_SINK_TOKENS if sink_tokens is None else sink_tokens
    if sinks < 0:
        raise UserError(f"sink_tokens is {sinks}, below 0.")
    if window > LARGEST_WINDOW:
        raise UserError(f"a window of {window} tokens is more than any memory holds; give at most {LARGEST_WINDOW:,} (--window).")
    smallest = 2 * tokens_per_frame + (sinks if kind == "sink" else 0)
    if kind in ("sink", "sliding", "dynamic_sink") and window < smallest:
        raise UserError(
            f"a window of {window} tokens is too small: with two frames and the sink it must be at least {smallest} (--window)."
        )
    if semantics == "reference":
        causal = attention == "flash_attention_2"
        if kind == "full":
            cache = Cache("full")
            cache.joins_text = True
            return cache
        if kind == "dynamic_sink":  # "instruction_sink": the system prompt is the sink, and the window shrinks by what that adds
            return ReferenceCache("sink", window - (prompt_tokens - sinks), prompt_tokens, causal=causal)
        return ReferenceCache(kind, window, sinks if kind == "sink" else 0, causal=causal)
    return Cache(kind, None if kind in ("full", "static") else window, sinks if kind == "sink" else 0)


def tokenizer_of(model: WithHeads) -> Any:
    """The tokenizer of the folders that the model was loaded from. Raises UserError where there is none."""
    folder = tokenizer_folder(resolve_folder(source) for source in model.tokenizer_sources)
    if folder is not None:
        return load_tokenizer(folder)
    where = " and ".join(model.tokenizer_sources) or "a checkpoint folder (the model was not loaded from one)"
    raise UserError(f"no tokenizer in {where}; copy the tokenizer files of the base model there, or give tokenizer=load_tokenizer(folder).")
