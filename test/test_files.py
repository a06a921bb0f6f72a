"""What is read from strangers' files: text with or without a byte order mark, gzipped or not, and HDF5 that stays inside its own file."""

from __future__ import annotations

import gzip
import json

import h5py
import numpy as np
import pytest

from aha.core import files
from aha.core.files import read_csv, read_json, read_text
from aha.core.h5 import H5File
from aha.errors import UserError
from aha.eval.annotations import read_tvsum
from aha.eval.community import read_h5
from aha.eval.data_hisum import HiSumFile
from aha.eval.shots import read_shots

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("before", [b"", BOM])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_text_json_and_csv_with_and_without_a_byte_order_mark(tmp_path, before, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(before + "é".encode()))
    assert read_text(path, "text") == "é"
    path.write_bytes(pack(before + b'{"a": [1]}'))
    assert read_json(path, "object") == {"a": [1]}
    path.write_bytes(pack(before + b'id,title\nx,"a, ""b"""\n'))
    assert read_csv(path, ("id",), "table") == [(2, {"id": "x", "title": 'a, "b"'})]


def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with pytest.raises(UserError, match="a table .*file does not exist"):
        read_csv(path, ("id",), "a table")
    for content, said in ((b"\xff\xfe1", "UTF-8"), (gzip.compress(b"x" * 99)[:-9], "cut off"), (b'{"a": ', "line 1")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_json(path, "an object")
    monkeypatch.setattr(files, "LARGEST", 1000)
    path.write_bytes(gzip.compress(b"1" * 2000))
    with pytest.raises(UserError, match="unpacks to more than"):
        read_text(path, "a text")


def outside(folder):
    """A local file whose bytes must not come back as scores."""
    (folder / "secret.txt").write_bytes(b"8 bytes!" * 4)
    with h5py.File(folder / "other.h5", "w") as file:
        file["gtscore"] = np.zeros(4)
    return folder / "secret.txt"


def huge(file, folder):
    file.create_dataset("video_1/gtscore", (9_000_000_000,), dtype="f8", chunks=(1000,), compression="gzip")


def external_storage(file, folder):
    file.create_dataset("video_1/gtscore", (4,), dtype="f8", external=[(str(outside(folder)), 0, 32)])


def virtual(file, folder):
    outside(folder)
    layout = h5py.VirtualLayout((4,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "gtscore", shape=(4,))
    file.create_virtual_dataset("video_1/gtscore", layout)


def external_link(file, folder):
    outside(folder)
    file.create_group("video_1")["gtscore"] = h5py.ExternalLink(str(folder / "other.h5"), "gtscore")


def external_group(file, folder):
    outside(folder)
    file["video_1"] = h5py.ExternalLink(str(folder / "other.h5"), "/")


def soft_link(file, folder):
    file["video_2/gtscore"] = np.zeros(4)
    file.create_group("video_1")["gtscore"] = h5py.SoftLink("/video_2/gtscore")


ATTACKS = {
    huge: "shape", external_storage: "other files", virtual: "other files", external_link: "is a link", external_group: "is a link",
    soft_link: "is a link",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_h5_takes_nothing_from_other_files_and_no_billions(tmp_path, attack):
    path = tmp_path / "mr_hisum.h5"
    with h5py.File(path, "w") as file:
        attack(file, tmp_path)
    with HiSumFile(path) as file, pytest.raises(UserError, match=ATTACKS[attack]) as error:
        file.read("video_1", with_summary=False)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_every_reader_of_h5_goes_the_same_way(tmp_path):
    for name, read in (
        ("change_points", lambda path: read_shots(path, {}, [])),
        ("user_summary", read_h5),
    ):
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset(f"video_1/{name}", (9_000_000_000, 2), dtype="i8", chunks=(1000, 2))
        with pytest.raises(UserError, match="shape"):
            read(path)
    path = tmp_path / "ydata-tvsum50.mat"
    with h5py.File(path, "w") as file:
        scores = file.create_dataset("scores", (20, 1_000_000_000), dtype="f8", chunks=(20, 1000))
        for field in ("video", "title", "category", "length", "nframes", "user_anno"):
            file.create_dataset(f"tvsum50/{field}", data=np.array([scores.ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
    with pytest.raises(UserError, match="shape"):
        read_tvsum(path)
    with h5py.File(path, "r+") as file:
        for field in ("video", "title", "category", "length", "nframes", "user_anno"):
            file[f"tvsum50/{field}"][0] = file["tvsum50"].ref
    with pytest.raises(UserError, match="no field of numbers"):
        read_tvsum(path)


def test_h5_fields(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/numbers"], file["group/name"] = np.arange(6).reshape(2, 3), "caf\u00e9"
    with H5File(tmp_path / "a.h5", "the file") as file:
        assert file.names() == ["group"]
        assert file.numbers("group/numbers").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert (file.text("group/name"), file.numbers("group/none"), file.numbers("none/none")) == ("caf\u00e9", None, None)
        with pytest.raises(UserError, match="group/name cannot be read"):
            file.numbers("group/name")
    with pytest.raises(UserError, match="the file .*b.h5 does not exist"):
        H5File(tmp_path / "b.h5", "the file")


def test_split_files_with_a_byte_order_mark(tmp_path):
    from aha.eval.data_hisum import read_keys

    (tmp_path / "split.json").write_bytes(BOM + json.dumps({"test_keys": ["video_1"]}).encode())
    assert read_keys(tmp_path / "split.json", "test") == ["video_1"]


def test_tvsum_files_with_a_byte_order_mark(tmp_path):
    rows = "".join("v\tVT\t1,2,3\n" for _ in range(20)).encode()
    (tmp_path / "ydata-tvsum50-anno.tsv").write_bytes(BOM + rows)
    (tmp_path / "ydata-tvsum50-info.tsv").write_bytes(BOM + b"category\tvideo_id\ttitle\turl\tlength\r\nVT\tv\tA title\turl\t0:02\r\n")
    assert list(read_tvsum(tmp_path)) == ["v"] and read_tvsum(tmp_path)["v"].title == "A title"
