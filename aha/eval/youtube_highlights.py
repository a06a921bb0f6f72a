"""YouTube Highlights: mAP over all clips of a video, per domain, as UMT and Lighthouse report it.

    python -m aha.eval.youtube_highlights --predictions outputs/youtube_highlights/predictions.json --output metrics.json

Annotations in Lighthouse's layout (`youtube_highlight_val_release.jsonl`). A prediction gives one score a clip (`pred_saliency_scores`), or
frame scores (`debug_data`), whose mean over each clip is taken; clips overlap. The mean is that of the domains, not of the videos (Sun et
al., ECCV 2014; UMT, CVPR 2022; Lighthouse, EMNLP 2024). Fractions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aha.core.checked import interval, listed, number
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import Prediction
from aha.errors import UserError, run_command
from aha.eval.command import Benchmark, answers_of, run, select, select_protocols
from aha.eval.published import Counted
from aha.eval.questions import find_annotations, read_entries, warn_of_counts, whole_scores
from aha.eval.task import DataSet, File, Item, Task
from aha.metrics.highlights import all_clips_ap
from aha.results.layout import RANDOM, Headline, Protocol
from aha.results.tree import Column, Pooled, Scored

if TYPE_CHECKING:
    from aha.results.figures import Curve

METRICS = tuple(f"{rule}_tie_{tie}" for rule in ("umt", "lighthouse") for tie in ("mean", "first", "last"))
PROTOCOL = Protocol(
    "ap_all_clips", "AP over all clips, mean of the domains; videos without a highlight: UMT 0, Lighthouse left out", METRICS
)
SEED = 0


@dataclass(frozen=True)
class Video(Item):
    """A video: clips [C, 2] seconds, labels [C] bool. Its category is its domain, which is also the query."""

    clips: np.ndarray = field(kw_only=True)
    labels: np.ndarray = field(kw_only=True)


def read_videos(path: str | Path) -> list[Video]:
    """The videos of an annotation file, in its order. Raises UserError naming line and field."""
    videos: dict[str, Video] = {}
    for where, entry in read_entries(path, "YouTube Highlights annotations"):
        key, domain, fps = Prediction(entry, where).video_id, str(entry.get("domain", "")), number(entry.get("fps"), where, "fps", 1e-3)
        clips = [interval(clip, where, f"clip {i}") for i, clip in enumerate(listed(entry.get("clip"), where, "clip"))]
        labels = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in listed(entry.get("label"), where, "label")]
        if not domain or not clips or len(labels) != len(clips) or not all(label in (-1, 0, 1) for label in labels):
            raise UserError(f"{where}: needs a domain and one 0/1 label for each of its {len(clips)} clips; repair the entry.")
        if key in videos:
            raise UserError(f"{where}: video {key} is listed twice; ids must differ.")
        seconds = number(entry.get("duration"), where, "duration", 0.0)
        videos[key] = Video(
            key, key, ((0.0, domain),), seconds, domain, clips=np.array(clips) / fps, labels=np.array(labels) > 0
        )  # fmt: skip
    return list(videos.values())


def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Video]:
    """The videos of an annotation file, or of that in the data set's folder; there is one split."""
    return read_videos(find_annotations(TASK, root))


def clip_scores(prediction: Prediction, video: Video, fusion: Fusion) -> np.ndarray:
    """One score a clip: as listed, or the mean of the frame scores in it, and without a frame the last score before its end."""
    if "pred_saliency_scores" in prediction.record and "debug_data" not in prediction.record:
        return prediction.clip_scores()
    times, scores = whole_scores(prediction, fusion, video.duration)
    found = []
    for start, end in video.clips:
        inside = (times >= start - 1e-6) & (times < end - 1e-6)
        found.append(scores[inside].mean() if inside.any() else scores[max(0, int(np.searchsorted(times, end)) - 1)])
    return np.array(found)


def mean_of_domains(sums_BK: np.ndarray) -> np.ndarray:
    """[sum of each domain's APs, number of its videos that have one] -> mean over the domains [B]."""
    aps, counts = np.split(sums_BK, 2, axis=1)
    return (aps / counts).mean(axis=1)


@dataclass(kw_only=True)
class YouTubeHighlights(Benchmark):
    videos: Mapping[str, Video]

    def columns(self, rows: Mapping[str, Mapping[str, float]]) -> list[Column]:
        """Per-video APs -> columns whose mean is that of the domains (NaN where a domain has no value)."""
        of_video = [self.videos[key].category for key in rows]
        inside_VD = np.array([[domain == one for one in dict.fromkeys(of_video)] for domain in of_video])
        columns = []
        for metric in METRICS:
            values = np.array([row[metric] for row in rows.values()])
            sums = np.concatenate([inside_VD * np.nan_to_num(values)[:, None], inside_VD * ~np.isnan(values)[:, None]], axis=1)
            columns.append(Column(PROTOCOL.name, metric, "", list(rows), values, Pooled(sums, mean_of_domains)))
        return columns

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        answers, skipped = answers_of(path, self.chosen, "video_id")
        scores = {key: clip_scores(answer, self.videos[key], fusion) for key, answer in answers.items()}
        warn_of_counts(path, {key: (len(values), len(self.videos[key].clips)) for key, values in scores.items()})
        columns = self.columns({key: all_clips_ap(self.videos[key].labels, values) for key, values in scores.items()})
        constant = [key for key, values in scores.items() if np.ptp(values) == 0]
        seen = [key for key, answer in answers.items() if answer.trained_on or key in trained_on]
        return Scored(str(path), self.protocols, columns, len(answers), skipped, constant, seen)

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        """Random scores: mean of the domains of each run."""
        random = np.random.default_rng(SEED)
        chosen = [self.videos[key] for key in self.chosen if scored is None or key not in scored.skipped]
        draws = [self.columns({v.key: all_clips_ap(v.labels, random.random(len(v.labels))) for v in chosen}) for _ in range(runs)]
        means = {metric: [run[i].mean for run in draws] for i, metric in enumerate(METRICS)}
        kept = {metric: values for metric, values in means.items() if not np.isnan(values).any()}
        return {RANDOM: [Column(PROTOCOL.name, metric, "", ["mean of domains"], np.array([values])) for metric, values in kept.items()]}

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        from aha.results.figures import Curve  # matplotlib: only here

        for key, answer in answers_of(path, self.chosen, "video_id")[0].items():
            if key in wanted:
                video = self.videos[key]
                scores = clip_scores(answer, video, fusion)[: len(video.clips)]
                starts = video.clips[: len(scores), 0]
                spans = ("highlights", [tuple(clip) for clip in video.clips[video.labels]])
                end = video.duration or float(video.clips.max())
                yield Curve(key, video.category, end, {"prediction": (starts, scores)}, spans=spans)

    def sets(self, scored: Scored) -> dict[str, Counted]:
        return {"val": Counted(scored.count, len(self.videos))}


def load(
    annotations: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> YouTubeHighlights:
    """Read the videos and select: by id, the first `limit`."""
    path = find_annotations(TASK, annotations)
    videos = {video.key: video for video in read_videos(path)}
    return YouTubeHighlights(
        annotations=str(path), chosen=select(list(videos), str(path), video_ids, limit), protocols=select_protocols([PROTOCOL], protocols),
        categories={key: video.category for key, video in videos.items()}, videos=videos,
    )  # fmt: skip


def evaluate(predictions: str | Path, annotations: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    return TASK.evaluate(predictions, annotations=annotations, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    """It has the flags of all."""


TASK = Task(
    DataSet(
        "youtube_highlights", "YouTube Highlights (Sun et al., ECCV 2014)", "youtube_highlights",
        (
            File("annotations/youtube_highlight_val_release.jsonl", "https://github.com/line/lighthouse (data/youtube_highlight)"),
        ),
        "videos", "https://github.com/aliensunmin/DomainSpecificHighlight (YouTube ids)", "152 videos in val", "-",
        "evaluation: highlight detection, six domains",
    ),
    short="YouTube Highlights", items=items, load=load, add_flags=add_flags, frame_fps=1.0, random_runs=5,
    protocols=(PROTOCOL,), rows={RANDOM: "random"}, headlines=(Headline("ap_all_clips", "umt_tie_mean", "mAP"),),
)  # fmt: skip


def main(argv: list[str]) -> None:
    run(TASK, __doc__, "aha.eval.youtube_highlights", argv)


if __name__ == "__main__":
    run_command(main)
