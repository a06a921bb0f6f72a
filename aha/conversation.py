"""The video-text duet format: the one place that knows which token ids a conversation is made of.

Text of a conversation: `<|im_start|>system\\n{prompt}<|im_end|>`, then for each turn `\\n<|im_start|>{role}\\n{content}<|im_end|>`;
the content of a stream turn is `<image>` x 49 per frame (K of another base). The score of a frame is read at its last token.
(MMDuet, Wang et al. 2024, section 3.)

Training renders a whole conversation (`DuetFormat.render`); scoring and generation feed the same ids piece by piece (`DuetState`),
so that what streaming feeds, concatenated, is what training saw. `prompt_order="reference"` reproduces the order of the released
MMDuet and Aha inference code, in which a query at time 0 stands before the system prompt.

Content is encoded with special tokens switched off: `<|im_end|>` or `<image>` typed by a user stays plain text.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_next import PUBLISHED

from aha.core.checked import writable
from aha.core.files import read_json
from aha.core.heads import LABELLED
from aha.errors import UserError

IGNORE_INDEX = -100  # "no label here", as in torch.nn.functional.cross_entropy
IM_START, IM_END, IMAGE = "<|im_start|>", "<|im_end|>", "<image>"
ROLES = ("system", "user", "assistant", "stream")
PROMPT_ORDERS = ("aha", "reference")
FAMILIES = ("aha", "mmduet")
DEFAULT_SYSTEM_PROMPT = (
    "A multimodal AI assistant is helping users with some activities. Below is their conversation, interleaved with the list of video "
    "frames received by the assistant."
)


def load_tokenizer(path: str | os.PathLike) -> Any:
    """Tokenizer of a base or adapter folder, or of a hub id, with `<image>` as a special token.

    `<image>` gets the next free id where the folder does not have it (base checkpoints); adapters carry it already.
    Raises UserError where there is no tokenizer or it lacks the chat tokens.
    """
    from llava_next import resolve_folder  # it imports torch, which the rest of this module does not need
    from transformers import AddedToken, AutoTokenizer

    folder = resolve_folder(path)
    try:
        with warnings.catch_warnings():  # transformers reads config.json as well, and calls its settings of 2024 deprecated
            warnings.simplefilter("ignore", FutureWarning)
            tokenizer = AutoTokenizer.from_pretrained(os.fspath(folder))
        missing = [token for token in (IM_START, IM_END) if token not in tokenizer.get_vocab()]
        # Added even where the folder has it: some store it as an ordinary added token, which text of a user could then produce.
        tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
        tokenizer("a word", add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = str(error).strip().split("\n")[0][:200]
        cure = "it must hold tokenizer.json, or vocab.json and merges.txt, as they were downloaded"
        raise UserError(f"no tokenizer could be loaded from {path} ({reason}); {cure}.") from error
    if missing:
        raise UserError(f"the tokenizer in {path} has no token {' and no '.join(missing)}; use the tokenizer of a Qwen2 chat checkpoint.")
    return tokenizer


def tokenizer_folder(folders: Iterable[Path | None]) -> Path | None:
    """The first of these folders that holds a tokenizer (an adapter's before its base's); None where none does."""
    found = (f for f in folders if f is not None and any((f / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")))
    return next(found, None)


def recorded_system_prompt(folders: Iterable[Path]) -> str:
    """The system prompt that a model was trained with: what the first settings.json of these folders (an adapter's before its base's) says
    under data, system_prompt; the usual one where there is none. Raises UserError for a settings.json that cannot be read."""
    for path in (folder / "settings.json" for folder in folders):
        if path.is_file():
            settings = read_json(path, "settings of a training run")
            data = settings.get("data") if isinstance(settings, dict) else None
            prompt = data.get("system_prompt") if isinstance(data, dict) else None
            if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
                raise UserError(f"{path}: data, system_prompt is {str(prompt)[:40]!r}, which is no text; repair the file.")
            return prompt or DEFAULT_SYSTEM_PROMPT
    return DEFAULT_SYSTEM_PROMPT


def checked_system_prompt(text: str | None) -> None:
    """Raises UserError for a --system_prompt without words."""
    if text is not None and not text.strip():
        raise UserError("--system_prompt is empty; give its words, or leave the flag out.")


@dataclass(frozen=True)
class Turn:
    """One turn. `stream` turns have `num_frames` and no content, the others content and no frames.

    `learn`: for an assistant turn, whether its words (and closing `<|im_end|>`) are language-model targets.
    `informative`, `relevance` (one field for each head that has labels, aha.core.heads): the label of each frame of a stream turn
    (IGNORE_INDEX = none), or None where the turn has no such labels.
    """

    role: str
    content: str = ""
    num_frames: int = 0
    learn: bool = False
    informative: tuple[int, ...] | None = None
    relevance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is none of {', '.join(ROLES)}")
        if self.role == "stream" and self.content:
            raise ValueError("a stream turn has frames, no content")
        if self.role != "stream" and self.num_frames:
            raise ValueError(f"a {self.role} turn has no frames")
        if self.num_frames < 0:
            raise ValueError(f"num_frames is {self.num_frames}, below 0")
        for head in LABELLED:
            labels = getattr(self, head.name)
            if labels is not None and len(labels) != self.num_frames:
                raise ValueError(f"a stream turn of {self.num_frames} frames has {len(labels)} {head.name} labels")
        object.__setattr__(self, "content", writable(self.content))


@dataclass(frozen=True)
class Rendered:
    """A whole conversation. T tokens, F frames.

    text: as text, content verbatim. input_ids: [T]. learn_mask: [T], the words of learned replies, each with its closing `<|im_end|>`.
    frame_token_positions: [F], index of the last token of each frame, where its scores are read. image_token_positions: [K F].
    """

    text: str
    input_ids: list[int]
    learn_mask: list[bool]
    frame_token_positions: list[int]
    image_token_positions: list[int]


class DuetFormat:
    """Token ids of the format's pieces for one tokenizer and one base (`config.tokens_per_frame`). All methods return lists of ids."""

    def __init__(self, tokenizer: Any, tokens_per_frame: int = PUBLISHED.tokens):
        self.tokenizer, self.tokens_per_frame = tokenizer, tokens_per_frame
        vocabulary = tokenizer.get_vocab()
        absent = [token for token in (IM_START, IM_END, IMAGE) if token not in vocabulary]
        if absent:
            raise ValueError(f"the tokenizer lacks {', '.join(absent)}; load it with aha.conversation.load_tokenizer")
        self.im_start_id, self.im_end_id, self.image_id = (vocabulary[token] for token in (IM_START, IM_END, IMAGE))
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.im_end_id
        self.newline_ids = self.encode("\n")
        self.frame_ids = [self.image_id] * tokens_per_frame
        self.stream_header = self._header("stream")
        self.assistant_header = self._header("assistant")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; control tokens written in it come out as ordinary characters."""
        return self.tokenizer(writable(text), add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []

    def _header(self, role: str) -> list[int]:
        return [*self.newline_ids, self.im_start_id, *self.encode(f"{role}\n")]

    def system(self, prompt: str = DEFAULT_SYSTEM_PROMPT) -> list[int]:
        """`<|im_start|>system\\n{prompt}<|im_end|>`"""
        return [self.im_start_id, *self.encode(f"system\n{prompt}"), self.im_end_id]

    def query(self, text: str) -> list[int]:
        """`\\n<|im_start|>user\\n{text}<|im_end|>`"""
        return [*self.newline_ids, self.im_start_id, *self.encode(f"user\n{text}"), self.im_end_id]

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """The ids of a whole conversation, and where its labels and frames are. Stream turns without frames are left out.

        A system turn may only come first. Raises ValueError otherwise.
        """
        text: list[str] = []
        ids: list[int] = []
        mask: list[bool] = []
        images: list[int] = []

        def control(token: str, token_id: int, learn: bool = False) -> None:
            text.append(token)
            ids.append(token_id)
            mask.append(learn)

        def plain(string: str, learn: bool = False) -> None:
            new_ids = self.encode(string)
            text.append(string)
            ids.extend(new_ids)
            mask.extend([learn] * len(new_ids))

        for i, turn in enumerate(turns):
            if turn.role == "stream" and turn.num_frames == 0:
                continue
            if turn.role == "system":
                if i > 0:
                    raise ValueError(f"turn {i} is a system turn; only the first turn may be one")
            else:
                plain("\n")
            control(IM_START, self.im_start_id)
            learn = turn.learn and turn.role == "assistant"
            if turn.role == "stream":
                plain("stream\n")
                for _ in range(turn.num_frames * self.tokens_per_frame):
                    images.append(len(ids))
                    control(IMAGE, self.image_id)
            elif turn.role == "assistant":
                # The header apart from the words: generation feeds it alone, so the first word's token may not merge with its newline.
                plain("assistant\n")
                plain(turn.content, learn)
            else:
                plain(f"{turn.role}\n{turn.content}")
            control(IM_END, self.im_end_id, learn)
        return Rendered(
            text="".join(text), input_ids=ids, learn_mask=mask,
            frame_token_positions=images[self.tokens_per_frame - 1 :: self.tokens_per_frame], image_token_positions=images,
        )  # fmt: skip


@dataclass
class DuetState:
    """Which ids to feed next while a video streams in. Pure bookkeeping: no model, no cache.

    Each event method returns the text ids that must be fed: `query` before anything else of that moment, `frame` just before the frame's
    visual tokens (one forward call), `begin_reply` before the first generated token. Generated tokens are fed one by one by the caller,
    all but the last one: `end_reply` takes the whole list and keeps the last for the next event.

    `prompt_order="aha"` is the training order: system, query, stream; every turn is closed. After a removed reply the state is that of
    before `begin_reply`; the caller crops its cache to the same point.

    `prompt_order="reference"` does what the released inference code does: a query at time 0 comes first; the system prompt follows it just
    before frame 0 (`family="aha"`) or never comes (`family="mmduet"`, whose test is an empty cache); without an early query frame 0 follows
    the system prompt with no stream header; a query right after a reply is not preceded by the reply's end.
    """

    format: DuetFormat
    prompt_order: str = "aha"
    family: str = "aha"
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    open_turn: str = "nothing"  # the last event, in short: nothing yet, "stream" and "assistant" are open turns, all else is closed
    frames: int = 0  # frames fed so far
    _pending: list[int] = field(default_factory=list)  # ids of a kept reply not fed yet
    _before_reply: DuetState | None = None

    def __post_init__(self) -> None:
        if self.prompt_order not in PROMPT_ORDERS:
            raise ValueError(f"prompt_order {self.prompt_order!r} is none of {', '.join(PROMPT_ORDERS)}")
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is none of {', '.join(FAMILIES)}")

    def copy(self) -> DuetState:
        """An independent copy, for looking ahead."""
        other = copy.copy(self)
        other._pending = list(self._pending)
        return other

    def query(self, text: str) -> list[int]:
        """Ids of a user's query."""
        self._no_reply_open("query")
        if self.prompt_order == "reference":
            closing = [self.format.im_end_id] if self.open_turn == "stream" else []
            self.open_turn, self._pending = "query", []
            return [*closing, *self.format.query(text), *self.format.stream_header]
        ids = [*self._close(), *self.format.query(text)]
        self.open_turn = "closed"
        return ids

    def frame(self) -> list[int]:
        """Ids to feed in front of the next frame's visual tokens (often none)."""
        self._no_reply_open("frame")
        if self.prompt_order == "reference":
            first = self.frames == 0 and (self.family == "aha" or self.open_turn == "nothing")
            ids = self.format.system(self.system_prompt) if first else self._pending
        elif self.open_turn == "stream":
            ids = []
        else:
            ids = [*self._close(), *self.format.stream_header]
        self.open_turn, self._pending = "stream", []
        self.frames += 1
        return ids

    def begin_reply(self) -> list[int]:
        """Ids that make the model answer: the end of the stream turn and the assistant header."""
        self._no_reply_open("reply")
        self._before_reply = self.copy()
        ids = [*self._close(), *self.format.assistant_header]
        self.open_turn = "assistant"
        return ids

    def end_reply(self, token_ids: Sequence[int], *, removed: bool = False) -> None:
        """The reply is over. `token_ids`: all generated tokens, with the final `<|im_end|>` if there was one; the last was not fed."""
        if self.open_turn != "assistant" or self._before_reply is None:
            raise ValueError("end_reply without begin_reply")
        if not token_ids:
            raise ValueError("a reply has at least one token (its <|im_end|>)")
        before, self._before_reply = self._before_reply, None
        if removed:
            self.open_turn, self._pending = before.open_turn, before._pending
            if self.prompt_order == "reference":
                self.open_turn = "reply removed"  # a query that comes next does not close the stream
        elif self.prompt_order == "reference":
            self.open_turn = "reply kept"
            self._pending = [token_ids[-1], *self.format.stream_header]
        else:
            self.open_turn = "closed"
            # A reply cut at the length limit never emitted its end.
            self._pending = [token_ids[-1]] if token_ids[-1] == self.format.im_end_id else [token_ids[-1], self.format.im_end_id]

    def _close(self) -> list[int]:
        """What must come before a new turn (training order): the system prompt at the very start, the end of what is open otherwise."""
        if self.open_turn == "nothing":
            return self.format.system(self.system_prompt)
        if self.open_turn == "stream":
            return [self.format.im_end_id]
        pending, self._pending = self._pending, []
        return pending

    def _no_reply_open(self, what: str) -> None:
        if self.open_turn == "assistant":
            raise ValueError(f"a {what} while a reply is being generated; call end_reply first")


LONGEST_QUERY = 2000  # characters


@dataclass(frozen=True)
class Query:
    """A user's request and when it is made (seconds of video)."""

    text: str
    time: float = 0.0


def checked_query(text: str) -> str:
    """The task as it is given to the model. Raises UserError for an empty or endless one."""
    text = text.strip()
    if not text:
        raise UserError("the query is empty; say in plain words what to look for.")
    if len(text) > LONGEST_QUERY:
        raise UserError(f"the query has {len(text):,} characters, more than {LONGEST_QUERY:,}; say it in fewer words.")
    return text


class QuerySchedule:
    """Hands out queries when their time has come.

    `prompt_order="aha"`: before each frame, every query whose time is at or before that frame's time in the video.
    `prompt_order="reference"`: at most one query a frame, in the order given, against a clock that is a running float sum of 1/fps.
    """

    def __init__(self, queries: Iterable[Query], prompt_order: str = "aha", frame_fps: float = 1.0):
        self.reference = prompt_order == "reference"
        self.waiting = list(queries) if self.reference else sorted(queries, key=lambda query: query.time)
        self.step = 1 / frame_fps
        self.clock: float = 0  # reference only

    def due(self, frame_time: float, lost: int = 0) -> list[Query]:
        """Queries to feed before the frame at `frame_time` (seconds). Call once per frame, in order. lost: frames of the stream just before
        this one that the model did not see."""
        for _ in range(lost):
            self.clock += self.step
        now = self.clock if self.reference else frame_time
        self.clock += self.step
        taken: list[Query] = []
        while self.waiting and now >= self.waiting[0].time and not (self.reference and taken):
            taken.append(self.waiting.pop(0))
        return taken
