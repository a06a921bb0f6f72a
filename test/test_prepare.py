"""aha.data.prepare: what is missing, what can be built, and the table of instructions/data.md."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from paths import REPO, shared_fixture

from aha.data import prepare
from aha.data.catalog import CATALOG, folders, markdown
from aha.data.mixture import read_config
from aha.errors import UserError
from aha.eval.annotations import read_tvsum


def run(root, name):
    prepare.main([name, "--root", str(root), "--no_index"])


def test_the_tables_of_the_documents_are_the_catalog():
    for document, table in (("instructions/data.md", markdown()), ("datasets/README.md", folders())):
        assert table in (REPO / document).read_text(), f"write {document} again from python -m aha.data.catalog"


def test_the_shipped_mixtures_name_the_catalogs_files():
    known = {f"datasets/{data.folder}/{path}" for data in CATALOG.values() for path in (data.videos, *(f.path for f in data.files))}
    for path in sorted((REPO / "configs/datasets").glob("*.json")):
        for entry in read_config(path):
            named = {entry[key] for key in ("videos", "annotations", "scores", "split", "metadata") if key in entry}
            assert named <= known, f"{path}: {named - known}"


def test_everything_missing_is_named_with_its_source(tmp_path, capsys):
    for name, data in CATALOG.items():
        with pytest.raises(UserError, match=f"{name} is not complete"):
            run(tmp_path, name)
        out = capsys.readouterr().out
        files = () if name == "tvsum" else data.files  # TVSum's annotations ship with the package
        assert all(str(tmp_path / data.folder / file.path) in out and file.source in out for file in files)
        assert data.video_source in out
    assert len((tmp_path / "tvsum" / "missing_videos.txt").read_text().split()) == 50
    prepare.main(["--root", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [data.name for data in CATALOG.values()]
    assert max(map(len, lines)) <= 80


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


def zipped(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def write_tar(path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def official_archive(path) -> None:
    """One annotated video, four more files beside it."""
    rows = "".join("v\tVT\t1,2,3\n" for _ in range(20))
    info = "category\tvideo_id\ttitle\turl\tlength\nVT\tv\tA title\turl\t0:02\n"
    videos = {f"video/{name}.mp4": f"{name} is not opened here" for name in "vwxyz"}
    parts = {
        "ydata-tvsum50-data.zip": zipped({"data/ydata-tvsum50-anno.tsv": rows, "data/ydata-tvsum50-info.tsv": info}),
        "ydata-tvsum50-video.zip": zipped({**videos, "__MACOSX/video/._v.mp4": "x"}),
    }
    write_tar(path, {f"ydata-tvsum50-v1_1/{name}": content for name, content in parts.items()})


def test_the_tvsum_archive_is_unpacked(tmp_path, capsys):
    official_archive(tmp_path / "tvsum" / "tvsum50_ver_1_1.tgz")
    run(tmp_path, "tvsum")
    assert "unpacked ydata-tvsum50-video.zip (5 files)" in (out := capsys.readouterr().out) and "complete" in out
    run(tmp_path, "tvsum")  # a second run has nothing to unpack
    assert "unpacked" not in capsys.readouterr().out
    video = tmp_path / "tvsum" / "ydata-tvsum50-v1_1" / "video" / "v.mp4"
    video.write_text("v is not opened her.")  # the same length, another content: damaged
    run(tmp_path, "tvsum")
    assert "unpacked ydata-tvsum50-video.zip (1 files)" in capsys.readouterr().out and video.read_text() == "v is not opened here"
    (tmp_path / "other" / "tvsum").mkdir(parents=True)
    (tmp_path / "other" / "tvsum" / "cut.tgz").write_bytes((tmp_path / "tvsum" / "tvsum50_ver_1_1.tgz").read_bytes()[:200])
    with pytest.raises(UserError, match="cut.tgz cannot be unpacked"):
        run(tmp_path / "other", "tvsum")


KILLED = """
import os, shutil, signal, sys
from aha.data import prepare

copies, copy = 0, shutil.copyfileobj

def counted(source, target):
    global copies
    copies += 1
    if copies == int(sys.argv[2]):
        target.write(source.read(5))
        target.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    copy(source, target)

shutil.copyfileobj = counted
prepare.main(["tvsum", "--root", sys.argv[1], "--no_index"])
"""


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 7])
def test_killed_while_it_unpacks_the_same_command_goes_on(tmp_path, at):
    official_archive(tmp_path / "tvsum" / "tvsum50_ver_1_1.tgz")
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(at)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and list(tmp_path.rglob("*.unpacking"))
    run(tmp_path, "tvsum")
    assert not list(tmp_path.rglob("*.unpacking"))
    folder = tmp_path / "tvsum" / "ydata-tvsum50-v1_1" / "video"
    assert [path.read_text() for path in sorted(folder.iterdir())] == [f"{name} is not opened here" for name in "vwxyz"]


def test_archives_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(prepare, "UNPACKED_FILES", 10)
    folder = tmp_path / "tvsum"
    for files, said in (
        ({"ydata/zeros": bytes(2 << 20)}, "unpacks to more than"),
        ({f"ydata/{i}": b"" for i in range(11)}, "unpacks to more than"),
        ({"../outside.txt": b"x"}, "outside the folder"),
        ({str(tmp_path / "outside.txt"): b"x"}, "outside the folder"),
    ):
        write_tar(folder / "a.tgz", files)
        with pytest.raises(UserError, match=said) as error:
            run(tmp_path, "tvsum")
        assert "\n" not in str(error.value) and "a.tgz" in str(error.value)
    (folder / "a.tgz").unlink()
    (folder / "ydata-tvsum50-video.zip").write_bytes(zipped({"video/zeros.mp4": bytes(2 << 20)}))
    with pytest.raises(UserError, match="video.zip unpacks to more than"):
        run(tmp_path, "tvsum")
    assert not list(tmp_path.rglob("outside.txt")) and not list(tmp_path.rglob("zeros*"))


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
