"""What is kept under a key is found again for the same content only: names, sizes and dates of files say nothing of it."""

from __future__ import annotations

import os

import pytest
from eval_data import write_hisum
from highlights_media import make_video

from aha.conversation import Query
from aha.core.content import STRIDE, WHOLE, content_hash, local_identity
from aha.scoring import vlm
from aha.scoring.dataset import Item


def same_size(path, other: bytes) -> None:
    """Other bytes in a file whose size and times stay."""
    facts = path.stat()
    path.write_bytes((other * facts.st_size)[: facts.st_size])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("size", (1, WHOLE, WHOLE + 1, WHOLE + 3 * STRIDE + 5))
def test_a_file_is_known_by_its_bytes(tmp_path, size):
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    for path in (first, second):
        with path.open("wb") as file:
            file.truncate(size)  # zeros, which take no room
    assert content_hash(first) == content_hash(second)
    with second.open("ab") as file:
        file.write(b"\0")
    assert content_hash(first) != content_hash(second)
    os.truncate(second, size)
    with second.open("r+b") as file:
        file.seek((size - 1) // STRIDE * STRIDE)
        file.write(b"1")
    assert content_hash(first) != content_hash(second)


def test_replies_of_a_vlm_are_those_of_the_video_and_of_the_model(tmp_path):
    video = tmp_path / "clip.mp4"
    make_video(video, seconds=3, fps=5, size=(64, 48), sound=False)

    def keys(path, model="m") -> list[str]:
        item = Item("0", "clip", str(path), 3.0, (Query("what"),), {})
        return [call.key for call in vlm.calls_of(item, local_identity(str(model)), 1.0, vlm.VlmSettings(), True)]

    before = keys(video)
    moved = video.rename(tmp_path / "other.mp4")
    assert keys(moved) == before and len(set(before)) == 3
    data = bytearray(moved.read_bytes())
    data[data.rindex(b"mdat") + 60] ^= 1
    moved.write_bytes(data)
    assert not set(keys(moved)) & set(before)

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 99)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    trained = keys(moved, folder)
    for name in ("model.safetensors", "chat_template.jinja"):
        same_size(folder / name, b"1")
        assert not set(keys(moved, folder)) & set(trained)
        trained = keys(moved, folder)
    assert local_identity(str(folder)).startswith(f"local {folder} (") and local_identity("some/hub-id") == "local some/hub-id"


def test_videos_of_the_same_size_are_other_data_of_a_table(tmp_path):
    from aha.reproduce.steps import data_key
    from aha.reproduce.tables import Run

    write_hisum(tmp_path / "hisum/annotations")
    video = tmp_path / "hisum/videos/one.mp4"
    video.parent.mkdir()
    video.write_bytes(b"0" * 99)
    before = data_key("hisum", Run(data=str(tmp_path)))
    assert data_key("hisum", Run(data=str(tmp_path))) == before
    same_size(video, b"1")
    assert data_key("hisum", Run(data=str(tmp_path))) != before
