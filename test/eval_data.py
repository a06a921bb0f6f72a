"""A small data set in the TVSum layout and one in the Mr.HiSum layout, made on the spot, for tests that need no golden numbers."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

CATEGORIES = ("garden", "street", "kitchen")


def write_tvsum(folder: Path, n_videos: int = 6, seconds: int = 20, fps: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """demo-anno.tsv and demo-info.tsv in `folder`; returns user scores [20, n] by video id."""
    rng = np.random.default_rng(seed)
    videos, rows, info = {}, [], ["category\tvideo_id\ttitle\turl\tlength"]
    for number in range(n_videos):
        video_id, category = f"clip-{number}", CATEGORIES[number % len(CATEGORIES)]
        shots = np.clip(np.rint(rng.normal(3, 1, seconds // 2) + rng.normal(0, 1, (20, seconds // 2))), 1, 5).astype(int)
        scores = np.repeat(shots, 2 * fps, axis=1)
        videos[video_id] = scores
        rows += [f"{video_id}\t{category}\t{','.join(map(str, row))}" for row in scores]
        info.append(f'{category}\t{video_id}\tThe "{category}" {number}\tgenerated\t{seconds // 60}:{seconds % 60:02d}')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo-anno.tsv").write_text("\n".join(rows) + "\n")
    (folder / "demo-info.tsv").write_text("\n".join(info) + "\n")
    return videos


def write_predictions(path: Path, videos: dict[str, np.ndarray], fps: int = 8, seed: int = 1) -> dict:
    """A prediction file in the project's layout, one sample a second, close to the mean annotation."""
    rng = np.random.default_rng(seed)
    entries = []
    for video_id, scores in videos.items():
        frames = list(range(0, scores.shape[1], fps))
        heads = [
            {"time": f / fps, "informative_score": 0.5, "relevance_score": float(scores[:, f].mean() / 5 + rng.normal(0, 0.05)),
             "uncertainty_score": 0.1}
            for f in frames
        ]  # fmt: skip
        entries.append({"video_uuid": video_id, "query": "q", "true_frames_list": frames, "debug_data": heads, "model_response_list": []})
    path.write_text(json.dumps(entries))
    return {entry["video_uuid"]: entry for entry in entries}


def write_mat(path: Path, videos: dict[str, np.ndarray], category: str = "VT", seconds: float = 20.0) -> None:
    """The struct of ydata-tvsum50.mat (MATLAB v7.3: references into #refs#, one UTF-8 byte in each 16-bit character)."""
    with h5py.File(path, "w") as file:
        refs, struct = file.create_group("#refs#"), file.create_group("tvsum50")
        columns: dict[str, list] = {name: [] for name in ("video", "title", "category", "length", "nframes", "user_anno")}
        for number, (video_id, scores) in enumerate(videos.items()):
            texts = {"video": video_id, "title": f"Título {number}", "category": category}
            values = {name: np.frombuffer(text.encode(), np.uint8).astype(np.uint16)[:, None] for name, text in texts.items()}
            values |= {"length": [[seconds]], "nframes": [[float(scores.shape[1])]], "user_anno": scores.astype(float)}
            for name, value in values.items():
                columns[name].append(refs.create_dataset(f"{name}{number}", data=np.asarray(value)).ref)
        for name, references in columns.items():
            struct.create_dataset(name, data=np.array(references, dtype=h5py.ref_dtype)[:, None], dtype=h5py.ref_dtype)


def write_hisum(folder: Path, n_videos: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """mr_hisum.h5, split.json, metadata.csv and predictions.json in `folder`; returns gtscore by video."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    with h5py.File(folder / "mr_hisum.h5", "w") as file:
        for number in range(1, n_videos + 1):
            n = 30 + 7 * number
            group = file.create_group(f"video_{number}")
            scores[f"video_{number}"] = group["gtscore"] = rng.random(n)
            cuts = np.array([0, *range(6, n - 3, 6), n])
            group["change_points"] = np.column_stack([cuts[:-1], cuts[1:]])
            group["gt_summary" if number % 2 else "gtsummary"] = (rng.random(n) < 0.15).astype(int)
    keys = list(scores)
    (folder / "split.json").write_text(json.dumps({"train_keys": keys[:1], "val_keys": [], "test_keys": keys[1:]}))
    rows = [f"{key},train0026,ab,tube{i},{len(scores[key])},9,[{i % 2 + 3}]" for i, key in enumerate(keys)]
    (folder / "metadata.csv").write_text("video_id,yt8m_file,random_id,youtube_id,duration,views,labels\n" + "\n".join(rows) + "\n")
    noisy = {key: np.round(values + rng.normal(0, 0.2, len(values)), 6).tolist() for key, values in scores.items()}
    (folder / "predictions.json").write_text(json.dumps(noisy))
    return scores
