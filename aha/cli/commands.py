"""`aha watch`, `aha serve` and `aha demo`: their flags, and what they run; and the flags that they share with `aha highlights`.

    aha watch rtsp://camera/stream --query "someone falls"
    aha serve
    aha demo

Without --model the embedded demo model is used, which knows only simple coloured shapes (and says so).
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import contextmanager, suppress

from tqdm import tqdm

from aha.api import DEMO_NOTE, Highlighter, load_choice
from aha.cli import COMMANDS
from aha.core.addresses import hide_argument, shown_address
from aha.core.extras import need
from aha.core.flags import add_flags, finite, from_args, positive
from aha.core.fusion import add_fusion_flags, fusion_of
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.scoring.model_choice import ModelChoice


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    add_fusion_flags(parser, loads_model=True)
    group = parser.add_argument_group("online segmentation: a segment ends when enough has been seen or the evidence changes")
    default = OnlineSettings()
    group.add_argument(
        "--information_threshold",
        type=finite,
        default=default.information_threshold,
        metavar="SUM",
        help="a segment ends when its informative scores add up to this; 0 = never for that reason (default %(default)s)",
    )
    group.add_argument(
        "--change_threshold",
        type=finite,
        default=default.change_threshold,
        metavar="RATIO",
        help="a segment ends when the change statistic is above this; 0 = never for that reason (default %(default)s)",
    )
    group.add_argument("--min_frames", type=int, default=default.min_frames, help="shortest segment in scored frames (default %(default)s)")
    group.add_argument(
        "--uncertainty_wait_threshold",
        type=finite,
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


def load_model(args: argparse.Namespace, videos: Sequence[str | os.PathLike] = ()) -> Highlighter:
    """The model of the flags; where it is the demo model the user is told so, loudly where one of the first of these videos is not of its
    world."""
    model = load_choice(from_args(ModelChoice, args))
    if model.is_demo:
        print(f"note: {DEMO_NOTE}", file=sys.stderr)
        warn_other_world(videos[:5])
    return model


def warn_other_world(videos: Sequence[str | os.PathLike]) -> None:
    """One loud line about the first video that does not look like the demo's generated ones; one that cannot be read says so elsewhere."""
    from aha.demo.world import OTHER_WORLD, looks_like_demo

    for video in videos:
        with suppress(UserError):
            if not looks_like_demo(video):
                line = "!" * 78
                text = textwrap.fill(f"WARNING: {os.fspath(video)} {OTHER_WORLD}", 78, break_on_hyphens=False, break_long_words=False)
                print(f"{line}\n{text}\n{line}", file=sys.stderr)
                return


@contextmanager
def progress_bar(what: str, shown: bool = True):
    """A bar on standard error as a callable (done, total)."""
    with tqdm(desc=what, unit="frame", disable=None if shown else True) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


# ---- aha watch, aha serve, aha demo: flags, and what is run (aha.watch, aha.serve, aha.web) ----


def _run_watch(args: argparse.Namespace) -> None:
    from aha.watch.command import run_watch

    for address in (*args.source, *args.on_event):
        hide_argument(address, shown_address(address))
    files = [source for source in args.source if os.path.isfile(source)]
    run_watch(args, lambda: load_model(args, files), fusion_of(args), online_of(args))


def _watch_parser(parser: argparse.ArgumentParser) -> None:
    from aha.watch.command import watch_parser

    watch_parser(parser)
    add_score_flags(parser)
    add_flags(parser.add_argument_group("model"), ModelChoice)


def _run_serve(args: argparse.Namespace) -> None:
    from aha.serve.command import run_serve

    run_serve(args, lambda: load_model(args), fusion_of(args), online_of(args))


def _serve_parser(parser: argparse.ArgumentParser) -> None:
    from aha.serve.command import serve_parser

    serve_parser(parser)
    add_score_flags(parser)
    add_flags(parser.add_argument_group("model"), ModelChoice)


def _run_demo(args: argparse.Namespace) -> None:
    need("gradio", "web", "aha demo")
    from aha.web.page import run_demo

    run_demo(args, lambda: load_model(args))


def _demo_parser(parser: argparse.ArgumentParser) -> None:
    from aha.web.limits import Limits

    parser.add_argument("--port", type=int, default=7860, help="port on this machine (default %(default)s)")
    parser.add_argument(
        "--host", nargs="+", default=["127.0.0.1"], metavar=("ADDRESS", "NAME"),
        help="address to listen on, and further names by which the page is called; 0.0.0.0 lets others in, and asks for a password in "
        "the environment variable AHA_PASSWORD (default 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument("--max_megabytes", type=positive, default=Limits.megabytes, help="largest upload in MB (default %(default)s)")
    parser.add_argument("--max_minutes", type=positive, default=Limits.minutes, help="longest video in minutes (default %(default)s)")
    parser.add_argument(
        "--max_visitors", type=int, default=Limits.visitors, help="people that may watch a video at once (default %(default)s)"
    )
    add_flags(parser.add_argument_group("model"), ModelChoice)


# ---- the parsers ----


def parser_of(name: str, about: str | None) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=f"aha {name}", description=about, epilog="--debug shows the traceback of an error", formatter_class=formatter
    )


def watch(argv: list[str]) -> None:
    from aha.watch import command

    parser = parser_of("watch", command.__doc__)
    _watch_parser(parser)
    _run_watch(parser.parse_args(argv))


def serve(argv: list[str]) -> None:
    from aha.serve import command

    parser = parser_of("serve", command.__doc__)
    _serve_parser(parser)
    _run_serve(parser.parse_args(argv))


def demo(argv: list[str]) -> None:
    parser = parser_of("demo", COMMANDS["demo"][1])
    _demo_parser(parser)
    _run_demo(parser.parse_args(argv))
