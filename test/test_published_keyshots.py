"""SumMe and TVSum on the community's h5 files: key-shot F, CSTA's correlations, splits and Performance over Random, on golden data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture

from aha.core.files import by_number
from aha.errors import UserError
from aha.eval.community import read_h5, read_splits
from aha.metrics import keyshots_h5
from aha.metrics.over_splits import over_splits, split_means

PREDICTORS = ("noisy", "ties", "const", "picks", "onefps")


def golden(name: str):
    return json.loads(shared_fixture(f"published/{name}.json").read_text())


def data_set(name: str):
    return read_h5(shared_fixture(f"published/eccv16_dataset_{name}_synthetic.h5"))


def summaries(name: str, predictor: str) -> dict[str, np.ndarray]:
    videos = data_set(name)
    predicted = golden(f"{name}_pred_{predictor}")["videos"]
    result = {}
    for key, video in videos.items():
        dense = keyshots_h5.frame_scores(np.array(predicted[key]["frames"]), np.array(predicted[key]["scores"]), video.truth.n_frames)
        result[key] = keyshots_h5.machine_summary(dense, video.truth.shots)
    return result


def equal(got: float, want: float | None) -> None:
    assert np.isnan(got) if want is None else got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("name", ["summe", "tvsum"])
def test_f_and_selected_shots_equal_the_released_code(name, predictor):
    videos, want = data_set(name), golden(f"{name}_golden")["predictors"][predictor]
    for key, summary in summaries(name, predictor).items():
        one = want["per_video"][key]
        taken = [i for i, (start, end) in enumerate(videos[key].truth.shots) if summary[start:end].all()]
        assert taken == one["selected_shots"] and summary.sum() == one["summary_frames"]
        for metric, value in keyshots_h5.f_scores(summary, videos[key].truth).items():
            equal(value, one[metric])


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_summe_correlation_is_of_the_summary(predictor):
    videos, want = data_set("summe"), golden("summe_golden")["predictors"][predictor]["per_video"]
    for key, summary in summaries("summe", predictor).items():
        got = keyshots_h5.summary_correlation(summary, videos[key].truth)
        equal(got["kendall"], want[key]["tau_summary_vs_mean_users"])
        equal(got["spearman"], want[key]["rho_summary_vs_mean_users"])


@pytest.mark.parametrize(("name", "reduction"), [("summe", "f_max"), ("tvsum", "f_avg")])
def test_one_user_against_the_others(name, reduction):
    want = golden(f"{name}_golden")[f"humans_leave_one_out_{reduction}"]["per_video"]
    for key, video in data_set(name).items():
        equal(keyshots_h5.one_user_against_the_others(video.truth, reduction), want[key])


def test_edges_equal_the_released_code():
    videos, predicted, want = read_h5(shared_fixture("published/edge_eccv16.h5")), golden("edge_pred")["videos"], golden("edge_golden")
    assert list(videos) == by_number(want)
    for key, video in videos.items():
        frames, scores = np.array(predicted[key]["frames"]), np.array(predicted[key]["scores"])
        summary = keyshots_h5.machine_summary(keyshots_h5.frame_scores(frames, scores, video.truth.n_frames), video.truth.shots)
        assert len(summary) == want[key]["summary_length"], want[key]["case"]
        assert summary.sum() == want[key]["summary_frames"], want[key]["case"]
        for user, value in zip(want[key]["f_per_user"], keyshots_h5.f_of_users(summary[None], video.truth.users)[0]):
            equal(value, user)
        for metric, value in keyshots_h5.f_scores(summary, video.truth).items():
            equal(value, want[key][f"pglsum_{metric}"])


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("name", ["summe", "tvsum"])
def test_splits_and_por_equal_the_released_code(name, predictor):
    videos = data_set(name)
    splits = read_splits(shared_fixture(f"published/{name}_splits.json"))
    tests = [split.test for split in splits]
    want = golden(f"{name}_splits_golden")["predictors"][predictor]
    found = summaries(name, predictor)
    for reduction in keyshots_h5.REDUCTIONS:
        per_video = {key: keyshots_h5.f_scores(summary, videos[key].truth)[reduction] for key, summary in found.items()}
        means = split_means(per_video, tests)
        for got, one in zip(means, want["per_split"]):
            equal(got, one[reduction])
        for statistic, value in want[reduction].items():
            equal(over_splits(means)[statistic], value)
        por = golden(f"{name}_por_golden")
        if f"f_{por['reduction']}" == reduction:
            random = [keyshots_h5.random_f([videos[key].truth for key in keys], reduction) for keys in tests]
            random = [f_VR.mean(axis=0) for f_VR in random]
            for got, first, mean in zip(random, por["first_three_seeds_per_split"], por["random_f_per_split"]):
                equal(float(got.mean()), mean)
                assert got[:3] == pytest.approx(first, abs=1e-6)
            result = over_splits(keyshots_h5.performance_over_random(means, [values.mean() for values in random]))
            for got, one in zip(result["per_split"], por["por"][predictor]["per_split"]):
                equal(got, one)
            for statistic in ("mean", "sd_ddof0", "sd_ddof1"):
                equal(result[statistic], por["por"][predictor][statistic])


@pytest.mark.parametrize("name", ["summe", "tvsum"])
def test_every_published_form_of_the_splits_reads_alike(name):
    files = [shared_fixture(f"published/{name}_splits{form}") for form in (".json", "_prefixed.json", "_prefixed.yml", "_csta.txt")]
    first, *others = [read_splits(file) for file in files]
    assert len(first) == 5 and all(other == first for other in others)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("[]", "s.json", "holds no split"),
        ('{"a": 1}', "s.json", "is no list"),
        ('[{"train_keys": []}]', "s.json", "split 0: test_keys"),
        ('[{"test_keys": ["video_1"], "train_keys": ["video_1"]}]', "s.json", "tests and trains on video_1"),
        ('[{"test_keys": ["a/video_1", "b/video_1"]}]', "s.json", "tests a video twice"),
        ("- [", "s.yml", "no usable YAML"),
        ("SumMe/split0/video_1", "s.txt", "s.txt:1"),
    ],
)
def test_a_bad_splits_file_is_one_sentence(tmp_path, text, name, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        read_splits(tmp_path / name)


def test_a_bad_h5_is_one_sentence(tmp_path):
    import h5py

    with pytest.raises(UserError, match="does not exist"):
        read_h5(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no h5")
    with pytest.raises(UserError, match="cannot be read"):
        read_h5(tmp_path / "text.h5")
    good = {"user_summary": np.ones((2, 30)), "change_points": [[0, 9], [10, 29]], "n_frames": 30, "picks": [0, 15]}
    for key, value, said in (
        ("user_summary", np.ones((2, 31)), r"user_summary is \(2, 31\)"),
        ("change_points", [[0, 9], [11, 29]], "follow each other"),
        ("n_frames", -1, "n_frames is -1"),
        ("picks", [15, 0], "picks"),
        ("picks", None, "lacks picks"),
    ):
        with h5py.File(tmp_path / "bad.h5", "w") as file:
            for name, content in {**good, key: value}.items():
                if content is not None:
                    file.create_dataset(f"video_1/{name}", data=content)
        with pytest.raises(UserError, match=said):
            read_h5(tmp_path / "bad.h5")


def test_two_scores_missing_are_refused():
    with pytest.raises(ValueError, match="2 scores for 4"):
        keyshots_h5.frame_scores(np.arange(4), np.ones(2), 10)


def test_a_video_without_prediction_leaves_its_split_undefined():
    got = over_splits(split_means({"a": 1.0, "b": 3.0}, [("a", "b"), ("b", "c")]))
    assert got["per_split"][0] == 2.0 and np.isnan(got["per_split"][1]) and np.isnan(got["mean"])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_f_lies_between_0_and_100_and_is_100_against_itself(data):
    n = data.draw(st.integers(10, 60))
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=6)))
    shots = np.array(list(zip([0, *cuts], [*cuts, n])))
    users = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)))
    video = keyshots_h5.UserSummaries(users, shots, np.arange(0, n, 5))
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(video.picks), max_size=len(video.picks))))
    summary = keyshots_h5.machine_summary(keyshots_h5.frame_scores(video.picks, scores, n), shots)
    assert summary.sum() <= int(n * 0.15)
    f = keyshots_h5.f_of_users(summary[None], users)
    assert ((f >= 0) & (f <= 100 + 1e-9) | np.isnan(f)).all()
    if summary.any():
        assert keyshots_h5.f_of_users(summary[None], summary[None])[0, 0] == pytest.approx(100)
