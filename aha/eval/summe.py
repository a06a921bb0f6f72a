"""SumMe numbers of a prediction file on the community's h5 file: key-shot F, and the summary against the mean user summary.

    python -m aha.eval.summe --predictions predictions.json --h5 eccv16_dataset_summe_google_pool5.h5 --output metrics.json
    python -m aha.eval.summe --compare A.json B.json --h5 eccv16_dataset_summe_google_pool5.h5

Videos go by the h5's names (video_1, ...) or their own. Scores lie at their frame numbers; without these, one for each frame, or one for
each of the file's `picks`. Definitions: aha/metrics/keyshots_h5.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Samples, read_predictions
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, run, select, select_protocols
from aha.eval.community import H5Video, read_h5
from aha.eval.task import DataSet, File, Item, Task
from aha.metrics import keyshots_h5
from aha.results import table
from aha.results.layout import RANDOM, Headline, Protocol
from aha.results.tree import Column, Scored, undefined_in

if TYPE_CHECKING:
    from aha.results.figures import Curve

FILE = "eccv16_dataset_summe_google_pool5.h5"
HUMAN = "human_vs_each_other_human"
SUMMARY = "15% in key shots, float32 means, knapsack"
F, TAU = keyshots_h5.REDUCTIONS, ("kendall", "spearman")
PROTOCOLS = (
    Protocol("keyshots_h5", f"{SUMMARY}; F over users in percent, SumMe's is f_max (PGL-SUM, ISM 2021; CSTA, CVPR 2024)", F, F),
    Protocol("corr_summary_csta", f"the binary summary, not the scores, against the mean user summary (CSTA, CVPR 2024); {SUMMARY}", TAU),
)


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The videos by the h5's names, asked for what their own names say ("Air_Force_One": "Air Force One")."""
    found = read_h5(_find(root))
    return [Item(key, v.title or key, ((0.0, v.title.replace("_", " ")),) if v.title else ()) for key, v in found.items()]


def _find(given: str | Path | None) -> Path:
    path = Path(given) if given is not None else TASK.folder
    return path / FILE if path.is_dir() or given is None else path


def place(samples: Samples, video: H5Video) -> np.ndarray:
    """Frame of each score [N]. Raises UserError where the scores fit neither frames nor picks."""
    n_frames, picks, count = video.truth.n_frames, video.truth.picks, len(samples.scores)
    if samples.frames is not None:
        if samples.frames[-1] > n_frames:
            raise UserError(f"{video.key}: frame number {samples.frames[-1]} lies beyond its {n_frames} frames; the file was another one.")
        return samples.frames
    if samples.times is None and count == n_frames:
        return np.arange(n_frames)
    if samples.times is None and 0 <= len(picks) - count <= 1:  # the peers let one be missing
        return picks
    raise UserError(f"{video.key}: {count} scores without frame numbers where {n_frames} (frames) or {len(picks)} (picks) are expected.")


@dataclass(kw_only=True)
class SumMe(Benchmark):
    videos: Mapping[str, H5Video]  # all of the h5

    def samples(self, path: Path, fusion: Fusion) -> Iterator[tuple[str, Samples, bool]]:
        """(key in the h5, samples, whether the model was trained on it) of every prediction. Raises UserError for an unknown video."""
        keys = {video.title: key for key, video in self.videos.items() if video.title} | {key: key for key in self.videos}
        for prediction in read_predictions(path):
            if prediction.video_id not in keys:
                names = table.named_list(list(keys), 3)
                raise UserError(f"{path}: video {prediction.video_id} is not in {self.annotations}, which has {names}.")
            yield keys[prediction.video_id], prediction.samples(fusion), prediction.trained_on

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: set[str] = frozenset(), progress: bool = False) -> Scored:
        found: dict[str, dict[tuple[str, str], float]] = {}
        constant, seen = [], []
        for key, samples, was_trained_on in self.samples(path, fusion):
            if key not in self.chosen:
                continue
            truth = self.videos[key].truth
            dense = keyshots_h5.frame_scores(place(samples, self.videos[key]), samples.scores, truth.n_frames)
            summary = keyshots_h5.machine_summary(dense, truth.shots)
            by_protocol = {
                "keyshots_h5": keyshots_h5.f_scores(summary, truth), "corr_summary_csta": keyshots_h5.summary_correlation(summary, truth),
            }  # fmt: skip
            found[key] = {(p.name, metric): by_protocol[p.name][metric] for p in self.protocols for metric in p.metrics}
            constant += [key] if np.ptp(samples.scores) == 0 else []
            seen += [key] if was_trained_on or trained_on & {key, self.videos[key].title} else []
        ids = [key for key in self.chosen if key in found]
        if not ids:
            raise UserError(f"{path} has no prediction for any of the {len(self.chosen)} selected videos; check --video_ids and --limit.")
        columns = [Column(*name, "", ids, np.array([found[i][name] for i in ids])) for name in found[ids[0]]]
        skipped = {key: "no prediction" for key in self.chosen if key not in found}
        return Scored(str(path), self.protocols, columns, len(ids), skipped, constant, seen, undefined_in(columns))

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        """F of random summaries (one number a frame) and of each user against the others."""
        ids = [key for key in self.chosen if scored is None or key not in scored.skipped]
        rows: dict[str, list[Column]] = {RANDOM: [], HUMAN: []}
        for metric in F if "keyshots_h5" in [protocol.name for protocol in self.protocols] else ():
            truths = [self.videos[key].truth for key in ids]
            chance = np.array([keyshots_h5.random_f([truth], metric, runs) for truth in truths])  # [V, runs]
            people = np.array([keyshots_h5.one_user_against_the_others(truth, metric) for truth in truths])
            rows[RANDOM].append(Column("keyshots_h5", metric, "", ids, chance))
            rows[HUMAN].append(Column("keyshots_h5", metric, "", ids, people))
        return {row: columns for row, columns in rows.items() if columns}

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        from aha.results.figures import Curve, thinned  # matplotlib: only here

        for key, samples, _ in self.samples(path, fusion):
            if key in wanted:
                video = self.videos[key]
                frames = place(samples, video)
                shown = thinned(video.truth.n_frames)
                users = ("share of users", shown, video.truth.users.mean(axis=0)[shown])
                scores = {"prediction (stretched), by frame": (frames[: len(samples.scores)], samples.scores[: len(frames)])}
                yield Curve(key, video.title or "", video.truth.n_frames, scores, users)


def load(
    annotations: str | Path | None = None,
    h5: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> SumMe:
    """Read the h5 and select videos: by the h5's names, the first `limit`."""
    path = _find(h5 if h5 is not None else annotations)
    videos = read_h5(path)
    chosen = select(list(videos), str(path), video_ids, limit)
    return SumMe(annotations=str(path), chosen=chosen, protocols=select_protocols(PROTOCOLS, protocols), videos=videos)


def evaluate(predictions: str | Path | None = None, h5: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, h5=h5, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--h5", metavar="FILE", help=f"{FILE} (the same as --annotations)")


TASK = Task(
    DataSet(
        "summe", "SumMe (Gygli et al., ECCV 2014)", "summe",
        (File(FILE, "https://github.com/e-apostolidis/PGL-SUM (data/)"),),
        "videos", "https://gyglim.github.io/me/vsum (SumMe.zip)", "25 videos, 1.1 h", "see the data set's page",
        "evaluation: key-shot summaries (aha.eval.summe)",
    ),
    short="SumMe", items=items, load=load, add_flags=add_flags, frame_fps=2.0, protocols=PROTOCOLS, random_runs=20,
    rows={RANDOM: "random", HUMAN: "one human, each other"},
    headlines=(
        Headline("keyshots_h5", "f_max", "key-shot F, best user (%)"), Headline("corr_summary_csta", "kendall", "tau of the summary"),
        Headline("corr_summary_csta", "spearman", "rho of the summary"),
    ),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.summe", argv)


if __name__ == "__main__":
    run_command(main)
