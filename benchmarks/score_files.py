"""Whole videos from files: generated H.264 files, decoded by several threads while the device scores. Seconds per hour of video, and which
stage limits.

    python benchmarks/score_files.py --size 7b --videos 20 --seconds 180 --folder /tmp/score-files      # one GPU, 16 cores
    python benchmarks/score_files.py --size tiny --videos 2 --seconds 10 --height 360 --folder /tmp/score-files

The files are made once (some minutes on few cores) and kept in --folder. Random weights, full cache, 1 frame a second. JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
from streaming_common import arguments, environment, pictures, random_model, settle, timed, tokenizer

from aha.conversation import Query
from aha.core.files import atomic_path
from aha.scoring.config import ScoreConfig
from aha.scoring.dataset import Item, open_ahead
from aha.scoring.offline import Scorer
from aha.streaming import Session

FPS = 30


def write_video(path: Path, seconds: int, height: int, seed: int) -> None:
    """A moving pattern with noise, 16:9, one key frame in 250."""
    rng = np.random.default_rng(seed)
    width = height * 16 // 9 // 2 * 2
    field = rng.integers(0, 256, (height + 256, width + 256, 3), np.uint8)
    field = (field // 4 + np.add.outer(np.arange(height + 256), np.arange(width + 256))[..., None] // 8 % 192).astype(np.uint8)
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "threads": "1", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(seconds * FPS):
            y, x = (k * 2) % 256, (k * 3) % 256
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(field[y : y + height, x : x + width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=180, help="length of a video")
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--readers", type=int, default=min(max((os.cpu_count() or 1) // 2, 1), 8))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    paths = [args.folder / f"{args.height}p-{args.seconds}s-{k:03d}.mp4" for k in range(args.videos)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_video, *zip(*((p, args.seconds, args.height, k) for k, p in enumerate(paths) if not p.exists()))))
    device, dtype = settle(args)
    model, words = random_model(args.size, device, dtype), tokenizer()
    scorer = Scorer(model, words, ScoreConfig(compile=not args.no_compile))
    items = [Item(path.stem, path.stem, str(path), float(args.seconds), (Query("what is it about?"),)) for path in paths]
    with torch.inference_mode():
        for count in (3, scorer.config.chunk_frames):  # warm-up
            model.visual_embed(torch.from_numpy(pictures(count)))
    scorer.score(items[0].path, items[0].queries)

    def opened():
        return open_ahead(items, lambda item: scorer.open(item.path), args.readers)

    def decode_all() -> int:
        return sum(len(frames) for _, video in opened() for frames, _ in video.result().chunks)

    def score_all() -> int:
        return sum(len(scorer.score(video.result(), item.queries).rows()) for item, video in opened())

    decode_s, frames = timed(device, decode_all)
    total_s, scored = timed(device, score_all)
    some = torch.from_numpy(pictures(scorer.config.chunk_frames))
    with torch.inference_mode():
        vision_s, visual = timed(device, model.visual_embed, some)
    session = Session(model, "what is it about?", tokenizer=words, decoder=scorer.decoder)
    session.push_embeds(visual)
    decoder_s, _ = timed(device, session.push_embeds, visual)
    hours = args.videos * args.seconds / 3600
    rates = {"decoding": frames / decode_s, "vision": len(some) / vision_s, "decoder": len(some) / decoder_s}
    result = {
        "benchmark": "score_files", **environment(args, device), "cores": os.cpu_count(), "readers": args.readers, "videos": args.videos,
        "video_seconds": args.seconds, "height": args.height, "frames": scored, "seconds_per_video_hour": round(total_s / hours, 2),
        "frames_per_second": round(scored / total_s, 2), "stage_frames_per_second": {k: round(v, 1) for k, v in rates.items()},
        "limited_by": min(rates, key=rates.get), "wrong": int(scored != frames),
    }  # fmt: skip
    print(json.dumps(result))
    return result["wrong"]


if __name__ == "__main__":
    sys.exit(main())
