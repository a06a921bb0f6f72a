"""The numbers of video summarization papers on the community's h5 files, shared by TVSum and SumMe: key-shot F, rank correlation,
fixed splits and Performance over Random.

SumMe: F is the maximum over users, the correlation is of the machine summary with the mean user summary. TVSum: F is the mean over users,
the correlation is of every 15th frame's score with each annotator's. Definitions and sources: aha/metrics/keyshots_h5.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.prediction import LENGTHS_AGREE, Prediction, Samples, check_covered
from aha.errors import UserError
from aha.eval.community import H5Video, Split, fits_picks, read_splits
from aha.eval.grids import file_frames
from aha.metrics import keyshots_h5
from aha.metrics.over_splits import over_splits, split_means
from aha.metrics.rank import rank_correlation
from aha.results import cache
from aha.results.layout import HUMAN, RANDOM, Protocol
from aha.results.tree import Column, number

Placed = tuple[np.ndarray, np.ndarray]  # frames [N], scores [N]
ABOUT_F = "key shots and users of the h5 file (PGL-SUM, CA-SUM, CSTA); percent"
KEYSHOTS_SUMME = Protocol("keyshots_h5", f"{ABOUT_F}, SumMe's is f_max", ("f_max", "f_avg"), ("f_max", "f_avg"))
KEYSHOTS_TVSUM = Protocol("keyshots_h5", f"{ABOUT_F}, TVSum's is f_avg", ("f_avg", "f_max"), ("f_max", "f_avg"))
CORR_SUMME = Protocol(
    "corr_summary_csta", "the 0/1 machine summary with the mean user summary, every frame (CSTA, CVPR 2024)", ("kendall", "spearman")
)
POR = Protocol("por", "F over that of random summaries, x 100, mean over splits (Apostolidis et al., ACM MM 2020)", ("por",), ("por",))
SECOND = 30  # frames, about
VERSION = 1  # of the random summaries in the cache; raise it with every change of their definition


@dataclass
class H5Truth:
    """What an h5 file (and splits) say of its videos, by the id under which a benchmark knows them.

    ids: video_N -> id. reduction: "f_max" or "f_avg". annotators: id -> annotators' frame scores [20, n], empty where there are none.
    """

    path: Path
    videos: Mapping[str, H5Video]
    ids: Mapping[str, str]
    reduction: str
    splits: Sequence[Split] = ()
    annotators: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def of(self) -> dict[str, keyshots_h5.UserSummaries]:
        """id -> users, shots and picks."""
        return {self.ids[name]: video.truth for name, video in self.videos.items()}

    @cached_property
    def tests(self) -> list[list[str]]:
        """The ids of each split's test videos, in its order."""
        return tests_of(self.splits, self.ids, self.path)

    @cached_property
    def random_f_per_split(self) -> list[float]:
        return [float(self.random_f(ids, keyshots_h5.SEEDS, self.reduction).mean()) for ids in self.tests]

    def random_f(self, ids: Sequence[str], seeds: int, metric: str) -> np.ndarray:
        """[V, seeds] F of random summaries of these videos; it depends on the h5 only and is kept for next time (aha/results/cache.py)."""
        truths = [self.of[i] for i in ids]
        digest = hashlib.sha256(f"{VERSION}:{metric}:{seeds}".encode())
        for truth in truths:
            digest.update(repr(truth.users.shape).encode() + np.packbits(truth.users).tobytes() + truth.shots.astype("<i8").tobytes())
        entries = cache.load("h5_random.json")
        key = digest.hexdigest()
        if key not in entries:
            entries[key] = [[number(value) for value in row] for row in keyshots_h5.random_f(truths, metric, seeds).tolist()]
            cache.store("h5_random.json", entries)
        return np.array(entries[key], dtype=np.float64)

    def columns(self, samples: Mapping[str, Samples], place: Callable[[Samples], Placed] | None = None) -> list[Column]:
        """keyshots_h5, the correlation, and por where there are splits. place: places samples on the annotated video (aha.eval.grids)."""
        rows: dict[tuple[str, str], list[float]] = {}
        ids = [i for i in self.of if i in samples]
        for i in ids:
            truth = self.of[i]
            frames, scores = self.placed(samples[i], truth, place)
            dense = keyshots_h5.frame_scores(frames, scores, truth.n_frames)
            summary = keyshots_h5.machine_summary(dense, truth.shots)
            found = {("keyshots_h5", name): value for name, value in keyshots_h5.f_scores(summary, truth).items()}
            if self.reduction == "f_max":
                found |= {("corr_summary_csta", name): value for name, value in keyshots_h5.summary_correlation(summary, truth).items()}
            elif i in self.annotators:
                found |= {("corr_every15", name): value for name, value in every15(dense, self.annotators[i]).items()}
            for protocol_metric, value in found.items():
                rows.setdefault(protocol_metric, []).append(value)
        columns = [Column(protocol, metric, "", ids, np.array(values)) for (protocol, metric), values in rows.items()]
        if self.splits:
            columns = with_splits(columns, self.tests)
            f = next(column for column in columns if (column.protocol, column.metric) == ("keyshots_h5", self.reduction))
            per_split = keyshots_h5.performance_over_random(split_means(dict(zip(f.ids, f.values)), self.tests), self.random_f_per_split)
            whole = float(np.mean(per_split))
            columns.append(Column("por", "por", "", [], np.array([]), whole=whole, splits=json_statistics(per_split)))
        return columns

    def placed(self, samples: Samples, truth: keyshots_h5.UserSummaries, place: Callable[[Samples], Placed] | None) -> Placed:
        """Frames and scores: as the file names them; a bare list as long as the picks (or one short) lies at the picks."""
        where = f"prediction for {samples.video_id}"
        if samples.frames is None and samples.times is None and samples.clip_seconds is None:
            count = len(samples.scores)
            if count == truth.n_frames:
                return np.arange(count), samples.scores
            if not fits_picks(count, len(truth.picks)):
                expected = f"{truth.n_frames} (frames) or {len(truth.picks)} (picks of {self.path})"
                raise UserError(f"{where}: {count} scores without frame numbers where {expected} are expected; score the whole video.")
            return truth.picks, samples.scores
        if place is not None and (samples.frames is None or samples.times is not None):
            return place(samples)
        frames = samples.frames
        if frames is None:
            raise UserError(f"{where}: the scores lie by seconds, and {self.path} does not say how long a frame lasts; give frames.")
        if (file := file_frames(samples)) is not None and abs(file[1] - truth.n_frames) > max(file[3], LENGTHS_AGREE * truth.n_frames):
            raise UserError(
                f"{where}: the scored file has {file[0]:.3f} frames a second and about {file[1]:.0f} in all, the video {truth.n_frames} in "
                f"{self.path}, which knows no seconds; score the annotated video, or a copy at its frame rate."
            )
        if frames[0] >= truth.n_frames:
            raise UserError(f"{where}: the first score lies at frame {frames[0]}, and the video has {truth.n_frames} in {self.path}.")
        check_covered(frames, truth.n_frames, where, "frames", SECOND)
        return frames, samples.scores

    def rows(self, ids: Iterable[str], runs: int) -> dict[str, list[Column]]:
        """One user against the others, and random summaries, on the videos `ids`."""
        ids = [i for i in self.of if i in set(ids)]
        truths = [self.of[i] for i in ids]
        rows: dict[str, list[Column]] = {RANDOM: [], HUMAN: []}
        for metric in keyshots_h5.REDUCTIONS:
            human = np.array([keyshots_h5.one_user_against_the_others(truth, metric) for truth in truths])
            rows[RANDOM].append(Column("keyshots_h5", metric, "", ids, self.random_f(ids, runs, metric)))
            rows[HUMAN].append(Column("keyshots_h5", metric, "", ids, human))
        return rows


def read_truth(
    h5: str | Path,
    ids: Mapping[str, str],
    videos: Mapping[str, H5Video],
    reduction: str,
    splits: str | Path | Sequence[Split] | None,
    **more: Any,
) -> H5Truth:
    """The truth of an h5 file (ids: video_N -> id) with the splits of a file. Raises UserError."""
    truth = H5Truth(Path(h5), videos, ids, reduction, splits_of(splits), **more)
    _ = truth.tests  # a video that is not there is found before anything is computed
    return truth


def splits_of(given: str | Path | Sequence[Split] | None) -> Sequence[Split]:
    """Splits, or those of a file."""
    return read_splits(given) if isinstance(given, str | Path) else given or ()


def tests_of(splits: Sequence[Split], ids: Mapping[str, str], where: str | Path) -> list[list[str]]:
    """The test videos of each split under the benchmark's ids. Raises UserError for one that `ids` does not name."""
    known = set(ids.values())
    tests = []
    for k, split in enumerate(splits):
        if unknown := [name for name in (*split.test, *split.train) if name not in known and name not in ids]:
            does = "tests" if unknown[0] in split.test else "trains on"
            raise UserError(f"split {k} {does} {unknown[0]}, which is not in {where}; are both of one data set?")
        test, train = ([name if name in known else ids[name] for name in names] for names in (split.test, split.train))
        if both := set(test) & set(train) or {name for name in test if test.count(name) > 1}:
            raise UserError(f"split {k} names {sorted(both)[0]} twice, under two names; a video is tested or trained on, once.")
        tests.append(test)
    return tests


def with_splits(columns: Iterable[Column], tests: Sequence[Sequence[str]]) -> list[Column]:
    """The columns with "splits" beside their mean. A test video without a value leaves its split undefined."""
    result = []
    for column in columns:
        per_split = split_means(dict(zip(column.ids, column.values)), tests)
        result.append(replace(column, splits=json_statistics(per_split)))
    return result


def json_statistics(per_split: Sequence[float] | np.ndarray) -> dict[str, Any]:
    statistics = over_splits(per_split)
    return {name: [number(v) for v in value] if isinstance(value, list) else number(value) for name, value in statistics.items()}


def every15(dense: np.ndarray, annotators: np.ndarray) -> dict[str, float]:
    """tau-b and rho of every 15th frame's score with each annotator's, mean over the annotators (NaN if one is: CSTA, CA-SUM)."""
    correlation = rank_correlation(dense[::15], annotators[:, ::15])
    return {"kendall": float(correlation.kendall.mean()), "spearman": float(correlation.spearman.mean())}


def as_released(prediction: Prediction) -> Prediction:
    """Scores and frames of other lengths, as the released code takes them: one score missing counts 0, surplus scores are ignored."""
    frames, scores = prediction.record.get("frames"), prediction.record.get("scores")
    if not isinstance(frames, list) or not isinstance(scores, list) or len(scores) == len(frames):
        return prediction
    if not fits_picks(len(scores), len(frames)):  # which Prediction.samples says
        return prediction
    return replace(prediction, record={**prediction.record, "scores": [*scores, 0.0][: len(frames)]})
