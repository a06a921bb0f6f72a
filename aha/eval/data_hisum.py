"""Reads Mr.HiSum: `mr_hisum.h5` (video by video), the split JSON and `metadata.csv`.

Source: Sul et al., "Mr. HiSum", NeurIPS 2023 Datasets and Benchmarks. 1 frame = 1 second; n = seconds, M = shots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aha.core.files import read_csv, read_json
from aha.core.h5 import H5File
from aha.errors import UserError

SUBSETS = ("train", "val", "test")


def find_hisum(path: str | Path) -> Path:
    """mr_hisum.h5 itself, or inside a folder, flat or in its annotations/. UserError if it is not there."""
    folder = Path(path)
    if (folder.exists() and not folder.is_dir()) or folder.suffix in (".h5", ".hdf5"):
        return folder
    for inside in ("mr_hisum.h5", "annotations/mr_hisum.h5"):
        if (folder / inside).is_file():
            return folder / inside
    raise UserError(
        f"no mr_hisum.h5 in {folder} or {folder / 'annotations'}; datasets/README.md says where to get it, or give --annotations."
    )


@dataclass(frozen=True, slots=True)
class HiSumVideo:
    gtscore: np.ndarray  # [n] float64
    gt_summary: np.ndarray | None  # [n] bool
    change_points: np.ndarray | None  # [M, 2] int64, half-open [start, end)


class HiSumFile:
    """The open h5; videos are read one at a time. Raises UserError for a file that is missing or truncated and for fields that are
    missing or malformed, naming the video."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.file = H5File(path, "annotation file", "the file is cut off, damaged or not mr_hisum.h5, download it again")
        self.ids: dict[str, None] = dict.fromkeys(self.file.names())  # an ordered set

    def close(self) -> None:
        self.file.__exit__()

    def __enter__(self) -> HiSumFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, video_id: str, with_summary: bool = True) -> HiSumVideo:
        """One video; gt_summary (also spelled gtsummary) and change_points only if wanted."""
        where = f"{self.path}: {video_id}"
        gtscore = self._vector(video_id, ("gtscore",), where)
        if not with_summary:
            return HiSumVideo(gtscore, None, None)
        n = len(gtscore)
        summary = self._vector(video_id, ("gt_summary", "gtsummary"), where)
        points = self._numbers(video_id, ("change_points",), where)
        if len(summary) != n or not ((summary == 0) | (summary == 1)).all():
            raise UserError(f"{where}: gt_summary is not one 0 or 1 for each of the {n} seconds; the file is damaged, download it again.")
        if points.ndim != 2 or points.shape[1] != 2 or not len(points) or (points != np.floor(points)).any():
            raise UserError(f"{where}: change_points is no list of [start, end) pairs; the file is damaged, download it again.")
        inside = points.min() >= 0 and points.max() <= n
        if not inside or (points[:, 1] <= points[:, 0]).any() or (points[1:, 0] < points[:-1, 1]).any():
            raise UserError(f"{where}: change_points are not ascending [start, end) pairs within 0 and {n}; the file is damaged.")
        return HiSumVideo(gtscore, summary.astype(bool), points.astype(np.int64))

    def _numbers(self, video_id: str, spellings: tuple[str, ...], where: str) -> np.ndarray:
        for name in spellings:
            values = self.file.numbers(f"{video_id}/{name}")
            if values is not None and not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values.ravel())))
                raise UserError(f"{where}: {name} {bad} is not a finite number; the file is damaged.")
            if values is not None:
                return values
        raise UserError(f"{where} lacks the field {spellings[0]}; use mr_hisum.h5 as published, or leave out the protocol that needs it.")

    def _vector(self, video_id: str, spellings: tuple[str, ...], where: str) -> np.ndarray:
        values = self._numbers(video_id, spellings, where)
        if values.ndim != 1:
            raise UserError(f"{where}: {spellings[0]} has the shape {values.shape}, not one number for each second; the file is damaged.")
        return values


def read_keys(path: str | Path, subset: str) -> list[str]:
    """The keys of "train", "val", "test" or "all" of a split JSON {"train_keys", "val_keys", "test_keys"}."""
    split = read_json(path, "split")
    found = []
    for part in SUBSETS if subset == "all" else (subset,):
        keys = split.get(f"{part}_keys") if isinstance(split, dict) else None
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise UserError(f"split {path} has no list {part}_keys; expected train_keys, val_keys and test_keys.")
        found += keys
    parts: dict[str, str] = {}
    for part in SUBSETS:  # the others too, where they are there: a test video that is trained on is no test
        listed = split.get(f"{part}_keys")
        for key in listed if isinstance(listed, list) else ():
            if isinstance(key, str) and parts.setdefault(key, part) != part:
                raise UserError(f"split {path}: {key} is in {parts[key]}_keys and in {part}_keys; a video is in one of them.")
    return found


def read_split(path: str | Path, subset: str, known: dict[str, None], annotations: Path) -> list[str]:
    """`read_keys`, all of which must be in the h5."""
    keys = read_keys(path, subset)
    if unknown := [key for key in keys if key not in known]:
        raise UserError(
            f"split {path}: {subset}_keys names {len(unknown)} videos that are not in {annotations}, the first is {unknown[0]}."
        )
    if len(set(keys)) != len(keys):
        raise UserError(f"split {path}: {subset}_keys names a video twice; remove one of the two.")
    if not keys:
        raise UserError(f"split {path}: {subset}_keys is empty; choose another --subset.")
    return keys


@dataclass(frozen=True, slots=True)
class HiSumMetadata:
    categories: dict[str, str] = field(default_factory=dict)  # video id -> category
    youtube: dict[str, str] = field(default_factory=dict)  # YouTube id -> video id
    titles: dict[str, str] = field(default_factory=dict)  # video id -> title

    @property
    def youtube_of(self) -> dict[str, str]:
        """Video id -> YouTube id."""
        return {video_id: youtube_id for youtube_id, video_id in self.youtube.items()}


def read_metadata(path: str | Path) -> HiSumMetadata:
    """`metadata.csv`: video_id, youtube_id, labels. The category of a video is its first YouTube-8M label, or the column `category`; a copy
    with neither column gives no categories. The official file has no titles; mr_hisum_metadata.csv among the Aha annotations has.
    """
    rows = read_csv(path, ("video_id",), "metadata")
    found = HiSumMetadata()
    if rows and not {"labels", "category", "youtube_id"} & rows[0][1].keys():
        raise UserError(f"metadata {path} needs the columns video_id, youtube_id and labels; it has {', '.join(rows[0][1])[:200]}.")
    seen: set[str] = set()
    for line, row in rows:
        video_id = row["video_id"]
        if not video_id or video_id in seen:
            raise UserError(f"metadata {path}:{line}: video id {video_id!r} is empty or listed twice; repair the row.")
        seen.add(video_id)
        if "labels" in row or "category" in row:
            label = re.search(r"\d+", row.get("labels") or "")
            found.categories[video_id] = row.get("category") or (f"label {label[0]}" if label else "no label")
        if row.get("youtube_id"):
            if row["youtube_id"] in found.youtube:
                raise UserError(f"metadata {path}:{line}: youtube_id {row['youtube_id']!r:.40} is listed twice; repair the row.")
            found.youtube[row["youtube_id"]] = video_id
        if row.get("title"):
            found.titles[video_id] = row["title"]
    return found


def read_titled(path: str | Path) -> HiSumMetadata:
    """`read_metadata` of a copy with titles, which are what a video is asked for. Raises UserError for the official one, which has none."""
    found = read_metadata(path)
    if found.youtube and not found.titles:
        raise UserError(
            f"{path} is the official copy, which has no titles, and a title is what a video is asked for; mr_hisum_metadata.csv of Aha's "
            "annotations (https://huggingface.co/datasets/aiden200/aha-annotationsv1, instructions/data.md) has them."
        )
    return found
