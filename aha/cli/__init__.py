"""The command `aha`, one door to everything: highlights of a video, live streams, scoring, benchmark numbers, training.

    aha highlights talk.mp4 --query "how the tyre is repaired" --model mmduet-7b --output outputs/talk
    aha score --model aha-7b --dataset tvsum --output tvsum.json
    aha eval tvsum --predictions tvsum.json

Each command has its own --help. `python -m aha.score`, `python -m aha.eval.tvsum` and so on are doors to the same code.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable

import aha
from aha.core.readers import leave_readers
from aha.errors import UserError, run_command
from aha.eval import MODULES

# Command -> (where its code is, what it does). This file imports nothing else before a command is chosen: `aha --help` is instant.
COMMANDS = {
    "highlights": ("aha.cli.highlights:main", "segments, highlights, reel and report of a video, a folder of them or a list"),
    "watch": ("aha.cli.commands:watch", "watch a file, camera or stream and print events as JSON Lines"),
    "serve": ("aha.cli.commands:serve", "streams over HTTP and WebSocket for programs: sessions, scores, events, questions"),
    "demo": ("aha.cli.commands:demo", "a web page on this machine: upload, ask, see the scores, download the reel"),
    "models": ("aha.cli.models:main", "models that have a name here: size, memory, licence, what is downloaded; aha models get NAME"),
    "score": ("aha.score:main", "score a video or a whole benchmark frame by frame: a prediction file"),
    "baseline": ("aha.scoring.baseline:main", "random, centre, motion, SigLIP, an ordinary VLM, ...: prediction files to be read against"),
    "speak": ("aha.scoring.speak:main", "from frame scores to times to speak, by a rule fixed before the test set is seen"),
    "ablate": ("aha.scoring.ablate:main", "what a cache, a prompt, a head or a corruption changes in the numbers"),
    "train": ("aha.train:main", "fine-tune on a mixture of data sets"),
    "merge": ("aha.merge:main", "merge an adapter into a whole-model folder"),
    "reproduce": ("aha.reproduce.__main__:main", "the tables of the paper, from nothing to a report; goes on where it was stopped"),
    "plot": ("aha.visualize:main", "figures and tables of prediction and metrics files"),
}
# Command -> its second words, likewise.
GROUPS = {
    "eval": (
        "benchmark numbers of a prediction file; no GPU, no torch",
        {path.rpartition(".")[2]: f"{path}:main" for path in MODULES.values()}
        | {name: f"aha.eval.{name}:main" for name in ("grid_search", "kfold")},
    ),
    "data": (
        "data sets: your own, fetch, complete, look through a training mixture, note what was scored; import other people's predictions",
        {name: f"aha.data.{name}:main" for name in ("new", "get", "prepare", "check", "manifest")} | {"import": "aha.eval.importers:main"},
    ),
}


def help_text() -> str:
    rows = {name: about for name, (_, about) in COMMANDS.items()}
    rows |= {f"{name} NAME": f"{about}: {', '.join(names)}" for name, (about, names) in GROUPS.items()}
    lines = [f"  {name:<12} {about}" for name, about in rows.items()]
    options = [
        "  -h, --help   this text",
        "  --version    the version of aha",
        "  --debug      with any command: show the traceback of an error",
    ]
    return "\n".join(["usage: aha COMMAND ...", "", __doc__.rstrip(), "", "commands:", *lines, "", "options:", *options])


def choose(name: str, names: dict[str, str], what: str) -> str:
    if name not in names:
        raise UserError(f"{name[:40]!r} is no {what}; choose from {', '.join(names)} (aha --help).")
    return names[name]


def find(argv: list[str]) -> tuple[Callable[[list[str]], None], list[str]]:
    """The code of the command that `argv` names, and its own arguments. Raises UserError for a name that is none."""
    name, rest = argv[0], argv[1:]
    if name in GROUPS:
        about, names = GROUPS[name]
        if not rest:
            raise UserError(f"aha {name} needs a name: {', '.join(names)}.")
        target, rest = choose(rest[0], names, f"name of aha {name}"), rest[1:]
    else:
        target = choose(name, {known: path for known, (path, _) in COMMANDS.items()} | dict.fromkeys(GROUPS, ""), "command of aha")
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function), rest


def run(argv: list[str]) -> None:
    """Run one command line, without the word `aha`. Raises UserError; argparse ends with SystemExit."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        if not argv:
            raise UserError("give a command; the list is above.")
    elif argv[0] == "--version":
        print(f"aha {aha.__version__}")
    elif argv[0] in GROUPS and argv[1:2] in (["-h"], ["--help"]):
        about, names = GROUPS[argv[0]]
        print(f"usage: aha {argv[0]} NAME ...\n\n{about}\n\nnames: {', '.join(names)}; aha {argv[0]} NAME --help says more")
    else:
        main_of_command, rest = find(argv)
        main_of_command(rest)


def main() -> None:
    if sys.argv[1:2] == ["train"]:  # a rank of a torchrun job ends in its own way
        from aha.core.environment import run_rank

        run_rank(run)
        return
    # By default SIGTERM ends Python at once, and a half-written reel would stay; as an exception it passes the clean-up.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        run_command(run)
    finally:
        leave_readers()
