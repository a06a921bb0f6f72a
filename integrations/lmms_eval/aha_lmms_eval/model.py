"""Aha as a model of lmms-eval: `--model aha --model_args pretrained=BASE,adapter=ADAPTER,frame_fps=1,cache=dynamic_sink`.

On the highlight tasks (documents with a `query`) the answer is the relevance of every sampled frame, as a list of numbers. On any other
task the prompt is asked at second 0, the videos stream in one after the other (a picture is one frame), and the model replies at the end.

| output_type of the task | what is done |
| --- | --- |
| generate_until | as above |
| generate_until_multi_round | the same a round at a time; a round without new videos goes on in the same conversation |
| generate_until_agentic | lmms-eval takes it apart into generate_until |
| multiple_choice, loglikelihood | negative log probability of the text as the reply (lmms-eval takes the smallest) |
| generate_visual_cot | refused: the model draws no pictures |
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from aha.conversation import Query
from aha.errors import UserError
from aha.scoring.config import ScoreConfig
from aha.scoring.model_choice import ModelChoice
from aha.scoring.offline import Scorer
from aha.streaming.session import Session
from aha.video.frames import letterbox

MODEL_OPTIONS = ("device", "dtype", "attn_implementation", "weights")
SCORE_OPTIONS = ("frame_fps", "max_num_frames", "cache", "window", "sink_tokens", "prompt_order", "sampling", "video_backend")
WORDS = 200  # tokens of a reply where the task sets no limit


class AhaForLmmsEval(lmms):
    """Model arguments: pretrained (base checkpoint or whole model), adapter, and the options of `python -m aha.score` that stand above."""

    is_simple = True

    def __init__(self, pretrained: str, adapter: str | None = None, batch_size: int | str = 1, **options: object) -> None:
        super().__init__()
        known = (*MODEL_OPTIONS, *SCORE_OPTIONS)
        unknown = sorted(options.keys() - {*known, "max_batch_size"})
        if unknown:
            raise UserError(
                f"--model_args has {', '.join(unknown)}, which the model aha does not know; "
                f"possible: pretrained, adapter, {', '.join(known)}."
            )
        given = {name: value for name, value in options.items() if value is not None}
        choice = ModelChoice(pretrained, adapter, **{name: given[name] for name in MODEL_OPTIONS if name in given})
        config = ScoreConfig(**{name: given[name] for name in SCORE_OPTIONS if name in given})
        self.scorer = Scorer(*choice.load(), config)

    # ---- what lmms-eval calls: one method for each kind of request; answers in the order of the requests ----

    def generate_until(self, requests: list[Instance]) -> list[str]:
        answers = []
        for request in tqdm(requests, desc="aha", unit="video"):
            context, generation, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            visuals = visuals_of(doc_to_visual(doc), task, doc_id)
            if "query" in doc and "annotations" in doc:
                answers.append(self.scores(visuals[0], doc["query"]))
            else:
                answers.append(self.watch(visuals, context).respond(int(generation.get("max_new_tokens", WORDS))))
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of each request, one a round. After each round the task says what comes next: (videos, prompt, is it over,
        answers so far, what it wants to be told again)."""
        answers = []
        for request in tqdm(requests, desc="aha", unit="video"):
            context, generation, doc_to_visual, doc_to_text, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            session = self.watch(visuals_of(doc_to_visual(doc), task, doc_id), context)
            said: list[str] = []
            told: Any = None
            for round_idx in itertools.count(1):
                said = [*said, session.respond(int(generation.get("max_new_tokens", WORDS)))]
                visuals, context, over, said, told = doc_to_text(doc, previous_output=said, round_idx=round_idx, previous_round_info=told)
                said = list(said)
                if over:
                    break
                if visuals:
                    session = self.watch(visuals_of(visuals, task, doc_id), context)
                else:
                    session.ask(context)
            answers.append(said)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(negative log probability, is it the greedy reply). Choices of one question stand side by side: the video is watched once.

        lmms-eval 0.7.3 turns a plain tuple into a string and then fails, with any model; what is wrapped it passes on as it is.
        """
        answers: list[GenerationResult] = []
        watched, session = None, None
        for request in tqdm(requests, desc="aha", unit="answer"):
            context, reply, *place = request.args
            visuals: list[str | Image.Image] = []
            if place:  # without it the choice alone is asked for, for acc_mutual_info
                doc_to_visual, doc_id, task, split = place
                doc = self.task_dict[task][split][doc_id]
                visuals = visuals_of(doc_to_visual(doc), task, doc_id)
                reply = reply if isinstance(reply, str) else reply(doc)
            if session is None or watched != (context, *place[1:]):
                watched, session = (context, *place[1:]), self.watch(visuals, context)
            logarithm, greedy = session.log_probability(reply)
            answers.append(GenerationResult(text=(-logarithm, greedy)))
        return answers

    def generate_visual_cot(self, requests: list[Instance]) -> list[str]:
        raise UserError("the model aha answers in words and draws no pictures; choose a task whose output_type is not generate_visual_cot.")

    # ---- what the model does ----

    def scores(self, video: str | Image.Image, query: str) -> str:
        """Relevance of every sampled frame as "[0.123, ...]"."""
        prediction = self.scorer.score(str(video), [Query(query)])
        return json.dumps(prediction.head("relevance_score").tolist())

    def watch(self, visuals: Sequence[str | Image.Image], prompt: str) -> Session:
        """A conversation in which `prompt` was asked and everything was seen."""
        model = self.scorer.model
        session = self.scorer.session(self.scorer.config.frame_fps or 1.0)
        session.ask(prompt)
        for visual in visuals:
            if isinstance(visual, str):
                opened = self.scorer.open(visual)
                for _, visual_NKH in opened.embed(model):
                    session.push_embeds(visual_NKH)
                opened.close()
            else:
                picture_HWC = letterbox(np.array(visual.convert("RGB")), model.config.frame.side)
                session.push(picture_HWC.transpose(2, 0, 1))
        return session


def visuals_of(visuals: Sequence[Any] | None, task: str, doc_id: int) -> list[str | Image.Image]:
    """Paths of videos and pictures of a document. Raises UserError for sound, and for what else the model cannot see."""
    found = list(visuals or [])
    for visual in found:
        if not isinstance(visual, str | Image.Image):
            kind = type(visual).__name__
            raise UserError(
                f"task {task}, document {doc_id}: the model aha sees videos (paths) and pictures, no {kind}; choose another task."
            )
    return found
