"""Mr.HiSum numbers of a prediction file under every published protocol, beside random scores and the ground truth itself.

    python -m aha.eval.hisum --predictions predictions.json --split datasets/hisum/annotations/mr_hisum_split.json --output metrics.json
    python -m aha.eval.hisum --compare A.json B.json --annotations mr_hisum.h5

Streams over predictions and h5 in constant memory. Definitions of the protocols: aha/metrics/hisum.py.
"""

from __future__ import annotations

import argparse
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aha.core.files import write_json
from aha.core.predictions import RELEVANCE_ONLY, Prediction, PredictionStream, Weights
from aha.errors import UserError, run_command
from aha.eval.baselines import RANDOM
from aha.eval.data_hisum import FOLDER, SUBSETS, HiSumFile, HiSumMetadata, HiSumVideo, find_hisum, read_keys, read_metadata, read_split
from aha.eval.task import DataSet, File, Item, Task
from aha.eval.tvsum import add_weight_arguments, check_arguments, read_trained_on, run_summary, warn_trained_on
from aha.metrics.hisum import PROTOCOLS, score_video
from aha.results import cache, console, table
from aha.results import tree as results
from aha.results.compare import compare, short_names
from aha.results.compare import render as render_comparison

RUNS = 5
BASELINE_VIDEOS = 1000  # random scores on more videos than this are drawn for a seeded sample: the mean is the same, the cost is not
UPPER = "gtscore_as_predictor"
VERSION = 1  # of the cached baselines
PERCENT = frozenset(
    {("official", "f1")} | {("score_correlation_and_padded_map_triplesumm", metric) for metric in ("map50", "map15")}
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    file: HiSumFile
    chosen: dict[str, None]  # ids to be scored on, an ordered set
    metadata: HiSumMetadata
    protocols: list[str]

    @property
    def with_summary(self) -> bool:
        return "official" in self.protocols


@dataclass(frozen=True)
class Scored:
    path: Path
    columns: list[results.Column]
    skipped: dict[str, str]
    constant: list[str]
    trained_on: list[str]


def evaluate(
    predictions: str | Path | None,
    annotations: str | Path | None = None,
    split: str | Path | None = None,
    subset: str = "test",
    metadata: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
    strict: bool = False,
    trained_on: str | Path | None = None,
    random_runs: int = RUNS,
    weights: Weights = RELEVANCE_ONLY,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. Arguments as on the command line. Raises UserError for bad input."""
    with HiSumFile(find_hisum(annotations)) as file:
        benchmark = select(file, split, subset, metadata, protocols, video_ids, limit)
        scored = score_file(predictions, benchmark, weights, trained_on, strict, progress) if predictions is not None else None
        return metrics_of(benchmark, scored, random_runs, weights, progress)


def select(
    file: HiSumFile,
    split: str | Path | None = None,
    subset: str = "test",
    metadata: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> Benchmark:
    """The videos to be scored on: those of the split's subset (all of the h5 without a split), by id, the first `limit`."""
    chosen = read_split(split, subset, file.ids, file.path) if split is not None else list(file.ids)
    if video_ids:
        if unknown := [i for i in video_ids if i not in file.ids]:
            raise UserError(f"--video_ids: {table.named_list(unknown)} not in {file.path}; the ids are the keys of the h5.")
        chosen = [i for i in chosen if i in set(video_ids)]
    if limit is not None:
        if limit < 1:
            raise UserError(f"--limit {limit}: at least 1 video is needed.")
        chosen = chosen[:limit]
    if not chosen:
        raise UserError(f"{file.path}: no video is left to score on; loosen --split, --video_ids or --limit.")
    known = read_metadata(metadata) if metadata is not None else HiSumMetadata()
    return Benchmark(file, dict.fromkeys(chosen), known, list(protocols) if protocols else list(PROTOCOLS))


def on_seconds(prediction: Prediction, seconds: int, where: str) -> np.ndarray:
    """[n] scores, one a second. As many scores as seconds are taken as they are; otherwise the times say where they lie, and every second
    takes the last score up to it (0.1 s of tolerance). Raises UserError where neither fits."""
    if len(prediction.scores) == seconds:
        return prediction.scores
    if prediction.times is None:
        raise UserError(f"{where}: {len(prediction.scores)} scores for {seconds} seconds; give one score a second, or the times.")
    if prediction.times[0] > 1 or prediction.times[-1] < seconds - 2 or prediction.times[-1] > seconds + 1:
        first, last = prediction.times[0], prediction.times[-1]
        raise UserError(f"{where}: the scores lie from {first:g} s to {last:g} s of a video of {seconds} s; score the whole video.")
    held = np.searchsorted(prediction.times, np.arange(seconds) + 0.1, side="right") - 1
    return prediction.scores[np.maximum(held, 0)]


def score_file(
    predictions: str | Path,
    benchmark: Benchmark,
    weights: Weights = RELEVANCE_ONLY,
    trained_on: str | Path | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Scored:
    """Score every chosen video that the file predicts, in the file's order, holding one video at a time."""
    path = Path(predictions)
    file, youtube = benchmark.file, benchmark.metadata.youtube
    listed = read_trained_on(trained_on) if trained_on is not None else set()
    names = [(protocol, metric) for protocol in benchmark.protocols for metric in PROTOCOLS[protocol][1]]
    values = {name: array("d") for name in names}
    done: dict[str, None] = {}
    constant: list[str] = []
    seen_in_training: list[str] = []
    stream = PredictionStream(path, weights)
    bar = tqdm(stream, total=len(benchmark.chosen), desc="scoring", unit="video", disable=None if progress else True, leave=False)
    for prediction in bar:
        video_id = prediction.video_id if prediction.video_id in file.ids else youtube.get(prediction.video_id, prediction.video_id)
        if video_id not in file.ids:
            raise UserError(
                f"{path}: video {video_id} is not in {file.path}; check that both are of one data set (YouTube ids need --metadata)."
            )
        if video_id in done:
            raise UserError(f"{path}: video {video_id} is predicted twice; keep one prediction for each video.")
        if video_id not in benchmark.chosen:
            continue
        video = file.read(video_id, benchmark.with_summary)
        scores = on_seconds(prediction, len(video.gtscore), f"{path}: video {video_id}")
        numbers = _score(scores, video, benchmark.protocols)
        for protocol, metric in names:
            values[protocol, metric].append(numbers[protocol][metric])
        done[video_id] = None
        if (scores == scores[0]).all():
            constant.append(video_id)
        if prediction.trained_on or video_id in listed or prediction.video_id in listed:
            seen_in_training.append(video_id)
    bar.close()
    if not done:
        raise UserError(
            f"{path} has no prediction for any of the {len(benchmark.chosen)} selected videos; check --split, --subset, --limit."
        )
    ids = list(done)
    columns = [results.Column(protocol, metric, "", ids, np.array(values[protocol, metric])) for protocol, metric in names]
    skipped = {i: "no prediction" for i in benchmark.chosen if i not in done}
    scored = Scored(path, columns, skipped, constant, ids if stream.trained_on else seen_in_training)
    warn_trained_on(path, len(scored.trained_on), len(ids))
    if strict:
        _refuse_defects(scored)
    return scored


def _score(scores: np.ndarray, video: HiSumVideo, protocols: list[str]) -> dict[str, dict[str, float]]:
    return score_video(scores, video.gtscore, video.gt_summary, video.change_points, protocols)


def _refuse_defects(scored: Scored) -> None:
    undefined = {i for column in scored.columns for i, value in zip(column.ids, column.values) if np.isnan(value)}
    for what, ids in (
        ("no prediction for", list(scored.skipped)),
        ("constant scores for", scored.constant),
        ("a metric without a value for", sorted(undefined)),
        ("trained-on", scored.trained_on),
    ):
        if ids:
            raise UserError(
                f"{scored.path}: {what} {len(ids)} videos ({table.named_list(ids)}), and --strict allows none; leave out --strict."
            )


def baselines_tree(benchmark: Benchmark, ids: Sequence[str], runs: int, progress: bool) -> dict[str, Any]:
    """The "baselines" part: random scores (`runs` runs) and gtscore as predictor, on at most BASELINE_VIDEOS of the videos."""

    def seeded(video_id: str) -> bytes:
        return hashlib.sha256(video_id.encode()).digest()

    sample = sorted(ids, key=seeded)[:BASELINE_VIDEOS]
    name = f"hisum_baselines/{hashlib.sha256(''.join(sample).encode()).hexdigest()[:16]}.json"
    entries = cache.load(name)
    rows: list[dict[str, dict[str, dict[str, list[float]]]]] = []
    fresh = False
    for video_id in tqdm(sample, desc="baselines (kept for next time)", unit="video", disable=None if progress else True, leave=False):
        video = benchmark.file.read(video_id, benchmark.with_summary)
        digest = hashlib.sha256(f"{VERSION}:{runs}:{video_id}:{','.join(benchmark.protocols)}".encode())
        for values in (video.gtscore, video.gt_summary, video.change_points):
            digest.update(b"" if values is None else values.tobytes())
        key = digest.hexdigest()
        if key not in entries:
            entries[key] = _video_baselines(video, benchmark.protocols, runs, int.from_bytes(seeded(video_id)[:8], "little"))
            fresh = True
        rows.append(entries[key])
    if fresh:
        cache.store(name, entries)
    tree: dict[str, Any] = {}
    for row in (RANDOM, UPPER):
        for protocol in benchmark.protocols:
            for metric in PROTOCOLS[protocol][1]:
                values = np.array([entry[row][protocol][metric] for entry in rows], dtype=float)
                results.place(
                    tree.setdefault(row, {}), results.Column(protocol, metric, "", sample, values), run_summary(values, row == RANDOM)
                )
    return tree


def _video_baselines(video: HiSumVideo, protocols: list[str], runs: int, seed: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    rng = np.random.default_rng(seed)
    chance = [_score(rng.random(len(video.gtscore)), video, protocols) for _ in range(runs)]
    upper = _score(video.gtscore, video, protocols)
    return {
        RANDOM: {p: {m: [run[p][m] for run in chance] for m in PROTOCOLS[p][1]} for p in protocols},
        UPPER: {p: {m: [upper[p][m]] for m in PROTOCOLS[p][1]} for p in protocols},
    }


def metrics_of(benchmark: Benchmark, scored: Scored | None, runs: int, weights: Weights, progress: bool = False) -> dict[str, Any]:
    """Everything that the metrics file holds."""
    columns = scored.columns if scored else []
    ids = columns[0].ids if columns else list(benchmark.chosen)
    return {
        "protocols": results.protocols_tree(columns, benchmark.metadata.categories),
        "baselines": baselines_tree(benchmark, ids, runs, progress),
        "confidence_intervals": results.intervals_tree(columns),
        "videos": {
            "scored": len(ids) if scored else 0,
            "skipped": scored.skipped if scored else {},
            "constant": scored.constant if scored else [],
            "trained_on": scored.trained_on if scored else [],
        },
        "settings": {
            "benchmark": "hisum",
            "predictions": str(scored.path) if scored else None,
            "annotations": str(benchmark.file.path),
            "protocols": benchmark.protocols,
            "weights": asdict(weights),
            "random_runs": runs,
            "baseline_videos": min(len(ids), BASELINE_VIDEOS),
            "selected_videos": len(benchmark.chosen),
        },
    }


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The videos of a split ("test" by default) with their YouTube ids and titles. Raises UserError for a copy of metadata.csv without
    titles: the one among Aha's annotations has them."""
    folder = Path(root) / "annotations"
    known = read_metadata(folder / "metadata.csv")
    youtube = {video_id: youtube_id for youtube_id, video_id in known.youtube.items()}
    found = []
    for video_id in read_keys(folder / "mr_hisum_split.json", split or "test"):
        if video_id not in youtube or video_id not in known.titles:
            raise UserError(f"{folder / 'metadata.csv'} has no youtube_id and title for {video_id}; take the copy among Aha's annotations.")
        queries = ((0.0, known.titles[video_id]),)
        found.append(Item(youtube[video_id], f"{youtube[video_id]}.mp4", queries, None, known.categories.get(video_id, "")))
    return found


GITHUB = "https://github.com/MRHiSum/MR.HiSum"
TASK = Task(
    DataSet(
        "hisum", "Mr.HiSum (Sul et al., NeurIPS 2023)", "hisum",
        (
            File("annotations/mr_hisum.h5", GITHUB),
            File("annotations/mr_hisum_split.json", GITHUB),
            File("annotations/metadata.csv", "with titles https://huggingface.co/datasets/aiden200/aha-annotationsv1"),
        ),
        "videos", "YouTube, <youtube_id>.mp4 as in metadata.csv; many are gone by now", "31,892 videos, about 1,800 h",
        "CC BY 4.0, YouTube's terms", "training and evaluation: highlight scores (train_on_hisum.sh, hisum.sh)",
    ),
    short="Mr.HiSum", items=items, evaluate=evaluate, frame_fps=1.0, splits=("train", "val", "test", "all"),
)  # fmt: skip

# ---------------------------------------------------------------- console

CATEGORY_COLUMNS = [
    ("official", "map50", ""), ("official", "map15", ""), ("official", "f1", ""),
    ("score_correlation_and_padded_map_triplesumm", "kendall", ""),
]  # fmt: skip


def baseline_labels(settings: dict[str, Any]) -> dict[str, str]:
    return {RANDOM: console.random_label(settings["random_runs"]), UPPER: "gtscore itself"}


def render(metrics: dict[str, Any]) -> str:
    """The console table of a metrics file."""
    settings = metrics["settings"]
    if settings["predictions"]:
        lines = [f"Mr.HiSum, {settings['predictions']}", console.counts(metrics["videos"])]
    else:
        lines = [f"Mr.HiSum, baselines of {settings['selected_videos']} videos"]
    if settings["baseline_videos"] < max(metrics["videos"]["scored"], 0 if settings["predictions"] else settings["selected_videos"]):
        lines.append(f"random and gtscore rows: on a seeded sample of {settings['baseline_videos']} videos")
    for protocol in settings["protocols"]:
        description, names = PROTOCOLS[protocol]
        lines += ["", console.protocol_block(metrics, protocol, description, names, baseline_labels(settings), PERCENT)]
    return "\n".join(lines + console.categories(metrics, CATEGORY_COLUMNS, PERCENT) + console.notes(metrics["videos"]))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m aha.eval.hisum", description=__doc__.split("\n\n")[0])
    files = p.add_mutually_exclusive_group()
    files.add_argument(
        "--predictions", metavar="FILE", help="prediction file (JSON or JSON Lines); without it the baseline rows are printed"
    )
    files.add_argument("--compare", nargs="+", metavar="FILE", help="several prediction files side by side, with differences to the first")
    p.add_argument("--annotations", metavar="H5", help=f"mr_hisum.h5 or its folder (default: {FOLDER})")
    p.add_argument("--split", metavar="JSON", help="train_keys, val_keys, test_keys (default: all videos of the h5)")
    p.add_argument("--subset", choices=SUBSETS, default="test", help="which part of --split (default: test)")
    p.add_argument("--metadata", metavar="CSV", help="metadata.csv: categories, and YouTube ids for predictions that use them")
    p.add_argument(
        "--protocols", nargs="+", metavar="NAME", choices=list(PROTOCOLS), help=f"only these (default: all): {', '.join(PROTOCOLS)}"
    )
    p.add_argument("--video_ids", nargs="+", metavar="ID", help="only these videos")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N videos")
    p.add_argument("--strict", action="store_true", help="a missing, constant, undefined or trained-on video is an error")
    p.add_argument("--trained_on", metavar="JSON", help="list of video ids the model was trained on (trained_on_videos.json)")
    add_weight_arguments(p)
    p.add_argument("--random_runs", type=int, default=RUNS, metavar="N", help=f"runs of the random row (default {RUNS})")
    p.add_argument("--output", metavar="JSON", help="write all numbers to this file")
    p.add_argument("--report", metavar="DIR", help="write metrics.json, report.html and its figures (PNG) into this folder")
    return p


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    weights = check_arguments(args)
    with HiSumFile(find_hisum(args.annotations)) as file:
        benchmark = select(file, args.split, args.subset, args.metadata, args.protocols, args.video_ids, args.limit)
        if args.compare:
            scored = [score_file(path, benchmark, weights, args.trained_on, args.strict, progress=True) for path in args.compare]
            all_metrics = [metrics_of(benchmark, one, args.random_runs, weights, progress=True) for one in scored]
            names = short_names(args.compare)
            compared = compare(names, [one.columns for one in scored])
            shown = {name: PROTOCOLS[name] for name in benchmark.protocols}
            print(render_comparison(names, all_metrics, compared["differences"], shown, PERCENT))
            if args.output:
                write_json(args.output, {"predictions": dict(zip(names, all_metrics)), "differences_to_first": compared["differences"]})
            return
        one = score_file(args.predictions, benchmark, weights, args.trained_on, args.strict, progress=True) if args.predictions else None
        metrics = metrics_of(benchmark, one, args.random_runs, weights, progress=True)
        print(render(metrics))
        if args.output:
            write_json(args.output, metrics)
        if args.report:
            from aha.results.report import write_hisum_report  # matplotlib: only here

            print(f"\nreport: {write_hisum_report(args.report, metrics, benchmark, one, weights)}")


if __name__ == "__main__":
    run_command(main)
