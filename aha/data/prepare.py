"""What is there of a data set, what can be built from it, and what is left to fetch.

    python -m aha.data.prepare                 the state of all data sets
    python -m aha.data.prepare qvh             check one: annotations read as the programs read them, videos counted, missing ones listed

Builds what can be built: unpacks the TVSum archive, writes TVSum's two TSV files from `ydata-tvsum50.mat`, takes over files that Aha's
annotation package names differently, and indexes the videos (`videos_metadata.json`). Nothing is downloaded. The exit code is 0 only if the
data set can be used as it is, in whole.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
import zipfile
from pathlib import Path

from aha.core.files import atomic_path, read_csv, read_json, write_text
from aha.data.catalog import CATALOG, DataSet
from aha.errors import UserError, run_command
from aha.eval.annotations import TVSumVideo, read_tvsum
from aha.eval.benchmarks import BENCHMARKS
from aha.eval.data_hisum import read_metadata
from aha.video.library import VideoFolder, index_videos, list_videos, video_folder

ROOT = Path("datasets")


# ---------------------------------------------------------------- building


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """One file of an archive; extractall's own check of paths is missing in Python 3.11.0 to 3.11.3. Folders follow from files."""
    target = (folder / member.name).resolve()
    if not member.isfile():
        return
    if not target.is_relative_to(folder.resolve()):
        raise tarfile.TarError(f"it wants to write {member.name}, outside the folder")
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        shutil.copyfileobj(archive.extractfile(member), file)


def unpack_tvsum(folder: Path) -> list[str]:
    """Unpack the official archive (.tgz of .zip files) lying in the folder; what was done. Raises UserError for a damaged archive."""
    done = []
    archives = [path for pattern in ("*.tgz", "*.tar.gz") for path in folder.glob(pattern)]
    for path in archives:
        target = folder / "ydata-tvsum50-v1_1"
        if not target.exists():
            try:
                with tarfile.open(path) as archive:
                    for member in archive:
                        _extract(archive, member, folder)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise UserError(f"{path} cannot be unpacked ({error}); it is damaged or cut off, download it again.") from error
            done.append(f"unpacked {path.name}")
    for path in sorted(folder.glob("**/ydata-tvsum50-*.zip")):
        part = path.stem.removeprefix("ydata-tvsum50-")  # data, video, matlab, thumbnail
        if part in ("data", "video") and not (path.parent / part).exists():
            try:
                with zipfile.ZipFile(path) as archive:
                    names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
                    within = all(name.startswith(f"{part}/") for name in names)
                    archive.extractall(path.parent if within else path.parent / part, members=names)
            except (zipfile.BadZipFile, EOFError, OSError) as error:
                raise UserError(f"{path} cannot be unpacked ({error}); it is damaged or cut off, download it again.") from error
            done.append(f"unpacked {path.name}")
    return done


def write_tvsum_tables(videos: dict[str, TVSumVideo], folder: Path) -> None:
    """Write ydata-tvsum50-anno.tsv and -info.tsv of annotations that came from the .mat."""
    info = ["category\tvideo_id\ttitle\turl\tlength"]
    rows = []
    for video in videos.values():
        seconds = round(video.length_s)
        title = " ".join(video.title.split())  # a tab or line end would break the table
        url = f"https://www.youtube.com/watch?v={video.video_id}"
        info.append("\t".join((video.category, video.video_id, title, url, f"{seconds // 60}:{seconds % 60:02d}")))
        rows += [f"{video.video_id}\t{video.category}\t{','.join(map(str, scores))}" for scores in video.user_scores]
    write_text(folder / "ydata-tvsum50-anno.tsv", "\n".join(rows) + "\n")
    write_text(folder / "ydata-tvsum50-info.tsv", "\n".join(info) + "\n")


def build(data: DataSet, folder: Path) -> list[str]:
    """Make what can be made of what is there; what was done."""
    done = []
    if data.name == "tvsum":
        done += unpack_tvsum(folder)
        target = folder / "ydata-tvsum50-v1_1" / "data"
        mat = next(iter(sorted(folder.glob("**/ydata-tvsum50.mat"))), None)
        if mat is not None and not (target / "ydata-tvsum50-anno.tsv").exists():
            write_tvsum_tables(read_tvsum(mat), target)
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
    groups: dict[str, list] = {}
    for file in data.files:
        groups.setdefault(file.group or file.path, []).append(file)
    return [
        " or ".join(f"{folder / file.path} from {file.source}" for file in files)
        for files in groups.values()
        if not any((folder / file.path).is_file() for file in files)
    ]


def wanted_videos(data: DataSet, folder: Path) -> list[str]:
    """Names of the videos that the annotations speak of (each once, in their order), read as the programs read them."""
    if data.name == "tvsum":
        return list(read_tvsum(folder / data.files[0].path))
    if data.name in BENCHMARKS:
        path = next(folder / file.path for file in data.files if (folder / file.path).is_file())
        return list(dict.fromkeys(question.video for question in BENCHMARKS[data.name].read(path)))
    if data.name == "hisum":
        return list(read_metadata(folder / "annotations/metadata.csv").youtube)
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
    print(f"{data.title}\n  for {data.purpose}\n  size {data.size}; licence: {data.licence}")
    for action in build(data, folder) if folder.is_dir() else []:
        print(f"  {action}")
    problems = missing_files(data, folder)
    if problems:
        for problem in problems:
            print(f"  MISSING {problem}")
        print(f"  videos belong in {folder / data.videos} ({data.video_source})")
        return problems
    wanted = wanted_videos(data, folder)
    videos = video_folder(folder, data.videos)
    there = VideoFolder(dict.fromkeys(list_videos(videos), {}))
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
    """One line for each data set."""
    lines = []
    for data in CATALOG.values():
        folder = root / data.folder
        missing = missing_files(data, folder)
        videos = video_folder(folder, data.videos)
        count = len(list_videos(videos))
        state = f"{len(missing)} annotation files missing" if missing else "annotations there"
        lines.append(f"{data.name:<11} {state:<30} {count:>6} video files   {data.purpose}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m aha.data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", nargs="?", choices=list(CATALOG), metavar="DATASET", help=f"one of {', '.join(CATALOG)} (default: overview)"
    )
    parser.add_argument("--root", default=str(ROOT), metavar="DIR", help="folder of the data sets (default %(default)s)")
    parser.add_argument(
        "--no_index", action="store_true", help="do not open the videos (the index is then made by the first run that needs it)"
    )
    args = parser.parse_args(argv)
    if args.dataset is None:
        print(overview(Path(args.root)))
        return
    data = CATALOG[args.dataset]
    problems = prepare(data, Path(args.root), not args.no_index)
    if problems:
        raise UserError(
            f"{args.dataset} is not complete: {len(problems)} things are missing, as listed above; put them there and run this again."
        )


if __name__ == "__main__":
    run_command(main)
