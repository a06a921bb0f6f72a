"""Mr.HiSum and HIHD -> samples: query and one importance score per second, from "most replayed" statistics.

Mr.HiSum (Sul et al., NeurIPS 2023): `mr_hisum.h5` (video_N/gtscore, one score in [0, 1] per second), `mr_hisum_split.json`
(train_keys, val_keys, test_keys) and `metadata.csv` (video_id, youtube_id, title); videos are `<youtube_id>.mp4`; query = the title.
HIHD (Aha): `HIHD_metadata.csv` (youtube_id, query, duration, scores, quality_dropout, training_split).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.files import read_json
from aha.data.samples import Problem, RelevanceSample, Sample, VideoFolder
from aha.errors import UserError
from aha.video.degrade import KINDS

SLACK_S = 2.0  # how many seconds of a video's end may be without a score


def read_csv(path: str | Path, columns: tuple[str, ...], what: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with a header that has at least `columns`. Raises UserError for a missing, empty or cut-off file."""
    csv.field_size_limit(1 << 24)  # a row holds the scores of a whole video
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames is None:
                raise UserError(f"{what} {path} is empty; download it again.")
            missing = [column for column in columns if column not in reader.fieldnames]
            if missing:
                raise UserError(f"{what} {path} has no column {', '.join(missing)}; its header must have {', '.join(columns)}.")
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist; datasets/README.md says where to get it.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{what} {path} cannot be read ({error}); it is damaged or no CSV, download it again.") from error
    for line, row in rows:
        if None in row.values() or None in row:
            raise UserError(f"{path}:{line}: the row has not as many columns as the header; it is cut off, download the file again.")
    return rows


def _score_problem(scores: np.ndarray, duration: float) -> str:
    """Why these scores cannot label a video of this duration; "" if they can."""
    if scores.ndim != 1 or len(scores) == 0:
        return "there are no scores"
    if not np.isfinite(scores).all() or scores.min() < 0 or scores.max() > 1:
        bad = int(np.flatnonzero(~((scores >= 0) & (scores <= 1)))[0])
        return f"score {bad} is {scores[bad]}, not a number from 0 to 1"
    if len(scores) < duration - SLACK_S:
        return f"{len(scores)} scores (one per second) for a video of {duration:.1f} s"
    return ""


def load_hisum(entry: dict, folder: VideoFolder, split: str) -> tuple[list[Sample], list[Problem]]:
    """Samples of {"scores": mr_hisum.h5, "split": mr_hisum_split.json, "metadata": metadata.csv}. Raises UserError for bad files."""
    import h5py

    split_path, metadata_path = entry["split"], entry["metadata"]
    keys: list[str] = []
    stored = read_json(split_path, "Mr.HiSum split file")
    for part in ("train", "val", "test") if split == "all" else (split,):
        if not isinstance(stored, dict) or not isinstance(stored.get(f"{part}_keys"), list):
            raise UserError(f"Mr.HiSum split file {split_path} has no list {part}_keys; download mr_hisum_split.json again.")
        keys += stored[f"{part}_keys"]
    # The official metadata.csv has no titles; the copy among the Aha annotations (mr_hisum_metadata.csv) has.
    rows = {row["video_id"]: row for _, row in read_csv(metadata_path, ("video_id", "youtube_id", "title"), "Mr.HiSum metadata")}

    samples: list[Sample] = []
    problems: list[Problem] = []
    path = entry["scores"]
    try:
        with h5py.File(path, "r") as file:
            for key in keys:
                if key not in rows:
                    problems.append(Problem(entry["name"], key, f"not in {metadata_path}"))
                    continue
                youtube_id = rows[key]["youtube_id"]
                facts, reason = folder.find(f"{youtube_id}.mp4")
                if facts is not None and (key not in file or "gtscore" not in file[key]):
                    facts, reason = None, f"no {key}/gtscore in {path}"
                if facts is not None:
                    scores = np.asarray(file[key]["gtscore"], dtype=np.float32)
                    reason = _score_problem(scores, facts["duration"])
                if facts is None or reason:
                    problems.append(Problem(entry["name"], f"{key} ({youtube_id})", reason))
                    continue
                samples.append(
                    RelevanceSample(
                        f"{entry['name']}/{key}", youtube_id, facts["path"], facts["duration"], request=rows[key]["title"], scores=scores
                    )
                )
    except FileNotFoundError as error:
        raise UserError(f"Mr.HiSum scores {path} do not exist; datasets/README.md says where to get mr_hisum.h5.") from error
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"Mr.HiSum scores {path} cannot be read ({error}); the file is damaged or cut off, download it again.") from error
    return samples, problems


def _json_list(text: str, where: str, column: str) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: column {column} is not a JSON list ({error.msg}, character {error.pos}); repair the row.") from error
    if not isinstance(value, list):
        raise UserError(f"{where}: column {column} is {text[:40]!r}, not a JSON list; repair the row.")
    return value


def load_hihd(entry: dict, folder: VideoFolder, split: str) -> tuple[list[Sample], list[Problem]]:
    """Samples of {"annotations": HIHD_metadata.csv} whose training_split is `split`. Raises UserError for a bad file."""
    path = entry["annotations"]
    samples: list[Sample] = []
    problems: list[Problem] = []
    columns = ("youtube_id", "query", "duration", "scores", "quality_dropout", "training_split")
    for line, row in read_csv(path, columns, "HIHD annotations"):
        where = f"{path}:{line}"
        if split not in ("all", row["training_split"]):
            continue
        values = _json_list(row["scores"], where, "scores")
        bad = [value for value in values if isinstance(value, bool) or not isinstance(value, (int, float))]
        if bad:
            raise UserError(f"{where}: score {str(bad[0])[:40]!r} is no number; repair the row.")
        degradations = _json_list(row["quality_dropout"], where, "quality_dropout")
        for interval in degradations:
            if not (isinstance(interval, list) and len(interval) == 3 and interval[2] in KINDS):
                form = f"[start, end, kind] with kind one of {', '.join(KINDS)}"
                raise UserError(f"{where}: quality_dropout {str(interval)[:60]} is not {form}; repair the row.")
        youtube_id = row["youtube_id"]
        facts, reason = folder.find(f"{youtube_id}.mp4")
        scores = np.array(values, dtype=np.float32)
        if facts is not None:
            reason = _score_problem(scores, facts["duration"])
        if facts is None or reason:
            problems.append(Problem(entry["name"], f"line {line} ({youtube_id})", reason))
            continue
        samples.append(
            RelevanceSample(
                f"{entry['name']}/{youtube_id}@{line}",
                youtube_id,
                facts["path"],
                facts["duration"],
                request=row["query"],
                scores=scores,
                degradations=tuple((start, end, kind) for start, end, kind in degradations),
            )  # fmt: skip
        )
    return samples, problems
