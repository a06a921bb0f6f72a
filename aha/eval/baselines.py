"""The rows a result is read against: random scores, one human against the others, the mean annotation as predictor.

They depend on the annotations only, so they are kept in a cache (aha/results/cache.py), one entry for each video and protocol, keyed by the
content of the annotations: another data set, shot list or number of runs never meets a stale entry.

A = 20 annotators, n = frames, N = samples at 1 fps, C = 2-second clips, R = random runs. A row of a video is {metric: [values]}: R values
for random scores, one otherwise.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

import numpy as np

from aha.eval.annotations import HIGHEST
from aha.eval.tvsum_protocols import Truth, aha_metrics, clip_metrics, mean_defined, references_of, summaries_of
from aha.metrics import keyshots
from aha.metrics.rank import RankCorrelation, pairwise_rank_correlation, rank_correlation
from aha.results import cache
from aha.results.layout import HUMAN, RANDOM

HUMAN_MEAN, UPPER = "human_vs_mean_of_the_19_others", "mean_annotation_as_predictor"
ROWS = {RANDOM: "random", HUMAN: "one human, each other", HUMAN_MEAN: "one human, mean of 19", UPPER: "mean annotation"}
SEED = 2019
VERSION = 1  # of the numbers in the cache; raise it with every change of this file or of the metrics

Row = dict[str, list[float]]  # metric -> values


def video_baselines(truth: Truth, protocol: str, runs: int) -> dict[str, Row]:
    """All baseline rows of one video under one protocol: row -> metric -> values.

    Random scores are uniform, one for each item of the protocol's own grid (frames, seconds or clips), seeded by the video id. One human
    against each other human: all 190 pairs for correlations, all ordered pairs for F1 and top-5 mAP. Where both orders of equal scores
    matter (annotators use five levels), `_tie_last` is the other order.
    """
    video = truth.video
    if len(video.user_scores) == 1:  # nobody to hold one annotator against; of two alike the other rows are those of the one
        alike = replace(video, user_scores=np.repeat(video.user_scores, 2, axis=0))
        rows = video_baselines(Truth(alike, truth.shots), protocol, runs)
        return {row: dict.fromkeys(found, [float("nan")]) if row in (HUMAN, HUMAN_MEAN) else found for row, found in rows.items()}
    digest = hashlib.sha256(f"{SEED}:{video.video_id}:{protocol}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    annotators = np.arange(len(video.user_scores))
    if protocol.startswith("f1_"):
        return _f1_rows(truth, protocol, rng.random((runs, video.n_frames)))
    if protocol == "hd_top5":
        labels, positives = truth.clip_labels, truth.clip_positives
        return {
            RANDOM: _collect([clip_metrics(positives, rng.random(labels[0].shape)) for _ in range(runs)]),
            HUMAN: _average([clip_metrics(positives[annotators != i], own) for i, own in enumerate(labels)]),
            UPPER: _average([clip_metrics(positives, labels.sum(axis=0))]),
        }
    if protocol == "aha_1fps_mean":
        users, total = video.user_scores[:, truth.seconds], truth.total[truth.seconds]
        mean = truth.share[truth.seconds]
        others = (total - users) / ((len(users) - 1) * HIGHEST)
        return {
            RANDOM: _collect([aha_metrics(mean, rng.random(len(mean))) for _ in range(runs)]),
            HUMAN_MEAN: _average([aha_metrics(others[i], users[i]) for i in annotators]),
            UPPER: _average([aha_metrics(mean, total)]),
        }
    # rank correlations
    if protocol == "corr_clip2s":
        users = truth.clip_labels
    elif protocol == "corr_1fps":
        users = video.user_scores[:, truth.seconds]
    else:
        users = video.user_scores[:, :: 15 if protocol == "corr_every15" else 1]
    total = users.sum(axis=0, dtype=np.int64)
    against_others = _concatenate([rank_correlation(total - users[i], users[i]) for i in annotators])
    if protocol == "corr_full_mean":
        return {
            RANDOM: _collect([_correlations(rank_correlation(rng.random(len(total)), total)) for _ in range(runs)]),
            HUMAN_MEAN: _average([_correlations(against_others)]),
            UPPER: _average([_correlations(rank_correlation(total, total))]),
        }
    return {
        RANDOM: _collect([_correlations(rank_correlation(rng.random(len(total)), users)) for _ in range(runs)]),
        HUMAN: _average([_correlations(pairwise_rank_correlation(users))]),
        HUMAN_MEAN: _average([_correlations(against_others)]),
        UPPER: _average([_correlations(rank_correlation(total, users))]),
    }


def _f1_rows(truth: Truth, protocol: str, random_scores: np.ndarray) -> dict[str, Row]:
    references = references_of(protocol, truth)
    own = summaries_of(protocol, truth, truth.users) if protocol == "f1_official_pred50" else references
    pairs = keyshots.f1(own, references)
    np.fill_diagonal(pairs, np.nan)
    chance = keyshots.f1(summaries_of(protocol, truth, random_scores), references)
    upper = keyshots.f1(summaries_of(protocol, truth, truth.total[None].astype(np.float64)), references)
    return {
        RANDOM: {"f1": chance.mean(axis=1).tolist(), "f1_max_over_users": chance.max(axis=1).tolist()},
        HUMAN: {"f1": [float(np.nanmean(pairs))], "f1_max_over_users": [float(np.nanmax(pairs, axis=1).mean())]},
        UPPER: {"f1": [float(upper.mean())], "f1_max_over_users": [float(upper.max())]},
    }


def _correlations(correlation: RankCorrelation) -> dict[str, float]:
    return {name: mean_defined(np.atleast_1d(values)) for name, values in correlation._asdict().items()}


def _concatenate(parts: list[RankCorrelation]) -> RankCorrelation:
    return RankCorrelation(*(np.array(values) for values in zip(*parts)))


def _collect(runs: list[dict[str, float]]) -> Row:
    return {metric: [run[metric] for run in runs] for metric in runs[0]}


def _average(runs: list[dict[str, float]]) -> Row:
    return {metric: [mean_defined(np.array([run[metric] for run in runs]))] for metric in runs[0]}


# ---------------------------------------------------------------- cache


def _key(truth: Truth, protocol: str, runs: int) -> str:
    video = truth.video
    digest = hashlib.sha256(f"{VERSION}:{protocol}:{runs}:{video.video_id}:{video.length_s!r}:{video.user_scores.shape}".encode())
    digest.update(video.user_scores.astype("<i2").tobytes())
    if protocol == "f1_shots":
        digest.update(truth.given_shots.astype("<i8").tobytes())
    return digest.hexdigest()


def baselines_of(truths: dict[str, Truth], protocols: list[str], runs: int, progress: bool = False) -> dict[str, dict[str, dict[str, Row]]]:
    """Baselines of several videos: video id -> protocol -> row -> metric -> values; from the cache where they are there."""
    wanted = {(i, protocol): _key(truth, protocol, runs) for i, truth in truths.items() for protocol in protocols}
    name = f"tvsum_baselines/{hashlib.sha256(''.join(sorted(truths)).encode()).hexdigest()[:16]}.json"
    entries = cache.load(name)
    missing = [pair for pair, key in wanted.items() if key not in entries]
    if missing:
        from tqdm import tqdm

        bar = tqdm(missing, desc="baselines (kept for next time)", unit="row", disable=not (progress and sys.stderr.isatty()), leave=False)
        for video_id, protocol in bar:
            entries[wanted[video_id, protocol]] = video_baselines(truths[video_id], protocol, runs)
        cache.store(name, entries)
    return {i: {protocol: entries[wanted[i, protocol]] for protocol in protocols} for i in truths}
