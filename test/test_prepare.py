"""aha.data.prepare: what is missing, what can be built, and the table of instructions/data.md."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from paths import REPO, shared_fixture

from aha.data import prepare
from aha.data.catalog import CATALOG, markdown
from aha.errors import UserError
from aha.eval.annotations import read_tvsum


def run(root, name):
    prepare.main([name, "--root", str(root), "--no_index"])


def test_data_md_is_the_catalog():
    assert markdown() in (REPO / "instructions" / "data.md").read_text(), (
        "write instructions/data.md again from aha.data.catalog.markdown()"
    )


def test_everything_missing_is_named_with_its_source(tmp_path, capsys):
    for name, data in CATALOG.items():
        with pytest.raises(UserError, match=f"{name} is not complete"):
            run(tmp_path, name)
        out = capsys.readouterr().out
        assert all(str(tmp_path / data.folder / file.path) in out and file.source in out for file in data.files)
        assert data.video_source in out
    prepare.main(["--root", str(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == len(CATALOG)


def test_tvsum_tables_from_the_mat_file(tmp_path, capsys):
    folder = tmp_path / "tvsum" / "ydata-tvsum50-v1_1" / "matlab"
    folder.mkdir(parents=True)
    (folder / "ydata-tvsum50.mat").symlink_to(shared_fixture("eval/ydata-tvsum50.mat"))
    with pytest.raises(UserError, match="1 things are missing"):  # the videos
        run(tmp_path, "tvsum")
    assert "wrote ydata-tvsum50-anno.tsv" in capsys.readouterr().out
    built = read_tvsum(tmp_path / "tvsum" / "ydata-tvsum50-v1_1" / "data" / "ydata-tvsum50-anno.tsv")
    official = read_tvsum(shared_fixture("eval/ydata-tvsum50-anno.tsv.gz"), shared_fixture("eval/ydata-tvsum50-info.tsv"))
    assert list(built) == list(official)
    for video_id, video in official.items():
        np.testing.assert_array_equal(built[video_id].user_scores, video.user_scores)
        assert (built[video_id].length_s, built[video_id].category) == (video.length_s, video.category)
    assert len((tmp_path / "tvsum" / "missing_videos.txt").read_text().split()) == 50


def test_the_tvsum_archive_is_unpacked(tmp_path, capsys):
    def zipped(files):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    rows = "".join("v\tVT\t1,2,3\n" for _ in range(20))
    info = "category\tvideo_id\ttitle\turl\tlength\nVT\tv\tA title\turl\t0:02\n"
    parts = {
        "ydata-tvsum50-data.zip": zipped({"data/ydata-tvsum50-anno.tsv": rows, "data/ydata-tvsum50-info.tsv": info}),
        "ydata-tvsum50-video.zip": zipped({"video/v.mp4": "not opened here"}),
    }
    (tmp_path / "tvsum").mkdir()
    with tarfile.open(tmp_path / "tvsum" / "tvsum50_ver_1_1.tgz", "w:gz") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"ydata-tvsum50-v1_1/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    run(tmp_path, "tvsum")
    assert "complete" in capsys.readouterr().out
    run(tmp_path, "tvsum")  # a second run has nothing to unpack
    assert "unpacked" not in capsys.readouterr().out
    (tmp_path / "other" / "tvsum").mkdir(parents=True)
    (tmp_path / "other" / "tvsum" / "cut.tgz").write_bytes((tmp_path / "tvsum" / "tvsum50_ver_1_1.tgz").read_bytes()[:200])
    with pytest.raises(UserError, match="cut.tgz cannot be unpacked"):
        run(tmp_path / "other", "tvsum")


def test_annotations_are_read_and_missing_videos_listed(tmp_path, capsys):
    folder = tmp_path / "shot2story"
    (folder / "annotations").mkdir(parents=True)
    (folder / "videos").mkdir()
    questions = [
        {"question_id": i, "video": f"v{i}.mp4", "conversation": [{"role": "user", "content": "?", "time": 0}], "answer": []}
        for i in range(3)
    ]
    (folder / "annotations" / "magqa_test.json").write_text(json.dumps(questions))
    (folder / "videos" / "v1.mp4").touch()
    with pytest.raises(UserError, match="1 things"):
        run(tmp_path, "magqa")
    assert "3 videos wanted, 1 of them" in capsys.readouterr().out
    assert (folder / "missing_videos.txt").read_text().split() == ["v0.mp4", "v2.mp4"]
    for name in ("v0.mp4", "v2.mp4"):
        (folder / "videos" / name).touch()
    run(tmp_path, "magqa")
    assert not (folder / "missing_videos.txt").exists()
    (folder / "annotations" / "magqa_test.json").write_text('[{"question_id": 1}]')
    with pytest.raises(UserError, match="element 0: answer is None, not a list"):
        run(tmp_path, "magqa")


def test_hisum_files_under_ahas_names_are_taken_over(tmp_path, capsys):
    folder = tmp_path / "hisum" / "annotations"
    folder.mkdir(parents=True)
    (folder / "mr_hisum_metadata.csv").write_text("video_id,youtube_id,title\nvideo_1,abc,A title\n")
    (folder / "split.json").write_text("{}")
    with pytest.raises(UserError, match="1 things"):
        run(tmp_path, "hisum")
    assert (folder / "metadata.csv").exists()
    assert (folder / "mr_hisum_split.json").exists()
    assert "mr_hisum.h5" in capsys.readouterr().out
