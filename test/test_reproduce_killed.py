"""scripts/reproduce.sh from an empty machine over all tables, in processes of its own: killed twice, it ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from paths import REPO
from reproduce_world import ADAPTER, environment, fake_card, published_hub, write_data
from test_magqa import grade_by_text, judge_server
from waiting import running, wait_for, wait_until_gone

from aha.reproduce import check
from aha.reproduce.tables import TABLES

SCRIPT = ["bash", str(REPO / "scripts" / "reproduce.sh")]


def finished(output: Path) -> int:
    return sum(not path.name.endswith(".begun.json") for path in (output / "steps").glob("*.json"))


def told(output: Path) -> tuple[list, dict]:
    """What a run found, without when and how long."""
    document = json.loads((output / "results.json").read_text())
    return document["rows"], document["leaderboard"]


@pytest.mark.slow
def test_all_tables_killed_twice(tmp_path):
    data = write_data(tmp_path / "datasets")
    with published_hub(tmp_path / "published") as hub, judge_server(grade_by_text) as (judge, _):

        def run(name: str) -> tuple[list[str], dict[str, str], Path]:
            output = tmp_path / name
            words = [*SCRIPT, "--data", str(data), "--output", str(output), "--device", "cpu", "--judge_model", "scripted"]
            return words, environment(hub, tmp_path / f"home-{name}", OPENAI_BASE_URL=judge), output

        words, variables, whole = run("whole")
        begin = time.time()
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=1500)
        print(done.stdout[-3000:], done.stderr[-3000:], f"{time.time() - begin:.0f} s", sep="\n")
        assert done.returncode == 0, done.stdout + done.stderr

        words, variables, killed = run("killed")
        for after in (1, 12):
            log = tmp_path / f"log-{after}"
            with log.open("w") as console:
                process = subprocess.Popen(words, env=variables, stdout=console, stderr=subprocess.STDOUT)

                def is_in_a_step() -> bool:
                    assert process.poll() is None, log.read_text()  # noqa: B023 (called at once)
                    return finished(killed) >= after and len(running(str(killed))) > 1  # noqa: B023

                wait_for(is_in_a_step, 1500)
                process.send_signal(signal.SIGKILL)
                process.wait()
                wait_until_gone(str(killed))
            assert not (killed / "results.json").exists()
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(": done before") >= 11  # and the weights
    rows, leaderboard = told(whole)
    found = json.dumps(told(killed)).replace(str(killed), str(whole))
    assert json.loads(found) == json.loads(json.dumps([rows, leaderboard]))
    assert {row["table"] for row in rows} == {table.id for table in TABLES}
    assert {row["metric"] for row in rows if row["ours"] is None} == {"top5_map val10"}  # none of the ten is among the videos made here
    made = {(row["table"], row["row"]) for row in rows}
    assert made == {(table.id, evaluation.row) for table in TABLES for evaluation in table.evaluations}
    lacking = {name for name, value in leaderboard.items() if value is None}
    assert lacking == ({"YouCook2 SODA_c"} if check.captions_lack() else set())
    report = (whole / "REPORT.md").read_text()
    assert "NO RESULT: the weights are not those of a real model" in report and "nothing was made of it" not in report
    assert (whole / "RESULTS.md").is_file() and not json.loads((whole / "results.json").read_text())["run"]["unfinished"]


@pytest.mark.slow
def test_the_script_says_what_is_missing(tmp_path):
    """A repository that is gone, a disk that is too full for the weights, a card that is too small, no data: exit code 2 and one list, and
    nothing was fetched."""
    with published_hub(tmp_path / "published") as hub:
        del hub.repositories[ADAPTER]
        hub.claimed["model.safetensors"] = 10**15
        variables = environment(hub, tmp_path / "home", PATH=fake_card(tmp_path, "NVIDIA GeForce RTX 3060, 12288, 12000, 580.1"))
        words = [*SCRIPT, "--data", str(tmp_path / "datasets"), "--output", str(tmp_path / "out")]
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=300)
        assert hub.sent == {}
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for said in (
        "card 0: NVIDIA GeForce RTX 3060 has 12.0 GiB",
        f"weights: {ADAPTER} is neither a folder here",
        "GB for the weights are needed",
        "data hisum: there is no",
    ):
        assert said in done.stderr
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path / "home") in ([], ["hub"])
