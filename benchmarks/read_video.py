"""Speed of the video reader: 1 frame a second out of H.264 videos, each decoder, with seldom and with frequent key frames.

    python benchmarks/read_video.py --seconds 120 --repeats 3

Makes the videos (1280x720, 30 frames a second, moving noise) in a temporary folder, reads each `--repeats` times in a process of its
own, and prints one JSON line last: the machine, the sizes, and for each decoder and key frame distance the median wall and processor
seconds and the peak memory. A decoder that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from aha.core.memory import peak_mib
from aha.errors import UserError
from aha.video.reader import read_video

WIDTH, HEIGHT, FPS = 1280, 720, 30


def make_video(path: Path, seconds: int, key_distance: int) -> None:
    rng = np.random.default_rng(0)
    scene_HWC = np.kron(rng.integers(0, 256, (HEIGHT // 16 + 20, WIDTH // 16 + 20, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    grain_HWC = rng.integers(0, 24, scene_HWC.shape, dtype=np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = key_distance
        stream.options = {"preset": "veryfast", "crf": "26", "x264-params": f"scenecut=0:keyint={key_distance}:min-keyint={key_distance}"}
        for number in range(seconds * FPS):
            y, x = number % 160, number * 2 % 200
            picture_HWC = scene_HWC[y : y + HEIGHT, x : x + WIDTH] // 2 + np.roll(grain_HWC, number * 37, axis=1)[:HEIGHT, :WIDTH]
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)


def read_once(path: str, backend: str, threads: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    frames = read_video(path, fps=1, backend=backend, threads=threads)
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_MB": peak_mib(),
        "frames": len(frames.frame_indices),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=120, help="length of the videos, seconds")
    parser.add_argument("--repeats", type=int, default=3, help="reads of each; the median is printed")
    parser.add_argument("--threads", type=int, default=2, help="decoding threads")
    parser.add_argument("--read", nargs=2, metavar=("FILE", "DECODER"), help=argparse.SUPPRESS)  # the process that reads
    arguments = parser.parse_args()
    if arguments.read:
        try:
            print(json.dumps(read_once(*arguments.read, arguments.threads)))
        except UserError as error:
            print(json.dumps({"error": str(error)}))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for key_distance in (250, 30):
            path = Path(folder) / f"keys_{key_distance}.mp4"
            make_video(path, arguments.seconds, key_distance)
            for backend in ("pyav", "decord", "torchcodec"):
                command = [sys.executable, __file__, "--threads", str(arguments.threads), "--read", str(path), backend]
                runs = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(arguments.repeats)]
                if "error" in runs[0]:
                    print(f"{backend}: {runs[0]['error']}", file=sys.stderr)
                    continue
                medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
                file_MB = round(path.stat().st_size / 1e6, 1)
                results.append({"decoder": backend, "key_distance": key_distance, "file_MB": file_MB, **medians})
                print(results[-1], flush=True)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    versions = {"python": platform.python_version(), "av": av.__version__}
    sizes = {"width": WIDTH, "height": HEIGHT, "video_fps": FPS, "seconds": arguments.seconds, "sample_fps": 1}
    settings = {"threads": arguments.threads, "repeats": arguments.repeats}
    print(json.dumps({"benchmark": "read_video", "machine": machine, **versions, "sizes": sizes, **settings, "results": results}))


if __name__ == "__main__":
    main()
