"""The lmms-eval plug-in: reading of answers, tasks on small data sets, and the harness itself where it is installed.

The harness runs in the environment of $AHA_LMMS_PYTHON (integrations/lmms_eval/README.md), else in this one.
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
from tiny_benchmarks import write_tvsum

sys.path.insert(0, str(REPO / "integrations" / "lmms_eval"))
pytest.importorskip("torch")
from aha_lmms_eval import highlights, tasks


@pytest.fixture(scope="module")
def tvsum(tmp_path_factory):
    return write_tvsum(tmp_path_factory.mktemp("tvsum"))


PYTHON = os.environ.get("AHA_LMMS_PYTHON", sys.executable)


def in_harness(*arguments, timeout=300, **environment):
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
    assert math.isnan(highlights.process_hisum(document, ["?"])["hisum_map50"])


def test_the_harness_itself(tmp_path, tvsum):
    """python -m lmms_eval --tasks tvsum --limit 2, with the model aha (tiny) and with a model of the harness."""
    probe = in_harness("-c", "import lmms_eval, importlib.metadata as m; assert m.entry_points(group='lmms_eval.models', name='aha')")
    if probe.returncode:
        pytest.skip(
            f"lmms-eval and the plug-in are not installed in {PYTHON} (integrations/lmms_eval/README.md; AHA_LMMS_PYTHON names another)"
        )
    tasks.write_task("tvsum", tvsum, tmp_path)
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter")
    common = ["-m", "lmms_eval", "--include_path", tmp_path, "--tasks", "tvsum", "--limit", 2, "--output_path", tmp_path / "out"]
    for model, arguments in (("aha", f"pretrained={base},adapter={adapter},device=cpu"), ("dummy", "response=[5 3 1 2]")):
        run = in_harness(*common, "--model", model, "--model_args", arguments, HF_HOME=str(tmp_path / "hf"))
        assert run.returncode == 0, run.stderr[-2000:]
        for metric in highlights.TVSUM_METRICS:
            assert f"|{metric}" in run.stdout.replace(" ", ""), run.stdout
    results = [json.loads(path.read_text())["results"]["tvsum"] for path in sorted((tmp_path / "out").rglob("*results.json"))]
    assert len(results) == 2
    assert all(result["tvsum_answered,none"] == 1 for result in results)
