"""Mr.HiSum and HIHD -> samples: query and one importance score per second, from "most replayed" statistics.

Mr.HiSum (Sul et al., NeurIPS 2023): `mr_hisum.h5` (video_N/gtscore, one score in [0, 1] per second), `mr_hisum_split.json`
(train_keys, val_keys, test_keys) and `metadata.csv` (video_id, youtube_id, title); videos are `<youtube_id>.mp4`; query = the title.
HIHD (Aha): `HIHD_metadata.csv` (youtube_id, query, duration, scores, quality_dropout, training_split).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aha.core.files import parse_json, read_csv
from aha.data.mmduetit import is_number
from aha.data.samples import Problem, RelevanceSample, Sample
from aha.errors import UserError
from aha.eval.data_hisum import HiSumFile, read_keys, read_titled
from aha.video.degrade import KINDS
from aha.video.library import VideoFolder

SLACK_S = 2.0  # how many seconds of a video's end may be without a score


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
    keys = read_keys(entry["split"], split)
    metadata = read_titled(entry["metadata"])
    youtube = metadata.youtube_of
    samples: list[Sample] = []
    problems: list[Problem] = []
    with HiSumFile(entry["scores"]) as file:
        for key in keys:
            facts, reason = folder.find(f"{youtube[key]}.mp4") if key in youtube else (None, f"not in {entry['metadata']}")
            if facts is not None:
                try:
                    scores = file.read(key, with_summary=False).gtscore.astype(np.float32)
                    reason = _score_problem(scores, facts["duration"])
                except UserError as error:
                    reason = str(error)
            if facts is None or reason:
                problems.append(Problem(entry["name"], f"{key} ({youtube.get(key, 'no YouTube id')})", reason))
                continue
            samples.append(
                RelevanceSample(
                    f"{entry['name']}/{key}",
                    youtube[key],
                    facts["path"],
                    facts["duration"],
                    request=metadata.titles.get(key, ""),
                    scores=scores,
                )
            )
    return samples, problems


def _json_list(text: str, where: str, column: str) -> list[Any]:
    value = parse_json(text, f"{where}: column {column}")
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
        bad = [value for value in values if not is_number(value) and value == value]  # NaN: the sample is left out
        if bad:
            raise UserError(f"{where}: score {str(bad[0])[:40]!r} is no number; repair the row.")
        degradations = _json_list(row["quality_dropout"], where, "quality_dropout")
        for interval in degradations:
            if not (isinstance(interval, list) and len(interval) == 3 and all(map(is_number, interval[:2])) and interval[2] in KINDS):
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
