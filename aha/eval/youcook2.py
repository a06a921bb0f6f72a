"""YouCook2 dense captioning: SODA_c, CIDEr, METEOR and localisation F1, as Vid2Seq, MMDuet and Aha report them.

    python -m aha.eval.youcook2 --predictions outputs/youcook2/predictions.json --output metrics.json

Replies (`model_response_list`) become captions: consecutive equal replies are merged, and a caption lasts from the end of the one before
to its own last time (`--first_caption drop` leaves out the first one, as the reference's code does; by default it starts at 0).
Files that hold captions already are read too: {question id: [{"timestamp": [start, end], "caption": words}]}.
METEOR and SODA_c need Java and the package pycocoevalcap. Fractions, not percent; videos without a prediction are skipped, not counted 0.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aha.core.files import read_json
from aha.errors import UserError, run_command
from aha.eval.benchmarks import Question, find_annotations, interval, question_items, read_youcook2, writable
from aha.eval.charades import select
from aha.eval.questions import Entry, read_answers
from aha.eval.task import MMDUETIT, DataSet, File, Item, Task
from aha.metrics import captions as caption_metrics
from aha.metrics.captions import THRESHOLDS
from aha.metrics.java_captions import Meteor, simple_words, treebank_words, why_no_java
from aha.results.outcome import Outcome, Protocol, add_common_arguments, finish

HEADLINE = ("SODA_c", "CIDER", "METEOR", "F1_Score", "Precision_Mean", "Recall_Mean", "n_preds")
UNMATCHED = ["unmatchedreference"]  # the reference text of a prediction that matches nothing; no caption contains this word


@dataclass(frozen=True)
class Captions:
    """Dense captions of one video: segments [P, 2] in seconds, and their words."""

    segments: np.ndarray
    texts: list[str]


def merge_replies(replies: list[tuple[float, str]], first_caption: str = "keep") -> Captions:
    """Captions from timed replies: consecutive equal replies are one caption, which starts where the one before ended.

    first_caption "keep": the first starts at 0; "drop": it has no start and is left out (MMDuet's and Aha's evaluation).
    """
    segments: list[list[float]] = []
    texts: list[str] = []
    for time, text in replies:
        if texts and text == texts[-1]:
            segments[-1][1] = time
        else:
            segments.append([segments[-1][1] if segments else 0.0, time])
            texts.append(text)
    if first_caption == "drop":
        segments, texts = segments[1:], texts[1:]
    return Captions(np.array(segments).reshape(-1, 2), texts)


def read_captions(path: str, first_caption: str) -> tuple[dict[str, Captions], list[str]]:
    """Captions by question id from either layout, and the trained-on ids. Raises UserError naming the entry."""
    document = read_json(path, "prediction file") if _is_object_of_lists(path) else None
    if document is None:
        answers = read_answers(path)
        return {q: _captions_of(answer, first_caption) for q, answer in answers.items()}, [q for q, a in answers.items() if a.trained_on]
    found = {}
    for question_id, listed in document.items():
        segments, texts = [], []
        for i, caption in enumerate(listed):
            where = f"{path}: question {question_id}, caption {i}"
            if not isinstance(caption, dict) or not isinstance(caption.get("caption"), str):
                raise UserError(f"{where} is no object with timestamp and caption; repair the entry.")
            segments.append(interval(caption.get("timestamp"), where, "timestamp"))
            texts.append(caption["caption"])
        found[writable(question_id)] = Captions(np.array(segments).reshape(-1, 2), texts)
    return found, []


def _captions_of(answer: Entry, first_caption: str) -> Captions:
    return merge_replies(answer.replies(), first_caption)


def _is_object_of_lists(path: str) -> bool:
    """Whether the file is one JSON object of lists (captions), not a list or JSON Lines of entries."""
    with contextlib.suppress(UserError):
        document = read_json(path, "prediction file")
        return isinstance(document, dict) and all(isinstance(value, list) for value in document.values()) and bool(document)
    return False


def evaluate_captions(found: dict[str, Captions], questions: dict[str, Question], scored: list[str], why_not: str | None) -> Protocol:
    """All metrics of the scored videos. why_not: why METEOR, SODA_c and the Treebank tokenizer are not used; None = they are."""
    use_java = why_not is None
    # Inside an answer the reference turns ". " into ", ", because it joins a video's answers with it.
    gold_texts = {q: [text.replace(". ", ", ") for text in questions[q].answers] for q in scored}
    flat = [text for q in scored for text in (*found[q].texts, *gold_texts[q])]
    words = iter(treebank_words(flat) if use_java else [simple_words(text) for text in flat])
    rows = []
    with Meteor() if use_java else contextlib.nullcontext() as meteor:
        for q in scored:
            predicted = [next(words) for _ in found[q].texts]
            gold = [next(words) for _ in gold_texts[q]]
            iou = caption_metrics.segment_iou(found[q].segments, np.array(questions[q].spans))
            row = {"CIDER": caption_metrics.matched_cider(iou, predicted, gold), **caption_metrics.localisation(iou)}
            if meteor is not None:
                row["METEOR"] = matched_meteor(meteor, iou, predicted, gold)
                # METEOR is not symmetric; Vid2Seq's SODA_c gives it the prediction as reference and the gold caption as candidate.
                similarity = meteor.corpus([(g, p) for p in predicted for g in gold])[1]
                row["SODA_c"] = caption_metrics.soda_c(iou, np.array(similarity).reshape(len(predicted), len(gold)))
            rows.append(row | {"n_preds": float(len(predicted))})
    metrics = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    tokenizer = "Treebank tokenizer" if use_java else "words tokenised without Java: CIDEr of captions with punctuation may differ slightly"
    missing = {} if why_not is None else dict.fromkeys(("SODA_c", "METEOR"), why_not)
    headline = tuple(name for name in HEADLINE if name in metrics)
    return Protocol(f"Vid2Seq-style evaluation of MMDuet and Aha; {tokenizer}", metrics, {}, headline, percent=False, missing=missing)


def matched_meteor(meteor: Meteor, iou_PG: np.ndarray, predicted: list[list[str]], gold: list[list[str]]) -> float:
    """METEOR's aggregate over the matched pairs of one video, mean over THRESHOLDS."""
    scores = []
    for threshold in THRESHOLDS:
        pairs = caption_metrics.matched_pairs(iou_PG, threshold)
        scores.append(meteor.corpus([(predicted[p], gold[g] if g is not None else UNMATCHED) for p, g in pairs])[0])
    return float(np.mean(scores))


def evaluate(args: argparse.Namespace) -> Outcome:
    annotations = find_annotations("youcook2", args.annotations)
    questions = {q.question_id: q for q in read_youcook2(annotations)[: args.limit]}
    found, trained_on = read_captions(args.predictions, args.first_caption)
    scored, skipped = select(found, list(questions))
    for q in [q for q in scored if not questions[q].spans]:
        skipped[q] = "no gold captions"
    scored = [q for q in scored if questions[q].spans]
    if not scored:
        raise UserError(f"no predicted video has gold captions in {annotations}; check the file.")
    protocol = evaluate_captions(found, questions, scored, "switched off" if args.no_java else why_no_java())
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "report")} | {"annotations": str(annotations)}
    return Outcome("YouCook2", scored, {"dense_captioning": protocol}, settings, skipped, [], [q for q in trained_on if q in scored])


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The questions of the annotations in the data set's folder; there is one split."""
    return question_items("youcook2", root)


TASK = Task(
    DataSet(
        "youcook2", "YouCook2 (Zhou et al., AAAI 2018)", "youcook2",
        (
            File("annotations/val-random_prompt.json", MMDUETIT, "annotations"),
            File("annotations/youcookii_annotations_trainval.json", "http://youcook2.eecs.umich.edu", "annotations"),
        ),
        "videos", "https://opendatalab.com/OpenDataLab/YouCook2", "2,000 videos, 176 h (val: 457 videos)",
        "annotations MIT; videos YouTube's terms", "evaluation: dense captioning (youcook2.sh)",
    ),
    short="YouCook2", items=items, evaluate=evaluate, frame_fps=0.5, max_num_frames=200, unit="questions",
)  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m aha.eval.youcook2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, "youcookii_annotations_trainval.json or val-random_prompt.json (default: datasets/youcook2/annotations)")
    parser.add_argument(
        "--first_caption", choices=("keep", "drop"), default="keep", help="first caption of a video: starts at 0, or left out"
    )
    parser.add_argument("--no_java", action="store_true", help="leave METEOR and SODA_c out even where Java is there")
    args = parser.parse_args(argv)
    finish(evaluate(args), args.output, args.report, args.strict)


if __name__ == "__main__":
    run_command(main)
