"""Scoring a whole benchmark: what `python -m aha.score --dataset NAME` does.

    python -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --dataset tvsum --fold 0 --output outputs/tvsum.json
    torchrun --nproc_per_node 8 -m aha.score ... --dataset hisum --output outputs/hisum.json

Videos are dealt out over the ranks that torchrun gives (RANK, WORLD_SIZE), the longest first. Each rank appends one JSON line per finished
video to its file in `OUTPUT.parts-<settings>/`, flushed to disk; rank 0 merges them when all are there. The same command again after a kill
goes on where it stopped: at most one video per rank is scored twice. `--engine ray` gives the same work to the workers of a Ray cluster.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from llava_next import resolve_folder
from tqdm import tqdm

from aha.conversation import Query
from aha.core.environment import held
from aha.core.files import check_file, read_json, write_json
from aha.core.lost_frames import Count, shown
from aha.core.prediction import Prediction, write_predictions
from aha.core.prompts import restyle
from aha.core.query_map import read_query_map
from aha.errors import UserError
from aha.eval import MODULES, load_task
from aha.eval.community import Split, chosen_split
from aha.eval.grids import same_frames
from aha.eval.task import Task
from aha.scoring.config import ScoreConfig, Selection
from aha.scoring.model_choice import ModelChoice
from aha.scoring.offline import Scorer
from aha.scoring.parts import part_writer, parts_folder, read_parts
from aha.video.library import VideoFolder, index_videos, video_folder

POLL_S = 0.5
DATASETS = tuple(MODULES)


@dataclass(frozen=True)
class Item:
    """One video to be scored. key: unique in the benchmark; extra: further fields of its element in the prediction file; file: bytes and
    time of change (ns) of the video, which say that it is still the one that was scored."""

    key: str
    video_id: str
    path: str
    duration: float
    queries: tuple[Query, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    category: str = ""
    file: Sequence[int] = ()


# ---- which videos ----


def list_items(selection: Selection) -> tuple[list[Item], dict[str, str]]:
    """(videos to score in the benchmark's order, {video: why it is left out}). Raises UserError."""
    name = selection.benchmark
    fold: int | Split | None = selection.fold
    if name not in DATASETS:
        raise UserError(f"--dataset {name} is none of {', '.join(DATASETS)}.")
    task = load_task(name)
    root = Path(selection.data_root or task.folder)
    if selection.splits is not None:
        if name != "tvsum":
            raise UserError(
                f"--splits: only tvsum is scored by splits, not {name}; score the whole benchmark and give --splits to its evaluation."
            )
        fold = chosen_split(selection.splits, selection.fold)
    elif selection.fold is not None and (name != "tvsum" or not 0 <= selection.fold <= 4):
        raise UserError(f"--fold {fold}: only tvsum has folds, 0 to 4.")
    if selection.split not in (None, "all") and (fold is None if task.n_folds else not task.splits):
        cure = "give --fold or --splits too" if task.n_folds else "it has one split, leave --split out"
        raise UserError(f"--split {selection.split} says nothing of {name} alone; {cure}.")
    items, missing = task_items(task, root, selection.split, fold)
    if selection.query_map is not None:
        items = with_queries(items, selection.query_map)
    items = with_style(items, selection.prompt_style, selection.seed)
    items = items[: selection.limit]
    if not items:
        reasons = "; ".join(f"{video}: {reason}" for video, reason in list(missing.items())[:3])
        raise UserError(f"no video of {name} under {root} can be scored ({reasons or 'the split is empty'}); see datasets/README.md.")
    return items, missing


def task_items(task: Task, root: Path, split: str | None = None, fold: int | Split | None = None) -> tuple[list[Item], dict[str, str]]:
    """(items of the benchmark whose video is there and can be read, {key of the others: why not}). The videos asked about are indexed."""
    if not root.is_dir():
        raise UserError(f"data set folder {root} does not exist; `python -m aha.data.prepare {task.name}` says what belongs there.")
    asked = task.items(root, split, fold)
    videos = video_folder(root, task.data.videos)
    listed = VideoFolder.below(videos)
    wanted = sorted({path for item in asked if (path := listed.locate(item.video)[0]) is not None})
    facts = index_videos(videos, root / "videos_metadata.json", paths=wanted)
    items, missing = [], {}
    for item in asked:
        path, reason = listed.locate(item.video)
        entry = facts.get(path) if path is not None else None
        if path is None or entry is None or not entry["valid"]:
            missing[item.key] = entry["error"] if entry else f"{reason} ({item.video or 'unnamed'}) in {videos}"
            continue
        if item.frames is not None and item.duration is not None:
            try:  # a copy at another rate is placed by time when it is evaluated
                rate = entry["frame_count"] / entry["duration"]
                same_frames(rate, entry["frame_count"], entry["duration"], item.frames, item.duration)
            except UserError as error:
                missing[item.key] = str(error)
                continue
        video_id = PurePosixPath(path).stem if "question_id" in item.extra else item.key
        queries = tuple(Query(text, time) for time, text in item.queries)
        duration = item.duration or entry["duration"]
        file = (entry["size"], entry["mtime_ns"])
        items.append(Item(item.key, video_id, entry["path"], duration, queries, dict(item.extra), item.category, file))
    return items, missing


def with_queries(items: Sequence[Item], path: str) -> list[Item]:
    """The same videos with the queries of a file (aha.core.query_map). Raises UserError for a video that it does not name."""
    queries = read_query_map(path)
    absent = [item.video_id for item in items if item.video_id not in queries]
    if absent:
        raise UserError(f"query map {path} has no query for video {', '.join(absent[:5])}; add {'it' if len(absent) == 1 else 'them'}.")
    return [replace(item, queries=(Query(queries[item.video_id]),)) for item in items]


def with_style(items: Sequence[Item], style: str, seed: int) -> list[Item]:
    """The same videos with their queries in another style (aha.core.prompts)."""
    asked = {item.key: tuple((query.time, query.text) for query in item.queries) for item in items}
    styled = restyle(asked, style, {item.key: item.category for item in items}, seed)
    return [replace(item, queries=tuple(Query(text, time) for time, text in styled[item.key])) for item in items]


def shard(items: Sequence[Item], rank: int, world: int) -> list[Item]:
    """This rank's videos, longest first: each video goes to the rank that has the least to do so far."""
    load = [0.0] * world
    mine = []
    for item in sorted(items, key=lambda item: (-item.duration, item.key)):
        lightest = load.index(min(load))
        load[lightest] += item.duration + 1.0  # opening a video costs something too
        if lightest == rank:
            mine.append(item)
    return mine


# ---- scoring ----


def trained_on_ids(choice: ModelChoice) -> set[str]:
    """Ids of the videos that the model was trained on: trained_on_videos.json beside its weights, empty where there is none."""
    ids: set[str] = set()
    for source in choice.sources:
        path = resolve_folder(source) / "trained_on_videos.json"
        if path.is_file():
            listed = read_json(path, "list of trained-on videos")
            if not isinstance(listed, list):
                raise UserError(f"{path} must be a JSON list of video ids.")
            ids |= set(map(str, listed))
    return ids


def warn_trained_on(items: Sequence[Item], ids: set[str]) -> None:
    seen = sorted({item.video_id for item in items} & ids)
    if seen:
        line = "!" * 78
        print(
            f"{line}\nWARNING: the model was TRAINED ON {len(seen)} of these {len(items)} videos ({', '.join(seen[:5])}"
            f'{", ..." if len(seen) > 5 else ""}).\nTheir scores say nothing about new videos; they are marked "trained_on": true.\n{line}',
            file=sys.stderr,
        )


def readers(given: int | None) -> int:
    """Videos decoded at the same time by this process."""
    if given is not None and given < 1:
        raise UserError(f"--readers is {given}; give at least 1.")
    return given or min(max((os.cpu_count() or 1) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", 1))), 1), 8)


def open_ahead(items: Sequence[Item], open_video: Callable[[Item], Any], count: int) -> Iterator[tuple[Item, Future]]:
    """(item, future of its opened video) in order; `count` videos are open, and being decoded, at a time."""
    with ThreadPoolExecutor(count) as pool:
        waiting: deque[tuple[Item, Future]] = deque()
        try:
            for k in range(len(items) + count):
                if k < len(items):
                    waiting.append((items[k], pool.submit(open_video, items[k])))
                if k >= count - 1 and waiting:
                    yield waiting.popleft()
        finally:
            for _, future in waiting:  # leaving early
                if not future.cancel() and future.exception() is None:
                    future.result().close()


def record_of(
    scorer: Scorer, item: Item, video: Callable[[], Any], trained_on: set[str], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """{"key", "video": bytes and time of change of its file, "entry": prediction}, or with "error": reason for a video that cannot be read.
    `video` gives the opened one."""
    of = {"key": item.key, "video": list(item.file)}
    try:
        prediction = scorer.score(
            video(), item.queries, progress, video_id=item.video_id, trained_on=item.video_id in trained_on, **item.extra
        )
    except UserError as error:
        return {**of, "error": str(error)}
    return {**of, "entry": prediction.record}


def advance(bar: tqdm, done: int, frame: int) -> None:
    """Move the bar to `frame` frames of the video in work, after `done` frames of the videos before it."""
    bar.update(done + frame - bar.n)


def score_items(scorer: Scorer, items: Sequence[Item], trained_on: set[str], write: Any, rank: int, count: int) -> None:
    """This rank's videos, one after the other; the next ones are being decoded meanwhile, `count` at a time."""
    expected = [scorer.config.expected_frames(item.duration) for item in items]
    with tqdm(total=sum(expected), unit=" frames", desc=f"rank {rank}: {len(items)} videos", disable=None if rank == 0 else True) as bar:
        done = 0
        for (item, video), frames in zip(open_ahead(items, lambda item: scorer.open(item.path), count), expected):
            write(record_of(scorer, item, video.result, trained_on, partial(advance, bar, done)))
            done += frames
            bar.update(done - bar.n)


def merge(output: Path, dataset: str, items: Sequence[Item], done: dict[str, dict[str, Any]], missing: dict[str, str]) -> None:
    """Write the prediction file in the benchmark's order, and OUTPUT.skipped.json where videos were left out."""
    entries = [Prediction(done[item.key]["entry"]) for item in items if "entry" in done[item.key]]
    skipped = {**missing, **{item.key: done[item.key]["error"] for item in items if "error" in done[item.key]}}
    if skipped:
        print(f"{len(skipped)} videos left out:", *(f"  {name}: {reason}" for name, reason in skipped.items()), sep="\n", file=sys.stderr)
        write_json(output.with_name(output.name + ".skipped.json"), skipped)
    if not entries:
        raise UserError(f"none of the {len(items)} videos of {dataset} could be scored; the first reason: {next(iter(skipped.values()))}")
    write_predictions(output, entries)
    print(f"{len(entries)} videos, {frames_scored(entries)} -> {output}" + (f"; {len(skipped)} left out" if skipped else ""))


def frames_scored(entries: Sequence[Prediction]) -> str:
    """The closing line of a scoring: how many frames were scored and, on a stream's clock, how many were lost."""
    count = Count()
    for entry in entries:
        count.add(entry.record)
    clock = count.summary()
    return f"{sum(len(entry.rows()) for entry in entries)} frames scored" + ("" if clock is None else f"; {shown(clock)}")


def score_dataset(
    choice: ModelChoice, config: ScoreConfig, selection: Selection, output: Path, *,
    readers_wanted: int | None = None, engine: str = "torchrun", workers: int | None = None,
) -> None:  # fmt: skip
    """The command, on one rank. Only rank 0 prints and merges. Raises UserError."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    check_file(output)
    count = readers(readers_wanted)
    items, missing = list_items(selection)
    with held(output, rank):
        score_and_merge(choice, config, selection.benchmark, items, missing, output, (rank, world), count, engine, workers)


def score_and_merge(
    choice: ModelChoice, config: ScoreConfig, dataset: str, items: list[Item], missing: dict[str, str], output: Path,
    place: tuple[int, int], count: int, engine: str, workers: int | None,
) -> None:  # fmt: skip
    """Score what is left of this rank's share; then, on rank 0, wait for the other ranks and write the prediction file.

    place: (rank, number of ranks). count: videos decoded at the same time. Raises UserError.
    """
    rank, world = place
    folder = parts_folder(output, choice, config, items)
    left_out: list[str] = []
    done = read_parts(folder, left_out, items)
    trained_on = trained_on_ids(choice)
    if rank == 0:
        warn_trained_on(items, trained_on)
        if left_out:
            more = ", ..." if len(left_out) > 5 else ""
            print(f"{folder}: {', '.join(left_out[:5])}{more}; left out, what is missing is scored again", file=sys.stderr)
        if done:
            print(f"{len(done)} of {len(items)} videos were scored before ({folder}); going on with the others", file=sys.stderr)
    todo = [item for item in shard(items, rank, world) if item.key not in done]
    if todo:
        with part_writer(folder, rank, world) as write:
            if engine == "ray":
                from aha.scoring.ray_engine import score_items_on_ray  # ray is an optional package

                score_items_on_ray(choice, config, workers, todo, trained_on, write)
            else:
                score_items(Scorer(*choice.load(), config), todo, trained_on, write, rank, count)
    if rank > 0:
        return
    while not all(item.key in done for item in items):
        done = read_parts(folder, items=items)
        if world == 1:
            break
        time.sleep(POLL_S)
    if lost := [item.key for item in items if item.key not in done]:
        raise UserError(f"{folder} lacks {', '.join(lost[:5])}, which this run wrote; run the command again.")
    merge(output, dataset, items, done, missing)
    if todo:  # else another rank may still have to see that all is done
        shutil.rmtree(folder)
