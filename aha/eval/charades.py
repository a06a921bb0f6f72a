"""Charades-STA temporal grounding: recall at IoU 0.3/0.5/0.7 and mIoU, from frame scores or from windows.

    python -m aha.eval.charades --predictions outputs/charades/predictions.json --output metrics.json

Frame scores (`debug_data`) are turned into an answer by smoothing, per-video min-max and a threshold (MMDuet, Aha): `fixed_threshold` uses
one threshold for all questions, `best_threshold_per_example` the best one for each question, which needs the ground truth (an oracle: it
bounds, it does not compare). Both look ahead: min-max over the whole video, and smoothing over frames on both sides.
Listed windows (`pred_relevant_windows`) are judged as in UniVTG. Percent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from aha.core.predictions import Weights
from aha.errors import UserError, run_command
from aha.eval.benchmarks import find_annotations, question_items, read_charades
from aha.eval.questions import Entry, read_answers
from aha.eval.task import MMDUETIT, DataSet, File, Item, Task
from aha.metrics import grounding, moments
from aha.results.outcome import Outcome, Protocol, add_common_arguments, add_fusion_arguments, finish, mean

WINDOWS = tuple(range(15))  # smoothing windows of the published sweep


def select(answers: dict[str, Entry], question_ids: list[str]) -> tuple[list[str], dict[str, str]]:
    """Questions that have an answer, and why the others (and answers to no question) are left out. Raises UserError if none is left."""
    scored = [q for q in question_ids if q in answers]
    skipped = {q: "no prediction" for q in question_ids if q not in answers}
    if not scored:
        raise UserError(
            f"none of the {len(answers)} predictions (first: {next(iter(answers))!r}) is for a question of the annotations "
            f"(first: {question_ids[0]!r}); the two files belong to different data sets."
        )
    return scored, skipped


def evaluate_scores(
    answers: dict[str, Entry], spans: dict[str, tuple], scored: list[str], weights: Weights, windows: list[int], threshold: float
) -> tuple[dict[str, Protocol], list[str], dict[str, object]]:
    """Both threshold forms from frame scores: protocols for `windows` and `threshold`, questions with constant scores, the whole sweep."""
    frames = {q: answers[q].frames(weights) for q in scored}
    constant = [q for q in scored if np.ptp(frames[q][1]) == 0]
    chosen = int(np.argmin(np.abs(grounding.THRESHOLDS - threshold)))
    if abs(grounding.THRESHOLDS[chosen] - threshold) > 1e-6:
        raise UserError(f"--threshold {threshold:g} is none of 0.30, 0.32, ..., 0.70; choose one of them.")
    sweep: dict[str, object] = {"fixed_threshold": [], "best_threshold_per_example": {}}
    protocols = {}
    for window in sorted({*WINDOWS, *windows}):
        ious_QK = np.array([grounding.frame_ious(frames[q][1], frames[q][0], spans[q], window) for q in scored])
        for k, value in enumerate(grounding.THRESHOLDS):
            row = {"smooth_window_size": window, "threshold": float(value), "scores": grounding.summary(ious_QK[:, k])}
            sweep["fixed_threshold"].append(row)
        sweep["best_threshold_per_example"][str(window)] = grounding.summary(ious_QK.max(axis=1))
        if window not in windows:
            continue
        ahead = "looks ahead: min-max over the whole video" + (f", mean of {window} frames on both sides" if window else "")
        whole = np.array([_truth_share(frames[q][0], spans[q]) for q in scored])
        protocols[f"fixed_threshold_w{window}_t{grounding.THRESHOLDS[chosen]:.2f}"] = Protocol(
            f"MMDuet/Aha, IoU over frames, one threshold for all; {ahead}", _metrics(ious_QK[:, chosen]), {"whole video": _metrics(whole)}
        )
        oracle = f"MMDuet/Aha, each question's own best of 21 thresholds, chosen with its ground truth: an oracle; {ahead}"
        protocols[f"best_threshold_per_example_w{window}"] = Protocol(oracle, _metrics(ious_QK.max(axis=1)))
    return protocols, constant, sweep


def _truth_share(times: np.ndarray, spans: tuple) -> float:
    """IoU of answering "the whole video"."""
    return float(np.any([(times >= start) & (times <= end) for start, end in spans], axis=0).mean())


def _metrics(ious_Q: np.ndarray) -> dict[str, np.ndarray]:
    return {"mIoU": 100 * ious_Q} | {f"R@{r}": 100.0 * (ious_Q >= r) for r in grounding.RECALLS}


def official_layout(metrics: dict[str, np.ndarray]) -> dict[str, object]:
    """The numbers as the official tool lays out and rounds them: {"R@1": {"0.3": ...}, "mIoU", "R@5", "mAP": {..., "average"}}."""
    layout: dict[str, object] = {"R@1": {}, "mIoU": round(mean(metrics["mIoU"]), 2), "R@5": {}, "mAP": {}}
    for name, values in metrics.items():
        family, _, threshold = name.rpartition("@")
        if family:
            layout[family][threshold] = round(mean(values), 2)
    layout["mAP"]["average"] = round(mean(metrics["mAP"]), 2)
    return layout


def evaluate(args: argparse.Namespace) -> Outcome:
    """Both kinds of answers of one prediction file."""
    annotations = find_annotations("charades", args.annotations)
    questions = read_charades(annotations)[: args.limit]
    answers = read_answers(args.predictions)
    scored, skipped = select(answers, [q.question_id for q in questions])
    spans = {q.question_id: q.spans for q in questions}
    protocols: dict[str, Protocol] = {}
    constant: list[str] = []
    extra: dict[str, object] = {}
    kinds = {"pred_relevant_windows" in answers[q].content for q in scored}
    if len(kinds) > 1:
        raise UserError(f"{args.predictions}: some entries hold pred_relevant_windows and some do not; evaluate the two kinds separately.")
    if kinds == {True}:
        metrics = moments.grounding_window_metrics([answers[q].windows() for q in scored], [np.array(spans[q]) for q in scored])
        protocols["univtg_windows"] = Protocol("UniVTG (ICCV 2023): R@1 and mIoU of the first listed window, mAP over at most 10", metrics)
        extra["official_rounded_2_decimals"] = official_layout(metrics)
    else:
        weights = Weights(args.alpha, args.beta, args.epsilon, args.uncertainty_threshold)
        protocols, constant, extra["sweep"] = evaluate_scores(answers, spans, scored, weights, args.smooth_windows, args.threshold)
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "report")} | {"annotations": str(annotations)}
    trained_on = [q for q in scored if answers[q].trained_on]
    return Outcome("Charades-STA", scored, protocols, settings, skipped, constant, trained_on, extra=extra)


def window_list(text: str) -> list[int]:
    """ "0,8" -> [0, 8]: smoothing windows in frames."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) <= 1000 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers from 0 on, such as 0,8")
    return [int(part) for part in parts]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m aha.eval.charades", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(p, "charades_sta_test.txt, test-random_prompt.json or UniVTG JSON Lines (default: datasets/charades/annotations)")
    add_fusion_arguments(p)
    p.add_argument("--smooth_windows", type=window_list, default=[0, 8], help="frames averaged on each side, comma-separated (default 0,8)")
    threshold_help = "the fixed threshold, 0.30 to 0.70 in steps of 0.02; not tuned (default %(default)s)"
    p.add_argument("--threshold", type=float, default=0.5, help=threshold_help)
    return p


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The questions of the annotations in the data set's folder; there is one split."""
    return question_items("charades", root)


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
    short="Charades-STA", items=items, evaluate=evaluate, frame_fps=2.0, max_num_frames=400, unit="questions",
)  # fmt: skip


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    finish(evaluate(args), args.output, args.report, args.strict)


if __name__ == "__main__":
    run_command(main)
