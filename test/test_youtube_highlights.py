"""YouTube Highlights through its command: the golden numbers of UMT and Lighthouse, frame scores, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from paths import shared_fixture

from aha.errors import UserError
from aha.eval import load_task, youtube_highlights

ANNOTATIONS = "published/youtube_highlight_synthetic_val.jsonl"


def run(tmp_path, predictions, *arguments):
    output = tmp_path / "metrics.json"
    flags = ["--predictions", predictions, "--annotations", shared_fixture(ANNOTATIONS), "--output", output, *arguments]
    youtube_highlights.main([str(flag) for flag in flags])
    return json.loads(output.read_text())


@pytest.mark.parametrize("predictor", ["untied", "tied", "const", "longer", "shorter"])
def test_the_command_equals_umt_and_lighthouse(tmp_path, predictor):
    golden = json.loads(shared_fixture("published/youtube_highlight_golden.json").read_text())[predictor]
    found = run(tmp_path, shared_fixture(f"published/youtube_highlight_pred_{predictor}.jsonl"))["protocols"]["ap_all_clips"]
    assert list(found) == list(youtube_highlights.METRICS)
    for metric, value in golden["mean_of_domains"].items():
        assert found[metric]["mean"] == pytest.approx(value, abs=1e-9), metric
        for domain, numbers in golden["domain"].items():
            assert found[metric]["per_category"][domain] == pytest.approx(numbers[metric], abs=1e-9), (metric, domain)


def test_frame_scores_become_clip_scores(tmp_path):
    """Frame scores that are 1 in every highlight clip's seconds and 0 elsewhere score as those means of clips do."""
    videos = load_task("youtube_highlights").items(shared_fixture(ANNOTATIONS))
    frames, clips = [], []
    for video in videos:
        times = np.arange(0, video.duration, 0.5)
        scores = np.zeros(len(times))
        for start, end in video.clips[video.labels]:
            scores[(times >= start) & (times < end)] = 1
        rows = [{"time": float(time), "relevance_score": float(score)} for time, score in zip(times, scores)]
        frames.append({"video_uuid": video.key, "debug_data": rows})
        means = [scores[(times >= start - 1e-6) & (times < end - 1e-6)].mean() for start, end in video.clips]
        clips.append({"vid": video.key, "pred_saliency_scores": means})
    results = []
    for name, content in (("frames.json", frames), ("clips.json", clips)):
        (tmp_path / name).write_text(json.dumps(content))
        results.append(run(tmp_path, tmp_path / name)["protocols"])
    assert results[0] == results[1] and results[0]["ap_all_clips"]["lighthouse_tie_mean"]["mean"] > 0.9


def test_rows_and_differences_are_means_of_the_domains_too(tmp_path):
    files = [shared_fixture(f"published/youtube_highlight_pred_{name}.jsonl") for name in ("untied", "tied")]
    alone = [run(tmp_path, file)["protocols"]["ap_all_clips"] for file in files]
    document = run(tmp_path, files[0], "--baselines", files[1])
    (row,) = (entry for name, entry in document["baselines"].items() if name.startswith("baseline "))
    for metric, entry in row["ap_all_clips"].items():
        assert entry["mean"] == pytest.approx(alone[1][metric]["mean"])
        assert entry["difference"]["mean"] == pytest.approx(alone[0][metric]["mean"] - alone[1][metric]["mean"], abs=1e-9)
        low, high = document["confidence_intervals"]["ap_all_clips"][metric]
        assert low <= alone[0][metric]["mean"] <= high


def test_published_rows_are_of_the_whole_val_split(tmp_path, capsys):
    document = run(tmp_path, shared_fixture("published/youtube_highlight_pred_untied.jsonl"), "--published")
    (row,) = document["published"]
    assert row["method"] == "UMT-S" and not row["comparable"] and "on 152 of val, and 21 were scored here" in row["because"]
    assert "not comparable, because" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fps": 0}, "fps"),
        ({"label": [[1]]}, "one 0/1 label"),
        ({"domain": ""}, "domain"),
        ({"clip": [[5, 1]]}, "ends .* before it starts"),
    ],
)
def test_bad_annotations_are_one_sentence(tmp_path, change, said):
    good = {"vid": "a", "duration": 10.0, "domain": "dog", "fps": 10, "clip": [[0, 50], [25, 75]], "label": [[1], [0]]}
    (tmp_path / "gt.jsonl").write_text(json.dumps(good | change))
    with pytest.raises(UserError, match=said):
        youtube_highlights.read_videos(tmp_path / "gt.jsonl")
