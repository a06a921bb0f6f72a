"""The index of a video folder: contents, re-use, unreadable videos."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from barcode_videos import write_video
from paths import shared_fixture

from aha.errors import UserError
from aha.video import library as module
from aha.video.library import index_videos


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos" / "more").mkdir(parents=True)
    write_video(tmp_path / "videos" / "a.mp4", "libx264")
    write_video(tmp_path / "videos" / "more" / "b.webm", "libvpx-vp9", count=10, fps=5)
    (tmp_path / "videos" / "text.mp4").write_text("no video")
    (tmp_path / "videos" / "notes.txt").write_text("not even a name of a video")
    return tmp_path / "videos"


def test_entries_agree_with_the_golden_ones(tmp_path):
    golden = json.loads(shared_fixture("reference/annotations/videos_metadata.json").read_text())
    for name in golden:
        shutil.copy(shared_fixture(f"reference/videos/{name}"), tmp_path)
    index = index_videos(tmp_path)
    assert index.keys() == golden.keys()
    for name, facts in golden.items():
        entry = index[name]
        assert {key: entry[key] for key in ("duration", "fps", "frame_count", "valid")} == {
            key: facts[key] for key in facts if key != "path"
        }
        assert entry["path"] == str(tmp_path / name)


def test_first_run_lists_what_cannot_be_read_once(folder, capsys):
    index = index_videos(folder)
    assert {name: entry["valid"] for name, entry in index.items()} == {"a.mp4": True, "more/b.webm": True, "text.mp4": False}
    assert (
        index["more/b.webm"]["fps"] == 5
        and index["more/b.webm"]["duration"] == pytest.approx(2)
        and index["more/b.webm"]["frame_count"] == 10
    )
    assert "no video or damaged" in index["text.mp4"]["error"] and "error" not in index["a.mp4"]
    listed = capsys.readouterr().err
    assert "1 of 3 videos" in listed and "text.mp4" in listed
    assert json.loads((folder / "videos_metadata.json").read_text()) == index
    assert index_videos(folder) == index
    assert "text.mp4" not in capsys.readouterr().err


def test_only_new_and_changed_files_are_read_again(folder, monkeypatch):
    index_videos(folder)
    looked_at = []
    monkeypatch.setattr(
        module, "probe_entry", lambda path, original=module.probe_entry: looked_at.append(os.path.basename(path)) or original(path)
    )
    index_videos(folder)
    assert looked_at == []
    write_video(folder / "text.mp4", "mpeg4", count=5)
    write_video(folder / "c.avi", "mpeg4", count=5)
    os.remove(folder / "a.mp4")
    index = index_videos(folder)
    assert sorted(looked_at) == ["c.avi", "text.mp4"]
    assert {name: entry["valid"] for name, entry in index.items()} == {"c.avi": True, "more/b.webm": True, "text.mp4": True}
    assert "a.mp4" not in json.loads((folder / "videos_metadata.json").read_text())


def test_entries_without_size_and_time_are_made_again_and_some_paths_keep_the_others(folder, tmp_path):
    cache = tmp_path / "elsewhere" / "index.json"
    cache.parent.mkdir()
    other = {"valid": True, "duration": 1.0, "fps": 1.0, "frame_count": 1, "path": "x"}
    cache.write_text(json.dumps({"a.mp4": {**other, "frame_count": 999}, "other.mp4": other}))
    index = index_videos(folder, cache, paths=["a.mp4", "gone.mp4"])
    assert index["a.mp4"]["frame_count"] == 50 and not index["gone.mp4"]["valid"] and "gone.mp4" in index["gone.mp4"]["error"]
    assert json.loads(cache.read_text())["other.mp4"] == other
    assert not (folder / "videos_metadata.json").exists()


def test_cut_off_video_is_not_valid(folder):
    data = (folder / "more" / "b.webm").read_bytes()
    (folder / "cut.webm").write_bytes(data[: len(data) * 2 // 3])
    entry = index_videos(folder)["cut.webm"]
    assert not entry["valid"] and "cut off" in entry["error"] and entry["frame_count"] == 0


def test_several_workers_give_the_same(folder):
    alone = index_videos(folder, workers=1)
    os.remove(folder / "videos_metadata.json")
    assert index_videos(folder, workers=2) == alone


def test_bad_folder_and_bad_index(folder, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        index_videos(tmp_path / "nowhere")
    (folder / "videos_metadata.json").write_text("{")
    with pytest.raises(UserError, match="videos_metadata.json is not valid JSON"):
        index_videos(folder)
    (folder / "videos_metadata.json").write_text("[]")
    with pytest.raises(UserError, match="one JSON object"):
        index_videos(folder)


def test_folder_that_cannot_be_written(folder, monkeypatch, capsys):
    def refuse(path, value):
        raise UserError(f"cannot write {path}: Read-only file system; choose another output path or free the disk.")

    monkeypatch.setattr(module, "write_json", refuse)
    assert index_videos(folder)["a.mp4"]["valid"]
    assert "Read-only" in capsys.readouterr().err
    with pytest.raises(UserError, match="Read-only"):
        index_videos(folder, folder / "index.json")
