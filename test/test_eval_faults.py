"""Where scores lie, what ids are called, what a file may look like: kinds of input that gave wrong numbers or a traceback."""

from __future__ import annotations

import codecs
import json

import numpy as np
import pytest
from eval_data import write_hisum, write_predictions, write_tvsum
from test_data_mixture import make_video

from aha.core import fonts
from aha.core.prediction import Prediction, Samples
from aha.core.query_map import read_query_map
from aha.data.samples import annotated_file
from aha.errors import UserError
from aha.eval import charades, grid_search, hisum, load_task, qvhighlights, tvsum, youtube_highlights
from aha.eval.annotations import read_tvsum
from aha.eval.grids import place
from aha.eval.hisum import on_seconds
from aha.eval.judge import read_batch
from aha.eval.youcook2 import merge_replies
from aha.results.document import read_document
from aha.results.figures import Curve, category_bars, curves_figure, png
from aha.scoring.dataset import task_items
from aha.training.validation import Scored, Validation
from aha.visualize import main as visualize

SECONDS, FPS = 240, 24
FULL = {"protocols": ["corr_full"], "random_runs": 1}


@pytest.fixture
def data(tmp_path):
    """Three videos of 4 minutes, annotated at 24 frames a second, lengths to the millisecond; own.json: scores of the annotated files."""
    videos = write_tvsum(tmp_path, n_videos=3, seconds=SECONDS, fps=FPS)
    write_predictions(tmp_path / "own.json", videos, fps=FPS)
    info = tmp_path / "demo-info.tsv"
    info.write_text(info.read_text().replace("4:00", "4:00.000"))
    return tmp_path


def copy_of(folder, rate: float, name: str = "copy.json", stretch: float = 1.0, duration: float | None = SECONDS):
    """The same scores at the same times, from a file of another frame rate (and length)."""
    entries = json.loads((folder / "own.json").read_text())
    for entry in entries:
        if duration is not None:
            entry["video_duration"] = duration * stretch
        for row in entry["debug_data"]:
            row["time"] *= stretch
        entry["true_frames_list"] = [int(np.ceil(row["time"] * rate - 1e-6)) for row in entry["debug_data"]]
    (folder / name).write_text(json.dumps(entries))
    return folder / name


def kendall(predictions, folder) -> float:
    return tvsum.evaluate(predictions, folder / "demo-anno.tsv", **FULL)["protocols"]["corr_full"]["kendall"]["mean"]


# ---------------------------------------------------------------- copies at another frame rate


@pytest.mark.parametrize("rate", [12, 15, 24000 / 1001, 25, 30, 60])
def test_a_copy_at_another_rate_has_the_numbers_of_the_annotated_file(rate, data, capsys):
    own, copy = data / "own.json", copy_of(data, rate)
    assert kendall(copy, data) == pytest.approx(kendall(own, data), abs=1e-3) and kendall(own, data) > 0.1
    unknown_length = copy_of(data, rate, "unknown.json", duration=None)
    assert kendall(unknown_length, data) == pytest.approx(kendall(own, data), abs=1e-3)
    heads = [grid_search.read_heads(path, data / "demo-anno.tsv", None, [True] * 3) for path in (own, copy)]
    for mine, theirs in zip(*heads):
        assert np.array_equal(mine.heads, theirs.heads) and np.abs(mine.mean - theirs.mean).mean() < 0.01
    tvsum.main(
        ["--annotations", str(data / "demo-anno.tsv"), "--compare", str(own), str(copy), "--protocols", "corr_full", "--random_runs", "1"]
    )
    assert "A = own: 3 videos scored" in capsys.readouterr().out


@pytest.mark.parametrize(("rate", "stretch"), [(12, 1.05), (30, 0.9), (25, 24 / 25)])
def test_a_file_of_another_rate_and_length_is_refused_with_both_rates(rate, stretch, data):
    path = copy_of(data, rate, stretch=stretch)
    for action in (lambda: kendall(path, data), lambda: grid_search.read_heads(path, data / "demo-anno.tsv", None, [True] * 3)):
        with pytest.raises(UserError, match=rf"copy.json: .*scored file has {rate}\.000 frames a second.*the annotated video 24\.000"):
            action()


def test_lengths_rounded_to_seconds_do_not_move_the_own_file(data):
    """240.9 s are 4:00 in the info file: the rates differ by 0.4%, and every frame is the annotated one."""
    video = read_tvsum(data / "demo-anno.tsv")["clip-0"]
    times = np.arange(0, 240, 1.0)
    rate = video.n_frames / 240.9
    own = Samples("clip-0", times, np.ceil(times * rate - 1e-6).astype(int), times, duration=240.9)
    assert np.array_equal(place(own, video)[0], own.frames)


def test_a_copy_that_is_a_little_longer_ends_with_the_annotation(data):
    video = read_tvsum(data / "demo-anno.tsv")["clip-0"]
    times = np.arange(242.0)
    frames, scores = place(Samples("clip-0", times, (times * 30).astype(int), times, duration=242.0), video)
    assert frames[-1] == 239 * FPS and len(frames) == len(scores) == 240
    with pytest.raises(UserError, match="beyond the video's end"):
        place(Samples("clip-0", times, None, times + 5), video)


def test_one_wrong_frame_number_is_no_other_rate(data):
    entries = json.loads((data / "own.json").read_text())
    entries[0]["true_frames_list"][-1] = 10**6
    (data / "own.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="frame number 239 is 1000000, beyond"):
        kendall(data / "own.json", data)


def test_training_and_scoring_follow_the_same_rule(tmp_path):
    assert annotated_file({"frame_count": 240, "duration": 10.0}, 240, 10.0) == (True, "")
    assert annotated_file({"frame_count": 150, "duration": 10.0}, 240, 10.04) == (False, "")
    by_frame, reason = annotated_file({"frame_count": 1500, "duration": 101.5}, 2400, 100.5)
    assert not by_frame and reason == ""
    assert "14.778 frames a second" in annotated_file({"frame_count": 1500, "duration": 101.5}, 2400, 99.9)[1]
    # scoring leaves such a file out before a model is asked
    write_tvsum(tmp_path, n_videos=2, seconds=20, fps=8)
    make_video(tmp_path / "video" / "clip-0.mp4", 20, fps=5)
    make_video(tmp_path / "video" / "clip-1.mp4", 12, fps=5)
    anno, info = tmp_path / "ydata-tvsum50-anno.tsv", tmp_path / "ydata-tvsum50-info.tsv"
    (tmp_path / "demo-anno.tsv").rename(anno)
    (tmp_path / "demo-info.tsv").rename(info)
    items, missing = task_items(load_task("tvsum"), tmp_path)
    assert [item.key for item in items] == ["clip-0"]
    assert "5.000 frames a second and lasts 12.00 s, the annotated video 8.000 and 20.00 s" in missing["clip-1"]


def test_validation_of_a_copy_is_that_of_the_annotated_file(data):
    validation = Validation.__new__(Validation)
    validation.truths = read_tvsum(data / "demo-anno.tsv")
    times, scores = np.arange(240.0), np.random.default_rng(0).random(240)
    rows = [validation._metrics(Scored("clip-0", times, np.round(times * rate).astype(int), scores, scores)) for rate in (24, 15, 60)]
    assert rows[0] == rows[1] == rows[2]


def test_scores_of_a_copy_on_an_h5_without_seconds_are_refused():
    from aha.eval.h5_numbers import H5Truth
    from aha.metrics.keyshots_h5 import UserSummaries

    truth = UserSummaries(users=np.ones((2, 2400), bool), shots=np.array([[0, 2399]]), picks=np.arange(0, 2400, 15))
    times = np.arange(100.0)
    file = H5Truth("summe.h5", {}, {}, "f_max")
    own = Samples("video_1", times, (times * 24).astype(int), times, duration=100.0)
    assert len(file.placed(own, truth, None)[0]) == 100
    with pytest.raises(UserError, match="15.000 frames a second and about 1500 in all, the video 2400 in summe.h5"):
        file.placed(Samples("video_1", times, (times * 15).astype(int), times, duration=100.0), truth, None)


# ---------------------------------------------------------------- counts and times


def test_as_many_scores_as_seconds_of_half_the_video_are_refused(tmp_path):
    scores = write_hisum(tmp_path)
    half = [
        {"video_uuid": i, "debug_data": [{"time": k / 2, "relevance_score": float(x)} for k, x in enumerate(s)]} for i, s in scores.items()
    ]
    (tmp_path / "half.json").write_text(json.dumps(half))
    for action in (
        lambda: hisum.evaluate(tmp_path / "half.json", tmp_path / "mr_hisum.h5", random_runs=1),
        lambda: grid_search.read_hisum_heads(tmp_path / "half.json", tmp_path / "mr_hisum.h5", [False, True, False]),
    ):
        with pytest.raises(UserError, match="lie from 0 s to 18 s of a video of 37 s"):
            action()


@pytest.mark.parametrize("shift", [0.0, 0.04, 0.5])
def test_one_score_in_every_second_is_that_seconds(shift):
    scores = np.random.default_rng(0).random(50)
    assert np.array_equal(on_seconds(Samples("v", scores, times=np.arange(50) + shift), 50, "v"), scores)


# ---------------------------------------------------------------- layouts


def test_scores_that_say_frame_fps_are_placed_by_every_command(tmp_path):
    rng = np.random.default_rng(3)
    entries = {q: rng.random(20) for q in ("q0", "q1")}
    layouts = {
        "times": lambda s: {"debug_data": [{"time": k / 2, "relevance_score": float(x)} for k, x in enumerate(s)]},
        "frames": lambda s: {"frame_fps": 2, "true_frames_list": list(range(0, 240, 12)), "debug_data": [{"relevance_score": float(x)} for x in s]},
        "short": lambda s: {"frame_fps": 2, "frames": list(range(0, 240, 12)), "scores": s.tolist()},
        "scores": lambda s: {"frame_fps": 2.0, "scores": s.tolist()},
    }  # fmt: skip
    truths = {
        charades: {"timestamps": [[2.0, 5.0]], "duration": 10.0, "query": "a"},
        qvhighlights: {"duration": 10, "relevant_clip_ids": [1, 2], "saliency_scores": [[4, 3, 4], [2, 3, 3]], "query": "a"},
        youtube_highlights: {"domain": "dog", "fps": 4.0, "duration": 10.0, "clip": [[0, 20], [20, 40]], "label": [[1], [0]]},
    }
    for benchmark, truth in truths.items():
        key = "video_uuid" if benchmark is youtube_highlights else "question_id"
        (tmp_path / "gt.jsonl").write_text("\n".join(json.dumps({key: q, "video": "v", **truth}) for q in entries))
        found = {}
        for name, layout in layouts.items():
            (tmp_path / "p.json").write_text(json.dumps([{key: q, **layout(s)} for q, s in entries.items()]))
            found[name] = benchmark.evaluate(tmp_path / "p.json", tmp_path / "gt.jsonl")["protocols"]
        assert found["times"] == found["frames"] == found["short"] == found["scores"]
        (tmp_path / "p.json").write_text(json.dumps([{key: q, "scores": s.tolist()} for q, s in entries.items()]))
        with pytest.raises(UserError, match="say no times; give frame_fps"):
            benchmark.evaluate(tmp_path / "p.json", tmp_path / "gt.jsonl")


def test_replies_may_come_in_any_order():
    replies = [(2.0, "a"), (4.0, "a"), (6.0, "b"), (9.0, "c")]
    ordered = merge_replies(replies)
    shuffled = merge_replies([replies[i] for i in (2, 0, 3, 1)])
    assert ordered.texts == shuffled.texts == ["a", "b", "c"] and np.array_equal(ordered.segments, shuffled.segments)


# ---------------------------------------------------------------- ids


def test_whole_numbers_written_as_floats_are_the_same_ids(tmp_path):
    gt = [
        {"qid": 100 + k, "query": "a", "vid": "v", "duration": 10, "relevant_clip_ids": [1], "saliency_scores": [[4, 3, 4]]}
        for k in range(3)
    ]
    for write in (int, float, str):
        (tmp_path / "gt.jsonl").write_text("\n".join(json.dumps(e) for e in gt))
        answers = [{"qid": write(100 + k), "vid": "v", "pred_saliency_scores": [0.0, 1.0, 0.0, 0.5, 0.2]} for k in range(3)]
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, answers)))
        assert qvhighlights.evaluate(tmp_path / "p.jsonl", tmp_path / "gt.jsonl")["videos"]["scored"] == 3
    with pytest.raises(UserError, match="qid is 100.5, neither text nor a whole number"):
        _ = Prediction({"qid": 100.5, "vid": "v"}).question_id


DASHED = ["-esJrBWj2d8", "AwmHb44_ouw", "--CCCCCCCC3"]


@pytest.fixture
def dashed(data):
    """The data set with YouTube ids of which two begin with dashes."""
    for name in ("demo-anno.tsv", "demo-info.tsv", "own.json"):
        text = (data / name).read_text()
        for number, video_id in enumerate(DASHED):
            text = text.replace(f"clip-{number}", video_id)
        (data / name).write_text(text)
    return data


@pytest.mark.parametrize("ids", [DASHED[:1], DASHED[:2], DASHED[::-1], DASHED[2:]])
def test_ids_that_begin_with_a_dash_can_be_selected(ids, dashed):
    argv = ["--annotations", str(dashed / "demo-anno.tsv"), "--predictions", str(dashed / "own.json"), "--random_runs", "1"]
    for forms in (["--video_ids", *ids], [f"--video_ids={i}" for i in ids]):
        tvsum.main([*argv, *forms, "--protocols", "corr_full", "--output", str(dashed / "m.json")])
        assert set(json.loads((dashed / "m.json").read_text())["protocols"]["corr_full"]["kendall"]["per_video"]) == set(ids)
    argv = ["--annotations", str(dashed / "demo-anno.tsv"), "--predictions", str(dashed / "own.json")]
    visualize(["curves", *argv, "--video_ids", *ids, "--output", str(dashed / "figure")])
    assert (dashed / "figure.png").is_file()


def test_flags_after_ids_are_still_flags(dashed, capsys):
    with pytest.raises(SystemExit):
        tvsum.main(["--annotations", str(dashed / "demo-anno.tsv"), "--video_ids", "--limit", "1"])
    assert "--video_ids: expected at least one argument" in capsys.readouterr().err
    with pytest.raises(UserError, match="--video_ids: -stranger not in"):
        tvsum.main(["--annotations", str(dashed / "demo-anno.tsv"), "--video_ids", "-stranger", "--limit", "1"])


def test_community_names_are_taken_everywhere(data):
    entries = json.loads((data / "own.json").read_text())
    for entry in entries:
        entry["video_uuid"] = f"video_{int(entry['video_uuid'].removeprefix('clip-')) + 1}"
    (data / "named.json").write_text(json.dumps(entries))
    (data / "trained.json").write_text('["video_2"]')
    found = tvsum.evaluate(
        data / "named.json", data / "demo-anno.tsv", video_ids=["video_2", "clip-2"], trained_on=data / "trained.json", **FULL
    )
    assert set(found["protocols"]["corr_full"]["kendall"]["per_video"]) == {"clip-1", "clip-2"} and found["videos"]["trained_on"] == [
        "clip-1"
    ]
    assert kendall(data / "named.json", data) == kendall(data / "own.json", data)
    heads = grid_search.read_heads(data / "named.json", data / "demo-anno.tsv", None, [True] * 3)
    assert [video.video_id for video in heads] == ["clip-0", "clip-1", "clip-2"]
    argv = ["--annotations", str(data / "demo-anno.tsv"), "--predictions", str(data / "named.json"), "--video_ids", "video_3"]
    visualize(["curves", *argv, "--output", str(data / "figure")])
    (data / "both.json").write_text(json.dumps([*entries, {**entries[0], "video_uuid": "clip-0"}]))
    with pytest.raises(UserError, match="clip-0 is predicted twice"):
        kendall(data / "both.json", data)


def test_hisum_videos_can_be_selected_by_their_youtube_ids(tmp_path):
    write_hisum(tmp_path)
    found = hisum.load(tmp_path / "mr_hisum.h5", metadata=tmp_path / "metadata.csv", video_ids=["tube1", "video_4"])
    assert list(found.chosen) == ["video_2", "video_4"]
    found.close()


# ---------------------------------------------------------------- files that people have edited


def test_byte_order_marks_of_a_query_map_and_a_batch_file(tmp_path):
    from aha.eval.judge import JudgmentCache

    (tmp_path / "m.py").write_bytes(codecs.BOM_UTF8 + b'TITLES = {"a": "b"}')
    assert read_query_map(f"{tmp_path / 'm.py'}:TITLES") == {"a": "b"}
    (tmp_path / "batch.jsonl").write_bytes(codecs.BOM_UTF8 + b"\n")
    assert read_batch(tmp_path / "batch.jsonl", JudgmentCache(tmp_path / "cache.jsonl")) == (0, 0)


GOOD = {"protocols": {"corr_full": {"kendall": {"mean": 0.2, "per_category": {"A": 0.1}, "per_video": {"x": 0.1}}}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocols": {"scores": [1]}}, "protocols/scores is"),
        ({"protocols": {"corr_full": {"kendall": 0.2}}}, "protocols/corr_full/kendall is 0.2, not an object"),
        ({"protocols": {"corr_full": {"kendall": {"mean": [0.2]}}}}, "kendall/mean is"),
        ({"protocols": {"corr_full": {"kendall": {"mean": float("nan")}}}}, "kendall/mean is nan"),
        ({"protocols": {"corr_full": {"kendall": {"mean": 0.2, "per_category": [1]}}}}, "per_category is"),
        ({"protocols": {"corr_full": {"kendall": {"mean": 0.2, "per_category": {"A": "x"}}}}}, "per_category/A is 'x'"),
        ({"confidence_intervals": {"corr_full": {"kendall": [0.1]}}}, "not \\[low, high\\]"),
        ({"confidence_intervals": []}, "confidence_intervals is"),
        ({"baselines": {"random": [1]}}, "baselines/random is"),
        ({"settings": {"benchmark": ["tvsum"]}}, "settings/benchmark is"),
        ({"published": [{"method": "x"}]}, "published 0/protocol is None"),
        ({"published": 3}, "published is 3, not a list"),
    ],
)
@pytest.mark.parametrize("kind", [["compare", "--columns"], ["categories", "--column"]])
def test_metrics_files_of_wrong_types_are_one_sentence(kind, change, message, tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(GOOD))
    assert read_document(path) == GOOD
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(UserError, match=f"m.json: .*{message}"):
        visualize([kind[0], "--metrics", str(path), kind[1], "corr_full/kendall", "--output", str(tmp_path / "f")])
    assert not list(tmp_path.glob("f.*"))


@pytest.mark.parametrize("windows", [3.5, {"a": 1}, "text", [3.5], [[1]], [["a", 2]]])
def test_windows_of_wrong_types_are_one_sentence(windows, tmp_path):
    gt = {
        "qid": 1,
        "query": "a",
        "vid": "v",
        "duration": 10,
        "relevant_clip_ids": [1],
        "saliency_scores": [[4, 3, 4]],
        "relevant_windows": windows,
    }
    (tmp_path / "gt.jsonl").write_text(json.dumps(gt))
    with pytest.raises(UserError, match="gt.jsonl:1: .*window"):
        qvhighlights.load(tmp_path / "gt.jsonl")


@pytest.mark.parametrize("duration", [1e30, 10**9, -1, "20", None])
def test_durations_of_no_video_are_one_sentence(duration, tmp_path):
    gt = {"qid": 1, "query": "a", "vid": "v", "duration": duration, "relevant_clip_ids": [1], "saliency_scores": [[4, 3, 4]]}
    (tmp_path / "gt.jsonl").write_text(json.dumps(gt))
    with pytest.raises(UserError, match="gt.jsonl:1: duration is"):
        qvhighlights.load(tmp_path / "gt.jsonl")


# ---------------------------------------------------------------- figures


def test_figures_show_text_of_any_script_or_say_why_not(monkeypatch, capsys):
    own = fonts.font_paths()[0]
    monkeypatch.setattr(fonts, "font_paths", lambda: [own])
    monkeypatch.setattr(fonts, "_said", set())
    places = np.arange(10.0)

    def picture(title: str) -> bytes:
        return png(curves_figure([Curve("v", title, 10.0, {"model": (places, places)})]))

    assert picture("红色") == picture("的东") == picture("")  # left out, and no boxes
    assert "no font of this machine has the characters" in capsys.readouterr().err
    assert picture("привет") != picture("пока") and picture("$x$ costs 5 $") != picture("x costs 5 ")
    assert category_bars([("tau", {"红色": 0.5}, {})]) == category_bars([("tau", {"的东": 0.5}, {})])
