"""Reads TVSum annotations in every published form: `ydata-tvsum50-anno.tsv` (also gzipped) with `-info.tsv`, and `ydata-tvsum50.mat`.

Source: Song et al., "TVSum: Summarizing web videos using titles", CVPR 2015. 20 people rate every 2-second shot from 1 to 5; the files
hold one score per frame. Shapes: A = 20 annotators, n = frames of the video.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.files import read_bytes
from aha.errors import UserError
from aha.eval.tvsum_facts import CATEGORIES, LENGTHS

ANNOTATORS = 20
HIGHEST = 5  # scores are 1 to 5
DEFAULT_FOLDER = Path("datasets/tvsum")
SHIPPED = Path(__file__).parent / "tvsum_annotations" / "ydata-tvsum50-anno.tsv.gz"


@dataclass(frozen=True, slots=True)
class TVSumVideo:
    """One annotated video. user_scores [A, n_frames] int16, values 1..5 (A = 20 in TVSum); length_s in seconds."""

    video_id: str
    category: str
    title: str
    length_s: float
    n_frames: int
    user_scores: np.ndarray

    @property
    def fps(self) -> float:
        return self.n_frames / self.length_s


def find_tvsum(given: str | Path | None = None) -> Path:
    """The annotation file: `given`, or in that folder (by default datasets/tvsum; the official archive's layout, or flat), else the copy
    that ships with the package. Raises UserError where that one was removed."""
    folder = Path(given) if given is not None else DEFAULT_FOLDER
    if given is not None and not folder.is_dir():
        return folder
    for name in ("ydata-tvsum50-anno.tsv", "ydata-tvsum50-anno.tsv.gz", "ydata-tvsum50.mat"):
        for depth in ("", "*/", "*/*/", "*/*/*/"):
            found = sorted(folder.glob(depth + name))
            if found:
                return found[0]
    if SHIPPED.is_file():
        return SHIPPED
    raise UserError(
        f"no TVSum annotations (ydata-tvsum50-anno.tsv or ydata-tvsum50.mat) under {folder}, and the copy that ships with the package was "
        "removed; `python -m aha.data.get tvsum` fetches them, or give --annotations."
    )


def read_tvsum(
    annotations_path: str | Path | None = None, info_path: str | Path | None = None, lengths: bool = True
) -> dict[str, TVSumVideo]:
    """Read a TSV, gzipped TSV or .mat file (where it lies: find_tvsum) into {video_id: TVSumVideo}, in the file's order.

    info_path: the info TSV (title and length of each video); by default the `-info.tsv` beside an `-anno.tsv`. The .mat needs none.
    Lengths: of the 50 official videos exact (tvsum_facts.LENGTHS), of others as the info TSV says (`m:ss`, also with a fraction).
    Categories: those of the info TSV; without one the ten of TVSum. lengths False: an unknown length is NaN instead of an error.

    Raises UserError for a file that is missing, truncated or of another form, a row with a wrong count, a score that is no whole number
    from 1 to 5, other than 20 rows for one of the 50 videos, a video listed twice, an unknown category, and an unknown length.
    """
    path = find_tvsum(annotations_path)
    if not path.exists():
        raise UserError(f"annotation file {path} does not exist; check the path, or see datasets/README.md for where to get TVSum.")
    videos = list(_read_mat(path) if path.suffix == ".mat" else _read_tsv(path, info_path, lengths))
    if not videos:
        raise UserError(f"annotation file {path} is empty; download it again or check the path.")
    by_id: dict[str, TVSumVideo] = {}
    for video in videos:
        if video.video_id in by_id:
            raise UserError(f"{path}: video {video.video_id} is listed twice; each video has its {ANNOTATORS} rows in one place.")
        by_id[video.video_id] = video
    # ratings of one's own may be by any number of people, but where most videos have TVSum's twenty, another number is a damaged file
    if 2 * sum(len(video.user_scores) == ANNOTATORS for video in videos) > len(videos):
        for video in videos:
            if len(video.user_scores) != ANNOTATORS:
                raise UserError(
                    f"{path}: video {video.video_id} has {len(video.user_scores)} rows, not {ANNOTATORS} (one per annotator) as most have; "
                    "the file is cut off or rows are doubled."
                )
    return by_id


def names_of(known: Iterable[str]) -> dict[str, str]:
    """Every name of an annotated video -> its id: the id itself, and the community's video_N, N from 1 in the annotations' order."""
    ids = list(known)
    return {f"video_{number}": i for number, i in enumerate(ids, 1)} | {i: i for i in ids}


# ---------------------------------------------------------------- TSV


@dataclass(frozen=True, slots=True)
class _Info:
    category: str
    title: str
    length_s: float


def _lines(path: Path, what: str) -> list[bytes]:
    return read_bytes(path, what).replace(b"\r\n", b"\n").split(b"\n")


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text; check that this is the right file and that it is not damaged.") from error


def _seconds(text: str, where: str) -> float:
    """ "m:ss" (or "h:mm:ss"), the last part with or without a fraction -> seconds."""
    if not re.fullmatch(r"(\d{1,3}:){1,2}\d{1,2}(\.\d{1,9})?", text):
        raise UserError(f"{where}: length {text[:40]!r} is not of the form m:ss; repair the row.")
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    if seconds <= 0:
        raise UserError(f"{where}: length {text} is not above zero; repair the row.")
    return seconds


def _read_info(path: Path) -> dict[str, _Info]:
    rows = [(number, line) for number, line in enumerate(_lines(path, "info file"), 1) if line.strip()]
    if not rows:
        raise UserError(f"info file {path} is empty; download it again or check --info.")
    # Titles carry literal double quotes, so this is no CSV: columns are what lies between tabs.
    header = _text(rows[0][1], f"{path}:1").split("\t")
    missing = [name for name in ("category", "video_id", "title", "length") if name not in header]
    if missing:
        raise UserError(
            f"{path}: the header has no column {', '.join(missing)}; the first line must be: category, video_id, title, url, length (tabs)."
        )
    info: dict[str, _Info] = {}
    for number, line in rows[1:]:
        where = f"{path}:{number}"
        cells = _text(line, where).split("\t")
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} columns where the header has {len(header)}; columns are separated by single tabs.")
        row = dict(zip(header, cells))
        if row["video_id"] in info:
            raise UserError(f"{where}: video {row['video_id']} is listed twice; remove one of the two rows.")
        info[row["video_id"]] = _Info(row["category"], row["title"], _seconds(row["length"], where))
    return info


def _parse_scores(raw: bytes, where: str) -> np.ndarray:
    """ "s1,s2,...,sn" -> [n] int16. The fast path covers the official form (single digits between commas); the slow one finds the
    culprit."""
    characters = np.frombuffer(raw, dtype=np.uint8)
    if characters.size % 2 == 1:
        scores = characters[::2].astype(np.int16) - ord("0")
        if (characters[1::2] == ord(",")).all() and scores.min() >= 1 and scores.max() <= 5:
            return scores
    values = []
    for index, cell in enumerate(raw.split(b",")):
        text = cell.decode("utf-8", "replace").strip()
        if not re.fullmatch(r"[1-5](\.0*)?", text):
            raise UserError(
                f"{where}: score {index} is {text[:40]!r}, not a whole number from 1 to 5; repair the row or download the file again."
            )
        values.append(int(text[0]))
    return np.array(values, dtype=np.int16)


def _read_tsv(path: Path, info_path: str | Path | None, lengths: bool) -> Iterator[TVSumVideo]:
    if info_path is None:
        beside = path.with_name(path.name.removesuffix(".gz").removesuffix("-anno.tsv") + "-info.tsv")
        info_path = beside if beside.exists() else None
    info = _read_info(Path(info_path)) if info_path is not None else None
    rows: list[tuple[int, str, str, np.ndarray]] = []  # of one video: line number, video id, category, scores
    for number, line in enumerate(_lines(path, "annotation file"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        cells = line.split(b"\t")
        if len(cells) != 3:
            raise UserError(
                f"{where}: {len(cells)} columns where 3 are expected (video_id, category, comma-separated scores, with tabs between); is "
                "it cut off?"
            )
        video_id, category = _text(cells[0], where), _text(cells[1], where)
        if rows and rows[0][1] != video_id:
            yield _finish(path, rows, info, info_path, lengths)
            rows = []
        rows.append((number, video_id, category, _parse_scores(cells[2].strip(), f"{where} (video {video_id}, annotator {len(rows) + 1})")))
    if rows:
        yield _finish(path, rows, info, info_path, lengths)


def _finish(
    path: Path,
    rows: list[tuple[int, str, str, np.ndarray]],
    info: dict[str, _Info] | None,
    info_path: str | Path | None,
    lengths: bool,
) -> TVSumVideo:
    first_line, video_id, category, _ = rows[0]
    where = f"{path}:{first_line}"
    if len(rows) != ANNOTATORS and video_id in LENGTHS:  # a video of one's own has as many annotators as there were
        raise UserError(
            f"{where}: video {video_id} has {len(rows)} rows, not {ANNOTATORS} (one per annotator); the file is cut off or rows are "
            "doubled."
        )
    n_frames = Counter(len(row[3]) for row in rows).most_common(1)[0][0]
    for annotator, (number, _, its_category, scores) in enumerate(rows, 1):
        if len(scores) != n_frames:
            raise UserError(
                f"{path}:{number}: video {video_id}, annotator {annotator} has {len(scores)} scores where the other annotators have "
                f"{n_frames}; "
                f"repair the row or download the file again."
            )
        if its_category != category:
            raise UserError(f"{path}:{number}: video {video_id} changes category from {category} to {its_category[:40]}; repair the row.")
    if info is not None:
        if video_id not in info:
            raise UserError(f"{where}: video {video_id} is not in {info_path}; the two files belong to different data sets.")
        if info[video_id].category != category:
            raise UserError(
                f"{where}: unknown category {category[:40]!r} for video {video_id}: {info_path} says {info[video_id].category!r}."
            )
        title, length_s = info[video_id].title, info[video_id].length_s
    else:
        if category not in CATEGORIES:
            raise UserError(
                f"{where}: unknown category {category[:40]!r} for video {video_id}; the categories of TVSum are {', '.join(CATEGORIES)}."
            )
        known = LENGTHS.get(video_id, (0, 0.0))[0] == n_frames
        if lengths and not known:
            raise UserError(f"{where}: the length of video {video_id} is not known; give the info file (--info ydata-tvsum50-info.tsv).")
        title, length_s = "", LENGTHS[video_id][1] if known else float("nan")
    official_frames, official_length = LENGTHS.get(video_id, (0, 0.0))
    if official_frames == n_frames and abs(official_length - length_s) < 1:
        length_s = official_length
    return TVSumVideo(video_id, category, title, length_s, n_frames, np.stack([row[3] for row in rows]))


# ---------------------------------------------------------------- MATLAB


def _read_mat(path: Path) -> Iterator[TVSumVideo]:
    from aha.core.h5 import H5File  # here, because TSV users and --help need none

    cure = "it is damaged or not ydata-tvsum50.mat (MATLAB v7.3), download it again"
    with H5File(path, "annotation file", cure) as file:
        fields: dict[str, list[Any]] = {}
        for name in ("video", "title", "category", "length", "nframes", "user_anno"):
            listed = file.references(f"tvsum50/{name}")
            if listed is None or len(listed) != len(fields.get("video", listed)):
                raise UserError(f"{path} lacks the field {name} of the struct tvsum50, or entries of it; {cure}.")
            fields[name] = listed
        for index in range(len(fields["video"])):
            where = f"{path}: entry {index + 1}"
            values = {name: file.follow(references[index], f"{where}: {name}") for name, references in fields.items()}
            # MATLAB's characters are 16 bits wide; this file keeps one UTF-8 byte in each.
            text = {name: _text(values[name].ravel().astype(np.uint8).tobytes(), where) for name in ("video", "title", "category")}
            length_s, n_frames = float(values["length"].flat[0]), float(values["nframes"].flat[0])
            scores = values["user_anno"]
            where = f"{where} (video {text['video']})"
            if scores.shape != (ANNOTATORS, n_frames):
                raise UserError(f"{where}: user_anno is {scores.shape}, not ({ANNOTATORS}, {n_frames:g}); {cure}.")
            if not np.isin(scores, (1, 2, 3, 4, 5)).all():
                annotator, frame = np.argwhere(~np.isin(scores, (1, 2, 3, 4, 5)))[0]
                value = f"{scores[annotator, frame]:g}, not a whole number from 1 to 5"
                raise UserError(f"{where}: annotator {annotator + 1}, frame {frame} is {value}; {cure}.")
            if not 0 < length_s < np.inf:
                raise UserError(f"{where}: length {length_s} is not above zero; {cure}.")
            if text["category"] not in CATEGORIES:
                category = text["category"][:40]
                raise UserError(f"{where}: unknown category {category!r}; the categories of TVSum are {', '.join(CATEGORIES)}.")
            yield TVSumVideo(text["video"], text["category"], text["title"], length_s, int(n_frames), scores.astype(np.int16))
