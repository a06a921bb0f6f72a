"""Walk a mixture of data sets before training on it.

    python -m aha.data.check configs/datasets/tvsum.json
    python -m aha.data.check configs/datasets/aha.json --read     # also decode every video that training would read

Prints per data set: samples, hours of video, frames, tokens, unreadable files and a histogram of the labels. What is left out, and with
--read what breaks while it is read, is listed by name and cause.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

import numpy as np
from llava_next import PUBLISHED
from tqdm import tqdm

from aha.conversation import IGNORE_INDEX
from aha.core.flags import positive
from aha.core.folds import N_FOLDS, SPLITS
from aha.data.labels import keep_frames
from aha.data.mixture import DEFAULT_MAX_NUM_FRAMES, Source, estimated_tokens, load_source, missing_files, read_config
from aha.errors import UserError, run_command
from aha.video.reader import BACKENDS, Backend, iter_frames

BINS = np.linspace(0, 1, 11)  # of the relevance histogram


def main(argv: list[str]) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m aha.data.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="mixture of data sets, JSON (see configs/datasets)")
    parser.add_argument(
        "--frame_fps", type=positive, default=1.0, help="frames a second where the config does not say (default %(default)s)"
    )
    parser.add_argument("--max_num_frames", type=int, help=f"frames per sample, at most (default {DEFAULT_MAX_NUM_FRAMES} or the config's)")
    parser.add_argument("--split", default="all", choices=SPLITS, help="which samples (default %(default)s)")
    parser.add_argument("--fold", type=int, choices=range(N_FOLDS), help="TVSum: the held-out fifth, for --split train and test")
    parser.add_argument("--video_backend", choices=tuple(BACKENDS), default="pyav", help="who decodes with --read (default %(default)s)")
    parser.add_argument("--read", action="store_true", help="decode every video that training would read")
    arguments = parser.parse_args(argv)
    if arguments.max_num_frames is not None and arguments.max_num_frames < 1:
        raise UserError(f"--max_num_frames {arguments.max_num_frames}: at least 1 frame is needed.")
    missing = missing_files(arguments.config)
    if missing:
        raise UserError(f"{len(missing)} things that {arguments.config} names are missing:\n  " + "\n  ".join(missing))
    broken = usable = 0
    for entry in read_config(arguments.config):
        limits = [n for n in (entry["max_num_frames"], arguments.max_num_frames) if n is not None]
        frames = int(min(limits, default=DEFAULT_MAX_NUM_FRAMES))
        source = load_source(entry, entry["fps"] or arguments.frame_fps, frames, arguments.split, arguments.fold)
        print(describe(source), flush=True)
        usable += len(source.samples)
        if arguments.read:
            broken += read_all(source, arguments.video_backend)
    if usable == 0:
        raise UserError(f"{arguments.config} has no usable sample for split {arguments.split}; the lines above say what was left out.")
    if broken:
        raise UserError(f"{broken} videos break while they are read (listed above); download them again or remove them.")


def describe(source: Source) -> str:
    """The lines printed for one data set."""
    frames = tokens = replies = 0
    informative: Counter[int] = Counter()
    histogram = np.zeros(len(BINS) - 1, dtype=np.int64)
    unlabelled = 0
    for sample in tqdm(source.samples, desc=source.entry["name"], unit="sample", disable=None):
        _, turns = sample.conversation(source.fps, random.Random(sample.sample_id))
        turns = keep_frames(turns, source.max_num_frames)
        frames += sum(turn.num_frames for turn in turns)
        tokens += estimated_tokens(turns, PUBLISHED.tokens)
        for turn in turns:
            replies += turn.role == "assistant" and turn.learn
            informative.update(turn.informative or ())
            relevance = np.array(turn.relevance or ())
            labelled = relevance != IGNORE_INDEX
            unlabelled += int((~labelled).sum())
            histogram += np.histogram(relevance[labelled], BINS)[0]
    hours = sum({sample.video_path: sample.duration for sample in source.samples}.values()) / 3600
    lines = [
        f"{source.entry['name']} ({source.entry['type']}, {source.fps:g} frames/s, at most {source.max_num_frames} frames a sample)",
        f"  samples {len(source.samples)}   hours {hours:.2f}   frames {frames}   tokens {tokens}   left out {len(source.problems)}",
    ]
    if replies:
        lines.append(f"  replies to learn: {replies}")
    if informative:
        lines.append(f"  informative labels: 0: {informative[0]}   1: {informative[1]}   none: {informative[IGNORE_INDEX]}")
    if histogram.any():
        cells = [f"{low:.1f}-{high:.1f}: {count}" for low, high, count in zip(BINS, BINS[1:], histogram)]
        lines.append(f"  relevance labels: {'   '.join(cells)}   none: {unlabelled}")
    lines += [f"  left out: {problem.item}: {problem.reason}" for problem in source.problems]
    return "\n".join(lines)


def read_all(source: Source, backend: Backend = "pyav") -> int:
    """Decode what training would read of every video; print what breaks. Returns the number of broken videos."""
    broken = 0
    for path in tqdm(sorted({sample.video_path for sample in source.samples}), desc="reading", unit="video", disable=None):
        try:
            for _ in iter_frames(path, fps=source.fps, max_frames=source.max_num_frames, backend=backend):
                pass
        except UserError as error:
            print(f"  breaks: {error}", flush=True)
            broken += 1
    return broken


if __name__ == "__main__":
    run_command(main)
