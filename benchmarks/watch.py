"""The code path of `aha watch`, frames from memory: feeds, queue, engine, segments, highlights, events; no decoding.

    python benchmarks/watch.py --size 7b --frames 3600                       # one GPU, one stream, as fast as it goes
    python benchmarks/watch.py --size 7b --streams 100 --fps 2 --frames 60   # live streams: from a frame's arrival to its decisions
    python benchmarks/watch.py --size tiny --frames 60 --streams 2           # a machine without a GPU
    python benchmarks/watch.py --size tiny --host_only 3584 --frames 3600    # what Python does beside the model

Random weights, dynamic sink. Without --fps every stream always has a frame waiting, and a latency is the time from one frame of a stream to
its next. With --fps the first second of all streams is told apart from the rest too: what each does once, all do then. Prints memory after
a quarter of the frames and at the end, the difference of the first stream's scores from those of a plain session on the first
--check_frames frames, and one JSON line last.

--host_only WIDTH leaves the model out: scores and mean tokens (of that width, 3584 in the 7B model) are random, everything else is the path
of a GPU, one step at a time. Prints what a frame costs in CPU time of the loop's thread, and for how much of it a GPU has nothing to do: from
the moment the scores are there to the next launch.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import threading
import time

import numpy as np
import torch
from streaming_common import arguments, environment, gpu_gib, percentiles, pictures, random_model, settle, timed, tokenizer

from aha.api import Highlighter
from aha.cli.commands import _watch_parser, online_of
from aha.core.fusion import fusion_of
from aha.core.memory import keep_for_good
from aha.streaming import Session
from aha.watch.cameras import Camera
from aha.watch.command import settings_of
from aha.watch.engine import Watch
from aha.watch.feed import Feed
from aha.watch.sources import SourceFrame

QUERY = "tell me when someone falls"


def frames_of(images: np.ndarray, count: int, number: int, fps: float | None, begin: threading.Event):
    """What a reader gives: `count` frames, at `fps` a second where that is given; streams are spread evenly over the time between."""
    begin.wait()
    start = time.monotonic() + (number % 97 / 97 / fps if fps else 0.0)
    for k in range(count):
        if fps:
            time.sleep(max(0.0, start + k / fps - time.monotonic()))
        yield SourceFrame(images[(k + number) % len(images)], k / (fps or 2.0), time.monotonic())


class HostOnly:
    """Takes the place of the model's steps, and reads the clock around them."""

    def __init__(self, watch: Watch, width: int):
        self.gaps: list[float] = []  # seconds of this thread from scores to the next launch
        self.there = 0.0
        watch.overlaps = True
        features = torch.randn(256, width, generator=torch.Generator().manual_seed(0))
        for graph in watch.engine.graphs:
            graph.features_BH = torch.zeros(graph.size, width)
            for host in graph.hosts:
                host.features = torch.zeros(graph.size, width)
            graph.look = graph.look_ahead = lambda: None
            graph.attend = functools.partial(self.launched, graph, features)
        watch.engine.collect = functools.partial(self.collected, watch.engine.collect)

    def launched(self, graph, features: torch.Tensor) -> None:
        self.gaps.append(time.thread_time() - self.there)
        graph.scores.uniform_(0, 0.15)  # calm: segments are long, and the windows of the change test full
        graph.features_BH.copy_(features[torch.randint(256, (graph.size,))])

    def collected(self, collect):
        scores = collect()
        self.there = time.thread_time()
        return scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--frames", type=int, default=3600, help="of each stream")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--fps", type=float, help="frames a second that each stream sends (default: as fast as they are scored)")
    parser.add_argument("--window", type=int, default=2048, help="tokens")
    parser.add_argument("--check_frames", type=int, default=96)
    parser.add_argument("--host_only", type=int, metavar="WIDTH", help="without the model")
    args = parser.parse_args()
    device, dtype = settle(args)
    model = Highlighter(random_model(args.size, device, dtype), tokenizer(), "random weights")
    flags = argparse.ArgumentParser()
    _watch_parser(flags)
    watch_args = flags.parse_args(["memory", "--window", str(args.window), *(["--no_compile"] if args.no_compile else [])])
    images, events = pictures(256), []
    decided: list[float] = []
    behind: dict[str, list[float]] = {"first_second": [], "afterwards": []}
    moments: dict[str, list[float]] = {}
    first: list[float] = []
    memory: dict[str, float | None] = {}
    quarter = args.frames * args.streams // 4

    def seen(stream, seconds, score, image_CHW) -> None:
        moments.setdefault(stream.name, []).append(time.thread_time() if args.host_only else time.monotonic())
        decided.append(stream.source.behind)
        behind["first_second" if seconds < 1 else "afterwards"].append(stream.source.behind)
        if stream.name == "stream 0":
            first.append(score)
        if len(decided) == quarter:
            memory["gpu_gib_quarter"] = gpu_gib(device, peak=False)

    settings = settings_of(watch_args, fusion_of(watch_args), online_of(watch_args))
    warm_up, watch = timed(
        device,
        lambda: Watch(
            model, watch_args, settings, lambda event, _: events.append(event), max_streams=args.streams, named=True, run_id="b", seen=seen
        ),
    )
    print(f"warm-up (compile, capture): {warm_up:.1f} s", flush=True)
    host = HostOnly(watch, args.host_only) if args.host_only else None
    begin = threading.Event()
    for n in range(args.streams):
        feed = Feed(frames_of(images, args.frames, n, args.fps, begin), 8, args.fps is not None, wake=watch.changed.set)
        watch.open(Camera(f"stream {n}", "memory", (QUERY,), args.fps or 2.0), feed)
    keep_for_good()  # as the command does
    start, used = time.perf_counter(), time.thread_time()
    begin.set()
    watch.run(threading.Event())
    total, used = time.perf_counter() - start, time.thread_time() - used
    memory["gpu_gib_end"] = gpu_gib(device, peak=False)
    gaps = [
        b - a for times in moments.values() for a, b in zip(times[min(50, len(times) // 2) :], times[min(50, len(times) // 2) + 1 :])
    ] or [total]
    parts = {f"{part}_{name}": value for part, late in behind.items() if args.fps and late for name, value in percentiles(late).items()}
    if host is not None:
        busy = {f"loop_{name}": value for name, value in percentiles(gaps[50:] or gaps).items()}
        idle = {f"without_work_{name}": value for name, value in percentiles(host.gaps[50:] or host.gaps).items()}
        print(json.dumps({"benchmark": "watch", "host_only": args.host_only, "streams": args.streams, "frames": len(decided),
                          "loop_ms_a_frame": round(1e3 * used / len(decided), 4), **busy, **idle, **parts,
                          "events": len(events)}))  # fmt: skip
        return 0
    ends = [event for event in events if event["event"] == "end"]
    plain = Session(model.model, QUERY, tokenizer=model.tokenizer, cache="dynamic_sink", window=args.window)
    count = min(args.check_frames, len(first))
    pushed = [plain.push(torch.from_numpy(images[k % 256 : k % 256 + 1])).relevance for k in range(count)]
    expected, got = torch.cat(pushed).double().cpu().numpy(), np.array(first[:count])
    ranks = np.argsort(np.argsort(expected)), np.argsort(np.argsort(got))
    difference = float(np.abs(expected - got).max())
    dropped = sum(event["dropped"] for event in ends)
    result = {
        "benchmark": "watch", **environment(args, device), "streams": args.streams, "fps_each": args.fps, "frames": len(decided),
        "frames_per_second": round(len(decided) / total, 2), **percentiles(decided if args.fps else gaps), **parts, "dropped": dropped,
        **memory,
        "warm_up_s": round(warm_up, 1), "events": len(events), "max_diff_relevance": float(f"{difference:.3g}"),
        "rank_correlation": round(float(np.corrcoef(*ranks)[0, 1]), 5),
    }  # fmt: skip
    whole = dropped or len(decided) == args.frames * args.streams
    result["wrong"] = int(difference > (1e-3 if dtype == torch.float32 else 0.1) or not whole)
    for key, value in result.items():
        print(f"  {key:26} {value}")
    print(json.dumps(result))
    return result["wrong"]


if __name__ == "__main__":
    sys.exit(main())
