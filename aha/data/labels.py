"""Annotations -> labelled turns -> label arrays: dense captioning, question answering, temporal grounding, real-valued relevance.

Pure functions: no files, no videos, no randomness. Times in seconds, frame k of a video is the one shown at k / fps.
Shapes: T tokens of a conversation, F its frames.

What is learned (MMDuet, Wang et al. 2024, section 3.2; Aha trains the relevance head on real numbers instead of 0 and 1):
- captioning and question answering: the words of each reply, and per frame whether it is time to reply (informative): 1 from the middle of
  the annotated span to the reply, 0 elsewhere, because right after a reply there is nothing new to say;
- grounding: per frame whether it lies in an annotated span (relevance 0 or 1);
- highlights (TVSum, Mr.HiSum, HIHD): per frame the score that people gave it (relevance in [0, 1]).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aha.conversation import IGNORE_INDEX, Rendered, Turn
from aha.core.heads import LABELLED

MAX_WAITING_FRAMES = 20  # frames shown before the first question of a question-answering sample

# What the published models were told in training. The wording is part of the model: another one would be another input distribution.
CAPTION_REQUESTS = (
    "Please concisely narrate the video in real time.",
    "Help me to illustrate my view in short.",
    "Please simply describe what do you see.",
    "Continuously answer what you observed with simple text.",
    "Do concise real-time narration.",
    "Hey assistant, do you know the current video content? Reply me concisely.",
    "Simply interpret the scene for me.",
    "What can you tell me about? Be concise.",
    "Use simple text to explain what is shown in front of me.",
    "What is the action now? Please response in short.",
)
GROUNDING_REQUESTS = (  # the bare query counts twice
    "%s",
    "%s",
    "What segment of the video addresses the topic '%s'?",
    "At what timestamp can I find information about '%s' in the video?",
    "Can you highlight the section of the video that pertains to '%s'?",
    "Which moments in the video discuss '%s' in detail?",
    "Identify the parts that mention '%s'.",
    "Where in the video is '%s' demonstrated or explained?",
    "What parts are relevant to the concept of '%s'?",
    "Which clips in the video relate to the query '%s'?",
    "Can you point out the video segments that cover '%s'?",
    "What are the key timestamps in the video for the topic '%s'?",
)


def _on_grid(time: float, fps: float, lowest: float, highest: float) -> float:
    """The first frame's time at or after `time`, kept within [lowest, highest]."""
    return min(max(math.ceil(time * fps) / fps, lowest), highest)


def _frames_between(start: float, end: float, fps: float) -> int:
    # k / fps * fps is not always k: at 0.333 fps a span of 3 frames must not count as 2.
    return int(round((end - start) * fps, 6))


def _answered_stream(num_frames: int, answer_frames: int) -> Turn:
    """A stream turn before a reply: its last `answer_frames` frames are informative."""
    answer_frames = min(max(answer_frames, 0), num_frames)
    return Turn("stream", num_frames=num_frames, informative=(0,) * (num_frames - answer_frames) + (1,) * answer_frames)


def dense_caption_turns(narrations: Sequence[dict], duration: float, fps: float, request: str) -> list[Turn]:
    """A user's request, then frames and captions in turn; the conversation ends with the last caption.

    narrations: [{"time", "timespan": [start, end], "text", "learn"?}], seconds; `time` is when the caption is said. Of two due at the
    same frame the later one counts; a caption that repeats the one before is left out, and so is one due at frame 0, before anything was
    seen. Returns [] where nothing is left.
    """
    turns = [Turn("user", request)]
    last_time, last_text = 0.0, None
    for narration in sorted(narrations, key=lambda n: n["time"]):
        if last_time >= duration:
            break
        if narration["text"] == last_text:
            continue
        time = _on_grid(narration["time"], fps, 0, duration)
        reply = Turn("assistant", narration["text"], learn=narration.get("learn", True))
        if time == last_time:
            if len(turns) == 1:
                continue
            turns[-1] = replace(turns[-1], content=reply.content)
        else:
            middle = _on_grid((narration["timespan"][0] + narration["timespan"][1]) / 2, fps, 0, duration)
            answer_frames = _frames_between(middle, time, fps) + 1
            turns += [_answered_stream(_frames_between(last_time, time, fps), answer_frames), reply]
        last_time, last_text = time, narration["text"]
    return turns if len(turns) > 1 else []


def waiting_range(annotation: Mapping[str, Any], duration: float, fps: float) -> tuple[int, int]:
    """Fewest and most frames to show before the first question of a question-answering sample, both included.

    At least back to the annotation's `video_start_time` (where the asker starts to watch), at most back to the start of the video,
    never more than MAX_WAITING_FRAMES; none where there is no `video_start_time`.
    """
    if "video_start_time" not in annotation:
        return 0, 0
    asked = _on_grid(annotation["conversation"][0]["time"], fps, 0, duration)
    fewest, most = _frames_between(annotation["video_start_time"], asked, fps), _frames_between(0, asked, fps)
    most = min(max(most, 0), MAX_WAITING_FRAMES)
    return min(max(fewest, 0), most), most  # a start before the video's is the video's


def question_answer_turns(annotation: Mapping[str, Any], duration: float, fps: float, waiting_frames: int) -> tuple[int, list[Turn]]:
    """Questions, frames and answers of a multi-answer grounded QA sample (MAGQA). Returns (index k of the first frame, turns).

    annotation: {"conversation": [{"role", "content", "time", "timespan"?, "learn"?}]}, seconds of the whole video; the user begins.
    `waiting_frames` frames come before the first question. An answer with no frame since the turn before it is left out.
    """
    first, *rest = annotation["conversation"]
    time = _on_grid(first["time"], fps, 0, duration)
    start = _frames_between(0, time, fps) - waiting_frames
    turns: list[Turn] = []
    if waiting_frames:
        # A single frame before the question carries no label; of several all are 0.
        labels = (0,) * waiting_frames if waiting_frames > 1 else (IGNORE_INDEX,)
        turns.append(Turn("stream", num_frames=waiting_frames, informative=labels))
    turns.append(Turn("user", first["content"]))
    for message in rest:
        if message["time"] > duration:
            break
        new_time = _on_grid(message["time"], fps, time, duration)
        num_frames = _frames_between(time, new_time, fps)
        if message["role"] == "user":
            turns += [_answered_stream(num_frames, 0), Turn("user", message["content"])]
        elif new_time > time:
            span = message["timespan"]
            middle = _on_grid((span[0] + span[1]) / 2, fps, 0, duration)
            answer_frames = _frames_between(middle, message["time"], fps) + 1
            turns += [
                _answered_stream(num_frames, answer_frames),
                Turn("assistant", message["content"], learn=message.get("learn", True)),
            ]
        time = new_time
    return start, [turn for turn in turns if turn.role != "stream" or turn.num_frames]


def grounding_turns(spans: Sequence[Sequence[float]], duration: float, fps: float, request: str) -> list[Turn]:
    """A request and all frames of the video; relevant (1) are frames floor(start * fps) to floor(end * fps) - 1 of any span."""
    relevance = np.zeros(math.floor(duration * fps))
    for start, end in spans:
        relevance[max(math.floor(start * fps), 0) : max(math.floor(end * fps), 0)] = 1
    return relevance_turns(relevance, request)


def relevance_turns(scores_F: Sequence[float] | np.ndarray, request: str) -> list[Turn]:
    """A request and one stream turn whose frames have the given relevance (IGNORE_INDEX = no label)."""
    return [Turn("user", request), Turn("stream", num_frames=len(scores_F), relevance=tuple(float(s) for s in scores_F))]


def keep_frames(turns: Sequence[Turn], max_frames: int) -> list[Turn]:
    """The beginning of a conversation, with at most `max_frames` frames. It ends with the frame that reaches the limit.

    The reply that would have followed is gone, so the last stream turn's frames are no longer "time to reply" (informative 1 becomes 0).
    """
    kept: list[Turn] = []
    left = max_frames
    for turn in turns:
        if turn.role == "stream" and turn.num_frames >= left:
            labels = {head.name: values[:left] for head in LABELLED if (values := getattr(turn, head.name)) is not None}
            if "informative" in labels:
                labels["informative"] = tuple(min(label, 0) for label in labels["informative"])
            return [*kept, replace(turn, num_frames=left, **labels)]
        kept.append(turn)
        left -= turn.num_frames
    return kept


def label_arrays(rendered: Rendered, turns: Sequence[Turn]) -> dict[str, np.ndarray]:
    """Labels of a rendered conversation, each [T], IGNORE_INDEX where there is none.

    labels int64: at position t the id of token t + 1, where that token is learned (already shifted: position t predicts it).
    informative_labels int64 and relevance_labels float32 (one array for each head that has labels): at the last token of each frame.
    """
    ids = np.array(rendered.input_ids, dtype=np.int64)
    labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
    learned = np.flatnonzero(rendered.learn_mask)
    labels[learned - 1] = ids[learned]
    arrays = {head.labels: np.full(len(ids), IGNORE_INDEX, dtype=head.label) for head in LABELLED}
    frame = 0
    for turn in turns:
        positions = rendered.frame_token_positions[frame : frame + turn.num_frames]
        for head in LABELLED:
            if (values := getattr(turn, head.name)) is not None:
                arrays[head.labels][positions] = values
        frame += turn.num_frames
    return {"input_ids": ids, "labels": labels, **arrays}
