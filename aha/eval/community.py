"""Reads the video summarization community's files: the eccv16 h5 data sets and the published splits.

    videos = read_h5("eccv16_dataset_summe_google_pool5.h5")      # "video_1" -> H5Video, in the order of the numbers
    splits = read_splits("summe_splits.json")                     # [Split(test=("video_2", ..), train=(..)), ..]

Splits are read in every published form: PGL-SUM's, CA-SUM's and PoR's JSON list of {"test_keys", "train_keys"}, DSNet's YAML (names
`../datasets/FILE.h5/video_N`), and CSTA's text, one line a split: `SumMe/split0/TRAIN,../TEST,..`. The name `umt` stands for the one
fixed split of TVSum that highlight detection uses (UMT, CVPR 2022): the ten videos of VAL10 test, the other forty train.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aha.core.files import by_number, read_json, read_text
from aha.errors import UserError
from aha.eval.tvsum_facts import LENGTHS, VAL10
from aha.metrics.keyshots_h5 import UserSummaries

if TYPE_CHECKING:
    from aha.core.h5 import H5File

UMT = "umt"
MAX_FRAMES = 10_000_000


@dataclass(frozen=True, slots=True)
class H5Video:
    """One group of the file: its name (video_N), the video's own name where the file has it, and what the numbers need."""

    key: str
    title: str | None
    truth: UserSummaries


@dataclass(frozen=True, slots=True)
class Split:
    test: tuple[str, ...]
    train: tuple[str, ...]


# ---------------------------------------------------------------- h5


def read_h5(path: str | Path) -> dict[str, H5Video]:
    """Every video of an eccv16 h5 file by name. Raises UserError, naming file, group and key, for what is missing or malformed."""
    from aha.core.h5 import H5File  # here, because --help and users without h5 files need none

    with H5File(path, "h5 file", "it is damaged or no HDF5 file, get it again") as file:
        videos = {name: _video(file, name) for name in by_number(file.names())}
    if not videos:
        raise UserError(f"h5 file {path} holds no video; get eccv16_dataset_tvsum_google_pool5.h5 or its SumMe sister.")
    return videos


def _video(file: H5File, name: str) -> H5Video:
    where = f"h5 file {file.path}, {name}"
    fields: dict[str, np.ndarray] = {}
    missing = []
    for key in ("user_summary", "change_points", "n_frames", "picks"):
        if (values := file.numbers(f"{name}/{key}")) is None:
            missing.append(key)
        else:
            fields[key] = values
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; get the eccv16 file again (other h5 files of the community lack them).")
    count = fields["n_frames"].flat[0]
    if not 0 < count <= MAX_FRAMES or count != int(count):
        raise UserError(f"{where}: n_frames is {count}; expected a video's number of frames.")
    n_frames = int(count)
    users = fields["user_summary"]
    if users.ndim != 2 or not len(users) or users.shape[1] != n_frames:
        raise UserError(f"{where}: user_summary is {users.shape}, not [users, {n_frames}].")
    if not (users >= 0).all():
        raise UserError(f"{where}: user_summary holds a negative number or NaN; it is damaged, get the eccv16 file again.")
    picks = fields["picks"].reshape(-1)
    if not np.isfinite(picks).all() or picks[0] < 0 or (np.diff(picks) <= 0).any():
        raise UserError(f"{where}: picks are no ascending frame numbers.")
    truth = UserSummaries(users > 0, _shots(fields["change_points"], n_frames, where), picks.astype(np.int64))
    return H5Video(name, file.text(f"{name}/video_name"), truth)


def fits_picks(scores: int, picks: int) -> bool:
    """Whether so many scores lie at the picks. The released evaluations take one too few as 0 and ignore any number of surplus ones; more
    than a few are of another sampling."""
    return picks - 1 <= scores <= picks + max(3, picks // 10)


def _shots(pairs: np.ndarray, n_frames: int, where: str) -> np.ndarray:
    """Inclusive [first, last] pairs -> half-open [M, 2] int64, from frame 0 without gap; the last may end before or beyond the video."""
    whole = pairs.ndim == 2 and pairs.shape[1:] == (2,) and len(pairs) and np.isfinite(pairs).all() and (pairs == np.floor(pairs)).all()
    if not whole:
        raise UserError(f"{where}: change_points are no [first frame, last frame] pairs.")
    gaps = pairs[0, 0] != 0 or (pairs[1:, 0] != pairs[:-1, 1] + 1).any() or (pairs[:, 1] < pairs[:, 0]).any()
    if gaps or pairs[-1, 0] >= n_frames or pairs[-1, 1] > 2 * n_frames:
        raise UserError(f"{where}: change_points must follow each other from frame 0 to about {n_frames - 1} (inclusive pairs).")
    shots = pairs.astype(np.int64)
    shots[:, 1] += 1
    return shots


# ---------------------------------------------------------------- splits


def read_splits(path: str | Path) -> list[Split]:
    """The splits of a file in any published form, in its order. Raises UserError naming the split."""
    if str(path) == UMT:
        test = tuple(VAL10.values())
        return [Split(test, tuple(video_id for video_id in LENGTHS if video_id not in test))]
    path = Path(path)
    if path.suffix == ".txt":
        splits = list(_read_lines(path))
    else:
        document = _read_yaml(path) if path.suffix in (".yml", ".yaml") else read_json(path, "splits file")
        if not isinstance(document, list):
            raise UserError(f"splits file {path} is no list; expected one {{test_keys, train_keys}} for each split.")
        splits = [_split(entry, f"splits file {path}, split {number}") for number, entry in enumerate(document)]
    if not splits:
        raise UserError(f"splits file {path} holds no split; check the path.")
    return splits


def chosen_split(path: str | Path, number: int | None) -> Split:
    """Split `number` (from 0) of a file, which need not be said where there is one only. Raises UserError where it has none of it."""
    splits = read_splits(path)
    number = 0 if number is None and len(splits) == 1 else number
    if number is None or not 0 <= number < len(splits):
        raise UserError(f"splits file {path} holds splits 0 to {len(splits) - 1}; say which one is meant (not {number}).")
    return splits[number]


def _read_yaml(path: Path) -> object:
    import yaml

    try:
        return yaml.safe_load(read_text(path, "splits file"))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"splits file {path} is no usable YAML ({str(error).splitlines()[0]}); get it again.") from error


def _split(entry: object, where: str) -> Split:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is no object with test_keys and train_keys.")
    names = {}
    for key in ("test_keys", "train_keys"):
        listed = entry.get(key, [] if key == "train_keys" else None)
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise UserError(f"{where}: {key} is no list of video names.")
        names[key] = tuple(name.rsplit("/", 1)[-1] for name in listed)  # DSNet writes ../datasets/FILE.h5/video_N
    return _checked(Split(names["test_keys"], names["train_keys"]), where)


def _read_lines(path: Path) -> Iterable[Split]:
    for number, line in enumerate(read_text(path, "splits file").split("\n"), 1):
        if line.strip():
            parts = line.strip().split("/")
            if len(parts) != 4:
                raise UserError(f"splits file {path}:{number} is not of the form SumMe/split0/video_1,../video_2,.. (train, then test).")
            train, test = (tuple(name.strip() for name in part.split(",") if name.strip()) for part in parts[2:])
            yield _checked(Split(test, train), f"splits file {path}:{number}")


def _checked(split: Split, where: str) -> Split:
    both = set(split.test) & set(split.train)
    if not split.test or len(set(split.test)) != len(split.test) or both:
        why = "tests no video" if not split.test else f"tests and trains on {sorted(both)[0]}" if both else "tests a video twice"
        raise UserError(f"{where} {why}; repair the file.")
    return split
