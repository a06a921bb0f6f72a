"""Charades-STA temporal grounding: recall at IoU 0.3/0.5/0.7 and mIoU, from frame scores or from windows.

    python -m aha.eval.charades --predictions outputs/charades/predictions.json --output metrics.json

Frame scores (`debug_data`) are turned into an answer by smoothing, per-video min-max and a threshold (MMDuet, Aha): `fixed_threshold` uses
one threshold for all questions, `best_threshold_per_example` the best one for each question, which needs the ground truth (an oracle: it
bounds, it does not compare). Both look ahead: min-max over the whole video, and smoothing over frames on both sides.
Listed windows (`pred_relevant_windows`) are judged as in UniVTG. With `--answers text` the span is read from the words of another model
("From 12 to 40"; aha/core/text_answers.py). Percent.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core import text_answers
from aha.core.checked import interval, listed
from aha.core.files import read_text
from aha.core.flags import finite
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Prediction
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, answers_of, run, select_protocols
from aha.eval.published import Counted
from aha.eval.questions import (
    Question,
    conversation,
    duration,
    find_annotations,
    opened,
    question,
    read_entries,
    timed_curves,
    unique,
    whole_scores,
)
from aha.eval.task import MMDUETIT, DataSet, File, Task
from aha.metrics import grounding, moments
from aha.results.layout import WHOLE, Headline, Protocol
from aha.results.tree import Column, Scored, mean_of

if TYPE_CHECKING:
    from aha.results.figures import Curve

WINDOWS = tuple(range(15))  # smoothing windows of the published sweep
USUAL_WINDOWS = (0, 8)  # those that are computed unless others are asked for
USUAL_THRESHOLD = 0.5
RECALLS = ("mIoU", *(f"R@{r}" for r in grounding.RECALLS))
TEXT = tuple(
    Protocol(name, f"span in the words of another model, first true span (MMDuet/Aha, --is_online_model 0); {rule}", RECALLS, RECALLS)
    for name, rule in (
        ("text_grounding", "answers without exactly two numbers left out"),
        ("text_grounding_unparsed_zero", "answers without exactly two numbers count 0"),
    )
)


# ---------------------------------------------------------------- annotations


def read_charades(path: str | Path) -> list[Question]:
    """`charades_sta_test.txt` (`VIDEO START END##words`; question ids `VIDEO-LINE`), `test-random_prompt.json`, or UniVTG's JSON Lines."""
    path = Path(path)
    if path.suffix == ".txt":
        return _read_text_file(path)
    questions = []
    for where, entry in read_entries(path, "Charades-STA annotations"):
        spans = entry.get("timestamps", entry.get("relevant_windows"))
        if not spans:
            raise UserError(f"{where} has no timestamps (or relevant_windows); is this a Charades-STA annotation file?")
        spans = tuple(interval(span, where, f"span {i}") for i, span in enumerate(listed(spans, where, "timestamps")))
        video = str(entry.get("video", entry.get("vid", "")))
        key = Prediction(entry, where).question_id
        questions.append(question(key, video, conversation(entry, where), duration(entry, where), spans=spans))
    return unique(questions, path)


def _read_text_file(path: Path) -> list[Question]:
    lines = read_text(path, "Charades-STA annotations").split("\n")
    questions = []
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"(\S+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.+)", line.strip())
        if not found:
            raise UserError(
                f"{path}:{line_number} is not of the form `VIDEO START END##sentence`; repair the line or download the file again."
            )
        # A span written backwards is read as the interval between the two seconds.
        start, end = sorted((float(found[2]), float(found[3])))
        questions.append(question(f"{found[1]}-{line_number}", found[1], ((0.0, found[4].strip()),), None, spans=((start, end),)))
    if not questions:
        raise UserError(f"Charades-STA annotations {path} is empty; download it again.")
    return questions


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Question]:
    """The questions of an annotation file, or of that in the data set's folder; there is one split."""
    return read_charades(find_annotations(TASK, root))


# ---------------------------------------------------------------- evaluation


def protocols_for(windows: Sequence[int], threshold: float) -> list[Protocol]:
    """The two threshold forms for each smoothing window, in frames on each side."""
    found = []
    for window in sorted(set(windows)):
        ahead = "looks ahead: min-max over the whole video" + (f", mean of {window} frames on both sides" if window else "")
        fixed = f"MMDuet/Aha, IoU over frames, one threshold for all; {ahead}"
        oracle = f"MMDuet/Aha, each question's own best of 21 thresholds, chosen with its ground truth: an oracle; {ahead}"
        found.append(Protocol(f"fixed_threshold_w{window}_t{threshold:.2f}", fixed, RECALLS, RECALLS))
        found.append(Protocol(f"best_threshold_per_example_w{window}", oracle, RECALLS, RECALLS))
    return found


@dataclass(kw_only=True)
class Charades(Benchmark):
    questions: Mapping[str, Question]
    windows: Sequence[int]
    threshold: float
    wanted: Sequence[str] | None  # --protocols
    answers: str = "scores"

    def sets(self, scored: Scored) -> dict[str, Counted]:
        return {"test": Counted(scored.count, len(self.questions))}

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        answers, skipped = answers_of(path, self.chosen, "question_id")
        seen = [q for q, answer in answers.items() if answer.trained_on or q in trained_on]
        if self.answers == "text":
            return self._score_text(path, answers, skipped, seen)
        kinds = {"pred_relevant_windows" in answer.record for answer in answers.values()}
        if len(kinds) > 1:
            raise UserError(f"{path}: some entries hold pred_relevant_windows and some do not; evaluate the two kinds separately.")
        if kinds == {True}:
            return self._score_windows(path, answers, skipped, seen)
        scored = Scored(str(path), self.protocols, [], len(answers), skipped, [], seen)
        ids = list(answers)
        frames = {q: whole_scores(answer, fusion, self.questions[q].duration) for q, answer in answers.items()}
        scored.constant = [q for q in ids if np.ptp(frames[q][1]) == 0]
        chosen = int(np.argmin(np.abs(grounding.THRESHOLDS - self.threshold)))
        whole = np.array([_truth_share(frames[q][0], self.questions[q].spans) for q in ids])
        sweep: dict[str, Any] = {"fixed_threshold": [], "best_threshold_per_example": {}}
        by_name: dict[str, np.ndarray] = {}
        for window in sorted({*WINDOWS, *self.windows}):
            ious_QK = np.array([grounding.frame_ious(frames[q][1], frames[q][0], self.questions[q].spans, window) for q in ids])
            for k, value in enumerate(grounding.THRESHOLDS):
                row = {"smooth_window_size": window, "threshold": float(value), "scores": grounding.summary(ious_QK[:, k])}
                sweep["fixed_threshold"].append(row)
            sweep["best_threshold_per_example"][str(window)] = grounding.summary(ious_QK.max(axis=1))
            by_name[f"fixed_threshold_w{window}_t{grounding.THRESHOLDS[chosen]:.2f}"] = ious_QK[:, chosen]
            by_name[f"best_threshold_per_example_w{window}"] = ious_QK.max(axis=1)
        for protocol in self.protocols:
            scored.columns += _columns(protocol.name, ids, by_name[protocol.name])
            if protocol.name.startswith("fixed"):
                scored.rows.setdefault(WHOLE, []).extend(_columns(protocol.name, ids, whole))
        scored.extra = {"sweep": sweep}
        return scored

    def _score_text(self, path: Path, answers: Mapping[str, Prediction], skipped: dict[str, str], seen: list[str]) -> Scored:
        """Spans read from words. An answer that is none is left out of the mean by the released code, and 0 in a protocol of its own."""
        spans = {q: text_answers.grounded(answer) for q, answer in answers.items()}
        ious = [text_answers.span_iou(span, self.questions[q].spans[0]) if span else np.nan for q, span in spans.items()]
        columns = []
        for protocol in self.protocols:
            values = np.array(ious) if protocol.name == "text_grounding" else np.nan_to_num(ious)
            columns += [
                replace(column, values=np.where(np.isnan(values), np.nan, column.values))
                for column in _columns(protocol.name, list(answers), values)
            ]
        return Scored(str(path), self.protocols, columns, len(answers), skipped, [], seen)

    def _score_windows(self, path: Path, answers: Mapping[str, Prediction], skipped: dict[str, str], seen: list[str]) -> Scored:
        truths = [np.array(self.questions[q].spans) for q in answers]
        metrics = moments.grounding_window_metrics([answer.windows() for answer in answers.values()], truths)
        about = "UniVTG (ICCV 2023): R@1 and mIoU of the first listed window, mAP over at most 10"
        protocols = select_protocols([Protocol("univtg_windows", about, tuple(metrics), tuple(metrics))], self.wanted)
        columns = [Column("univtg_windows", metric, "", list(answers), values) for metric, values in metrics.items()]
        extra = {"official_rounded_2_decimals": official_layout(metrics)}
        return Scored(str(path), protocols, columns, len(answers), skipped, [], seen, extra=extra)

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        return timed_curves(answers_of(path, self.chosen, "question_id")[0], self.questions, fusion, wanted)


def _truth_share(times: np.ndarray, spans: tuple) -> float:
    """IoU of answering "the whole video"."""
    return float(np.any([(times >= start) & (times <= end) for start, end in spans], axis=0).mean())


def _columns(protocol: str, ids: list[str], ious_Q: np.ndarray) -> list[Column]:
    values = {"mIoU": 100 * ious_Q} | {f"R@{r}": 100.0 * (ious_Q >= r) for r in grounding.RECALLS}
    return [Column(protocol, metric, "", ids, values[metric]) for metric in RECALLS]


def official_layout(metrics: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The numbers as the official tool lays out and rounds them: {"R@1": {"0.3": ...}, "mIoU", "R@5", "mAP": {..., "average"}}."""
    layout: dict[str, Any] = {"R@1": {}, "mIoU": round(mean_of(metrics["mIoU"]), 2), "R@5": {}, "mAP": {}}
    for name, values in metrics.items():
        family, _, threshold = name.rpartition("@")
        if family:
            layout[family][threshold] = round(mean_of(values), 2)
    layout["mAP"]["average"] = round(mean_of(metrics["mAP"]), 2)
    return layout


def load(
    annotations: str | Path | None = None,
    smooth_windows: Sequence[int] = USUAL_WINDOWS,
    threshold: float = USUAL_THRESHOLD,
    answers: str = "scores",
    protocols: Sequence[str] | None = None,
    **selection: Any,
) -> Charades:
    """Read the questions and select. selection: video_ids, limit, as `aha.eval.questions.opened` takes them."""
    nearest = float(grounding.THRESHOLDS[np.argmin(np.abs(grounding.THRESHOLDS - threshold))])
    if not abs(nearest - threshold) <= 1e-6:
        raise UserError(f"--threshold {threshold:g} is none of 0.30, 0.32, ..., 0.70; choose one of them.")
    known = list(TEXT) if answers == "text" else protocols_for(smooth_windows, nearest)
    # univtg_windows is for files of windows; here the protocols for scores are selected
    of_scores = None if protocols == ["univtg_windows"] else protocols
    selected = opened(TASK, read_charades, known, annotations, of_scores, **selection)
    return Charades(windows=smooth_windows, threshold=nearest, wanted=protocols, answers=answers, **selected)


def evaluate(predictions: str | Path, annotations: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, annotations=annotations, **options)


def window_list(text: str) -> list[int]:
    """ "0,8" -> [0, 8]: smoothing windows in frames."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) <= 1000 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers from 0 on, such as 0,8")
    return [int(part) for part in parts]


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--smooth_windows", type=window_list, default=list(USUAL_WINDOWS),
        help=f"frames averaged on each side, comma-separated (default {','.join(map(str, USUAL_WINDOWS))})",
    )  # fmt: skip
    threshold_help = "the fixed threshold, 0.30 to 0.70 in steps of 0.02; not tuned (default %(default)s)"
    p.add_argument("--threshold", type=finite, default=USUAL_THRESHOLD, help=threshold_help)
    text_answers.add_answers_flag(p)


TASK = Task(
    DataSet(
        "charades", "Charades-STA (Gao et al., ICCV 2017)", "charades",
        (
            File("annotations/test-random_prompt.json", MMDUETIT, "annotations"),
            File("annotations/charades_sta_test.txt", "https://github.com/jiyanggao/TALL", "annotations"),
        ),
        "videos", "https://prior.allenai.org/projects/charades (Charades_v1_480)", "13 GB at 480p, 9,848 videos",
        "non-commercial, see the licence of Charades", "evaluation: temporal grounding (charades.sh)",
    ),
    short="Charades-STA", items=items, load=load, add_flags=add_flags, frame_fps=2.0, max_num_frames=400, unit="questions",
    protocols=tuple(protocols_for(USUAL_WINDOWS, USUAL_THRESHOLD)), rows={WHOLE: "whole video"},
    headlines=(
        Headline("fixed_threshold_w0_t0.50", "mIoU", "mIoU"), Headline("fixed_threshold_w0_t0.50", "R@0.5", "R@1, IoU 0.5"),
        Headline("best_threshold_per_example_w0", "mIoU", "mIoU of the oracle"), Headline("univtg_windows", "R@1@0.5", "R@1, IoU 0.5"),
    ),
    ablation=tuple(Headline("fixed_threshold_w0_t0.50", metric, metric) for metric in RECALLS),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.charades", argv)


if __name__ == "__main__":
    run_command(main)
