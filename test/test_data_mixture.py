"""Each published data set's loader on a small set of files in its published layout, good and broken; mixtures, their report and their order."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from llava_next import PUBLISHED
from paths import REPO, shared_fixture

from aha.conversation import load_tokenizer
from aha.core.folds import folds
from aha.data import check
from aha.data.collate import collate
from aha.data.labels import GROUNDING_REQUESTS
from aha.data.mixture import KEYS, build_mixture, missing_files, read_config
from aha.data.samples import RelevanceSample
from aha.data.tvsum import split_ids
from aha.errors import UserError
from aha.eval.annotations import read_tvsum
from aha.video.library import index_videos

FPS = 5  # of the videos made here


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(shared_fixture("reference/aha-adapter"))


def make_video(path: Path, seconds: float, fps: int = FPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for k in range(round(seconds * fps)):
            image = np.full((48, 64, 3), 40 + k * 200 // round(seconds * fps), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def six_videos(tmp_path_factory) -> Path:
    """v0..v5.mp4, of 6 to 11 seconds."""
    folder = tmp_path_factory.mktemp("data") / "video"
    for k in range(6):
        make_video(folder / f"v{k}.mp4", 6 + k)
    return folder


def write_config(path: Path, *entries: dict) -> Path:
    for entry in entries:
        entry.setdefault("index", str(path.with_suffix(".index.json")))
    path.write_text(json.dumps(list(entries)))
    return path


# ---------------------------------------------------------------- TVSum


def tvsum_scores(k: int, n_frames: int) -> np.ndarray:
    """[20, n_frames]: 2-second shots, each person another rating."""
    shots = np.random.default_rng(k).integers(1, 6, (20, n_frames // (2 * FPS) + 1))
    return np.repeat(shots, 2 * FPS, axis=1)[:, :n_frames]


def write_tvsum(folder: Path, videos: int = 6) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rows, info = [], ["category\tvideo_id\ttitle\turl\tlength"]
    for k in range(videos):
        category = ("VT", "PK")[k % 2]
        info.append(f'{category}\tv{k}\tTitle "{k}" of 100%\thttp://x\t0:{6 + k:02d}')
        for person in tvsum_scores(k, (6 + k) * FPS):
            rows.append(f"v{k}\t{category}\t{','.join(map(str, person))}")
    anno, information = folder / "ydata-tvsum50-anno.tsv", folder / "ydata-tvsum50-info.tsv"
    anno.write_text("\n".join(rows) + "\n")
    information.write_text("\n".join(info) + "\n")
    return anno, information


def tvsum_entry(folder: Path, videos: Path) -> dict:
    return {"name": "tvsum", "type": "tvsum", "videos": str(videos), "annotations": str(folder / "ydata-tvsum50-anno.tsv")}


def test_tvsum_labels_are_the_mean_opinion(tmp_path, six_videos, tokenizer):
    write_tvsum(tmp_path / "data")
    mixture = build_mixture(write_config(tmp_path / "c.json", tvsum_entry(tmp_path / "data", six_videos)), tokenizer, frame_fps=1)
    assert len(mixture) == 6
    assert mixture.trained_on_ids() == [f"v{k}" for k in range(6)]
    for k in range(6):
        item = mixture[k]
        assert item["sample_id"] == f"tvsum/v{k}"
        assert item["frames"].shape == (6 + k, 3, 384, 384)
        assert item["frame_indices"] == [FPS * second for second in range(6 + k)]
        mean = tvsum_scores(k, (6 + k) * FPS).mean(0)
        labels = item["relevance_labels"][item["relevance_labels"] != -100]
        assert np.allclose(labels, (mean[item["frame_indices"]] - 1) / 4, atol=1e-6)
        assert (item["labels"] == -100).all()
        assert (item["informative_labels"] == -100).all()
        assert f'Title "{k}" of 100%' in tokenizer.decode(item["input_ids"])
    assert [abs(length - len(mixture[k]["input_ids"])) < 60 for k, length in enumerate(mixture.lengths)] == [True] * 6


def test_tvsum_folds_are_those_of_the_evaluation(tmp_path, six_videos, tokenizer):
    write_tvsum(tmp_path / "data")
    config = write_config(tmp_path / "c.json", tvsum_entry(tmp_path / "data", six_videos))
    videos = read_tvsum(tmp_path / "data")
    for fold, held_out in enumerate(folds({v: videos[v].category for v in videos})):
        train = build_mixture(config, tokenizer, fold=fold, split="train").trained_on_ids()
        test = build_mixture(config, tokenizer, fold=fold, split="test").trained_on_ids()
        assert test == held_out
        assert sorted(train + test) == sorted(videos)
        parts = [split_ids(videos, part, fold, validation=True) for part in ("train", "val", "test")]
        assert sorted(sum(parts, [])) == sorted(videos)
        assert all(parts)


def test_tvsum_copy_at_another_frame_rate_is_labelled_by_time(tmp_path, tokenizer):
    write_tvsum(tmp_path / "data", 1)
    make_video(tmp_path / "video" / "v0.mp4", 6, fps=10)
    mixture = build_mixture(write_config(tmp_path / "c.json", tvsum_entry(tmp_path / "data", tmp_path / "video")), tokenizer, frame_fps=2)
    item = mixture[0]
    labels = item["relevance_labels"][item["relevance_labels"] != -100]
    mean = tvsum_scores(0, 6 * FPS).mean(0)
    assert np.allclose(labels, (mean[[int(k / 2 * FPS) for k in range(12)]] - 1) / 4, atol=1e-6)


def test_broken_videos_are_left_out_and_named(tmp_path, six_videos, tokenizer, capsys):
    write_tvsum(tmp_path / "data")
    folder = tmp_path / "video"
    folder.mkdir()
    for k in (0, 1, 2):
        (folder / f"v{k}.mp4").write_bytes((six_videos / f"v{k}.mp4").read_bytes())
    whole = (six_videos / "v3.mp4").read_bytes()
    (folder / "v3.mp4").write_bytes(whole[: len(whole) // 3])  # cut off
    (folder / "v4.mp4").write_text("<html>Not found</html>")
    (folder / "v5.mp4").write_bytes((six_videos / "v0.mp4").read_bytes())  # another video
    mixture = build_mixture(write_config(tmp_path / "c.json", tvsum_entry(tmp_path / "data", folder)), tokenizer)
    assert mixture.trained_on_ids() == ["v0", "v1", "v2"]
    reasons = {problem.item: problem.reason for problem in mixture.problems}
    assert sorted(reasons) == ["v3", "v4", "v5"]
    assert "lasts 6.0 s" in reasons["v5"]
    printed = capsys.readouterr().err
    assert "3 samples, 3 left out" in printed
    assert printed.count("left out: v") == 3


def cut_a_row(lines):
    lines[25] = lines[25].rsplit(",", 19)[0]


def no_number(lines):
    lines[3] = lines[3].replace(",3,", ",three,", 1)


def one_person_less(lines):
    del lines[-1]


@pytest.mark.parametrize(("change", "said"), [(cut_a_row, ":26:"), (no_number, ":4 "), (one_person_less, "19 rows"), (list.clear, "empty")])
def test_bad_tvsum_annotations_are_one_sentence(tmp_path, six_videos, tokenizer, change, said):
    anno, _ = write_tvsum(tmp_path / "data")
    lines = anno.read_text().splitlines()
    change(lines)
    anno.write_text("\n".join(lines))
    with pytest.raises(UserError, match=said) as error:
        build_mixture(write_config(tmp_path / "c.json", tvsum_entry(tmp_path / "data", six_videos)), tokenizer)
    assert str(anno) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_things_are_listed_all_at_once(tmp_path):
    entry = tvsum_entry(tmp_path / "nowhere", tmp_path / "video")
    (tmp_path / "video").mkdir()
    lines = missing_files(write_config(tmp_path / "c.json", {**entry, "source": "the moon"}))
    assert len(lines) == 2
    assert str(tmp_path / "video") in lines[0] and "the moon" in lines[1]
    with pytest.raises(UserError, match="2 things"):
        check.main([str(tmp_path / "c.json")])


# ---------------------------------------------------------------- Mr.HiSum and HIHD


def write_hisum(folder: Path, scores: dict[str, list[float]], title: bool = True) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "mr_hisum.h5", "w") as file:
        for key, values in scores.items():
            file.create_dataset(f"{key}/gtscore", data=np.array(values))
    split = {"train_keys": [f"video_{k}" for k in range(4)], "val_keys": ["video_4"], "test_keys": ["video_5"]}
    (folder / "mr_hisum_split.json").write_text(json.dumps(split))
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "yt8m_file", "random_id", "youtube_id", "duration", "views", "labels", *(["title"] if title else [])])
        for k in range(6):
            writer.writerow([f"video_{k}", "train0026", "ORaA", f"v{k}", 6 + k, 84554, "[8]", *([f'Best "goals", {k}'] if title else [])])
    return {
        "name": "hisum", "type": "hisum", "scores": str(folder / "mr_hisum.h5"), "split": str(folder / "mr_hisum_split.json"),
        "metadata": str(folder / "metadata.csv"),
    }  # fmt: skip


def per_second(k: int, seconds: int) -> list[float]:
    return np.random.default_rng(k).random(seconds).round(3).tolist()


def test_hisum(tmp_path, six_videos, tokenizer):
    entry = write_hisum(tmp_path / "h", {f"video_{k}": per_second(k, 6 + k) for k in range(6)})
    config = write_config(tmp_path / "c.json", {**entry, "videos": str(six_videos), "fps": 2})
    mixture = build_mixture(config, tokenizer)
    assert mixture.trained_on_ids() == ["v0", "v1", "v2", "v3"]
    item = mixture[1]
    labels = item["relevance_labels"][item["relevance_labels"] != -100]
    assert np.allclose(labels, np.repeat(per_second(1, 7), 2))
    assert 'Best "goals", 1' in tokenizer.decode(item["input_ids"])
    assert build_mixture(config, tokenizer, split="val").trained_on_ids() == ["v4"]
    assert len(build_mixture(config, tokenizer, split="all")) == 6
    assert len(build_mixture(config, tokenizer, limit=2)) == 2


def test_hisum_bad_samples_are_left_out_and_bad_files_are_errors(tmp_path, six_videos, tokenizer):
    scores = {"video_0": per_second(0, 6), "video_1": [0.5] * 6 + [1.2], "video_2": [0.5] * 3}  # video_3: no scores
    entry = {**write_hisum(tmp_path / "h", scores), "videos": str(six_videos)}
    config = write_config(tmp_path / "c.json", entry)
    mixture = build_mixture(config, tokenizer)
    assert mixture.trained_on_ids() == ["v0"]
    reasons = [problem.reason for problem in mixture.problems]
    assert "score 6 is 1.2" in reasons[0] and "3 scores" in reasons[1] and "video_3 lacks the field gtscore" in reasons[2]

    path = Path(entry["scores"])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"mr_hisum\.h5 cannot be read"):
        build_mixture(config, tokenizer)
    path.unlink()
    with pytest.raises(UserError, match=r"mr_hisum\.h5 does not exist"):
        build_mixture(config, tokenizer)
    write_hisum(tmp_path / "h", scores, title=False)
    with pytest.raises(UserError, match="which has no titles"):
        build_mixture(config, tokenizer)
    Path(entry["split"]).write_text('{"train": []}')
    with pytest.raises(UserError, match="train_keys"):
        build_mixture(config, tokenizer)


HIHD_COLUMNS = ["youtube_id", "query", "duration", "scores", "quality_dropout", "training_split"]


def write_hihd(path: Path, rows: list[list]) -> dict:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([HIHD_COLUMNS, *rows])
    return {"name": "hihd", "type": "hihd", "annotations": str(path)}


def test_hihd(tmp_path, six_videos, tokenizer):
    rows = [
        ["v0", "goals", 6, json.dumps(per_second(0, 7)), json.dumps([[2, 3, "blackout"]]), "train"],
        ["v1", "other", 7, json.dumps(per_second(1, 8)), "[]", "test"],
        ["v2", "short", 8, json.dumps([0.1, 0.2]), "[]", "train"],
        ["gone", "no video", 8, json.dumps([0.1] * 9), "[]", "train"],
    ]
    config = write_config(tmp_path / "c.json", {**write_hihd(tmp_path / "h.csv", rows), "videos": str(six_videos)})
    mixture = build_mixture(config, tokenizer)
    assert mixture.trained_on_ids() == ["v0"]
    assert ["2 scores" in mixture.problems[0].reason, mixture.problems[1].reason] == [True, "no such video file"]
    item = mixture[0]
    labels = item["relevance_labels"][item["relevance_labels"] != -100]
    assert np.allclose(labels, per_second(0, 7)[:6])
    assert item["degraded"]
    assert [bool(frame.any()) for frame in item["frames"]] == [True, True, False, False, True, True]
    # Degrading must not wear off: the reference emptied its list of intervals at the first reading.
    assert not mixture[0]["frames"][2].any()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["v0", "q", 6, "[0.1, 'x']", "[]", "train"], r"h\.csv:2: column scores"),
        (["v0", "q", 6, '[0.1, "x"]', "[]", "train"], "'x' is no number"),
        (["v0", "q", 6, "[0.1]", '[[1, 2, "rain"]]', "train"], "rain"),
        (["v0", "q", 6, "[0.1]", '[[1, 2, ["blackout"]]]', "train"], "is not .start, end, kind."),
        (["v0", "q", 6, "[0.1]", '[["1", 2, "blackout"]]', "train"], "is not .start, end, kind."),
        (["v0", "q", 6, f"[{10**400}]", "[]", "train"], "is no number"),
        (["v0", "q", 6, "[" * 99_999, "[]", "train"], "column scores is no usable JSON"),
        (["v0", "q", 6, "[0.1]"], r"h\.csv:2: the row has not as many columns"),
    ],
)
def test_bad_hihd_rows_are_one_sentence(tmp_path, six_videos, tokenizer, row, said):
    config = write_config(tmp_path / "c.json", {**write_hihd(tmp_path / "h.csv", [row]), "videos": str(six_videos)})
    with pytest.raises(UserError, match=said):
        build_mixture(config, tokenizer)


def test_csv_without_a_column_or_without_content(tmp_path, six_videos, tokenizer):
    path = tmp_path / "h.csv"
    config = write_config(tmp_path / "c.json", {"name": "h", "type": "hihd", "annotations": str(path), "videos": str(six_videos)})
    path.write_text("youtube_id,query\nv0,q\n")
    with pytest.raises(UserError, match="no column duration, scores, quality_dropout, training_split"):
        build_mixture(config, tokenizer)
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        build_mixture(config, tokenizer)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="cannot be read"):
        build_mixture(config, tokenizer)


# ---------------------------------------------------------------- MMDuetIT

CAPTIONS = {
    "v0.mp4": {"0": [{"time": 2.2, "timespan": [0.0, 3.0], "text": "A man runs."}, {"time": 5.0, "timespan": [3, 6], "text": "He stops."}]}
}
QUESTIONS = [
    {
        "video_uid": "v1.mp4",
        "video_start_time": 1.0,
        "conversation": [
            {"role": "user", "content": "What happens?", "time": 2.5},
            {"role": "assistant", "content": "A goal!", "time": 5.0, "timespan": [3.0, 6.0]},
        ],
    }
]
GROUNDING = [{"video_uid": "v2.mp4", "query": "100% of the %s", "timestamps": [[1.0, 3.5], [6.0, 7.0]]}]


def mmduetit_entry(tmp_path: Path, kind: str, content, videos: Path) -> dict:
    path = tmp_path / f"{kind}.json"
    path.write_text(json.dumps(content))
    return {"name": kind, "type": kind, "annotations": str(path), "videos": str(videos)}


def test_mmduetit(tmp_path, six_videos, tokenizer):
    entries = [
        mmduetit_entry(tmp_path, kind, content, six_videos)
        for kind, content in (("captions", CAPTIONS), ("questions", QUESTIONS), ("grounding", GROUNDING))
    ]
    config = write_config(tmp_path / "c.json", *entries)
    mixture = build_mixture(config, tokenizer)
    assert [mixture[i]["sample_id"] for i in range(3)] == ["captions/v0.mp4/0", "questions/v1.mp4/0", "grounding/v2.mp4/0"]
    assert mixture.trained_on_ids() == ["v0", "v1", "v2"]

    captions = mixture[0]
    assert captions["informative_labels"][captions["informative_labels"] != -100].tolist() == [0, 1, 1, 0, 1]
    learned = tokenizer.decode(captions["labels"][captions["labels"] != -100])
    assert learned == "A man runs.<|im_end|>He stops.<|im_end|>"

    starts = set()
    for epoch in range(12):  # 2 or 3 frames before the question, another draw each epoch
        mixture.set_epoch(epoch)
        question = mixture[1]
        starts.add(question["frame_times"][0])
        assert question["frame_times"][-1] == 4.0
        assert question["informative_labels"][question["informative_labels"] != -100].tolist()[-2:] == [0, 1]
    assert starts == {0.0, 1.0}

    grounding = mixture[2]
    assert grounding["relevance_labels"][grounding["relevance_labels"] != -100].tolist() == [0, 1, 1, 0, 0, 0, 1, 0]
    requests = set()
    for epoch in range(40):
        mixture.set_epoch(epoch)
        requests.add(mixture._plan(2)[1][1].content)
    assert requests == {request.replace("%s", "100% of the %s") for request in GROUNDING_REQUESTS}

    batch = collate([mixture[i] for i in range(3)], mixture.format.pad_id)
    assert (batch["input_ids_BT"] == mixture.format.image_id).sum() == PUBLISHED.tokens * len(batch["frames"])
    with pytest.raises(UserError, match="no usable sample for split val"):
        build_mixture(config, tokenizer, split="val")


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("captions", [], "holds a list, not a dict"),
        (
            "captions",
            {"v0.mp4": {"0": [{"time": "2", "timespan": [0, 1], "text": "x"}]}},
            r"v0\.mp4/0: item 0 has time = '2', not a number",
        ),
        ("captions", {"v0.mp4": {"0": [{"time": 2, "timespan": [0], "text": "x"}]}}, "timespan"),
        ("captions", {"v0.mp4": [1]}, "annotation id"),
        ("questions", [{"video_uid": "v0.mp4"}], "conversation = 'None'"),
        (
            "questions",
            [{"video_uid": "v0.mp4", "conversation": [{"role": "assistant", "content": "a", "time": 1, "timespan": [0, 1]}]}],
            "roles",
        ),
        ("questions", [{"video_uid": "v0.mp4", "conversation": [{"role": "user", "content": "a", "time": float("nan")}]}], "time = 'nan'"),
        ("grounding", [{"video_uid": "v0.mp4", "query": "q", "timestamps": [[1]]}], "start, end"),
        ("grounding", [{"video_uid": "v0.mp4", "query": "q"}], "timestamps"),
    ],
)
def test_bad_mmduetit_files_are_one_sentence(tmp_path, six_videos, tokenizer, kind, content, said):
    config = write_config(tmp_path / "c.json", mmduetit_entry(tmp_path, kind, content, six_videos))
    with pytest.raises(UserError, match=said) as error:
        build_mixture(config, tokenizer)
    assert f"{kind}.json" in str(error.value)


def test_samples_without_a_frame_are_left_out(tmp_path, six_videos, tokenizer):
    late = [{"video_uid": "v0.mp4", "conversation": [{"role": "user", "content": "a", "time": 60.0}]}, QUESTIONS[0]]
    mixture = build_mixture(write_config(tmp_path / "c.json", mmduetit_entry(tmp_path, "questions", late, six_videos)), tokenizer)
    assert len(mixture) == 1
    assert "no frame" in mixture.problems[0].reason


# ---------------------------------------------------------------- mixtures


def test_weights_epochs_and_order(tmp_path, six_videos, tokenizer):
    write_tvsum(tmp_path / "data")
    half = {**tvsum_entry(tmp_path / "data", six_videos), "weight": 0.5}
    twice = {**mmduetit_entry(tmp_path, "grounding", GROUNDING, six_videos), "weight": 2}
    config = write_config(tmp_path / "c.json", half, twice)
    first, again = (build_mixture(config, tokenizer, seed=1) for _ in range(2))
    assert len(first) == 3 + 2
    drawn = []
    for epoch in range(6):
        first.set_epoch(epoch)
        again.set_epoch(epoch)
        assert first.items == again.items
        assert len(first.items) == 5
        drawn.append(tuple(first.items[:3]))
    assert len(set(drawn)) > 1
    assert {i for items in drawn for _, i in items} == set(range(6))
    other = build_mixture(config, tokenizer, seed=2)
    assert [other.items for epoch in range(6) if not other.set_epoch(epoch)] != [list(d) + first.items[3:] for d in drawn]


def test_the_smaller_frame_limit_holds(tmp_path, six_videos, tokenizer):
    write_tvsum(tmp_path / "data")
    config = write_config(tmp_path / "c.json", {**tvsum_entry(tmp_path / "data", six_videos), "max_num_frames": 5})
    assert len(build_mixture(config, tokenizer)[0]["frames"]) == 5
    assert len(build_mixture(config, tokenizer, max_num_frames=3)[0]["frames"]) == 3
    assert build_mixture(config, tokenizer, max_num_frames=3).planned(0)[0] == 3


def test_a_video_that_changes_after_indexing_is_an_error_that_names_it(tmp_path, tokenizer):
    write_tvsum(tmp_path / "data", 1)
    video = tmp_path / "video" / "v0.mp4"
    make_video(video, 6)
    mixture = build_mixture(write_config(tmp_path / "c.json", tvsum_entry(tmp_path / "data", tmp_path / "video")), tokenizer)
    make_video(video, 2)
    with pytest.raises(UserError, match=r"v0\.mp4 gives 2 frames where"):
        mixture[0]
    video.write_text("gone")
    with pytest.raises(UserError, match=r"v0\.mp4"):
        mixture[0]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "not a list"),
        ([], "not a list"),
        (["x"], "entry 0 is not an object"),
        ([{"type": "films"}], "'films' is none of"),
        ([{"name": "a", "type": "hihd", "videos": "v"}], "has no annotations"),
        ([{"name": "a", "type": "tvsum", "videos": "v", "annotations": "a", "wieght": 1}], "unknown key wieght"),
        ([{"name": "a", "type": "tvsum", "videos": "v", "annotations": "a", "weight": 0}], "weight is 0"),
        ([{"name": "a", "type": "tvsum", "videos": "v", "annotations": "a"}] * 2, "used twice"),
        *(
            ([{"name": "a", "type": "captions", "videos": "v", "annotations": "a", **wrong}], f"entry 0: {said}")
            for wrong, said in (
                ({"type": ["a"]}, "type .* is none of"),
                ({"type": {}}, "type .* is none of"),
                ({"annotations": {}}, "annotations is '{}', not the path"),
                ({"annotations": -0.0}, "annotations is '-0.0', not the path"),
                ({"annotations": "a" * 5000}, "annotations is 'aaa"),
                ({"annotations": "a\x00b"}, "annotations is"),
                ({"videos": float("inf")}, "videos is 'inf', not the path"),
                ({"videos": ""}, "videos is '', not the path"),
                ({"index": 0}, "index is '0', not the path"),
                ({"name": 1}, "name is '1', not the text"),
                ({"source": []}, "source is '\\[\\]', not the text"),
                ({"weight": None}, "weight is None, not a number above 0"),
                ({"weight": True}, "weight is True"),
                ({"fps": float("nan")}, "fps is nan"),
                ({"max_num_frames": 0.5}, "max_num_frames is 0.5, not a whole number from 1 on"),
            )
        ),
    ],
)
def test_bad_configs_are_one_sentence(tmp_path, entries, said):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=said):
        read_config(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: "no entry",
        lambda entry: {**entry, "duration": float("nan")},
        lambda entry: {**entry, "frame_count": {}},
        lambda entry: {**entry, "fps": "5"},
        lambda entry: {**entry, "valid": "yes"},
        lambda entry: {**entry, "valid": False},
        lambda entry: {**entry, "valid": False, "error": 1},
        lambda entry: {**entry, "duration": -1.0},
        lambda entry: {key: value for key, value in entry.items() if key != "size"},
    ],
)
def test_a_damaged_entry_of_an_index_is_made_anew(tmp_path, damage):
    make_video(tmp_path / "v.mp4", 1)
    right = index_videos(tmp_path)
    (tmp_path / "videos_metadata.json").write_text(json.dumps({"v.mp4": damage(right["v.mp4"])}))
    assert index_videos(tmp_path) == right == json.loads((tmp_path / "videos_metadata.json").read_text())
    (tmp_path / "videos_metadata.json").write_text("[]")
    with pytest.raises(UserError, match="must hold one JSON object"):
        index_videos(tmp_path)


def test_mutated_files_are_refused_in_one_sentence_or_loaded():
    """In a process of its own: damaged HDF5 reaches C code."""
    script = REPO / "test" / "mutate_data.py"
    done = subprocess.run([sys.executable, script, "--runs", "90"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["refused"] + found["loaded"] == 90 and min(found.values()) > 15


def test_tvsum_without_annotations_is_the_copy_that_ships(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "video" / "-esJrBWj2d8.mp4", 231)  # a real id that begins with a dash
    config = write_config(tmp_path / "c.json", {"name": "tvsum", "type": "tvsum", "videos": "video"})
    assert missing_files(config) == []
    mixture = build_mixture(config, tokenizer)
    assert mixture.trained_on_ids() == ["-esJrBWj2d8"] and len(mixture.problems) == 49


def test_the_shipped_configs_are_valid():
    configs = sorted((REPO / "configs/datasets").glob("*.json"))
    assert {"aha.json", "hisum.json", "mmduetit.json", "tvsum.json"} <= {path.name for path in configs}
    for path in configs:
        for entry in read_config(path):
            assert entry["type"] in KEYS and entry["fps"] and entry["max_num_frames"] and entry["weight"]


def test_check_prints_what_a_mixture_holds(tmp_path, six_videos, capsys):
    write_tvsum(tmp_path / "data")
    captions = mmduetit_entry(tmp_path, "captions", {**CAPTIONS, "gone.mp4": CAPTIONS["v0.mp4"]}, six_videos)
    config = write_config(tmp_path / "c.json", tvsum_entry(tmp_path / "data", six_videos), captions)
    check.main([str(config), "--read"])
    printed = capsys.readouterr().out
    frames = sum(6 + k for k in range(6))
    assert f"samples 6   hours {frames / 3600:.2f}   frames {frames}   tokens" in printed
    assert "replies to learn: 2" in printed
    assert "informative labels: 0: 2   1: 3" in printed
    assert "left out: gone.mp4/0: no such video file" in printed
    histogram = [int(cell.split(": ")[1]) for cell in printed.split("relevance labels: ")[1].split("   none")[0].split("   ")]
    assert sum(histogram) == frames


def test_held_labels_are_means_up_to_the_next_sample():
    """Ratings change one frame after a sampled frame (as TVSum's do): the label is that of the span the sample stands for."""
    scores = np.repeat([0.0, 1.0, 0.5], 10).astype(np.float32)
    sample = RelevanceSample("a", "a", "a.mp4", 3.0, scores=scores, score_fps=10, by_frame=True, held=True)
    assert sample._at(np.array([9, 19, 29])).round(6).tolist() == [0.9, 0.55, 0.5]
    assert sample._at(np.array([0, 10, 20])).tolist() == [0.0, 1.0, 0.5]
    assert sample._at(np.array([0, 10, 31])).tolist()[2] == -100
    assert sample._at(np.array([5])).tolist() == [0.0]
    assert sample._at(np.array([5, 5, 6])).tolist() == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------- mixture files of MMDuet and Aha


def test_the_ancestors_own_mixture_files_are_read(tmp_path, six_videos, tokenizer):
    """configs/datasets/mmduetit.json and aha_config.json as users have them: their keys, their defaults, HIHD without max_num_frames."""
    for name, content in (("captions", CAPTIONS), ("questions", QUESTIONS), ("grounding", GROUNDING)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    write_hihd(tmp_path / "HIHD_metadata.csv", [["v3", "a query", 9, json.dumps([0.5] * 9), "[]", "train"]])
    anno, info = write_tvsum(tmp_path / "tvsum")
    common = {"video_root": str(six_videos), "metadata_path": str(six_videos.parent / "videos_metadata.json")}
    theirs = [
        {"dataset_cls": "DenseVideoCaptioningStreamDataset", **common, "anno_file": str(tmp_path / "captions.json")},
        {"dataset_cls": "MAGQAStreamDataset", **common, "anno_file": str(tmp_path / "questions.json")},
        {"dataset_cls": "GroundingStreamDataset", **common, "anno_file": str(tmp_path / "grounding.json"), "frame_fps": 0.333, "max_num_frames": 120},
        {"dataset_cls": "GroundingStreamDataset", **common, "anno_file": str(tmp_path / "grounding.json"), "frame_fps": 0.5, "max_num_frames": 120},
        {"dataset_cls": "HIHD", **common, "anno_file": str(tmp_path / "HIHD_metadata.csv"), "frame_fps": 1},
        {"dataset_cls": "HumanIntuitionDataset", **common, "anno_file": str(anno), "caption_file": str(info)},
    ]  # fmt: skip
    path = tmp_path / "mmduetit.json"
    path.write_text(json.dumps(theirs))
    mixture = build_mixture(path, tokenizer)
    folder = six_videos.parent.name
    assert [(s.entry["name"], s.fps, s.max_num_frames, len(s.samples)) for s in mixture.sources] == [
        (f"{folder}_captions", 2.0, 128, 1), (f"{folder}_questions", 2.0, 128, 1), (f"{folder}_grounding", 0.333, 120, 1),
        (f"{folder}_grounding_2", 0.5, 120, 1), (f"{folder}_hihd", 1, 128, 1), (f"{folder}_tvsum", 2.0, 128, 6),
    ]  # fmt: skip
    assert mixture[0]["sample_id"] == f"{folder}_captions/v0.mp4/0" and len(mixture[4]["frames"]) == 9
    assert not (six_videos.parent / "videos_metadata.json").exists()  # that place is their index's


def test_hisum_of_an_ancestors_file_and_what_it_must_not_hold(tmp_path):
    entry = {
        "dataset_cls": "HiSumDataset", "video_root": "datasets/hisum/videos", "anno_file": "split.json", "metadata_path": "m.json",
        "hisum_h5_file": "mr_hisum.h5", "hisum_metadata": "metadata.csv", "frame_fps": 1,
    }  # fmt: skip
    path = tmp_path / "c.json"
    path.write_text(json.dumps([entry]))
    (read,) = read_config(path)
    assert {key: read[key] for key in ("name", "type", "split", "scores", "metadata", "fps", "max_num_frames")} == {
        "name": "hisum_hisum", "type": "hisum", "split": "split.json", "scores": "mr_hisum.h5", "metadata": "metadata.csv", "fps": 1,
        "max_num_frames": 128,
    }  # fmt: skip
    for change, said in (
        ({"dataset_cls": "EvalDataset"}, "entry 0: dataset_cls 'EvalDataset' is none of"),
        ({"augmentation": True}, "unknown key augmentation"),
        ({"frame_fps": "fast"}, "fps is fast, not a number"),
        ({"video_root": 3}, "videos is '3', not the path"),
    ):
        path.write_text(json.dumps([{**entry, **change}]))
        with pytest.raises(UserError, match=said):
            read_config(path)
    path.write_text(json.dumps([{key: value for key, value in entry.items() if key != "hisum_h5_file"}]))
    with pytest.raises(UserError, match="has no hisum_h5_file"):
        read_config(path)
