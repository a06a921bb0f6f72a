"""Published splits in training and scoring, and the table over a k-fold run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from eval_data import write_predictions, write_tvsum
from paths import REPO

from aha.errors import UserError
from aha.eval import kfold, tvsum
from aha.eval.annotations import read_tvsum
from aha.eval.community import Split, chosen_split
from aha.eval.tvsum_facts import CATEGORIES as CATEGORY_NAMES
from aha.eval.tvsum_facts import VAL10
from aha.training.arguments import DataArguments
from aha.training.run import held_out_by

CATEGORIES = {f"id{i}": "VT" for i in range(6)}


def test_a_published_split_names_videos_by_number_or_id():
    split = Split(("video_2", "id4"), ("video_1", "video_3"))
    assert tvsum.split_ids(CATEGORIES, "test", split) == ["id1", "id4"]
    assert tvsum.split_ids(CATEGORIES, "train", split) == ["id0", "id2"]
    assert tvsum.split_ids(CATEGORIES, "train", Split(("video_2",), ())) == ["id0", "id2", "id3", "id4", "id5"]
    assert tvsum.split_ids(CATEGORIES, "all", split) == list(CATEGORIES)
    with pytest.raises(UserError, match="no validation videos"):
        tvsum.split_ids(CATEGORIES, "val", split)
    with pytest.raises(UserError, match="names video_9"):
        tvsum.split_ids(CATEGORIES, "test", Split(("video_9",), ()))


def test_umt_is_the_fixed_split_of_highlight_detection():
    split = chosen_split("umt", None)
    categories = {video_id: video.category for video_id, video in read_tvsum().items()}
    test, train = (tvsum.split_ids(categories, part, split) for part in ("test", "train"))
    assert set(test) == set(VAL10.values()) and len(train) == 40 and not set(test) & set(train)
    assert sorted(categories[i] for i in test) == sorted(CATEGORY_NAMES)  # one of each category, four to learn from
    data = DataArguments(splits="umt")
    assert held_out_by(data) == split and tvsum.split_ids(categories, "train", held_out_by(data)) == train


@pytest.fixture
def run_of_three(tmp_path):
    """A data set of six videos, three splits (one video is tested twice), a prediction file for each."""
    videos = write_tvsum(tmp_path)
    ids = list(videos)
    tests = [ids[:2], ids[2:4], [ids[4], ids[0]]]
    (tmp_path / "splits.json").write_text(
        json.dumps([{"test_keys": test, "train_keys": [i for i in ids if i not in test]} for test in tests])
    )
    files = []
    for k, test in enumerate(tests):
        files.append(tmp_path / f"split-{k}.json")
        write_predictions(files[-1], {i: videos[i] for i in test}, seed=k)
    return tmp_path, tests, files


def test_the_table_is_the_mean_over_splits_of_the_mean_over_their_videos(run_of_three, capsys):
    folder, tests, files = run_of_three
    annotations, output = folder / "demo-anno.tsv", folder / "k.json"
    flags = ["--predictions", *files, "--splits", folder / "splits.json", "--annotations", annotations, "--output", output]
    kfold.main([str(flag) for flag in flags])
    found = json.loads(output.read_text())["protocols"]["corr_full"]["kendall"]
    expected = []
    for test, path in zip(tests, files):
        per_video = tvsum.evaluate(path, annotations, random_runs=1)["protocols"]["corr_full"]["kendall"]["per_video"]
        expected.append(np.mean([per_video[i] for i in test]))
    assert found["splits"]["per_split"] == pytest.approx(expected)
    assert found["mean"] == pytest.approx(np.mean(expected)) and found["splits"]["sd_ddof1"] == pytest.approx(np.std(expected, ddof=1))
    assert "split 2" in capsys.readouterr().out


def test_files_in_another_order_or_trained_on_are_refused(run_of_three):
    folder, tests, files = run_of_three
    with pytest.raises(UserError, match="2 prediction files for the 3 splits"):
        kfold.evaluate(files[:2], folder / "splits.json", folder / "demo-anno.tsv")
    entries = json.loads(files[0].read_text())
    files[0].write_text(json.dumps([{**entry, "trained_on": True} for entry in entries]))
    with pytest.raises(UserError, match="was trained on .*, which its split tests"):
        kfold.evaluate(files, folder / "splits.json", folder / "demo-anno.tsv")
    with pytest.raises(UserError, match="holds splits 0 to 2"):
        chosen_split(folder / "splits.json", 3)


def test_the_script_says_what_it_needs():
    environment = {**os.environ, "AHA_PYTHON": sys.executable}
    script = ["bash", str(REPO / "scripts/kfold_tvsum.sh")]
    shown = subprocess.run([*script, "--help"], capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and "--splits FILE" in shown.stdout
    failed = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert failed.returncode == 2 and "--splits FILE is needed" in failed.stderr


def test_complete_steps_are_not_repeated_and_the_table_is_printed(run_of_three):
    """The script on a folder in which every split is trained and scored: it goes straight to the table."""
    folder, _, files = run_of_three
    output = folder / "run"
    (output / "tvsum").mkdir(parents=True)
    for kind in ("anno", "info"):
        (folder / f"demo-{kind}.tsv").rename(output / "tvsum" / f"ydata-tvsum50-{kind}.tsv")
    (folder / "splits.json").rename(output / "splits.json")
    for k, path in enumerate(files):
        (output / f"split-{k}").mkdir()
        path.rename(output / f"split-{k}" / "predictions.json")
        for marker in (".trained", ".scored"):
            (output / f"split-{k}" / marker).touch()
    script = ["bash", str(REPO / "scripts/kfold_tvsum.sh"), "--demo", "--output", str(output)]
    done = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "AHA_PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == 6 and "sd(n-1)" in done.stdout and "corr_full kendall" in done.stdout
    document = json.loads((output / "kfold.json").read_text())
    assert len(document["protocols"]["corr_full"]["kendall"]["splits"]["per_split"]) == 3
