"""One look-up of a video by the name that annotations give it, for training, scoring and preparation."""

from __future__ import annotations

import json

import pytest
from test_data_mixture import make_video

from aha.eval import load_task
from aha.scoring.dataset import task_items
from aha.video.library import VIDEO_SUFFIXES, VideoFolder, index_videos, list_videos


def folder_of(*paths: str) -> VideoFolder:
    return VideoFolder(dict.fromkeys(paths, {}))


@pytest.mark.parametrize(
    ("paths", "name", "found"),
    [
        (["AB4CD.MP4"], "AB4CD", "AB4CD.MP4"),
        (["AB4CD.MP4"], "AB4CD.mp4", "AB4CD.MP4"),
        (["ab4cd.mp4"], "AB4CD", None),  # YouTube ids differ in capitals
        (["-esJrBWj2d8.mp4"], "-esJrBWj2d8.mp4", "-esJrBWj2d8.mp4"),
        (["a_60.0_210.0.mp4"], "a_60.0_210.0", "a_60.0_210.0.mp4"),
        (["a_60.0_210.0.mp4"], "somewhere/a_60.0_210.0.webm", "a_60.0_210.0.mp4"),
        (["a/v.mkv", "b/v.mkv"], "b/v.mp4", "b/v.mkv"),
        (["a/v.mkv", "b/v.mp4"], "v.mp4", "b/v.mp4"),
        (["v.webm", "v.mp4", "v.mkv"], "v", "v.mp4"),
        (["v.webm", "v.mp4"], "v.webm", "v.webm"),
        (["training/101/v.mp4"], "v", "training/101/v.mp4"),
        (["v.mp4"], "", None),
        ([f"v{suffix}" for suffix in VIDEO_SUFFIXES[::-1]], "v", "v.mp4"),
    ],
)  # fmt: skip
def test_locate(paths, name, found):
    path, reason = folder_of(*paths).locate(name)
    assert path == found and bool(reason) == (found is None)


def test_a_name_that_several_files_have_is_said():
    assert folder_of("a/v.mp4", "b/v.mp4").locate("v.mp4") == (None, "several files have this name (a/v.mp4, b/v.mp4)")


def test_every_suffix_in_capitals_or_not_is_listed_and_found(tmp_path):
    for i, suffix in enumerate(VIDEO_SUFFIXES):
        (tmp_path / f"v{i}{suffix.upper() if i % 2 else suffix}").touch()
    (tmp_path / ".v.mp4").touch()
    (tmp_path / "notes.txt").touch()
    listed = list_videos(tmp_path)
    assert len(listed) == len(VIDEO_SUFFIXES)
    assert all(VideoFolder(dict.fromkeys(listed, {})).locate(f"v{i}.mp4")[0] for i in range(len(VIDEO_SUFFIXES)))


def test_facts_of_an_index(tmp_path):
    make_video(tmp_path / "AB4CD.MP4", 1)
    (tmp_path / "broken.mp4").write_text("no video")
    folder = VideoFolder(index_videos(tmp_path, report=False))
    facts, reason = folder.find("AB4CD")
    assert (facts["frame_count"], facts["path"], reason) == (5, str(tmp_path / "AB4CD.MP4"), "")
    assert folder.find("broken")[0] is None and folder.find("broken")[1]
    assert folder.find("other") == (None, "no such video file")


def test_scoring_finds_the_videos_of_questions_and_names_missing_ones(tmp_path):
    row = {"duration": 8, "relevant_clip_ids": [], "saliency_scores": []}
    lines = [json.dumps({"qid": i, "vid": vid, "query": "x", **row}) for i, vid in enumerate(["a_60.0_210.0", "b", "c"])]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "highlight_val_release.jsonl").write_text("\n".join(lines))
    make_video(tmp_path / "videos" / "a_60.0_210.0.MP4", 1)
    (tmp_path / "videos" / "c.mp4").write_text("no video")
    (tmp_path / "videos" / "not_asked_about.mp4").write_text("no video")
    items, missing = task_items(load_task("qvh"), tmp_path)
    assert [(item.key, item.video_id, item.duration) for item in items] == [("0", "a_60.0_210.0", 8.0)]
    assert list(missing) == ["1", "2"] and "no such video file (b)" in missing["1"] and "c.mp4" in missing["2"]
    assert len(json.loads((tmp_path / "videos_metadata.json").read_text())) == 2  # only what is asked about is opened
