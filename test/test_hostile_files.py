"""What a user may give by mistake and what would be a wrong number, or a lost file, in silence: each is one sentence, and nothing is lost."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from eval_data import write_hisum, write_predictions, write_tvsum
from paths import REPO

from aha import cli
from aha.core import flags
from aha.core.environment import held
from aha.core.files import atomic_path, read_csv, read_json, read_text, write_text
from aha.core.fusion import NAMES
from aha.core.prediction import Prediction, check_covered
from aha.core.prediction_layouts import is_trained_on
from aha.errors import UserError, no_room
from aha.eval import charades, grid_search, hisum, kfold, qvhighlights, summe, tvsum, youtube_highlights
from aha.eval.community import fits_picks
from aha.eval.importers import import_predictions
from aha.highlights.result import check_apart, is_result, read_track
from aha.scoring import speak
from aha.scoring.config import ScoreConfig, Selection
from aha.scoring.dataset import Item, list_items
from aha.scoring.model_choice import ModelChoice
from aha.scoring.parts import part_writer, read_parts

SUMME = REPO / "test/data/published/eccv16_dataset_summe_synthetic.h5"


@pytest.fixture
def tvsum_files(tmp_path):
    """(folder, entries of the prediction file)."""
    videos = write_tvsum(tmp_path, n_videos=3)
    return tmp_path, list(write_predictions(tmp_path / "p.json", videos).values())


def score(folder: Path, entries, **options):
    (folder / "p.json").write_text(json.dumps(entries))
    return tvsum.evaluate(folder / "p.json", folder / "demo-anno.tsv", random_runs=1, protocols=["corr_1fps"], **options)


# ---- two under one key ----


def test_two_predictions_of_one_video_are_refused_whatever_they_are_called(tvsum_files, tmp_path):
    folder, entries = tvsum_files
    asked = [{**entry, "question_id": f"q{k}"} for k, entry in enumerate([*entries, entries[0]])]
    with pytest.raises(UserError, match=r"question q3\): video clip-0 is predicted twice, before as .*question q0"):
        score(folder, asked)
    assert score(folder, asked[:3])["videos"]["scored"] == 3
    both = {"videos": {name: {"frames": [0, 1], "scores": [0.1, 0.2]} for name in ("video_1", "Harbour walk")}}
    (tmp_path / "s.json").write_text(json.dumps(both))
    with pytest.raises(UserError, match="video video_1 is predicted twice"):
        summe.evaluate(tmp_path / "s.json", h5=SUMME, random_runs=1)
    clips = [{"qid": f"q{k}", "vid": "v", "pred_saliency_scores": [0.1, 0.2]} for k in range(2)]
    (tmp_path / "y.json").write_text(json.dumps(clips))
    (tmp_path / "gt.jsonl").write_text(YOUTUBE)
    with pytest.raises(UserError, match="video v is predicted twice"):
        youtube_highlights.evaluate(tmp_path / "y.json", tmp_path / "gt.jsonl", random_runs=1)


def test_kfold_and_splits_take_nothing_twice(tvsum_files):
    folder, entries = tvsum_files
    score(folder, entries)
    splits = folder / "splits.json"
    splits.write_text(json.dumps([{"test_keys": ["clip-0"], "train_keys": []}, {"test_keys": ["clip-1"], "train_keys": []}]))
    with pytest.raises(UserError, match="is given for several splits"):
        kfold.evaluate([folder / "p.json", folder / "p.json"], splits, folder / "demo-anno.tsv")
    for test, train in ((["clip-0"], ["video_1"]), (["clip-0", "video_1"], ["clip-2"])):
        splits.write_text(json.dumps([{"test_keys": test, "train_keys": train}]))
        with pytest.raises(UserError, match="split 0 names clip-0 twice, under two names"):
            score(folder, entries, splits=splits)


# ---- a part of a video ----

YOUTUBE = '{"vid": "v", "domain": "dog", "fps": 5.0, "duration": 20.0, "clip": [[0, 50], [50, 100]], "label": [[1], [0]]}\n'
QVH = json.dumps({"qid": 1, "query": "a", "vid": "v", "duration": 20, "relevant_clip_ids": [2, 3], "saliency_scores": [[4, 3, 4], [2, 3, 3]],
                  "relevant_windows": [[4, 8]]})  # fmt: skip
CHARADES = json.dumps({"qid": 1, "query": "a", "vid": "v", "duration": 20.0, "relevant_windows": [[4, 8]]})


@pytest.mark.parametrize("task, truth", [(youtube_highlights, YOUTUBE), (qvhighlights, QVH), (charades, CHARADES)])
@pytest.mark.parametrize("first, last, whole", [(0, 20, True), (0, 8, False), (11, 20, False), (0, 60, False)])
def test_frame_scores_of_a_part_of_a_video_are_refused(task, truth, first, last, whole, tmp_path):
    rows = [{"time": float(t), "relevance_score": t % 7 / 7} for t in range(first, last)]
    (tmp_path / "p.json").write_text(json.dumps([{"question_id": 1, "video_uuid": "v", "debug_data": rows}]))
    (tmp_path / "gt.jsonl").write_text(truth)
    if whole:
        assert task.evaluate(tmp_path / "p.json", tmp_path / "gt.jsonl")["videos"]["scored"] == 1
        return
    with pytest.raises(UserError, match=rf"the scores lie from {first} to {last - 1} s of a video of 20 s; score the whole video"):
        task.evaluate(tmp_path / "p.json", tmp_path / "gt.jsonl")


def test_half_a_video_has_no_numbers_of_tvsum_and_summe(tvsum_files, tmp_path):
    folder, entries = tvsum_files
    half = [{**e, "true_frames_list": e["true_frames_list"][:10], "debug_data": e["debug_data"][:10]} for e in entries]
    with pytest.raises(UserError, match="the scores lie from 0 to 9 s of a video of 20 s"):
        score(folder, half)
    frames = list(range(0, 600, 15))
    (tmp_path / "s.json").write_text(json.dumps({"video_1": {"frames": frames, "scores": [0.1] * len(frames)}}))
    with pytest.raises(UserError, match="the scores lie from 0 to 585 frames of a video of 1243 frames"):
        summe.evaluate(tmp_path / "s.json", h5=SUMME, random_runs=1)
    check_covered(np.array([0.5, 30.0, 59.0]), 60.0, "sparse, but from end to end")


def test_more_scores_than_picks_are_of_another_sampling():
    assert fits_picks(82, 83) and fits_picks(85, 83) and not fits_picks(81, 83) and not fits_picks(249, 83)


def test_clip_scores_that_are_no_seconds_and_uneven_frames_are_refused_on_hisum(tmp_path):
    n = {key: len(scores) for key, scores in write_hisum(tmp_path).items()}
    for entry, said in (
        ({"pred_saliency_scores": [0.1, 0.2] * 60}, "lie from 0 s to"),
        ({"frames": [k * k for k in range(n["video_1"])], "scores": [k / 99 for k in range(n["video_1"])]}, "uneven distances"),
    ):
        (tmp_path / "p.json").write_text(json.dumps([{"video_uuid": "video_1", **entry}]))
        with pytest.raises(UserError, match=said):
            hisum.evaluate(tmp_path / "p.json", tmp_path / "mr_hisum.h5", random_runs=1)


def test_another_number_of_clip_scores_than_clips_is_said(tmp_path, capsys):
    (tmp_path / "gt.jsonl").write_text(QVH)
    for count in (10, 5):
        (tmp_path / "p.json").write_text(json.dumps([{"qid": 1, "pred_saliency_scores": [k / 10 for k in range(count)]}]))
        qvhighlights.evaluate(tmp_path / "p.json", tmp_path / "gt.jsonl", random_runs=1)
        assert ("another number of clip scores than the video has clips (1: 5 for 10)" in capsys.readouterr().err) == (count == 5)


def test_stored_scores_of_another_video_are_refused():
    record = {"video_uuid": "v", "true_frames_list": [0, 25, 50], "debug_data": [
        {"time": float(t), "informative_score": 0.1, "relevance_score": 0.2} for t in range(3)]}  # fmt: skip
    assert len(read_track(Prediction(record), 3.0, 75)) == 3
    with pytest.raises(UserError, match="score the whole video"):
        read_track(Prediction(record), 30.0, 750)
    with pytest.raises(UserError, match="frame number 50 is beyond the video's 40 frames"):
        read_track(Prediction(record), 3.0, 40)


# ---- what says less or more than it seems ----


@pytest.mark.parametrize("value", [1, "true", ["a"], {}])
def test_trained_on_is_true_or_false(value, tvsum_files):
    folder, entries = tvsum_files
    with pytest.raises(UserError, match="trained_on is .*, neither true nor false"):
        score(folder, [{**entry, "trained_on": value} for entry in entries])
    assert is_trained_on({"trained_on": True}, "x") and not is_trained_on({"trained_on": None}, "x")


def test_two_kinds_of_scores_in_one_element_and_scores_beyond_measure_are_refused(tvsum_files):
    folder, entries = tvsum_files
    with pytest.raises(UserError, match="has both debug_data and scores"):
        score(folder, [{**entries[0], "scores": [0.5] * 20}])
    rows = [{**row, "relevance_score": 1e200} for row in entries[0]["debug_data"]]
    with pytest.raises(UserError, match="relevance_score 0 is 1e.200, beyond 1e.100"):
        score(folder, [{**entries[0], "debug_data": rows}])


def test_one_annotator_is_enough(tmp_path):
    levels = ",".join(str(1 + k // 16 % 5) for k in range(160))
    (tmp_path / "own-anno.tsv").write_text(f"a\town\t{levels}\nb\town\t{levels}\n")
    (tmp_path / "own-info.tsv").write_text("category\tvideo_id\ttitle\turl\tlength\n" + "".join(f"own\t{v}\tT\town\t0:20\n" for v in "ab"))
    (tmp_path / "p.json").write_text(json.dumps({v: [k / 160 for k in range(160)] for v in "ab"}))
    found = tvsum.evaluate(tmp_path / "p.json", tmp_path / "own-anno.tsv", random_runs=2)
    rows = {row: tree["corr_full"]["kendall"]["mean"] for row, tree in found["baselines"].items() if "corr_full" in tree}
    assert set(rows) == {"random", "mean_annotation_as_predictor"}  # nobody to be held against each other
    assert rows["mean_annotation_as_predictor"] == pytest.approx(1) and abs(rows["random"]) < 0.3


@pytest.mark.parametrize("task, options, said", [
    (qvhighlights, {"windows_from_scores": float("nan")}, "threshold on min-max scores, from 0 to 1"),
    (qvhighlights, {"windows_from_scores": 5.0}, "threshold on min-max scores, from 0 to 1"),
    (charades, {"threshold": float("nan")}, "--threshold nan is none of"),
])  # fmt: skip
def test_a_threshold_is_a_number_of_its_range(task, options, said, tmp_path):
    (tmp_path / "gt.jsonl").write_text(QVH if task is qvhighlights else CHARADES)
    with pytest.raises(UserError, match=said):
        task.evaluate(tmp_path / "p.json", tmp_path / "gt.jsonl", **options)


@pytest.mark.parametrize("change, said", [
    ({"relevant_clip_ids": [2, 2]}, "names a clip twice"), ({"relevant_clip_ids": [2, 2.5]}, "is 2.5, not a whole number"),
    ({"saliency_scores": [[7, 3, 4], [2, 3, 3]]}, "is 7, not a whole number from 0 to 4"), ({"saliency_scores": [[], []]}, "or by none"),
])  # fmt: skip
def test_clips_and_opinions_are_whole_numbers(change, said, tmp_path):
    (tmp_path / "gt.jsonl").write_text(json.dumps({**json.loads(QVH), **change}))
    with pytest.raises(UserError, match=said):
        qvhighlights.read_qvhighlights(tmp_path / "gt.jsonl")


def test_times_and_heads_of_a_scored_file_are_numbers_before_anything_is_said(tmp_path):
    asked = {"q": speak.Moments(0.0, 9.0, ((2.0, 3.0, 4.0),), "now")}
    rows = [{"relevance_score": k / 4} for k in range(4)]
    for change, said in (({"time": "1"}, "time 1 is '1', not a number"), ({"time": 0.0}, "time 1 is not after the one before it")):
        changed = [{"time": float(k), **row, **(change if k == 1 else {})} for k, row in enumerate(rows)]
        (tmp_path / "p.json").write_text(json.dumps([{"question_id": "q", "debug_data": changed}]))
        with pytest.raises(UserError, match=said):
            speak.read_streams(tmp_path / "p.json", asked)
    (tmp_path / "p.json").write_text(json.dumps([{"question_id": "q", "frame_fps": 2.0, "debug_data": rows}]))
    streams = speak.read_streams(tmp_path / "p.json", asked)
    assert [row["time"] for row in streams["q"][0][1]] == [0.5, 1.0, 1.5]  # by frame_fps; 0 s is when the question is asked
    speak.check_scored(streams, ("relevance_score",))
    with pytest.raises(UserError, match="uncertainty_score 0 is null"):
        speak.check_scored(streams, ("uncertainty_score",))


# ---- flags ----


def test_number_flags_take_no_nan_and_no_infinity():
    for text in ("nan", "inf", "-inf", "1e309"):
        with pytest.raises(argparse.ArgumentTypeError, match="not a finite number"):
            flags.finite(text)
    for settings in ({"frame_fps": float("nan")}, {"corrupt_ratio": float("inf")}, {"max_wait_frames": -1}, {"max_num_frames": 0}):
        with pytest.raises(UserError, match=f"--{next(iter(settings))} is"):
            ScoreConfig(**settings)
    with pytest.raises(UserError, match="--limit is -1; give at least 1"):
        Selection(dataset="tvsum", limit=-1)
    with pytest.raises(UserError, match="--split val says nothing of tvsum alone; give --fold"):
        list_items(Selection(dataset="tvsum", split="val"))


def test_a_grid_without_end_is_refused_at_once():
    with pytest.raises(argparse.ArgumentTypeError, match="1 to 1000"):
        grid_search.grid_values("0:1:1000000000")
    with pytest.raises(UserError, match="1,000,000,000 combinations"):
        grid_search.combinations({**dict.fromkeys(NAMES, range(1000)), "alpha": [1]})


# ---- nothing is lost ----


@pytest.mark.parametrize("words", [
    ["eval", "tvsum", "--annotations", "demo-anno.tsv", "--predictions", "p.json", "--output", "p.json"],
    ["eval", "tvsum", "--annotations", "demo-anno.tsv", "--output", "demo-anno.tsv"],
    ["eval", "grid_search", "--annotations", "demo-anno.tsv", "--predictions", "p.json", "--output", "./p.json"],
    ["data", "import", "p.json", "--source", "aha", "--output", "link.json"],
    ["score", "--model", "demo", "--video", "p.json", "--output", "p.json"],
])  # fmt: skip
def test_an_output_is_none_of_the_inputs(words, tvsum_files, monkeypatch):
    folder, _ = tvsum_files
    monkeypatch.chdir(folder)
    (folder / "link.json").symlink_to("p.json")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="is a file that this command reads .*, which would be lost; name another output"):
        cli.run(words)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_an_output_that_is_a_link_or_a_pipe_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("disk/real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "disk/real.json").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "through")
    assert os.read(reader, 99) == b"through" and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    os.close(reader)
    with pytest.raises(UserError, match="cannot write /dev/full"), atomic_path("/dev/full") as temporary:
        temporary.write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link.json", "pipe"]


def test_a_video_under_a_results_name_is_never_replaced(tmp_path):
    for name in ("reel.mp4", "curve.mp4", "poster.jpg"):
        with pytest.raises(UserError, match=f"would be replaced by the {name}"):
            check_apart(tmp_path / name, tmp_path)
    check_apart(tmp_path / "talk.mp4", tmp_path)
    assert not is_result(tmp_path / "reel.mp4")
    (tmp_path / "scores.json").write_text("[]")
    assert is_result(tmp_path / "reel.mp4") and not is_result(tmp_path / "talk.mp4")


def test_data_new_takes_no_file_away(tmp_path, monkeypatch):
    from aha.data import new

    monkeypatch.setattr(new, "probe", lambda path: SimpleNamespace(duration=6.0, fps=5.0))
    (tmp_path / "ds/video").mkdir(parents=True)
    (tmp_path / "ds/video/a.mp4").write_bytes(b"precious")
    (tmp_path / "spans.csv").write_text("video,query,start,end\na.mp4,red,1,3\n")
    words = [str(tmp_path / "spans.csv"), "--videos", str(tmp_path / "ds/video"), "--output"]
    with pytest.raises(UserError, match="exists and is not empty"):
        new.main([*words, str(tmp_path / "ds")])
    new.main([*words, str(tmp_path / "mine")])
    new.main([*words, str(tmp_path / "mine")])  # what it made itself is made again
    shutil.copy(tmp_path / "ds/video/a.mp4", tmp_path / "copy.mp4")
    (tmp_path / "mine/video/a.mp4").unlink()
    (tmp_path / "copy.mp4").rename(tmp_path / "mine/video/a.mp4")
    with pytest.raises(UserError, match="a.mp4 is a file of yours, where a link"):
        new.main([*words, str(tmp_path / "mine")])
    assert (tmp_path / "ds/video/a.mp4").read_bytes() == (tmp_path / "mine/video/a.mp4").read_bytes() == b"precious"


def test_two_commands_do_not_write_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with held("out"), pytest.raises(UserError, match=rf"another run is writing to out \(process {os.getpid()} on"), held("out"):
        pass
    assert not list(tmp_path.iterdir())


# ---- what was begun with something else ----


def test_a_video_that_changed_since_is_scored_again(tmp_path):
    entry = {"video_uuid": "v", "debug_data": [{"time": 0.0, "relevance_score": 0.5}]}
    with part_writer(tmp_path, 0, 1) as write:
        for key, file in (("a", [10, 1]), ("b", [10, 1]), ("c", None)):
            write({"key": key, **({"video": file} if file else {}), "entry": entry})
    items = [Item(key, key, f"{key}.mp4", 1.0, (), file=file) for key, file in (("a", (10, 1)), ("b", (10, 2)), ("c", (10, 1)))]
    left_out = []
    assert sorted(read_parts(tmp_path, left_out, items)) == ["a", "c"] and left_out == ["video b is another file by now"]


def test_other_weights_under_the_same_path_are_other_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 9)
    (tmp_path / "config.json").write_text('{"lora_alpha": 16}')
    choice = ModelChoice(model=str(tmp_path))
    keys = [choice.weights_key()]
    for name, content in (("config.json", '{"lora_alpha": 99}'), ("model.safetensors", "1" * 8), ("pytorch_model.bin", "2")):
        (tmp_path / name).write_text(content)
        keys.append(choice.weights_key())
    assert len({json.dumps(key) for key in keys}) == 4


def test_annotations_of_the_same_size_are_other_data(tmp_path):
    from aha.reproduce.steps import data_key
    from aha.reproduce.tables import Run

    write_hisum(tmp_path / "hisum/annotations")
    (tmp_path / "hisum/videos").mkdir()
    run, file = Run(data=str(tmp_path)), tmp_path / "hisum/annotations/metadata.csv"
    before = data_key("hisum", run)
    file.write_text(file.read_text().replace("[3]", "[4]"))
    assert data_key("hisum", run) != before


# ---- forms of files ----


def test_text_in_another_form_is_named(tmp_path):
    path = tmp_path / "file"
    for content, said in (("a,b".encode("utf-16"), "it is UTF-16"), (b"\xfd7zXZ\x00\xff", "packed by xz; unpack it first")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_text(path, "table")
    for text, said in (
        ("video;query\n", "semicolons between them where commas belong"), ("video\tquery\n", "tabs between them"),
        ("video,query,video\n", "has the column 'video' twice"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_csv(path, ("video", "query"), "table")
    path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(UserError, match="holds 'c' twice in one object"):
        read_json(path, "file")


def test_what_is_no_number_is_not_imported(tmp_path):
    for values in ([True, 0.5], ["0.5", "0.6"], [None, 1.0]):
        (tmp_path / "p.json").write_text(json.dumps({"video_1": values}))
        with pytest.raises(UserError, match="video video_1"):
            import_predictions(tmp_path / "p.json", "triplesumm")
    np.savez(tmp_path / "p.npz", video_1=np.array([0.5 + 1j]))
    with pytest.raises(UserError, match="is no list of numbers"):
        import_predictions(tmp_path / "p.npz", "triplesumm")
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="p.npz cannot be read"):
        import_predictions(tmp_path / "p.npz", "triplesumm")


def test_a_path_that_cannot_be_used_is_a_sentence():
    for number in (13, 20, 36, 40):
        assert "x/y cannot be used" in no_room(OSError(number, os.strerror(number), "x/y"))
    assert no_room(OSError(2, "No such file", "x")) is None and no_room(ValueError()) is None
