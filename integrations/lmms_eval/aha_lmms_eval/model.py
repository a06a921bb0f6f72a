"""Aha as a model of lmms-eval: `--model aha --model_args pretrained=BASE,adapter=ADAPTER,frame_fps=1,cache=dynamic_sink`.

On the highlight tasks (documents with a `query`) the answer is the relevance of every sampled frame, as a list of numbers. On any other
video task the prompt is asked at second 0, the video streams in, and the model replies at its end.
"""

from __future__ import annotations

import json

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from aha.conversation import Query, QuerySchedule
from aha.errors import UserError
from aha.scoring.config import ScoreConfig
from aha.scoring.model_choice import ModelChoice
from aha.scoring.offline import Scorer
from aha.streaming.chunks import score_frames

MODEL_OPTIONS = ("device", "dtype", "attn_implementation")
SCORE_OPTIONS = ("frame_fps", "max_num_frames", "cache", "window", "sink_tokens", "prompt_order", "sampling", "video_backend")


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

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer for each request, in order."""
        answers = []
        for request in tqdm(requests, desc="aha", unit="video"):
            context, generation, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            visuals = [visual for visual in doc_to_visual(doc) if isinstance(visual, str)]
            if len(visuals) != 1:
                raise UserError(
                    f"task {task}, document {doc_id}: the model aha watches one video file, here are {len(visuals)}; choose a video task."
                )
            if "query" in doc and "annotations" in doc:
                answers.append(self.scores(visuals[0], doc["query"]))
            else:
                answers.append(self.reply(visuals[0], context, int(generation.get("max_new_tokens", 200))))
        return answers

    def scores(self, video: str, query: str) -> str:
        """Relevance of every sampled frame as "[0.123, ...]"."""
        prediction = self.scorer.score(video, [Query(query)])
        return json.dumps(prediction.head("relevance_score").tolist())

    def reply(self, video: str, prompt: str, max_new_tokens: int) -> str:
        """What the model says after the whole video."""
        opened = self.scorer.open(video)
        session = self.scorer.session(opened.fps)
        for _ in score_frames(
            session, opened.embed(self.scorer.model), QuerySchedule([Query(prompt)], session.state.prompt_order, opened.fps)
        ):
            pass
        return session.respond(max_new_tokens)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UserError("the model aha answers generation tasks only; choose a task with output_type generate_until.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError("the model aha answers single-round tasks only.")
