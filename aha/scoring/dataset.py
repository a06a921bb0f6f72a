"""Scoring a whole benchmark: what `python -m aha.score --dataset NAME` does.

    python -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --dataset tvsum --fold 0 --output outputs/tvsum.json
    torchrun --nproc_per_node 8 -m aha.score ... --dataset hisum --output outputs/hisum.json

Videos are dealt out over the ranks that torchrun gives (RANK, WORLD_SIZE), the longest first. Each rank appends one JSON line per finished
video to its file in `OUTPUT.parts-<settings>/`, flushed to disk; rank 0 merges them when all are there. The same command again after a kill
goes on where it stopped: at most one video per rank is scored twice. `--engine ray` gives the same work to the workers of a Ray cluster.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from llava_next import resolve_folder
from tqdm import tqdm

from aha.conversation import Query
from aha.core.files import read_json, write_json, write_text
from aha.core.prompts import restyle
from aha.errors import UserError
from aha.eval import MODULES, load_task
from aha.eval.task import Task
from aha.video.library import VideoFolder, index_videos, video_folder

POLL_S = 0.5
DATASETS = tuple(MODULES)


@dataclass(frozen=True)
class Item:
    """One video to be scored. key: unique in the benchmark; extra: further fields of its element in the prediction file."""

    key: str
    video_id: str
    path: str
    duration: float
    queries: tuple[Query, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    category: str = ""


# ---- which videos ----


def list_items(args: argparse.Namespace) -> tuple[list[Item], dict[str, str]]:
    """(videos to score in the benchmark's order, {video: why it is left out}). Raises UserError."""
    if args.dataset not in DATASETS:
        raise UserError(f"--dataset {args.dataset} is none of {', '.join(DATASETS)}.")
    task = load_task(args.dataset)
    root = Path(args.data_root or task.folder)
    if args.fold is not None and (args.dataset != "tvsum" or not 0 <= args.fold <= 4):
        raise UserError(f"--fold {args.fold}: only tvsum has folds, 0 to 4.")
    items, missing = task_items(task, root, args.split, args.fold)
    if args.query_map is not None:
        items = with_queries(items, args.query_map)
    items = with_style(items, args.prompt_style, args.seed)
    items = items[: args.limit]
    if not items:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(missing.items())[:3])
        raise UserError(
            f"no video of {args.dataset} under {root} can be scored ({reasons or 'the split is empty'}); see datasets/README.md."
        )
    return items, missing


def task_items(task: Task, root: Path, split: str | None = None, fold: int | None = None) -> tuple[list[Item], dict[str, str]]:
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
        entry = facts.get(path)
        if entry is None or not entry["valid"]:
            missing[item.key] = entry["error"] if entry else f"{reason} ({item.video or 'unnamed'}) in {videos}"
            continue
        video_id = PurePosixPath(path).stem if "question_id" in item.extra else item.key
        queries = tuple(Query(text, time) for time, text in item.queries)
        duration = item.duration or entry["duration"]
        items.append(Item(item.key, video_id, entry["path"], duration, queries, dict(item.extra), item.category))
    return items, missing


def with_queries(items: Sequence[Item], path: str) -> list[Item]:
    """The same videos with the queries of a JSON file {video id: query}. Raises UserError for a video that it does not name."""
    queries = read_json(path, "query map")
    if not isinstance(queries, dict) or not all(isinstance(text, str) for text in queries.values()):
        raise UserError(f"query map {path} must be a JSON object {{video id: query text}}.")
    absent = [item.video_id for item in items if item.video_id not in queries]
    if absent:
        raise UserError(f"query map {path} has no query for video {', '.join(absent[:5])}; add {'it' if len(absent) == 1 else 'them'}.")
    return [Item(i.key, i.video_id, i.path, i.duration, (Query(queries[i.video_id]),), i.extra) for i in items]


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


# ---- parts on disk ----


def parts_folder(args: argparse.Namespace, items: Sequence[Item]) -> Path:
    """Beside the output; its name depends on everything that changes scores, so that parts of other settings are never mixed in."""
    settings: list[Any] = sorted(
        (name, value) for name, value in vars(args).items() if name not in ("output", "readers", "feature_cache", "engine", "workers")
    )
    for source in filter(None, (args.llm_pretrained, args.lora_pretrained)):
        for path in sorted(resolve_folder(source).glob("*.safetensors")):
            settings.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    settings.append([(item.key, item.path, [(q.text, q.time) for q in item.queries]) for item in items])
    digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:12]
    output = Path(args.output)
    return output.with_name(f"{output.name}.parts-{digest}")


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """{key: {"entry": prediction} or {"error": reason}} of all ranks' files. A last line that was cut off by a kill does not count."""
    done: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line end is empty or cut off
            record = json.loads(line)
            done[record["key"]] = record
    return done


@contextmanager
def part_writer(folder: Path, rank: int, world: int) -> Iterator[Any]:
    """A function that appends one record and returns when it is on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{rank:04d}-of-{world:04d}.jsonl"
    with path.open("ab") as file:
        data = path.read_bytes()
        file.truncate(data.rfind(b"\n") + 1)  # a line that a kill cut off

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())

        yield write


# ---- scoring ----


def trained_on_ids(args: argparse.Namespace) -> set[str]:
    """Ids of the videos that the model was trained on: trained_on_videos.json beside its weights, empty where there is none."""
    ids: set[str] = set()
    for source in filter(None, (args.llm_pretrained, args.lora_pretrained)):
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


def readers(args: argparse.Namespace) -> int:
    if args.readers is not None and args.readers < 1:
        raise UserError(f"--readers is {args.readers}; give at least 1.")
    return args.readers or min(max((os.cpu_count() or 1) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", 1))), 1), 8)


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


class Scorer:
    """A loaded model and how to score with it. open: a video, to be decoded from now on; record: what is kept of a scored one."""

    def __init__(self, args: argparse.Namespace, trained_on: set[str]):
        from aha.score import load_model, score_settings  # that file starts this one; torch is loaded only now
        from aha.scoring.offline import feature_cache

        score_settings(args)  # wrong settings are said before the model is loaded
        self.model, self.tokenizer = load_model(args)
        self.settings, self.trained_on = score_settings(args, self.model), trained_on
        self.features = feature_cache(self.model, self.settings)

    def open(self, item: Item) -> Any:
        from aha.scoring.offline import OpenVideo, is_gpu

        return OpenVideo(item.path, self.settings, is_gpu(self.model), self.features)

    def record(self, item: Item, video: Callable[[], Any], progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """{"key", "entry": prediction}, or {"key", "error": reason} for a video that cannot be read. `video` gives the opened one."""
        from aha.scoring.offline import score_video

        try:
            entry = score_video(self.model, self.tokenizer, video(), item.queries, self.settings, progress)
        except UserError as error:
            return {"key": item.key, "error": str(error)}
        entry = {"video_uuid": item.video_id, **item.extra, **{k: v for k, v in entry.items() if k != "video_uuid"}}
        if item.video_id in self.trained_on:
            entry["trained_on"] = True
        return {"key": item.key, "entry": entry}


def expected_frames(args: argparse.Namespace, item: Item) -> int:
    return min(args.max_num_frames or sys.maxsize, max(int(item.duration * args.frame_fps), 1))


def score_items(args: argparse.Namespace, items: Sequence[Item], trained_on: set[str], write: Any, rank: int) -> None:
    """This rank's videos, one after the other; the next ones are being decoded meanwhile."""
    scorer = Scorer(args, trained_on)
    total = sum(expected_frames(args, item) for item in items)
    with tqdm(total=total, unit=" frames", desc=f"rank {rank}: {len(items)} videos", disable=None if rank == 0 else True) as bar:
        done = 0
        for item, video in open_ahead(items, scorer.open, readers(args)):
            write(scorer.record(item, video.result, lambda frames, done=done: bar.update(done + frames - bar.n)))
            done += expected_frames(args, item)
            bar.update(done - bar.n)


def merge(args: argparse.Namespace, items: Sequence[Item], done: dict[str, dict[str, Any]], missing: dict[str, str]) -> None:
    """Write the prediction file in the benchmark's order, and OUTPUT.skipped.json where videos were left out."""
    entries = [done[item.key]["entry"] for item in items if "entry" in done[item.key]]
    skipped = {**missing, **{item.key: done[item.key]["error"] for item in items if "error" in done[item.key]}}
    output = Path(args.output)
    if skipped:
        print(f"{len(skipped)} videos left out:", *(f"  {name}: {reason}" for name, reason in skipped.items()), sep="\n", file=sys.stderr)
        write_json(output.with_name(output.name + ".skipped.json"), skipped)
    if not entries:
        raise UserError(
            f"none of the {len(items)} videos of {args.dataset} could be scored; the first reason: {next(iter(skipped.values()))}"
        )
    # one line per video: as JSON a list, and readable for people and grep
    write_text(output, "[" + ",\n".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries) + "]\n")
    frames = sum(len(entry["debug_data"]) for entry in entries)
    print(f"{len(entries)} videos, {frames} frames scored -> {output}" + (f"; {len(skipped)} left out" if skipped else ""))


def score_dataset(args: argparse.Namespace) -> None:
    """The command, on one rank. Only rank 0 prints and merges. Raises UserError."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    items, missing = list_items(args)
    folder = parts_folder(args, items)
    done = read_parts(folder)
    trained_on = trained_on_ids(args)
    if rank == 0:
        warn_trained_on(items, trained_on)
        if done:
            print(f"{len(done)} of {len(items)} videos were scored before ({folder}); going on with the others", file=sys.stderr)
    todo = [item for item in shard(items, rank, world) if item.key not in done]
    if todo:
        with part_writer(folder, rank, world) as write:
            if args.engine == "ray":
                from aha.scoring.ray_engine import score_items_on_ray  # ray is an optional package

                score_items_on_ray(args, todo, trained_on, write)
            else:
                score_items(args, todo, trained_on, write, rank)
    if rank > 0:
        return
    while not all(item.key in done for item in items):
        done = read_parts(folder)
        if world == 1:
            break
        time.sleep(POLL_S)
    merge(args, items, done, missing)
    if todo:  # else another rank may still have to see that all is done
        shutil.rmtree(folder)
