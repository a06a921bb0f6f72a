"""YouCook2 dense captioning: SODA_c, CIDEr, METEOR and localisation F1, as Vid2Seq, MMDuet and Aha report them.

    python -m aha.eval.youcook2 --predictions outputs/youcook2/predictions.json --output metrics.json

Replies (`model_response_list`) become captions: consecutive equal replies are merged, and a caption lasts from the end of the one before
to its own last time (`--first_caption drop` leaves out the first one, as the reference's code does; by default it starts at 0).
Files that hold captions already are read too: {question id: [{"timestamp": [start, end], "caption": words}]}.
SODA_c is the official tool's number. What MMDuet, Aha and Vid2Seq-style code print under that name is `SODA_c_released_code`: it pairs the
captions' IoU and METEOR in two different orders from the eleventh caption on. Para_CIDER and Para_METEOR take a video's captions as one
paragraph. METEOR and SODA_c need Java and the package pycocoevalcap. Fractions, not percent; videos without a prediction are skipped, not
counted 0.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core import text_answers
from aha.core.checked import interval, listed, text, writable
from aha.core.files import read_json
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Prediction
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, answers_of, run
from aha.eval.proactive_files import entries
from aha.eval.published import Counted
from aha.eval.questions import Question, duration, find_annotations, opened, question, read_answers, timed_curves
from aha.eval.task import MMDUETIT, DataSet, File, Task
from aha.metrics import captions as caption_metrics
from aha.metrics.captions import THRESHOLDS
from aha.metrics.java_captions import Meteor, simple_words, treebank_words, why_no_java
from aha.results.layout import Headline, Protocol
from aha.results.tree import Column, Scored

if TYPE_CHECKING:
    from aha.results.figures import Curve

# What is asked where a file holds no question: the published annotations name steps only.
CAPTION_QUERY = "Please concisely narrate the video in real time."
METRICS = (
    "SODA_c", "SODA_c_released_code", "CIDER", "METEOR", "F1_Score", "Precision_Mean", "Recall_Mean", "n_preds",
    "Para_CIDER", "Para_METEOR",
)  # fmt: skip
NEED_JAVA = ("SODA_c", "SODA_c_released_code", "METEOR", "Para_METEOR")
UNMATCHED = ["unmatchedreference"]  # the reference text of a prediction that matches nothing; no caption contains this word
PROTOCOL = Protocol("dense_captioning", "Vid2Seq-style evaluation of MMDuet and Aha", METRICS)
NO_JAVA = "; words tokenised without Java: CIDEr of captions with punctuation may differ slightly"


# ---------------------------------------------------------------- annotations


def read_youcook2(path: str | Path) -> list[Question]:
    """The validation videos of `youcookii_annotations_trainval.json` (category: the recipe type), or `val-random_prompt.json`."""
    path = Path(path)
    document = read_json(path, "YouCook2 annotations")
    if not isinstance(document, dict):
        return read_answers(path, "YouCook2 annotations", CAPTION_QUERY)
    database = document.get("database")
    if not isinstance(database, dict):
        raise UserError(f"{path} has no `database`; expected youcookii_annotations_trainval.json or val-random_prompt.json.")
    questions = []
    for video_id, entry in database.items():
        where = f"{path}, video {video_id}"
        if not isinstance(entry, dict) or entry.get("subset") != "validation":
            continue
        steps = entries(entry.get("annotations"), where, "annotations")
        spans = tuple(interval(step.get("segment"), where, f"segment {i}") for i, step in enumerate(steps))
        answers = tuple(text(step.get("sentence"), where, f"sentence {i}") for i, step in enumerate(steps))
        recipe = str(entry.get("recipe_type", ""))
        video = f"validation/{recipe}/{video_id}" if recipe else video_id
        one = question(writable(video_id), video, ((0.0, CAPTION_QUERY),), duration(entry, where), spans=spans, answers=answers)
        questions.append(replace(one, category=f"recipe {recipe}" if recipe else ""))
    if not questions:
        raise UserError(f"{path} holds no video of the validation subset; is it the train part only?")
    return questions


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Question]:
    """The questions of an annotation file, or of that in the data set's folder; there is one split."""
    return read_youcook2(find_annotations(TASK, root))


# ---------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Captions:
    """Dense captions of one video: segments [P, 2] in seconds, and their words."""

    segments: np.ndarray
    texts: list[str]


def merge_replies(replies: list[tuple[float, str]], first_caption: str = "keep") -> Captions:
    """Captions from timed replies, in any order: consecutive equal replies are one caption, which starts where the one before ended.

    first_caption "keep": the first starts at 0; "drop": it has no start and is left out (MMDuet's and Aha's evaluation).
    """
    segments: list[list[float]] = []
    texts: list[str] = []
    for time, words in sorted(replies, key=lambda reply: reply[0]):
        if texts and words == texts[-1]:
            segments[-1][1] = time
        else:
            segments.append([segments[-1][1] if segments else 0.0, time])
            texts.append(words)
    if first_caption == "drop":
        segments, texts = segments[1:], texts[1:]
    return Captions(np.array(segments).reshape(-1, 2), texts)


def captions_of(prediction: Prediction, first_caption: str) -> Captions:
    """The captions of one video: merged replies, or as listed ({"timestamp": [start, end], "caption": words}). Raises UserError."""
    if "scores" not in prediction.record:
        return merge_replies(prediction.replies(), first_caption)
    segments, texts = [], []
    for i, caption in enumerate(listed(prediction.record["scores"], prediction.name, "captions")):
        where = f"{prediction.name}, caption {i}"
        if not isinstance(caption, dict) or not isinstance(caption.get("caption"), str):
            raise UserError(f"{where} is no object with timestamp and caption; repair the entry.")
        segments.append(interval(caption.get("timestamp"), where, "timestamp"))
        texts.append(caption["caption"])
    return Captions(np.array(segments).reshape(-1, 2), texts)


def text_captions_of(prediction: Prediction, form: text_answers.Form) -> Captions:
    """The captions in the words of another model (TimeChat's or VTimeLLM's form), as they stand there."""
    found = text_answers.captions(*text_answers.answer(prediction), form)
    return Captions(np.array([(one.start, one.end) for one in found]).reshape(-1, 2), [one.text for one in found])


def caption_values(
    found: Mapping[str, Captions], questions: Mapping[str, Question], scored: list[str], use_java: bool
) -> dict[str, np.ndarray]:
    """Every metric on the scored videos: name -> [V]. use_java: METEOR, SODA_c and the Treebank tokenizer."""
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
                similarity = np.array(meteor.corpus([(g, p) for p in predicted for g in gold])[1]).reshape(len(predicted), len(gold))
                by_start = np.ix_(np.argsort(found[q].segments[:, 0], kind="stable"), np.argsort([span[0] for span in questions[q].spans]))
                row["SODA_c"] = caption_metrics.soda_c(iou[by_start], similarity[by_start])
                row["SODA_c_released_code"] = caption_metrics.soda_c_released_code(iou, similarity)
            rows.append(row | {"n_preds": float(len(predicted))})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def paragraph_columns(found: Mapping[str, Captions], questions: Mapping[str, Question], scored: list[str], use_java: bool) -> list[Column]:
    """Para_CIDER and Para_METEOR: numbers of all videos together, not means over videos."""
    words = caption_metrics.paragraph_words
    pairs = [(words(found[q].texts, ". "), words(questions[q].answers, " ")) for q in scored]
    whole = {"Para_CIDER": caption_metrics.cider_d(pairs)}
    if use_java:
        with Meteor() as meteor:
            whole["Para_METEOR"] = meteor.corpus(pairs)[0]
    return [Column(PROTOCOL.name, metric, "", [], np.array([]), whole=value) for metric, value in whole.items()]


def matched_meteor(meteor: Meteor, iou_PG: np.ndarray, predicted: list[list[str]], gold: list[list[str]]) -> float:
    """METEOR's aggregate over the matched pairs of one video, mean over THRESHOLDS."""
    scores = []
    for threshold in THRESHOLDS:
        pairs = caption_metrics.matched_pairs(iou_PG, threshold)
        scores.append(meteor.corpus([(predicted[p], gold[g] if g is not None else UNMATCHED) for p, g in pairs])[0])
    return float(np.mean(scores))


@dataclass(kw_only=True)
class YouCook2(Benchmark):
    questions: Mapping[str, Question]
    first_caption: str
    no_java: bool
    answers: str

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        answers, skipped = answers_of(path, self.chosen, "question_id")
        for q in [q for q in answers if not self.questions[q].spans]:
            skipped[q] = "no gold captions"
            del answers[q]
        if not answers:
            raise UserError(f"no predicted video has gold captions in {self.annotations}; check the file.")
        why_not = "switched off" if self.no_java else why_no_java()
        if self.answers == "text":
            found = {q: text_captions_of(answer, text_answers.form_of(path)) for q, answer in answers.items()}
        else:
            found = {q: captions_of(answer, self.first_caption) for q, answer in answers.items()}
        ids = list(answers)
        metrics = caption_values(found, self.questions, ids, why_not is None)
        about = PROTOCOL.about + ("; Treebank tokenizer" if why_not is None else NO_JAVA)
        missing = {} if why_not is None else dict.fromkeys(NEED_JAVA, why_not)
        protocols = [replace(protocol, about=about).selected([m for m in METRICS if m not in missing]) for protocol in self.protocols]
        columns = [Column(PROTOCOL.name, metric, "", ids, values) for metric, values in metrics.items()]
        columns += paragraph_columns(found, self.questions, ids, why_not is None)
        seen = [q for q, answer in answers.items() if answer.trained_on or q in trained_on]
        return Scored(str(path), protocols, columns, len(ids), skipped, [], seen, missing=missing)

    def sets(self, scored: Scored) -> dict[str, Counted]:
        # papers drop each video's first caption, as the released code does
        return {"val": Counted(scored.count, len(self.questions))} if self.first_caption == "drop" else {}

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        return timed_curves(answers_of(path, self.chosen, "question_id")[0], self.questions, fusion, wanted)


def load(
    annotations: str | Path | None = None, first_caption: str = "keep", no_java: bool = False, answers: str = "scores", **selection: Any
) -> YouCook2:
    """Read the videos and select. selection: protocols, video_ids, limit, as `aha.eval.questions.opened` takes them."""
    selected = opened(TASK, read_youcook2, [PROTOCOL], annotations, **selection)
    return YouCook2(first_caption=first_caption, no_java=no_java, answers=answers, **selected)


def evaluate(predictions: str | Path, annotations: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, annotations=annotations, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--first_caption", choices=("keep", "drop"), default="keep", help="first caption of a video: starts at 0, or left out")
    text_answers.add_answers_flag(p)
    p.add_argument("--no_java", action="store_true", help="leave METEOR and SODA_c out even where Java is there")


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
    short="YouCook2", items=items, load=load, add_flags=add_flags, frame_fps=0.5, max_num_frames=200, unit="videos",
    protocols=(PROTOCOL,),
    headlines=tuple(Headline(PROTOCOL.name, metric, metric) for metric in ("SODA_c", "CIDER", "METEOR", "F1_Score")),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.youcook2", argv)


if __name__ == "__main__":
    run_command(main)
