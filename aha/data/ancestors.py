"""Mixture files of MMDuet and Aha as entries of ours: a user's copy of configs/datasets/mmduetit.json or aha_config.json trains as it is.

    {"dataset_cls": "GroundingStreamDataset", "video_root": FOLDER, "anno_file": FILE, "metadata_path": FILE, "frame_fps": 0.5,
     "max_num_frames": 120}

What such an entry does not say is what their loader takes: 2 frames a second, 128 frames. `metadata_path` is their index of the videos; it
does not say what ours needs, so it is left as it is and ours is made beside the videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aha.errors import UserError

FRAME_FPS, MAX_NUM_FRAMES = 2.0, 128
COMMON = {"video_root": "videos", "anno_file": "annotations"}
CLASSES: dict[str, tuple[str, dict[str, str]]] = {  # class -> type of ours, their keys -> ours
    "DenseVideoCaptioningStreamDataset": ("captions", COMMON),
    "MAGQAStreamDataset": ("questions", COMMON),
    "GroundingStreamDataset": ("grounding", COMMON),
    "HIHD": ("hihd", COMMON),
    "HumanIntuitionDataset": ("tvsum", {**COMMON, "caption_file": "info"}),
    "HiSumDataset": ("hisum", {"video_root": "videos", "anno_file": "split", "hisum_h5_file": "scores", "hisum_metadata": "metadata"}),
}
INDEX = "videos_metadata.aha.json"  # theirs may be videos_metadata.json at the same place


def translated(entries: Sequence[Any], path: object) -> list[Any]:
    """The entries with those of the ancestors' form in ours; named after the folder that holds the videos' folder. Raises UserError."""
    found: list[Any] = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or "dataset_cls" not in entry:
            found.append(entry)
            continue
        ours = _translated(entry, f"dataset config {path}, entry {i}")
        taken = {other["name"] for other in found if isinstance(other, dict) and isinstance(other.get("name"), str)}
        name, number = ours["name"], 2
        while ours["name"] in taken:
            ours["name"], number = f"{name}_{number}", number + 1
        found.append(ours)
    return found


def _translated(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = entry["dataset_cls"]
    if not isinstance(kind, str) or kind not in CLASSES:
        raise UserError(f"{where}: dataset_cls {str(kind)[:40]!r} is none of {', '.join(CLASSES)}.")
    type_of_ours, keys = CLASSES[kind]
    known = {*keys, "dataset_cls", "metadata_path", "frame_fps", "max_num_frames"}
    if unknown := [key[:40] for key in entry if key not in known]:
        raise UserError(f"{where} has the unknown key {', '.join(unknown)}; an entry of {kind} may have {', '.join(sorted(known))}.")
    if missing := [key for key in keys if key not in entry]:
        raise UserError(f"{where} has no {', '.join(missing)}; an entry of {kind} needs {', '.join(keys)}.")
    ours = {"type": type_of_ours, **{own: entry[theirs] for theirs, own in keys.items()}}
    root = Path(str(ours["videos"]))
    ours["name"] = f"{root.parent.name or root.name}_{type_of_ours}"
    ours["index"] = str(root.parent / INDEX)
    return {**ours, "fps": entry.get("frame_fps", FRAME_FPS), "max_num_frames": entry.get("max_num_frames", MAX_NUM_FRAMES)}
