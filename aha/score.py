"""Score videos frame by frame: one file, or a whole benchmark.

    python -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --video FILE --query "how to repair a tyre" --output scores.json
    python -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --video FOLDER --frame_fps 2 --output scores.json
    torchrun --nproc_per_node 8 -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --dataset tvsum --fold 0 --output tvsum.json

The output is a prediction file (JSON; JSON Lines where its name ends in .jsonl): informative, relevance and uncertainty scores of every
sampled frame, unrounded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aha.conversation import Query, checked_query
from aha.core.addresses import local_file
from aha.core.environment import die_with_launcher
from aha.core.files import check_file
from aha.core.flags import add_flags, check_outputs, finite, from_args
from aha.core.prediction import write_predictions
from aha.errors import run_command
from aha.scoring.config import ScoreConfig, Selection, add_score_flags, score_config_of
from aha.scoring.model_choice import ModelChoice, choice_of
from aha.video.frames import image_files
from aha.video.reader import probe


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aha.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser.add_argument_group("model"), ModelChoice)
    what = parser.add_argument_group("what is scored")
    what.add_argument("--video", nargs="+", metavar="FILE",
                      help="one video file; or images, or a folder of numbered ones, which are its frames at --frame_fps")  # fmt: skip
    what.add_argument("--query", action="append", default=[], metavar="TEXT", help="task in plain words; may be repeated")
    what.add_argument("--query_time", action="append", type=finite, default=[], metavar="S",
                      help="when the query is made, in seconds of video; one for each --query, in the same order (default 0)")  # fmt: skip
    add_flags(what, Selection)
    add_score_flags(parser)
    work = parser.add_argument_group("how the work is done")
    work.add_argument(
        "--readers", type=int, metavar="N", help="videos decoded at the same time (default: half the cores of this rank, 1 to 8)"
    )
    work.add_argument("--engine", choices=("torchrun", "ray"), default="torchrun",
                      help="ray: as a Ray Data job, for several machines or very many videos (pip install 'ray[data]')")  # fmt: skip
    work.add_argument("--workers", type=int, metavar="N", help="of --engine ray (default: the cluster's GPUs, or 2 without)")
    parser.add_argument("--output", required=True, metavar="FILE", help="prediction file to write (JSON)")
    args = parser.parse_args(argv)
    dataset = getattr(args, "dataset", None)
    if (args.video is None) == (dataset is None):
        parser.error("give either --video FILE or --dataset NAME")
    if args.query_time and len(args.query_time) != len(args.query):
        parser.error(f"{len(args.query)} --query but {len(args.query_time)} --query_time: give one time for each query, or none")
    if any(not time >= 0 for time in args.query_time):
        parser.error("--query_time must be 0 or more (seconds)")
    if dataset is not None and args.query:
        parser.error("--query is for --video; a benchmark has its own queries (--query_map replaces them)")
    if getattr(args, "prompt_style", "specific") != "specific" and (dataset is None or hasattr(args, "query_map")):
        parser.error("--prompt_style is for --dataset without --query_map")
    return args


def score_one(choice: ModelChoice, config: ScoreConfig, given: Sequence[str], queries: Sequence[Query], output: str) -> None:
    check_file(output)
    images = image_files(given)  # a wrong path is said at once, before the model is loaded
    video = images or local_file(given[0])
    duration = len(images) / (config.frame_fps or 1) if images else probe(local_file(given[0])).duration
    if late := [query for query in queries if query.time >= duration]:
        print(f"warning: query {late[0].text!r} at {late[0].time:g} s is after the end of the video ({duration:.1f} s)", file=sys.stderr)
    from tqdm import tqdm

    from aha.scoring.dataset import frames_scored
    from aha.scoring.offline import Scorer  # torch is imported only now

    scorer = Scorer(*choice.load(), config)
    with tqdm(total=config.expected_frames(duration), unit=" frames", desc="scoring", disable=None) as bar:
        prediction = scorer.score(video, queries, lambda done: bar.update(done - bar.n), video_id=Path(given[0]).stem)
    write_predictions(output, [prediction])
    print(f"{frames_scored([prediction])} -> {output}")


def main(argv: list[str]) -> None:
    args = parse(argv)
    die_with_launcher()
    check_outputs(args, "output")
    choice, config = choice_of(args), score_config_of(args)
    if args.video is not None:
        for text in args.query:
            checked_query(text)
        queries = [Query(text, time) for text, time in zip(args.query, args.query_time or [0.0] * len(args.query))]
        score_one(choice, config, args.video, queries, args.output)
        return
    from aha.scoring.dataset import score_dataset

    score_dataset(choice, config, from_args(Selection, args), Path(args.output), readers_wanted=args.readers, engine=args.engine,
                  workers=args.workers)  # fmt: skip


if __name__ == "__main__":
    run_command(main)
