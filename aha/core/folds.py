"""Seeded folds balanced over categories. The trainer and the evaluation use this same function, so that "fold 2" means the same videos
to both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from aha.errors import UserError

N_FOLDS = 5  # of every data set with folds: one fifth is held out
SPLITS = ("train", "val", "test", "all")  # what a fold or a published split can be asked for


class TooFewVideos(UserError):
    """A data set has fewer videos than the folds it is to be split into."""


def seeded(seed: int, video_id: str) -> str:
    """A key that sorts ids into the seed's order: sha256 of "seed:id", so the order is the same on every machine and Python version."""
    return hashlib.sha256(f"{seed}:{video_id}".encode()).hexdigest()


def folds(categories: Mapping[str, str], n_folds: int = N_FOLDS, seed: int = 0) -> list[list[str]]:
    """Split video ids into `n_folds` disjoint lists of held-out videos.

    categories: video id -> category. Every category is dealt out over the folds one video at a time, so that the folds' shares of a
    category differ by at most one video; each category starts where the last one stopped, so that the folds' sizes differ by at most one
    too. The order within a category is that of `seeded`; the order in which `categories` lists its videos does not matter.

    Returns n_folds lists of ids, each sorted. Raises TooFewVideos, a UserError, if there are fewer videos than folds.
    """
    if n_folds < 2 or len(categories) < n_folds:
        raise TooFewVideos(
            f"{len(categories)} videos cannot be split into {n_folds} folds; use at least 2 folds and at least as many videos as folds."
        )

    held_out: list[list[str]] = [[] for _ in range(n_folds)]
    dealt = 0
    for category in sorted(set(categories.values())):
        for video_id in sorted((v for v, c in categories.items() if c == category), key=lambda video_id: seeded(seed, video_id)):
            held_out[dealt % n_folds].append(video_id)
            dealt += 1
    return [sorted(fold) for fold in held_out]
