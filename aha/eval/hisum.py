"""Mr.HiSum numbers of a prediction file under every published protocol, beside random scores and the ground truth itself.

    python -m aha.eval.hisum --predictions predictions.json --split datasets/hisum/annotations/mr_hisum_split.json --output metrics.json
    python -m aha.eval.hisum --compare A.json B.json --annotations mr_hisum.h5

Streams over predictions and h5, one video at a time. Definitions of the protocols: aha/metrics/hisum.py.
"""

from __future__ import annotations

import argparse
import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from aha.core.folds import SPLITS
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Samples, keyed, read_predictions
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, run, select, select_protocols
from aha.eval.data_hisum import SUBSETS, HiSumFile, HiSumMetadata, HiSumVideo, find_hisum, read_keys, read_metadata, read_split, read_titled
from aha.eval.published import Counted
from aha.eval.task import DataSet, File, Item, Task
from aha.metrics.hisum import PROTOCOLS as DEFINITIONS
from aha.metrics.hisum import score_video
from aha.results import cache
from aha.results.layout import RANDOM, Headline, Protocol
from aha.results.tree import Column, Scored, undefined_in

if TYPE_CHECKING:
    from aha.results.figures import Curve

BASELINE_VIDEOS = 1000  # of more videos, the random row takes a seeded sample: nearly the same mean at a fraction of the cost
UPPER = "gtscore_as_predictor"
VERSION = 1  # of the cached baselines
TRIPLESUMM = "score_correlation_and_padded_map_triplesumm"
PERCENT = {"official": ("f1",), TRIPLESUMM: ("map50", "map15")}
PROTOCOLS = tuple(Protocol(name, about, tuple(metrics), PERCENT.get(name, ())) for name, (about, metrics) in DEFINITIONS.items())


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The videos of a split ("test" by default) with their YouTube ids and titles. Raises UserError for a copy of metadata.csv without
    titles: the one among Aha's annotations has them."""
    folder = Path(root) / "annotations"
    known = read_titled(folder / "metadata.csv")
    youtube = known.youtube_of
    found = []
    for video_id in read_keys(folder / "mr_hisum_split.json", split or "test"):
        if video_id not in youtube or video_id not in known.titles:
            raise UserError(f"{folder / 'metadata.csv'} has no youtube_id and title for {video_id}; take the copy among Aha's annotations.")
        queries = ((0.0, known.titles[video_id]),)
        found.append(Item(youtube[video_id], f"{youtube[video_id]}.mp4", queries, None, known.categories.get(video_id, "")))
    return found


# ---------------------------------------------------------------- evaluation


def on_seconds(samples: Samples, seconds: int, where: str) -> np.ndarray:
    """[n] scores, one a second. The times say where they lie: one score in every second is that second's; otherwise every second takes the
    last score up to it (0.1 s of tolerance). Without times as many scores as seconds are taken as they are. Raises UserError where
    neither fits."""
    if samples.clip_seconds is not None:
        samples = replace(samples, times=samples.clip_seconds * np.arange(len(samples.scores)), clip_seconds=None)
    if samples.times is None:
        if samples.frames is not None and np.ptp(np.diff(samples.frames)) > 2:
            raise UserError(f"{where}: its frame numbers lie at uneven distances and no times are given; give the times.")
        if len(samples.scores) == seconds:
            return samples.scores
        raise UserError(f"{where}: {len(samples.scores)} scores for {seconds} seconds; give one score a second, or the times.")
    if samples.times[0] > 1 or samples.times[-1] < seconds - 2 or samples.times[-1] > seconds + 1:
        first, last = samples.times[0], samples.times[-1]
        raise UserError(f"{where}: the scores lie from {first:g} s to {last:g} s of a video of {seconds} s; score the whole video.")
    if np.array_equal(np.floor(samples.times + 0.1), np.arange(seconds)):
        return samples.scores
    held = np.searchsorted(samples.times, np.arange(seconds) + 0.1, side="right") - 1
    return samples.scores[np.maximum(held, 0)]


@dataclass(kw_only=True)
class HiSum(Benchmark):
    """subset: the part of the split that was asked for, and how many videos it has; None without a split."""

    file: HiSumFile
    metadata: HiSumMetadata
    subset: tuple[str, int] | None

    def sets(self, scored: Scored) -> dict[str, Counted]:
        return {} if self.subset is None else {self.subset[0]: Counted(scored.count, self.subset[1])}

    @property
    def names(self) -> list[str]:
        return [protocol.name for protocol in self.protocols]

    def close(self) -> None:
        self.file.close()

    def read(self, video_id: str) -> HiSumVideo:
        return self.file.read(video_id, "official" in self.names)

    def key(self, video_id: str) -> str:
        """The h5's key of a prediction, which may go by the YouTube id."""
        return video_id if video_id in self.file.ids else self.metadata.youtube.get(video_id, video_id)

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        """Every chosen video that the file predicts, in the file's order, holding one video at a time."""
        names = [(protocol.name, metric) for protocol in self.protocols for metric in protocol.metrics]
        values = {name: array("d") for name in names}
        chosen, done = set(self.chosen), dict[str, None]()
        constant, seen = [], []
        bar = tqdm(
            keyed(read_predictions(path), lambda prediction: self.key(prediction.video_id)),
            total=len(chosen), desc="scoring", unit="video", disable=None if progress else True, leave=False,
        )  # fmt: skip
        for video_id, prediction in bar:
            if video_id not in self.file.ids:
                raise UserError(
                    f"{path}: video {video_id} is not in {self.annotations}; check that both are of one data set (YouTube ids need "
                    "--metadata)."
                )
            if video_id not in chosen:
                continue
            video = self.read(video_id)
            scores = on_seconds(prediction.samples(fusion), len(video.gtscore), f"{path}: video {video_id}")
            numbers = _score(scores, video, self.names)
            for protocol, metric in names:
                values[protocol, metric].append(numbers[protocol][metric])
            done[video_id] = None
            constant += [video_id] if (scores == scores[0]).all() else []
            seen += [video_id] if prediction.trained_on or trained_on & {video_id, prediction.video_id} else []
        bar.close()
        if not done:
            raise UserError(f"{path} has no prediction for any of the {len(chosen)} selected videos; check --split, --subset, --limit.")
        ids = list(done)
        columns = [Column(protocol, metric, "", ids, np.array(values[protocol, metric])) for protocol, metric in names]
        skipped = {i: "no prediction" for i in self.chosen if i not in done}
        return Scored(str(path), self.protocols, columns, len(ids), skipped, constant, seen, undefined_in(columns))

    def sampled(self, scored: Scored | None) -> list[str]:
        """The videos of the baselines: a seeded sample of at most BASELINE_VIDEOS."""
        return sorted(scored.columns[0].ids if scored else self.chosen, key=_seeded)[:BASELINE_VIDEOS]

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        """Random scores (`runs` runs) and gtscore as predictor; kept in a cache keyed by the content of the annotations."""
        sample = self.sampled(scored)
        name = f"hisum_baselines/{hashlib.sha256(''.join(sample).encode()).hexdigest()[:16]}.json"
        entries = cache.load(name)
        found: list[dict[str, dict[str, dict[str, list[float]]]]] = []
        fresh = False
        for video_id in tqdm(sample, desc="baselines (kept for next time)", unit="video", disable=None if progress else True, leave=False):
            video = self.read(video_id)
            digest = hashlib.sha256(f"{VERSION}:{runs}:{video_id}:{','.join(self.names)}".encode())
            for values in (video.gtscore, video.gt_summary, video.change_points):
                digest.update(b"" if values is None else values.tobytes())
            key = digest.hexdigest()
            if key not in entries:
                entries[key] = _video_baselines(video, self.names, runs, int.from_bytes(_seeded(video_id)[:8], "little"))
                fresh = True
            found.append(entries[key])
        if fresh:
            cache.store(name, entries)
        rows: dict[str, list[Column]] = {RANDOM: [], UPPER: []}
        for protocol in self.protocols:
            for metric in protocol.metrics:
                for row, columns in rows.items():
                    values = np.array([entry[row][protocol.name][metric] for entry in found], dtype=float)  # [V, runs]
                    columns.append(Column(protocol.name, metric, "", sample, values if row == RANDOM else values[:, 0]))
        return rows

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        for prediction in read_predictions(path):
            video_id = self.key(prediction.video_id)
            if video_id in wanted:
                yield self.truth_curve(video_id, {"prediction": (str(path), prediction.samples(fusion))})

    def truth_curve(self, video_id: str, predictions: Mapping[str, tuple[str, Samples]]) -> Curve:
        """Predictions, name -> (file, samples), over gtscore and the reference summary."""
        from aha.results.figures import Curve  # matplotlib: only here

        video = self.read(video_id)
        seconds = np.arange(n := len(video.gtscore))
        scores = {
            name: (seconds, on_seconds(samples, n, f"{path}: video {video_id}")) for name, (path, samples) in predictions.items()
        }  # fmt: skip
        spans: tuple[str, list[tuple[float, float]]] | None = None
        if video.gt_summary is not None:
            edges = np.flatnonzero(np.diff(video.gt_summary.astype(np.int8), prepend=0, append=0))
            spans = "reference summary", [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
        title = self.categories.get(video_id, "")
        return Curve(video_id, title, n, scores, ("gtscore", seconds, video.gtscore), spans=spans, unit="gtscore, 0 to 1")

    def remarks(self, scored: Scored | None) -> list[str]:
        sample, whole = len(self.sampled(scored)), scored.count if scored else len(self.chosen)
        return [f"random and gtscore rows: on a seeded sample of {sample} videos"] if sample < whole else []


def _seeded(video_id: str) -> bytes:
    return hashlib.sha256(video_id.encode()).digest()


def _score(scores: np.ndarray, video: HiSumVideo, protocols: list[str]) -> dict[str, dict[str, float]]:
    return score_video(scores, video.gtscore, video.gt_summary, video.change_points, protocols)


def _video_baselines(video: HiSumVideo, protocols: list[str], runs: int, seed: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """row -> protocol -> metric -> values: `runs` of random scores, one of gtscore."""
    rng = np.random.default_rng(seed)
    rows = {
        RANDOM: [_score(rng.random(len(video.gtscore)), video, protocols) for _ in range(runs)],
        UPPER: [_score(video.gtscore, video, protocols)],
    }
    return {row: {p: {m: [run[p][m] for run in found] for m in DEFINITIONS[p][1]} for p in protocols} for row, found in rows.items()}


def load(
    annotations: str | Path | None = None,
    split: str | Path | None = None,
    subset: str = "test",
    metadata: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> HiSum:
    """Open the h5 and select videos: those of the split's subset (all of the h5 without a split), by id, the first `limit`."""
    file = HiSumFile(find_hisum(annotations if annotations is not None else TASK.folder))
    known = read_metadata(metadata) if metadata is not None else HiSumMetadata()
    where = str(file.path)
    chosen = read_split(split, subset, file.ids, file.path) if split is not None else list(file.ids)
    part = None if split is None else (subset, len(chosen))
    wanted = set(select(list(file.ids), where, [known.youtube.get(i, i) if i not in file.ids else i for i in video_ids or ()], None))
    chosen = [i for i in chosen if i in wanted]
    return HiSum(
        annotations=where, chosen=select(chosen, where, None, limit), protocols=select_protocols(PROTOCOLS, protocols),
        categories=known.categories, file=file, metadata=known, subset=part,
    )  # fmt: skip


def evaluate(
    predictions: str | Path | None = None, annotations: str | Path | None = None, split: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, annotations=annotations, split=split, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--split", metavar="JSON", help="train_keys, val_keys, test_keys (default: all videos of the h5)")
    p.add_argument("--subset", choices=SUBSETS, default="test", help="which part of --split (default: test)")
    p.add_argument("--metadata", metavar="CSV", help="metadata.csv: categories, and YouTube ids for predictions that use them")


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
    short="Mr.HiSum", items=items, load=load, add_flags=add_flags, frame_fps=1.0, splits=SPLITS,
    protocols=PROTOCOLS, rows={RANDOM: "random", UPPER: "gtscore itself"}, random_runs=5,
    headlines=(
        Headline("official", "map50", "mAP at 50%"), Headline("official", "map15", "mAP at 15%"),
        Headline("official", "f1", "key-shot F1 (%)"), Headline(TRIPLESUMM, "kendall", "Kendall tau"),
    ),
    ablation=tuple(Headline("official", metric, f"official {metric}") for metric in DEFINITIONS["official"][1]),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.hisum", argv)


if __name__ == "__main__":
    run_command(main)
