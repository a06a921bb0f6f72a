"""What a run lacks on this machine, all of it at once, before the first download: data, cards, weights, disk, the judge.

    missing, notes = look(tables, run)

Nothing is downloaded and no model is loaded. Cards are asked for with nvidia-smi, weights and their sizes at the hub.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aha.core.extras import install_line, installed
from aha.data.prepare import missing_files
from aha.errors import UserError
from aha.eval import load_task
from aha.eval.judge import setting
from aha.reproduce.tables import FEATURES, SIZES, Run, Score, Table
from aha.scoring.known_models import KNOWN, cached, download_bytes, is_hub_id, shown_bytes
from aha.scoring.model_choice import ModelChoice
from aha.video.library import VideoFolder, video_folder

FEATURE_BYTES = 390e3  # of a frame, in 16 bits (ScoreConfig.feature_cache)
FRAME_BYTES = 400  # of a frame in a prediction file and in the part it is merged from
MARGIN_BYTES = 1e9  # logs, numbers, reports


@dataclass(frozen=True)
class Card:
    """A GPU as the driver tells it; memory in MiB."""

    name: str
    total: int
    free: int
    driver: str


def scores_of(tables: Sequence[Table]) -> list[Score]:
    """Every prediction file of the tables, once."""
    return list(dict.fromkeys(score for table in tables for score in table.scores))


def frames_of(score: Score, run: Run) -> int:
    """Frames of a prediction file, about."""
    items, frames, _ = SIZES[score.dataset]
    return frames if run.limit is None else frames * min(run.limit, items) // items


def look(tables: Sequence[Table], run: Run) -> tuple[list[str], list[str]]:
    """(what is missing, one sentence each with its cure; what is worth knowing)."""
    missing, notes = _data(tables, run)
    missing += _cards(run)
    absent, to_download = _weights(run)
    missing += absent + _disk(tables, run, to_download)
    if any(score.dataset == "magqa" for score in scores_of(tables)):
        missing += _judge(run)
    if any(score.dataset == "youcook2" for score in scores_of(tables)) and (lacking := captions_lack()):
        notes.append(f"table 9 will lack METEOR and SODA_c: {lacking}")
    return missing, notes


def _data(tables: Sequence[Table], run: Run) -> tuple[list[str], list[str]]:
    missing, notes = [], []
    for name in dict.fromkeys(score.dataset for score in scores_of(tables)):
        task, folder = load_task(name), Path(run.folder(name))
        how = f"`python -m aha.data.prepare {name}` explains" + ("" if run.data == Run.data else f" (--root {run.data})")
        if lacking := missing_files(task.data, folder):
            missing += [f"data {name}: there is no {sentence}; put it there, {how}." for sentence in lacking]
            continue
        try:
            wanted = list(dict.fromkeys(item.video for item in task.items(_root(name, folder))))
        except UserError as error:
            missing.append(f"data {name}: {error}")
            continue
        videos = video_folder(folder, task.data.videos)
        listed = VideoFolder.below(videos)
        absent = [video for video in wanted if listed.locate(video)[0] is None]
        if len(absent) == len(wanted):
            missing.append(f"data {name}: none of its {len(wanted)} videos is in {videos} ({task.data.video_source}); {how}.")
        elif absent:
            notes.append(f"data {name}: {len(absent)} of {len(wanted)} videos are not there ({absent[0]}, ...); the others are scored")
    return missing, notes


def _root(name: str, folder: Path) -> Path:
    """Where the annotations of a data set are read: its folder, or of TVSum the copy that ships, where the folder holds none."""
    from aha.eval.annotations import find_tvsum

    return find_tvsum(folder if folder.is_dir() else None) if name == "tvsum" else folder


def cards() -> list[Card]:
    """The GPUs that this process may use (CUDA_VISIBLE_DEVICES); none without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return []
    words = ["nvidia-smi", *(["-i", visible] if visible else [])]
    words += ["--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
        rows = [[part.strip() for part in line.split(",")] for line in lines if line.strip()]
        return [Card(name, int(total), int(free), driver) for name, total, free, driver in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def torch_gpus() -> int:
    """How many GPUs torch can use, asked in a process of its own: one that looked would keep memory on them."""
    code = "import json, torch; print(json.dumps(torch.cuda.device_count() if torch.cuda.is_available() else 0))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(json.loads(answer.stdout)) if answer.returncode == 0 else 0


def _cards(run: Run) -> list[str]:
    if run.device == "cpu":
        return []
    found = cards()
    if not found:
        return [
            "cards: nvidia-smi shows none; run on a machine with an NVIDIA GPU and its driver, or try the way with --device cpu --limit 1."
        ]
    known = KNOWN.get(run.model)
    if known is not None:
        wanted = known.gpu_GiB
        small = [
            f"card {k}: {card.name} has {card.total / 1024:.1f} GiB and {run.model} needs {wanted:g} GiB; use a larger card, or leave it "
            "out with CUDA_VISIBLE_DEVICES." for k, card in enumerate(found) if card.total / 1024 < wanted
        ]  # fmt: skip
        small += [
            f"card {k}: {card.free / 1024:.1f} GiB of {card.name} are free and {run.model} needs {wanted:g} GiB; end what runs on it "
            "(nvidia-smi), or leave it out with CUDA_VISIBLE_DEVICES."
            for k, card in enumerate(found) if card.free / 1024 < wanted <= card.total / 1024
        ]  # fmt: skip
        if small:
            return small
    if torch_gpus() < len(found):
        return [f"cards: the driver shows {len(found)} and torch can use fewer; install a torch that fits driver {found[0].driver}."]
    return []


def _weights(run: Run) -> tuple[list[str], int]:
    """(what cannot be had, bytes to download)."""
    missing, size = [], 0
    try:
        known = KNOWN.get(run.model)
        sources = known.sources() if known is not None else [run.model] if is_hub_id(run.model) else ModelChoice(model=run.model).sources
    except UserError as error:
        return [f"weights: {error}"], 0
    for source in sources:
        try:
            if not cached(source):
                size += download_bytes(source)
        except UserError as error:
            missing.append(f"weights: {error}")
    return missing, size


def output_bytes(tables: Sequence[Table], run: Run) -> float:
    """What a run writes into its folder, about: vision features (once for a data set and way of sampling), prediction files."""
    scores = scores_of(tables)
    kept = {score.dataset: frames_of(score, run) for score in scores if FEATURES in score.options}
    return MARGIN_BYTES + FEATURE_BYTES * sum(kept.values()) + FRAME_BYTES * sum(frames_of(score, run) for score in scores)


def _disk(tables: Sequence[Table], run: Run, to_download: int) -> list[str]:
    """What the disk lacks for a run; files that an earlier run left in its folder are not counted again."""
    from huggingface_hub import constants

    out, hub = Path(run.out), Path(constants.HF_HUB_CACHE)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    needs = [(out, max(output_bytes(tables, run) - written, MARGIN_BYTES), "what the run writes", "--output")]
    if to_download:
        needs.append((hub, to_download, "the weights", "HF_HOME"))
    missing: list[str] = []
    by_disk: dict[int, list[tuple[Path, float, str, str]]] = {}
    for folder, size, what, cure in needs:
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
        if not os.access(there, os.W_OK):
            missing.append(f"disk: {there} cannot be written; choose another place with {cure}.")
        by_disk.setdefault(there.stat().st_dev, []).append((there, size, what, cure))
    for parts in by_disk.values():
        wanted, free = sum(part[1] for part in parts), shutil.disk_usage(parts[0][0]).free
        if free < wanted:
            what = " and ".join(f"{shown_bytes(size)} for {part}" for _, size, part, _ in parts)
            cures = " or ".join(part[3] for part in parts)
            left = f"{parts[0][0]} has {shown_bytes(free)} left"
            missing.append(f"disk: {left} and {what} are needed; free it, or set {cures} to a larger disk.")
    return missing


def _judge(run: Run) -> list[str]:
    if run.judge == "local" or setting("OPENAI_API_KEY") or setting("OPENAI_BASE_URL"):
        return []
    return [
        "judge of table 8: OPENAI_API_KEY is not set; put it into .env, name a server of your own with OPENAI_BASE_URL, give --judge local "
        "--judge_model MODEL, or leave table 8 out with --tables."
    ]


def captions_lack() -> str:
    """What METEOR and SODA_c lack, with its cure; "" for nothing."""
    lacking = [] if shutil.which("java") else ["Java (install a Java runtime)"]
    lacking += [] if installed("pycocoevalcap") else [f"pycocoevalcap ({install_line('captions')})"]
    return " and ".join(lacking) + (" is not there" if lacking else "")
