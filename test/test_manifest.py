"""The manifest of what was scored, with three videos lost and one changed."""

from __future__ import annotations

import hashlib
import json

import pytest
from tiny_benchmarks import write_video

from aha.data import manifest
from aha.errors import UserError


@pytest.fixture
def scored(tmp_path):
    for i in range(5):
        write_video(tmp_path / "videos" / f"v{i}.mp4", 2, seed=i)
    (tmp_path / "a.json").write_text(json.dumps({"videos": {f"v{i}": {"frames": [0, 5], "scores": [0.1, 0.2]} for i in range(5)}}))
    return tmp_path


def test_ids_sizes_hashes_and_durations(scored, capsys):
    manifest.main(["--predictions", str(scored / "a.json"), "--videos", str(scored / "videos"), "--output", str(scored / "m.json")])
    videos = manifest.read_manifest(scored / "m.json")
    assert list(videos) == [f"v{i}" for i in range(5)] and "5 videos listed, 0 missing" in capsys.readouterr().out
    content = (scored / "videos/v3.mp4").read_bytes()
    entry = videos["v3"]
    assert (entry["size"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert entry["duration"] == pytest.approx(2.0, abs=0.05)


def test_three_videos_lost_and_one_changed(scored, capsys):
    found = manifest.make_manifest([scored / "a.json"], scored / "videos")
    (scored / "m.json").write_text(json.dumps(found))
    for i in range(3):
        (scored / f"videos/v{i}.mp4").unlink()
    changed = bytearray((scored / "videos/v3.mp4").read_bytes())
    changed[-1] ^= 1
    (scored / "videos/v3.mp4").write_bytes(changed)
    with pytest.raises(SystemExit) as ended:
        manifest.main(["--check", str(scored / "m.json"), "--videos", str(scored / "videos")])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "v0: gone" in said and "v3: another file: the same size" in said and "1 of 5 videos are there as they were scored" in said
    again = manifest.make_manifest([scored / "a.json"], scored / "videos")
    assert set(again["missing"]) >= {"v0", "v1", "v2"} and "v4" in again["videos"]


def test_files_with_other_names_and_bad_input(scored):
    (scored / "names.json").write_text(json.dumps({f"v{i}": f"clip{i}.mp4" for i in range(5)}))
    with pytest.raises(UserError, match="none of the 5 scored videos"):
        manifest.make_manifest([scored / "a.json"], scored / "videos", scored / "names.json")
    (scored / "videos/v0.mp4").rename(scored / "videos/clip0.mp4")
    assert list(manifest.make_manifest([scored / "a.json"], scored / "videos", scored / "names.json")["videos"]) == ["v0"]
    with pytest.raises(UserError, match="is no manifest"):
        manifest.read_manifest(scored / "a.json")
