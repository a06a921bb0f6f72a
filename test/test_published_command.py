"""SumMe and TVSum through their commands with the community's h5 and splits: golden numbers, names, what is printed."""

from __future__ import annotations

import gzip
import json

import h5py
import numpy as np
import pytest
from eval_data import write_tvsum
from paths import shared_fixture

from aha.errors import UserError
from aha.eval import summe, tvsum

PREDICTORS = ("noisy", "ties", "const", "picks", "onefps")
NAMES = {"kendall": "tau", "spearman": "rho"}


def fixture(name: str):
    return shared_fixture(f"published/{name}")


def golden(name: str):
    return json.loads(fixture(f"{name}.json").read_text())


def run(tmp_path, command, *arguments):
    output = tmp_path / "metrics.json"
    command.main([str(argument) for argument in (*arguments, "--output", output)])
    return json.loads(output.read_text())


def equal(got, want):
    assert (got is None) == (want is None)
    if want is not None:
        assert got == pytest.approx(want, abs=1e-6)


def check(document, name, correlation, key, predictor):
    """A metrics file against the golden means, videos, splits and PoR of a predictor."""
    one = golden(f"{name}_golden")["predictors"][predictor]
    splits = golden(f"{name}_splits_golden")["predictors"][predictor]
    for protocol, metric, label in (
        ("keyshots_h5", "f_max", "f_max"), ("keyshots_h5", "f_avg", "f_avg"),
        *((correlation, metric, f"{short}_{key}") for metric, short in NAMES.items()),
    ):  # fmt: skip
        found = document["protocols"][protocol][metric]
        equal(found["mean"], one["mean"][label])
        for video, numbers in one["per_video"].items():
            if label in numbers:
                equal(found["per_video"][video], numbers[label])
        for statistic, value in splits[label].items():
            equal(found["splits"][statistic], value)
        for got, want in zip(found["splits"]["per_split"], splits["per_split"], strict=True):
            equal(got, want[label])
    por, want = document["protocols"]["por"]["por"], golden(f"{name}_por_golden")["por"][predictor]
    equal(por["mean"], want["mean"])
    for statistic in ("mean", "sd_ddof0", "sd_ddof1"):
        equal(por["splits"][statistic], want[statistic])
    assert por["splits"]["per_split"] == pytest.approx(want["per_split"], abs=1e-6)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_summe_equals_the_released_code(tmp_path, predictor):
    h5, splits = fixture("eccv16_dataset_summe_synthetic.h5"), fixture("summe_splits.json")
    document = run(tmp_path, summe, "--predictions", fixture(f"summe_pred_{predictor}.json"), "--h5", h5, "--splits", splits)
    check(document, "summe", "corr_summary_csta", "summary_vs_mean_users", predictor)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_tvsum_equals_the_released_code(tmp_path, predictor):
    """With annotations that do not know the videos' lengths: the h5's protocols and corr_every15."""
    h5, splits, annotations = fixture("eccv16_dataset_tvsum_synthetic.h5"), fixture("tvsum_splits.json"), fixture("tvsum_anno.tsv.gz")
    flags = ["--h5", h5, "--splits", splits, "--annotations", annotations]
    document = run(tmp_path, tvsum, "--predictions", fixture(f"tvsum_pred_{predictor}.json"), *flags)
    assert set(document["protocols"]) == {"keyshots_h5", "corr_every15", "por"}
    check(document, "tvsum", "corr_every15", "every15_users", predictor)


@pytest.mark.parametrize("name, command", [("summe", summe), ("tvsum", tvsum)])
def test_our_own_files_which_name_frames_and_times_give_the_same_numbers(tmp_path, name, command):
    """`aha score` writes a time beside every frame number; the h5 counts in frames."""
    videos = json.loads(fixture(f"{name}_pred_noisy.json").read_text())["videos"]
    records = [
        {
            "video_uuid": video_id, "query": "", "frame_fps": 2.0, "true_frames_list": one["frames"], "model_response_list": [],
            "debug_data": [{"time": frame / 30, "relevance_score": score} for frame, score in zip(one["frames"], one["scores"], strict=True)],
        }
        for video_id, one in videos.items()
    ]  # fmt: skip
    (tmp_path / "ours.json").write_text(json.dumps(records))
    flags = ["--h5", fixture(f"eccv16_dataset_{name}_synthetic.h5"), "--random_runs", "1", "--predictions"]
    ours, short = (run(tmp_path, command, *flags, path) for path in (tmp_path / "ours.json", fixture(f"{name}_pred_noisy.json")))
    assert ours["protocols"] == short["protocols"] and ours["videos"]["scored"] == len(videos) > 1


def test_edge_cases_through_the_command(tmp_path):
    document = run(tmp_path, summe, "--predictions", fixture("edge_pred.json"), "--h5", fixture("edge_eccv16.h5"))
    for video, want in golden("edge_golden").items():
        for metric in ("f_max", "f_avg"):
            equal(document["protocols"]["keyshots_h5"][metric]["per_video"][video], want[f"pglsum_{metric}"])


def test_the_shipped_annotations_are_left_out_where_the_h5_is_of_other_videos(tmp_path, capsys):
    flags = ["--predictions", fixture("tvsum_pred_picks.json"), "--h5", fixture("eccv16_dataset_tvsum_synthetic.h5")]
    document = run(tmp_path, tvsum, *flags)
    assert set(document["protocols"]) == {"keyshots_h5"} and "10 in the h5" in capsys.readouterr().out
    equal(document["protocols"]["keyshots_h5"]["f_avg"]["mean"], golden("tvsum_golden")["predictors"]["picks"]["mean"]["f_avg"])
    with pytest.raises(UserError, match="not of the same videos"):
        run(tmp_path, tvsum, *flags, "--annotations", cut_annotations(tmp_path))


def cut_annotations(tmp_path):
    """The golden annotations with one video's last frame missing."""
    lines = gzip.decompress(fixture("tvsum_anno.tsv.gz").read_bytes()).decode().splitlines()
    lines[:20] = [line[:-2] for line in lines[:20]]
    (tmp_path / "cut.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "cut.tsv"


@pytest.fixture
def small(tmp_path):
    """A small data set in both forms: annotations with lengths, and an h5 of the same videos; predictions of every 15th frame."""
    videos = write_tvsum(tmp_path)
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "small.h5", "w") as file:
        for number, video in enumerate(videos.values(), 1):
            n = video.shape[1]
            cuts = np.arange(0, n, 8)
            shots = np.column_stack([cuts, np.append(cuts[1:], n) - 1])
            content = {"user_summary": random.random((20, n)) < 0.2, "change_points": shots, "n_frames": n, "picks": np.arange(0, n, 15)}
            for key, value in content.items():
                file.create_dataset(f"video_{number}/{key}", data=value)
    scores = {f"video_{i}": random.random(len(np.arange(0, v.shape[1], 15))).tolist() for i, v in enumerate(videos.values(), 1)}
    (tmp_path / "p.json").write_text(json.dumps(scores))
    names = list(scores)
    splits = [{"test_keys": names[k::2], "train_keys": [name for name in names if name not in names[k::2]]} for k in range(2)]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    return tmp_path, list(videos)


def small_flags(folder):
    return ["--annotations", folder / "demo-anno.tsv", "--predictions", folder / "p.json"]


def test_where_annotations_fit_every_protocol_is_there_under_their_ids(small):
    folder, ids = small
    plain = run(folder, tvsum, *small_flags(folder))["protocols"]
    both = run(folder, tvsum, *small_flags(folder), "--h5", folder / "small.h5", "--splits", folder / "splits.json")["protocols"]
    assert set(both) == {*plain, "keyshots_h5", "por"}
    for protocol, metrics in plain.items():
        for metric, entry in metrics.items():
            with_splits = both[protocol][metric]
            parts = zip(entry.values(), with_splits.values()) if "mean" not in entry else [(entry, with_splits)]
            for before, after in parts:
                values = after.pop("splits", None)
                equal(before["mean"], after["mean"])
                if values is not None and None not in before["per_video"].values():
                    per_split = [np.mean([before["per_video"][i] for i in ids[k::2]]) for k in range(2)]
                    assert values["per_split"] == pytest.approx(per_split)
    assert list(both["keyshots_h5"]["f_avg"]["per_video"]) == ids


def test_baseline_files_alone_have_the_numbers_of_splits_too(small):
    folder, _ = small
    flags = ["--annotations", folder / "demo-anno.tsv", "--h5", folder / "small.h5", "--splits", folder / "splits.json"]
    (row,) = (
        entry
        for name, entry in run(folder, tvsum, *flags, "--baselines", folder / "p.json")["baselines"].items()
        if name.startswith("baseline ")
    )
    own = run(folder, tvsum, *flags, "--predictions", folder / "p.json")["protocols"]
    for protocol, metric in (("por", "por"), ("keyshots_h5", "f_avg")):
        equal(row[protocol][metric]["mean"], own[protocol][metric]["mean"])


def test_splits_without_an_h5_and_the_other_forms(small):
    folder, _ = small
    alone = run(folder, tvsum, *small_flags(folder), "--splits", folder / "splits.json")["protocols"]
    assert "keyshots_h5" not in alone and len(alone["corr_full"]["kendall"]["splits"]["per_split"]) == 2
    (folder / "bad.json").write_text('[{"test_keys": ["video_99"]}]')
    with pytest.raises(UserError, match="split 0 tests video_99"):
        run(folder, tvsum, *small_flags(folder), "--splits", folder / "bad.json")


def test_a_lost_video_leaves_its_split_undefined(small):
    folder, _ = small
    scores = json.loads((folder / "p.json").read_text())
    del scores["video_1"]
    (folder / "p.json").write_text(json.dumps(scores))
    flags = [*small_flags(folder), "--h5", folder / "small.h5", "--splits", folder / "splits.json"]
    por = run(folder, tvsum, *flags)["protocols"]["por"]["por"]
    assert por["mean"] is None and por["splits"]["per_split"][0] is None and por["splits"]["per_split"][1] > 0


def test_files_are_compared_on_the_videos_that_all_score(small, capsys):
    folder, ids = small
    scores = json.loads((folder / "p.json").read_text())
    lost = list(scores)[:3]
    (folder / "q.json").write_text(json.dumps({name: values for name, values in scores.items() if name not in lost}))
    flags = ["--annotations", folder / "demo-anno.tsv", "--compare", folder / "p.json", folder / "q.json"]
    document = run(folder, tvsum, *flags)
    assert f"compared on the {len(ids) - 3} of {len(ids)} videos that all 2 files score; lost: " in capsys.readouterr().out
    first, second = document["predictions"].values()
    assert first["protocols"] == second["protocols"] and first["baselines"] == second["baselines"]
    assert len(first["protocols"]["corr_full"]["kendall"]["per_video"]) == len(ids) - 3


def test_predictions_may_name_summe_videos(tmp_path):
    videos = json.loads(fixture("summe_pred_ties.json").read_text())["videos"]
    titles = {name: video.title for name, video in summe.read_h5(fixture("eccv16_dataset_summe_synthetic.h5")).items()}
    (tmp_path / "named.json").write_text(json.dumps({"videos": {titles[name]: video for name, video in videos.items()}}))
    flags = ["--h5", fixture("eccv16_dataset_summe_synthetic.h5"), "--predictions"]
    assert (
        run(tmp_path, summe, *flags, tmp_path / "named.json")["protocols"]
        == run(tmp_path, summe, *flags, fixture("summe_pred_ties.json"))["protocols"]
    )


def test_summe_without_its_h5_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="need eccv16_dataset_summe_google_pool5.h5"):
        run(tmp_path, summe, "--predictions", fixture("summe_pred_ties.json"))
