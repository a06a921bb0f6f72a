"""SumMe as training data and as a data set to prepare: labels, splits, what is left out."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from tiny_benchmarks import write_video

from aha.data import prepare
from aha.data.mixture import load_source, read_config
from aha.errors import UserError
from aha.eval.community import Split

NAMES = ("Air_Force", "Base jumping", "Cooking")


@pytest.fixture
def data_set(tmp_path):
    """Three videos of 4 seconds at 5 frames a second in SumMe's folders, an h5 that calls them video_1 to video_3, and a mixture."""
    folder = tmp_path / "summe"
    (folder / "GT").mkdir(parents=True)
    random = np.random.default_rng(0)
    with h5py.File(folder / "eccv16_dataset_summe_google_pool5.h5", "w") as file:
        for number, name in enumerate(NAMES, 1):
            write_video(folder / "videos" / f"{name}.mp4", 4, seed=number)
            score = (random.random((20, 5)) < 0.4) * np.arange(1, 21)[:, None]
            savemat(folder / "GT" / f"{name}.mat", {"user_score": score, "nFrames": 20, "FPS": 5.0, "video_duration": 4.0})
            content = {
                "user_summary": (score > 0).T,
                "change_points": [[0, 9], [10, 19]],
                "n_frames": 20,
                "picks": [0, 15],
                "video_name": name,
            }
            for key, value in content.items():
                file.create_dataset(f"video_{number}/{key}", data=value)
    entry = {"name": "summe", "type": "summe", "videos": str(folder / "videos"), "annotations": str(folder / "GT"), "h5": str(folder / "eccv16_dataset_summe_google_pool5.h5")}  # fmt: skip
    (tmp_path / "summe.json").write_text(json.dumps([entry]))
    return tmp_path


def samples(folder, split="all", fold=None, **change):
    (entry,) = read_config(folder / "summe.json")
    return load_source({key: value for key, value in (entry | change).items() if value is not None}, 5, 100, split, fold)


def test_the_label_of_a_frame_is_the_share_of_people_who_took_it(data_set):
    source = samples(data_set)
    assert [sample.request for sample in source.samples] == ["Air Force", "Base jumping", "Cooking"] and not source.problems
    scores = np.random.default_rng(0).random((20, 5)) < 0.4
    assert source.samples[0].scores == pytest.approx(scores.mean(axis=1)) and source.samples[0].by_frame


def test_published_splits_and_folds(data_set):
    split = Split(("video_2",), ("video_1", "video_3"))
    assert [sample.request for sample in samples(data_set, "test", split).samples] == ["Base jumping"]
    assert [sample.request for sample in samples(data_set, "train", split).samples] == ["Air Force", "Cooking"]
    with pytest.raises(UserError, match="give its path as h5"):
        samples(data_set, "test", split, h5=None)
    with pytest.raises(UserError, match="tests video_9"):
        samples(data_set, "test", Split(("video_9",), ()))


def test_what_cannot_be_used_is_said(data_set):
    (data_set / "summe/videos/Cooking.mp4").unlink()
    write_video(data_set / "summe/videos/Base jumping.mp4", 9, seed=1)
    problems = {problem.item: problem.reason for problem in samples(data_set).problems}
    assert set(problems) == {"Base jumping", "Cooking"} and "lasts 9.0 s, the annotated video 4.0 s" in problems["Base jumping"]


def test_preparation_finds_everything(data_set, capsys):
    prepare.main(["summe", "--root", str(data_set), "--no_index"])
    assert "MISSING" not in capsys.readouterr().out
    for path in (data_set / "summe/GT").glob("*.mat"):
        path.unlink()
    (data_set / "summe/GT").rmdir()
    with pytest.raises(UserError, match="1 things are missing"):
        prepare.main(["summe", "--root", str(data_set), "--no_index"])
    assert "summe/GT from" in capsys.readouterr().out
