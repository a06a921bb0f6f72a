"""Mr.HiSum evaluation: every golden number, selections exact, the command, streaming."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from eval_data import write_hisum
from paths import shared_fixture

from aha.core.fusion import RELEVANCE
from aha.core.h5 import FIELDS_KEPT
from aha.errors import UserError
from aha.eval import hisum
from aha.eval.data_hisum import HiSumFile
from aha.metrics.hisum import PROTOCOLS, machine_summary, score_video, segment_means
from aha.results.report import wanted_curves


@pytest.fixture
def made(tmp_path):
    return tmp_path, write_hisum(tmp_path)


def summary_runs(summary: np.ndarray) -> list[int]:
    """Alternating start and (exclusive) end indices of the selected runs of a summary [n] bool."""
    return np.flatnonzero(np.diff(summary.astype(np.int8), prepend=0, append=0)).tolist()


def same(found: float | None, expected: float | None) -> bool:
    return found is None if expected is None else found is not None and abs(found - expected) < 1e-6


@pytest.mark.parametrize("name", ["hisum_pred_a", "hisum_pred_tied"])
def test_every_golden_number(name):
    golden = json.loads(shared_fixture("eval/hisum_golden.json").read_text())[name]
    metrics = hisum.evaluate(
        shared_fixture(f"eval/{name}.json"),
        shared_fixture("eval/mr_hisum_synthetic.h5"),
        shared_fixture("eval/mr_hisum_synthetic_split.json"),
        random_runs=1,
    )
    for protocol in PROTOCOLS:
        if protocol not in golden:
            continue
        expected = golden[protocol].get("mean", golden[protocol])
        for metric, value in expected.items():
            found = metrics["protocols"][protocol][metric]
            assert same(found["mean"], value), (protocol, metric)
            for video_id, numbers in golden[protocol].get("per_video", {}).items():
                assert same(found["per_video"][video_id], numbers[metric]), (protocol, metric, video_id)
    predictions = json.loads(shared_fixture(f"eval/{name}.json").read_text())
    with HiSumFile(shared_fixture("eval/mr_hisum_synthetic.h5")) as file:
        for video_id, runs in golden["machine_summary_runs"].items():
            summary = machine_summary(np.array(predictions[video_id]), file.read(video_id).change_points)
            assert summary_runs(summary) == runs, video_id


def test_segments():
    scores = np.arange(7.0)
    assert segment_means(scores).tolist() == [2.0, 5.5]
    assert segment_means(scores, pad_last=True).tolist() == [2.0, 2.2]


def test_degenerate_videos():
    for n in (1, 2, 4):
        x = np.linspace(0, 1, n)
        found = score_video(x, x, np.zeros(n, dtype=bool), np.array([[0, n]]), list(PROTOCOLS))
        assert found["official"]["f1"] == 0 and set(found) == set(PROTOCOLS)
    assert np.isnan(score_video(np.zeros(1), np.zeros(1), None, None, ["aha_shifted_index"])["aha_shifted_index"]["kendall"])


def test_command_with_categories_and_counts(made, capsys):
    folder, scores = made
    predictions = json.loads((folder / "predictions.json").read_text())
    predictions["video_3"] = [0.5] * len(scores["video_3"])
    del predictions["video_5"]
    (folder / "p.json").write_text(json.dumps(predictions))
    arguments = ["--predictions", str(folder / "p.json"), "--annotations", str(folder / "mr_hisum.h5"), "--split", str(folder / "split.json"),
                 "--metadata", str(folder / "metadata.csv"), "--output", str(folder / "m.json"), "--random_runs", "2"]  # fmt: skip
    hisum.main(arguments)
    shown = capsys.readouterr().out
    assert "3 videos scored, 1 skipped, 1 constant" in shown and "skipped, no prediction: video_5" in shown and "label 3" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80  # the first line names the file
    metrics = json.loads((folder / "m.json").read_text())
    assert metrics["videos"] == {"scored": 3, "skipped": {"video_5": "no prediction"}, "constant": ["video_3"], "trained_on": []}
    kendall = metrics["protocols"]["aha_same_index"]["kendall"]
    assert kendall["videos"] == 2 and kendall["per_video"]["video_3"] is None and set(kendall["per_category"]) == {"label 3", "label 4"}
    assert metrics["baselines"][hisum.UPPER]["aha_same_index"]["kendall"]["mean"] == 1.0
    with pytest.raises(UserError, match="--strict"):
        hisum.main([*arguments, "--strict"])


def test_youtube_ids_times_and_trained_on(made, capsys):
    folder, scores = made
    n = len(scores["video_2"])
    values = np.round(scores["video_2"], 6)
    heads = [{"time": float(t), "relevance_score": float(values[t])} for t in range(n)] + [{"time": float(n), "relevance_score": 0.0}]
    entry = {"video_uuid": "tube1", "true_frames_list": [25 * t for t in range(n + 1)], "debug_data": heads, "trained_on": True}
    (folder / "aha.jsonl").write_text(json.dumps(entry))
    found = hisum.evaluate(folder / "aha.jsonl", folder / "mr_hisum.h5", metadata=folder / "metadata.csv", random_runs=1)
    assert found["protocols"]["score_correlation_and_padded_map_triplesumm"]["kendall"]["per_video"]["video_2"] == pytest.approx(1)
    assert found["videos"]["trained_on"] == ["video_2"] and "TRAINED ON" in capsys.readouterr().err


def test_selection(made):
    folder, _ = made
    h5, split = folder / "mr_hisum.h5", folder / "split.json"
    assert list(hisum.load(h5, split, "train").chosen) == ["video_1"]
    assert list(hisum.load(h5, limit=2).chosen) == ["video_1", "video_2"]
    with pytest.raises(UserError, match="empty"):
        hisum.load(h5, split, "val")
    with pytest.raises(UserError, match="nobody"):
        hisum.load(h5, video_ids=["nobody"])


def test_metadata_without_labels_and_h5_in_a_folder(made):
    folder, _ = made
    (folder / "metadata.csv").write_text("video_id,youtube_id,title\nvideo_1,tube0,a\n")
    found = hisum.evaluate(
        folder / "predictions.json", folder, metadata=folder / "metadata.csv", protocols=["aha_same_index"], random_runs=1
    )
    assert found["protocols"]["aha_same_index"]["map50"]["per_category"] == {} and found["videos"]["scored"] == 5


def test_protocols_without_summary_need_no_summary(made):
    folder, _ = made
    with h5py.File(folder / "mr_hisum.h5", "a") as file:
        for group in file.values():
            del group["change_points"]
    found = hisum.evaluate(folder / "predictions.json", folder / "mr_hisum.h5", protocols=["aha_same_index"], random_runs=1)
    assert found["videos"]["scored"] == 5
    with pytest.raises(UserError, match="lacks the field change_points"):
        hisum.evaluate(folder / "predictions.json", folder / "mr_hisum.h5", random_runs=1)


def test_compare_and_report(made, capsys):
    folder, _ = made
    arguments = ["--annotations", str(folder / "mr_hisum.h5"), "--random_runs", "1"]
    hisum.main(["--compare", str(folder / "predictions.json"), str(folder / "predictions.json"), *arguments])
    shown = capsys.readouterr().out
    assert "+0.0000" in shown and max(map(len, shown.splitlines())) <= 80
    hisum.main(["--predictions", str(folder / "predictions.json"), "--report", str(folder / "report"), *arguments])
    assert (folder / "report" / "report.html").read_text().count("<figure>") == 5


def test_curves_of_the_report_are_scores_over_gtscore_and_its_summary(made):
    """By the h5's name whatever the prediction calls the video; one place a second; only those that are wanted."""
    folder, scores = made
    known = hisum.load(folder / "mr_hisum.h5", metadata=folder / "metadata.csv")
    values = np.arange(len(scores["video_2"]), dtype=float)
    (folder / "theirs.json").write_text(json.dumps({"tube1": values.tolist(), "video_3": scores["video_3"].tolist()}))
    (curve,) = known.curves(folder / "theirs.json", RELEVANCE, ["video_2"])
    n = len(scores["video_2"])
    assert (curve.key, curve.duration, curve.title) == ("video_2", n, known.categories["video_2"])
    (seconds, shown) = curve.scores["prediction"]
    assert seconds.tolist() == list(range(n)) and (shown == values).all()
    label, seconds, reference = curve.reference
    assert label == "gtscore" and seconds.tolist() == list(range(n)) and (reference == scores["video_2"]).all()
    with h5py.File(folder / "mr_hisum.h5") as file:
        summary = file["video_2/gtsummary"][:]
    label, spans = curve.spans
    filled = np.zeros(n, int)
    for start, end in spans:
        filled[start:end] += 1
    assert label == "reference summary" and (filled == summary).all()
    hisum.main([
        "--predictions", str(folder / "predictions.json"), "--annotations", str(folder / "mr_hisum.h5"), "--random_runs", "1",
        "--report", str(folder / "report"),
    ])  # fmt: skip
    assert len(list((folder / "report" / "figures" / "curves").glob("*.png"))) == 5
    page = (folder / "report" / "report.html").read_text()
    assert all(f"scores of {video_id}" in page for video_id in scores)
    # of many videos the six best and the six worst
    many = {f"v{k}": 1 - k / 99 for k in range(80)}
    metrics = {"protocols": {"official": {"map50": {"mean": 0.5, "per_video": many}}}}
    assert wanted_curves(metrics, hisum.TASK.layout()) == [*(f"v{k}" for k in range(79, 73, -1)), *(f"v{k}" for k in range(5, -1, -1))]


def test_baselines_come_from_the_cache(made, monkeypatch):
    folder, _ = made
    monkeypatch.setenv("AHA_CACHE", str(folder / "cache"))  # so that the first rows are computed here
    first = hisum.evaluate(None, folder / "mr_hisum.h5", random_runs=2)["baselines"]
    monkeypatch.setattr(hisum, "_video_baselines", lambda *_: pytest.fail("computed again"))
    assert hisum.evaluate(None, folder / "mr_hisum.h5", random_runs=2)["baselines"] == first


def test_reading_many_videos_reopens_the_file(made):
    folder, scores = made
    with HiSumFile(folder / "mr_hisum.h5") as file:
        for _ in range(2 * FIELDS_KEPT + 500):
            video = file.read("video_1", with_summary=False)
        assert (video.gtscore == scores["video_1"]).all() and file.file.seen == 500


def test_papers_rows_stand_beside_the_whole_test_split(made):
    """Their split is test: with it, and all of it scored, they are comparable; a part or no split is said."""
    folder, _ = made

    def told(*more: str) -> str:
        words = [
            "--predictions",
            folder / "predictions.json",
            "--annotations",
            folder / "mr_hisum.h5",
            "--protocols",
            "official",
            "--published",
        ]
        hisum.main([str(word) for word in (*words, *more, "--random_runs", "1", "--output", folder / "metrics.json")])
        row = next(row for row in json.loads((folder / "metrics.json").read_text())["published"] if row["method"] == "PGL-SUM")
        return row.get("because", "comparable")

    split = ("--split", str(folder / "split.json"))
    assert told(*split) == "comparable"
    assert told(*split, "--limit", "1") == "it is on all 4 of test, and 1 of them were scored here"
    assert "split test, which was not evaluated" in told()
