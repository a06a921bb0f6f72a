"""What is there of a data set, what can be built from it, and what is left to fetch.

    python -m aha.data.prepare                 the state of all data sets
    python -m aha.data.prepare qvh             check one: annotations read as the programs read them, videos counted, missing ones listed

Builds what can be built: unpacks the TVSum archive, writes TVSum's two TSV files from `ydata-tvsum50.mat`, takes over files that Aha's
annotation package names differently, and indexes the videos (`videos_metadata.json`). Nothing is downloaded. The exit code is 0 only if the
data set can be used as it is, in whole.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tarfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from aha.core.files import atomic_path, check_output, read_csv, read_json, write_text
from aha.data.catalog import CATALOG
from aha.errors import UserError, run_command
from aha.eval import MODULES, load_task
from aha.eval.annotations import TVSumVideo, find_tvsum, read_tvsum
from aha.eval.task import DATA, DataSet
from aha.video.library import VideoFolder, index_videos, list_videos, video_folder

UNPACKED_BYTES, UNPACKED_FILES = 8 << 30, 20_000  # of one archive, at most; TVSum's has 0.7 GB


# ---------------------------------------------------------------- building


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, bytes and content of each file in an archive. Folders follow from files; links and devices are no files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and not entry.filename.startswith("__MACOSX"):
                    yield entry.filename, entry.file_size, partial(archive.open, entry)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, member.size, partial(_content, archive, member)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None  # `member` is a file
    return content


def unpack(path: Path, folder: Path) -> int:
    """Put the files of an archive (.tgz, .zip) into the folder; how many were written. A file that is there with the same content is left
    alone, so that the same command finishes what a kill cut off. Raises UserError for a damaged or malicious archive."""
    written, room, files = 0, UNPACKED_BYTES, UNPACKED_FILES
    try:
        for name, size, content in _members(path):
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise UserError(f"{path} wants to write {name[:80]}, outside the folder; it is not the official archive, remove it.")
            room, files = room - size, files - 1
            if min(room, files) < 0:
                what = f"{UNPACKED_BYTES >> 30} GiB or {UNPACKED_FILES:,} files"
                raise UserError(f"{path} unpacks to more than {what}; it is not the official archive, remove it.")
            if not _is_there(target, size, content):
                _write(target, content)
                written += 1
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); it is damaged or cut off, download it again.") from error
    return written


def _is_there(target: Path, size: int, content: Callable[[], IO[bytes]]) -> bool:
    if not target.is_file() or target.stat().st_size != size:
        return False
    with target.open("rb") as own, content() as packed:
        while chunk := packed.read(1 << 20):
            if own.read(len(chunk)) != chunk:
                return False
    return True


def _write(target: Path, content: Callable[[], IO[bytes]]) -> None:
    """Whole or not at all, as atomic_path does, but under a name that the next run takes up if this one is killed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.unpacking")
    try:
        with beside.open("wb") as file, content() as packed:
            shutil.copyfileobj(packed, file)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def unpack_tvsum(folder: Path) -> list[str]:
    """Unpack the official archive (.tgz of .zip files) lying in the folder; what was done."""
    done = [(path, unpack(path, folder)) for pattern in ("*.tgz", "*.tar.gz") for path in sorted(folder.glob(pattern))]
    for path in sorted(folder.glob("**/ydata-tvsum50-*.zip")):
        part = path.stem.removeprefix("ydata-tvsum50-")  # data, video, matlab, thumbnail
        if part in ("data", "video"):
            within = _is_within(path, part)
            done.append((path, unpack(path, path.parent if within else path.parent / part)))
    return [f"unpacked {path.name} ({count} files)" for path, count in done if count]


def _is_within(path: Path, part: str) -> bool:
    """Whether the archive's files lie in a folder of the part's name already."""
    try:
        return all(name.startswith(f"{part}/") for name, _, _ in _members(path))
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); it is damaged or cut off, download it again.") from error


def tvsum_tables(videos: dict[str, TVSumVideo]) -> dict[str, str]:
    """ydata-tvsum50-info.tsv and -anno.tsv, as text, of annotations that came from the .mat."""
    info = ["category\tvideo_id\ttitle\turl\tlength"]
    rows = []
    for video in videos.values():
        seconds = round(video.length_s)
        title = " ".join(video.title.split())  # a tab or line end would break the table
        url = f"https://www.youtube.com/watch?v={video.video_id}"
        info.append("\t".join((video.category, video.video_id, title, url, f"{seconds // 60}:{seconds % 60:02d}")))
        rows += [f"{video.video_id}\t{video.category}\t{','.join(map(str, scores))}" for scores in video.user_scores]
    return {"info": "\n".join(info) + "\n", "anno": "\n".join(rows) + "\n"}


def write_tables(tables: dict[str, str], folder: Path) -> list[Path]:
    """The paths written; -anno.tsv is the last, because it is the one that is looked for."""
    paths = [folder / f"ydata-tvsum50-{kind}.tsv" for kind in tables]
    for path, text in zip(paths, tables.values()):
        write_text(path, text)
    return paths


def build(data: DataSet, folder: Path) -> list[str]:
    """Make what can be made of what is there; what was done."""
    done = []
    if data.name == "tvsum":
        done += unpack_tvsum(folder)
        target = folder / "ydata-tvsum50-v1_1" / "data"
        mat = next(iter(sorted(folder.glob("**/ydata-tvsum50.mat"))), None)
        if mat is not None and not (target / "ydata-tvsum50-anno.tsv").exists():
            write_tables(tvsum_tables(read_tvsum(mat)), target)
            done.append(f"wrote ydata-tvsum50-anno.tsv and -info.tsv from {mat.name}")
    if data.name == "hisum":
        # names in Aha's annotation package and in the repository of Mr.HiSum
        for ours, others in (("metadata.csv", ("mr_hisum_metadata.csv",)), ("mr_hisum_split.json", ("split.json",))):
            for other in others:
                source, target = folder / "annotations" / other, folder / "annotations" / ours
                if source.is_file() and not target.exists():
                    with atomic_path(target) as temporary:
                        shutil.copyfile(source, temporary)
                    done.append(f"copied {other} to {ours}")
    return done


# ---------------------------------------------------------------- checking


def missing_files(data: DataSet, folder: Path) -> list[str]:
    """One sentence for each annotation file (or group of alternatives) that is not there."""
    if data.name == "tvsum" and find_tvsum(folder if folder.is_dir() else None).is_file():
        return []  # another published form, or the copy that ships
    groups: dict[str, list] = {}
    for file in data.files:
        groups.setdefault(file.group or file.path, []).append(file)
    return [
        " or ".join(f"{folder / file.path} from {file.source}" for file in files)
        for files in groups.values()
        if not any((folder / file.path).exists() for file in files)
    ]


def wanted_videos(data: DataSet, folder: Path) -> list[str]:
    """Names of the videos that the annotations speak of (each once, in their order), read as the programs read them."""
    if data.name in MODULES:
        return list(dict.fromkeys(item.video for item in load_task(data.name).items(folder, "all")))
    if data.name == "hihd":
        return [row["youtube_id"] for _, row in read_csv(folder / data.files[0].path, ("youtube_id",), "HIHD metadata")]
    names: list[str] = []
    for file in data.files:  # MMDuetIT: {video: ...} or [{"video_uid": ...}]
        document = read_json(folder / file.path, f"{data.name} annotations")
        names += (
            list(document)
            if isinstance(document, dict)
            else [str(entry.get("video_uid", "")) for entry in document if isinstance(entry, dict)]
        )
    return list(dict.fromkeys(names))


def prepare(data: DataSet, root: Path, index: bool) -> list[str]:
    """Build, check and explain one data set; returns what is missing (nothing: it can be used)."""
    folder = root / data.folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{data.title}\n  for {data.purpose}\n  size {data.size}; licence: {data.licence}")
    for action in build(data, folder):
        print(f"  {action}")
    problems = missing_files(data, folder)
    if problems:
        for problem in problems:
            print(f"  MISSING {problem}")
        print(f"  videos belong in {folder / data.videos} ({data.video_source})")
        return problems
    wanted = wanted_videos(data, folder)
    videos = video_folder(folder, data.videos)
    there = VideoFolder.below(videos)
    absent = [name for name in wanted if there.locate(name)[0] is None]
    print(f"  annotations read: {len(wanted)} videos wanted, {len(wanted) - len(absent)} of them in {videos}")
    if index and videos.is_dir() and len(absent) < len(wanted):
        facts = index_videos(videos, folder / "videos_metadata.json")
        broken = [name for name, entry in facts.items() if not entry["valid"]]
        print(f"  index: {len(facts)} files, {sum(e['duration'] for e in facts.values()) / 3600:.1f} h, {len(broken)} unreadable")
    listing = folder / "missing_videos.txt"
    if absent:
        write_text(listing, "\n".join(absent) + "\n")
        print(f"  MISSING {len(absent)} videos from {data.video_source}; their names are in {listing}")
        return [f"{len(absent)} videos (listed in {listing})"]
    listing.unlink(missing_ok=True)
    print("  complete")
    return []


def overview(root: Path) -> str:
    """Each data set: what is there, and what it is for."""
    lines = []
    for data in CATALOG.values():
        folder = root / data.folder
        missing = missing_files(data, folder)
        videos = video_folder(folder, data.videos)
        count = len(list_videos(videos))
        state = f"{len(missing)} annotation files missing" if missing else "annotations there"
        lines.append(f"{data.name:<18} {state:<30} {count:>6} video files")
        lines += textwrap.wrap(data.purpose, 80, initial_indent=" " * 19, subsequent_indent=" " * 19)
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m aha.data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", nargs="?", choices=list(CATALOG), metavar="DATASET", help=f"one of {', '.join(CATALOG)} (default: overview)"
    )
    parser.add_argument("--root", default=str(DATA), metavar="DIR", help="folder of the data sets (default %(default)s)")
    parser.add_argument(
        "--no_index", action="store_true", help="do not open the videos (the index is then made by the first run that needs it)"
    )
    args = parser.parse_args(argv)
    if args.dataset is None:
        print(overview(Path(args.root)))
        return
    data = CATALOG[args.dataset]
    check_output(Path(args.root) / data.folder, overwrite=True)
    problems = prepare(data, Path(args.root), not args.no_index)
    if problems:
        raise UserError(
            f"{args.dataset} is not complete: {len(problems)} things are missing, as listed above; put them there and run this again."
        )


if __name__ == "__main__":
    run_command(main)
