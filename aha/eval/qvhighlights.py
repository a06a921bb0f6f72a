"""QVHighlights: highlight detection (mAP, HIT@1 at three levels) and moment retrieval, as in the official standalone evaluation.

    python -m aha.eval.qvhighlights --predictions outputs/qvh/predictions.json --output metrics.json

Source: Lei et al., NeurIPS 2021 (`jayleicn/moment_detr`). Highlight detection needs clip scores: `pred_saliency_scores`, or frame scores
(`debug_data`), whose mean over each 2-second clip is taken. Moment retrieval needs windows: `pred_relevant_windows`; with
`--windows_from_scores X` they are made from the clip scores (min-max over the whole video, score >= X: looks ahead). Percent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from aha.core.predictions import Weights
from aha.errors import UserError, run_command
from aha.eval.benchmarks import find_annotations, question_items, read_qvhighlights
from aha.eval.charades import select
from aha.eval.questions import Entry, read_answers
from aha.eval.task import MMDUETIT, DataSet, File, Item, Task
from aha.metrics import grounding, moments
from aha.results.outcome import Outcome, Protocol, add_common_arguments, add_fusion_arguments, finish, mean

CLIP_SECONDS = 2.0
SEED = 0
HEADLINE = (
    "MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP@0.5", "MR-full-mAP@0.75", "MR-full-mAP",
    "MR-short-mAP", "MR-middle-mAP", "MR-long-mAP",
)  # fmt: skip
SOURCE = "QVHighlights standalone_eval, Lei et al. 2021"


def clip_scores(entry: Entry, weights: Weights, smooth_window: int) -> np.ndarray:
    """One score per 2-second clip: as listed, or the mean of the (smoothed) frame scores with 2c <= time < 2c + 2; without a frame
    that of the clip before."""
    if "pred_saliency_scores" in entry.content:
        return entry.clip_scores()
    times, scores = entry.frames(weights)
    if times[0] < 0 or times[-1] > 24 * 3600:
        raise UserError(
            f"{entry.where} (question {entry.question_id}): frame times run from {times[0]:g} to {times[-1]:g} s; expected seconds."
        )
    clip = (times / CLIP_SECONDS + 1e-6).astype(int)
    smoothed = grounding.smooth(scores, smooth_window)
    total, count = np.bincount(clip, smoothed), np.bincount(clip)
    last_seen = np.maximum.accumulate(np.where(count > 0, np.arange(len(count)), 0))
    return (total / np.maximum(count, 1))[last_seen]


def evaluate(args: argparse.Namespace) -> Outcome:
    annotations = find_annotations("qvh", args.annotations)
    questions = {q.question_id: q for q in read_qvhighlights(annotations)[: args.limit]}
    answers = read_answers(args.predictions)
    scored, skipped = select(answers, list(questions))
    weights = Weights(args.alpha, args.beta, args.epsilon, args.uncertainty_threshold)
    protocols: dict[str, Protocol] = {}
    constant: list[str] = []

    has_scores = [{"pred_saliency_scores", "debug_data"} & answers[q].content.keys() for q in scored]
    has_windows = ["pred_relevant_windows" in answers[q].content for q in scored]
    for name, has in (("scores", has_scores), ("windows", has_windows)):
        if any(has) and not all(has):
            lacking = next(q for q, there in zip(scored, has) if not there)
            raise UserError(
                f"{args.predictions}: question {lacking} has no {name} while others have; complete the file or evaluate the two apart."
            )
    if not any(has_scores) and not any(has_windows):
        raise UserError(
            f"{args.predictions} has neither debug_data, pred_saliency_scores nor pred_relevant_windows; was it written by aha.score?"
        )

    if any(has_scores):
        scores = {q: clip_scores(answers[q], weights, args.smooth_window) for q in scored}
        constant = [q for q in scored if np.ptp(scores[q]) == 0]
        note = SOURCE + (f"; mean of {args.smooth_window} frames on both sides looks ahead" if args.smooth_window else "")
        protocols["highlight_detection"] = highlight_protocol(note, [scores[q] for q in scored], [questions[q] for q in scored])
    if any(has_windows):
        with_truth = [q for q in scored if questions[q].spans]
        if not with_truth:
            raise UserError(
                f"{annotations} has no relevant_windows, so moment retrieval cannot be judged; use highlight_val_release.jsonl."
            )
        protocols["moment_retrieval"] = retrieval_protocol(SOURCE, {q: answers[q].windows() for q in scored}, questions, scored)
    if args.windows_from_scores is not None:
        if not any(has_scores):
            raise UserError(f"--windows_from_scores needs frame or clip scores, and {args.predictions} has none.")
        starts = CLIP_SECONDS * np.arange(max(len(s) for s in scores.values()))
        windows = {q: moments.windows_from_scores(s, starts, CLIP_SECONDS, args.windows_from_scores) for q, s in scores.items()}
        note = f"{SOURCE}; windows = runs of clips with min-max normalised score >= {args.windows_from_scores:g}, which looks ahead"
        protocols["moment_retrieval_from_scores"] = retrieval_protocol(note, windows, questions, scored)

    settings = {key: value for key, value in vars(args).items() if key not in ("output", "report")} | {"annotations": str(annotations)}
    trained_on = [q for q in scored if answers[q].trained_on]
    extra = {"official_rounded_2_decimals": official_brief(protocols)}
    return Outcome("QVHighlights", scored, protocols, settings, skipped, constant, trained_on, extra=extra)


def official_brief(protocols: dict[str, Protocol]) -> dict[str, float]:
    """The official tool's `brief` summary."""
    retrieval = protocols["moment_retrieval"].metrics if "moment_retrieval" in protocols else {}
    highlights = protocols["highlight_detection"].metrics if "highlight_detection" in protocols else {}
    chosen = {name: retrieval[name] for name in HEADLINE if name in retrieval} | highlights
    return {name: round(mean(values), 2) for name, values in chosen.items()}


def highlight_protocol(note: str, scores: list[np.ndarray], questions: list) -> Protocol:
    """HL metrics of every question, and those of random scores beside them."""
    random = np.random.default_rng(SEED)
    rows, chance = [], []
    for values, question in zip(scores, questions):
        n_clips = int(question.duration / CLIP_SECONDS)
        table = moments.saliency_table(question.opinions, question.clips, n_clips)
        rows.append(moments.highlight_metrics(values, table))
        draws = [moments.highlight_metrics(random.random(n_clips), table) for _ in range(5)]
        chance.append({metric: np.mean([draw[metric] for draw in draws]) for metric in draws[0]})
    metrics, random_row = ({m: np.array([row[m] for row in table]) for m in rows[0]} for table in (rows, chance))
    return Protocol(note, metrics, {"random": random_row})


def retrieval_protocol(note: str, windows: dict[str, np.ndarray], questions: dict, scored: list[str]) -> Protocol:
    """MR metrics; the table shows those of the official summary, the others stay in the file."""
    truths = [np.array(questions[q].spans).reshape(-1, 2) for q in scored]
    whole = moments.retrieval_metrics([np.array([[0.0, questions[q].duration, 1.0]]) for q in scored], truths)
    metrics = moments.retrieval_metrics([windows[q] for q in scored], truths)
    return Protocol(note, metrics, {"whole video": whole}, HEADLINE)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m aha.eval.qvhighlights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(p, "highlight_val_release.jsonl or highlight_val-random_prompt.json (default: datasets/qvh/annotations)")
    add_fusion_arguments(p)
    p.add_argument("--smooth_window", type=int, default=0, help="frames averaged on each side; above 0 looks ahead (default %(default)s)")
    p.add_argument("--windows_from_scores", type=float, metavar="X", help="moment retrieval from scores: threshold 0..1 on min-max scores")
    return p


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The questions of the annotations in the data set's folder; there is one split."""
    return question_items("qvh", root)


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
    short="QVHighlights", items=items, evaluate=evaluate, frame_fps=1.0, max_num_frames=400, unit="questions",
)  # fmt: skip


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    if args.smooth_window < 0:
        raise UserError(f"--smooth_window {args.smooth_window} is a number of frames from 0 on.")
    finish(evaluate(args), args.output, args.report, args.strict)


if __name__ == "__main__":
    run_command(main)
