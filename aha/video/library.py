"""The index of a folder of videos: fps, duration, number of frames, readable or not. Made on the first run, then re-used.

    python -m aha.video.library datasets/tvsum/videos      # lists what cannot be read; writes videos_metadata.json in the folder

The file maps each video's path below the folder to {"duration": seconds, "fps", "path", "frame_count", "valid", "error", "size": bytes,
"mtime_ns"} ("error" only where valid is false). An entry is re-used while size and time of change of the video are the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from aha.core.files import read_json, write_json
from aha.core.flags import check_outputs
from aha.errors import UserError, run_command
from aha.video.reader import probe

# In capitals or not; where a folder holds one video in two of them and the annotations name none, the first one here is taken.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".m2ts", ".3gp", ".ogv")


def index_videos(
    folder: str | os.PathLike,
    cache: str | os.PathLike | None = None,
    *,
    paths: Iterable[str] | None = None,
    workers: int | None = None,
    report: bool = True,
) -> dict[str, dict[str, Any]]:
    """Facts of every video of a folder and the folders in it: {path below the folder (with /): entry}.

    cache     where the index is kept (None: videos_metadata.json in the folder; where that cannot be written, a warning, and no cache)
    paths     look only at these (paths below the folder); a missing one gets an entry that is not valid
    workers   processes (None: the cores of the machine, at most 8; 1 for few videos)
    report    list newly found videos that cannot be read (callers that report what they leave out themselves say False)

    Entry: "duration" (s), "fps", "path", "frame_count", "valid", "size" (bytes), "mtime_ns"; for a video that cannot be read valid is
    false, the numbers are 0, and "error" says why. Newly found ones are listed once on standard error. Raises UserError where the folder
    or the given cache cannot be read or written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"video folder {folder} does not exist; put the videos there (datasets/README.md says where to get them).")
    cache_path = Path(cache) if cache is not None else folder / "videos_metadata.json"
    known = read_json(cache_path, "video index") if cache_path.exists() else {}
    if not isinstance(known, dict):
        raise UserError(f"video index {cache_path} must hold one JSON object, not a {type(known).__name__}; delete it to make it anew.")
    names = sorted(paths) if paths is not None else list_videos(folder)

    index: dict[str, dict[str, Any]] = {}
    new: list[str] = []
    for name in names:
        entry: Any = known.get(name)
        if _is_current(entry, folder / name):
            index[name] = {**entry, "path": str(folder / name)}
        else:
            new.append(name)
    index |= zip(new, _probe_all([str(folder / name) for name in new], workers))
    if new or len(known) != len(index):
        unreadable = [f"  {name}: {index[name]['error']}" for name in new if not index[name]["valid"]]
        if unreadable and report:
            headline = f"{len(unreadable)} of {len(names)} videos in {folder} cannot be read and are left out:"
            print(headline, *unreadable, sep="\n", file=sys.stderr)
        _save(cache_path, known if paths is not None else {}, index, required=cache is not None)
    return {name: index[name] for name in names}


def list_videos(folder: str | os.PathLike) -> list[str]:
    """Paths (with /, sorted) of the video files below a folder."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def video_folder(root: Path, name: str) -> Path:
    """The folder of a data set's videos below its root: `name`, or where it is not there `videos` or `video`."""
    return next((root / inside for inside in (name, "videos", "video") if (root / inside).is_dir()), root / name)


class VideoFolder:
    """Finds videos by the names that annotations give them: with another suffix or none, in folders or without them.

    index: what `index_videos` says of each path below the folder; `locate` needs its keys only.
    """

    def __init__(self, index: Mapping[str, Mapping[str, Any]]):
        self.index = index
        self._by_place: dict[str, list[str]] = {}  # path without suffix -> paths
        self._by_name: dict[str, list[str]] = {}  # the same without its folders
        for path in sorted(index):
            self._by_place.setdefault(_without_suffix(path), []).append(path)
            self._by_name.setdefault(PurePosixPath(_without_suffix(path)).name, []).append(path)

    @classmethod
    def below(cls, folder: str | os.PathLike) -> VideoFolder:
        """The videos of a folder by name alone, none opened: for `locate`."""
        return cls(dict.fromkeys(list_videos(folder), {}))

    def locate(self, name: str) -> tuple[str | None, str]:
        """(path below the folder, "") or (None, why there is none)."""
        place = _without_suffix(name)
        suffix = name[len(place) :].lower()
        found = self._by_place.get(place) or self._by_name.get(PurePosixPath(place).name) or []
        found = [path for path in found if path.lower().endswith(suffix)] or found
        if len({_without_suffix(path) for path in found}) > 1:
            return None, f"several files have this name ({', '.join(found[:3])})"
        if not found:
            return None, "no such video file"
        return min(found, key=lambda path: VIDEO_SUFFIXES.index(PurePosixPath(path).suffix.lower())), ""

    def find(self, name: str) -> tuple[Mapping[str, Any] | None, str]:
        """(facts of the video, "") or (None, why there is none). Facts: path, duration (s), fps, frame_count."""
        path, reason = self.locate(name)
        if path is None:
            return None, reason
        facts = self.index[path]
        return (facts, "") if facts["valid"] else (None, facts.get("error") or "the video file cannot be read")


def _without_suffix(name: str) -> str:
    """A suffix counts only if it is one: ids may hold dots ("j7rJstUseKg_60.0_210.0")."""
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in VIDEO_SUFFIXES else name


def _is_current(entry: Any, path: Path) -> bool:
    """True where `entry` was made from the file as it is now."""
    numbers: list[Any] = [entry.get(key) for key in ("duration", "fps", "frame_count")] if isinstance(entry, dict) else []
    if not numbers or not all(type(number) in (int, float) and 0 <= number < float("inf") for number in numbers):
        return False
    if entry.get("valid") is not True and not (entry.get("valid") is False and isinstance(entry.get("error"), str)):
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    return entry.get("size") == status.st_size and entry.get("mtime_ns") == status.st_mtime_ns


def _probe_all(paths: list[str], workers: int | None) -> list[dict[str, Any]]:
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if len(paths) >= 16 else 1
    progress = {"total": len(paths), "desc": "indexing videos", "unit": "video", "disable": len(paths) < 2}
    if workers == 1:
        return [probe_entry(path) for path in tqdm(paths, **progress)]
    # spawn: the caller may hold threads (a tokenizer, OpenMP), which do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(tqdm(pool.map(probe_entry, paths, chunksize=4), **progress))


def probe_entry(path: str) -> dict[str, Any]:
    """The index entry of one video; what goes wrong with the file becomes its "error"."""
    entry: dict[str, Any] = {"duration": 0.0, "fps": 0.0, "path": path, "frame_count": 0, "valid": False, "size": 0, "mtime_ns": 0}
    try:
        status = os.stat(path)
        entry |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        info = probe(path)
    except OSError as error:
        return entry | {"error": f"{path}: {error.strerror}"}
    except UserError as error:
        return entry | {"error": str(error)}
    if info.cut_off:
        return entry | {"error": f"video {path} is cut off or damaged after {info.frame_count} frames; download it again."}
    return entry | {"duration": info.duration, "fps": info.fps, "frame_count": info.frame_count, "valid": True}


def _save(cache_path: Path, known: dict[str, Any], index: dict[str, dict[str, Any]], required: bool) -> None:
    try:
        write_json(cache_path, dict(sorted({**known, **index}.items())))
    except UserError as error:
        if required:
            raise
        print(f"the video index is not kept and will be made again next time: {error}", file=sys.stderr)  # a read-only data disk


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Index a folder of videos: fps, duration (seconds), number of frames, readable or not.")
    parser.add_argument("folder", help="folder with videos, and folders of them")
    parser.add_argument("--output", help="index file to write (default: videos_metadata.json in the folder)")
    parser.add_argument("--workers", type=int, help="processes (default: the cores of the machine, at most 8)")
    arguments = parser.parse_args(argv)
    check_outputs(arguments, "output")
    index = index_videos(arguments.folder, arguments.output, workers=arguments.workers)
    valid = [entry for entry in index.values() if entry["valid"]]
    print(f"{len(valid)} of {len(index)} videos can be read, {sum(entry['duration'] for entry in valid) / 3600:.2f} hours")


if __name__ == "__main__":
    run_command(main)
