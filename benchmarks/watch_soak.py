"""A long watch in parts: memory, counters, and the budget of alerts, over hours of stream played as fast as it is scored.

    python benchmarks/watch_soak.py --hours 24 --streams 1 --parts 4          # a day of one stream, killed three times
    python benchmarks/watch_soak.py --hours 6 --streams 4 --parts 3
    python benchmarks/watch_soak.py --hours 0.1 --streams 2 --parts 2         # a look, about a minute
    python benchmarks/watch_soak.py --hours 24 --folder DIR --minutes 60      # at most an hour now; the same again goes on from there

Streams of the generated world (scenes of 10 to 40 seconds, a wanted thing in one of eight), one frame a second, the embedded demo model,
`aha watch --state --max_alerts_per_hour`. After each part the command is killed with kill -9 and started again. Prints the memory of the
process along the way (RSS, every twentieth of the work), what each stream counted, its alerts in each hour, the most in any hour, and one
JSON line last; the exit code is 1 where a frame is missing, an event is told in two ways, an hour is over budget, or memory grows. Where
--minutes end it early, that is said of what was seen ("share" of the work).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import psutil

from aha.demo.dataset import Target, different_thing
from aha.demo.scenes import draw_frame, random_scene, random_thing

WIDTH, HEIGHT = 128, 96
POOL = 200  # scenes that are drawn
WANTED = Target(colour="red")
GROWTH = 1.15  # that memory may have between the second fifth of the work and its end


def write_stream(path: Path, seconds: int, seed: int) -> int:
    """A video of one frame a second; returns the number of wanted scenes."""
    random = np.random.default_rng(seed)
    pool = []
    for n in range(POOL):
        wanted = n % 8 == 0
        things = [random_thing(random, WANTED.colour) if wanted else different_thing(WANTED, random)]
        pool.append((draw_frame(random_scene(random, things), 0.0, WIDTH, HEIGHT), wanted))
    shown = 0
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast", "g": "20", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        left = 0
        for _ in range(seconds):
            if left == 0:
                picture, wanted = pool[int(random.integers(POOL))]
                shown, left = shown + wanted, int(random.integers(10, 41))
            left -= 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return shown


class Told:
    """The events of all parts, read as they are written. What comes again after a restart must be the same."""

    def __init__(self, path: Path):
        self.path, self.place = path, 0
        self.events: dict[str, dict] = {}
        self.again = self.differ = 0
        self.counts: dict[str, dict] = {}  # the last status or end of each stream
        self.time: dict[str, float] = {}

    def read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self.place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.place += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # cut off by the kill
            name = event.get("stream", "s0")
            self.time[name] = max(self.time.get(name, 0.0), event["time"])
            if event["event"] in ("end", "status"):
                self.counts[name] = self.counts.get(name, {}) | event
            elif event["event"] in ("segment", "highlight"):
                known = self.events.setdefault(event["id"], event)
                self.again += known is not event
                self.differ += known is not event and any(known[key] != event[key] for key in ("event", "start", "end"))

    def alerts(self, name: str) -> list[float]:
        return sorted(e["time"] for e in self.events.values() if e["event"] == "highlight" and e.get("stream", "s0") == name)


def most_in_an_hour(moments: list[float]) -> int:
    return max((sum(start <= moment < start + 3600 for moment in moments) for start in moments), default=0)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="of each stream")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--parts", type=int, default=4, help="killed after each but the last")
    parser.add_argument("--alerts", type=float, default=6.0, help="--max_alerts_per_hour")
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--folder", type=Path, help="keep all here, and go on with what is here (default: a new folder)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="kill it after so long, and say what was seen")
    return parser


def drawn(args: argparse.Namespace, folder: Path, seconds: int) -> list[int]:
    """The streams, and how many scenes of each are wanted."""
    path, began = folder / "wanted.json", time.monotonic()
    if not path.is_file():
        wanted = [write_stream(folder / f"s{n}.ts", seconds, n) for n in range(args.streams)]
        path.write_text(json.dumps(wanted))
        print(f"{args.streams} streams of {seconds} s in {folder}, drawn in {time.monotonic() - began:.0f} s", flush=True)
    return json.loads(path.read_text())


def main() -> int:
    args = parser().parse_args()
    seconds = int(args.hours * 3600)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="aha-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    wanted = drawn(args, folder, seconds)
    cameras = folder / "cameras.toml"
    cameras.write_text("".join(f"[[camera]]\nname = 's{n}'\naddress = '{folder}/s{n}.ts'\n" for n in range(args.streams)))
    command = [sys.executable, "-m", "aha.cli", "watch", "--cameras", str(cameras), "--query", "red things", "--frame_fps", "1"]
    command += ["--state", str(folder / "state"), "--state_seconds", "5", "--max_alerts_per_hour", str(args.alerts)]
    command += ["--window", str(args.window), "--device", "cpu", "--on_event", f"jsonl:{folder}/received.jsonl", "--status_seconds", "10"]
    output, curve = folder / "events.jsonl", folder / "memory.jsonl"
    output.touch()
    curve.touch()
    told, started, code = Told(output), time.monotonic(), None
    told.read()
    done = sum(told.time.values()) / (seconds * args.streams)  # in earlier runs of this folder
    for part in range(1 + int(done * args.parts), args.parts + 1):
        with output.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        born, next_line = time.monotonic(), 0.0
        while (code := process.poll()) is None:
            time.sleep(1.0)
            told.read()
            share = sum(told.time.values()) / (seconds * args.streams)
            late = time.monotonic() - started > 60 * args.minutes
            if time.monotonic() - born > 20:  # the model is loaded
                rss = psutil.Process(process.pid).memory_info().rss / 2**20
                with curve.open("a") as file:
                    file.write(json.dumps([part, share, rss]) + "\n")
                if share >= next_line:
                    next_line = (int(20 * share) + 1) / 20
                    print(f"  part {part}, {share:5.1%}: {rss:.0f} MiB, {time.monotonic() - started:.0f} s", flush=True)
            if late or (part < args.parts and share >= part / args.parts):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                with output.open("ab") as file:
                    file.write(b"\n")
                break
        if code is not None or time.monotonic() - started > 60 * args.minutes:
            break  # it has ended by itself, or the time is up
    told.read()
    return report(args, folder, told, wanted, code, done, time.monotonic() - started)


def report(args: argparse.Namespace, folder: Path, told: Told, wanted: list[int], code: int | None, done: float, took: float) -> int:
    seconds = int(args.hours * 3600)
    share = sum(told.time.values()) / (seconds * args.streams)
    memory = [json.loads(line) for line in (folder / "memory.jsonl").read_text().splitlines()]
    early = [rss for _, at, rss in memory if 0.2 * share <= at < 0.4 * share] or [rss for _, _, rss in memory[:3]]
    late = [rss for _, at, rss in memory if at >= 0.8 * share] or [rss for _, _, rss in memory[-3:]]
    received = {json.loads(line)["id"] for line in (folder / "received.jsonl").read_text().splitlines() if line.endswith("}")}
    most = {name: most_in_an_hour(told.alerts(name)) for name in told.counts}
    for n, (name, counts) in enumerate(sorted(told.counts.items())):
        alerts = told.alerts(name)
        each = [sum(hour <= moment / 3600 < hour + 1 for moment in alerts) for hour in range(int(told.time[name] / 3600) + 1)]
        print(
            f"{name}: {counts['frames']} frames, {counts['dropped']} dropped, {wanted[n]} scenes of {seconds} s wanted, {len(alerts)} "
            f"alerts, at most {most[name]} in any hour (budget {args.alerts:g}); hour by hour {each}"
        )
    parts = {part: [rss for number, _, rss in memory if number == part] for part in sorted({number for number, _, _ in memory})}
    highlights = {i for i, event in told.events.items() if event["event"] == "highlight"}
    result = {
        "benchmark": "watch_soak", "hours": args.hours, "streams": args.streams, "parts": args.parts, "exit_code": code,
        "share": round(share, 4), "frames": sum(counts["frames"] for counts in told.counts.values()),
        "dropped": sum(counts["dropped"] for counts in told.counts.values()), "seconds": round(took, 1),
        "frames_per_second": round(seconds * args.streams * (share - done) / took, 1),
        "rss_mib_second_fifth": round(float(np.median(early)), 1),
        "rss_mib_last_fifth": round(float(np.median(late)), 1), "rss_mib_most": round(max(rss for _, _, rss in memory), 1),
        "rss_mib_parts": {part: [round(values[0]), round(float(np.median(values))), round(values[-1])] for part, values in parts.items()},
        "segments_told": len(told.events) - len(highlights), "alerts": len(highlights),
        "most_alerts_in_an_hour": max(most.values(), default=0),
        "told_again": told.again, "told_in_two_ways": told.differ, "alerts_not_received": len(highlights - received),
    }  # fmt: skip
    killed = code is None or code < 0
    whole = (code == 0 and [counts["frames"] for counts in told.counts.values()] == [seconds] * args.streams) or killed
    in_budget = result["most_alerts_in_an_hour"] <= args.alerts and not told.differ and (killed or not result["alerts_not_received"])
    grown = result["rss_mib_last_fifth"] >= GROWTH * result["rss_mib_second_fifth"]
    result["wrong"] = int(not whole or not in_budget or result["dropped"] > 0 or grown)
    print(json.dumps(result))
    return result["wrong"]


if __name__ == "__main__":
    sys.exit(main())
