"""What was scored, so that two results can be compared after videos have vanished: ids, sizes, hashes and durations.

    aha data manifest --predictions A.json B.json --videos datasets/hisum/videos --output manifest.json
    python -m aha.data.manifest --check manifest.json --videos datasets/hisum/videos    # which are there unchanged; exit code 1: not all

A manifest is {"videos": {id: {"file", "size": bytes, "sha256", "duration": seconds}}, "missing": {id: why}, "predictions": [files]}.
`python -m aha.eval.NAME --compare A.json B.json` compares on the videos that all files score and says how many are left.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aha.core.files import read_json, write_json
from aha.core.flags import check_outputs
from aha.core.prediction import read_predictions
from aha.errors import UserError, run_command
from aha.video.library import VideoFolder, probe_entry


def make_manifest(predictions: Iterable[str | Path], videos: str | Path, names: str | Path | None = None) -> dict[str, Any]:
    """The manifest of the videos that one of the prediction files scores. names: JSON {id: file name} where a file is not called as its id.

    Raises UserError for unreadable prediction files and a folder without any of the videos.
    """
    files = [str(path) for path in predictions]
    ids = dict.fromkeys(prediction.video_id for path in files for prediction in read_predictions(path))
    called = read_json(names, "file names") if names is not None else {}
    if not isinstance(called, dict) or not all(isinstance(name, str) for name in called.values()):
        raise UserError(f"file names {names} must be a JSON object {{video id: file name}}.")
    found, missing = {}, {}
    there = VideoFolder.below(videos)
    for video_id in tqdm(ids, desc="hashing", unit="video", disable=None, leave=False):
        name, reason = there.locate(called.get(video_id, video_id))
        if name is None:
            missing[video_id] = f"{reason} in {videos}"
            continue
        path = Path(videos) / name
        entry = probe_entry(str(path))
        if not entry["valid"]:
            missing[video_id] = entry["error"]
            continue
        found[video_id] = {"file": path.name, "size": entry["size"], "sha256": sha256(path), "duration": entry["duration"]}
    if not found:
        raise UserError(f"none of the {len(ids)} scored videos has a file in {videos}; check --videos, or give --names.")
    return {"videos": found, "missing": missing, "predictions": files}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: str | Path) -> dict[str, dict[str, Any]]:
    """The videos of a manifest. Raises UserError for another file."""
    document = read_json(path, "manifest")
    videos = document.get("videos") if isinstance(document, dict) else None
    needed = {"file": str, "size": int, "sha256": str, "duration": int | float}
    if not isinstance(videos, dict) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in needed.items()) for entry in videos.values()
    ):
        raise UserError(f"{path} is no manifest; `aha data manifest` writes one.")
    return videos


def differences(manifest: dict[str, dict[str, Any]], videos: str | Path) -> dict[str, str]:
    """{id: what has become of it} of the videos that are gone or have another content; a size that differs is not hashed."""
    changed = {}
    there = VideoFolder.below(videos)
    for video_id, entry in tqdm(manifest.items(), desc="hashing", unit="video", disable=None, leave=False):
        name, _ = there.locate(entry["file"])
        path = Path(videos) / name if name is not None else None
        if path is None:
            changed[video_id] = "gone"
        elif path.stat().st_size != entry["size"]:
            changed[video_id] = f"another file: {path.stat().st_size} bytes where {entry['size']} were scored"
        elif sha256(path) != entry["sha256"]:
            changed[video_id] = "another file: the same size, another content"
    return changed


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aha.data.manifest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", nargs="+", metavar="FILE", help="prediction files whose videos are listed")
    what.add_argument("--check", metavar="MANIFEST", help="say which videos of this manifest are gone or changed")
    parser.add_argument("--videos", required=True, metavar="DIR", help="folder of the video files")
    parser.add_argument("--names", metavar="JSON", help="{video id: file name}, where a file is not called as its id")
    parser.add_argument("--output", metavar="FILE", help="manifest to write (with --predictions)")
    args = parser.parse_args(argv)
    check_outputs(args, "output")
    if args.check:
        listed = read_manifest(args.check)
        changed = differences(listed, args.videos)
        for video_id, why in changed.items():
            print(f"  {video_id}: {why}")
        print(f"{len(listed) - len(changed)} of {len(listed)} videos are there as they were scored")
        if changed:  # as sha256sum -c does
            sys.exit(1)
        return
    if args.output is None:
        parser.error("--predictions needs --output")
    manifest = make_manifest(args.predictions, args.videos, args.names)
    write_json(args.output, manifest)
    print(f"{len(manifest['videos'])} videos listed, {len(manifest['missing'])} missing: {args.output}")


if __name__ == "__main__":
    run_command(main)
