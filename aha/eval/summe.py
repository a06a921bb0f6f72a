"""SumMe numbers of a prediction file, as papers print them: key-shot F1 (maximum over users), rank correlation, splits.

    python -m aha.eval.summe --predictions predictions.json --h5 eccv16_dataset_summe_google_pool5.h5 --splits summe_splits.json

The ground truth is the community's h5 file (the official .mat files have no change points): user summaries and shots. Predictions name
videos as the h5 does (video_1) or by name (Air_Force_One). tau and rho are of the 0/1 machine summary, as CSTA computes them: a constant
prediction gets a value too. Frames before the first sample count 0. Gygli et al., ECCV 2014.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Prediction, keyed, read_predictions
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, run, select, select_protocols
from aha.eval.community import read_h5
from aha.eval.h5_numbers import CORR_SUMME, KEYSHOTS_SUMME, POR, H5Truth, as_released, read_truth
from aha.eval.summe_truth import read_summe
from aha.eval.task import DataSet, File, Item, Task
from aha.metrics.keyshots_h5 import frame_scores
from aha.results import table
from aha.results.layout import HUMAN, RANDOM, Headline
from aha.results.tree import Column, Scored, undefined_in

if TYPE_CHECKING:
    from aha.results.figures import Curve

FILE = "eccv16_dataset_summe_google_pool5.h5"


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
    """The videos by the h5's names, or by their own where only the official ground truth (GT/NAME.mat) is there. SumMe has no titles: the
    query is what a video's name says ("Air_Force_One": "Air Force One")."""
    if (path := _find(root)).exists():
        return [Item(key, v.title or key, ((0.0, words(v.title)),) if v.title else ()) for key, v in read_h5(path).items()]
    truth = read_summe(Path(root) / "GT")
    return [Item(name, name, ((0.0, words(name)),), video.length_s) for name, video in truth.items()]


def words(name: str) -> str:
    return name.replace("_", " ")


def _find(given: str | Path | None) -> Path:
    path = Path(given) if given is not None else TASK.folder
    return path / FILE if path.is_dir() or given is None else path


@dataclass(kw_only=True)
class SumMe(Benchmark):
    truth: H5Truth

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        found = self.found(path)
        found = {name: found[name] for name in self.chosen if name in found}
        if not found:
            raise UserError(f"{path} has no prediction for any of the {len(self.chosen)} selected videos; check --video_ids, --limit.")
        samples = {name: prediction.samples(fusion) for name, prediction in found.items()}
        kept = {protocol.name for protocol in self.protocols}
        columns = [column for column in self.truth.columns(samples) if column.protocol in kept]
        constant = [name for name, one in samples.items() if (one.scores == one.scores[0]).all()]
        seen = [name for name, prediction in found.items() if prediction.trained_on or trained_on & {name, self.truth.videos[name].title}]
        skipped = {name: "no prediction" for name in self.chosen if name not in found}
        return Scored(str(path), self.protocols, columns, len(found), skipped, constant, seen, undefined_in(columns))

    def found(self, path: Path) -> dict[str, Prediction]:
        """Every prediction of a file under the h5's name of its video. Raises UserError for an unknown one."""
        names = {video.title: name for name, video in self.truth.videos.items() if video.title} | {name: name for name in self.truth.videos}
        listed = map(as_released, read_predictions(path))
        found = dict(keyed(listed, lambda prediction: names.get(prediction.video_id, prediction.video_id)))
        if unknown := [i for i in found if i not in self.truth.videos]:
            raise UserError(f"{path}: video {unknown[0]} is not in {self.annotations}, which has {table.named_list(list(names), 3)}.")
        return found

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        return self.truth.rows([name for name in self.chosen if scored is None or name not in scored.skipped], runs)

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        """Scores beside the share of users who selected each frame; the axis is in frames, the h5 knows no seconds."""
        from aha.results.figures import Curve, thinned  # matplotlib: only here

        for name, prediction in self.found(path).items():
            if name in wanted:
                truth = self.truth.of[name]
                shown = thinned(truth.n_frames)
                dense = frame_scores(*self.truth.placed(prediction.samples(fusion), truth, None), truth.n_frames)
                share = truth.users.mean(axis=0)[shown].astype(np.float64)
                title = self.truth.videos[name].title or name
                scores, reference = {"prediction": (shown, dense[shown])}, ("share of users", shown, share)
                yield Curve(name, title, truth.n_frames, scores, reference, in_frames=True)


def load(
    annotations: str | Path | None = None,
    h5: str | Path | None = None,
    splits: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> SumMe:
    """Read the h5 file and the splits. Raises UserError."""
    path = _find(h5 if h5 is not None else annotations)
    if not path.exists():
        raise UserError(f"SumMe's numbers need {FILE} (user summaries and change points), and {path} does not exist; give --h5.")
    videos = read_h5(path)
    names = {video.title: name for name, video in videos.items() if video.title}
    wanted = [i if i in videos else names.get(i, i) for i in video_ids or ()]
    known = [KEYSHOTS_SUMME, CORR_SUMME, *([POR] if splits is not None else [])]
    return SumMe(
        annotations=str(path), chosen=select(list(videos), str(path), wanted, limit), protocols=select_protocols(known, protocols),
        truth=read_truth(path, {name: name for name in videos}, videos, "f_max", splits),
    )  # fmt: skip


def evaluate(predictions: str | Path, h5: str | Path | None = None, splits: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, h5=h5, splits=splits, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--h5", metavar="FILE", help=f"{FILE} (default: in datasets/summe)")
    p.add_argument("--splits", metavar="FILE", help="splits in the form of PGL-SUM, DSNet or CSTA: mean and deviation over them, and por")


TASK = Task(
    DataSet(
        "summe", "SumMe (Gygli et al., ECCV 2014)", "summe",
        (File(FILE, "https://github.com/e-apostolidis/PGL-SUM (data/)"), File("GT", "https://gyglim.github.io/me/vsum (SumMe.zip)")),
        "videos", "https://gyglim.github.io/me/vsum (SumMe.zip)", "25 videos, 1.1 h", "see the data set's page",
        "fine-tuning (configs/datasets/summe.json) and evaluation: key-shot summaries (aha.eval.summe)",
    ),
    short="SumMe", items=items, load=load, add_flags=add_flags, frame_fps=2.0, random_runs=20,
    protocols=(KEYSHOTS_SUMME, CORR_SUMME), rows={RANDOM: "random summaries", HUMAN: "one user, each other"},
    headlines=(
        Headline("keyshots_h5", "f_max", "F1"), Headline("corr_summary_csta", "kendall", "Kendall tau"), Headline("por", "por", "PoR"),
    ),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.summe", argv)


if __name__ == "__main__":
    run_command(main)
