"""scripts/reproduce.sh: what is missing is said at once, a run from the hub to the report, its ledger, and the list that all of it reads."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import constants
from paths import REPO, shared_fixture
from reproduce_world import ADAPTER, fake_card, published_hub, write_data

from aha import cli
from aha.errors import UserError
from aha.eval import published, tvsum
from aha.merge import sources_of
from aha.reproduce import __main__ as door
from aha.reproduce import check, ledger, report, steps
from aha.reproduce.tables import SCORING, TABLES, Run, chosen_tables, commands, evaluation_command, score_command
from aha.results.tree import leaf
from aha.scoring.known_models import BASE_7B

TABLE_IDS = [table.id for table in TABLES]


def inside(words, log, beat):
    """A step in this process: torch is imported once for all of them."""
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.run(words[2:]) if words[1] == "aha" else importlib.import_module(words[1]).main(words[2:])
        except UserError as error:
            print(f"error: {error}")
            return 2
    return 0


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty machine with the published repositories in reach; its working folder is empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(steps, "execute", inside)
    monkeypatch.setenv("NUM_GPUS", "1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    with published_hub(tmp_path / "published") as hub:
        for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):  # which hold the address since their import
            monkeypatch.setattr(constants, name, getattr(constants, name).replace(constants.ENDPOINT, hub.address))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def missing(*argv: str) -> str:
    with pytest.raises(UserError) as told:
        door.main(list(argv))
    return str(told.value)


# ---- before the first download ----


def test_everything_that_is_missing_is_said_at_once(machine, tmp_path, monkeypatch):
    """No data, a card that is too small, a repository that is gone, a disk that is full, no judge: one list, and nothing was fetched."""
    del machine.repositories[ADAPTER]
    monkeypatch.setenv("PATH", fake_card(tmp_path, "NVIDIA GeForce RTX 3060, 12288, 12000, 580.1"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1e9, 0.9e9, 0.1e9))
    text = missing()
    assert re.match(r"error: |\d+ things are missing, and nothing was downloaded or run:\n", text)
    for said in (
        "card 0: NVIDIA GeForce RTX 3060 has 12.0 GiB and aha-7b needs 18 GiB; use a larger card",
        f"weights: {ADAPTER} is neither a folder here nor a model on the hub", "aha_weights.zip",
        "has 100.0 MB left and 6.3 GB for what the run writes", "to a larger disk",
        "data tvsum: none of its 50 videos is in datasets/tvsum/ydata-tvsum50-v1_1/video (in the same archive",
        "data hisum: there is no datasets/hisum/annotations/mr_hisum.h5 from https://github.com/MRHiSum/MR.HiSum; put it there",
        "data youcook2: there is no", "data magqa: there is no", "data charades: there is no", "judge of table 8: OPENAI_API_KEY is not set",
    ):  # fmt: skip
        assert said in text, said
    assert machine.sent == {} and not Path("outputs").exists()


def test_the_weights_count_on_the_disk_they_go_to(machine, monkeypatch):
    write_data(Path("datasets"), ("tvsum",))
    size = sum(check.download_bytes(source) for source in (BASE_7B, ADAPTER))
    usage = namedtuple("usage", "total used free")
    enough = check.output_bytes(chosen_tables("1"), Run(limit=1)) + size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1e12, 0, enough - 1))
    text = missing("--tables", "1", "--limit", "1", "--device", "cpu", "--check")
    assert "1 thing is missing" in text and f"{size / 1e6:.1f} MB for the weights are needed; free it, or set --output or HF_HOME" in text
    features = Path("outputs/reproduce/features")
    features.mkdir(parents=True)
    (features / "a.safetensors").write_bytes(bytes(1))  # an earlier run's
    door.main(["--tables", "1", "--limit", "1", "--device", "cpu", "--check"])


def test_cards_are_those_that_may_be_used(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "torch_gpus", lambda: 1)
    monkeypatch.setenv("PATH", fake_card(tmp_path, "NVIDIA H100 80GB HBM3, 81559, 9000, 580.1"))
    (told,) = check._cards(Run())
    assert "card 0: 8.8 GiB of NVIDIA H100 80GB HBM3 are free and aha-7b needs 18 GiB; end what runs on it" in told
    (tmp_path / "bin" / "nvidia-smi").write_text('#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 81559, 80000, 580.1"\n')
    assert check._cards(Run()) == []
    monkeypatch.setattr(check, "torch_gpus", lambda: 0)
    assert "the driver shows 1 and torch can use fewer" in check._cards(Run())[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "nvidia-smi shows none" in check._cards(Run())[0] and check._cards(Run(device="cpu")) == []


@pytest.mark.parametrize("argv, said", [
    (["--tables", "1,99"], "--tables 99 is none of 1, 7, 11, 12, 2"), (["--tables", ","], "names none"), (["--limit", "0"], "at least 1 video"),
    (["--estimate", "0"], "above 0"), (["--estimate", "1", "2", "3"], "one or two rates"),
])  # fmt: skip
def test_wrong_flags_are_one_sentence(argv, said):
    assert said in missing(*argv)


# ---- a run ----


def test_a_table_from_the_hub_to_the_report(machine, capsys):
    """One table with --limit: fetched by name, scored, evaluated, told; a second call does nothing, other settings only what they change."""
    write_data(Path("datasets"), ("charades",))
    argv = ["--tables", "6", "--limit", "2", "--device", "cpu"]
    door.main(argv)
    out = Path("outputs/reproduce")
    document = json.loads((out / "results.json").read_text())
    text, page = (out / "REPORT.md").read_text(), (out / "report.html").read_text()
    for shown in (text, page):
        assert (
            "NO RESULT: only the first 2 videos of each benchmark were scored (--limit); the weights are not those of a real model" in shown
        )
        assert "--dataset charades --frame_fps 2 --max_num_frames 400" in shown and "fixed_threshold_w8_t0.50" in shown
        assert "42.80" in shown and "Aha (2025)" in shown and "one threshold serves all questions" in shown
    assert [row["metric"] for row in document["rows"] if row["by"] == "Aha (2025)"] == ["R@0.5", "R@0.7"]
    assert all(row["scored"] == 2 and row["of"] == 3 and 0 <= row["ours"] <= 100 and row["interval"] for row in document["rows"])
    assert document["run"]["weights"]["sources"] == [f"{name} at {'c' * 12}" for name in (BASE_7B, ADAPTER)]
    assert "ledger: outputs/reproduce/RESULTS.md" in capsys.readouterr().out
    sent = dict(machine.sent)
    door.main(argv)
    said = capsys.readouterr().out
    assert machine.sent == sent and "score-charades: done before" in said and "eval-charades: done before" in said
    assert "(this run is in it already)" in said and "1 of 2" not in said
    door.main([*argv[:3], "1", *argv[4:]])
    assert "done before" not in capsys.readouterr().out
    entries = ledger.read(out / "RESULTS.jsonl")
    assert [entry["settings"]["limit"] for entry in entries] == [2, 1] and (out / "RESULTS.md").read_text().count("NO RESULT") == 2


def test_a_step_that_fails_leaves_the_others(machine, capsys):
    """A judge that does not answer: table 8 says why, table 6 is there, and the same command tries again."""
    write_data(Path("datasets"), ("charades",))
    run = Run(limit=1, device="cpu")
    runner = steps.Runner(run, 1)
    runner.weights, runner.uncertainty = "w", True
    wrong = steps.Step("score-charades", ["-m", "aha.score", "--model", "demo", "--dataset", "charades", "--data_root", "nowhere", "--output",
                                          "outputs/reproduce/predictions/charades.json"], Path("outputs/reproduce/predictions/charades.json"), "s")  # fmt: skip
    runner.do(wrong)
    assert "nowhere does not exist" in wrong.failure and not (runner.out / "steps" / "score-charades.json").exists()
    (table,) = chosen_tables("6")
    runner.table(table)
    assert [step.name for step in runner.failures] == ["score-charades", "eval-charades"]
    document = report.results([table], runner, [], [], {"sources": ["w"], "bytes": 17e9})
    assert document["rows"] == [] and "2 of its steps failed" in document["run"]["no_result"][-1]
    assert "not finished: eval-charades: score-charades failed: data set folder nowhere does not exist" in report.report(document, [table])


def test_a_killed_step_keeps_its_time_and_a_changed_one_is_made_again(machine, monkeypatch):
    output = Path("outputs/reproduce/numbers/x.json")
    answers = {"code": -9}

    def execute(words, log, beat):
        beat(100.0)
        if answers["code"] == 0:
            output.write_text("{}")
        log.write_text("")
        return answers["code"]

    monkeypatch.setattr(steps, "execute", execute)
    with pytest.raises(UserError, match="was ended from outside"):
        steps.Runner(Run(), 1).do(steps.Step("x", ["-c", ""], output, "one"))
    answers["code"] = 0
    again = steps.Runner(Run(), 1).do(steps.Step("x", ["-c", ""], output, "one"))
    assert 100 <= again.facts["seconds"] < 101
    fresh = steps.Runner(Run(), 1).do(steps.Step("x", ["-c", ""], output, "two"))
    assert fresh.facts["seconds"] < 1


def test_only_results_enter_the_ledger_of_the_repository(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(REPO / "benchmarks" / "RESULTS.jsonl", tmp_path / "benchmarks")
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    (tmp_path / "run").mkdir()
    run = {"id": "a", "settings": {"out": str(tmp_path / "run"), "model": "aha-7b", "released": False, "tables": ["1"]}, "no_result": [], "gpus": 1,
           "cards": ["NVIDIA H100, driver 580"], "commits": ["0123456789abcdef"], "hours": 1.5, "finished": "2026-11-26T20:00:00+00:00", "notes": []}  # fmt: skip
    document = {"run": run, "rows": [], "leaderboard": {"TVSum top5": 0.9}}
    assert ledger.append(document) == (tmp_path / "benchmarks" / "RESULTS.md", True)
    assert ledger.append(document)[1] is False
    assert ledger.append({**document, "run": {**run, "id": "b", "no_result": ["limited"]}}) == (tmp_path / "run" / "RESULTS.md", True)
    text = (tmp_path / "benchmarks" / "RESULTS.md").read_text()
    assert (
        "| 2026-11-26 | aha-7b | 0.9000 | - |" in text
        and "| 1 x NVIDIA H100 | 1.50 | 0123456789ab | tables 1 |" in text
        and "NO RESULT" not in text
    )
    assert len((tmp_path / "benchmarks" / "RESULTS.jsonl").read_text().splitlines()) == 1
    (tmp_path / "benchmarks" / "RESULTS.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="entry 1 is none that"):
        ledger.append(document)


def test_the_ledger_of_the_repository_is_written_from_its_lines():
    folder = REPO / "benchmarks"
    assert (folder / "RESULTS.md").read_text() == ledger.markdown(ledger.read(folder / "RESULTS.jsonl"), ledger.HEAD)
    assert not any(entry["no_result"] for entry in ledger.read(folder / "RESULTS.jsonl"))


def test_the_model_card_and_its_repository_come_from_a_run(machine, tmp_path):
    """Merged with --results and pushed: the card that the hub gets has the tables, the protocols and what the model was trained on."""
    row = {"table": "1", "title": "TVSum", "row": "zero-shot weights", "protocol": "aha_1fps_mean", "metric": "top5", "ours": 0.9, "scored": 50,
           "interval": [0.88, 0.92], "of": 50, "published": 0.916, "by": "Aha, zero-shot (2025)", "comparable": "with care: why"}  # fmt: skip
    run = {"settings": {"model": "aha-7b", "tables": ["1"]}, "no_result": ["a test"], "commits": ["abc"], "finished": "2026-11-26T20:00:00+00:00",
           "weights": {"sources": [f"{ADAPTER} at ccc"]}}  # fmt: skip
    Path("results.json").write_text(json.dumps({"run": run, "rows": [row], "leaderboard": {"TVSum top5": 0.9}, "steps": []}))
    words = ["merge", "--llm_pretrained", BASE_7B, "--lora_pretrained", ADAPTER, "--output", "merged", "--results", "results.json"]
    cli.run([*words, "--push_to_hub", "somebody/aha-merged"])
    card = machine.pushed["somebody/aha-merged"]["README.md"].decode()
    assert card == Path("merged/README.md").read_text() and set(machine.pushed["somebody/aha-merged"]) >= {
        "config.json",
        "model.safetensors",
    }
    for said in (
        "> **NO RESULT: a test. Quote none of these numbers.**", "| model | TVSum top5 |", "| aha-7b | 0.9000 |", "### Table 1: TVSum",
        "| zero-shot weights | aha_1fps_mean | top5 | 0.9000 | 0.880..0.920 | 50 of 50 | 0.9160 | Aha, zero-shot (2025) | with care: why |",
        "## Data sets trained on", "- hihd (hihd), https://huggingface.co/datasets/aiden200/aha-annotationsv1", "MMDuet, which it starts from:",
        "- didemo (grounding)",
    ):  # fmt: skip
        assert said in card, said
    theirs = [
        {
            "dataset_cls": "HiSumDataset",
            "video_root": "mine/videos",
            "anno_file": "s.json",
            "hisum_h5_file": "h.h5",
            "hisum_metadata": "m.csv",
        }
    ]
    Path("aha_config.json").write_text(json.dumps(theirs))
    (entries,) = sources_of(ADAPTER, Path("aha_config.json")).values()
    assert entries[0]["name"] == "mine_hisum" and sources_of("other/adapter", None) == {}
    other = [*words[:4], "wangyueqian/MMDuet", *words[5:6], "again", *words[7:]]
    with pytest.raises(UserError, match=f"results.json holds the numbers of {ADAPTER}, not of wangyueqian/MMDuet"):
        cli.run(other)
    Path("results.json").write_text("{}")
    with pytest.raises(UserError, match="results.json is no results file"):
        cli.run([*words[:6], "again", *words[7:]])
    assert not Path("again").exists()


# ---- the list ----


@pytest.mark.parametrize("table", TABLES, ids=TABLE_IDS)
def test_the_document_has_the_commands_of_the_list(table):
    text = (REPO / "instructions" / "reproduce.md").read_text()
    assert f"```\n{commands(table, Run())}```" in text


def test_commands_follow_the_run_and_the_model():
    """MMDuet has no uncertainty; few videos have fewer folds; options of a row win over those of the published run."""
    (first,) = chosen_tables("1")
    rows = {evaluation.name: evaluation for evaluation in first.evaluations}
    words = evaluation_command(rows["zero_shot"], Run(), uncertainty=False)
    assert words[4:8] == ["--alpha", "0.7", "--beta", "1.0"] and "--epsilon" not in words and "0.3" not in words
    words = evaluation_command(rows["grid"], Run(limit=3), uncertainty=False)
    assert words[4:-2] == ["--folds", "3", "--grid_epsilon", "0", "--grid_uncertainty_threshold", "0"] and "--published" not in words
    assert Run(limit=1).folds == 0 and Run().folds == 5
    (magqa,) = chosen_tables("8")
    words = score_command(magqa.scores[1], Run(data="d", released=True, device="cpu", limit=2, model="mmduet-7b"))
    assert words.count("--stream_end_prob_threshold") == 1 and words[words.index("--stream_end_prob_threshold") + 1] == "0.3"
    assert words[-9:-2] == ["--released", "--data_root", "d/shot2story", "--device", "cpu", "--limit", "2"]
    assert [table.id for table in chosen_tables("13, 7,1")] == ["1", "4"]


@pytest.mark.parametrize("name", SCORING)
def test_scripts_score_as_the_tables_do(name):
    (options,) = re.findall(r"^SCORE=\(([^)]*)\)", (REPO / "scripts" / "inference" / f"{name}.sh").read_text(), re.MULTILINE)
    assert options == SCORING[name]


@pytest.mark.parametrize("table", TABLES, ids=TABLE_IDS)
def test_every_published_row_of_a_table_is_there(table):
    rows = {row.method: row for row in published.read_rows(table.published)}
    for evaluation in table.evaluations:
        metrics = evaluation.metrics or table.metrics
        for method in evaluation.beside:
            row = rows[method]
            assert any(p == row.protocol and m in row.numbers and s in ("", row.split) for p, m, s in metrics), method
    names = [evaluation.name for other in TABLES for evaluation in other.evaluations]
    assert len(names) == len(set(names))


def test_every_number_of_a_tvsum_table_is_in_a_metrics_file():
    """A metric that the list calls otherwise than the evaluation would be a dash in the report."""
    found = tvsum.evaluate(shared_fixture("eval/tvsum_pred_noisy.json"), random_runs=1, protocols=["aha_1fps_mean", "hd_top5", "corr_full"])
    tables = [table for table in TABLES if {evaluation.of.dataset for evaluation in table.evaluations} == {"tvsum"}]
    wanted = {metric for table in tables for evaluation in table.evaluations for metric in evaluation.metrics or table.metrics}
    assert len(tables) == 6 and len(wanted) == 6
    assert [metric for metric in wanted if leaf(found["protocols"], *metric) is None] == []


def test_hours_are_calculated_by_table(capsys):
    door.main(["--estimate", "277", "95", "--tables", "1,9"])
    text = capsys.readouterr().out
    assert re.search(r"1: TVSum +2 +25,216 +0.03\n", text) and re.search(r"9: YouCook2 dense captioning +1 +73,000 +0.21\n", text)
    assert re.search(r"all +3 +98,216 +0.24", text) and "Calculated, not measured" in text
