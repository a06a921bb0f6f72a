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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aha.core.files import write_text
from aha.errors import UserError, run_command
from aha.eval.benchmarks import Question, find_annotations, interval, number, question_items, read_magqa
from aha.eval.charades import select
from aha.eval.judge import PROMPT_VERSION, EndpointJudge, JudgmentCache, Pair, judge_pairs, read_batch, setting, write_batch
from aha.eval.questions import Entry, read_answers
from aha.eval.task import MMDUETIT, DataSet, File, Item, Task
from aha.results.outcome import Outcome, Protocol, add_common_arguments, finish

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
        within = [grade for (time, _), grade in zip(graded.replies, row) if in_span(time, span)]
        scores.append(float(np.mean(within)) if within else NO_REPLY)
    return float(np.mean(scores)) if scores else NO_REPLY


def read_graded(entry: Entry) -> Graded:
    """A question that a judge has graded already (`evaluator_output`, `answer_time`)."""
    where = f"{entry.where} (question {entry.question_id})"
    replies = entry.replies()
    times, rows = entry.content.get("answer_time"), entry.content["evaluator_output"]
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


def pairs_of(entry: Entry, question: Question) -> dict[tuple[int, int], Pair]:
    """What has to be graded of one question: (span, reply) -> pair, for the replies within a span."""
    asked = question.queries[0][1] if question.queries else ""
    return {
        (s, r): Pair(asked, gold, text)
        for s, (span, gold) in enumerate(zip(question.spans, question.answers))
        for r, (time, text) in enumerate(entry.replies())
        if in_span(time, span)
    }


def grade_questions(
    answers: dict[str, Entry], questions: dict[str, Question], scored: list[str], args: argparse.Namespace
) -> dict[str, Graded]:
    """Let the judge grade all in-span replies. Raises UserError where grades are missing; those there are, are in the cache."""
    if args.judge is None:
        raise UserError(
            f"{args.predictions} has no evaluator_output, so a judge is needed: give --judge endpoint, local or batch, and --judge_model."
        )
    if not args.judge_model:
        raise UserError(f"--judge {args.judge} needs --judge_model.")
    wanted = {q: pairs_of(answers[q], questions[q]) for q in scored}
    flat = [pair for pairs in wanted.values() for pair in pairs.values()]
    cache = JudgmentCache(args.judge_cache)
    if args.judge == "batch":
        grades = grade_by_batch(flat, cache, args)
    else:
        if args.judge == "endpoint":
            url = args.judge_url or setting("OPENAI_BASE_URL") or OPENAI_URL
            judge = EndpointJudge(url, args.judge_model, setting("OPENAI_API_KEY"), args.judge_timeout)
        else:
            from aha.scoring.judge_local import LocalJudge

            judge = LocalJudge(args.judge_model)
        grades, asked = judge_pairs(flat, judge, cache, args.judge_workers if args.judge == "endpoint" else 1)
        print(f"judge {judge.identity}: {asked} questions asked, {len(set(flat))} grades in {args.judge_cache}")
    graded = {}
    for q in scored:
        rows = [
            [grades[wanted[q][s, r]] if (s, r) in wanted[q] else None for r in range(len(answers[q].replies()))]
            for s in range(len(questions[q].spans))
        ]
        graded[q] = Graded(list(questions[q].spans), answers[q].replies(), rows)
    return graded


def grade_by_batch(pairs: list[Pair], cache: JudgmentCache, args: argparse.Namespace) -> dict[Pair, int]:
    """First run: write the batch input and stop with what to do. Next run: take `output*.jsonl` of the folder."""
    judge = EndpointJudge(args.judge_url or OPENAI_URL, args.judge_model)
    folder = Path(args.batch_dir)
    outputs = sorted(folder.glob("output*.jsonl")) if folder.is_dir() else []
    without = sum(read_batch(path, cache)[1] for path in outputs)
    left = write_batch(pairs, judge, cache, folder / "input.jsonl")
    if left:
        hint = f" ({without} answers of the last batch held no grade)" if without else ""
        raise UserError(
            f"{left} answers are not graded yet{hint}: upload {folder / 'input.jsonl'} as an OpenAI batch (endpoint "
            f"/v1/chat/completions), save its output as {folder / 'output.jsonl'} and run the same command again."
        )
    return {pair: cache.grades[pair.key(judge.identity)] for pair in pairs}


def magqa_protocols(graded: dict[str, Graded], questions: list[str]) -> dict[str, Protocol]:
    """in_span over the graded questions, in_span_padded over all of `questions` (an unanswered one scores 1, with 0 turns)."""
    score = {q: in_span_score(g) for q, g in graded.items()}
    turns = {q: float(len(g.replies)) for q, g in graded.items()}
    distinct = {q: float(len({text for _, text in g.replies})) for q, g in graded.items()}

    def metrics(missing: tuple[float, float]) -> dict[str, np.ndarray]:
        columns = (("in_span_score", score, missing[0]), ("turns", turns, missing[1]), ("turns_deduplicated", distinct, missing[1]))
        return {name: np.array([values.get(q, default) for q in questions]) for name, values, default in columns}

    note = "MMDuet/Aha, 1 to 5: mean grade of the replies within each gold span, 1 for a span without one"
    return {
        "in_span": Protocol(f"{note}; answered questions only", metrics((np.nan, np.nan)), percent=False),
        "in_span_padded": Protocol(f"{note}; every unanswered question counts 1", metrics((NO_REPLY, 0.0)), percent=False),
    }


def scored_lines(graded: dict[str, Graded], answers: dict[str, Entry]) -> str:
    """The predictions with evaluator_output and answer_time, JSON Lines; an ungraded (out-of-span) reply stands as 1 and does not count."""
    lines = []
    for q, g in graded.items():
        content = {key: value for key, value in answers[q].content.items() if key != "debug_data"}
        rows = [[1 if grade is None else grade for grade in row] for row in g.grades]
        lines.append(json.dumps({**content, "question_id": q, "answer_time": g.spans, "evaluator_output": rows}))
    return "\n".join(lines) + "\n"


def evaluate(args: argparse.Namespace) -> Outcome:
    answers = read_answers(args.predictions)
    ready = ["evaluator_output" in entry.content for entry in answers.values()]
    if all(ready) and args.annotations is None:
        everyone = list(answers)[: args.limit]
        graded, skipped, annotations = {q: read_graded(answers[q]) for q in everyone}, {}, None
    else:
        annotations = find_annotations("magqa", args.annotations)
        questions = {q.question_id: q for q in read_magqa(annotations)[: args.limit]}
        everyone = list(questions)
        scored, skipped = select(answers, everyone)
        if all("evaluator_output" in answers[q].content for q in scored):
            graded = {q: read_graded(answers[q]) for q in scored}
        else:
            graded = grade_questions(answers, questions, scored, args)
    if args.num_examples is not None:
        if args.num_examples < len(everyone):
            raise UserError(f"--num_examples {args.num_examples} is below the {len(everyone)} questions there are; use --limit for fewer.")
        everyone = everyone + [f"padding-{i}" for i in range(len(everyone), args.num_examples)]
    if args.scored:
        write_text(args.scored, scored_lines(graded, answers))
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "report")}
    settings |= {"annotations": str(annotations) if annotations else None, "prompt_version": PROMPT_VERSION}
    trained_on = [q for q in graded if answers[q].trained_on]
    protocols = magqa_protocols(graded, everyone)
    return Outcome("Shot2Story-MAGQA-39k", everyone, protocols, settings, skipped, [], trained_on, len(everyone) - len(graded))


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The questions of the annotations in the data set's folder; there is one split."""
    return question_items("magqa", root)


TASK = Task(
    DataSet(
        "magqa", "Shot2Story-MAGQA-39k test (Wang et al. 2024)", "shot2story",
        (File("annotations/magqa_test.json", MMDUETIT),),
        "videos", "https://huggingface.co/mhan/shot2story-videos", "2,000 test questions", "CC BY-NC-SA 4.0 (annotations)",
        "evaluation: answering at the right time (magqa.sh)",
    ),
    short="Shot2Story-MAGQA-39k", items=items, evaluate=evaluate, frame_fps=2.0, max_num_frames=400, unit="questions",
)  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.eval.magqa", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, "magqa_test.json (default: datasets/shot2story/annotations)")
    parser.add_argument(
        "--judge", choices=("endpoint", "local", "batch"), help="who grades: an OpenAI-compatible server, a local model, batch files"
    )
    parser.add_argument("--judge_model", help="model name at the endpoint, or folder or hub id of the local model")
    parser.add_argument("--judge_url", help="address of the endpoint up to /v1 (default: OPENAI_BASE_URL, else OpenAI)")
    parser.add_argument("--judge_cache", default="outputs/judgments.jsonl", help="file that keeps every grade (default %(default)s)")
    parser.add_argument("--judge_timeout", type=float, default=60.0, help="seconds to wait for one grade (default %(default)s)")
    parser.add_argument("--judge_workers", type=int, default=4, help="questions put to the endpoint at the same time (default %(default)s)")
    parser.add_argument("--batch_dir", default="outputs/judge_batch", help="folder of the batch files (default %(default)s)")
    parser.add_argument(
        "--scored", metavar="FILE", help="write the predictions with their grades (JSON Lines), to be evaluated again without a judge"
    )
    parser.add_argument(
        "--num_examples", type=int, metavar="N", help="pad with unanswered questions up to N (default: the annotated questions)"
    )
    args = parser.parse_args(argv)
    if args.judge_workers < 1 or args.judge_timeout <= 0:
        parser.error("--judge_workers and --judge_timeout must be above zero")
    finish(evaluate(args), args.output, args.report, args.strict)


if __name__ == "__main__":
    run_command(main)
