"""`bash scripts/kfold_tvsum.sh --demo`, killed while it trains: the same command goes on from the checkpoint and prints the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO
from training_data import kill_in_the_middle, write_tvsum
from waiting import wait_until_gone


def two_splits(output: Path) -> None:
    """What the script's first step makes, smaller: a data set of four videos of 6 seconds and two splits."""
    archive = output / "tvsum" / "ydata-tvsum50-v1_1"
    config = write_tvsum(archive, videos=4, seconds=6)
    (archive / "data").mkdir()
    for name in ("anno", "info"):
        (archive / f"{name}.tsv").rename(archive / "data" / f"ydata-tvsum50-{name}.tsv")
    (entry,) = json.loads(config.read_text())
    files = {key: str(archive / "data" / f"ydata-tvsum50-{name}.tsv") for key, name in (("annotations", "anno"), ("info", "info"))}
    (output / "tvsum" / "demo.json").write_text(json.dumps([{**entry, **files}]))
    tests = (["clip00", "clip01"], ["clip02", "clip03"])
    splits = [{"test_keys": test, "train_keys": [i for other in tests if other is not test for i in other]} for test in tests]
    (output / "splits.json").write_text(json.dumps(splits))


@pytest.mark.slow
def test_a_killed_training_goes_on_and_the_table_is_printed(tmp_path):
    output = tmp_path / "run"
    two_splits(output)
    script = ["bash", str(REPO / "scripts/kfold_tvsum.sh"), "--demo", "--output", str(output), "--epochs", "8", "--save_steps", "1",
              "--disable_tqdm", "True", "--report_to", "none"]  # fmt: skip
    environment = {**os.environ, "AHA_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    log, history = tmp_path / "console", output / "split-0" / "loss_history.jsonl"
    with log.open("w") as console:
        process = subprocess.Popen(script, env=environment, stdout=console, stderr=subprocess.STDOUT, start_new_session=True)
        kill_in_the_middle(process, history, log)
    wait_until_gone(str(output))  # the ranks die with their launcher
    assert not (output / "split-0" / ".trained").exists() and not (output / "split-0" / "adapter_model.safetensors").exists()
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from" in done.stdout and "sd(n-1)" in done.stdout and "corr_full kendall" in done.stdout
    steps = [json.loads(line)["step"] for line in history.read_text().splitlines() if "loss" in json.loads(line)]
    assert steps == list(range(1, 9))  # none twice, none lost
    document = json.loads((output / "kfold.json").read_text())
    assert len(document["protocols"]["corr_full"]["kendall"]["splits"]["per_split"]) == 2
    assert [run["test"] for run in document["splits"]] == [["clip00", "clip01"], ["clip02", "clip03"]]
    assert not any(json.loads((output / f"split-{k}" / "predictions.json").read_text())[0].get("trained_on") for k in (0, 1))
