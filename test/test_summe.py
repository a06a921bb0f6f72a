"""SumMe from the community's h5 file: every golden number, names of videos, where scores lie, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from paths import shared_fixture

from aha.errors import UserError
from aha.eval import load_task, summe
from aha.eval.community import read_h5

H5 = "published/eccv16_dataset_summe_synthetic.h5"
NAMES = {
    ("keyshots_h5", "f_max"): "f_max", ("keyshots_h5", "f_avg"): "f_avg",
    ("corr_summary_csta", "kendall"): "tau_summary_vs_mean_users", ("corr_summary_csta", "spearman"): "rho_summary_vs_mean_users",
}  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(shared_fixture("published/summe_golden.json").read_text())


@pytest.mark.parametrize("name", ["noisy", "ties", "const", "picks", "onefps"])
def test_every_golden_number(name, golden):
    metrics = summe.evaluate(shared_fixture(f"published/summe_pred_{name}.json"), shared_fixture(H5), random_runs=1)
    want = golden["predictors"][name]
    for (protocol, metric), key in NAMES.items():
        entry = metrics["protocols"][protocol][metric]
        assert entry["mean"] == pytest.approx(want["mean"][key], abs=1e-6)
        assert entry["per_video"] == pytest.approx({video: numbers[key] for video, numbers in want["per_video"].items()}, abs=1e-6)
    human = metrics["baselines"][summe.HUMAN]["keyshots_h5"]["f_max"]["mean"]
    assert human == pytest.approx(golden["humans_leave_one_out_f_max"]["mean"], abs=1e-6)


def test_command_compares_and_reports(tmp_path, capsys):
    files = [str(shared_fixture(f"published/summe_pred_{name}.json")) for name in ("noisy", "ties")]
    more = ["--h5", str(shared_fixture(H5)), "--random_runs", "2"]
    summe.main(["--compare", *files, *more])
    assert "minus A" in capsys.readouterr().out
    summe.main(["--predictions", files[0], *more, "--limit", "3", "--report", str(tmp_path), "--output", str(tmp_path / "m.json")])
    shown = capsys.readouterr().out
    assert "49." not in shown.splitlines()[0] and "keyshots_h5" in shown and max(map(len, shown.splitlines())) < 130
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["settings"]["benchmark"] == "summe" and metrics["videos"]["scored"] == 3
    page = (tmp_path / "report.html").read_text()
    assert (
        page.count("<figure>") == 3 == page.count("&#34;moments&#34;: [&#34;frame ") and "0:00" not in page
    )  # its axis has frames and no seconds


def test_videos_go_by_either_name_and_scores_by_frames_or_picks(tmp_path):
    videos = read_h5(shared_fixture(H5))
    rng = np.random.default_rng(0)
    at_picks = {key: rng.random(len(video.truth.picks)).tolist() for key, video in videos.items()}
    every_frame = {}
    for key, scores in at_picks.items():
        truth = videos[key].truth
        every_frame[videos[key].title] = np.repeat(scores, np.diff([*truth.picks, truth.n_frames])).tolist()
    found = []
    for name, scores in (("picks", at_picks), ("frames", every_frame)):
        (tmp_path / f"{name}.json").write_text(json.dumps(scores))
        found.append(summe.evaluate(tmp_path / f"{name}.json", shared_fixture(H5), random_runs=1)["protocols"])
    assert found[0] == found[1]
    (tmp_path / "few.json").write_text(json.dumps({"video_1": [0.1, 0.2, 0.3]}))
    with pytest.raises(UserError, match="video_1: 3 scores without frame numbers"):
        summe.evaluate(tmp_path / "few.json", shared_fixture(H5))
    (tmp_path / "other.json").write_text(json.dumps({"stranger": [0.1]}))
    with pytest.raises(UserError, match="video stranger is not in"):
        summe.evaluate(tmp_path / "other.json", shared_fixture(H5))


def test_items_ask_for_the_name_of_the_video(tmp_path):
    (tmp_path / summe.FILE).symlink_to(shared_fixture(H5))
    found = load_task("summe").items(tmp_path)
    assert [item.key for item in found][:3] == ["video_1", "video_2", "video_3"]
    assert all(item.queries == ((0.0, item.video.replace("_", " ")),) for item in found)
