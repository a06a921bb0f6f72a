"""Online scoring of one stream, batch 1: from a uint8 frame to three scores in Python, frame after frame.

    python benchmarks/score_online.py --size 7b --frames 7200            # one GPU
    python benchmarks/score_online.py --size tiny --frames 60            # a machine without a GPU

Random weights, dynamic sink. Prints latencies (p50, p95, p99), memory after 200 frames and at the end, the difference from the offline
engine on the first --check_frames frames, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from streaming_common import (
    arguments,
    compare,
    environment,
    floors,
    gpu_gib,
    percentiles,
    pictures,
    random_model,
    settle,
    synchronize,
    timed,
    tokenizer,
)

from aha.models.model import FrameScores
from aha.streaming import OnlineEngine, Session
from aha.streaming.caches import DEFAULT_WINDOW

QUERY = "tell me when someone falls"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--frames", type=int, default=7200)
    parser.add_argument("--window", type=int, default=DEFAULT_WINDOW, help="tokens (default %(default)s)")
    parser.add_argument("--cache", default="dynamic_sink")
    parser.add_argument("--check_frames", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=120.0, help="stop after this many seconds of scoring")
    args = parser.parse_args()
    device, dtype = settle(args)
    model, words = random_model(args.size, device, dtype), tokenizer()
    floor = floors(model, device)
    warm_up, engine = timed(device, lambda: OnlineEngine(model, window=args.window, tokenizer=words, compiled=not args.no_compile))
    print(f"warm-up (compile, capture): {warm_up:.1f} s", flush=True)
    frames = pictures(256)
    session = engine.open(QUERY, cache=args.cache)
    latencies: list[float] = []
    scores: list[FrameScores] = []
    memory = {}
    begin = time.perf_counter()
    for k in range(args.frames):
        start = time.perf_counter()
        values = session.push(frames[k % len(frames)])
        row = [float(value) for value in values]
        latencies.append(time.perf_counter() - start)
        if k < args.check_frames:
            scores.append(FrameScores(*(torch.tensor([value]) for value in row)))
        if k == 199 or k == args.frames - 1:
            synchronize(device)
            memory[f"gpu_gib_after_{k + 1}"] = gpu_gib(device, peak=False)
        if time.perf_counter() - begin > args.seconds:
            break
    total = time.perf_counter() - begin
    memory["gpu_gib_end"] = gpu_gib(device, peak=False)
    steady = latencies[min(50, len(latencies) // 2) :]
    plain = Session(model, QUERY, tokenizer=words, cache=args.cache, window=args.window)
    count = len(scores)
    expected = [plain.push(torch.from_numpy(frames[k : k + 32])) for k in range(0, min(count, 256), 32)]
    expected = FrameScores(*(torch.cat(values).cpu()[:count] for values in zip(*expected)))
    difference = compare(FrameScores(*(torch.cat(values) for values in zip(*scores))), expected)
    rate = len(latencies) / total
    result = {
        "benchmark": "score_online", **environment(args, device), "cache": args.cache, "window": args.window, "frames": len(latencies),
        "frames_per_second": round(rate, 2), **percentiles(steady), **memory, "warm_up_s": round(warm_up, 1),
        "floor": round(floor["online"], 1) if floor else None, "floor_share": round(rate / floor["online"], 3) if floor else None,
        "against_offline": difference,
    }  # fmt: skip
    limit = 1e-3 if dtype == torch.float32 else 0.1
    result["wrong"] = int(any(v > limit for k, v in difference.items() if k.startswith("max_diff_") and "uncert" not in k))
    for key, value in result.items():
        print(f"  {key:26} {value}")
    print(json.dumps(result))
    return result["wrong"]


if __name__ == "__main__":
    sys.exit(main())
