"""scripts/inference/*.sh and the commands behind them: from tiny videos and published annotations to a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from paths import REPO
from tiny_benchmarks import tiny_model, write_benchmark, write_hisum

from aha import score
from aha.core.prediction import read_predictions
from aha.eval import charades, hisum, magqa, qvhighlights, youcook2

pytest.importorskip("torch")
SCRIPTS = REPO / "scripts" / "inference"
NAMES = ("tvsum", "hisum", "charades", "qvh", "youcook2", "magqa")


@pytest.mark.parametrize("name", NAMES)
def test_help(name):
    run = subprocess.run(["bash", str(SCRIPTS / f"{name}.sh"), "--help"], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0
    assert f"usage: bash scripts/inference/{name}.sh" in run.stdout
    assert "--limit" in run.stdout


def test_a_script_from_video_to_table(tmp_path):
    write_benchmark(tmp_path / "charades", "charades")
    options = tiny_model()
    variables = {
        **os.environ, "LLM": options[1], "LORA": options[3], "DATA_ROOT": str(tmp_path / "charades"), "OUT": str(tmp_path / "out"),
        "AHA_PYTHON": os.environ.get("AHA_PYTHON", sys.executable), "NUM_GPUS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = ["bash", str(SCRIPTS / "charades.sh"), "--limit", "1", "--device", "cpu", "--frame_fps", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=variables)
    assert run.returncode == 0, run.stderr
    assert "fixed_threshold_w0_t0.50" in run.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["videos"]["scored"] == 1
    assert (tmp_path / "out" / "report" / "report.html").exists()


@pytest.mark.parametrize("name, module", [("charades", charades), ("qvh", qvhighlights)])
def test_scored_benchmarks(tmp_path, name, module):
    root, predictions, output = tmp_path / name, tmp_path / "predictions.json", tmp_path / "metrics.json"
    write_benchmark(root, name)
    score.main([*tiny_model(), "--dataset", name, "--data_root", str(root), "--frame_fps", "1", "--output", str(predictions)])
    module.main(["--predictions", str(predictions), "--annotations", str(root), "--output", str(output)])
    document = json.loads(output.read_text())
    assert document["videos"]["scored"] == 2
    assert len(document["videos"]["skipped"]) == 1


def test_conversed_benchmarks(tmp_path):
    """The model is made to speak after every frame; its replies become captions and graded answers."""
    speak = ["--stream_end_prob_threshold", "0", "--max_new_tokens", "4", "--remove_assistant_turns", "--frame_fps", "1"]
    for name in ("youcook2", "magqa"):
        write_benchmark(tmp_path / name, name)
        predictions = tmp_path / f"{name}.json"
        score.main([*tiny_model(), "--dataset", name, "--data_root", str(tmp_path / name), *speak, "--output", str(predictions)])
        assert [len(entry["model_response_list"]) for entry in json.loads(predictions.read_text())] == [6, 6]

    output = tmp_path / "metrics.json"
    common = ["--annotations", str(tmp_path / "youcook2"), "--output", str(output), "--no_java"]
    youcook2.main(["--predictions", str(tmp_path / "youcook2.json"), *common])
    document = json.loads(output.read_text())
    assert document["videos"]["scored"] == 2
    assert document["protocols"]["dense_captioning"]["n_preds"]["mean"] >= 1

    class Generous:
        identity = "generous"

        def ask(self, system, user):
            return "4"

    questions = {q.key: q for q in magqa.read_magqa(tmp_path / "magqa" / "annotations" / "magqa_test.json")}
    answers = {answer.question_id: answer for answer in read_predictions(tmp_path / "magqa.json")}
    wanted = {q: magqa.pairs_of(answers[q], questions[q]) for q in answers}
    assert all(len(pairs) == 4 for pairs in wanted.values())  # replies at 0, 1, 2 and 3 seconds lie in the span
    cache = magqa.JudgmentCache(tmp_path / "cache.jsonl")
    grades, _ = magqa.judge_pairs([pair for pairs in wanted.values() for pair in pairs.values()], Generous(), cache)
    assert set(grades.values()) == {4}


def test_hisum_from_video_to_table(tmp_path):
    """The metadata with titles among Aha's annotations has no labels column; both forms serve."""
    root = write_hisum(tmp_path / "hisum")
    predictions, output = tmp_path / "predictions.json", tmp_path / "metrics.json"
    score.main([*tiny_model(), "--dataset", "hisum", "--data_root", str(root), "--output", str(predictions)])
    folder = root / "annotations"
    hisum.main([
        "--predictions", str(predictions), "--annotations", str(folder / "mr_hisum.h5"), "--split", str(folder / "mr_hisum_split.json"),
        "--metadata", str(folder / "metadata.csv"), "--output", str(output),
    ])  # fmt: skip
    assert json.loads(output.read_text())["videos"]["scored"] == 2
