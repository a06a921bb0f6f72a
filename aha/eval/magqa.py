"""Shot2Story-MAGQA-39k: in-span score of the replies of a streaming model, graded 1 to 5 by a language-model judge.

    python -m aha.eval.magqa --predictions outputs/magqa/predictions.json --judge endpoint --judge_model gpt-4o --output metrics.json
    python -m aha.eval.magqa --predictions outputs/magqa/predictions.json --judge local --judge_model Qwen/Qwen2.5-7B-Instruct
    python -m aha.eval.magqa --predictions ... --judge batch --judge_model gpt-4o --batch_dir outputs/magqa/batch    (twice)

Per gold span: mean grade of the replies within it (start <= time <= end; time -1 fits every span), 1 if there is none; mean over spans,
then over questions (MMDuet, Aha). Only replies within a span are graded. `in_span` is over the answered questions, `in_span_padded` counts
every unanswered one as 1, up to --num_examples (default: the annotated questions; the reference's default is 2000).
Grades are cached (--judge_cache). The endpoint's key is OPENAI_API_KEY from the environment or .env, its address --judge_url or
OPENAI_BASE_URL. A file that holds `evaluator_output` and `answer_time` needs neither judge nor annotations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core import text_answers
from aha.core.checked import interval, number
from aha.core.files import write_text
from aha.core.flags import finite
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Prediction, keyed, read_predictions
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, answers_of, run, select, select_protocols
from aha.eval.judge import PROMPT_VERSION, EndpointJudge, Judge, JudgmentCache, Pair, judge_pairs, read_batch, setting, write_batch
from aha.eval.judge_batch import send_and_fetch
from aha.eval.questions import Question, find_annotations, read_answers, timed_curves
from aha.eval.task import MMDUETIT, DataSet, File, Task
from aha.results.layout import Headline, Protocol
from aha.results.tree import Column, Scored

if TYPE_CHECKING:
    from aha.results.figures import Curve

NOTE = "MMDuet/Aha, 1 to 5: mean grade of the replies within each gold span, 1 for a span without one"
METRICS = ("in_span_score", "turns", "turns_deduplicated")
PROTOCOLS = (
    Protocol("in_span", f"{NOTE}; answered questions only", METRICS),
    Protocol("in_span_padded", f"{NOTE}; every unanswered question counts 1", METRICS),
)


def read_magqa(path: str | Path) -> list[Question]:
    """The test questions of `magqa_test.json`."""
    return read_answers(path, "MAGQA annotations", None)


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Question]:
    """The questions of an annotation file, or of that in the data set's folder; there is one split."""
    return read_magqa(find_annotations(TASK, root))


# ---------------------------------------------------------------- grades


NO_REPLY = 1.0  # grade of a span in which nothing was said
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Graded:
    """One question: gold spans, replies (second, words), grades [span][reply] (replies outside a span have none)."""

    spans: list[tuple[float, float]]
    replies: list[tuple[float, str]]
    grades: list[list[float | None]]


def in_span(time: float, span: tuple[float, float]) -> bool:
    return time == -1 or span[0] <= time <= span[1]


def in_span_score(graded: Graded) -> float:
    """Mean over gold spans of the mean grade of the replies within the span; 1 for a span without any."""
    scores = []
    for span, row in zip(graded.spans, graded.grades):
        within = [grade for (time, _), grade in zip(graded.replies, row) if grade is not None and in_span(time, span)]
        scores.append(float(np.mean(within)) if within else NO_REPLY)
    return float(np.mean(scores)) if scores else NO_REPLY


def read_graded(entry: Prediction) -> Graded:
    """A question that a judge has graded already (`evaluator_output`, `answer_time`)."""
    where = entry.name
    replies = entry.replies()
    times, rows = entry.record.get("answer_time"), entry.record["evaluator_output"]
    if not isinstance(times, list) or not isinstance(rows, list) or len(times) != len(rows):
        raise UserError(f"{where}: evaluator_output and answer_time must be lists of one length (one item for each gold answer).")
    spans = [interval(span, where, f"answer_time {i}") for i, span in enumerate(times)]
    grades: list[list[float | None]] = []
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(replies):
            raise UserError(f"{where}: row {i} of evaluator_output must have one grade for each of the {len(replies)} replies.")
        grades.append([_grade(value, where, i) for value in row])
    return Graded(spans, replies, grades)


def _grade(value: object, where: str, row: int) -> float:
    if isinstance(value, str):  # a judge's reply kept as text
        value = int(value[0]) if value[:1] in tuple("12345") else 1
    grade = number(value, where, f"grade in row {row} of evaluator_output")
    if not 1 <= grade <= 5:
        raise UserError(f"{where}: grade {grade:g} in row {row} of evaluator_output is not between 1 and 5.")
    return grade


def pairs_of(entry: Prediction, question: Question) -> dict[tuple[int, int], Pair]:
    """What has to be graded of one question: (span, reply) -> pair, for the replies within a span."""
    asked = question.queries[0][1] if question.queries else ""
    return {
        (s, r): Pair(asked, gold, text)
        for s, (span, gold) in enumerate(zip(question.spans, question.answers))
        for r, (time, text) in enumerate(entry.replies())
        if in_span(time, span)
    }


@dataclass(frozen=True)
class JudgeSettings:
    """Who grades, and where the grades are kept: the flags of the command by the same names."""

    judge: str | None = None
    judge_model: str | None = None
    judge_url: str | None = None
    judge_cache: str = "outputs/judgments.jsonl"
    judge_timeout: float = 60.0
    judge_workers: int = 4
    batch_dir: str = "outputs/judge_batch"
    batch_wait: float | None = None

    def __post_init__(self) -> None:
        if self.judge_workers < 1 or self.judge_timeout <= 0:
            raise UserError("--judge_workers and --judge_timeout must be above zero.")


def grade_questions(
    path: Path, answers: Mapping[str, Prediction], questions: Mapping[str, Question], args: JudgeSettings
) -> dict[str, Graded]:
    """Let the judge grade all in-span replies. Raises UserError where grades are missing; those there are, are in the cache."""
    if args.judge is None:
        raise UserError(f"{path} has no evaluator_output, so a judge is needed: give --judge endpoint, local or batch, and --judge_model.")
    wanted = {q: pairs_of(answers[q], questions[q]) for q in answers}
    grades = grade_pairs([pair for pairs in wanted.values() for pair in pairs.values()], args)
    graded = {}
    for q in answers:
        rows: list[list[float | None]] = [
            [grades[wanted[q][s, r]] if (s, r) in wanted[q] else None for r in range(len(answers[q].replies()))]
            for s in range(len(questions[q].spans))
        ]
        graded[q] = Graded(list(questions[q].spans), answers[q].replies(), rows)
    return graded


def grade_pairs(flat: list[Pair], args: JudgeSettings) -> dict[Pair, int]:
    """The judge's grade of each pair, from the cache where it is there. Raises UserError where grades are missing."""
    if not args.judge_model:
        raise UserError(f"--judge {args.judge} needs --judge_model.")
    cache = JudgmentCache(Path(args.judge_cache))
    if args.judge == "batch":
        return grade_by_batch(flat, cache, args, args.judge_model)
    judge: Judge
    if args.judge == "endpoint":
        url = args.judge_url or setting("OPENAI_BASE_URL") or OPENAI_URL
        judge = EndpointJudge(url, args.judge_model, setting("OPENAI_API_KEY"), args.judge_timeout)
    else:
        from aha.scoring.judge_local import LocalJudge

        judge = LocalJudge(args.judge_model)
    grades, asked = judge_pairs(flat, judge, cache, args.judge_workers if args.judge == "endpoint" else 1)
    print(f"judge {judge.identity}: {asked} questions asked, {len(set(flat))} grades in {args.judge_cache}")
    return grades


def grade_by_batch(pairs: list[Pair], cache: JudgmentCache, args: JudgeSettings, model: str) -> dict[Pair, int]:
    """First run: write the batch input and stop with what to do. Next run: take `output*.jsonl` of the folder. With batch_wait the batch is
    sent to the endpoint, waited for and fetched here."""
    judge = EndpointJudge(args.judge_url or OPENAI_URL, model, setting("OPENAI_API_KEY"), args.judge_timeout)
    folder = Path(args.batch_dir)
    outputs = sorted(folder.glob("output*.jsonl")) if folder.is_dir() else []
    without = sum(read_batch(path, cache)[1] for path in outputs)
    left = write_batch(pairs, judge, cache, folder / "input.jsonl")
    if left and args.batch_wait is not None:
        without = read_batch(send_and_fetch(judge, folder, args.batch_wait), cache)[1]
        left = write_batch(pairs, judge, cache, folder / "input.jsonl")
    if left:
        hint = f" ({without} answers of the last batch held no grade)" if without else ""
        raise UserError(
            f"{left} answers are not graded yet{hint}: upload {folder / 'input.jsonl'} as an OpenAI batch (endpoint "
            f"/v1/chat/completions), save its output as {folder / 'output.jsonl'} and run the same command again."
        )
    return {pair: cache.grades[pair.key(judge.identity)] for pair in pairs}


def scored_lines(graded: dict[str, Graded], answers: Mapping[str, Prediction]) -> str:
    """The predictions with evaluator_output and answer_time, JSON Lines; an ungraded (out-of-span) reply stands as 1 and does not count."""
    lines = []
    for q, g in graded.items():
        content = {key: value for key, value in answers[q].record.items() if key != "debug_data"}
        rows = [[1 if grade is None else grade for grade in row] for row in g.grades]
        lines.append(json.dumps({**content, "question_id": q, "answer_time": g.spans, "evaluator_output": rows}))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- evaluation


@dataclass(kw_only=True)
class Magqa(Benchmark):
    """questions: None where the prediction file holds grades and no annotations were given."""

    questions: Mapping[str, Question] | None
    settings: JudgeSettings
    video_ids: Sequence[str] | None
    limit: int | None
    num_examples: int | None
    scored: str | None  # where to write the graded predictions
    answers: str

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        answers, skipped = self._answers(path)
        if self.answers == "text":
            answers = {q: text_answers.with_replies(answer) for q, answer in answers.items()}
        if all("evaluator_output" in answer.record for answer in answers.values()):
            graded = {q: read_graded(answer) for q, answer in answers.items()}
        else:
            graded = grade_questions(path, answers, self.questions or {}, self.settings)
        everyone = [*answers, *skipped] if self.questions is None else list(self.chosen)
        if self.num_examples is not None:
            if self.num_examples < len(everyone):
                raise UserError(
                    f"--num_examples {self.num_examples} is below the {len(everyone)} questions there are; use --limit for fewer."
                )
            everyone += [f"padding-{i}" for i in range(len(everyone), self.num_examples)]
        if self.scored:
            write_text(self.scored, scored_lines(graded, answers))
        seen = [q for q in graded if answers[q].trained_on or q in trained_on]
        columns = [column for protocol in self.protocols for column in magqa_columns(protocol.name, graded, everyone)]
        return Scored(str(path), self.protocols, columns, len(graded), skipped, [], seen, extra={"prompt_version": PROMPT_VERSION})

    def _answers(self, path: Path) -> tuple[dict[str, Prediction], dict[str, str]]:
        if self.questions is not None:
            return answers_of(path, self.chosen, "question_id")
        answers = dict(keyed(read_predictions(path), lambda answer: answer.question_id, "question"))
        return {q: answers[q] for q in select(list(answers), str(path), self.video_ids, self.limit)}, {}

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        return timed_curves(self._answers(path)[0], self.questions or {}, fusion, wanted if self.questions else ())


def magqa_columns(protocol: str, graded: Mapping[str, Graded], questions: Sequence[str]) -> list[Column]:
    """in_span over the graded questions, in_span_padded over all of `questions` (an unanswered one scores 1, with 0 turns)."""
    score, turns = (np.nan, np.nan) if protocol == "in_span" else (NO_REPLY, 0.0)
    found = {q: (in_span_score(g), float(len(g.replies)), float(len({text for _, text in g.replies}))) for q, g in graded.items()}
    values_QM = np.array([found.get(q, (score, turns, turns)) for q in questions])
    return [Column(protocol, metric, "", questions, values_QM[:, k]) for k, metric in enumerate(METRICS)]


def load(
    annotations: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
    scored: str | None = None,
    num_examples: int | None = None,
    answers: str = "scores",
    **judge: Any,
) -> Magqa:
    """Read the questions and select: by id, the first `limit`. With neither annotations nor a judge, only graded predictions can be
    evaluated. judge: fields of JudgeSettings."""
    settings = JudgeSettings(**judge)
    path = find_annotations(TASK, annotations) if annotations is not None or settings.judge is not None else None
    questions = {q.key: q for q in read_magqa(path)} if path else None
    chosen = select(list(questions), str(path), video_ids, limit) if questions else []
    return Magqa(
        annotations=str(path) if path else "", chosen=chosen, protocols=select_protocols(PROTOCOLS, protocols), questions=questions,
        settings=settings, video_ids=video_ids, limit=limit, num_examples=num_examples, scored=scored, answers=answers,
    )  # fmt: skip


def evaluate(predictions: str | Path, annotations: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, annotations=annotations, **options)


def add_judge_flags(p: argparse.ArgumentParser) -> None:
    """The fields of JudgeSettings."""
    default = {f.name: f.default for f in fields(JudgeSettings)}
    p.add_argument(
        "--judge", choices=("endpoint", "local", "batch"), help="who grades: an OpenAI-compatible server, a local model, batch files"
    )
    for name, kind, about in (
        ("judge_model", str, "model name at the endpoint, or folder or hub id of the local model"),
        ("judge_url", str, "address of the endpoint up to /v1 (default: OPENAI_BASE_URL, else OpenAI)"),
        ("judge_cache", str, "file that keeps every grade (default %(default)s)"),
        ("judge_timeout", finite, "seconds to wait for one grade (default %(default)s)"),
        ("judge_workers", int, "questions put to the endpoint at the same time (default %(default)s)"),
        ("batch_dir", str, "folder of the batch files (default %(default)s)"),
        ("batch_wait", finite, "send the batch to the endpoint and wait at most so many seconds for it (default: only write the file)"),
    ):
        p.add_argument(f"--{name}", type=kind, default=default[name], help=about)


def add_flags(p: argparse.ArgumentParser) -> None:
    add_judge_flags(p)
    p.add_argument(
        "--scored", metavar="FILE", help="write the predictions with their grades (JSON Lines), to be evaluated again without a judge"
    )
    text_answers.add_answers_flag(p)
    p.add_argument("--num_examples", type=int, metavar="N", help="pad with unanswered questions up to N (default: the annotated questions)")


TASK = Task(
    DataSet(
        "magqa", "Shot2Story-MAGQA-39k test (Wang et al. 2024)", "shot2story",
        (File("annotations/magqa_test.json", MMDUETIT),),
        "videos", "https://huggingface.co/mhan/shot2story-videos", "2,000 test questions", "CC BY-NC-SA 4.0 (annotations)",
        "evaluation: answering at the right time (magqa.sh)",
    ),
    short="Shot2Story-MAGQA-39k", items=items, load=load, add_flags=add_flags, frame_fps=2.0, max_num_frames=400, unit="questions",
    protocols=PROTOCOLS,
    headlines=tuple(Headline(p.name, "in_span_score", "in-span score") for p in PROTOCOLS) + (Headline("in_span", "turns", "replies"),),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.magqa", argv)


if __name__ == "__main__":
    run_command(main)
