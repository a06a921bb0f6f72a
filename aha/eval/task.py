"""Task: everything the project knows of a benchmark, in one place. Each benchmark's module holds its own, named TASK.

    from aha.eval import load_task
    task = load_task("charades")
    for item in task.items(task.folder):       # what is asked of which video
        print(item.key, item.video, item.queries)

Scoring takes items and the published sampling from here, preparation the files, evaluation and reports the protocols and columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aha.eval.command import Benchmark, evaluate
from aha.results.layout import Headline, Layout, Protocol

DATA = Path("datasets")
MMDUETIT = "https://huggingface.co/datasets/wangyueqian/MMDuetIT"  # redistributes the annotations of several benchmarks


@dataclass(frozen=True)
class File:
    """One annotation file below the data set's folder; alternatives of a file follow each other with the same `group`."""

    path: str
    source: str
    group: str = ""


@dataclass(frozen=True)
class DataSet:
    """What belongs where, from where, under which licence. folder: below datasets/; videos: folder of the video files below it, and where
    they come from; size: "-" = not stated."""

    name: str
    title: str
    folder: str
    files: tuple[File, ...]
    videos: str
    video_source: str
    size: str
    licence: str
    purpose: str


@dataclass(frozen=True)
class Item:
    """One video with what is asked about it.

    key: unique in the benchmark. video: file name below the video folder, with or without suffix. queries: (second, words) in order of
    time. duration: seconds, where the annotations say it. extra: further keys of its element in a prediction file (question_id). frames:
    of the annotated video, where every frame is annotated.
    """

    key: str
    video: str
    queries: tuple[tuple[float, str], ...]
    duration: float | None = None
    category: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Task:
    """A benchmark.

    items(root, split, fold): its items in its order, read from the data set's folder `root`; split: one of `splits`, None: what is scored
    by default; fold: held-out fold k of `n_folds`. Raises UserError. frame_fps, max_num_frames: sampling of the published results.
    protocols, headlines, rows: see aha.results.layout; a benchmark whose protocols depend on flags lists those of the default flags.
    ablation: the columns of the ablation table and of lmms-eval where these are others than the headlines.
    load(**flags of its command) -> Benchmark; add_flags: its own flags beside those of all (aha.eval.command).
    random_runs: default of --random_runs, 0: there is no random row.
    """

    data: DataSet
    short: str
    items: Callable[..., Sequence[Item]]
    load: Callable[..., Benchmark]
    add_flags: Callable[[argparse.ArgumentParser], None]
    frame_fps: float
    max_num_frames: int | None = None
    splits: tuple[str, ...] = ()
    n_folds: int = 0
    protocols: tuple[Protocol, ...] = ()
    headlines: tuple[Headline, ...] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    ablation: tuple[Headline, ...] = ()
    random_runs: int = 0
    unit: str = "videos"

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def folder(self) -> Path:
        return DATA / self.data.folder

    def evaluate(self, predictions: str | Path | None = None, **options: Any) -> dict[str, Any]:
        """Score a prediction file, or the baselines alone; options: as aha.eval.command.evaluate. Content of the metrics file."""
        return evaluate(self, predictions, **options)

    def layout(self, protocols: tuple[Protocol, ...] | None = None) -> Layout:
        """What the tables need to know; `protocols`: those of this evaluation."""
        return Layout(self.short, self.protocols if protocols is None else protocols, self.headlines, self.rows, self.unit)
