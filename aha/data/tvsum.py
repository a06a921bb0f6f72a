"""TVSum -> samples: query = the video's title; label of a sampled frame = the mean of the 20 people's ratings from it to the next sampled
frame, the span that its score stands for, as (mean - 1) / 4 in [0, 1].

People rated 2-second shots from 1 to 5; the published files repeat a shot's rating for each of its frames (Song et al., CVPR 2015).
"""

from __future__ import annotations

import numpy as np

from aha.core.folds import N_FOLDS
from aha.data.samples import Problem, RelevanceSample, Sample, annotated_file
from aha.eval import tvsum
from aha.eval.annotations import TVSumVideo, read_tvsum
from aha.eval.community import Split
from aha.video.library import VideoFolder


def split_ids(
    videos: dict[str, TVSumVideo], split: str, fold: int | Split | None, n_folds: int = N_FOLDS, validation: bool = False
) -> list[str]:
    """Video ids of a split, in the annotations' order: aha.eval.tvsum.split_ids."""
    return tvsum.split_ids({video_id: video.category for video_id, video in videos.items()}, split, fold, n_folds, validation)


def importance(video: TVSumVideo) -> np.ndarray:
    """[n_frames] float32 in [0, 1]: (mean of the 20 ratings - 1) / 4."""
    return ((video.user_scores.mean(axis=0) - 1) / 4).astype(np.float32)


def tvsum_samples(name: str, videos: dict[str, TVSumVideo], folder: VideoFolder, ids: list[str]) -> tuple[list[Sample], list[Problem]]:
    """One sample per video of `ids`. Left out: unreadable videos, and files that are not the annotated video (length off by more than 2%,
    or by 1% at another frame rate).

    A file at another frame rate than the annotations (a re-encoded copy) gets its labels by time instead of by frame index.
    """
    samples: list[Sample] = []
    problems: list[Problem] = []
    for video_id in ids:
        video = videos[video_id]
        facts, reason = folder.find(f"{video_id}.mp4")
        by_frame = False
        if facts is not None:
            by_frame, reason = annotated_file(facts, video.n_frames, video.length_s)
        if facts is None or reason:
            problems.append(Problem(name, video_id, reason))
            continue
        samples.append(
            RelevanceSample(
                f"{name}/{video_id}",
                video_id,
                facts["path"],
                facts["duration"],
                request=video.title,
                scores=importance(video),
                score_fps=video.n_frames / (facts["duration"] if by_frame else video.length_s),
                by_frame=by_frame,
                held=True,
            )  # fmt: skip
        )
    return samples, problems


def load(entry: dict, folder: VideoFolder, split: str, fold: int | Split | None, validation: bool) -> tuple[list[Sample], list[Problem]]:
    """Samples of a mixture entry {"annotations"?: as for read_tvsum, "info"?: TSV}. Raises UserError for bad annotation files."""
    videos = read_tvsum(entry.get("annotations"), entry.get("info"))
    return tvsum_samples(entry["name"], videos, folder, split_ids(videos, split, fold, validation=validation))


__all__ = ["importance", "load", "split_ids", "tvsum_samples"]
