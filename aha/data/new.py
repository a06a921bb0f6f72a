"""Your own videos as a data set: from a table of spans, or from TVSum-format files with any number of annotators and videos.

    aha data new spans.csv --videos films --output datasets/mine
    aha data new my-anno.tsv --info my-info.tsv --videos films --output datasets/mine

Writes TVSum's own layout under --output (annotations, titles, links to the videos), splits.json where there are two videos or more, and
mine.json, the mixture file for training. instructions/own_data.md goes on from there.

A table has the columns video, query, start, end (seconds) and may have score (0 to 1, or whole numbers 1 to 5; without it 1) and annotator.
What nobody marked counts as unimportant. A video with several queries becomes several entries: NAME, NAME_q2, ...
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aha.core.checked import number
from aha.core.files import check_output, finish_output, open_output, read_csv, write_json, write_text
from aha.core.folds import folds
from aha.errors import UserError, run_command
from aha.eval.annotations import read_tvsum
from aha.video.library import VIDEO_SUFFIXES
from aha.video.reader import probe

MOST_FOLDS = 5


@dataclass(frozen=True)
class Entry:
    """A video with one query. ratings: one row of whole numbers 1 to 5 for each annotator [A, n_frames]."""

    name: str
    video: Path
    query: str
    seconds: float
    ratings: np.ndarray


# ---- a table of spans ----


@dataclass(frozen=True)
class Span:
    start: float
    end: float
    score: float
    line: int


def read_spans(path: Path) -> dict[tuple[str, str], dict[str, list[Span]]]:
    """{(video, query): {annotator: spans}} in the table's order. Raises UserError naming the line."""
    found: dict[tuple[str, str], dict[str, list[Span]]] = {}
    for line, row in read_csv(path, ("video", "query", "start", "end"), "table of spans"):
        where = f"{path}:{line}"
        values = {}
        for key in ("start", "end", "score"):
            text = (row.get(key) or "").strip()
            try:
                values[key] = number(float(text), where, key, 0.0) if text or key != "score" else 1.0
            except ValueError as error:
                raise UserError(f"{where}: {key} is {text[:40]!r}, not a number; write seconds like 12.5.") from error
        if values["end"] <= values["start"]:
            raise UserError(f"{where}: the span ends ({values['end']:g} s) before it starts ({values['start']:g} s); repair the row.")
        if not row["video"].strip() or not row["query"].strip():
            raise UserError(f"{where}: video or query is empty; fill both in.")
        annotators = found.setdefault((row["video"].strip(), row["query"].strip()), {})
        annotators.setdefault((row.get("annotator") or "").strip(), []).append(Span(values["start"], values["end"], values["score"], line))
    if not found:
        raise UserError(f"table of spans {path} has no rows below its header; add one for each span.")
    return found


def entries_of_spans(path: Path, videos: Path) -> list[Entry]:
    table = read_spans(path)
    scores = [span.score for annotators in table.values() for spans in annotators.values() for span in spans]
    one_to_five = max(scores) > 1
    if one_to_five and (wrong := [s for s in scores if s not in (1, 2, 3, 4, 5)]):
        raise UserError(f"{path}: scores are 0 to 1, or whole numbers 1 to 5 throughout; {wrong[0]:g} is neither.")
    entries = []
    used: dict = {}
    for (name, query), annotators in table.items():
        video = find_video(videos, name, str(path))
        info = probe(video)
        frames = max(round(info.duration * info.fps), 1)
        rows = []
        for spans in annotators.values():
            row = np.ones(frames, np.int64)
            for span in spans:
                if span.start >= info.duration:
                    raise UserError(
                        f"{path}:{span.line}: the span starts at {span.start:g} s and {video.name} ends at {info.duration:.1f} s."
                    )
                rating = round(span.score) if one_to_five else 1 + round(4 * span.score)
                first, last = round(span.start * info.fps), max(round(span.end * info.fps), round(span.start * info.fps) + 1)
                row[first:last] = np.maximum(row[first:last], rating)
            rows.append(row)
        key = re.sub(r"[^\w.-]", "_", video.stem)
        used[key] = used.get(key, 0) + 1
        entries.append(Entry(key if used[key] == 1 else f"{key}_q{used[key]}", video, query, info.duration, np.stack(rows)))
    return entries


def find_video(folder: Path, name: str, where: str) -> Path:
    """A video of the folder by its file name, with or without suffix. Raises UserError."""
    for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in sorted(VIDEO_SUFFIXES))):
        if candidate.is_file():
            return candidate
    raise UserError(f"{where}: video {name} is not in {folder}; check the name, or --videos.")


# ---- TVSum-format files ----


def entries_of_tvsum(path: Path, info: Path | None, videos: Path) -> list[Entry]:
    found = read_tvsum(path, info)
    return [
        Entry(v.video_id, find_video(videos, v.video_id, str(path)), v.title, v.length_s, v.user_scores) for v in found.values()
    ]  # fmt: skip


# ---- the folder ----


def write_data_set(entries: Sequence[Entry], output: Path) -> list[str]:
    """Write the data set; returns lines about it. Raises UserError where a link cannot be made or two entries have one name."""
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two videos are called {twice}; rename one of the files.")
    made_here, flag = (output / "mine.json").is_file(), "name one that this command made"
    check_output(output, made_here, flag)
    folder = output / "video"
    for entry in entries:
        link = link_of(entry, folder)
        if link.is_dir() or (link.exists() and not link.is_symlink()):
            raise UserError(f"{link} is a file of yours, where a link to {entry.video} is to be made; choose another --output.")
    open_output(output, made_here, flag)
    folder.mkdir(exist_ok=True)
    info, rows = ["category\tvideo_id\ttitle\turl\tlength"], []
    for entry in entries:
        target = os.path.relpath(entry.video.resolve(), folder.resolve())  # read before a link that leads there is taken away
        link = link_of(entry, folder)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        minutes, seconds = divmod(entry.seconds, 60)
        title = " ".join(entry.query.split())  # tabs and line ends would be other columns and rows
        info.append(f"own\t{entry.name}\t{title}\town\t{int(minutes)}:{seconds:09.6f}")
        rows += [f"{entry.name}\town\t{','.join(map(str, row))}" for row in entry.ratings]
    write_text(output / "ydata-tvsum50-info.tsv", "\n".join(info) + "\n")
    write_text(output / "ydata-tvsum50-anno.tsv", "\n".join(rows) + "\n")
    write_json(output / "mine.json", [{
        "name": "tvsum", "type": "tvsum", "videos": str(folder), "annotations": str(output / "ydata-tvsum50-anno.tsv"),
        "info": str(output / "ydata-tvsum50-info.tsv"), "index": str(output / "videos_metadata.json"), "weight": 1.0, "fps": 1,
        "max_num_frames": 400, "source": "aha data new",
    }])  # fmt: skip
    annotators = sorted({len(entry.ratings) for entry in entries})
    said = [f"{len(entries)} entries, {' or '.join(map(str, annotators))} annotators a video -> {output}"]
    splits = splits_of({entry.name: str(entry.video) for entry in entries})
    if splits:
        write_json(output / "splits.json", splits)
        said.append(f"{len(splits)} splits, each video held out once -> {output / 'splits.json'}")
    else:
        (output / "splits.json").unlink(missing_ok=True)
        said.append("one video cannot be split: train on it, and test on others")
    finish_output(output)
    return said


def link_of(entry: Entry, folder: Path) -> Path:
    return folder / f"{entry.name}{entry.video.suffix.lower()}"


def splits_of(files: Mapping[str, str]) -> list[dict[str, list[str]]]:
    """{entry: its file} -> as many splits as there are files, at most five; a file with several queries is on one side. [] for one file."""
    names = {file: sorted(name for name, its in files.items() if its == file) for file in dict.fromkeys(files.values())}
    if len(names) < 2:
        return []
    held_out = folds(dict.fromkeys(names, "own"), min(MOST_FOLDS, len(names)))
    return [
        {"test_keys": sorted(n for f in test for n in names[f]), "train_keys": sorted(n for f in names if f not in test for n in names[f])}
        for test in held_out
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="aha data new", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="table of spans (.csv), or ratings in TVSum's format (-anno.tsv, .mat)")
    parser.add_argument("--info", metavar="TSV", help="titles and lengths of a TSV (default: the -info.tsv beside it)")
    parser.add_argument("--videos", required=True, metavar="DIR", help="folder of the video files; they are linked, not copied")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the data set")
    args = parser.parse_args(argv)
    source, videos, output = Path(args.source), Path(args.videos), Path(args.output)
    if not videos.is_dir():
        raise UserError(f"--videos {videos} is no folder; give the one that holds the video files.")
    is_table = source.suffix.lower() == ".csv"
    entries = entries_of_spans(source, videos) if is_table else entries_of_tvsum(source, Path(args.info) if args.info else None, videos)
    print("\n".join(write_data_set(entries, output)))


if __name__ == "__main__":
    run_command(main)
