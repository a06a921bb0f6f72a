"""Validation during training: score held-out videos, compare with the annotations, keep the best checkpoint, draw one timeline.

Scores come from the same forward pass as training (equal to streaming frame by frame, which a test of the streaming code shows).
TVSum: Kendall's tau-b and Spearman's rho against each annotator, and F1 of key shots, as in `aha.eval.tvsum` (protocols corr_full and
f1_official60). Other data sets with relevance labels: the same correlations with the label, and F1 of the best 15% of the frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from aha.conversation import IGNORE_INDEX
from aha.core.files import atomic_path
from aha.core.prediction import Samples
from aha.data.mixture import Mixture
from aha.errors import UserError
from aha.eval.annotations import TVSumVideo, read_tvsum
from aha.eval.grids import place
from aha.eval.tvsum_protocols import Truth, score_video
from aha.metrics.highlights import f1_of_best, top_share
from aha.metrics.rank import kendall_tau_b, spearman
from aha.training.data import TrainingSet
from aha.training.features import VisionCache

if TYPE_CHECKING:
    from aha.training.trainer import AhaTrainer


@dataclass
class Scored:
    """One validation video: what the model said of each frame, and its label there (NaN = none). All [F]."""

    video_id: str
    times: np.ndarray  # seconds
    frames: np.ndarray  # index in the original video
    scores: np.ndarray
    labels: np.ndarray


class Validation:
    """The validation videos of a run. `evaluate` is called by all ranks together."""

    def __init__(self, mixture: Mixture, features: VisionCache | None):
        self.dataset = TrainingSet(mixture, features)
        self.truths: dict[str, TVSumVideo] = {}
        for source in mixture.sources:
            if source.entry["type"] == "tvsum":
                self.truths |= read_tvsum(source.entry.get("annotations"), source.entry.get("info"))

    @torch.no_grad()
    def score(self, trainer: AhaTrainer) -> list[Scored]:
        """Scores of all validation videos, the same list on every rank; broken videos are left out."""
        args = trainer.args
        model = trainer.model_wrapped
        model.eval()
        own: list[tuple[int, Scored]] = []
        count = len(self.dataset)
        for k in range(-(-count // args.world_size)):
            i = (k * args.world_size + args.process_index) % count  # all ranks do the same number of forward passes
            batch = trainer._prepare_inputs(trainer.data_collator([self.dataset[i]]))
            output = trainer.forward(model, batch)
            if batch["weight"]:
                scores = output.scores().relevance.float().cpu().numpy()
                labels = batch["relevance_labels_BT"][output.batch_N, output.position_N].float().cpu().numpy()
                labels = np.where(labels == IGNORE_INDEX, np.nan, labels)
                times, frames = np.array(batch["frame_times"][0]), np.array(batch["frame_indices"][0])
                source, sample = self.dataset.mixture.items[i]
                video_id = self.dataset.mixture.sources[source].samples[sample].video_id
                own.append((i, Scored(video_id, times, frames, scores, labels)))
        gathered: list[list[tuple[int, Scored]]] = [own]
        if args.world_size > 1:
            gathered = [[] for _ in range(args.world_size)]
            dist.all_gather_object(gathered, own)
        return [scored for _, scored in sorted({i: s for part in gathered for i, s in part}.items())]

    def evaluate(self, trainer: AhaTrainer) -> dict[str, float]:
        """Means over the videos: kendall_tau, spearman_rho, f1_15, and how many videos they are over. Rank 0 draws the first video's
        timeline."""
        scored = self.score(trainer)
        if not scored:
            raise UserError("no validation video could be read; look at the reasons above, or train with --eval_strategy no.")
        rows = np.array([self._metrics(video) for video in scored])
        defined = np.where(np.isnan(rows).all(0), np.nan, np.nansum(rows, 0) / np.maximum((~np.isnan(rows)).sum(0), 1))
        metrics = dict(zip(("kendall_tau", "spearman_rho", "f1_15"), defined.tolist()))
        if trainer.args.process_index == 0:
            write_timeline(scored[0], timeline_path(trainer.args.output_dir, trainer.state.global_step), trainer.state.global_step)
        return {**metrics, "videos": float(len(scored))}

    def _metrics(self, video: Scored) -> tuple[float, float, float]:
        truth = self.truths.get(video.video_id)
        if truth is not None:
            frames, scores = place(Samples(video.video_id, video.scores.astype(np.float64), video.frames, video.times), truth)
            values = score_video(Truth(truth), frames, scores, ["corr_full", "f1_official60"])
            return values["corr_full"]["kendall"], values["corr_full"]["spearman"], values["f1_official60"]["f1"]
        known = ~np.isnan(video.labels)
        if not known.any():
            return math.nan, math.nan, math.nan
        scores, labels = video.scores[known].astype(np.float64), video.labels[known].astype(np.float64)
        return kendall_tau_b(scores, labels), spearman(scores, labels), f1_of_best(top_share(labels, 0.15), scores, 0.15)


def timeline_path(output_dir: str, step: int) -> Path:
    return Path(output_dir) / "validation" / f"step-{step:06d}.png"


def write_timeline(video: Scored, path: Path, step: int) -> None:
    """Score and label of one video over time, as PNG."""
    from matplotlib.figure import Figure  # takes a second to import

    from aha.results.figures import plain_text

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(video.times, video.labels, color="0.6", linewidth=2, label="annotations")
    axes.plot(video.times, video.scores, color="tab:blue", label="model")
    axes.set(xlabel="seconds", ylabel="relevance", ylim=(0, 1), title=f"{video.video_id}, step {step}")
    axes.legend(loc="upper right", frameon=False)
    plain_text(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


__all__ = ["Validation", "timeline_path", "write_timeline"]
