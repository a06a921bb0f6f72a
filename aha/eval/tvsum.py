"""TVSum numbers of a prediction file under every published protocol, beside random scores, annotators and the mean annotation.

    python -m aha.eval.tvsum --predictions outputs/tvsum/predictions.json --output metrics.json --report outputs/tvsum/report
    python -m aha.eval.tvsum                                  # the baseline rows alone
    python -m aha.eval.tvsum --compare A.json B.json          # side by side, with paired differences

Needs the annotations only (no video, GPU or torch). Definitions of the protocols: aha/eval/tvsum_protocols.py and aha/metrics/.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core.folds import N_FOLDS, SPLITS, folds
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Prediction, Samples, keyed, read_predictions
from aha.errors import UserError, run_command
from aha.eval.annotations import TVSumVideo, find_tvsum, names_of, read_tvsum
from aha.eval.baselines import ROWS, baselines_of
from aha.eval.command import Benchmark, run, select, select_protocols
from aha.eval.community import Split
from aha.eval.grids import place
from aha.eval.published import Counted
from aha.eval.shots import read_shots
from aha.eval.task import DataSet, File, Item, Task
from aha.eval.tvsum_facts import VAL10
from aha.eval.tvsum_protocols import PROTOCOLS, Truth, score_video
from aha.results import table
from aha.results.layout import RANDOM, Headline
from aha.results.tree import Column, Scored, undefined_in

if TYPE_CHECKING:
    from aha.results.figures import Curve


# ---------------------------------------------------------------- videos


def items(root: str | Path, split: str | None = None, fold: int | Split | None = None) -> list[Item]:
    """The videos and their titles. split "test": the held-out videos of `fold` (or of a published split); "train": the others; "val": the
    next fold's held-out ones; "all", or no fold: every video."""
    videos = read_tvsum(root)
    categories = {video_id: video.category for video_id, video in videos.items()}
    chosen = split_ids(categories, split or ("all" if fold is None else "test"), fold, validation=split == "val")
    return [Item(i, f"{i}.mp4", ((0.0, videos[i].title),), videos[i].length_s, categories[i], frames=videos[i].n_frames) for i in chosen]


def split_ids(
    categories: Mapping[str, str], split: str, fold: int | Split | None, n_folds: int = N_FOLDS, validation: bool = False
) -> list[str]:
    """Video ids of a split, in the order of `categories` (video id -> category). "test": the held-out videos of `fold`; "train": the
    others; "all", or no fold: every video. With `validation`, "val" is the next fold's held-out videos, and "train" goes without them, so
    that the best checkpoint can be chosen without looking at test videos. A published split has no "val"."""
    if fold is None or split == "all":
        return list(categories)
    if isinstance(fold, Split):
        return _of_published(categories, split, fold)
    held_out = folds(categories, n_folds)
    if not 0 <= fold < n_folds:
        raise UserError(f"--fold {fold}: folds are numbered 0 to {n_folds - 1}.")
    test = set(held_out[fold])
    val = set(held_out[(fold + 1) % n_folds]) if validation else set()
    chosen = {"test": test, "val": val, "train": set(categories) - test - val}[split]
    return [video_id for video_id in categories if video_id in chosen]


def _of_published(categories: Mapping[str, str], split: str, published: Split) -> list[str]:
    """The test or train videos of a published split, whose names are ids or video_N in the order of the annotations."""
    if split == "val":
        raise UserError("a published split has no validation videos; leave --eval_strategy out, or use --fold.")
    ids = names_of(categories)
    if unknown := [name for name in (*published.test, *published.train) if name not in ids]:
        raise UserError(f"the split names {unknown[0]}, which is none of the {len(categories)} annotated videos; are both of one data set?")
    test = {ids[name] for name in published.test}
    train = {ids[name] for name in published.train} or set(categories) - test
    chosen = test if split == "test" else train - test
    return [video_id for video_id in categories if video_id in chosen]


# ---------------------------------------------------------------- evaluation


def predictions_of(path: str | Path, known: Mapping[str, TVSumVideo], where: str | Path) -> dict[str, Prediction]:
    """Every prediction of a file by annotated video, which it may call video_N. where: the annotations. Raises UserError for another."""
    names = names_of(known)
    found = dict(keyed(read_predictions(path), lambda prediction: names.get(prediction.video_id, prediction.video_id)))
    if unknown := [i for i in found if i not in known]:
        raise UserError(f"{path}: video {table.named_list(unknown)} not in {where}; check that both are of one data set.")
    return found


@dataclass(kw_only=True)
class TVSum(Benchmark):
    known: Mapping[str, TVSumVideo]  # all annotated videos
    truths: Mapping[str, Truth]  # the chosen ones

    def samples(self, path: Path, fusion: Fusion) -> dict[str, tuple[Samples, bool]]:
        """Every prediction of a file by annotated video: (samples, whether the model was trained on it). Raises UserError."""
        return {i: (p.samples(fusion), p.trained_on) for i, p in predictions_of(path, self.known, self.annotations).items()}

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        found = self.samples(path, fusion)
        names = names_of(self.known)
        trained_on = {names.get(i, i) for i in trained_on}
        per_video: dict[str, dict[str, dict[str, float]]] = {}
        constant, seen = [], []
        for video_id, truth in self.truths.items():
            if video_id not in found:
                continue
            samples, was_trained_on = found[video_id]
            try:
                frames, scores = place(samples, truth.video)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            per_video[video_id] = score_video(truth, frames, scores, [protocol.name for protocol in self.protocols])
            constant += [video_id] if (scores == scores[0]).all() else []
            seen += [video_id] if was_trained_on or video_id in trained_on else []
        if not per_video:
            raise UserError(
                f"{path} has no prediction for any of the {len(self.truths)} selected videos; check --video_ids, --fold, --limit."
            )
        columns = []
        for protocol in self.protocols:
            for subset, ids in self.subsets(protocol.name, list(per_video)).items():
                for metric in per_video[ids[0]][protocol.name]:
                    values = np.array([per_video[i][protocol.name][metric] for i in ids], dtype=np.float64)
                    columns.append(Column(protocol.name, metric, subset, ids, values))
        skipped = {i: "no prediction" for i in self.truths if i not in per_video}
        return Scored(str(path), self.protocols, columns, len(per_video), skipped, constant, seen, undefined_in(columns))

    def subsets(self, protocol: str, ids: list[str]) -> dict[str, list[str]]:
        """hd_top5 is reported on all videos and on the ten "val" videos (those of them that are there)."""
        if protocol != "hd_top5":
            return {"": ids}
        official = set(VAL10.values())
        val10 = [i for i in ids if i in official]
        return {"all50": ids, **({"val10": val10} if val10 else {})}

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        ids = [i for i in self.truths if scored is None or i not in scored.skipped]
        found = baselines_of({i: self.truths[i] for i in ids}, [protocol.name for protocol in self.protocols], runs, progress)
        rows: dict[str, list[Column]] = {row: [] for row in ROWS}
        for protocol in self.protocols:
            for row, metrics in found[ids[0]][protocol.name].items():
                for metric in metrics:
                    for subset, members in self.subsets(protocol.name, ids).items():
                        values = np.array([found[i][protocol.name][row][metric] for i in members], dtype=float)  # [V, runs]
                        rows[row].append(Column(protocol.name, metric, subset, members, values if row == RANDOM else values[:, 0]))
        return {row: columns for row, columns in rows.items() if not all(np.isnan(column.values).all() for column in columns)}

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        for video_id, (samples, _) in self.samples(path, fusion).items():
            if video_id in wanted:
                yield people_curve(self.known[video_id], {"prediction": samples})

    def sets(self, scored: Scored) -> dict[str, Counted]:
        found = {"all50": Counted(scored.count, len(self.known))}
        official = [i for i in self.known if i in set(VAL10.values())]
        if official:
            found["val10"] = Counted(sum(i in self.truths and i not in scored.skipped for i in official), len(official))
        return found

    def remarks(self, scored: Scored | None) -> list[str]:
        return [f"{len(next(iter(self.known.values())).user_scores)} annotators each"]


def people_curve(video: TVSumVideo, predictions: Mapping[str, Samples]) -> Curve:
    """Predictions over the band of the annotators, 10th to 90th percentile, and their mean."""
    from aha.results.figures import Curve, thinned  # matplotlib: only here

    shown = thinned(video.n_frames)
    annotators = video.user_scores[:, shown].astype(np.float64)
    scores = {}
    for name, samples in predictions.items():
        frames, values = place(samples, video)
        scores[name] = frames / video.fps, values
    return Curve(
        video.video_id,
        f"{video.category}: {video.title}",
        video.length_s,
        scores,
        ("their mean", shown / video.fps, annotators.mean(axis=0)),
        ("annotators, 10% to 90%", *np.percentile(annotators, [10, 90], axis=0)),
        ticks=(1, 2, 3, 4, 5),
        unit="importance, 1 to 5",
    )


@dataclass(frozen=True)
class Selection:
    """The annotation files, and what is to be scored on: protocols; videos by id, by held-out fold (5 folds, seed 0), the first `limit`."""

    annotations: str | Path | None = None
    info: str | Path | None = None
    shots: str | Path | None = None
    protocols: Sequence[str] | None = None
    video_ids: Sequence[str] | None = None
    fold: int | None = None
    limit: int | None = None


def load(
    annotations: str | Path | None = None, h5: str | Path | None = None, splits: str | Path | None = None, **selection: Any
) -> Benchmark:
    """Read annotations (shots, the community's h5 and splits) and select videos. selection: the other fields of Selection."""
    selected = Selection(annotations, **selection)
    if h5 is None and splits is None:
        return load_annotated(selected)
    from aha.eval.tvsum_h5 import load_h5

    return load_h5(selected, h5, splits)


def load_annotated(selected: Selection) -> TVSum:
    """The protocols that need the annotations only."""
    path = find_tvsum(selected.annotations)
    known = read_tvsum(path, selected.info)
    categories = {i: video.category for i, video in known.items()}
    held_out = set(split_ids(categories, "test", selected.fold))
    names = names_of(known)
    chosen = [i for i in select(list(known), str(path), [names.get(i, i) for i in selected.video_ids or ()], None) if i in held_out]
    chosen = select(chosen, str(path), None, selected.limit)
    if selected.shots is None and "f1_shots" in (selected.protocols or ()):
        raise UserError("--protocols f1_shots needs a shot list; give --shots.")
    computed = [protocol for protocol in PROTOCOLS if protocol.name != "f1_shots" or selected.shots is not None]
    shot_lists = read_shots(selected.shots, known, chosen) if selected.shots is not None else {}
    truths = {i: Truth(known[i], shot_lists.get(i)) for i in chosen}
    return TVSum(
        annotations=str(path), chosen=chosen, protocols=select_protocols(computed, selected.protocols), categories=categories,
        known=known, truths=truths,
    )  # fmt: skip


def evaluate(
    predictions: str | Path | None = None,
    annotations: str | Path | None = None,
    info: str | Path | None = None,
    shots: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content (design: protocols, baselines, confidence_intervals, videos, settings).

    Baselines are over the same videos as the predictions. Without `predictions`: the baselines of all selected videos.
    options: the other flags of the command, and aha.eval.command.evaluate's. Raises UserError for bad input.
    """
    return TASK.evaluate(predictions, annotations=annotations, info=info, shots=shots, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--info", metavar="TSV", help="ydata-tvsum50-info.tsv (default: the one beside the annotations)")
    p.add_argument(
        "--shots", metavar="FILE", help="shot list for f1_shots: JSON {id: [[first, last], ...]} in frames, inclusive, or the pool5 .h5"
    )
    p.add_argument("--h5", metavar="FILE", help="eccv16_dataset_tvsum_google_pool5.h5: F1 on its shots and users (keyshots_h5, por)")
    p.add_argument("--splits", metavar="FILE", help="splits in the form of PGL-SUM, DSNet or CSTA, or umt: mean and deviation over them")
    p.add_argument("--fold", type=int, metavar="K", help=f"only the held-out videos of fold K (0 to {N_FOLDS - 1})")


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
    short="TVSum", items=items, load=load, add_flags=add_flags, frame_fps=1.0, splits=SPLITS, n_folds=N_FOLDS,
    protocols=PROTOCOLS, rows=ROWS, random_runs=20,
    headlines=(
        Headline("corr_full", "kendall", "Kendall tau"), Headline("corr_full", "spearman", "Spearman rho"),
        Headline("f1_official60", "f1", "key-shot F1"), Headline("hd_top5", "top5_map", "top-5 mAP", "all50"),
        Headline("aha_1fps_mean", "map50", "Aha mAP at 50%"), Headline("f1_shots", "f1", "F1 of given shots"),
    ),
    ablation=(
        Headline("corr_1fps", "kendall", "tau, each"), Headline("corr_1fps", "spearman", "rho, each"),
        Headline("aha_1fps_mean", "kendall", "tau, mean"), Headline("aha_1fps_mean", "spearman", "rho, mean"),
        Headline("aha_1fps_mean", "top5", "Aha top-5"), Headline("hd_top5", "top5_map", "top-5 mAP", "all50"),
        Headline("f1_official60", "f1", "F1 at 15%"),
    ),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.tvsum", argv)


if __name__ == "__main__":
    run_command(main)
