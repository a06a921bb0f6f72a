"""A mixture of data sets from a config file, as one map-style data set. Same samples in the same order on every rank.

    mixture = build_mixture("configs/datasets/tvsum.json", tokenizer, frame_fps=1, max_num_frames=400, fold=0)
    batch = collate([mixture[0]], mixture.format.pad_id)

A config is a JSON list of entries:

    {"name": "tvsum", "type": "tvsum", "videos": FOLDER, "annotations": FILE, "weight": 1.0, "fps": 1, "max_num_frames": 400, ...}

type           tvsum | summe | hisum | hihd | captions | questions | grounding; decides which annotation keys the entry must have (KEYS)
videos         folder of video files; they are indexed once into `index` (default: videos_metadata.json beside the folder)
weight         how often a sample is used per epoch: 2 = twice, 0.5 = a seeded half of them, drawn anew each epoch (default 1)
fps            frames a second (default: build_mixture's frame_fps)
max_num_frames only the beginning of longer videos is used; of this and build_mixture's limit the smaller one holds

Paths are relative to the folder the command runs in. MMDuet's and Aha's own mixture files are read as well (aha/data/ancestors.py).
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_next import PUBLISHED, FrameShape

from aha.conversation import DEFAULT_SYSTEM_PROMPT, DuetFormat, Turn
from aha.core.files import read_json
from aha.core.folds import SPLITS
from aha.data import hisum, mmduetit, summe, tvsum
from aha.data.ancestors import translated
from aha.data.labels import keep_frames, label_arrays
from aha.data.samples import Problem, Sample
from aha.errors import UserError
from aha.eval.community import Split
from aha.video.library import VideoFolder, index_videos, list_videos
from aha.video.reader import VideoFrames, read_video

KEYS = {  # annotation files of each type of data set
    "tvsum": (),
    "summe": ("annotations",),
    "hisum": ("scores", "split", "metadata"),
    "hihd": ("annotations",),
    "captions": ("annotations",),
    "questions": ("annotations",),
    "grounding": ("annotations",),
}
OPTIONAL = ("index", "weight", "fps", "max_num_frames", "source")
OWN_OPTIONAL = {
    "tvsum": ("annotations", "info"),  # without them: datasets/tvsum, else the copy that ships
    "summe": ("h5",),  # names the videos of published splits
}
DEFAULT_MAX_NUM_FRAMES = 128
SHOWN_PROBLEMS = 10  # per data set; `python -m aha.data.check` shows all


def read_config(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a mixture config, checked. Raises UserError naming the entry and key that is wrong."""
    entries = read_json(path, "dataset config")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"dataset config {path} is not a list of data sets; see configs/datasets/tvsum.json for the form.")
    entries = translated(entries, path)
    for i, entry in enumerate(entries):
        where = f"dataset config {path}, entry {i}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is not an object; see configs/datasets/tvsum.json for the form.")
        kind = entry.get("type")
        if not isinstance(kind, str) or kind not in KEYS:
            raise UserError(f"{where}: type {str(kind)[:40]!r} is none of {', '.join(KEYS)}.")
        required = ("name", "type", "videos", *KEYS[kind])
        optional = OPTIONAL + OWN_OPTIONAL.get(kind, ())
        missing = [key for key in required if key not in entry]
        unknown = [key[:40] for key in entry if key not in (*required, *optional)]
        if missing or unknown:
            problem = f"has no {', '.join(missing)}" if missing else f"has the unknown key {', '.join(unknown)}"
            raise UserError(f"{where} {problem}; an entry of type {kind} needs {', '.join(required)} and may have {', '.join(optional)}.")
        for key in ("name", "source", *_paths(entry), "index"):
            if key in entry and not _is_text(entry[key], is_path=key not in ("name", "source")):
                kind_of_text = "text" if key in ("name", "source") else "path of a file or folder"
                raise UserError(f"{where}: {key} is {str(entry[key])[:40]!r}, not the {kind_of_text} that belongs there; repair the entry.")
        for key, default, low in (("weight", 1.0, 1e-6), ("fps", None, 1e-6), ("max_num_frames", None, 1)):
            value: Any = entry.setdefault(key, default)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits = is_number and low <= value < 1e6 and (low < 1 or value == int(value))
            if (value is not None or default is not None) and not fits:
                raise UserError(f"{where}: {key} is {str(value)[:40]}, not a {'whole number from 1 on' if low == 1 else 'number above 0'}.")
        entry.setdefault("index", str(Path(entry["videos"]).parent / "videos_metadata.json"))
    names = Counter(entry["name"] for entry in entries)
    if max(names.values()) > 1:
        raise UserError(f"dataset config {path}: the name {names.most_common(1)[0][0]!r} is used twice; give each entry its own name.")
    return entries


def _paths(entry: dict[str, Any]) -> list[str]:
    """The keys of an entry that name files and folders that must be there."""
    return ["videos", *KEYS[entry["type"]], *(key for key in OWN_OPTIONAL.get(entry["type"], ()) if key in entry)]


def _is_text(value: Any, is_path: bool) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        if is_path:
            os.stat(value)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError):  # not a path: too long, or with a character that no path may hold
        return False
    return True


def missing_files(path: str | os.PathLike) -> list[str]:
    """One line for every file or folder that a config names and that is not there, with where to get it."""
    lines = []
    for entry in read_config(path):
        for key in _paths(entry):
            target = Path(entry[key])
            if not target.exists() or (key == "videos" and not list_videos(target)):
                what = "videos" if key == "videos" else "annotations" if key == "annotations" else f"annotations ({key})"
                source = entry.get("source", "see datasets/README.md")
                lines.append(f"{entry['name']} {what}: {target} is not there; get it from {source}")
    return lines


def estimated_tokens(turns: Sequence[Turn], tokens_per_frame: int) -> int:
    """Tokens of a conversation: exact for the frames, about four characters each for the text."""
    return sum(turn.num_frames * tokens_per_frame + 5 + len(turn.content) // 4 for turn in turns)


@dataclass
class Source:
    """One data set of a mixture, loaded: its entry of the config, usable samples and what was left out."""

    entry: dict[str, Any]
    fps: float
    max_num_frames: int
    samples: list[Sample]
    problems: list[Problem]


class Mixture:
    """Samples of several data sets, with length and items as torch's DataLoader wants them; item i is what `aha.data.collate` takes.

    What is random (the wording of a request, the frames before a question, which half of a data set of weight 0.5) follows from
    (seed, epoch, sample) alone, so that every rank, worker and resumed run gets the same. Call `set_epoch` at the start of an epoch.
    """

    def __init__(self, sources: list[Source], tokenizer: Any, seed: int = 0, frame: FrameShape = PUBLISHED,
                 video_backend: str = "pyav", system_prompt: str = DEFAULT_SYSTEM_PROMPT):  # fmt: skip
        self.sources, self.frame, self.video_backend, self.system_prompt = sources, frame, video_backend, system_prompt
        self.format = DuetFormat(tokenizer, frame.tokens)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the samples of this epoch. The length is the same for every epoch."""
        self.epoch = epoch
        self._lengths: list[int] | None = None
        self.items: list[tuple[int, int]] = []  # (source, sample)
        for s, source in enumerate(self.sources):
            count, whole = len(source.samples), int(source.entry["weight"])
            self.items += [(s, i) for _ in range(whole) for i in range(count)]
            rest = round((source.entry["weight"] - whole) * count)
            drawn = random.Random(f"{self.seed}/{epoch}/{source.entry['name']}").sample(range(count), rest)
            self.items += [(s, i) for i in sorted(drawn)]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def problems(self) -> list[Problem]:
        """What was left out, of all data sets."""
        return [problem for source in self.sources for problem in source.problems]

    def trained_on_ids(self) -> list[str]:
        """Ids of all videos that training on this mixture sees, sorted."""
        return sorted({sample.video_id for source in self.sources for sample in source.samples})

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each item: exact for the frames, estimated for the text."""
        if self._lengths is None:
            self._lengths = [self.planned(i)[1] for i in range(len(self))]
        return self._lengths

    def planned(self, i: int) -> tuple[int, int]:
        """(frames, tokens) of item i, without reading its video."""
        _, turns = self._plan(i)
        frames = sum(turn.num_frames for turn in turns)
        return frames, estimated_tokens(turns, self.frame.tokens)

    def _rng(self, i: int) -> random.Random:
        s, n = self.items[i]
        return random.Random(f"{self.seed}/{self.epoch}/{self.sources[s].samples[n].sample_id}")

    def _plan(self, i: int) -> tuple[int, list[Turn]]:
        s, n = self.items[i]
        source = self.sources[s]
        first, turns = source.samples[n].conversation(source.fps, self._rng(i))
        return first, [Turn("system", self.system_prompt), *keep_frames(turns, source.max_num_frames)]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """input_ids, labels, informative_labels, relevance_labels [T]; frames uint8 [F,3,S,S]; sample_id, dataset, video_id,
        video_path, frame_fps, frame_times (seconds) and frame_indices (in the original video); `degraded`: whether a picture was made worse
        on purpose.

        Raises UserError, naming the file, where the video cannot be read although the index says it can.
        """
        return self.item(i)

    def item(self, i: int, reader: Callable[..., VideoFrames] = read_video) -> dict[str, Any]:
        """Item i with another reader: one that gives the frames' vision features instead of pixels, say."""
        s, n = self.items[i]
        source = self.sources[s]
        sample = source.samples[n]
        first, turns = self._plan(i)
        planned = sum(turn.num_frames for turn in turns)
        video = reader(
            sample.video_path,
            fps=source.fps,
            start=first / source.fps,
            max_frames=planned,
            size=self.frame.side,
            backend=self.video_backend,
        )
        read = len(video.frame_indices)
        if read < planned - 1:
            raise UserError(
                f"video {sample.video_path} gives {read} frames where {source.entry['index']} promises {planned} (sample "
                f"{sample.sample_id}); the file has changed since it was indexed: delete the index, it is made again."
            )
        if read < planned:
            turns = keep_frames(turns, read)
        turns, frames = sample.finish(turns, video, self._rng(i))
        rendered = self.format.render(turns)
        return {
            **label_arrays(rendered, turns),
            "frames": frames,
            "sample_id": sample.sample_id,
            "dataset": source.entry["name"],
            "video_id": sample.video_id,
            "video_path": sample.video_path,
            "frame_fps": source.fps,
            "frame_times": video.times,
            "frame_indices": video.frame_indices,
            "degraded": frames is not video.frames_TCHW,
        }

    def report(self, shown: int | None = SHOWN_PROBLEMS) -> str:
        """A line per data set, and a line for each thing that was left out (at most `shown` per data set)."""
        lines = []
        for source in self.sources:
            name, problems = source.entry["name"], source.problems
            lines.append(f"{name}: {len(source.samples)} samples, {len(problems)} left out")
            lines += [f"  left out: {problem.item}: {problem.reason}" for problem in problems[:shown]]
            if shown is not None and len(problems) > shown:
                lines.append(f"  ... and {len(problems) - shown} more (python -m aha.data.check lists all)")
        return "\n".join(lines)


def load_source(
    entry: Mapping[str, Any],
    fps: float,
    max_num_frames: int,
    split: str = "train",
    fold: int | Split | None = None,
    validation: bool = False,
) -> Source:
    """Index the videos of one config entry and make its samples."""
    entry = dict(entry)
    folder = VideoFolder(index_videos(entry["videos"], entry["index"], report=False))
    if entry["type"] == "tvsum":
        samples, problems = tvsum.load(entry, folder, split, fold, validation)
    elif entry["type"] == "summe":
        samples, problems = summe.load(entry, folder, split, fold)
    elif entry["type"] == "hisum":
        samples, problems = hisum.load_hisum(entry, folder, split)
    elif entry["type"] == "hihd":
        samples, problems = hisum.load_hihd(entry, folder, split)
    elif split in ("train", "all"):
        samples, problems = mmduetit.load(entry, folder, fps)
    else:
        samples, problems = [], []  # MMDuetIT has training data only
    return Source(entry, fps, max_num_frames, samples, problems)


def _index_once(entries: list[dict[str, Any]]) -> None:
    """Of the processes of a node the first one indexes the videos; the others wait and then find its files."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        for entry in entries:
            index_videos(entry["videos"], entry["index"], report=False)
    import torch.distributed as dist  # here, because the checks before a run need no torch

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def build_mixture(
    config_path: str | os.PathLike,
    tokenizer: Any,
    frame_fps: float = 1.0,
    max_num_frames: int | None = None,
    seed: int = 0,
    split: str = "train",
    fold: int | Split | None = None,
    validation: bool = False,
    limit: int | None = None,
    frame: FrameShape = PUBLISHED,
    video_backend: str = "pyav",
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
) -> Mixture:
    """Read a mixture config and every data set it names.

    frame_fps (frames a second): for entries that do not say theirs. max_num_frames: per sample, at most (an entry may say less). split:
    train, val, test or all. fold: which fifth of TVSum is held out (None: nothing is), or a published split; validation: keep the next
    fifth out of "train" too, for split "val". limit: at most this many samples of each data set, for smoke runs. frame: `config.frame` of
    the base.
    video_backend: who decodes. system_prompt: first words of every conversation.

    What is left out is printed once (by rank 0). Raises UserError for a bad config or annotation file, a missing folder, or where no sample
    is usable.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is none of {', '.join(SPLITS)}.")
    entries = read_config(config_path)
    _index_once(entries)
    sources = []
    for entry in entries:
        limits = [n for n in (entry["max_num_frames"], max_num_frames) if n is not None]
        frames = int(min(limits, default=DEFAULT_MAX_NUM_FRAMES))
        sources.append(load_source(entry, entry["fps"] or frame_fps, frames, split, fold, validation))
        if limit is not None:
            del sources[-1].samples[limit:]
    mixture = Mixture(sources, tokenizer, seed, frame, video_backend, system_prompt)
    if mixture.problems and int(os.environ.get("RANK", "0")) == 0:
        print(mixture.report(), file=sys.stderr)
    if len(mixture) == 0:
        example = ""
        if mixture.problems:
            problem = mixture.problems[0]
            example = f" ({len(mixture.problems)} were left out, the first: {problem.item}: {problem.reason})"
        raise UserError(f"dataset config {config_path} has no usable sample for split {split}{example}; check its folders.")
    return mixture
