"""`aha highlights`, `aha watch` and `aha demo`: their flags, and what they run.

    aha highlights talk.mp4 --query "how the tyre is repaired" --budget 0.15 --output outputs/talk
    aha watch rtsp://camera/stream --query "someone falls"
    aha demo

Without --llm_pretrained the embedded demo model is used, which knows only simple coloured shapes (and says so).
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from aha.api import DEMO_NOTE, Highlighter, load_choice, queries_of
from aha.core.addresses import hide_argument, shown_address
from aha.core.extras import need
from aha.core.files import finish_output, open_output
from aha.core.flags import add_flags, from_args
from aha.core.fusion import add_fusion_flags, fusion_of
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.highlights.result import Options, Result, write_result
from aha.scoring.model_choice import ModelChoice
from aha.video.reader import BACKENDS


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    add_fusion_flags(parser)
    group = parser.add_argument_group("online segmentation: a segment ends when enough has been seen or the evidence changes")
    default = OnlineSettings()
    group.add_argument(
        "--information_threshold",
        type=float,
        default=default.information_threshold,
        metavar="SUM",
        help="a segment ends when its informative scores add up to this; 0 = never for that reason (default %(default)s)",
    )
    group.add_argument(
        "--change_threshold",
        type=float,
        default=default.change_threshold,
        metavar="RATIO",
        help="a segment ends when the change statistic is above this; 0 = never for that reason (default %(default)s)",
    )
    group.add_argument("--min_frames", type=int, default=default.min_frames, help="shortest segment in scored frames (default %(default)s)")
    group.add_argument(
        "--uncertainty_wait_threshold",
        type=float,
        metavar="VARIANCE",
        help="hold a due boundary while the variance is above this (default: never)",
    )
    group.add_argument(
        "--max_wait_frames", type=int, default=default.max_wait_frames, help="but at most for this many scored frames (default %(default)s)"
    )


def online_of(args: argparse.Namespace) -> OnlineSettings:
    try:
        return OnlineSettings(
            information_threshold=args.information_threshold or None,
            change_threshold=args.change_threshold or None,
            min_frames=args.min_frames,
            uncertainty_wait_threshold=args.uncertainty_wait_threshold,
            max_wait_frames=args.max_wait_frames,
        )
    except ValueError as error:
        raise UserError(f"{error}.") from error


def load_model(args: argparse.Namespace) -> Highlighter:
    """The model of the flags; where it is the demo model the user is told so."""
    model = load_choice(from_args(ModelChoice, args))
    if model.is_demo:
        print(f"note: {DEMO_NOTE}", file=sys.stderr)
    return model


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


@contextmanager
def progress_bar(what: str):
    """A bar on standard error as a callable (done, total)."""
    with tqdm(desc=what, unit="frame", disable=None) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


# ---- aha highlights ----


def highlights_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", help="video file")
    parser.add_argument("--query", action="append", required=True, metavar="TEXT", help="what to look for, in plain words; may be repeated")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write into; with several queries one folder in it for each"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--budget", type=float, metavar="SHARE", help="length of the reel as a share of the video, 0 to 1 (default 0.15)")
    amount.add_argument("--top", type=int, metavar="N", help="the N best moments that differ")
    amount.add_argument("--min_score", type=float, metavar="X", help="every segment with at least this mean score")
    parser.add_argument("--frame_fps", type=positive, default=1.0, help="frames a second that are scored (default %(default)s)")
    parser.add_argument("--max_num_frames", type=int, help="score at most this many frames (default: all)")
    parser.add_argument("--video_backend", choices=tuple(BACKENDS), default="pyav", help="who decodes the video (default %(default)s)")
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
    parser.add_argument("--titles", action="store_true", help="burn rank and query into the reel")
    parser.add_argument("--no_reel", action="store_true", help="do not write reel.mp4")
    parser.add_argument("--speak", action="store_true", help="the model adds a sentence to each highlight")
    add_score_flags(parser)
    add_flags(parser.add_argument_group("model"), ModelChoice)


def run_highlights(args: argparse.Namespace) -> None:
    queries = queries_of(args.query)
    options = Options(
        fusion=fusion_of(args),
        smooth_frames=args.smooth_frames,
        smoothing=args.smoothing,
        segmentation=args.segmentation,
        online=online_of(args),
        shot_seconds=args.shot_seconds,
        budget=args.budget,
        top=args.top,
        min_score=args.min_score,
    )
    if args.max_num_frames is not None and args.max_num_frames < 1:
        raise UserError(f"max_num_frames must be at least 1, not {args.max_num_frames}.")
    output = open_output(args.output, args.overwrite)
    model = load_model(args)
    with progress_bar("encode") as progress:
        video = model.encode(args.video, args.frame_fps, args.max_num_frames, progress, args.video_backend)
    for number, query in enumerate(queries, 1):
        with progress_bar("score") as progress:
            result = model.query(video, query, options=options, progress=progress)
        if args.speak:
            result = model.say(video, result)
        folder = output if len(queries) == 1 else open_output(output / f"{number}_{slug(query)}", args.overwrite)
        reel = write_result(
            result, args.video, folder, frame_fps=args.frame_fps, titles=args.titles, reel=not args.no_reel, note=model.note
        )
        print_result(result, folder, None if reel is None else reel.duration)
    finish_output(output)


def print_result(result: Result, folder: Path, reel_seconds: float | None) -> None:
    print(f"{result.query[:100]}: {len(result.track)} frames scored, {len(result.segments)} segments, {len(result.highlights)} highlights")
    for h in result.highlights:
        said = f"  {h.sentence}" if h.sentence else ""
        print(f"  {h.rank:>2}. {h.start:8.2f} – {h.end:8.2f} s  score {h.score:.3f}{said}")
    if reel_seconds is not None:
        share = reel_seconds / result.track.duration
        print(f"  reel {reel_seconds:.2f} s of {result.track.duration:.2f} s ({share:.1%})")
    print(f"  wrote {folder}/")


def slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:40] or "query"


# ---- aha watch, aha demo: their own rooms ----


def _run_watch(args: argparse.Namespace) -> None:
    from aha.watch.command import run_watch

    for address in (*args.source, *args.on_event):
        hide_argument(address, shown_address(address))
    run_watch(args, lambda: load_model(args), fusion_of(args), online_of(args))


def _watch_parser(parser: argparse.ArgumentParser) -> None:
    from aha.watch.command import watch_parser

    watch_parser(parser)
    add_score_flags(parser)
    add_flags(parser.add_argument_group("model"), ModelChoice)


def _run_demo(args: argparse.Namespace) -> None:
    need("gradio", "web", "aha demo")
    from aha.web.page import run_demo

    run_demo(args, load_model(args))


def _demo_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=7860, help="port on this machine (default %(default)s)")
    parser.add_argument(
        "--host", nargs="+", default=["127.0.0.1"], metavar=("ADDRESS", "NAME"),
        help="address to listen on, and further names by which the page is called; 0.0.0.0 lets others in, and asks for a password in "
        "the environment variable AHA_PASSWORD (default 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument("--max_megabytes", type=positive, default=200, help="largest upload in MB (default %(default)s)")
    parser.add_argument("--max_minutes", type=positive, default=20, help="longest video in minutes (default %(default)s)")
    parser.add_argument("--max_visitors", type=int, default=32, help="people that may watch a video at once (default %(default)s)")
    add_flags(parser.add_argument_group("model"), ModelChoice)


# ---- the parsers ----


def _command(name: str, about: str) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=f"aha {name}", description=about, epilog="--debug shows the traceback of an error", formatter_class=formatter
    )


def highlights(argv: list[str]) -> None:
    parser = _command("highlights", "segments, highlights, reel and report of a video file")
    highlights_parser(parser)
    run_highlights(parser.parse_args(argv))


def watch(argv: list[str]) -> None:
    parser = _command("watch", "watch a file, camera or stream and print events as JSON Lines")
    _watch_parser(parser)
    _run_watch(parser.parse_args(argv))


def demo(argv: list[str]) -> None:
    parser = _command("demo", "a web page on this machine: upload, ask, see the scores, download the reel")
    _demo_parser(parser)
    _run_demo(parser.parse_args(argv))
