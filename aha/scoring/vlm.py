"""An ordinary vision-language model as baseline: shown the last N frames, once a second, what does it say?

Every reply is kept in a cache file (one JSON line each) as it comes, whatever it says: a run that fails or is cut off loses nothing, the
next one asks only for the rest, and a question is never asked twice for an answer that was given. A reply's key holds the model and its
server's address, but not the port of a server on this machine: started again on another port it is the same model. What a reply means is
read from the cache: its first number, 0 to 100, is the score of the newest frame; the words after it, on a proactive benchmark, are said
where the number is 50 or more. A reply without a number counts 0 and is reported. Raise PROMPT_VERSION with every change of the prompt.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from aha.core.content import content_hash, local_identity
from aha.core.flags import flag
from aha.core.prediction import Prediction, score_rows
from aha.errors import UserError
from aha.eval.judge import ATTEMPTS, EndpointJudge, JudgeFailure, setting
from aha.streaming.stream_clock import StreamClock
from aha.video import iter_frames, probe

if TYPE_CHECKING:
    from aha.scoring.dataset import Item
    from aha.video.reader import Frame

PROMPT_VERSION = 1
SYSTEM = (
    "You watch a video stream and have one task. You see the last frames of the stream, the newest last. Reply on one line with a whole "
    "number from 0 to 100: how sure you are that the newest frame shows what the task is about.{speak}"
)
SPEAK = " If something should be said at this very moment because of the task, write it after the number; else write nothing after it."
USER = "Task: {task}\nThe frames are {step:g} s apart."
SAY_FROM = 50  # of 100


@dataclass(frozen=True)
class VlmSettings:
    """How the model is asked."""

    endpoint: str | None = flag(
        None, "address of an OpenAI-compatible server up to /v1 (key: OPENAI_API_KEY); else transformers", metavar="URL"
    )
    frames: int = flag(8, "the model sees the last N sampled frames", metavar="N")
    reply_cache: str = flag("outputs/baselines/vlm_replies.jsonl", "file that keeps every reply", metavar="FILE")
    timeout: float = flag(60.0, "seconds to wait for one reply", metavar="S")
    workers: int = flag(4, "questions put to the endpoint at the same time", metavar="N")
    usd_per_call: float | None = flag(None, "price of one call, for the cost that is shown", metavar="X")
    dry_run: bool = flag(False, "show what it will cost, and stop")
    side: int = flag(384, "side of the pictures that are sent, in pixels", metavar="PX")

    def __post_init__(self) -> None:
        if min(self.frames, self.workers, self.side) < 1 or self.timeout <= 0:
            raise UserError("--frames, --workers, --side and --timeout must be above zero.")


class Vlm(Protocol):
    """identity: model and where it runs, part of the cache's keys."""

    identity: str

    def reply(self, system: str, user: str, pictures: Sequence[np.ndarray]) -> str:
        """What it says to frames [3,H,W]. Raises JudgeFailure."""
        ...


class EndpointVlm:
    """A server that speaks OpenAI's chat completions with image parts (vLLM, hosted ones)."""

    def __init__(self, url: str, model: str, timeout: float, first_wait: float = 1.0):
        self.server = EndpointJudge(url, model, setting("OPENAI_API_KEY"), timeout, first_wait, max_tokens=64)
        self.identity = self.server.identity

    def reply(self, system: str, user: str, pictures: Sequence[np.ndarray]) -> str:
        parts: list[dict[str, object]] = [{"type": "image_url", "image_url": {"url": data_url(frame)}} for frame in pictures]
        return self.server.ask(system, [*parts, {"type": "text", "text": user}])


def data_url(frame_CHW: np.ndarray) -> str:
    """A frame as JPEG in a data address."""
    file = io.BytesIO()
    Image.fromarray(frame_CHW.transpose(1, 2, 0)).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


class LocalVlm:
    """A transformers image-text-to-text model with a chat template: greedy replies."""

    def __init__(self, path: str, device: str | None, identity: str):
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self.processor = AutoProcessor.from_pretrained(path)
            self.model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto").eval()
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"--model {path} cannot be loaded ({reason}); give a folder or hub id of an image-text-to-text model."
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise UserError(f"--model {path} has no chat template; choose an instruction-tuned model.")
        self.torch, self.identity = torch, identity
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    def reply(self, system: str, user: str, pictures: Sequence[np.ndarray]) -> str:
        shown = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in pictures]
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": f"{system}\n{user}"}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=shown, text=text, return_tensors="pt").to(self.device, self.model.dtype)
        with self.torch.inference_mode():
            try:
                output = self.model.generate(**inputs, max_new_tokens=32, do_sample=False)
            except self.torch.OutOfMemoryError as error:
                raise JudgeFailure("the GPU is out of memory; lower --frames or choose a smaller model", None) from error
        tokenizer = self.processor.tokenizer
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# ---------------------------------------------------------------- what is kept


@dataclass
class ReplyCache:
    """Replies by key, in a JSON Lines file. A line that a crash cut off is dropped; `add` appends and flushes."""

    path: Path
    replies: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # that a reply took, where it was asked for alone (one worker)

    def __post_init__(self) -> None:
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise UserError(f"reply cache {self.path} cannot be read ({error.strerror}); choose another --reply_cache.") from error
        for line in data.split(b"\n"):
            try:
                entry = json.loads(line)
                self.replies[entry["key"]] = str(entry["reply"])
                if isinstance(entry.get("seconds"), float):
                    self.seconds[entry["key"]] = entry["seconds"]
            except (ValueError, KeyError, TypeError):
                continue
        self.needs_newline = bool(data) and not data.endswith(b"\n")

    def add(self, key: str, reply: str, seconds: float | None) -> None:
        record = {"key": key, "reply": reply} | ({} if seconds is None else {"seconds": seconds})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self.needs_newline else "") + json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"reply cache {self.path} cannot be written ({error.strerror}); free the disk.") from error
        self.needs_newline = False
        self.replies[key] = reply
        if seconds is not None:
            self.seconds[key] = seconds


@dataclass(frozen=True)
class Call:
    """One question: the sampled frames up to `frame` (a number of the sampling grid), at the second `time`."""

    frame: int
    key: str


def calls_of(
    item: Item, identity: str, fps: float, settings: VlmSettings, speaks: bool, hash_of: Callable[[str], str] = content_hash
) -> list[Call]:
    """One call a second from when the question is asked; the key covers the prompt, the model, the content of the video (`hash_of` its
    path) and which frames are seen."""
    count = max(int(np.ceil(probe(item.path).duration * fps - 1e-9)), 1)
    every, start = max(round(fps), 1), item.queries[0].time if item.queries else 0.0
    prompt = [PROMPT_VERSION, SYSTEM, SPEAK if speaks else "", USER, identity, task_of(item), hash_of(item.path), fps]
    calls = []
    for frame in range(0, count, every):
        if frame / fps >= start:
            text = json.dumps([*prompt, frame, settings.frames, settings.side])
            calls.append(Call(frame, hashlib.sha256(text.encode()).hexdigest()))
    return calls


def task_of(item: Item) -> str:
    return " ".join(query.text for query in item.queries)


def read_reply(reply: str) -> tuple[float | None, str]:
    """(score in 0..1 or None, the words after it)."""
    found = re.search(r"(?<![\d.])(\d{1,3})(?:\.\d+)?(?![\d.]*\d)\s*%?", reply)
    if not found or int(found[1]) > 100:
        return None, ""
    return int(found[1]) / 100, reply[found.end() :].strip(" \n\t:;,.-|")


# ---------------------------------------------------------------- asking


def vlm_predictions(
    items: Sequence[Item], model: str, device: str | None, fps: float, settings: VlmSettings, speaks: bool,
    new_clock: Callable[[], StreamClock | None] = lambda: None,
) -> tuple[list[Prediction], dict[str, str]]:  # fmt: skip
    """(predictions, {key: why it has none}). new_clock: of each stream; a call is its frame, and costs what the reply took. Raises
    UserError where calls are left; what was answered is in the cache by then."""
    identity = EndpointVlm(settings.endpoint, model, settings.timeout).identity if settings.endpoint else local_identity(model)
    cache = ReplyCache(Path(settings.reply_cache))
    calls, failed = {}, {}
    hash_of = functools.cache(content_hash)  # many questions are asked of one video
    for item in items:
        try:
            calls[item.key] = calls_of(item, identity, fps, settings, speaks, hash_of)
            if not calls[item.key]:
                failed[item.key] = "the question is asked after the video's end"
                del calls[item.key]
        except UserError as error:
            failed[item.key] = str(error)
    show_cost(calls, cache, identity, settings)
    if settings.dry_run:
        return [], failed
    vlm: Vlm | None = None
    found: list[Prediction] = []
    unreadable = 0
    for item in items:
        if item.key not in calls:
            continue
        todo = [call for call in calls[item.key] if call.key not in cache.replies]
        if todo:
            if vlm is None:
                vlm = EndpointVlm(settings.endpoint, model, settings.timeout) if settings.endpoint else LocalVlm(model, device, identity)
            try:
                ask(vlm, item, todo, fps, settings, cache, speaks)
            except VideoFailure as error:
                failed[item.key] = str(error)
                continue
        prediction, bad = prediction_of(item, calls[item.key], cache, fps, speaks, identity, new_clock())
        found, unreadable = [*found, prediction], unreadable + bad
    if unreadable:
        print(f"WARNING: {unreadable} replies of {identity} hold no number from 0 to 100 and count 0.", file=sys.stderr)
    return found, failed


class VideoFailure(Exception):
    """A video that cannot be read."""


def show_cost(calls: dict[str, list[Call]], cache: ReplyCache, identity: str, settings: VlmSettings) -> None:
    everything = [call for listed in calls.values() for call in listed]
    todo = {call.key for call in everything} - set(cache.replies)
    pictures = sum(min(call.frame + 1, settings.frames) for call in everything if call.key in todo)
    price = f", ${len(todo) * settings.usd_per_call:.2f}" if settings.usd_per_call is not None else ""
    print(
        f"vlm {identity}: {len(calls)} videos, {len(everything)} replies, {len(everything) - len(todo)} of them kept from before; to ask: "
        f"{len(todo)} calls with {pictures} pictures of {settings.side} x {settings.side}{price}",
        flush=True,
    )


def ask(vlm: Vlm, item: Item, todo: Sequence[Call], fps: float, settings: VlmSettings, cache: ReplyCache, speaks: bool) -> None:
    """Put the open calls of one video; every reply is kept as it comes. Raises UserError where some are left without one."""
    system = SYSTEM.format(speak=SPEAK if speaks else "")
    user = USER.format(task=task_of(item), step=1 / fps)
    stop, failures = threading.Event(), []
    try:
        windows = list(_windows(item, {call.frame: call for call in todo}, fps, settings))
    except UserError as error:
        raise VideoFailure(str(error)) from error
    workers = settings.workers if settings.endpoint else 1
    alone = workers == 1
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(_ask_one, vlm, system, user, pictures, stop): call for call, pictures in windows}
        try:
            bar = tqdm(as_completed(jobs), total=len(jobs), desc=item.key, unit="call", disable=not sys.stderr.isatty(), leave=False)
            for job in bar:
                reply, reason, seconds = job.result()
                if reply is None:
                    failures.append(reason)
                else:
                    cache.add(jobs[job].key, reply, seconds if alone else None)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    if failures:
        raise UserError(
            f"{vlm.identity} left {len(failures)} of {len(todo)} calls of {item.key} without a reply ({failures[0]}); the "
            f"{len(cache.replies)} replies so far are kept in {cache.path}, run the same command again for the rest."
        )


def _windows(item: Item, wanted: dict[int, Call], fps: float, settings: VlmSettings) -> Iterator[tuple[Call, list[np.ndarray]]]:
    """(call, the last frames up to it). Frames beyond those that the video really has end with its last ones."""
    last: list[np.ndarray] = []
    number = -1
    for number, frame in enumerate(iter_frames(item.path, fps=fps, size=settings.side)):
        last = [*last[1 - settings.frames :], frame.frame_CHW] if settings.frames > 1 else [frame.frame_CHW]
        if number in wanted:
            yield wanted[number], last
    for beyond in sorted(k for k in wanted if k > number):
        yield wanted[beyond], last


def _ask_one(vlm: Vlm, system: str, user: str, pictures: Sequence[np.ndarray], stop: threading.Event) -> tuple[str | None, str, float]:
    """(reply, or None and the reason; seconds of the attempt that had a reply). A busy, hanging or broken server is tried 5 times with
    growing waits."""
    reason = "not asked any more"
    for attempt in range(ATTEMPTS):
        if stop.is_set():
            break
        try:
            began = time.perf_counter()
            reply = vlm.reply(system, user, pictures)
            return reply, "", time.perf_counter() - began
        except JudgeFailure as failure:
            reason = str(failure)
            if failure.wait is None:
                stop.set()
                break
            if attempt + 1 < ATTEMPTS:
                stop.wait(failure.wait * 2**attempt)
    return None, reason, 0.0


def prediction_of(
    item: Item, calls: Sequence[Call], cache: ReplyCache, fps: float, speaks: bool, identity: str, clock: StreamClock | None = None
) -> tuple[Prediction, int]:
    """(prediction, replies without a number). clock: calls that fall due while the model is busy with one are lost."""
    measured = clock is not None and clock.cost is None
    if untimed := [call for call in calls if measured and call.key not in cache.seconds]:
        raise UserError(
            f"{cache.path} does not say how long {len(untimed)} replies of {item.key} took (asked for several at a time, or by an earlier "
            "version); choose another --reply_cache and --workers 1, or give a speed such as --speed 2fps."
        )
    frames: list[Frame] = list(iter_frames(item.path, fps=fps, size=8))
    times, indices, scores, turns, bad = [], [], [], [], 0
    decided: list[float | None] = []
    for call in calls:
        if call.frame >= len(frames):
            continue
        when, said = frames[call.frame].time, None
        if clock is not None:
            clock.cost = cache.seconds[call.key] if measured else clock.cost
            if not clock.takes(when, frames[call.frame].frame_index):
                continue
            said = clock.decided(when)
        score, words = read_reply(cache.replies[call.key])
        bad += score is None
        decided.append(said)
        times.append(when)
        indices.append(frames[call.frame].frame_index)
        scores.append(score or 0.0)
        if speaks and words and (score or 0.0) * 100 >= SAY_FROM:
            turns.append({"role": "assistant", "time": when if said is None else said, "content": words})
    extra: dict[str, Any] = dict(item.extra)
    if speaks:
        extra["policy"] = (
            f"{identity} sees the last frames once a second and decides itself (prompt {PROMPT_VERSION}, from {SAY_FROM} of 100)"
        )
    rows = [row if late is None else {**row, "decided": late} for row, late in zip(score_rows(times, None, scores), decided)]
    if clock is not None:
        extra["clock"] = clock.summary()
    return Prediction.of_scores(item.video_id, task_of(item), item.duration, fps, indices, rows, turns, **extra), bad
