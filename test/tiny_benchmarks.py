"""Tiny benchmarks in their published layouts, made by the tests: videos of a few seconds, random annotations."""

from __future__ import annotations

import json
from pathlib import Path

import av
import h5py
import numpy as np
from paths import shared_fixture


def write_video(path: Path, seconds: int, seed: int, fps: int = 5) -> None:
    """An H.264 video whose picture changes every second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(seconds):
            picture = np.full((64, 96, 3), random.integers(0, 256, 3), np.uint8)
            picture[:32, :48] = random.integers(0, 256, 3)
            for _ in range(fps):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_tvsum(root: Path, videos: int = 3) -> Path:
    """Videos of 8 seconds in TVSum's folder layout; returns `root`."""
    random = np.random.default_rng(0)
    info, rows = ["category\tvideo_id\ttitle\turl\tlength"], []
    for i, category in enumerate(["VT", "GA", "MS", "PK", "PR"][:videos]):
        video_id = f"video{i}"
        write_video(root / "ydata-tvsum50-v1_1" / "video" / f"{video_id}.mp4", 8, seed=i)
        info.append(f"{category}\t{video_id}\tA title of {category}\turl\t0:08")
        rows += [f"{video_id}\t{category}\t" + ",".join(str(x) for x in np.repeat(random.integers(1, 6, 4), 10)) for _ in range(20)]
    data = root / "ydata-tvsum50-v1_1" / "data"
    data.mkdir()
    (data / "ydata-tvsum50-info.tsv").write_text("\n".join(info) + "\n")
    (data / "ydata-tvsum50-anno.tsv").write_text("\n".join(rows) + "\n")
    return root


def write_hisum(root: Path) -> Path:
    """Two videos of 12 seconds in Mr.HiSum's folder layout; returns `root`."""
    random = np.random.default_rng(0)
    annotations = root / "annotations"
    annotations.mkdir(parents=True)
    with h5py.File(annotations / "mr_hisum.h5", "w") as file:
        for i in range(2):
            write_video(root / "videos" / f"yt{i}.mp4", 12, seed=i)
            group = file.create_group(f"video_{i}")
            group["gtscore"], group["change_points"] = random.random(12), np.array([[0, 4], [4, 8], [8, 12]])
            group["gtsummary"] = np.repeat([0, 1, 0], 4)
    (annotations / "mr_hisum_split.json").write_text(json.dumps({"train_keys": [], "val_keys": [], "test_keys": ["video_0", "video_1"]}))
    (annotations / "metadata.csv").write_text("video_id,youtube_id,title\n" + "".join(f"video_{i},yt{i},A title\n" for i in range(2)))
    return root


LINES = {  # one line of each benchmark's annotations; {id} is the video, @ the question
    "charades": ("charades_sta_test.txt", "{id} 1.0 4.0##person opens a door."),
    "qvh": ("highlight_val_release.jsonl", json.dumps({
        "qid": "@", "query": "a door", "duration": 6, "vid": "{id}", "relevant_clip_ids": [1], "saliency_scores": [[4, 3, 4]],
        "relevant_windows": [[2, 4]],
    })),
    "youcook2": ("val-random_prompt.json", json.dumps({
        "question_id": "@", "video": "{id}.mp4", "conversation": [{"role": "user", "content": "Narrate.", "time": 0}],
        "answer": [{"role": "assistant", "time": [0, 3], "content": "Cut it."}, {"role": "assistant", "time": [3, 6], "content": "Fry it."}],
    })),
    "magqa": ("magqa_test.json", json.dumps({
        "question_id": "@", "video": "{id}.mp4", "conversation": [{"role": "user", "content": "What happens?", "time": 0}],
        "answer": [{"role": "assistant", "time": [0, 3], "content": "A door opens."}],
    })),
}  # fmt: skip


def write_benchmark(root: Path, name: str, present: int = 2, wanted: int = 3) -> None:
    """Videos of 6 seconds and annotations for one more than there are."""
    file, line = LINES[name]
    lines = []
    for i in range(wanted):
        if i < present:
            write_video(root / "videos" / f"v{i}_0.0_6.0.mp4", 6, seed=i)
        lines.append(line.replace("{id}", f"v{i}_0.0_6.0").replace("@", f"q{i}"))
    (root / "annotations").mkdir()
    text = "[" + ",".join(lines) + "]" if file.endswith(".json") else "\n".join(lines)
    (root / "annotations" / file).write_text(text)


def tiny_model() -> list[str]:
    """Options of the commands for the tiny published-layout checkpoint."""
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter")
    return ["--llm_pretrained", str(base), "--lora_pretrained", str(adapter), "--device", "cpu"]
