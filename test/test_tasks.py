"""Every benchmark's Task: its facts stand, and items come from the annotation files as they are published."""

from __future__ import annotations

import json

import pytest
from eval_data import write_hisum, write_tvsum

from aha.errors import UserError
from aha.eval import MODULES, load_task


@pytest.mark.parametrize("name", MODULES)
def test_the_facts_of_a_task(name):
    task = load_task(name)
    assert task.name == name and task.folder.name == task.data.folder and callable(task.evaluate)
    assert task.data.files and all(file.path and file.source for file in task.data.files) and task.frame_fps > 0


def test_an_unknown_benchmark_is_named():
    with pytest.raises(UserError, match="nothing is none of the benchmarks tvsum"):
        load_task("nothing")


def test_tvsum_items_and_folds(tmp_path):
    videos = write_tvsum(tmp_path)
    for kind in ("anno", "info"):
        (tmp_path / f"demo-{kind}.tsv").rename(tmp_path / f"ydata-tvsum50-{kind}.tsv")
    items = load_task("tvsum").items
    everyone = items(tmp_path)
    assert [item.key for item in everyone] == list(videos) and everyone[0].queries == ((0.0, 'The "garden" 0'),)
    assert (everyone[1].video, everyone[1].category, everyone[1].duration) == ("clip-1.mp4", "street", 20.0)
    parts = [{item.key for item in items(tmp_path, "test", fold)} for fold in range(5)]
    assert set().union(*parts) == set(videos) and sum(map(len, parts)) == len(videos)
    assert {item.key for item in items(tmp_path, "train", 0)} == set(videos) - parts[0]
    assert {item.key for item in items(tmp_path, "val", 0)} == parts[1]
    with pytest.raises(UserError, match="0 to 4"):
        items(tmp_path, "test", 5)


def test_hisum_items(tmp_path):
    folder = tmp_path / "annotations"
    write_hisum(folder)
    (folder / "split.json").rename(folder / "mr_hisum_split.json")
    with pytest.raises(UserError, match="official copy, which has no titles"):
        load_task("hisum").items(tmp_path)
    rows = "".join(f"video_{i + 1},tube{i},A title {i}\n" for i in range(5))
    (folder / "metadata.csv").write_text("video_id,youtube_id,title\n" + rows)
    found = load_task("hisum").items(tmp_path, "all")
    assert [item.video for item in found] == [f"tube{i}.mp4" for i in range(5)]
    assert load_task("hisum").items(tmp_path)[0].queries == ((0.0, "A title 1"),)


def test_question_items(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "charades_sta_test.txt").write_text("3MSZA 2.0 4.0##person turn a light on.\n")
    (item,) = load_task("charades").items(tmp_path)
    assert (item.key, item.video, item.queries) == ("3MSZA-1", "3MSZA", ((0.0, "person turn a light on."),))
    assert json.dumps(dict(item.extra)) == '{"question_id": "3MSZA-1"}' and item.duration is None
