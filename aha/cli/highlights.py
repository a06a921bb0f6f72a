"""`aha highlights`: segments, highlights, reel and report of one video, of a folder of them, or of a list.

    aha highlights talk.mp4 --query "how the tyre is repaired" --model mmduet-7b --budget 0.15 --output outputs/talk
    aha highlights films/ --query "a goal" --query "a foul" --model mmduet-7b --output outputs/films     # killed? the same command goes on
    aha highlights LIST.csv --model mmduet-7b --output outputs/list                # columns video, query
    aha highlights talk.mp4 --scores outputs/talk/scores.json --top 5 --output outputs/five       # cut again, without a model

Without --model the embedded demo model is used, which knows only simple coloured shapes (and says so).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aha.api import EncodedVideo, Highlighter, checked_query, queries_of
from aha.cli import commands
from aha.core import checked
from aha.core.addresses import local_file
from aha.core.environment import held
from aha.core.files import check_output, finish_output, open_output, read_csv, read_json, write_json
from aha.core.flags import add_flags, finite, from_args, positive
from aha.core.fusion import fusion_of
from aha.core.prediction import read_predictions
from aha.errors import UserError
from aha.highlights.evidence import Evidence
from aha.highlights.index import write_index
from aha.highlights.result import BUDGET, Options, Result, check_apart, file_of, find_highlights, is_result, read_track, write_result
from aha.highlights.timelines import check_timelines, kinds_of
from aha.results.table import wrapped
from aha.scoring.model_choice import ModelChoice
from aha.video.library import VIDEO_SUFFIXES, list_videos
from aha.video.reader import BACKENDS, probe

if TYPE_CHECKING:
    from aha.scoring.offline import OpenVideo

SETTINGS = "run.json"  # of a run over several videos: what it was made with
DONE = "summary.json"  # written last into the folder of a video and query


@dataclass(frozen=True)
class Job:
    """A video, what is looked for in it, and the folder of each answer."""

    video: Path
    queries: tuple[str, ...]
    folders: tuple[Path, ...]

    def is_done(self, query: str, folder: Path) -> bool:
        """Whether an earlier run finished this answer, to the same query and of the same file."""
        if not (folder / DONE).is_file():
            return False
        summary = read_json(folder / DONE, "summary of an earlier run")
        return (
            isinstance(summary, dict) and summary.get("query") == query and summary.get("file", file_of(self.video)) == file_of(self.video)
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "video", nargs="+", metavar="VIDEO", help="video files, folders of them, or a table LIST.csv with the columns video and query"
    )
    parser.add_argument("--query", action="append", metavar="TEXT", help="what to look for, in plain words; may be repeated")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write into; with several videos or queries one folder in it for each"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty; make finished videos again")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--budget", type=finite, metavar="SHARE", help=f"length of the reel as a share of the video, 0 to 1 (default {BUDGET:g})"
    )
    amount.add_argument("--top", type=int, metavar="N", help="the N best moments that differ")
    amount.add_argument("--min_score", type=finite, metavar="X", help="every segment with at least this mean score")
    parser.add_argument("--frame_fps", type=positive, default=1.0, help="frames a second that are scored (default %(default)s)")
    parser.add_argument(
        "--max_num_frames", type=int, metavar="N", help="at most N frames; of a longer video N spread over the whole of it (default: all)"
    )
    parser.add_argument("--video_backend", choices=tuple(BACKENDS), default="pyav", help="who decodes the video (default %(default)s)")
    parser.add_argument(
        "--scores", metavar="FILE", help="cut again from these scores (scores.json of an earlier run, or any prediction file); no model"
    )
    parser.add_argument(
        "--keep_features", metavar="DIR", help="keep what the vision tower sees there: a later query on the video, or run, starts from it"
    )
    parser.add_argument(
        "--segmentation",
        choices=("online", "kernel", "uniform"),
        default="online",
        help="online: causal, as in aha watch; kernel: kernel temporal segmentation; uniform: --shot_seconds (default %(default)s)",
    )
    parser.add_argument("--shot_seconds", type=positive, default=2.0, help="length of uniform shots in seconds (default %(default)s)")
    parser.add_argument(
        "--smooth_frames", type=int, default=3, help="window of the score smoothing in scored frames, odd; 1 = none (default %(default)s)"
    )
    parser.add_argument(
        "--smoothing", choices=("centred", "causal"), default="centred", help="centred looks ahead by half the window (default %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="choose moments where the model sees no clear one, too")
    parser.add_argument("--titles", action="store_true", help="burn rank and query into the reel")
    parser.add_argument("--curve_video", action="store_true", help="also write curve.mp4: the whole video, its curve moving below it")
    parser.add_argument("--no_reel", action="store_true", help="do not write reel.mp4")
    parser.add_argument(
        "--export", metavar="A,B", help="the moments for editing programs as reel.A, reel.B: otio, edl, fcpxml; exact to the frame"
    )
    parser.add_argument("--speak", action="store_true", help="the model adds a sentence to each highlight")
    commands.add_score_flags(parser)
    add_flags(parser.add_argument_group("model"), ModelChoice)


def options_of(args: argparse.Namespace) -> Options:
    return Options(
        fusion=fusion_of(args),
        smooth_frames=args.smooth_frames,
        smoothing=args.smoothing,
        segmentation=args.segmentation,
        online=commands.online_of(args),
        shot_seconds=args.shot_seconds,
        budget=args.budget,
        top=args.top,
        min_score=args.min_score,
        force=args.force,
    )


# ---- which videos ----


def jobs_of(sources: list[str], queries: list[str], output: Path) -> tuple[list[Job], bool]:
    """The videos with their queries and folders; whether they are several (then `output` holds a folder for each, and an index).

    Raises UserError: nothing there, an address, a list whose video does not exist, no query.
    """
    asked: dict[Path, list[str]] = {}
    several = len(sources) > 1
    for source in sources:
        path = local_file(source)
        if path.suffix.lower() == ".csv":
            several = True
            if queries:
                raise UserError(f"{path} has a query for each video; leave --query out.")
            rows = read_csv(path, ("video", "query"), "list of videos")
            if not rows:
                raise UserError(f"list of videos {path} has no row below its header; add one for each video and query.")
            for line, row in rows:
                video = path.parent / local_file(row["video"].strip())
                if not video.is_file():
                    why = "is a folder" if video.is_dir() else "does not exist"
                    raise UserError(f"{path}:{line}: video {video} {why}; paths in a list start from its own folder.")
                texts = asked.setdefault(video, [])
                try:
                    text = checked_query(row["query"])
                except UserError as error:
                    raise UserError(f"{path}:{line}: {error}") from error
                if text not in texts:
                    texts.append(text)
            continue
        if path.is_dir():
            several = True
            found = [path / name for name in list_videos(path) if not is_result(path / name)]
            if not found:
                raise UserError(f"folder {path} holds no video ({', '.join(VIDEO_SUFFIXES)}); give another folder, or name the files.")
        elif path.is_file():
            found = [path]
        else:
            raise UserError(f"video {path} does not exist; check the path.")
        for video in found:
            asked.setdefault(video, list(queries))
    if not queries and any(not texts for texts in asked.values()):
        raise UserError('what is looked for? Give --query "in plain words" (or a table LIST.csv with the columns video and query).')
    return _with_folders(asked, output, several), several


def _with_folders(asked: dict[Path, list[str]], output: Path, several: bool) -> list[Job]:
    jobs, taken = [], set()
    for video, texts in asked.items():
        folder = output
        if several:
            name = video.stem
            while name in taken:  # a.mp4 and a.mov; one file name in two folders
                name += "_"
            taken.add(name)
            folder = output / name
        names = [folder / f"{number}_{slug(text)}" if len(texts) > 1 else folder for number, text in enumerate(texts, 1)]
        for one in names:
            check_apart(video, one)
        jobs.append(Job(video, tuple(texts), tuple(names)))
    return jobs


def exports(args: argparse.Namespace) -> tuple[str, ...]:
    return () if args.export is None else kinds_of(args.export)


def slug(text: str) -> str:
    """Letters, digits and marks (of Hindi, Arabic, ...) as part of a folder's name."""
    kept = "".join(c if c.isalnum() or c == "_" or unicodedata.category(c).startswith("M") else "-" for c in text.lower())
    return re.sub("-+", "-", kept).strip("-")[:40] or "query"


# ---- the run ----


def run_highlights(args: argparse.Namespace) -> None:
    queries, options, output = queries_of(args.query or []), options_of(args), Path(args.output)
    if args.max_num_frames is not None and args.max_num_frames < 1:
        raise UserError(f"max_num_frames must be at least 1, not {args.max_num_frames}.")
    exports(args)  # a format that is unknown or not installed is refused before the work
    if args.keep_features is not None:
        check_output(args.keep_features, overwrite=True)
    if args.scores is not None:
        cut_again(args, queries, options, output)
        return
    jobs, several = jobs_of(args.video, queries, output)
    if several:
        settings = settings_of(args, queries, options)
        with held(output):
            run_several(jobs, options, settings, args)
        return
    probe(jobs[0].video)  # a file that is no video is refused before the model is loaded
    check_timelines(jobs[0].video, exports(args))
    check_output(output, args.overwrite)
    with held(output):
        model = commands.load_model(args, [jobs[0].video])
        report(highlights_of(model, open_video(model, jobs[0].video, args), jobs[0], options, args, False))
        finish_output(output)


def run_several(jobs: list[Job], options: Options, settings: dict, args: argparse.Namespace) -> None:
    """Every job that an earlier run did not finish, and the index over all."""
    output = Path(args.output)
    goes_on = not args.overwrite and (output / SETTINGS).is_file()
    if goes_on:
        earlier = read_json(output / SETTINGS, "settings of the earlier run")
        if not isinstance(earlier, dict) or any(settings[name] != earlier.get(name, settings[name]) for name in settings):
            raise UserError(f"{output} was made with other settings (see {output / SETTINGS}); choose another folder or give --overwrite.")
        waiting = [job for job in jobs if not all(map(job.is_done, job.queries, job.folders))]
        if len(waiting) < len(jobs):
            print(f"{len(jobs) - len(waiting)} of {len(jobs)} videos were done before", file=sys.stderr)
    else:
        check_output(output, args.overwrite)
        waiting = jobs
    failed: dict[Path, str] = {}
    if waiting:
        model = commands.load_model(args, [job.video for job in waiting])
        if not goes_on:
            write_json(open_output(output, True) / SETTINGS, settings)
        for number, (job, opened) in enumerate(opened_ahead(model, waiting, args), 1):
            print(f"[{number}/{len(waiting)}] {job.video.name}", file=sys.stderr)
            try:
                if isinstance(opened, UserError):
                    raise opened
                report(highlights_of(model, opened, job, options, args, not args.overwrite))
            except UserError as error:
                failed[job.video] = str(error)
                print(f"  left out: {error}", file=sys.stderr)
    write_index(output, [(job.video, folder) for job in jobs for folder in job.folders], failed)
    finish_output(output)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} videos: {output / 'index.html'}")
    if failed:
        names = ", ".join(video.name for video in list(failed)[:5]) + (", ..." if len(failed) > 5 else "")
        raise UserError(f"{len(failed)} of {len(jobs)} videos could not be done ({names}); {output / 'index.html'} says why.")


def settings_of(args: argparse.Namespace, queries: list[str], options: Options) -> dict:
    """What decides what is written: a run that goes on must have the same. A table has its queries itself (`Job.is_done`)."""
    model = {name: getattr(args, name, None) for name in ("model", "llm_pretrained", "lora_pretrained", "dtype", "weights")}
    key = json.dumps(from_args(ModelChoice, args).weights_key())
    names = ("frame_fps", "max_num_frames", "video_backend", "titles", "no_reel", "curve_video", "speak", "export")
    given = {"model": model, "weights_key": hashlib.sha256(key.encode()).hexdigest()[:16], "queries": queries}
    return {**given, "options": asdict(options), **{name: getattr(args, name) for name in names}}


def open_video(model: Highlighter, video: Path, args: argparse.Namespace) -> OpenVideo:
    return model.open(video, args.frame_fps, args.max_num_frames, args.video_backend, args.keep_features)


def opened_ahead(model: Highlighter, jobs: list[Job], args: argparse.Namespace) -> Iterator[tuple[Job, OpenVideo | UserError]]:
    """Each job with its video, whose frames a thread reads already; while one is scored the next is being read."""

    def opened(job: Job) -> OpenVideo | UserError:
        try:
            return open_video(model, job.video, args)
        except UserError as error:
            return error

    following = opened(jobs[0])
    for number, job in enumerate(jobs, 1):
        current = following
        if number < len(jobs):
            following = opened(jobs[number])
        yield job, current


def highlights_of(
    model: Highlighter, opened: OpenVideo, job: Job, options: Options, args: argparse.Namespace, skip_done: bool
) -> list[tuple[Result, Path, float | None]]:
    """Score and cut one video for all its queries; (result, folder, seconds of the reel) of each. skip_done: what an
    earlier run finished is left alone."""
    check_timelines(job.video, exports(args))
    with commands.progress_bar("encode") as progress:
        video: EncodedVideo = model.encode(opened, progress=progress)
    if args.max_num_frames is not None and video.sample_fps < args.frame_fps:
        print(f"note: {len(video)} frames spread over {video.duration:.0f} s, one in {1 / video.sample_fps:.1f} s", file=sys.stderr)
    with commands.progress_bar("unrelated queries") as progress:
        unrelated = model.unrelated(video, progress)
    answers = []
    for query, folder in zip(job.queries, job.folders):
        if skip_done and job.is_done(query, folder):
            continue
        with commands.progress_bar("score") as progress:
            result = model.query(video, query, options=options, progress=progress, unrelated=unrelated)
        if args.speak:
            result = model.say(video, result)
        answers.append((result, folder, write(result, job.video, folder, args, video.sample_fps, model.note)))
    return answers


def write(result: Result, video: Path, folder: Path, args: argparse.Namespace, fps: float, note: str) -> float | None:
    """Write the files of a result; returns the seconds of its reel, None where there is none."""
    for marked in {Path(args.output), folder}:
        open_output(marked, True)
    with commands.progress_bar("reel") as progress, commands.progress_bar("curve video", args.curve_video) as curve_progress:
        reel = write_result(
            result, video, folder, frame_fps=fps, titles=args.titles, reel=not args.no_reel, export=exports(args),
            curve_video=args.curve_video, note=note, progress=progress, curve_progress=curve_progress,
        )  # fmt: skip
    return None if reel is None else reel.duration


def cut_again(args: argparse.Namespace, queries: list[str], options: Options, output: Path) -> None:
    """Highlights from scores that are there already: other budgets, thresholds and segments in seconds, without a model."""
    if args.speak or len(args.video) != 1:
        raise UserError("--scores cuts one video again, without a model: give one VIDEO, and leave --speak out.")
    video = local_file(args.video[0])
    info = probe(video)
    found = [p for p in read_predictions(args.scores) if p.video_id == video.stem]
    if queries:
        found = [p for p in found if p.record.get("query") == queries[0]]
    if len(found) != 1:
        asked = f" and query {queries[0]!r}" if queries else ""
        raise UserError(f"{args.scores} has {len(found)} entries of video {video.stem!r}{asked}; one is needed (the name is the file's).")
    check_output(output, args.overwrite)
    check_apart(video, output)
    query = str(found[0].record.get("query") or (queries[0] if queries else "highlights"))
    record, name = found[0].record, found[0].name
    measured, given_fps = record.get("evidence"), record.get("frame_fps")
    if measured is not None and not isinstance(measured, dict):
        raise UserError(f"{name}: evidence is {measured!r:.40}, no object with strength and level; repair the entry.")
    evidence = (
        Evidence(*(checked.number(measured.get(key), name, f"evidence/{key}") for key in ("strength", "level"))) if measured else None
    )
    track = read_track(found[0], info.duration, info.frame_count)
    result = find_highlights(track, query, options, info.fps, evidence)
    note = f"Cut again from {args.scores}; the pictures' features are not in it, so only the scores say where segments end."
    fps = checked.number(given_fps, name, "frame_fps", 0.0) if given_fps else len(track) / info.duration
    with held(output):
        report([(result, output, write(result, video, output, args, fps, note))])
        finish_output(output)


# ---- what is said ----


def report(answers: list[tuple[Result, Path, float | None]]) -> None:
    for result, folder, reel_seconds in answers:
        found = f"{len(result.track)} frames scored, {len(result.segments)} segments, {len(result.highlights)} highlights"
        lines = [f"{result.query[:100]}: {found}"]
        if result.evidence is not None:
            lines.append(f"  {result.evidence}{'' if result.highlights else '; --force makes a reel all the same'}")
        for h in result.highlights:
            said = f"  {h.sentence}" if h.sentence else ""
            lines.append(f"  {h.rank:>2}. {h.start:8.2f} – {h.end:8.2f} s  score {h.score:.3f}{said}")
        if reel_seconds is not None:
            share = reel_seconds / result.track.duration
            lines.append(f"  reel {reel_seconds:.2f} s of {result.track.duration:.2f} s ({share:.1%})")
        print("\n".join(part for line in (*lines, f"  wrote {folder}/") for part in wrapped(line)))


def main(argv: list[str]) -> None:
    parser = commands.parser_of("highlights", __doc__)
    add_arguments(parser)
    run_highlights(parser.parse_args(argv))
