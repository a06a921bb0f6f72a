"""Speed and memory of the TVSum and Mr.HiSum evaluation; the last line is JSON.

    python benchmarks/eval_tvsum.py --annotations datasets/tvsum                 # a copy of TVSum; without one, random data of its size
    python benchmarks/eval_tvsum.py --hisum 31892                                # and that many random Mr.HiSum videos of 200 s

Each number comes from a process of its own: all protocols, `first` with an empty cache of baselines, `cached` the second time.
`wall_s` and `cpu_s` in seconds, `peak_mib` in MiB (largest resident size).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from aha.eval.annotations import read_tvsum
from aha.eval.grids import second_frames
from aha.eval.tvsum_facts import CATEGORIES, LENGTHS

SHOT = 180  # frames, of the shot list for f1_shots


def measured(argv: list[str], cache: Path) -> dict[str, float]:
    """Run a command; seconds and peak memory of that process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *argv], stdout=subprocess.DEVNULL, env={**os.environ, "AHA_CACHE": str(cache)})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(argv)} ended with exit code {process.returncode}")
    return {
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }


def random_tvsum(folder: Path) -> Path:
    """50 videos of TVSum's lengths, 20 people with random opinions on 2-second shots, in the TSV layout."""
    rng = np.random.default_rng(0)
    path = folder / "random-anno.tsv"
    with path.open("w") as anno, (folder / "random-info.tsv").open("w") as info:
        info.write("category\tvideo_id\ttitle\turl\tlength\n")
        for number, (video_id, (n, length)) in enumerate(LENGTHS.items()):
            category = list(CATEGORIES)[number % 10]
            info.write(f"{category}\t{video_id}\ttitle\turl\t{int(length) // 60}:{length % 60:06.3f}\n")
            shot = (np.arange(n) * length / n / 2).astype(int)
            opinions = rng.choice(5, size=(20, shot[-1] + 1), p=[0.35, 0.3, 0.2, 0.1, 0.05]) + 1
            for row in opinions:
                anno.write(f"{video_id}\t{category}\t{','.join(map(str, row[shot]))}\n")
    return path


def random_hisum(folder: Path, videos: int, seconds: int = 200) -> tuple[Path, Path]:
    """Random videos in the layout of mr_hisum.h5 (without features) and predictions for them."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / "mr_hisum.h5", "w") as file, (folder / "hisum.json").open("w") as predictions:
        for number in range(1, videos + 1):
            score = np.convolve(rng.random(seconds + 20), np.ones(21) / 21, "valid")
            cuts = np.unique(np.concatenate([[0, seconds], rng.choice(np.arange(1, seconds), 20, replace=False)]))
            group = file.create_group(f"video_{number}")
            group["gtscore"] = (score - score.min()) / (score.max() - score.min())
            group["change_points"] = np.column_stack([cuts[:-1], cuts[1:]])
            group["gt_summary"] = (rng.random(seconds) < 0.15).astype(int)
            scores = np.round(score + rng.normal(0, 0.1, seconds), 5).tolist()
            predictions.write(("{" if number == 1 else ",") + f'"video_{number}":{json.dumps(scores)}')
        predictions.write("}")
    return folder / "mr_hisum.h5", folder / "hisum.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--annotations", help="TVSum annotations (file or folder); default: random data of TVSum's size")
    parser.add_argument("--hisum", type=int, default=0, metavar="N", help="also N random Mr.HiSum videos of 200 s (default 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations = Path(args.annotations) if args.annotations else random_tvsum(folder)
        videos = read_tvsum(annotations)
        rng = np.random.default_rng(1)
        scores = {i: second_frames(v.n_frames, v.fps) for i, v in videos.items()}
        predictions = {i: {"frames": frames.tolist(), "scores": rng.random(len(frames)).round(5).tolist()} for i, frames in scores.items()}
        (folder / "predictions.json").write_text(json.dumps({"videos": predictions}))
        starts = {i: list(range(0, v.n_frames, SHOT)) for i, v in videos.items()}
        ends = {i: [s - 1 for s in starts[i][1:]] + [v.n_frames - 1] for i, v in videos.items()}
        (folder / "shots.json").write_text(json.dumps({i: list(zip(starts[i], ends[i])) for i in videos}))
        command = ["aha.eval.tvsum", "--annotations", str(annotations), "--predictions", str(folder / "predictions.json")]
        command += ["--shots", str(folder / "shots.json"), "--output", str(folder / "metrics.json")]
        result: dict[str, object] = {
            "benchmark": "eval_tvsum",
            "videos": len(videos),
            "annotations": "given" if args.annotations else "random",
        }
        result["first"] = measured(command, folder / "cache")
        result["cached"] = measured(command, folder / "cache")
        result["report"] = measured([*command, "--report", str(folder / "report")], folder / "cache")
        if args.hisum:
            h5, hisum_predictions = random_hisum(folder, args.hisum)
            command = ["aha.eval.hisum", "--annotations", str(h5), "--predictions", str(hisum_predictions)]
            result["hisum"] = {"videos": args.hisum, **measured([*command, "--output", str(folder / "h.json")], folder / "cache")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
