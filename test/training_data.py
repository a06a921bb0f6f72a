"""A data set in TVSum's layout that is small enough to train on in seconds: short generated videos, two titles, four raters. And the end of
a training run by `kill -9` in its middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from waiting import wait_for

FPS = 4


LONGEST = 1200  # seconds that a training run of the tests may take; on two quiet cores it is less than one minute


def kill_in_the_middle(process: subprocess.Popen, history: Path, log: Path) -> None:
    """SIGKILL for the group of a training run, once its `history` has three steps; fails where it ends by itself."""

    def is_there() -> bool:
        assert process.poll() is None, log.read_text()
        return history.is_file() and len(history.read_text().splitlines()) >= 3

    wait_for(is_there, LONGEST, "three steps are made")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_video(path: Path, seconds: int, seed: int) -> None:
    """Blocks of colour that change every second."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(seconds):
            picture = np.kron(rng.integers(0, 255, (3, 3, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
            for _ in range(FPS):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_tvsum(folder: Path, videos: int = 10, seconds: int = 6, seed: int = 0, longer: dict[int, int] | None = None, **entry) -> Path:
    """Write `videos` videos, the two TSV files and a mixture config; returns the config's path. longer: {number of a video: seconds};
    entry: other values for the mixture's entry."""
    rng = np.random.default_rng(seed)
    info = ["category\tvideo_id\ttitle\turl\tlength"]
    rows = []
    for k in range(videos):
        name, category, length = f"clip{k:02d}", ("VT", "GA")[k % 2], (longer or {}).get(k, seconds)
        write_video(folder / "video" / f"{name}.mp4", length, seed * 100 + k)
        info.append(f"{category}\t{name}\tA title about {category}\tnowhere\t0:{length:02d}")
        for _ in range(20):
            ratings = np.repeat(rng.integers(1, 6, -(-length // 2)), 2 * FPS)[: length * FPS]
            rows.append(f"{name}\t{category}\t{','.join(map(str, ratings))}")
    (folder / "info.tsv").write_text("\n".join(info) + "\n")
    (folder / "anno.tsv").write_text("\n".join(rows) + "\n")
    entry = {
        "fps": 1, "max_num_frames": 8,
        "name": "tvsum", "type": "tvsum", "videos": str(folder / "video"), "annotations": str(folder / "anno.tsv"), "info": str(folder / "info.tsv"),
        "index": str(folder / "videos_metadata.json"), **entry,
    }  # fmt: skip
    config = folder / "mixture.json"
    config.write_text(json.dumps([entry]))
    return config
