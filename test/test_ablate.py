"""Ablations: every row equals aha.score with its options, and vision features are computed once."""

from __future__ import annotations

import json

import pytest
from tiny_benchmarks import tiny_model, write_tvsum

from aha import score
from aha.errors import UserError
from aha.scoring import ablate
from aha.scoring.config import ScoreConfig

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tvsum(tmp_path_factory):
    return write_tvsum(tmp_path_factory.mktemp("tvsum"))


def test_every_row_equals_aha_score_and_each_frame_is_encoded_once(tmp_path, tvsum, model, capsys):
    arguments = ["--dataset", "tvsum", "--data_root", str(tvsum), *model, "--window", "150", "--corrupt_ratio", "0.5"]
    ablate.main([*arguments, "--output", str(tmp_path / "a")])
    result = json.loads((tmp_path / "a" / "ablation.json").read_text())
    assert len(result["rows"]) == 5 + 5 + 4 + 4
    # 3 videos x 8 frames; 4 corruptions of half of them; 12 settings
    assert result["vision"] == {"videos": 3, "frames_encoded": 24, "corrupted_frames_encoded": 48, "frames_reused": 0, "frames_scored": 288}
    assert "24 clean and 48 corrupted frames encoded" in capsys.readouterr().out

    by_name = {row["name"]: row for row in result["rows"]}
    for name in ("sliding", "blackout", "unrelated"):
        options = by_name[name]["score_options"]
        direct = tmp_path / f"{name}.json"
        score.main([*model, "--dataset", "tvsum", "--data_root", str(tvsum), *options, "--output", str(direct)])
        ours = json.loads((tmp_path / "a" / "predictions" / f"{'-'.join(options).replace('--', '')}.json").read_text())
        for mine, theirs in zip(ours, json.loads(direct.read_text()), strict=True):
            assert mine["query"] == theirs["query"]
            assert mine["true_frames_list"] == theirs["true_frames_list"]
            for a, b in zip(mine["debug_data"], theirs["debug_data"], strict=True):
                assert a == pytest.approx(b, abs=1e-5)
    metrics = {json.dumps(row["metrics"], sort_keys=True) for row in result["rows"]}
    assert len(metrics) > 5  # the settings do make a difference
    assert by_name["full"]["metrics"] == by_name["clean"]["metrics"] == by_name["specific"]["metrics"]

    # a second run scores nothing new; with the parts gone it takes its features from disk
    ablate.main([*arguments, "--output", str(tmp_path / "b"), "--features", str(tmp_path / "a" / "features")])
    again = json.loads((tmp_path / "b" / "ablation.json").read_text())
    assert again["vision"] == {"videos": 3, "frames_encoded": 0, "corrupted_frames_encoded": 0, "frames_reused": 24, "frames_scored": 288}
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in result["rows"]]


def test_rows_of_the_studies():
    def rows(studies=("heads",), config=None, **given):
        return ablate.variants(studies, config or ScoreConfig(), given)

    assert [row.fusion.alpha for row in rows()] == [0.7, 0, 0.7, 0.7]
    assert [row.fusion.beta for row in rows(beta=2.0, alpha=1.0)] == [2, 2, 0, 2]
    assert [row.options for row in rows(["cache"], ScoreConfig(window=300, sink_tokens=8))][:2] == [
        [], ["--cache", "sink", "--window", "300", "--sink_tokens", "8"],
    ]  # fmt: skip
    with pytest.raises(UserError, match="leaves no head but uncertainty"):
        rows(alpha=0.0)
    with pytest.raises(ablate.argparse.ArgumentTypeError, match="cache, corruption"):
        ablate.study_list("cache,weather")
