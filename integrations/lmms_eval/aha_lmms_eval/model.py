"""Aha as a model of lmms-eval: `--model aha --model_args pretrained=BASE,adapter=ADAPTER,frame_fps=1,cache=dynamic_sink`.

On the highlight tasks (documents with a `query`) the answer is the relevance of every sampled frame, as a list of numbers. On any other
video task the prompt is asked at second 0, the video streams in, and the model replies at its end.
"""

from __future__ import annotations

import json

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from aha import score
from aha.conversation import Query, QuerySchedule
from aha.errors import UserError
from aha.scoring.offline import score_frames, score_video
from aha.streaming.session import Session
from aha.video.reader import iter_frames

OPTIONS = (
    "device",
    "dtype",
    "attn_implementation",
    "frame_fps",
    "max_num_frames",
    "cache",
    "window",
    "sink_tokens",
    "prompt_order",
    "sampling",
)


class AhaForLmmsEval(lmms):
    """Model arguments: pretrained (base checkpoint or whole model), adapter, and the options of `python -m aha.score` in OPTIONS."""

    is_simple = True

    def __init__(self, pretrained: str, adapter: str | None = None, batch_size: int | str = 1, **options: object) -> None:
        super().__init__()
        unknown = sorted(options.keys() - {*OPTIONS, "max_batch_size"})
        if unknown:
            raise UserError(
                f"--model_args has {', '.join(unknown)}, which the model aha does not know; "
                f"possible: pretrained, adapter, {', '.join(OPTIONS)}."
            )
        arguments = ["--llm_pretrained", pretrained, "--video", "-", "--output", "-"]
        arguments += ["--lora_pretrained", adapter] if adapter else []
        for name in OPTIONS:
            if options.get(name) is not None:
                arguments += [f"--{name}", str(options[name])]
        settings = score.parse(arguments)
        self.settings = score.score_settings(settings)
        self.model, self.tokenizer = score.load_model(settings)

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
        entry = score_video(self.model, self.tokenizer, video, [Query(query)], self.settings)
        return json.dumps([head["relevance_score"] for head in entry["debug_data"]])

    def reply(self, video: str, prompt: str, max_new_tokens: int) -> str:
        """What the model says after the whole video."""
        session = Session(self.model, tokenizer=self.tokenizer, **(self.settings.session or {}))
        schedule = QuerySchedule([Query(prompt)], session.state.prompt_order, self.settings.frame_fps)
        frames = iter_frames(video, fps=self.settings.frame_fps, max_frames=self.settings.max_num_frames, sampling=self.settings.sampling)
        for _ in score_frames(session, frames, schedule, self.settings.chunk_frames):
            pass
        return session.respond(max_new_tokens)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UserError("the model aha answers generation tasks only; choose a task with output_type generate_until.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError("the model aha answers single-round tasks only.")
