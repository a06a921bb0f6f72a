"""Offline scoring of whole videos, from uint8 frames in host memory to scores in Python: frames a second, and whether they are right.

    python benchmarks/score_offline.py --size 7b                        # one GPU: full cache 240 and 1,200 frames, dynamic sink 2048
    python benchmarks/score_offline.py --size 7b --frames 240 --caches full --check_frames 48
    python benchmarks/score_offline.py --size tiny --frames 40          # a machine without a GPU

Random weights. Every run is warmed up on the first four chunks. Checked: the chunked scores of the first --check_frames frames against
frame by frame in the same type, and with --fp32 against float32. Prints a table and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import NamedTuple

import numpy as np
import torch
from streaming_common import arguments, compare, environment, floors, gpu_gib, pictures, random_model, settle, synchronize, timed, tokenizer

from aha.conversation import Query, QuerySchedule
from aha.models.model import FrameScores
from aha.streaming import Session
from aha.streaming.caches import DEFAULT_WINDOW
from aha.streaming.chunks import ReadAhead, embed_chunks, pixel_chunks, score_frames
from aha.streaming.decoder import Decoder


class Frame(NamedTuple):
    """As aha.video.reader.Frame, without the video decoders."""

    frame_CHW: np.ndarray
    frame_index: int
    time: float
    frame_time: float


QUERY = "how to repair a tyre"


def score(session: Session, frames, chunk: int) -> FrameScores:
    """The path of `python -m aha.score`, without the video decoder."""
    items = (Frame(frame, k, float(k), float(k)) for k, frame in enumerate(frames))
    chunks = ReadAhead(pixel_chunks(items, chunk, session.decoder.device.type == "cuda"), 4)
    scored = score_frames(session, embed_chunks(session.model, chunks), QuerySchedule([Query(QUERY)]))
    rows = [frame.row for frame in scored]
    return FrameScores(
        *(torch.tensor([row[name] for row in rows]) for name in ("informative_score", "relevance_score", "uncertainty_score"))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--frames", type=int, nargs="+", default=[240, 1200])
    parser.add_argument("--caches", nargs="+", default=["full", "dynamic_sink"])
    parser.add_argument("--window", type=int, default=DEFAULT_WINDOW, help="tokens (default %(default)s)")
    parser.add_argument("--chunk", type=int, default=64, help="frames in one forward call")
    parser.add_argument("--check_frames", type=int, default=200, help="enough for a past of over 4,096 tokens (default %(default)s)")
    parser.add_argument("--fp32", action="store_true", help="compare with float32 too (twice the memory, minutes on some devices)")
    args = parser.parse_args()
    device, dtype = settle(args)
    words = tokenizer()
    model = random_model(args.size, device, dtype)
    decoder = Decoder(model, compiled=not args.no_compile)
    if device.type == "cuda" and not args.no_compile:  # as aha.scoring.offline.Scorer does
        model.fuse_vision()
    frames = pictures(max(args.frames))
    floor = floors(model, device)
    runs, wrong = [], 0

    def session(cache: str, **settings) -> Session:
        return Session(model, tokenizer=words, cache=cache, window=args.window, decoder=decoder, **settings)

    for cache in args.caches:
        warm_up, _ = timed(device, score, session(cache), frames[: 4 * args.chunk + 3], args.chunk)
        for count in args.frames if cache == "full" else args.frames[-1:]:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds, scores = timed(device, score, session(cache), frames[:count], args.chunk)
            result = {
                "cache": cache, "frames": count, "frames_per_second": round(count / seconds, 2), "warm_up_s": round(warm_up, 1),
                "gpu_peak_gib": gpu_gib(device), "floor_share": round(count / seconds / floor["offline"], 3) if floor else None,
            }  # fmt: skip
            runs.append(result)
            print(result, flush=True)
        count = min(args.check_frames, max(args.frames))
        plain = Session(model, tokenizer=words, cache=cache, window=args.window)
        with torch.inference_mode():
            plain.ask(QUERY)
            single = [plain.push(frame) for frame in torch.from_numpy(frames[:count])]
        stepwise = FrameScores(*(torch.cat(values).cpu() for values in zip(*single)))
        result["against_frame_by_frame"] = compare(FrameScores(*(v[:count] for v in scores)), stepwise)
        print(f"{cache}: chunked against frame by frame, {count} frames: {result['against_frame_by_frame']}", flush=True)
        limit = 1e-3 if dtype == torch.float32 else 0.1
        wrong += any(v > limit for k, v in result["against_frame_by_frame"].items() if k.startswith("max_diff_") and "uncert" not in k)
    stages = {}
    with torch.inference_mode():
        chunk = torch.from_numpy(frames[: args.chunk])
        chunk = chunk.pin_memory() if device.type == "cuda" else chunk
        model.visual_embed(chunk)
        seconds, visual = timed(device, lambda: [model.visual_embed(chunk) for _ in range(3)][0])
        stages["vision"] = round(3 * len(chunk) / seconds, 1)
        for cache in args.caches:
            one = session(cache, query=QUERY)
            one.push_embeds(visual)
            seconds, _ = timed(device, lambda one=one: [one.push_embeds(visual) for _ in range(3)])
            stages[f"decoder_{cache}"] = round(3 * len(chunk) / seconds, 1)
    print("frames a second of the stages alone:", stages, flush=True)
    if args.fp32:
        print(json.dumps({"benchmark": "score_offline", "stages": stages, "runs": runs, "wrong": wrong}), flush=True)
        count = min(args.check_frames, max(args.frames))
        low_name = str(dtype).removeprefix("torch.")
        low = {cache: score(session(cache), frames[:count], args.chunk) for cache in args.caches}
        model.float()
        synchronize(device)
        for cache, scores in low.items():
            exact = score(Session(model, tokenizer=words, cache=cache, window=args.window), frames[:count], args.chunk)
            stages[f"{low_name}_against_float32_{cache}"] = compare(scores, exact)
            print(f"{cache}: against float32, {count} frames:", stages[f"{low_name}_against_float32_{cache}"], flush=True)
    print(
        json.dumps(
            {"benchmark": "score_offline", **environment(args, device), "floor": floor, "stages": stages, "runs": runs, "wrong": wrong}
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
