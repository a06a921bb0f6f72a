"""The golden checkpoints and embeddings for the streaming tests, loaded once."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import torch
from paths import shared_fixture

from aha.conversation import Query, QuerySchedule, load_tokenizer
from aha.models import AhaModel
from aha.models.model import FrameScores
from aha.streaming import Session
from aha.video.reader import read_video


@cache
def golden_model(family: str = "aha") -> tuple[AhaModel, Any]:
    folder = shared_fixture("reference")
    model = AhaModel.from_base(folder / "llava-onevision-qwen2-tiny-ov", folder / f"{family}-adapter")
    return model, load_tokenizer(folder / f"{family}-adapter")


@cache
def embeds(family: str, video: str, fps: float) -> torch.Tensor:
    """[F, 49, H] of a golden session's video."""
    stored = shared_fixture("reference") / family / f"embeds_{video.split('.')[0]}_fps{fps:g}.npy"
    if stored.exists():
        return torch.from_numpy(np.load(stored))
    frames = read_video(shared_fixture(f"reference/videos/{video}"), fps=fps, sampling="reference").frames_TCHW
    with torch.no_grad():
        return golden_model(family)[0].visual_embed(torch.from_numpy(frames))


def golden(family: str, name: str) -> dict:
    return json.loads(shared_fixture(f"reference/{family}/{name}.json").read_text())


def open_session(family: str = "aha", **settings) -> Session:
    model, tokenizer = golden_model(family)
    return Session(model, tokenizer=tokenizer, **settings)


def run_golden(session: Session, family: str, record: dict) -> tuple[FrameScores, list[tuple[int, list[int], str]]]:
    """Play a golden session frame by frame -> (scores of all frames, replies as (frame, token ids, text))."""
    visual_FKH = embeds(family, record["video"], record["fps"])
    schedule = QuerySchedule([Query(q["content"], q["time"]) for q in record["queries"]], "reference", record["fps"])
    scores, replies = [], []
    for k in range(record["num_frames"]):
        for query in schedule.due(0):
            session.ask(query.text)
        scores.append(session.push_embeds(visual_FKH[k : k + 1]))
        if session.wants_to_speak:
            text = session.respond()
            replies.append((k, session.reply_ids, text))
    return joined(scores), replies


def joined(scores: list[FrameScores]) -> FrameScores:
    return FrameScores(*(None if values[0] is None else torch.cat(values) for values in zip(*scores)))


def difference(a: FrameScores, b: FrameScores) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b) if x is not None)


def golden_difference(scores: FrameScores, record: dict) -> float:
    wanted = FrameScores(*(torch.tensor(record[name]) if name in record else None
                           for name in ("informative_score", "relevance_score", "uncertainty_score")))  # fmt: skip
    return difference(scores, wanted)
