"""Fusion weights by grid search with honest cross-validation: tuned on the other folds, reported on the held-out one.

    python -m aha.eval.grid_search --predictions outputs/tvsum/predictions.json --output outputs/tvsum/grid.json

Frame score = alpha * informative + beta * relevance - epsilon * max(0, uncertainty - threshold). Every combination is scored on every video
(vectorised); then, for each of the folds, the combination with the best mean objective over the OTHER folds' videos is taken and reported
on the fold's own. The mean over all held-out videos is the result. What tuning on all videos and reporting on the same would give (as the
released Aha scripts do) is printed beside it, named "tuned on test".

Dimensions: V videos, S samples of a video, K combinations.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aha.core.files import write_json
from aha.core.folds import folds
from aha.core.predictions import read_predictions
from aha.errors import UserError, run_command
from aha.eval.annotations import find_tvsum, read_tvsum
from aha.eval.grids import place
from aha.eval.tvsum_protocols import aha_metrics
from aha.metrics.highlights import top_labels, top_share, trapezoid_ap
from aha.results import table
from aha.results.tree import number

PARAMETERS = ("alpha", "beta", "epsilon", "uncertainty_threshold")
OBJECTIVES = ("top5", "spearman", "spearman_annotators", "map50", "map15", "f1_15")
METRICS = ("spearman", "kendall", "map50", "map15", "top5", "f1_15")
# Aha's published optima lie on grids of this kind (paper, table 12): 10 x 10 x 15 x 10 = 15,000 combinations.
DEFAULT_GRID = {"alpha": "0:2:10", "beta": "0:2:10", "epsilon": "-5:5:15", "uncertainty_threshold": "0.04:0.3:10"}
BLOCK = 4096  # combinations at once: keeps a block of scores within some megabytes


@dataclass(frozen=True)
class HeadScores:
    """One video at its samples: heads [3, S] (informative, relevance, uncertainty), mean [S] annotation in 0..1, users [A, S]."""

    video_id: str
    category: str
    heads: np.ndarray
    mean: np.ndarray
    users: np.ndarray


def grid_values(text: str) -> list[float]:
    """ "0,0.5,1" or "start:stop:count" (both ends included) -> values."""
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            values = [float(x) for x in np.linspace(float(start), float(stop), int(count))]
        else:
            values = [float(x) for x in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a list such as 0,0.5,1 nor a range start:stop:count") from error
    if not values or len(values) > 1000 or not np.isfinite(values).all():
        raise argparse.ArgumentTypeError(f"{text!r} gives {len(values)} values; between 1 and 1000 finite ones are possible")
    return values


def combinations(grid: dict[str, Sequence[float]]) -> np.ndarray:
    """[K, 4] in the order product(alpha, beta, epsilon, threshold), without alpha = beta = 0. Raises UserError where none is left."""
    rows = np.array(list(itertools.product(*(grid[name] for name in PARAMETERS))))
    rows = rows[(rows[:, 0] != 0) | (rows[:, 1] != 0)]
    if not len(rows):
        raise UserError("the grid has no combination with alpha or beta other than 0; widen --grid_alpha or --grid_beta.")
    return rows


def fused(video: HeadScores, combinations_K4: np.ndarray) -> np.ndarray:
    """Scores of every combination at every sample: [K, S]."""
    alpha, beta, epsilon, threshold = combinations_K4.T
    informative, relevance, uncertainty = video.heads
    excess_KS = np.maximum(0.0, uncertainty - threshold[:, None])
    excess_KS *= epsilon[:, None]
    return alpha[:, None] * informative + beta[:, None] * relevance - excess_KS


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
        chosen = np.argpartition(-scores_KS, count, axis=1)[:, : count + 1]  # the sixth shows whether the fifth is tied
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
    from scipy import stats  # half a second to import, and --help needs none

    ranks = stats.rankdata(rows, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ranks / np.sqrt((ranks**2).sum(axis=1, keepdims=True))


def _spearman(labels_of):
    def objective(video: HeadScores, scores_KS: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            # the mean of correlations with several annotators is one product with the mean of their standardised ranks
            return _standard_ranks(scores_KS) @ np.nanmean(_standard_ranks(labels_of(video)), axis=0)

    return objective


_OBJECTIVES = {
    "top5": _top5, "f1_15": _f1_15, "map50": _average_precision(0.5), "map15": _average_precision(0.15),
    "spearman": _spearman(lambda video: video.mean[None]), "spearman_annotators": _spearman(lambda video: video.users),
}  # fmt: skip


def objective_table(videos: Sequence[HeadScores], combinations_K4: np.ndarray, objective: str, workers: int = 2) -> np.ndarray:
    """[V, K], NaN where undefined. numpy's sorting leaves the interpreter lock, so threads share the work."""
    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(lambda video: objective_of(video, combinations_K4, objective), videos)))


def tune(objective_VK: np.ndarray) -> int:
    """Index of the combination with the best mean over the given videos, the first of equal ones. It sees no other videos."""
    with np.errstate(invalid="ignore"):
        means = np.nanmean(np.where(np.isnan(objective_VK), np.nan, objective_VK), axis=0)
    if np.isnan(means).all():
        raise UserError("the objective is undefined for every combination; are all predictions constant?")
    # sums in another order differ in the last bits; equal up to those counts as equal
    return int(np.argmax(means >= np.nanmax(means) - 1e-12))


def metrics_at(video: HeadScores, combination: np.ndarray) -> dict[str, float]:
    """Aha's six TVSum metrics of one video under one combination."""
    found = aha_metrics(video.mean, fused(video, combination[None])[0])
    return {name: found[name] for name in METRICS}


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float | None]:
    return {name: number(float(np.nanmean([row[name] for row in rows]))) if rows else None for name in METRICS}


def named(combination: np.ndarray) -> dict[str, float]:
    return dict(zip(PARAMETERS, (float(x) for x in combination)))


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
    parts = ({"alpha": 1.0, "beta": 0.0}, {"beta": 1.0}, {"beta": 0.0, "epsilon": -1.0})
    read = [read_predictions(predictions, **weights) if used else None for weights, used in zip(parts, needed)]
    first = next(part for part in read if part is not None)
    unknown = [i for i in first if i not in known]
    if unknown:
        raise UserError(f"{predictions}: video {table.named_list(unknown)} not in {path}; check that both are of one data set.")
    videos = []
    for video_id, video in known.items():
        if video_id not in first:
            continue
        try:
            frames, _ = place(first[video_id], video)
        except UserError as error:
            raise UserError(f"{predictions}: {error}") from error
        heads = np.stack([part[video_id].scores if part is not None else np.zeros(len(frames)) for part in read])
        users = video.user_scores[:, frames].astype(np.float64)
        videos.append(HeadScores(video_id, video.category, heads, users.mean(axis=0) / 5, users))
    return videos


def search(
    videos: Sequence[HeadScores], grid: dict[str, Sequence[float]], objective: str, n_folds: int, all_rows: bool, workers: int = 2
) -> dict:
    """The whole search; returns what `--output` holds.

    "best" is tuned on all videos: the parameters to use from now on. Its metrics are on those same videos and no result; the estimate of
    how good it is on new ones is cross_validation.mean.
    """
    rows = combinations(grid)
    objective_VK = objective_table(videos, rows, objective, workers)
    held_out = folds({video.video_id: video.category for video in videos}, n_folds)
    best = tune(objective_VK)
    untuned = np.array([0.0, 1.0, 0.0, 0.0])
    result = {
        "grid": {name: [float(x) for x in grid[name]] for name in PARAMETERS},
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
    lines = []
    for fold in result["cross_validation"]["folds"]:
        p = fold["parameters"]
        label = f"fold {fold['fold']}: a {p['alpha']:.3g} b {p['beta']:.3g} e {p['epsilon']:.3g} t {p['uncertainty_threshold']:.3g}"
        lines.append((label, [table.shown(fold["held_out"][name]) for name in METRICS]))
    lines.append(("HELD OUT, mean", [table.shown(result["cross_validation"]["mean"][name]) for name in METRICS]))
    lines.append(("untuned: a 0 b 1 e 0", [table.shown(result["untuned"][name]) for name in METRICS]))
    lines.append(("tuned on test (no result)", [table.shown(result["best"][name]) for name in METRICS]))
    title = f"{result['combinations']} combinations, {result['videos']} videos, objective {result['objective']} (aha_1fps_mean protocol)"
    return table.block(title, METRICS, lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m aha.eval.grid_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", required=True, help="prediction file with the three heads (aha.score)")
    parser.add_argument("--annotations", help="ydata-tvsum50-anno.tsv[.gz] or .mat (default: found under datasets/tvsum)")
    parser.add_argument("--info", help="ydata-tvsum50-info.tsv (default: the one beside the annotations)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="top5", help="what tuning maximises (default %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="number of folds, balanced over categories (default %(default)s)")
    for name in PARAMETERS:
        parser.add_argument(
            f"--grid_{name}", type=grid_values, default=DEFAULT_GRID[name], metavar="VALUES",
            help="values a,b,c or start:stop:count (write --grid_epsilon=-5:5:15; default %(default)s)",
        )  # fmt: skip
    parser.add_argument(
        "--all_rows", action="store_true", help="put all six metrics of every combination into the output (slow for big grids)"
    )
    parser.add_argument("--output", help="write the result as JSON here")
    args = parser.parse_args(argv)
    grid = {name: getattr(args, f"grid_{name}") for name in PARAMETERS}
    needed = [any(grid["alpha"]), any(grid["beta"]), any(grid["epsilon"])]
    if not (needed[0] or needed[1]):
        raise UserError("the grid has no combination with alpha or beta other than 0; widen --grid_alpha or --grid_beta.")
    needed[1] = True  # the untuned row is relevance alone
    videos = read_heads(args.predictions, args.annotations, args.info, needed)
    result = search(videos, grid, args.objective, args.folds, args.all_rows)
    print(render(result))
    if args.output:
        write_json(args.output, result)
        print(f"written: {args.output}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
