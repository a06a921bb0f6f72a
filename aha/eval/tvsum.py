"""TVSum numbers of a prediction file under every published protocol, beside random scores, people and the mean annotation.

    python -m aha.eval.tvsum --predictions outputs/tvsum/predictions.json --output metrics.json --report outputs/tvsum/report
    python -m aha.eval.tvsum                                  # the baseline rows alone
    python -m aha.eval.tvsum --compare A.json B.json          # side by side, with paired differences

Needs the annotations only (no video, GPU or torch). Definitions of the protocols: aha/eval/tvsum_protocols.py and aha/metrics/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.files import read_json, write_json
from aha.core.folds import folds
from aha.core.predictions import RELEVANCE_ONLY, Weights, read_predictions
from aha.errors import UserError, run_command
from aha.eval.annotations import TVSumVideo, find_tvsum, read_tvsum
from aha.eval.baselines import HUMAN, HUMAN_MEAN, RANDOM, UPPER, baselines_of
from aha.eval.grids import place
from aha.eval.shots import read_shots
from aha.eval.task import DataSet, File, Item, Task
from aha.eval.tvsum_facts import VAL10
from aha.eval.tvsum_protocols import PROTOCOLS, Truth, score_video
from aha.results import console, table
from aha.results import tree as results
from aha.results.compare import compare, short_names
from aha.results.compare import render as render_comparison

RUNS = 20


@dataclass(frozen=True)
class Benchmark:
    """The videos to be scored on, and how."""

    annotations: Path
    known: Mapping[str, TVSumVideo]  # all annotated videos
    truths: dict[str, Truth]  # the selected ones
    protocols: list[str]


@dataclass(frozen=True)
class Scored:
    """One prediction file scored on a benchmark."""

    path: Path
    per_video: dict[str, dict[str, dict[str, float]]]
    samples: dict[str, tuple[np.ndarray, np.ndarray]]  # video id -> frames, scores
    skipped: dict[str, str]
    constant: list[str]
    trained_on: list[str]

    def columns(self, benchmark: Benchmark) -> list[results.Column]:
        return results.columns_of(self.per_video, subsets_of(benchmark.known))


def evaluate(
    predictions: str | Path | None = None,
    annotations: str | Path | None = None,
    info: str | Path | None = None,
    shots: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    fold: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    trained_on: str | Path | None = None,
    random_runs: int = RUNS,
    weights: Weights = RELEVANCE_ONLY,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content (design: protocols, baselines, confidence_intervals, videos, settings).

    Baselines are over the same videos as the predictions. Without `predictions`: the baselines of all selected videos.
    Arguments as on the command line (`python -m aha.eval.tvsum --help`). Raises UserError for bad input.
    """
    benchmark = load_benchmark(annotations, info, shots, protocols, video_ids, fold, limit)
    scored = score_file(predictions, benchmark, weights, trained_on, strict) if predictions is not None else None
    return metrics_of(benchmark, scored, random_runs, weights, progress)


def load_benchmark(
    annotations: str | Path | None,
    info: str | Path | None = None,
    shots: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    fold: int | None = None,
    limit: int | None = None,
) -> Benchmark:
    """Read annotations (and shots) and select videos: by id, by held-out fold (5 folds, seed 0), the first `limit`."""
    path = find_tvsum(annotations)
    known = read_tvsum(path, info)
    chosen = list(known)
    if video_ids:
        unknown = [i for i in video_ids if i not in known]
        if unknown:
            raise UserError(f"--video_ids: {table.named_list(unknown)} not in {path}; the ids are those of the annotation file.")
        chosen = [i for i in chosen if i in set(video_ids)]
    if fold is not None:
        held_out = folds({i: video.category for i, video in known.items()})
        if not 0 <= fold < len(held_out):
            raise UserError(f"--fold {fold}: folds are numbered 0 to {len(held_out) - 1}.")
        chosen = [i for i in chosen if i in set(held_out[fold])]
    if limit is not None:
        if limit < 1:
            raise UserError(f"--limit {limit}: at least 1 video is needed.")
        chosen = chosen[:limit]
    if not chosen:
        raise UserError("no video is left by --video_ids, --fold and --limit together; loosen one of them.")
    names = list(protocols) if protocols else [name for name in PROTOCOLS if name != "f1_shots" or shots is not None]
    if "f1_shots" in names and shots is None:
        raise UserError("--protocols f1_shots needs a shot list; give --shots.")
    shot_lists = read_shots(shots, known, chosen) if shots is not None else {}
    truths = {i: Truth(known[i], shot_lists.get(i)) for i in chosen}
    return Benchmark(path, known, truths, names)


def score_file(
    predictions: str | Path,
    benchmark: Benchmark,
    weights: Weights = RELEVANCE_ONLY,
    trained_on: str | Path | None = None,
    strict: bool = False,
) -> Scored:
    """Score every selected video that the file predicts. `trained_on`: JSON list of video ids that the model was trained on."""
    path = Path(predictions)
    predicted = read_predictions(path, weights.alpha, weights.beta, weights.epsilon, weights.threshold)
    if not any(i in benchmark.known for i in predicted):
        order = {f"video_{number}": i for number, i in enumerate(benchmark.known, 1)}  # names of the community's feature files
        if all(i in order for i in predicted):
            predicted = {order[i]: prediction for i, prediction in predicted.items()}
    unknown = [i for i in predicted if i not in benchmark.known]
    if unknown:
        raise UserError(f"{path}: video {table.named_list(unknown)} not in {benchmark.annotations}; check that both are of one data set.")
    listed = read_trained_on(trained_on) if trained_on is not None else set()
    scored = Scored(path, {}, {}, {}, [], [])
    for video_id, truth in benchmark.truths.items():
        prediction = predicted.get(video_id)
        if prediction is None:
            scored.skipped[video_id] = "no prediction"
            continue
        try:
            frames, scores = place(prediction, truth.video)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        scored.samples[video_id] = frames, scores
        scored.per_video[video_id] = score_video(truth, frames, scores, benchmark.protocols)
        if (scores == scores[0]).all():
            scored.constant.append(video_id)
        if prediction.trained_on or video_id in listed:
            scored.trained_on.append(video_id)
    if not scored.per_video:
        raise UserError(
            f"{path} has no prediction for any of the {len(benchmark.truths)} selected videos; check --video_ids, --fold, --limit."
        )
    warn_trained_on(path, len(scored.trained_on), len(scored.per_video))
    if strict:
        _refuse_defects(scored)
    return scored


def _refuse_defects(scored: Scored) -> None:
    undefined = [i for i, protocols in scored.per_video.items() if any(np.isnan(v) for m in protocols.values() for v in m.values())]
    for what, ids in (
        ("no prediction for", list(scored.skipped)),
        ("constant scores for", scored.constant),
        ("a metric without a value for", undefined),
        ("trained-on", scored.trained_on),
    ):
        if ids:
            raise UserError(
                f"{scored.path}: {what} {len(ids)} videos ({table.named_list(ids)}), and --strict allows none; leave out --strict."
            )


def warn_trained_on(path: Path, trained_on: int, scored: int) -> None:
    if trained_on:
        print(
            f"WARNING: {path}: the model was TRAINED ON {trained_on} of the {scored} scored videos; these numbers are no held-out result.",
            file=sys.stderr,
        )


def read_trained_on(path: str | Path) -> set[str]:
    ids = read_json(path, "list of trained-on videos")
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise UserError(f"{path} is no JSON list of video ids; use the trained_on_videos.json that the trainer wrote beside the weights.")
    return set(ids)


# ---------------------------------------------------------------- metrics file


def subsets_of(known: Mapping[str, TVSumVideo]) -> results.Subsets:
    """hd_top5 is reported on all videos and on the ten "val" videos (those of them that are there)."""
    official = {i for i in VAL10.values() if i in known}

    def subsets(protocol: str, ids: list[str]) -> dict[str, list[str]]:
        if protocol != "hd_top5":
            return {"": ids}
        val10 = [i for i in ids if i in official]
        return {"all50": ids, **({"val10": val10} if val10 else {})}

    return subsets


def baselines_tree(benchmark: Benchmark, ids: list[str], runs: int, progress: bool) -> dict[str, Any]:
    """The "baselines" part: row -> protocol -> metric -> {"mean", "videos"} and, for random scores, {"sd", "runs"} over the runs' means."""
    found = baselines_of({i: benchmark.truths[i] for i in ids}, benchmark.protocols, runs, progress)
    subsets = subsets_of(benchmark.known)
    tree: dict[str, Any] = {}
    for protocol in benchmark.protocols:
        for row, metrics in found[ids[0]][protocol].items():
            for metric in metrics:
                for subset, members in subsets(protocol, ids).items():
                    values = np.array([found[i][protocol][row][metric] for i in members], dtype=float)  # [V, runs]
                    column = results.Column(protocol, metric, subset, members, values)
                    results.place(tree.setdefault(row, {}), column, run_summary(values, row == RANDOM))
    return tree


def run_summary(values: np.ndarray, is_random: bool) -> dict[str, Any]:
    """Baseline entry of values [V, runs]: mean over the defined videos; for random scores also the deviation of the runs' means."""
    defined = values[~np.isnan(values).any(axis=1)]
    means = defined.mean(axis=0) if len(defined) else np.array([np.nan])
    entry: dict[str, Any] = {"mean": results.number(means.mean()), "videos": len(defined)}
    if is_random:
        entry |= {"sd": results.number(means.std(ddof=1)) if len(means) > 1 else None, "runs": values.shape[1]}
    return entry


def metrics_of(benchmark: Benchmark, scored: Scored | None, runs: int, weights: Weights, progress: bool = False) -> dict[str, Any]:
    """Everything that the metrics file holds."""
    columns = scored.columns(benchmark) if scored else []
    return {
        "protocols": results.protocols_tree(columns, {i: video.category for i, video in benchmark.known.items()}),
        "baselines": baselines_tree(benchmark, list(scored.per_video if scored else benchmark.truths), runs, progress),
        "confidence_intervals": results.intervals_tree(columns),
        "videos": {
            "scored": len(scored.per_video) if scored else 0,
            "skipped": scored.skipped if scored else {},
            "constant": scored.constant if scored else [],
            "trained_on": scored.trained_on if scored else [],
        },
        "settings": {
            "benchmark": "tvsum",
            "predictions": str(scored.path) if scored else None,
            "annotations": str(benchmark.annotations),
            "protocols": benchmark.protocols,
            "weights": asdict(weights),
            "random_runs": runs,
            "selected_videos": len(benchmark.truths),
        },
    }


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The videos and their titles. split "test": the held-out videos of `fold`; "train": the others; "val": the next fold's held-out ones;
    "all", or no fold: every video."""
    videos = read_tvsum(root)
    chosen = set(
        split_ids(
            {i: video.category for i, video in videos.items()},
            split or ("all" if fold is None else "test"),
            fold,
            validation=split == "val",
        )
    )
    return [Item(i, f"{i}.mp4", ((0.0, v.title),), v.length_s, v.category) for i, v in videos.items() if i in chosen]


def split_ids(categories: Mapping[str, str], split: str, fold: int | None, n_folds: int = 5, validation: bool = False) -> list[str]:
    """Video ids of a split, in the order of `categories` (video id -> category). "train" goes without the videos of "val", the next fold's,
    only with `validation`."""
    if fold is None or split == "all":
        return list(categories)
    held_out = folds(categories, n_folds)
    if not 0 <= fold < n_folds:
        raise UserError(f"--fold {fold}: folds are numbered 0 to {n_folds - 1}.")
    test = set(held_out[fold])
    val = set(held_out[(fold + 1) % n_folds]) if validation else set()
    chosen = {"test": test, "val": val, "train": set(categories) - test - val}[split]
    return [video_id for video_id in categories if video_id in chosen]


GITHUB = "https://github.com/yalesong/tvsum"
TASK = Task(
    DataSet(
        "tvsum", "TVSum (Song et al., CVPR 2015)", "tvsum",
        (
            File("ydata-tvsum50-v1_1/data/ydata-tvsum50-anno.tsv", GITHUB, "annotations"),
            File("ydata-tvsum50-v1_1/data/ydata-tvsum50-info.tsv", GITHUB),
        ),
        "ydata-tvsum50-v1_1/video", "in the same archive (ydata-tvsum50-v1_1, put it into datasets/tvsum as it is)",
        "644 MB, 50 videos, 3.5 h", "CC BY 3.0", "fine-tuning and evaluation: highlight scores (train_on_tvsum.sh, tvsum.sh)",
    ),
    short="TVSum", items=items, evaluate=evaluate, frame_fps=1.0, splits=("train", "val", "test", "all"), n_folds=5,
)  # fmt: skip

# ---------------------------------------------------------------- console


def baseline_labels(runs: int) -> dict[str, str]:
    return {
        RANDOM: console.random_label(runs),
        HUMAN: "one human, each other",
        HUMAN_MEAN: "one human, mean of 19",
        UPPER: "mean annotation",
    }


CATEGORY_COLUMNS = [
    ("corr_full", "kendall", ""), ("corr_full", "spearman", ""), ("aha_1fps_mean", "map50", ""), ("f1_official60", "f1", ""),
    ("f1_shots", "f1", ""), ("hd_top5", "top5_map", "all50"),
]  # fmt: skip


def render(metrics: dict[str, Any]) -> str:
    """The console table of a metrics file."""
    settings = metrics["settings"]
    if settings["predictions"]:
        lines = [f"TVSum, {settings['predictions']}", console.counts(metrics["videos"], "20 people each; ")]
    else:
        lines = [f"TVSum, baselines of {settings['selected_videos']} videos, 20 people each"]
    for protocol in settings["protocols"]:
        description, names = PROTOCOLS[protocol]
        lines += ["", console.protocol_block(metrics, protocol, description, names, baseline_labels(settings["random_runs"]))]
    return "\n".join(lines + console.categories(metrics, CATEGORY_COLUMNS) + console.notes(metrics["videos"]))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m aha.eval.tvsum", description=__doc__.split("\n\n")[0])
    files = p.add_mutually_exclusive_group()
    files.add_argument(
        "--predictions", metavar="FILE", help="prediction file (JSON or JSON Lines); without it the baseline rows are printed"
    )
    files.add_argument("--compare", nargs="+", metavar="FILE", help="several prediction files side by side, with differences to the first")
    p.add_argument("--annotations", metavar="FILE", help="ydata-tvsum50-anno.tsv[.gz] or .mat, or their folder (default: datasets/tvsum)")
    p.add_argument("--info", metavar="TSV", help="ydata-tvsum50-info.tsv (default: the one beside the annotations)")
    p.add_argument(
        "--shots", metavar="FILE", help="shot list for f1_shots: JSON {id: [[first, last], ...]} in frames, inclusive, or the pool5 .h5"
    )
    p.add_argument(
        "--protocols", nargs="+", metavar="NAME", choices=list(PROTOCOLS), help=f"only these (default: all): {', '.join(PROTOCOLS)}"
    )
    p.add_argument("--video_ids", nargs="+", metavar="ID", help="only these videos")
    p.add_argument("--fold", type=int, metavar="K", help="only the held-out videos of fold K (0 to 4)")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N videos")
    p.add_argument("--strict", action="store_true", help="a missing, constant, undefined or trained-on video is an error")
    p.add_argument("--trained_on", metavar="JSON", help="list of video ids the model was trained on (trained_on_videos.json)")
    add_weight_arguments(p)
    p.add_argument("--random_runs", type=int, default=RUNS, metavar="N", help=f"runs of the random row (default {RUNS})")
    p.add_argument("--output", metavar="JSON", help="write all numbers to this file")
    p.add_argument("--report", metavar="DIR", help="write metrics.json, report.html and its figures (PNG) into this folder")
    return p


def add_weight_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--alpha", type=float, default=0.0, help="weight of the informative score, a probability (default 0)")
    p.add_argument("--beta", type=float, default=1.0, help="weight of the relevance score, 0 to 1 (default 1)")
    p.add_argument("--epsilon", type=float, default=0.0, help="weight of the uncertainty above the threshold, subtracted (default 0)")
    p.add_argument("--uncertainty_threshold", type=float, default=0.0, help="variance below which uncertainty costs nothing (default 0)")


def check_arguments(args: argparse.Namespace) -> Weights:
    """What argparse does not check; returns the fusion weights."""
    if args.random_runs < 1:
        raise UserError(f"--random_runs {args.random_runs}: at least 1 run is needed.")
    if args.report and not args.predictions:
        raise UserError("--report needs --predictions: it shows one prediction file; give --output for the numbers alone.")
    if args.compare and len(args.compare) < 2:
        raise UserError("--compare needs at least two prediction files; give --predictions for one.")
    weights = Weights(args.alpha, args.beta, args.epsilon, args.uncertainty_threshold)
    if not all(np.isfinite([weights.alpha, weights.beta, weights.epsilon, weights.threshold])):
        raise UserError("--alpha, --beta, --epsilon and --uncertainty_threshold must be finite numbers.")
    return weights


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    weights = check_arguments(args)
    benchmark = load_benchmark(args.annotations, args.info, args.shots, args.protocols, args.video_ids, args.fold, args.limit)
    if args.compare:
        scored = [score_file(path, benchmark, weights, args.trained_on, args.strict) for path in args.compare]
        all_metrics = [metrics_of(benchmark, one, args.random_runs, weights, progress=True) for one in scored]
        names = short_names(args.compare)
        compared = compare(names, [one.columns(benchmark) for one in scored])
        print(render_comparison(names, all_metrics, compared["differences"], {name: PROTOCOLS[name] for name in benchmark.protocols}))
        if args.output:
            write_json(args.output, {"predictions": dict(zip(names, all_metrics)), "differences_to_first": compared["differences"]})
        return
    one = score_file(args.predictions, benchmark, weights, args.trained_on, args.strict) if args.predictions else None
    metrics = metrics_of(benchmark, one, args.random_runs, weights, progress=True)
    print(render(metrics))
    if args.output:
        write_json(args.output, metrics)
    if args.report:
        from aha.results.report import write_tvsum_report  # matplotlib: only here

        print(f"\nreport: {write_tvsum_report(args.report, metrics, benchmark, one)}")


if __name__ == "__main__":
    run_command(main)
