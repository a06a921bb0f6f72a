"""The TVSum protocols: which grid, which labels, which formula. One video in, its numbers out.

A = 20 annotators, n = frames, N = scored frames of the prediction, C = 2-second clips. Sources are given with each protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aha.eval.annotations import HIGHEST, TVSumVideo
from aha.eval.grids import clip_label_frames, clip_scores, hold, second_frames
from aha.metrics import keyshots
from aha.metrics.highlights import above_lower_median, average_precision, f1_of_best, top_labels, top_share, trapezoid_ap
from aha.metrics.rank import rank_correlation
from aha.results.layout import Protocol

TAU = ("kendall", "spearman")
PROTOCOLS = (
    Protocol("corr_full", "each annotator, every frame (Otani et al., CVPR 2019)", TAU),
    Protocol("corr_every15", "each annotator, every 15th frame (CSTA, LLMVS)", TAU),
    Protocol("corr_1fps", "each annotator, the predictor's own frames", TAU),
    Protocol("corr_clip2s", "each annotator, 2-second clips", TAU),
    Protocol("corr_full_mean", "mean annotation, every frame; not comparable with the above", TAU),
    Protocol("aha_1fps_mean", "mean annotation, the predictor's own frames (Aha, NeurIPS 2025)", (*TAU, "map50", "map15", "top5", "f1_15")),
    Protocol("f1_official60", "key shots of 60 frames, official script (Song et al., CVPR 2015)", ("f1",)),
    Protocol("f1_official_pred50", "as official60, the predictor's shots of 50 frames", ("f1",)),
    Protocol("f1_otani60", "key shots of 60 frames, remainder its own shot (Otani et al., CVPR 2019)", ("f1",)),
    Protocol("f1_shots", "key shots of the given shot list (PGL-SUM, CSTA, DSNet)", ("f1", "f1_max_over_users")),
    Protocol("hd_top5", "top-5 mAP of 2-second clips, each annotator (UMT, CVPR 2022)", ("top5_map",)),
)


@dataclass
class Truth:
    """A video's annotations with what the protocols derive from them (computed once, when first needed)."""

    video: TVSumVideo
    shots: np.ndarray | None = None  # [M, 2] half-open, of a given shot list

    @property
    def given_shots(self) -> np.ndarray:  # [M, 2]
        if self.shots is None:
            raise ValueError("the protocol f1_shots needs a shot list")
        return self.shots

    @cached_property
    def users(self) -> np.ndarray:  # [A, n] float64
        return self.video.user_scores.astype(np.float64)

    @cached_property
    def total(self) -> np.ndarray:  # [n] int64, sum over annotators: orders frames as the mean does, without rounding
        return self.video.user_scores.sum(axis=0, dtype=np.int64)

    @cached_property
    def share(self) -> np.ndarray:  # [n] float64, mean annotation as a share of the highest, in 0..1
        return self.total / (len(self.video.user_scores) * HIGHEST)

    @cached_property
    def clip_labels(self) -> np.ndarray:  # [A, C]
        video = self.video
        return video.user_scores[:, clip_label_frames(video.n_frames, video.length_s, video.fps)]

    @cached_property
    def clip_positives(self) -> np.ndarray:  # [A, C] bool
        return above_lower_median(self.clip_labels)

    @cached_property
    def seconds(self) -> np.ndarray:  # [S] frames of a 1-fps sampler
        return second_frames(self.video.n_frames, self.video.fps)

    @cached_property
    def official_summaries(self) -> np.ndarray:  # [A, n] bool
        return keyshots.official_summary(self.users, keyshots.official_shots(self.video.n_frames))

    @cached_property
    def otani_summaries(self) -> np.ndarray:  # [A, n] bool
        return keyshots.knapsack_summary(self.users, keyshots.even_shots(self.video.n_frames))

    @cached_property
    def shot_summaries(self) -> np.ndarray:  # [A, n] bool
        return keyshots.keyshot_summary(self.users, self.given_shots)


def summaries_of(protocol: str, truth: Truth, dense: np.ndarray) -> np.ndarray:
    """Summaries [R, n] bool of score vectors dense [R, n] under a key-shot protocol."""
    n_frames = dense.shape[1]
    if protocol == "f1_otani60":
        return keyshots.knapsack_summary(dense, keyshots.even_shots(n_frames))
    if protocol == "f1_shots":
        return keyshots.keyshot_summary(dense, truth.given_shots)
    return keyshots.official_summary(
        keyshots.min_max(dense), keyshots.official_shots(n_frames, 50 if protocol == "f1_official_pred50" else 60)
    )


def references_of(protocol: str, truth: Truth) -> np.ndarray:
    """The annotators' own summaries [A, n] bool under a key-shot protocol."""
    if protocol == "f1_otani60":
        return truth.otani_summaries
    return truth.shot_summaries if protocol == "f1_shots" else truth.official_summaries


def aha_metrics(mean: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Aha's variant (NeurIPS 2025, `test/tvsum`): scores [N] against the mean annotation / 5, mean [N], at the predictor's frames.

    map50, map15: average precision of labels "at least the k-th largest mean", k = max(1, int(share * N)); top5: trapezoid AP of the five
    best on the 50% labels; f1_15: F1 of the best 15% against the 15% labels. Equal scores: top5 is the mean of index order and reverse
    index order (both are given as well), f1_15 takes reverse index order, which is the reference's ascending sort read backwards, made
    stable.
    """
    half, best = top_share(mean, 0.5), top_share(mean, 0.15)
    correlation = rank_correlation(scores, mean)
    return {
        "kendall": float(correlation.kendall),
        "spearman": float(correlation.spearman),
        "map50": average_precision(half, scores),
        "map15": average_precision(best, scores),
        **_both_orders("top5", half, scores),
        "f1_15": f1_of_best(best, scores, 0.15, last_first=True),
    }


def clip_metrics(positives: np.ndarray, clips: np.ndarray) -> dict[str, float]:
    """hd_top5 of clip scores [C] against each annotator's positive clips [A, C], mean over annotators and over both orders of equal
    scores."""
    return _both_orders("top5_map", positives, clips)


def _both_orders(name: str, positives: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    first = float(trapezoid_ap(top_labels(positives, scores)).mean())
    last = float(trapezoid_ap(top_labels(positives, scores, last_first=True)).mean())
    return {name: (first + last) / 2, f"{name}_tie_first": first, f"{name}_tie_last": last}


def mean_defined(values: np.ndarray) -> float:
    """Mean over the values that are defined (an annotator who gave one score throughout has no correlation); NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def score_video(truth: Truth, frames: np.ndarray, scores: np.ndarray, protocols: list[str]) -> dict[str, dict[str, float]]:
    """All numbers of one prediction (frames [N] ascending, scores [N]) on one video: protocol -> metric -> value, NaN where undefined."""
    video = truth.video
    dense = hold(frames, scores, np.arange(video.n_frames))
    clips = clip_scores(frames, scores, video.length_s, video.fps)
    # protocol -> (scores, labels) of the rank correlations
    grids = {
        "corr_full": (dense, video.user_scores),
        "corr_every15": (dense[::15], video.user_scores[:, ::15]),
        "corr_1fps": (scores, video.user_scores[:, frames]),
        "corr_clip2s": (clips, truth.clip_labels),
        "corr_full_mean": (dense, truth.total),
    }
    result: dict[str, dict[str, float]] = {}
    for protocol in protocols:
        if protocol in grids:
            correlation = rank_correlation(*grids[protocol])
            values = {
                "kendall": mean_defined(np.atleast_1d(correlation.kendall)),
                "spearman": mean_defined(np.atleast_1d(correlation.spearman)),
            }
        elif protocol == "aha_1fps_mean":
            values = aha_metrics(truth.share[frames], scores)
        elif protocol == "hd_top5":
            values = clip_metrics(truth.clip_positives, clips)
        else:
            f1 = keyshots.f1(summaries_of(protocol, truth, dense[None]), references_of(protocol, truth))[0]
            values = {"f1": float(f1.mean())}
            if protocol == "f1_shots":
                values["f1_max_over_users"] = float(f1.max())
        result[protocol] = values
    return result
