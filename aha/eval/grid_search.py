"""Fusion weights by grid search with honest cross-validation: tuned on the other folds, reported on the held-out one.

    python -m aha.eval.grid_search --predictions outputs/tvsum/predictions.json --output outputs/tvsum/grid.json
    python -m aha.eval.grid_search --dataset charades --predictions outputs/charades/predictions.json --output grid.json
    python -m aha.eval.tvsum --predictions new.json --fusion outputs/tvsum/grid.json          # every evaluator reads the result

Frame score = alpha * informative + beta * relevance - epsilon * max(0, uncertainty - threshold). Every combination is scored on every video
(vectorised); then, for each of the folds, the combination with the best mean objective over the OTHER folds' videos is taken and reported
on the fold's own. The mean over all held-out videos is the result. What tuning on all videos and reporting on the same would give (as the
released Aha scripts do) is printed beside it, named "tuned on test".

TVSum and Mr.HiSum: Aha's metrics of the scores, one a second (`aha_1fps_mean`, against the mean annotation or gtscore). Charades-STA: IoU
of the frames with min-max score >= 0.5, unsmoothed (`fixed_threshold_w0_t0.50`); all questions of a video are in one fold.

Dimensions: V videos (or questions), S samples of a video, K combinations.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aha.core.files import write_json
from aha.core.flags import check_outputs
from aha.core.folds import folds
from aha.core.fusion import NAMES, RELEVANCE, fuse
from aha.core.heads import SCORES
from aha.core.prediction import LARGEST, keyed, read_predictions
from aha.errors import UserError, run_command
from aha.eval.annotations import HIGHEST, find_tvsum, read_tvsum
from aha.eval.grids import place
from aha.eval.tvsum import predictions_of
from aha.eval.tvsum_protocols import aha_metrics
from aha.metrics.grounding import RECALLS, THRESHOLDS
from aha.metrics.highlights import top_labels, top_share, trapezoid_ap
from aha.results import table
from aha.results.tree import mean_of, number

EMPTY = "the grid has no combination with alpha or beta other than 0; widen --grid_alpha or --grid_beta."
THRESHOLD = float(THRESHOLDS[10])  # 0.5, to the last bit as in the evaluation
GROUNDING = ("mIoU", *(f"R@{r}" for r in RECALLS))
OBJECTIVES = ("top5", "spearman", "spearman_annotators", "map50", "map15", "f1_15")
METRICS = ("spearman", "kendall", "map50", "map15", "top5", "f1_15")
# Aha's published optima lie on grids of this kind (paper, table 12): 10 x 10 x 15 x 10 = 15,000 combinations.
DEFAULT_GRID = {"alpha": "0:2:10", "beta": "0:2:10", "epsilon": "-5:5:15", "uncertainty_threshold": "0.04:0.3:10"}
MOST_VALUES, MOST_COMBINATIONS = 1000, 1_000_000
BLOCK = 4096  # combinations at once: keeps a block of scores within some megabytes


@dataclass(frozen=True)
class HeadScores:
    """One video (or question) at its samples: heads [3, S] (informative, relevance, uncertainty), mean [S] annotation in 0..1 (Charades:
    the true frames), users [A, S]. group: what must not be torn apart by folds, by default itself."""

    video_id: str
    category: str
    heads: np.ndarray
    mean: np.ndarray
    users: np.ndarray
    group: str = ""
    trained_on: bool = False


def grid_values(text: str) -> list[float]:
    """ "0,0.5,1" or "start:stop:count" (both ends included) -> values."""
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            values = [float(x) for x in np.linspace(float(start), float(stop), min(int(count), MOST_VALUES + 1))]
        else:
            values = [float(x) for x in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a list such as 0,0.5,1 nor a range start:stop:count") from error
    if not 0 < len(values) <= MOST_VALUES or not (np.abs(values) < LARGEST).all():
        raise argparse.ArgumentTypeError(f"{text!r} does not give 1 to {MOST_VALUES} finite values")
    return values


def combinations(grid: dict[str, Sequence[float]]) -> np.ndarray:
    """[K, 4] in the order product(alpha, beta, epsilon, threshold), without alpha = beta = 0. Raises UserError where none is left."""
    if (count := math.prod(len(grid[name]) for name in NAMES)) > MOST_COMBINATIONS:
        raise UserError(f"the grid has {count:,} combinations, more than {MOST_COMBINATIONS:,}; give fewer values of each weight.")
    rows = np.array(list(itertools.product(*(grid[name] for name in NAMES))))
    rows = rows[(rows[:, 0] != 0) | (rows[:, 1] != 0)]
    if not len(rows):
        raise UserError(EMPTY)
    return rows


def fused(video: HeadScores, combinations_K4: np.ndarray) -> np.ndarray:
    """Scores of every combination at every sample: [K, S]."""
    return fuse(*video.heads, *(column[:, None] for column in combinations_K4.T))


def objective_of(video: HeadScores, combinations_K4: np.ndarray, objective: str) -> np.ndarray:
    """The objective of every combination on one video: [K]."""
    blocks = range(0, len(combinations_K4), BLOCK)
    return np.concatenate([_OBJECTIVES[objective](video, fused(video, combinations_K4[i : i + BLOCK])) for i in blocks])


def _top5(video: HeadScores, scores_KS: np.ndarray) -> np.ndarray:
    labels, count = top_share(video.mean, 0.5), min(5, scores_KS.shape[1])
    if scores_KS.shape[1] == count:
        chosen = np.argsort(-scores_KS, axis=1, kind="stable")
        ranked = np.take_along_axis(scores_KS, chosen, axis=1)
    else:
        # one more than counts: it shows whether the last that counts is tied
        chosen = np.argpartition(-scores_KS, count, axis=1)[:, : count + 1]
        chosen = np.take_along_axis(chosen, np.argsort(-np.take_along_axis(scores_KS, chosen, axis=1), axis=1, kind="stable"), axis=1)
        ranked = np.take_along_axis(scores_KS, chosen, axis=1)
    values = trapezoid_ap(labels[chosen[:, :count]])
    for k in np.flatnonzero((np.diff(ranked, axis=1) == 0).any(axis=1)):  # ties: the mean of both orders, as in aha_metrics
        both = [trapezoid_ap(top_labels(labels, scores_KS[k], last_first=last)) for last in (False, True)]
        values[k] = (both[0] + both[1]) / 2
    return values


def _f1_15(video: HeadScores, scores_KS: np.ndarray) -> np.ndarray:
    labels = top_share(video.mean, 0.15)
    k = max(1, int(0.15 * scores_KS.shape[1]))
    # equal scores: the later sample first, as in aha_metrics
    chosen = scores_KS.shape[1] - 1 - np.argsort(-scores_KS[:, ::-1], axis=1, kind="stable")[:, :k]
    return 2.0 * labels[chosen].sum(axis=1) / (k + labels.sum())


def _average_precision(share: float):
    def objective(video: HeadScores, scores_KS: np.ndarray) -> np.ndarray:
        labels = top_share(video.mean, share)
        order = np.argsort(-scores_KS, axis=1, kind="stable")
        ranked, hit = np.take_along_axis(scores_KS, order, axis=1), labels[order]
        hits = np.cumsum(hit, axis=1)
        # a run of equal scores is one step: each of its hits has the precision at the run's end
        last = np.append(np.diff(ranked, axis=1) != 0, np.ones((len(ranked), 1), dtype=bool), axis=1)
        end = np.minimum.accumulate(np.where(last, np.arange(ranked.shape[1]), ranked.shape[1])[:, ::-1], axis=1)[:, ::-1]
        precision = np.take_along_axis(hits, end, axis=1) / (end + 1)
        return (precision * hit).sum(axis=1) / labels.sum()

    return objective


def _standard_ranks(rows: np.ndarray) -> np.ndarray:
    """Average ranks of each row, centred and of length 1: [R, S]; NaN for a constant row."""
    from scipy.stats import rankdata  # half a second to import; --help needs none

    ranks = rankdata(rows, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ranks / np.sqrt((ranks**2).sum(axis=1, keepdims=True))


def _spearman(labels_of):
    def objective(video: HeadScores, scores_KS: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            # the mean of correlations with several annotators is one product with the mean of their standardised ranks
            return _standard_ranks(scores_KS) @ np.nanmean(_standard_ranks(labels_of(video)), axis=0)

    return objective


def frame_ious(video: HeadScores, scores_KS: np.ndarray) -> np.ndarray:
    """Charades-STA: IoU of {min-max score >= 0.5} with the true frames, [K]; 0 for constant scores (aha.metrics.grounding)."""
    low, high = scores_KS.min(axis=1, keepdims=True), scores_KS.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        chosen = (scores_KS - low) / (high - low) >= THRESHOLD
    truth = video.mean > 0
    union = (chosen | truth).sum(axis=1)
    return np.divide((chosen & truth).sum(axis=1), union, out=np.zeros(len(scores_KS)), where=(union > 0) & (high > low)[:, 0])


def _recall(threshold: float):
    return lambda video, scores_KS: (frame_ious(video, scores_KS) >= threshold).astype(float)


_OBJECTIVES = {
    "mIoU": frame_ious, **{f"R@{r}": _recall(r) for r in RECALLS},
    "top5": _top5, "f1_15": _f1_15, "map50": _average_precision(0.5), "map15": _average_precision(0.15),
    "spearman": _spearman(lambda video: video.mean[None]), "spearman_annotators": _spearman(lambda video: video.users),
}  # fmt: skip


def objective_table(videos: Sequence[HeadScores], combinations_K4: np.ndarray, objective: str, workers: int = 2) -> np.ndarray:
    """[V, K], NaN where undefined. numpy's sorting leaves the interpreter lock, so threads share the work."""
    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(lambda video: objective_of(video, combinations_K4, objective), videos)))


def tune(objective_VK: np.ndarray) -> int:
    """Index of the combination with the best mean over the given videos, the first of equal ones. It sees no other videos."""
    there = ~np.isnan(objective_VK)
    with np.errstate(invalid="ignore"):
        means = np.where(there, objective_VK, 0.0).sum(axis=0) / there.sum(axis=0)
    if np.isnan(means).all():
        raise UserError("the objective is undefined for every combination; are all predictions constant?")
    # sums in another order differ in the last bits; equal up to those counts as equal
    return int(np.argmax(means >= np.nanmax(means) - 1e-12))


def metrics_at(video: HeadScores, combination: np.ndarray) -> dict[str, float]:
    """Aha's six metrics of one video under one combination; of a question of Charades-STA its IoU and recalls."""
    if video.group:
        return {name: float(_OBJECTIVES[name](video, fused(video, combination[None]))[0]) for name in GROUNDING}
    found = aha_metrics(video.mean, fused(video, combination[None])[0])
    return {name: found[name] for name in METRICS}


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float | None]:
    return {name: number(mean_of([row[name] for row in rows])) for name in rows[0]} if rows else {}


def named(combination: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, (float(x) for x in combination)))


def cross_validate(videos: Sequence[HeadScores], combinations_K4: np.ndarray, objective_VK: np.ndarray, held_out: list[list[str]]) -> dict:
    """For each fold: tune on the other folds' rows, report on its own. {"folds": [...], "mean": metrics over all held-out videos}."""
    index = {video.video_id: row for row, video in enumerate(videos)}
    rows_of_folds, everyone = [], []
    for fold, members in enumerate(held_out):
        own = [index[i] for i in members]
        others = [row for row in range(len(videos)) if row not in set(own)]
        best = tune(objective_VK[others])
        rows = [metrics_at(videos[row], combinations_K4[best]) for row in own]
        everyone += rows
        rows_of_folds.append({
            "fold": fold, "parameters": named(combinations_K4[best]), "tuned_on": len(others), "held_out_videos": members,
            "objective_on_tuning_videos": float(np.nanmean(objective_VK[others, best])), "held_out": mean_metrics(rows),
        })  # fmt: skip
    return {"folds": rows_of_folds, "mean": mean_metrics(everyone)}


def read_heads(
    predictions: str | Path, annotations: str | Path | None, info: str | Path | None, needed: Sequence[bool]
) -> list[HeadScores]:
    """The three heads and the labels of every predicted TVSum video; `needed` says which heads the grid uses (others are 0)."""
    path = find_tvsum(annotations)
    known = read_tvsum(path, info)
    found = predictions_of(predictions, known, path)
    videos = []
    for video_id, video in known.items():
        if video_id not in found:
            continue
        prediction = found[video_id]
        samples = prediction.samples(RELEVANCE)
        heads = [replace(samples, scores=prediction.head(name)) if used else None for name, used in zip(SCORES, needed)]
        try:
            frames, _ = place(samples, video)
            heads_3S = np.stack([np.zeros(len(frames)) if head is None else place(head, video)[1] for head in heads])
        except UserError as error:
            raise UserError(f"{predictions}: {error}") from error
        users = video.user_scores[:, frames].astype(np.float64)
        videos.append(HeadScores(video_id, video.category, heads_3S, users.mean(axis=0) / HIGHEST, users, "", prediction.trained_on))
    return videos


def read_hisum_heads(predictions: str | Path, annotations: str | Path | None, needed: Sequence[bool]) -> list[HeadScores]:
    """The heads and gtscore of every predicted Mr.HiSum video, one sample a second."""
    from aha.eval.hisum import load, on_seconds  # h5py: only here

    videos = []
    with closing(load(annotations)) as benchmark:
        for key, prediction in keyed(read_predictions(predictions), lambda one: benchmark.key(one.video_id)):
            if key not in benchmark.file.ids:
                raise UserError(f"{predictions}: video {key} is not in {benchmark.annotations}; check that both are of one data set.")
            truth = benchmark.file.read(key, False).gtscore
            samples = prediction.samples(RELEVANCE)
            heads = [replace(samples, scores=prediction.head(name)) if used else None for name, used in zip(SCORES, needed)]
            where = f"{predictions}: video {key}"
            heads_3S = np.stack([np.zeros(len(truth)) if one is None else on_seconds(one, len(truth), where) for one in heads])
            videos.append(HeadScores(key, "", heads_3S, truth, truth[None], "", prediction.trained_on))
    return videos


def read_charades_heads(predictions: str | Path, annotations: str | Path | None, needed: Sequence[bool]) -> list[HeadScores]:
    """The heads and the true frames of every predicted question of Charades-STA."""
    from aha.eval.charades import load
    from aha.eval.questions import whole_scores

    questions = load(annotations).questions
    videos = []
    for q, prediction in keyed(read_predictions(predictions), lambda one: one.question_id, "question"):
        if q not in questions:
            raise UserError(f"{predictions}: question {q} is not in the annotations; check that both are of one data set.")
        times, _ = whole_scores(prediction, RELEVANCE, questions[q].duration)
        heads = [prediction.head(name) if used else np.zeros(len(times)) for name, used in zip(SCORES, needed)]
        truth = np.any([(times >= start) & (times <= end) for start, end in questions[q].spans], axis=0).astype(float)
        videos.append(HeadScores(q, "", np.stack(heads), truth, truth[None], questions[q].video, prediction.trained_on))
    return videos


def folds_of(videos: Sequence[HeadScores], n_folds: int) -> list[list[str]]:
    """Held-out ids of each fold; what is of one group stays together."""
    groups = {video.group or video.video_id: video.category for video in videos}
    return [[video.video_id for video in videos if (video.group or video.video_id) in set(members)] for members in folds(groups, n_folds)]


def search(
    videos: Sequence[HeadScores], grid: dict[str, Sequence[float]], objective: str, n_folds: int, all_rows: bool, workers: int = 2
) -> dict:
    """The whole search; returns what `--output` holds.

    "best" is tuned on all videos: the parameters to use from now on. Its metrics are on those same videos and no result; the estimate of
    how good it is on new ones is cross_validation.mean.
    """
    rows = combinations(grid)
    objective_VK = objective_table(videos, rows, objective, workers)
    held_out = folds_of(videos, n_folds)
    best = tune(objective_VK)
    untuned = np.array([0.0, 1.0, 0.0, 0.0])
    result = {
        "grid": {name: [float(x) for x in grid[name]] for name in NAMES},
        "combinations": len(rows),
        "videos": len(videos),
        "objective": objective,
        "cross_validation": cross_validate(videos, rows, objective_VK, held_out),
        "untuned": {**named(untuned), **mean_metrics([metrics_at(video, untuned) for video in videos])},
        "best": {**named(rows[best]), **mean_metrics([metrics_at(video, rows[best]) for video in videos])},
    }
    if all_rows:
        result["rows"] = [{**named(row), **mean_metrics([metrics_at(video, row) for video in videos])} for row in rows]
    return result


def render(result: dict) -> str:
    """The console table."""
    lines, metrics = [], list(result["cross_validation"]["mean"])
    for fold in result["cross_validation"]["folds"]:
        p = fold["parameters"]
        label = f"fold {fold['fold']}: a {p['alpha']:.3g} b {p['beta']:.3g} e {p['epsilon']:.3g} t {p['uncertainty_threshold']:.3g}"
        lines.append((label, [table.shown(fold["held_out"][name]) for name in metrics]))
    lines.append(("HELD OUT, mean", [table.shown(result["cross_validation"]["mean"][name]) for name in metrics]))
    lines.append(("untuned: a 0 b 1 e 0", [table.shown(result["untuned"][name]) for name in metrics]))
    lines.append(("tuned on test (no result)", [table.shown(result["best"][name]) for name in metrics]))
    title = f"{result['combinations']} combinations, {result['videos']} videos, objective {result['objective']}"
    return table.block(title, metrics, lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m aha.eval.grid_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=("tvsum", "hisum", "charades"), default="tvsum", help="which benchmark (default %(default)s)")
    parser.add_argument("--predictions", required=True, help="prediction file with the three heads (aha.score)")
    parser.add_argument("--annotations", help="annotation file or folder of the benchmark (default: found under datasets/)")
    parser.add_argument("--info", help="ydata-tvsum50-info.tsv (default: the one beside the annotations)")
    parser.add_argument("--objective", choices=(*OBJECTIVES, *GROUNDING), help="what tuning maximises (default top5; charades: mIoU)")
    parser.add_argument("--folds", type=int, default=5, help="number of folds, balanced over categories (default %(default)s)")
    for name in NAMES:
        parser.add_argument(
            f"--grid_{name}", type=grid_values, default=DEFAULT_GRID[name], metavar="VALUES",
            help="values a,b,c or start:stop:count (write --grid_epsilon=-5:5:15; default %(default)s)",
        )  # fmt: skip
    parser.add_argument(
        "--all_rows", action="store_true", help="put all six metrics of every combination into the output (slow for big grids)"
    )
    parser.add_argument("--output", help="write the result as JSON here")
    args = parser.parse_args(argv)
    check_outputs(args, "output")
    grid = {name: getattr(args, f"grid_{name}") for name in NAMES}
    needed = [any(grid["alpha"]), any(grid["beta"]), any(grid["epsilon"])]
    if not (needed[0] or needed[1]):
        raise UserError(EMPTY)
    needed[1] = True  # the untuned row is relevance alone
    objective = args.objective or ("mIoU" if args.dataset == "charades" else "top5")
    if (objective in GROUNDING) != (args.dataset == "charades"):
        raise UserError(f"--objective {objective} is none of {args.dataset}; see --help.")
    if args.dataset == "tvsum":
        videos = read_heads(args.predictions, args.annotations, args.info, needed)
    else:
        read = read_hisum_heads if args.dataset == "hisum" else read_charades_heads
        videos = read(args.predictions, args.annotations, needed)
    if seen := sum(video.trained_on for video in videos):
        print(
            f"WARNING: {args.predictions}: the model was TRAINED ON {seen} of the {len(videos)} scored; no number here is held out.",
            file=sys.stderr,
        )
    result = search(videos, grid, objective, args.folds, args.all_rows)
    print(render(result))
    if args.output:
        write_json(args.output, result)
        print(f"written: {args.output}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
