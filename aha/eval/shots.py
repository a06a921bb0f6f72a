"""Reads shot lists: JSON {video id: [[first, last], ...]} or `change_points` of the community's feature files (.h5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aha.core.files import read_json
from aha.errors import UserError
from aha.eval.annotations import TVSumVideo


def read_shots(path: str | Path, videos: Mapping[str, TVSumVideo], wanted: list[str]) -> dict[str, np.ndarray]:
    """Shot lists of the videos `wanted`: id -> [M, 2] int64 half-open (start, end).

    The file holds inclusive pairs [first, last] that cover 0 .. n_frames - 1 without gap. Videos may be named by id or, as in
    `eccv16_dataset_tvsum_google_pool5.h5`, video_1 .. video_50 in the order of the annotation file.
    Raises UserError for a missing video and for shots that do not cover the video exactly.
    """
    path = Path(path)
    raw = _read_h5(path) if path.suffix in (".h5", ".hdf5") else read_json(path, "shot list")
    if not isinstance(raw, dict):
        raise UserError(f"shot list {path} is no object; expected {{video id: [[first frame, last frame], ...]}}.")
    order = {video_id: f"video_{number}" for number, video_id in enumerate(videos, 1)}
    shots = {}
    for video_id in wanted:
        pairs = raw.get(video_id, raw.get(order[video_id]))
        if pairs is None:
            raise UserError(f"shot list {path} has no video {video_id}; make the list for every video, or leave the video out.")
        shots[video_id] = _half_open(pairs, videos[video_id].n_frames, f"shot list {path}, video {video_id}")
    return shots


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    from aha.core.h5 import H5File

    shots = {}
    with H5File(path, "shot list") as file:
        for name in file.names():
            if (points := file.numbers(f"{name}/change_points")) is None:
                raise UserError(f"shot list {path} lacks change_points; use eccv16_dataset_tvsum_google_pool5.h5 or a JSON list.")
            shots[name] = points
    return shots


def _half_open(pairs: object, n_frames: int, where: str) -> np.ndarray:
    try:
        shots = np.asarray(pairs, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: not a list of [first, last] pairs of frame numbers; repair the list.") from error
    if shots.ndim != 2 or shots.shape[1:] != (2,) or not len(shots) or not np.isfinite(shots).all() or (shots != np.floor(shots)).any():
        raise UserError(f"{where}: not a list of [first, last] pairs of frame numbers; repair the list.")
    if shots[0, 0] != 0 or shots[-1, 1] != n_frames - 1 or (shots[1:, 0] != shots[:-1, 1] + 1).any() or (shots[:, 1] < shots[:, 0]).any():
        raise UserError(
            f"{where}: the shots must cover frames 0 to {n_frames - 1} without gap or overlap (inclusive pairs); repair the list."
        )
    shots[:, 1] += 1
    return shots.astype(np.int64)
