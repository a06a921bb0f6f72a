"""Many live streams on one device: total frames a second, latency when every stream sends 2 frames a second, memory of a stream.

    python benchmarks/score_many_streams.py --size 7b --streams 32 100       # one GPU
    python benchmarks/score_many_streams.py --size tiny --streams 4 --window 512 --max_batch 4 --seconds 4 --fps 0.5   # without a GPU

Random weights, dynamic sink. Checked: the batched scores of the first stream against the same stream alone. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from streaming_common import arguments, compare, environment, gpu_gib, percentiles, pictures, random_model, settle, timed, tokenizer

from aha.models.model import FrameScores
from aha.streaming import OnlineEngine, Session
from aha.streaming.caches import DEFAULT_WINDOW
from aha.streaming.live import LiveStreams


def saturated(engine: OnlineEngine, sessions: list[Session], frames, rounds: int, first: list[FrameScores]) -> float:
    """Frames a second when every stream always has a frame waiting. Appends the first stream's scores to `first`."""
    start = time.perf_counter()
    for k in range(len(first), len(first) + rounds):
        scores = engine.push(sessions, [frames[(n + k) % len(frames)] for n in range(len(sessions))])
        first.append(FrameScores(*(values[:1] for values in scores)))
    return rounds * len(sessions) / (time.perf_counter() - start)


def live(engine: OnlineEngine, sessions: list[Session], frames, fps: float, seconds: float) -> dict:
    """Latency from offer to scores when each stream sends `fps` frames a second, evenly spread, in real time."""
    streams = LiveStreams(engine, max_waiting=4)
    arrivals = sorted((k / fps + n / (fps * len(sessions)), n) for n in range(len(sessions)) for k in range(max(int(seconds * fps), 1)))
    waited: list[float] = []
    dropped, next_one, begin = 0, 0, time.perf_counter()
    while next_one < len(arrivals) or streams.waiting:
        now = time.perf_counter() - begin
        while next_one < len(arrivals) and arrivals[next_one][0] <= now:
            at, n = arrivals[next_one]
            dropped += not streams.offer(sessions[n], frames[next_one % len(frames)], at)
            next_one += 1
        scored = streams.step()
        waited += [s.waited for s in scored]
        if not scored:
            time.sleep(0.0005)
    return {"fps_each": fps, "offered": len(arrivals), "dropped": dropped, **percentiles(waited)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 100])
    parser.add_argument("--window", type=int, default=DEFAULT_WINDOW, help="tokens (default %(default)s)")
    parser.add_argument("--max_batch", type=int, default=32, help="streams in one forward call")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second that each stream sends in the latency test")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each part")
    args = parser.parse_args()
    device, dtype = settle(args)
    model, words = random_model(args.size, device, dtype), tokenizer()
    frames = pictures(128)
    warm_up, engine = timed(
        device,
        lambda: OnlineEngine(
            model,
            window=args.window,
            max_streams=max(args.streams),
            max_batch=args.max_batch,
            tokenizer=words,
            compiled=not args.no_compile,
        ),
    )
    print(f"warm-up (compile, capture of {[graph.size for graph in engine.graphs]}): {warm_up:.1f} s", flush=True)
    runs = []
    first: list[FrameScores] = []
    for count in args.streams:
        sessions = [engine.open(f"question {n}") for n in range(count)]
        first = []
        rate = saturated(engine, sessions, frames, 3, first)  # warm: fills part of the windows
        # enough rounds to fill the window of 41 frames before measuring would take long; the shapes, and so the times, are the same
        rate = saturated(engine, sessions, frames, max(int(args.seconds * rate / count), 2), first)
        result = {"streams": count, "frames_per_second": round(rate, 1), **live(engine, sessions, frames, args.fps, args.seconds)}
        result["mib_per_stream"] = round(engine.pool.nbytes / max(args.streams) / 2**20, 1)
        result["gpu_gib"] = gpu_gib(device, peak=False)
        runs.append(result)
        print(result, flush=True)
        for session in sessions:
            session.close()
    alone = Session(model, "question 0", tokenizer=words, cache="dynamic_sink", window=args.window)
    batched = FrameScores(*(torch.cat(values) for values in zip(*first[:64])))
    pushed = [alone.push(torch.from_numpy(frames[k % len(frames)])) for k in range(len(batched[0]))]
    difference = compare(batched, FrameScores(*(torch.cat(values).cpu() for values in zip(*pushed))))
    limit = 1e-3 if dtype == torch.float32 else 0.1
    wrong = int(any(v > limit for k, v in difference.items() if k.startswith("max_diff_") and "uncert" not in k))
    print("batched against alone:", difference)
    result = {"benchmark": "score_many_streams", **environment(args, device), "window": args.window, "max_batch": args.max_batch,
              "warm_up_s": round(warm_up, 1), "runs": runs, "against_alone": difference, "wrong": wrong}  # fmt: skip
    print(json.dumps(result))
    return wrong


if __name__ == "__main__":
    sys.exit(main())
