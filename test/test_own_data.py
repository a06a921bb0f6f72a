"""`aha data new`: own videos from a table of spans or TVSum-format ratings, to samples, splits and numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from highlights_media import make_video

from aha import cli
from aha.core.prediction import Prediction, write_predictions
from aha.data.mixture import load_source, read_config
from aha.errors import UserError
from aha.eval import tvsum
from aha.eval.annotations import read_tvsum
from aha.eval.community import chosen_split, read_splits


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        make_video(folder / f"film {number}.mp4", seconds=6 + number, fps=5, sound=False)
    return folder


def new(*words):
    cli.run(["data", "new", *map(str, words)])


def table(path, rows, header="video,query,start,end,score,annotator"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_three_videos_two_annotators_from_a_table_to_numbers(films, tmp_path, capsys):
    rows = [
        f"film {n},a red star,{a},{3 + a},{0.5 + a / 2},anna" if a else f"film {n},a red star,1,2,1,ben" for n in range(3) for a in (0, 1)
    ]
    out = tmp_path / "mine"
    new(table(tmp_path / "spans.csv", rows), "--videos", films, "--output", out)
    assert "3 entries, 2 annotators" in capsys.readouterr().out
    videos = read_tvsum(out)
    video = videos["film_0"]
    assert video.user_scores.shape == (2, 30) and video.title == "a red star" and video.length_s == pytest.approx(6)
    assert video.user_scores[0].tolist() == [1] * 5 + [5] * 5 + [1] * 20 and set(video.user_scores[1, 5:20]) == {5}
    # what training sees, for a split: no video is on both sides
    splits = read_splits(out / "splits.json")
    assert [len(split.test) for split in splits] == [1, 1, 1] and all(not set(s.test) & set(s.train) for s in splits)
    entry = read_config(out / "mine.json")[0]
    source = load_source(entry, 1.0, 400, "train", chosen_split(out / "splits.json", 0))
    assert len(source.samples) == 2 and source.problems == []
    # the evaluation takes it: predictions that are the ratings are better than their opposite
    for name, sign in (("good", 1), ("bad", -1)):
        found = []
        for video_id, video in videos.items():
            frames = np.arange(0, video.n_frames, 5)
            value = video.user_scores.mean(0)[frames] * sign / 10 + 0.5
            rows = [{"time": f / 5, "informative_score": 0.5, "relevance_score": float(v)} for f, v in zip(frames, value)]
            found.append(Prediction.of_scores(video_id, "a red star", video.length_s, 1.0, frames, rows))
        write_predictions(tmp_path / f"{name}.json", found)
        words = ["--annotations", out, "--predictions", tmp_path / f"{name}.json", "--output", tmp_path / f"{name}-metrics.json"]
        tvsum.main([str(word) for word in words])
    tau = {
        name: json.loads((tmp_path / f"{name}-metrics.json").read_text())["protocols"]["corr_full"]["kendall"]["mean"]
        for name in ("good", "bad")
    }
    assert tau["good"] > 0.3 > -0.3 > tau["bad"]


def test_gaps_several_queries_and_five_splits(films, tmp_path):
    for number in range(12):
        (tmp_path / "v").mkdir(exist_ok=True)
        (tmp_path / f"v/clip{number}.mp4").symlink_to(films / "film 0.mp4")
    rows = [f"clip{n}.mp4,dogs,{n % 3},{n % 3 + 1}" for n in range(12)] + ["clip3.mp4,cats,0,1"]
    out = tmp_path / "mine"
    new(table(tmp_path / "spans.csv", rows, "video,query,start,end"), "--videos", tmp_path / "v", "--output", out)
    videos = read_tvsum(out)
    assert len(videos) == 13 and {len(video.user_scores) for video in videos.values()} == {1} and videos["clip3_q2"].title == "cats"
    splits = read_splits(out / "splits.json")
    assert len(splits) == 5 and sorted(name for split in splits for name in split.test) == sorted(videos)
    assert all(("clip3" in split.test) == ("clip3_q2" in split.test) for split in splits)  # one file, one side
    # TVSum-format files with any number of annotators are taken too
    again = tmp_path / "again"
    new(out / "ydata-tvsum50-anno.tsv", "--videos", out / "video", "--output", again)
    assert (again / "ydata-tvsum50-anno.tsv").read_bytes() == (out / "ydata-tvsum50-anno.tsv").read_bytes()


@pytest.mark.parametrize(
    "row, said",
    [
        ("film 0,a,5,2,1,x", "spans.csv:2: the span ends .* before it starts"),
        ("film 0,a,now,2,1,x", "spans.csv:2: start is 'now', not a number"),
        ("film 0,a,90,99,1,x", "spans.csv:2: the span starts at 90 s and film 0.mp4 ends at 6.0 s"),
        ("nothing,a,0,2,1,x", "video nothing is not in"),
        ("film 0,a,0,2,2.5,x", "scores are 0 to 1, or whole numbers 1 to 5"),
        ("film 0,,0,2,1,x", "query is empty"),
    ],
)
def test_a_wrong_row_is_named(films, tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        new(table(tmp_path / "spans.csv", [row]), "--videos", films, "--output", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
