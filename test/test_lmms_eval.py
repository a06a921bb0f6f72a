"""The lmms-eval plug-in: reading of answers, tasks on small data sets, and the harness itself where it is installed.

The harness runs in the environment of $AHA_LMMS_PYTHON (integrations/lmms_eval/README.md), which .ci/run makes; elsewhere these tests are
not collected.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import REPO, shared_fixture
from tiny_benchmarks import write_hisum, write_tvsum

sys.path.insert(0, str(REPO / "integrations" / "lmms_eval"))
pytest.importorskip("torch")
from aha_lmms_eval import highlights, tasks


@pytest.fixture(scope="module")
def tvsum(tmp_path_factory):
    return write_tvsum(tmp_path_factory.mktemp("tvsum"))


PYTHON = os.environ.get("AHA_LMMS_PYTHON")


def in_harness(*arguments, timeout=900, **environment):
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    variables["PYTHONPATH"] = os.pathsep.join([str(REPO), str(REPO / "LLaVA_NeXT")])
    return subprocess.run([PYTHON, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=variables)


@pytest.mark.parametrize(
    "answer, numbers",
    [
        ("[1, 2.5, 3]", [1, 2.5, 3]),
        ("Sure! Here are the 3 numbers: [4, 5, 1]. Enjoy.", [4, 5, 1]),
        ("4, 5, 1", [4, 5, 1]),
        ("```json\n[0.1, -2e-1]\n```", [0.1, -0.2]),
        ("I cannot do that.", []),
        ("5", []),
        ("[]", []),
        ("", []),
    ],
)
def test_answers_are_read_or_refused(answer, numbers):
    assert highlights.read_numbers(answer) == numbers


@given(st.text())
def test_any_answer_gives_finite_numbers(answer):
    assert all(math.isfinite(number) for number in highlights.read_numbers(answer))


def test_numbers_are_held_over_equal_parts():
    np.testing.assert_array_equal(highlights.per_second([1, 2, 3], 6), [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(highlights.per_second([1, 2, 3], 3), [1, 2, 3])
    assert len(highlights.per_second([1, 2, 3, 4, 5], 3)) == 3


def test_task_folder_and_metrics(tmp_path, tvsum):
    tasks.write_task("tvsum", tvsum, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "tvsum.jsonl").read_text().splitlines()]
    assert [row["video_id"] for row in rows] == ["video0", "video1", "video2"]
    assert rows[0]["query"] == "A title of VT"
    assert "into 4 parts" in highlights.doc_to_text(rows[0])
    found = highlights.process_tvsum(rows[0], ["[1, 2, 3, 4]"])
    assert found["tvsum_answered"] == 1
    assert -1 <= found["tvsum_kendall"] <= 1
    silent = highlights.process_tvsum(rows[0], ["no idea"])
    assert silent["tvsum_answered"] == 0
    same = highlights.process_tvsum(rows[0], ["[3, 3, 3, 3]"])  # a model that says nothing about a video is one that ranks nothing in it
    assert [silent[name] for name in ("tvsum_f1", "tvsum_top5_map")] == [same[name] for name in ("tvsum_f1", "tvsum_top5_map")]
    assert math.isfinite(silent["tvsum_f1"]) and math.isnan(silent["tvsum_kendall"])
    assert highlights.mean([found["tvsum_kendall"], silent["tvsum_kendall"]]) == found["tvsum_kendall"]


def test_hisum_metrics():
    document = {"annotations": str(shared_fixture("eval/mr_hisum_synthetic.h5")), "key": "video_1"}
    golden = json.loads(shared_fixture("eval/hisum_golden.json").read_text())
    prediction = json.loads(shared_fixture("eval/hisum_pred_a.json").read_text())
    assert golden
    key = next(key for key in prediction)
    found = highlights.process_hisum({**document, "key": key}, [json.dumps(prediction[key])])
    assert found["hisum_answered"] == 1
    assert 0 < found["hisum_map50"] <= 100
    silent, same = (highlights.process_hisum(document, [answer]) for answer in ("?", "[3, 3]"))
    assert silent["hisum_map50"] == same["hisum_map50"] > 0 and silent["hisum_answered"] == 0
    assert math.isnan(silent["hisum_kendall"])


# ---- lmms-eval itself ----

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output_type}
doc_to_visual: !function lmms_tasks.{visual}
doc_to_text: !function lmms_tasks.{text}
doc_to_target: {target}
{more}
"""
PROCESS = (
    "process_results: !function lmms_tasks.{}\ngeneration_kwargs:\n  max_new_tokens: 4\nmetric_list:\n  - metric: {}\n    aggregation: mean"
)
CHOICE = 'doc_to_choice: ["a door", "a red star", "rain"]\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true'
KINDS = {  # name: output_type, what is seen, prompt, target, and the rest
    "video_question": ("generate_until", "video", "question", "answer", PROCESS.format("said", "words")),
    "picture_question": ("generate_until", "pictures", "question", "answer", PROCESS.format("said", "words")),
    "rounds": ("generate_until_multi_round", "video", "next_round", "answer", PROCESS.format("rounds_said", "rounds")),
    "choice": ("multiple_choice", "video", "question", "gold", CHOICE),
}


def write_kind(name: str, folder, videos) -> None:
    output_type, visual, text, target, more = KINDS[name]
    rows = [{"question": "What is seen?", "answer": "a door", "gold": 0, "video": str(path)} for path in videos]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yaml = TASK.format(name=name, data=json.dumps(str(data)), output_type=output_type, visual=visual, text=text, target=target, more=more)
    (folder / f"{name}.yaml").write_text(yaml)


if PYTHON:

    @pytest.fixture(scope="module")
    def folder(tmp_path_factory, tvsum):
        """All tasks: both of ours and one of each kind that lmms-eval has for words."""
        folder = tmp_path_factory.mktemp("lmms")
        tasks.write_task("tvsum", tvsum, folder)
        tasks.write_task("hisum", write_hisum(folder / "hisum"), folder)
        for name in KINDS:
            write_kind(name, folder, sorted(tvsum.rglob("*.mp4"))[:2])
        (folder / "lmms_tasks.py").write_text((REPO / "test" / "lmms_tasks.py").read_text())
        return folder

    def results(folder, output, model, arguments, names):
        run = in_harness(
            "-m", "lmms_eval", "--include_path", folder, "--tasks", ",".join(names), "--output_path", output, "--model", model,
            "--model_args", arguments, HF_HOME=str(folder / "hf"), AHA_TASKS=str(folder),
        )  # fmt: skip
        print(run.stdout[-2500:])  # the table
        assert run.returncode == 0, run.stderr[-3000:]
        assert "Failed to process" not in run.stdout + run.stderr  # a video that gemma3 could not read it leaves out, and goes on
        assert (found := list(output.rglob("*results.json"))), run.stderr[-3000:]  # it also ends with 0 where it failed
        return json.loads(found[0].read_text())["results"]

    def test_every_kind_of_task_with_our_model(folder):
        base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter")
        model = f"pretrained={base},adapter={adapter},device=cpu"
        found = results(folder, folder / "ours", "aha", model, ["tvsum", "hisum", *KINDS])
        assert found["tvsum"]["tvsum_answered,none"] == found["hisum"]["hisum_answered,none"] == 1
        assert 0 < found["hisum"]["hisum_map50,none"] <= 100 and -1 <= found["tvsum"]["tvsum_kendall,none"] <= 1
        assert found["video_question"]["words,none"] > 0 and found["picture_question"]["words,none"] > 0
        assert found["rounds"]["rounds,none"] == 3
        assert found["choice"]["acc,none"] in (0, 0.5, 1)

    @pytest.mark.parametrize("words, answered", [("1 2 3 4 5", 1), ("red blue green fast slow", 0)])
    def test_our_tasks_with_a_model_of_lmms_eval(folder, tmp_path, words, answered):
        """Gemma 3 with tiny random weights: one answers in numbers and is scored by them, one in other words and counts as silent."""
        made = in_harness(REPO / "test" / "lmms_tiny_model.py", tmp_path / "tiny", words)
        assert made.returncode == 0, made.stderr[-3000:]
        model = f"pretrained={tmp_path / 'tiny'},device=cpu,device_map=cpu,max_num_frames=4"
        found = results(folder, tmp_path / "out", "gemma3", model, ["tvsum", "hisum"])
        of_tvsum, of_hisum = found["tvsum"], found["hisum"]
        assert of_tvsum["tvsum_answered,none"] == of_hisum["hisum_answered,none"] == answered
        assert math.isfinite(of_tvsum["tvsum_f1,none"]) and of_hisum["hisum_map50,none"] > 0
        correlations = [of_tvsum["tvsum_kendall,none"], of_hisum["hisum_spearman,none"]]
        assert all(math.isfinite(value) == bool(answered) for value in correlations)
        if not answered:  # counted as the protocols count a prediction that says the same of every moment
            alike = [highlights.process_tvsum(json.loads(line), ["[3, 3]"]) for line in (folder / "tvsum.jsonl").read_text().splitlines()]
            for metric in ("tvsum_f1", "tvsum_top5_map"):
                assert of_tvsum[f"{metric},none"] == pytest.approx(np.mean([one[metric] for one in alike]))
