"""QVHighlights: highlight detection (mAP, HIT@1 at three levels) and moment retrieval, as in the official standalone evaluation.

    python -m aha.eval.qvhighlights --predictions outputs/qvh/predictions.json --output metrics.json

Source: Lei et al., NeurIPS 2021 (`jayleicn/moment_detr`). Highlight detection needs clip scores: `pred_saliency_scores`, or frame scores
(`debug_data`), whose mean over each 2-second clip is taken. Moment retrieval needs windows: `pred_relevant_windows`; with
`--windows_from_scores X` they are made from the clip scores (min-max over the whole video, score >= X: looks ahead). Percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core import text_answers
from aha.core.checked import interval, listed, number, whole
from aha.core.flags import finite
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import CLIP_SECONDS, Prediction
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, answers_of, run
from aha.eval.questions import (
    Question,
    conversation,
    find_annotations,
    opened,
    question,
    read_entries,
    unique,
    warn_of_counts,
    whole_scores,
)
from aha.eval.task import MMDUETIT, DataSet, File, Task
from aha.metrics import grounding, moments
from aha.results import tree
from aha.results.layout import RANDOM, WHOLE, Headline, Protocol
from aha.results.tree import Column, Scored, mean_of

if TYPE_CHECKING:
    from aha.results.figures import Curve

SEED = 0
SOURCE = "QVHighlights standalone_eval, Lei et al. 2021"
HIGHLIGHTS = tuple(f"HL-min-{level}-{metric}" for level in moments.SALIENCY_LEVELS for metric in ("mAP", "Hit1"))
HIGHEST = 4  # opinions are 0 to 4
LONGEST = 24 * 3600.0  # seconds of a video
RETRIEVAL = (
    "MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP@0.5", "MR-full-mAP@0.75", "MR-full-mAP",
    "MR-short-mAP", "MR-middle-mAP", "MR-long-mAP",
)  # fmt: skip


# ---------------------------------------------------------------- annotations


def read_qvhighlights(path: str | Path) -> list[Question]:
    """`highlight_val_release.jsonl` or `highlight_val-random_prompt.json`, with saliency scores (train or val; the test split has none)."""
    questions = []
    for where, entry in read_entries(path, "QVHighlights annotations"):
        truth = entry["answer"] if isinstance(entry.get("answer"), dict) else entry
        numbered = listed(truth.get("relevant_clip_ids"), where, "relevant_clip_ids")
        rows = listed(truth.get("saliency_scores"), where, "saliency_scores")
        if len(numbered) != len(rows):
            raise UserError(
                f"{where}: {len(rows)} saliency_scores for {len(numbered)} relevant_clip_ids; the two lists must be of one length."
            )
        clips = tuple(whole(clip, where, f"relevant_clip_ids {i}") for i, clip in enumerate(numbered))
        opinions = tuple(
            tuple(
                whole(score, where, f"saliency score of clip {clip}", HIGHEST) for score in listed(row, where, f"saliency of clip {clip}")
            )
            for clip, row in zip(clips, rows)
        )
        if len({len(row) for row in opinions}) > 1 or () in opinions:
            raise UserError(f"{where}: clips are rated by different numbers of workers, or by none; repair the entry.")
        if len(set(clips)) < len(clips):
            raise UserError(f"{where}: relevant_clip_ids names a clip twice; repair the entry.")
        windows = truth.get("relevant_windows")
        windows = [] if windows is None else listed(windows, where, "relevant_windows")
        spans = tuple(interval(w, where, f"window {i}") for i, w in enumerate(windows))
        seconds = number(entry.get("duration", 150.0 if "conversation" in entry else None), where, "duration", 2.0)
        if seconds > LONGEST:
            raise UserError(f"{where}: duration is {seconds:g} s, longer than a day; repair the entry.")
        video, key = str(entry.get("vid", entry.get("video", ""))), Prediction(entry, where).question_id
        questions.append(question(key, video, conversation(entry, where), seconds, spans=spans, clips=clips, opinions=opinions))
    return unique(questions, path)


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Question]:
    """The questions of an annotation file, or of that in the data set's folder; there is one split."""
    return read_qvhighlights(find_annotations(TASK, root))


# ---------------------------------------------------------------- evaluation


def clip_scores(prediction: Prediction, fusion: Fusion, smooth_window: int, seconds: float | None = None) -> np.ndarray:
    """One score per 2-second clip: as listed, or the mean of the (smoothed) frame scores with 2c <= time < 2c + 2; without a frame
    that of the clip before. seconds: length of the video, where the prediction does not say it."""
    if "pred_saliency_scores" in prediction.record:
        return prediction.clip_scores()
    times, scores = whole_scores(prediction, fusion, seconds)
    if times[0] < 0 or times[-1] > LONGEST:
        raise UserError(f"{prediction.name}: frame times run from {times[0]:g} to {times[-1]:g} s; expected seconds.")
    clip = (times / CLIP_SECONDS + 1e-6).astype(int)
    smoothed = grounding.smooth(scores, smooth_window)
    total, count = np.bincount(clip, smoothed), np.bincount(clip)
    last_seen = np.maximum.accumulate(np.where(count > 0, np.arange(len(count)), 0))
    return (total / np.maximum(count, 1))[last_seen]


def protocols_for(smooth_window: int, windows_from_scores: float | None) -> list[Protocol]:
    note = SOURCE + (f"; mean of {smooth_window} frames on both sides looks ahead" if smooth_window else "")
    found = [Protocol("highlight_detection", note, HIGHLIGHTS, HIGHLIGHTS), Protocol("moment_retrieval", SOURCE, RETRIEVAL, RETRIEVAL)]
    if windows_from_scores is not None:
        about = f"{SOURCE}; windows = runs of clips with min-max normalised score >= {windows_from_scores:g}, which looks ahead"
        found.append(Protocol("moment_retrieval_from_scores", about, RETRIEVAL, RETRIEVAL))
    return found


@dataclass(kw_only=True)
class QVHighlights(Benchmark):
    questions: Mapping[str, Question]
    smooth_window: int
    windows_from_scores: float | None
    answers: str

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        answers, skipped = answers_of(path, self.chosen, "question_id")
        if self.answers == "text":
            answers = {q: text_answers.with_window(answer) for q, answer in answers.items()}
        kinds = {
            "scores": [answer.has_scores for answer in answers.values()],
            "windows": ["pred_relevant_windows" in answer.record for answer in answers.values()],
        }
        for name, has in kinds.items():
            if any(has) and not all(has):
                lacking = next(q for q, there in zip(answers, has) if not there)
                raise UserError(f"{path}: question {lacking} has no {name} while others have; complete the file or evaluate the two apart.")
        has_scores, has_windows = (all(has) for has in kinds.values())
        if not has_scores and not has_windows:
            raise UserError(
                f"{path} has neither debug_data, scores, pred_saliency_scores nor pred_relevant_windows; was it written by aha.score?"
            )
        if self.windows_from_scores is not None and not has_scores:
            raise UserError(f"--windows_from_scores needs frame or clip scores, and {path} has none.")
        seen = [q for q, answer in answers.items() if answer.trained_on or q in trained_on]
        scored = Scored(str(path), [], [], len(answers), skipped, [], seen)
        scores: dict[str, np.ndarray] = {}
        if has_scores:
            scores = {q: clip_scores(answer, fusion, self.smooth_window, self.seconds(q)) for q, answer in answers.items()}
            warn_of_counts(path, {q: (len(values), self.clips(q)) for q, values in scores.items()})
            scored.constant = [q for q, values in scores.items() if np.ptp(values) == 0]
        for protocol in self.protocols:
            if protocol.name == "highlight_detection" and has_scores:
                self._highlights(scored, protocol, scores)
            elif protocol.name == "moment_retrieval" and has_windows:
                self._retrieval(scored, protocol, {q: answer.windows() for q, answer in answers.items()})
            elif protocol.name == "moment_retrieval_from_scores" and self.windows_from_scores is not None:
                starts = CLIP_SECONDS * np.arange(max(len(s) for s in scores.values()))
                found = {q: moments.windows_from_scores(s, starts, CLIP_SECONDS, self.windows_from_scores) for q, s in scores.items()}
                self._retrieval(scored, protocol, found)
        if not scored.columns:
            raise UserError(f"{path} does not hold what the protocols of --protocols need; leave --protocols out.")
        scored.extra = {"official_rounded_2_decimals": official_brief(scored.columns)}
        return scored

    def _highlights(self, scored: Scored, protocol: Protocol, scores: Mapping[str, np.ndarray]) -> None:
        tables = {q: moments.saliency_table(self.questions[q].opinions, self.questions[q].clips, self.clips(q)) for q in scores}
        found = [moments.highlight_metrics(values, tables[q]) for q, values in scores.items()]
        _add(scored, protocol, scored.columns, list(scores), {m: np.array([row[m] for row in found]) for m in found[0]})

    def _retrieval(self, scored: Scored, protocol: Protocol, windows: Mapping[str, np.ndarray]) -> None:
        """MR metrics; the tables show those of the official summary, the others stay in the file."""
        if not any(self.questions[q].spans for q in windows):
            raise UserError(
                f"{self.annotations} has no relevant_windows, so moment retrieval cannot be judged; use highlight_val_release.jsonl."
            )
        truths = [np.array(self.questions[q].spans).reshape(-1, 2) for q in windows]
        whole = moments.retrieval_metrics([np.array([[0.0, self.seconds(q), 1.0]]) for q in windows], truths)
        _add(scored, protocol, scored.columns, list(windows), moments.retrieval_metrics(list(windows.values()), truths))
        _add(scored, protocol, scored.rows.setdefault(WHOLE, []), list(windows), whole)

    def clips(self, q: str) -> int:
        return int(self.seconds(q) / CLIP_SECONDS)

    def seconds(self, q: str) -> float:
        duration = self.questions[q].duration
        assert duration is not None  # read_qvhighlights takes none without
        return duration

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        """Random clip scores, where highlights are judged."""
        ids = [q for q in self.chosen if scored is None or q not in scored.skipped]
        if "highlight_detection" not in {p.name for p in (scored.protocols if scored else self.protocols)}:
            return {}
        random = np.random.default_rng(SEED)
        found: dict[str, list[list[float]]] = {metric: [] for metric in HIGHLIGHTS}
        for q in ids:
            table = moments.saliency_table(self.questions[q].opinions, self.questions[q].clips, self.clips(q))
            draws = [moments.highlight_metrics(random.random(self.clips(q)), table) for _ in range(runs)]
            for metric, values in found.items():
                values.append([draw[metric] for draw in draws])
        return {RANDOM: [Column("highlight_detection", metric, "", ids, np.array(values)) for metric, values in found.items()]}

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        from aha.results.figures import Curve  # matplotlib: only here

        for q, answer in answers_of(path, self.chosen, "question_id")[0].items():
            if q in wanted and answer.has_scores:
                values = clip_scores(answer, fusion, self.smooth_window)
                one, seconds = self.questions[q], CLIP_SECONDS * np.arange(len(values))
                asked = one.queries[0][1] if one.queries else ""
                yield Curve(q, asked, self.seconds(q), {"prediction": (seconds, values)}, spans=("relevant windows", one.spans))


def _add(scored: Scored, protocol: Protocol, columns: list[Column], ids: list[str], metrics: Mapping[str, np.ndarray]) -> None:
    scored.protocols = list(dict.fromkeys([*scored.protocols, protocol]))
    columns.extend(Column(protocol.name, metric, "", ids, values) for metric, values in metrics.items())


def official_brief(columns: Sequence[Column]) -> dict[str, float | None]:
    """The official tool's `brief` summary."""
    wanted = {("moment_retrieval", m) for m in RETRIEVAL} | {("highlight_detection", m) for m in HIGHLIGHTS}
    means = {column.metric: mean_of(column.values) for column in columns if (column.protocol, column.metric) in wanted}
    return {metric: tree.number(round(mean, 2)) for metric, mean in means.items()}


def load(
    annotations: str | Path | None = None,
    smooth_window: int = 0,
    windows_from_scores: float | None = None,
    answers: str = "scores",
    **selection: Any,
) -> QVHighlights:
    """Read the questions and select. selection: protocols, video_ids, limit, as `aha.eval.questions.opened` takes them."""
    if smooth_window < 0:
        raise UserError(f"--smooth_window {smooth_window} is a number of frames from 0 on.")
    if windows_from_scores is not None and not 0 <= windows_from_scores <= 1:
        raise UserError(f"--windows_from_scores {windows_from_scores:g} is a threshold on min-max scores, from 0 to 1.")
    selected = opened(TASK, read_qvhighlights, protocols_for(smooth_window, windows_from_scores), annotations, **selection)
    return QVHighlights(smooth_window=smooth_window, windows_from_scores=windows_from_scores, answers=answers, **selected)


def evaluate(predictions: str | Path, annotations: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, annotations=annotations, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--smooth_window", type=int, default=0, help="frames averaged on each side; above 0 looks ahead (default %(default)s)")
    text_answers.add_answers_flag(p)
    p.add_argument("--windows_from_scores", type=finite, metavar="X", help="moment retrieval from scores: threshold 0..1 on min-max scores")


TASK = Task(
    DataSet(
        "qvh", "QVHighlights (Lei et al., NeurIPS 2021)", "qvh",
        (
            File("annotations/highlight_val_release.jsonl", "https://github.com/jayleicn/moment_detr (data/)", "annotations"),
            File("annotations/highlight_val-random_prompt.json", MMDUETIT, "annotations"),
        ),
        "videos", "https://github.com/jayleicn/moment_detr (data/README.md, qvhilights_videos.tar.gz)",
        "10,148 clips of 150 s (1,550 val queries)", "CC BY-NC-SA 4.0", "evaluation: highlight detection (qvh.sh)",
    ),
    short="QVHighlights", items=items, load=load, add_flags=add_flags, frame_fps=1.0, max_num_frames=400, unit="questions",
    protocols=tuple(protocols_for(0, None)), rows={RANDOM: "random", WHOLE: "whole video"}, random_runs=5,
    headlines=(
        Headline("highlight_detection", "HL-min-VeryGood-mAP", "HL mAP"), Headline("highlight_detection", "HL-min-VeryGood-Hit1", "HIT@1"),
        Headline("moment_retrieval", "MR-full-mAP", "MR mAP"), Headline("moment_retrieval", "MR-full-R1@0.5", "R1, IoU 0.5"),
    ),
    ablation=tuple(Headline("highlight_detection", metric, metric) for metric in HIGHLIGHTS),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.qvhighlights", argv)


if __name__ == "__main__":
    run_command(main)
