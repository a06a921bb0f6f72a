"""Score videos frame by frame: one file, or a whole benchmark.

    python -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --video FILE --query "how to repair a tyre" --output scores.json
    torchrun --nproc_per_node 8 -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --dataset tvsum --fold 0 --output tvsum.json

The output is a prediction file (JSON): informative, relevance and uncertainty scores of every sampled frame, unrounded.
"""

from __future__ import annotations

import argparse
import os
import sys

from aha.conversation import Query
from aha.core.files import write_json
from aha.core.prompts import STYLES
from aha.errors import UserError, run_command
from aha.streaming.caches import CACHES
from aha.streaming.policies import Accumulated, AnyOf, Threshold, UncertaintyHold
from aha.video.corrupt import KINDS, Corruption


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aha.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--llm_pretrained", required=True, metavar="DIR|ID", help="base checkpoint (with --lora_pretrained), or a whole Aha model"
    )
    model.add_argument("--lora_pretrained", metavar="DIR|ID", help="MMDuet or Aha adapter on the base")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on cuda, float32 on cpu")
    model.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    model.add_argument("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"))
    what = parser.add_argument_group("what is scored")
    what.add_argument("--video", metavar="FILE", help="one video file")
    what.add_argument("--query", action="append", default=[], metavar="TEXT", help="task in plain words; may be repeated")
    what.add_argument("--query_time", action="append", type=float, default=[], metavar="S",
                      help="when the query is made, in seconds of video; one for each --query, in the same order (default 0)")  # fmt: skip
    what.add_argument("--dataset", metavar="NAME", help="a whole benchmark: tvsum, hisum, charades, qvh, youcook2, magqa")
    what.add_argument("--data_root", metavar="DIR", help="folder of the data set (default datasets/NAME), in its official layout")
    what.add_argument("--fold", type=int, metavar="N", help="0 to 4: of TVSum's 5 seeded folds (aha.core.folds)")
    what.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        help="of the fold (tvsum; default: test with --fold, else all) or of the data set (hisum; default test)",
    )
    what.add_argument("--query_map", metavar="FILE", help="JSON {video id: query} used instead of the titles, for prompt studies")
    what.add_argument("--prompt_style", choices=STYLES, default="specific", help="wording of a benchmark's queries (default specific)")
    what.add_argument("--corrupt", choices=KINDS, help="make a share of every video's seconds worse: robustness studies")
    what.add_argument("--corrupt_ratio", type=float, default=0.2, metavar="X", help="that share, 0 to 1 (default 0.2)")
    what.add_argument("--seed", type=int, default=0, help="of --corrupt and --prompt_style unrelated (default 0)")
    what.add_argument("--limit", type=int, metavar="N", help="only the first N videos")
    how = parser.add_argument_group("how")
    how.add_argument("--frame_fps", type=float, default=1.0, metavar="FPS",
                     help="frames a second (default 1); 0: --max_num_frames frames spread over the video")  # fmt: skip
    how.add_argument("--max_num_frames", type=int, metavar="N", help="stop after N frames")
    how.add_argument("--sampling", choices=("timestamps", "reference"), default="timestamps")
    how.add_argument("--prompt_order", choices=("aha", "reference"), default="aha")
    how.add_argument("--cache", choices=CACHES, default="full")
    how.add_argument("--window", type=int, metavar="N", help="tokens kept by a bounded cache (default 2048)")
    how.add_argument("--sink_tokens", type=int, metavar="N", help="first tokens that --cache sink always keeps (default 32)")
    how.add_argument("--cache_semantics", choices=("aha", "reference"), default="aha")
    how.add_argument(
        "--chunk_frames", type=int, default=64, metavar="N", help="frames in one forward call: speed only, not the scores (default 64)"
    )
    how.add_argument(
        "--feature_cache", metavar="DIR", help="keep vision features there (390 kB a frame in 16 bits) and use those that are there"
    )
    how.add_argument(
        "--readers", type=int, metavar="N", help="videos decoded at the same time (default: half the cores of this rank, 1 to 8)"
    )
    how.add_argument(
        "--compile", action="store_true", help="fuse the decoder's kernels (GPU; a minute of warm-up, worth it for many videos)"
    )
    how.add_argument("--engine", choices=("torchrun", "ray"), default="torchrun",
                     help="ray: as a Ray Data job, for several machines or very many videos (pip install 'ray[data]')")  # fmt: skip
    how.add_argument("--workers", type=int, metavar="N", help="of --engine ray (default: the cluster's GPUs, or 2 without)")
    speak = parser.add_argument_group("when to speak (without a threshold nothing is said)")
    speak.add_argument("--stream_end_prob_threshold", type=float, metavar="X", help="reply when a frame's score is above X")
    speak.add_argument(
        "--stream_end_score_sum_threshold", type=float, metavar="X", help="reply when the sum since the last reply is above X"
    )
    speak.add_argument("--score_heads", default="informative_score", metavar="A,B",
                       help="heads added up: informative_score, relevance_score, uncertainty_score (default: the first)")  # fmt: skip
    speak.add_argument("--uncertainty_wait_threshold", type=float, metavar="X", help="wait while the variance is above X")
    speak.add_argument("--max_wait_frames", type=int, default=10, metavar="N", help="wait at most N frames (default 10)")
    speak.add_argument("--remove_assistant_turns", action="store_true", help="a reply leaves no trace in what the model remembers")
    speak.add_argument("--repetition_penalty", type=float, metavar="X", help="divide the logits of words said before by X")
    speak.add_argument("--max_new_tokens", type=int, default=200, metavar="N", help="longest reply, in tokens (default 200)")
    parser.add_argument("--output", required=True, metavar="FILE", help="prediction file to write (JSON)")
    args = parser.parse_args(argv)
    if (args.video is None) == (args.dataset is None):
        parser.error("give either --video FILE or --dataset NAME")
    if args.query_time and len(args.query_time) != len(args.query):
        parser.error(f"{len(args.query)} --query but {len(args.query_time)} --query_time: give one time for each query, or none")
    if any(not time >= 0 for time in args.query_time):
        parser.error("--query_time must be 0 or more (seconds)")
    if args.dataset is not None and args.query:
        parser.error("--query is for --video; a benchmark has its own queries (--query_map replaces them)")
    if args.prompt_style != "specific" and (args.dataset is None or args.query_map is not None):
        parser.error("--prompt_style is for --dataset without --query_map")
    return args


def load_model(args: argparse.Namespace):
    """(model in evaluation mode, tokenizer)."""
    import torch

    from aha.models import AhaModel
    from aha.streaming.session import tokenizer_of

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device} but torch sees no GPU; use --device cpu or repair the driver.")
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    settings = {"dtype": dtype, "device": device, "attn_implementation": args.attn_implementation}
    if args.lora_pretrained is not None:
        model = AhaModel.from_base(args.llm_pretrained, args.lora_pretrained, **settings)
    else:
        model = AhaModel.from_pretrained(args.llm_pretrained, **settings)
    return model.eval(), tokenizer_of(model)


def score_settings(args: argparse.Namespace, model=None):
    """How to score; with `model`, its decoder is made once for all videos."""
    from aha.scoring.offline import ScoreSettings
    from aha.streaming.decoder import Decoder

    heads = tuple(args.score_heads.split(","))
    policies: list = []
    if args.stream_end_prob_threshold is not None:
        policies.append(Threshold(args.stream_end_prob_threshold, heads))
    if args.stream_end_score_sum_threshold is not None:
        policies.append(Accumulated(args.stream_end_score_sum_threshold, heads))
    policy = AnyOf(policies) if len(policies) > 1 else next(iter(policies), None)
    if args.uncertainty_wait_threshold is not None:
        if policy is None:
            raise UserError(
                "--uncertainty_wait_threshold waits with a reply; give --stream_end_prob_threshold or ..._score_sum_threshold too."
            )
        policy = UncertaintyHold(policy, args.uncertainty_wait_threshold, args.max_wait_frames)
    return ScoreSettings(
        policy=policy,
        frame_fps=args.frame_fps, max_num_frames=args.max_num_frames, sampling=args.sampling, chunk_frames=args.chunk_frames,
        session={
            "cache": args.cache, "window": args.window, "sink_tokens": args.sink_tokens, "cache_semantics": args.cache_semantics,
            "prompt_order": args.prompt_order, "remove_assistant_turns": args.remove_assistant_turns,
            "repetition_penalty": args.repetition_penalty, "max_new_tokens": args.max_new_tokens,
            "decoder": None if model is None else Decoder(model, args.compile),
        },
        feature_cache=args.feature_cache,
        corruption=Corruption(args.corrupt, args.corrupt_ratio, args.seed) if args.corrupt else None,
    )  # fmt: skip


def score_one(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from aha.scoring.offline import score_video
    from aha.video.reader import probe

    score_settings(args)  # wrong settings and
    info = probe(args.video)  # a wrong path are said at once, before the model is loaded
    queries = [Query(text, time) for text, time in zip(args.query, args.query_time or [0.0] * len(args.query))]
    late = [query for query in queries if query.time >= info.duration]
    if late:
        print(
            f"warning: query {late[0].text!r} at {late[0].time:g} s is after the end of the video ({info.duration:.1f} s)", file=sys.stderr
        )
    model, tokenizer = load_model(args)
    settings = score_settings(args, model)
    frames = args.max_num_frames or max(int(info.duration * args.frame_fps), 1)
    with tqdm(total=frames, unit=" frames", desc="scoring", disable=None) as bar:
        entry = score_video(model, tokenizer, args.video, queries, settings, lambda done: bar.update(done - bar.n))
    write_json(args.output, [entry])
    print(f"{len(entry['debug_data'])} frames scored -> {args.output}")


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.video is not None:
        score_one(args)
    else:
        from aha.scoring.dataset import score_dataset  # that file asks this one for the model

        score_dataset(args)


if __name__ == "__main__":
    run_command(main)
