"""Ablations: every row equals aha.score with its options, and vision features are computed once."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
from paths import shared_fixture

from aha import score
from aha.errors import UserError
from aha.eval import ablate, charades, qvhighlights

pytest.importorskip("torch")


def write_video(path, seconds, seed, fps=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(seconds):
            picture = np.full((64, 96, 3), random.integers(0, 256, 3), np.uint8)
            picture[:32, :48] = random.integers(0, 256, 3)
            for _ in range(fps):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def model():
    return [
        "--llm_pretrained", str(shared_fixture("reference/llava-onevision-qwen2-tiny-ov")),
        "--lora_pretrained", str(shared_fixture("reference/aha-adapter")), "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tvsum(tmp_path_factory):
    """Three videos of 8 seconds in the official folder layout."""
    root = tmp_path_factory.mktemp("tvsum")
    random = np.random.default_rng(0)
    info, rows = ["category\tvideo_id\ttitle\turl\tlength"], []
    for i, category in enumerate(["VT", "GA", "MS"]):
        video_id = f"video{i}"
        write_video(root / "ydata-tvsum50-v1_1" / "video" / f"{video_id}.mp4", 8, seed=i)
        info.append(f"{category}\t{video_id}\tA title of {category}\turl\t0:08")
        rows += [f"{video_id}\t{category}\t" + ",".join(str(x) for x in np.repeat(random.integers(1, 6, 4), 10)) for _ in range(20)]
    data = root / "ydata-tvsum50-v1_1" / "data"
    data.mkdir()
    (data / "ydata-tvsum50-info.tsv").write_text("\n".join(info) + "\n")
    (data / "ydata-tvsum50-anno.tsv").write_text("\n".join(rows) + "\n")
    return root


def test_every_row_equals_aha_score_and_each_frame_is_encoded_once(tmp_path, tvsum, model, capsys):
    arguments = ["--dataset", "tvsum", "--data_root", str(tvsum), *model, "--window", "150", "--corrupt_ratio", "0.5"]
    ablate.main([*arguments, "--output", str(tmp_path / "a")])
    result = json.loads((tmp_path / "a" / "ablation.json").read_text())
    assert len(result["rows"]) == 5 + 5 + 4 + 4
    # 3 videos x 8 frames; 4 corruptions of half of them; 12 settings
    assert result["vision"] == {"videos": 3, "frames_encoded": 24, "corrupted_frames_encoded": 48, "frames_reused": 0, "frames_scored": 288}
    assert "24 clean and 48 corrupted frames encoded" in capsys.readouterr().out

    by_name = {row["name"]: row for row in result["rows"]}
    for name in ("full", "sliding", "blackout", "unrelated", "none"):
        options = by_name[name]["score_options"]
        direct = tmp_path / f"{name}.json"
        score.main([*model, "--dataset", "tvsum", "--data_root", str(tvsum), *options, "--output", str(direct)])
        ours = json.loads((tmp_path / "a" / "predictions" / f"{ablate.file_name(options)}.json").read_text())
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
    def rows(*arguments):
        parsed = ablate.argparse.Namespace(
            study=["heads"],
            alpha=None,
            beta=None,
            epsilon=None,
            uncertainty_threshold=None,
            window=None,
            sink_tokens=None,
            seed=0,
            corrupt_ratio=0.2,
        )
        vars(parsed).update(dict(arguments))
        return ablate.variants(parsed)

    assert [row.weights.alpha for row in rows()] == [0.7, 0, 0.7, 0.7]
    assert [row.weights.beta for row in rows(("beta", 2.0), ("alpha", 1.0))] == [2, 2, 0, 2]
    with pytest.raises(UserError, match="leaves no head but uncertainty"):
        rows(("alpha", 0.0))
    with pytest.raises(ablate.argparse.ArgumentTypeError, match="cache, corruption"):
        ablate.study_list("cache,weather")


def test_question_benchmarks_from_video_to_table(tmp_path, model):
    """aha.score --dataset charades and qvh on the published layouts, then their evaluation."""
    for name, annotation, line in (
        ("charades", "charades_sta_test.txt", "{id} 1.0 4.0##person opens a door."),
        ("qvh", "highlight_val_release.jsonl", json.dumps({
            "qid": "@", "query": "a door", "duration": 6, "vid": "{id}", "relevant_clip_ids": [1], "saliency_scores": [[4, 3, 4]],
            "relevant_windows": [[2, 4]],
        })),
    ):  # fmt: skip
        root = tmp_path / name
        lines = []
        for i in range(3):
            if i < 2:  # the third video is missing
                write_video(root / "videos" / f"v{i}_0.0_6.0.mp4", 6, seed=i)
            lines.append(line.replace("{id}", f"v{i}_0.0_6.0").replace("@", f"q{i}"))
        (root / "annotations").mkdir()
        (root / "annotations" / annotation).write_text("\n".join(lines))
        predictions, output = tmp_path / f"{name}.json", tmp_path / f"{name}-metrics.json"
        score.main([*model, "--dataset", name, "--data_root", str(root), "--frame_fps", "1", "--output", str(predictions)])
        module = {"charades": charades, "qvh": qvhighlights}[name]
        module.main(["--predictions", str(predictions), "--annotations", str(root), "--output", str(output)])
        document = json.loads(output.read_text())
        assert document["videos"]["scored"] == 2
        assert len(document["videos"]["skipped"]) == 1
