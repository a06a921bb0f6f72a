"""Bad annotation, prediction, shot, split and metadata files: one plain sentence each, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from eval_data import write_hisum, write_mat, write_predictions, write_tvsum
from paths import REPO

from aha.core.fusion import Fusion
from aha.core.prediction import read_predictions
from aha.errors import UserError
from aha.eval import hisum, tvsum
from aha.eval.annotations import read_tvsum
from aha.eval.grids import place


@pytest.fixture
def demo(tmp_path):
    videos = write_tvsum(tmp_path, n_videos=3)
    write_predictions(tmp_path / "predictions.json", videos)
    return tmp_path, videos


def plain(error: pytest.ExceptionInfo) -> str:
    """The sentence of an error: one line, ends as a sentence, names no Python internals."""
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", ")", "?")) and "Traceback" not in text and len(text) < 600, text
    return text


# ---------------------------------------------------------------- annotations

HEAD = "clip-1\tstreet\t"


def edit_line(text: str, number: int, change) -> str:
    lines = text.split("\n")
    lines[number] = change(lines[number])
    return "\n".join(lines)


BAD_TSV = {
    "empty": (lambda t: "", "is empty"),
    "score missing": (
        lambda t: edit_line(t, 22, lambda line: line.rsplit(",", 1)[0]),
        r":23: video clip-1, annotator 3 has 159 scores.*160",
    ),
    "no number": (lambda t: edit_line(t, 5, lambda line: line[:-1] + "x"), r":6 \(video clip-0, annotator 6\): score 159 is 'x'"),
    "out of range": (lambda t: edit_line(t, 5, lambda line: line[:-1] + "6"), "score 159 is '6'"),
    "not a number": (lambda t: edit_line(t, 5, lambda line: line[:-1] + "nan"), "score 159 is 'nan'"),
    "half points": (lambda t: edit_line(t, 5, lambda line: line[:-1] + "2.5"), "score 159 is '2.5'"),
    "row missing": (lambda t: "\n".join(t.split("\n")[:-3] + [""]), "clip-2 has 18 rows, not 20"),
    "row doubled": (lambda t: t.split("\n")[0] + "\n" + t, "clip-0 has 21 rows, not 20"),
    "video twice": (lambda t: t + "\n".join(t.split("\n")[:20]), "clip-0 is listed twice"),
    "unknown category": (lambda t: t.replace(HEAD, "clip-1\tstreets\t"), "unknown category 'streets' for video clip-1"),
    "changing category": (lambda t: t.replace(HEAD, "clip-1\tkitchen\t", 1), "clip-1 changes category"),
    "unknown video": (lambda t: t.replace("clip-1", "clop-1"), "clop-1 is not in"),
    "no tabs": (lambda t: t.replace("\t", " "), "1 columns where 3"),
    "no text": (lambda t: b"\xff\xfe" + t.encode(), "not UTF-8"),
    "cut off": (lambda t: t[: len(t) // 2], "scores where|rows, not 20|columns"),
}


@pytest.mark.parametrize("case", BAD_TSV)
def test_bad_annotation_tsv(case, demo):
    folder, _ = demo
    path = folder / "demo-anno.tsv"
    change, message = BAD_TSV[case]
    changed = change(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(UserError, match=message) as error:
        read_tvsum(path)
    assert "demo-anno.tsv" in plain(error)


BAD_INFO = {
    "empty": ("", "is empty"),
    "no header": ("garden\tclip-0\tTitle\turl\t0:20\n", "no column category, video_id, title, length"),
    "missing video": ("category\tvideo_id\ttitle\turl\tlength\ngarden\tclip-0\tT\tu\t0:20\n", "clip-1 is not in"),
    "bad length": ("category\tvideo_id\ttitle\turl\tlength\ngarden\tclip-0\tT\tu\tlong\n", "length 'long'"),
    "zero length": ("category\tvideo_id\ttitle\turl\tlength\ngarden\tclip-0\tT\tu\t0:00\n", "not above zero"),
    "columns": ("category\tvideo_id\ttitle\turl\tlength\ngarden\tclip-0\tT\tu\n", "4 columns where the header has 5"),
    "twice": ("category\tvideo_id\ttitle\turl\tlength\n" + "garden\tclip-0\tT\tu\t0:20\n" * 2, "listed twice"),
}


@pytest.mark.parametrize("case", BAD_INFO)
def test_bad_info_tsv(case, demo):
    folder, _ = demo
    text, message = BAD_INFO[case]
    (folder / "demo-info.tsv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_tvsum(folder / "demo-anno.tsv")
    assert "demo-info.tsv" in plain(error)


def test_missing_files(demo):
    folder, _ = demo
    for action, message in (
        (lambda: read_tvsum(folder / "nothing.tsv"), "does not exist"),
        (lambda: read_tvsum(folder / "demo-anno.tsv", folder / "nothing.tsv"), "nothing.tsv does not exist"),
        (lambda: list(read_predictions(folder / "nothing.json")), "does not exist"),
        (lambda: hisum.evaluate(None, folder / "nothing.h5"), "does not exist"),
        (lambda: hisum.evaluate(None, folder), "no mr_hisum.h5 in"),
    ):
        with pytest.raises(UserError, match=message) as error:
            action()
        plain(error)
    (folder / "demo-info.tsv").unlink()
    with pytest.raises(UserError, match="unknown category 'garden'"):
        read_tvsum(folder / "demo-anno.tsv")
    (folder / "demo-anno.tsv").write_text((folder / "demo-anno.tsv").read_text().replace("\tgarden\t", "\tVT\t"))
    with pytest.raises(UserError, match="length of video clip-0 is not known"):
        read_tvsum(folder / "demo-anno.tsv")


def test_bad_gzip(demo):
    import gzip

    folder, _ = demo
    packed = gzip.compress((folder / "demo-anno.tsv").read_bytes())
    (folder / "demo-anno.tsv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="damaged or cut off") as error:
        read_tvsum(folder / "demo-anno.tsv.gz")
    plain(error)


def test_bad_mat(demo):
    folder, videos = demo
    path = folder / "a.mat"
    cases = []
    path.write_bytes(b"MATLAB 5.0 MAT-file, no HDF5")
    cases.append("cannot be read")
    for message, change in (
        ("cannot be read|lacks", lambda f: None),
        (r"lacks the field length", lambda f: f["tvsum50"].__delitem__("length")),
        ("user_anno is", lambda f: f["#refs#/nframes1"].__setitem__(0, 99.0)),
        ("annotator 2, frame 5", lambda f: f["#refs#/user_anno2"].__setitem__((1, 5), 9.0)),
        ("annotator 1, frame 0", lambda f: f["#refs#/user_anno0"].__setitem__((0, 0), np.nan)),
        ("not above zero", lambda f: f["#refs#/length0"].__setitem__(0, -1.0)),
        ("unknown category", lambda f: f["#refs#/category0"].__setitem__(0, 88)),
    ):
        if "cannot" in message:
            write_mat(path, videos)
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
        else:
            write_mat(path, videos)
            with h5py.File(path, "a") as file:
                change(file)
        with pytest.raises(UserError, match=message) as error:
            read_tvsum(path)
        plain(error)


# ---------------------------------------------------------------- predictions


def entry_with(change) -> callable:
    def build(entries: list) -> list:
        change(entries[1])
        return entries

    return build


def head_with(index: int, name: str, value: object) -> callable:
    return entry_with(lambda e: e["debug_data"][index].__setitem__(name, value))


def repeat_without_times(entry: dict) -> None:
    entry["true_frames_list"][4] = 24
    for row in entry["debug_data"]:
        del row["time"]


def repeat_at_one_time(entry: dict) -> None:
    entry["true_frames_list"][4], entry["debug_data"][4]["time"] = 24, 3.0


BAD_PREDICTIONS = {
    "NaN": (head_with(7, "relevance_score", float("nan")), r"element 1 \(video clip-1\): relevance_score 7 is nan"),
    "infinite": (head_with(3, "relevance_score", float("inf")), r"clip-1\): relevance_score 3 is inf"),
    "huge": (head_with(3, "relevance_score", 10**400), "relevance_score 3 is inf"),
    "null": (head_with(3, "relevance_score", None), "relevance_score 3 is null"),
    "text": (head_with(3, "relevance_score", "0.5"), "relevance_score 3 is '0.5'"),
    "true": (head_with(3, "relevance_score", True), "relevance_score 3 is True"),
    "head missing": (entry_with(lambda e: e["debug_data"][2].pop("relevance_score")), "relevance_score 2 is null"),
    "wrong length": (entry_with(lambda e: e["debug_data"].pop()), "clip-1.* has 19 scores for 20 frames"),
    "no scores": (entry_with(lambda e: (e["debug_data"].clear(), e["true_frames_list"].clear())), "has no"),
    "frame beyond": (entry_with(lambda e: e["true_frames_list"].__setitem__(-1, 160)), "frame number 19 is 160, beyond.*160 frames"),
    "frame negative": (entry_with(lambda e: e["true_frames_list"].__setitem__(0, -1)), "frame number 0 is -1"),
    "frame half": (entry_with(lambda e: e["true_frames_list"].__setitem__(1, 8.5)), "frame number 1 is 8.5"),
    "not ascending": (entry_with(lambda e: e["true_frames_list"].__setitem__(4, 23)), r"frame number 4 \(23\) is not above"),
    "repeated without times": (entry_with(repeat_without_times), r"frame number 4 \(24\) is not above"),
    "repeated at one time": (entry_with(repeat_at_one_time), "time 4 is not after"),
    "unknown video": (entry_with(lambda e: e.__setitem__("video_uuid", "stranger")), "stranger not in"),
    "twice": (lambda entries: [*entries, entries[0]], "clip-0 is predicted twice"),
    "no id": (entry_with(lambda e: e.pop("video_uuid")), "no video id"),
    "no debug_data": (entry_with(lambda e: e.pop("debug_data")), "no debug_data"),
    "no object": (lambda entries: [1, 2], "element 0 is no object"),
    "empty list": (lambda entries: [], "holds no predictions"),
    "empty object": (lambda entries: {}, "holds no predictions"),
    "a number": (lambda entries: 3, "no prediction file"),
    "short, no scores": (lambda entries: {"videos": {"clip-0": {"frames": [0]}}}, "clip-0 has no list of scores"),
    "short, NaN": (lambda entries: {"videos": {"clip-0": {"frames": [0, 1], "scores": [0, float("nan")]}}}, r"clip-0\): score 1 is nan"),
    "plain, wrong count": (lambda entries: {"clip-0": [0.1] * 33}, "33 scores where 160 or 20 or 11 or 10"),
    "short, twice": (lambda entries: '{"clip-0": [1, 2], "clip-0": [1, 2]}', "predicted twice"),
    "metadata only": (lambda entries: {"model": "x"}, "no video id"),
    "cut off": (lambda entries: json.dumps(entries)[:2000], "cut off|not valid JSON"),
    "trailing": (lambda entries: json.dumps(entries) + "]", "text after the end|Extra data"),
    "deep": (lambda entries: "[" * 100_000, "not valid JSON|no usable JSON"),
    "bytes": (lambda entries: b"\xff\xfe\x00[", "not UTF-8"),
    "empty file": (lambda entries: "", "holds no predictions"),
    "html": (lambda entries: "<html>", "no prediction file"),
}


@pytest.mark.parametrize("case", BAD_PREDICTIONS)
def test_bad_predictions(case, demo):
    folder, _ = demo
    path = folder / "predictions.json"
    change, message = BAD_PREDICTIONS[case]
    value = change(json.loads(path.read_text()))
    path.write_bytes(value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode())
    benchmark = tvsum.load(folder / "demo-anno.tsv", protocols=["corr_full"])
    with pytest.raises(UserError, match=message) as error:
        benchmark.score(path)
    assert "predictions.json" in plain(error)


def test_times_that_do_not_ascend(demo):
    folder, _ = demo
    entries = json.loads((folder / "predictions.json").read_text())
    del entries[0]["true_frames_list"]
    entries[0]["debug_data"][4]["time"] = 0.0
    (folder / "predictions.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="time 4 is not after"):
        next(read_predictions(folder / "predictions.json")).samples(Fusion())


def test_two_times_on_one_frame(demo):
    folder, _ = demo
    heads = [{"time": t, "relevance_score": 0.1} for t in (0.0, 0.01, 0.02)]
    (folder / "p.json").write_text(json.dumps([{"video_uuid": "clip-0", "debug_data": heads}]))
    with pytest.raises(UserError, match="fall twice on one frame"):
        place(next(read_predictions(folder / "p.json")).samples(Fusion()), read_tvsum(folder / "demo-anno.tsv")["clip-0"])


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "[1,", ""])
def test_json_that_python_refuses(text, demo):
    folder, _ = demo
    (folder / "shots.json").write_text(text)
    with pytest.raises(UserError, match="shots.json") as error:
        tvsum.load(folder / "demo-anno.tsv", shots=folder / "shots.json")
    plain(error)


def test_bad_trained_on_list(demo):
    folder, _ = demo
    (folder / "t.json").write_text('{"ids": []}')
    with pytest.raises(UserError, match="no JSON list of video ids") as error:
        tvsum.evaluate(folder / "predictions.json", folder / "demo-anno.tsv", protocols=["corr_full"], trained_on=folder / "t.json")
    plain(error)


# ---------------------------------------------------------------- Mr.HiSum

BAD_H5 = {
    "no gtscore": (lambda f: f["video_2"].__delitem__("gtscore"), "video_2 lacks the field gtscore"),
    "no summary": (lambda f: f["video_2"].__delitem__("gtsummary"), "video_2 lacks the field gt_summary"),
    "NaN": (lambda f: f["video_3/gtscore"].__setitem__(4, np.nan), "video_3: gtscore 4 is not a finite number"),
    "summary of 2": (lambda f: f["video_3/gt_summary"].__setitem__(4, 2), "video_3: gt_summary is not one 0 or 1"),
    "points beyond": (lambda f: f["video_3/change_points"].__setitem__((0, 1), 999), "video_3: change_points are not ascending"),
    "not a group": (lambda f: (f.__delitem__("video_1"), f.__setitem__("video_1", 3)), "video_1"),
    "text": (lambda f: (f.__delitem__("video_1/gtscore"), f.__setitem__("video_1/gtscore", "abc")), "video_1"),
    "matrix": (lambda f: (f.__delitem__("video_1/gtscore"), f.__setitem__("video_1/gtscore", np.zeros((3, 3)))), "shape"),
}


@pytest.mark.parametrize("case", BAD_H5)
def test_bad_h5(case, tmp_path):
    write_hisum(tmp_path)
    change, message = BAD_H5[case]
    with h5py.File(tmp_path / "mr_hisum.h5", "a") as file:
        change(file)
    with pytest.raises(UserError, match=message) as error:
        hisum.evaluate(tmp_path / "predictions.json", tmp_path / "mr_hisum.h5", random_runs=1)
    assert "mr_hisum.h5" in plain(error)


def test_truncated_h5(tmp_path):
    write_hisum(tmp_path)
    data = (tmp_path / "mr_hisum.h5").read_bytes()
    (tmp_path / "mr_hisum.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read") as error:
        hisum.evaluate(tmp_path / "predictions.json", tmp_path / "mr_hisum.h5")
    plain(error)


def test_bad_splits_metadata_and_predictions(tmp_path):
    write_hisum(tmp_path)
    h5, split, metadata, predictions = (tmp_path / name for name in ("mr_hisum.h5", "split.json", "metadata.csv", "predictions.json"))
    for text, message in (
        ('{"test_keys": ["video_1", "nobody"]}', "names 1 videos that are not in .*nobody"),
        ('{"train_keys": []}', "no list test_keys"),
        ("[]", "no list test_keys"),
        ('{"test_keys": ["video_1", "video_1"]}', "names a video twice"),
    ):
        split.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            hisum.evaluate(predictions, h5, split=split)
        plain(error)
    for text, message in (("id,name\n1,2\n", "has no column video_id"), ("video_id,labels\nvideo_1,[1]\nvideo_1,[1]\n", "listed twice")):
        metadata.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            hisum.evaluate(predictions, h5, metadata=metadata)
        plain(error)
    good = json.loads(predictions.read_text())
    for change, message in (
        ({"video_1": [0.1, 0.2]}, "video_1: 2 scores for 37 seconds"),
        ({"stranger": [0.1]}, "stranger is not in"),
    ):
        predictions.write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=message) as error:
            hisum.evaluate(predictions, h5)
        plain(error)


# ---------------------------------------------------------------- the commands


def test_commands_fail_with_one_sentence_and_write_nothing(demo):
    folder, _ = demo
    (folder / "predictions.json").write_text((folder / "predictions.json").read_text().replace("0.", "NaN; 0.", 1))
    before = sorted(folder.rglob("*"))
    for argv in (
        [
            "aha.eval.tvsum",
            "--predictions",
            "predictions.json",
            "--annotations",
            "demo-anno.tsv",
            "--output",
            "out.json",
            "--report",
            "rep",
        ],
        ["aha.eval.tvsum", "--annotations", "demo-anno.tsv", "--report", "rep"],
        ["aha.eval.hisum", "--predictions", "predictions.json", "--annotations", "demo-anno.tsv", "--output", "out.json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *argv],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            timeout=600,
        )
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert sorted(folder.rglob("*")) == before


def test_output_that_cannot_be_written(demo):
    folder, _ = demo
    (folder / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; name a folder"):
        tvsum.main(["--annotations", str(folder / "demo-anno.tsv"), "--protocols", "hd_top5", "--output", str(folder / "file" / "m.json")])
