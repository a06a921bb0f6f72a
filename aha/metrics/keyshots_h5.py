"""F1 and rank correlation of key-shot summaries on the community's h5 files, and Performance over Random.

Files: eccv16_dataset_{summe,tvsum}_google_pool5.h5. Sources: PGL-SUM (ISM 2021), CA-SUM (ICMR 2022) and CSTA (CVPR 2024), whose
evaluation code is the same; Performance over Random: Apostolidis et al., ACM MM 2020.
SumMe reports the maximum over users, TVSum the mean. F in percent, correlations as fractions.
n = frames of the video, N = samples of the prediction, M = shots (half-open [start, end) here, inclusive in the files), A = users,
R = score vectors handled at once. A summary ends with the last shot, so its length may differ from n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aha.metrics.keyshots import BUDGET, frames_of, keyshot_summary, knapsack, shot_means
from aha.metrics.rank import rank_correlation

SEEDS = 100  # of the random summaries of Performance over Random
REDUCTIONS = ("f_max", "f_avg")


@dataclass(frozen=True, slots=True)
class UserSummaries:
    """What one video's group says: users [A, n] bool, shots [M, 2] int64 half-open, picks [N] frame of each feature."""

    users: np.ndarray
    shots: np.ndarray
    picks: np.ndarray

    @property
    def n_frames(self) -> int:
        return self.users.shape[1]


def frame_scores(frames: np.ndarray, scores: np.ndarray, n_frames: int) -> np.ndarray:
    """Scores of samples -> [n] float32: sample i fills frames[i] .. frames[i + 1] - 1, the last one to the end.

    Frames before the first sample are 0. One score fewer than samples: the last sample counts 0; surplus scores are ignored. Raises
    ValueError where more are missing."""
    if len(scores) < len(frames) - 1 or not len(scores):
        raise ValueError(f"{len(scores)} scores for {len(frames)} samples")
    filled = np.zeros(len(frames), dtype=np.float32)
    filled[: len(scores)] = scores[: len(frames)]
    inside = frames < n_frames
    starts = frames[inside]
    dense = np.zeros(n_frames, dtype=np.float32)
    if len(starts):
        dense[starts[0] :] = np.repeat(filled[inside], np.diff(np.append(starts, n_frames)))
    return dense


def machine_summary(dense: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """Frame scores [n] -> 0/1 summary [end of the last shot] bool: knapsack of float32 shot means, capacity 15% of that length."""
    return keyshot_summary(dense[None], shots)[0]


def f_of_users(summaries: np.ndarray, users: np.ndarray) -> np.ndarray:
    """F in percent of each summary [R, m] against each user [A, n] -> [R, A]; the shorter side is padded with 0.

    0 without overlap; NaN (0/0) where the summary or the user's selection is empty, as in the released code."""
    width = min(summaries.shape[1], users.shape[1])
    overlap = summaries[:, :width].astype(np.float32) @ users[:, :width].astype(np.float32).T  # whole numbers below 2^24: exact
    overlap = overlap.astype(np.float64)
    selected, wanted = summaries.sum(axis=1)[:, None], users.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = overlap / selected, overlap / wanted
        f = 2 * precision * recall * 100 / (precision + recall)
    return np.where(precision + recall == 0, 0.0, f)


def over_users(f_RA: np.ndarray, reduction: str) -> np.ndarray:
    """[R, A] -> [R]: f_avg is the mean (NaN if one user is), f_max Python's max: NaN if the first user is, else over the others."""
    if reduction == "f_avg":
        return f_RA.mean(axis=1)
    highest = np.where(np.isnan(f_RA), -np.inf, f_RA).max(axis=1)
    return np.where(np.isnan(f_RA[:, 0]), np.nan, highest)


def f_scores(summary: np.ndarray, video: UserSummaries) -> dict[str, float]:
    """f_max and f_avg (percent) of one summary [m]."""
    f_1A = f_of_users(summary[None], video.users)
    return {name: float(over_users(f_1A, name)[0]) for name in REDUCTIONS}


def summary_correlation(summary: np.ndarray, video: UserSummaries) -> dict[str, float]:
    """tau-b and rho of the 0/1 summary against the mean of the users' summaries, every frame (CSTA on SumMe: not of the scores).

    NaN where the summary is all or nothing, and where its length is not that of the video (the released code stops there)."""
    if len(summary) != video.n_frames:
        return {"kendall": float("nan"), "spearman": float("nan")}
    correlation = rank_correlation(video.users.sum(axis=0), summary.astype(np.int64))  # the sum orders frames as the mean does
    return {"kendall": float(correlation.kendall), "spearman": float(correlation.spearman)}


def one_user_against_the_others(video: UserSummaries, reduction: str) -> float:
    """F (percent) of each user's summary against the other users, mean over users; NaN with fewer than two users."""
    users = len(video.users)
    if users < 2:
        return float("nan")
    f_AA = f_of_users(video.users, video.users)
    others = f_AA[~np.eye(users, dtype=bool)].reshape(users, users - 1)
    return float(over_users(others, reduction).mean())


def random_f(videos: Sequence[UserSummaries], reduction: str, seeds: int = SEEDS) -> np.ndarray:
    """[V, seeds] F of random summaries: one uniform number a frame, RandomState(seed) drawing the videos in their order.

    The order is part of the definition of Performance over Random: that of a split's test_keys. Its F_random is the mean of all."""
    generators = [np.random.RandomState(seed) for seed in range(seeds)]
    f_VR = np.empty((len(videos), seeds))
    for number, video in enumerate(videos):
        dense_Rn = np.stack([generator.uniform(0, 1, video.n_frames) for generator in generators])
        weights = video.shots[:, 1] - video.shots[:, 0]
        picked = knapsack(shot_means(dense_Rn, video.shots), weights, int(int(video.shots[-1, 1]) * BUDGET))
        f_VR[number] = over_users(f_of_users(frames_of(picked, video.shots), video.users), reduction)
    return f_VR


def performance_over_random(f_of_method: Sequence[float], f_of_random: Sequence[float]) -> np.ndarray:
    """100 x the method's F over that of random summaries, for each split (both the mean over its test videos)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * np.asarray(f_of_method, dtype=float) / np.asarray(f_of_random, dtype=float)
