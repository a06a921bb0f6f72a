"""What holds for every benchmark: one shape of metrics file, one comparison, one report, every prediction layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from eval_data import write_hisum, write_predictions, write_tvsum
from paths import shared_fixture

from aha import visualize
from aha.core.prediction import read_predictions
from aha.errors import UserError
from aha.eval import MODULES, charades, hisum, load_task, magqa, qvhighlights, tvsum, youcook2
from aha.results.layout import RANDOM


@pytest.fixture
def files(tmp_path):
    """benchmark -> (its command, prediction file, further arguments)."""
    write_predictions(tmp_path / "tvsum.json", write_tvsum(tmp_path / "tvsum"))
    write_hisum(tmp_path / "hisum")
    eval_file = lambda name: shared_fixture(f"eval/{name}")  # noqa: E731
    return {
        "tvsum": (tvsum, tmp_path / "tvsum.json", ["--annotations", tmp_path / "tvsum" / "demo-anno.tsv", "--random_runs", 1]),
        "hisum": (hisum, tmp_path / "hisum" / "predictions.json", ["--annotations", tmp_path / "hisum", "--random_runs", 1]),
        "charades": (charades, eval_file("grounding_pred.jsonl"), ["--annotations", eval_file("grounding_gold.json")]),
        "qvh": (qvhighlights, eval_file("qvh_pred.jsonl"), ["--annotations", eval_file("qvh_gt.jsonl")]),
        "youcook2": (youcook2, eval_file("dvc_pred.json"), ["--annotations", eval_file("dvc_gold.json"), "--no_java"]),
        "magqa": (magqa, eval_file("magqa_scored.jsonl"), []),
    }


def test_every_benchmark_is_tried_here(files):
    assert set(files) >= {"tvsum", "hisum", "charades", "qvh", "youcook2", "magqa"} and set(files) <= set(MODULES)


@pytest.mark.parametrize("name", ["tvsum", "hisum", "charades", "qvh", "youcook2", "magqa"])
def test_one_shape_of_metrics_file_and_one_report(name, files, tmp_path, capsys):
    module, predictions, more = files[name]
    module.main([*map(str, ["--predictions", predictions, *more, "--output", tmp_path / "m.json", "--report", tmp_path / "report"])])
    shown = capsys.readouterr().out
    assert (
        max(len(line) for line in shown.splitlines() if not line.startswith(("report:", load_task(name).short))) <= 80
        and load_task(name).short in shown
    )
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["settings"]["benchmark"] == name and metrics["videos"]["scored"] > 0
    for protocol in metrics["settings"]["protocols"]:
        for metric, tree in metrics["protocols"][protocol].items():
            for subset in [""] if "mean" in tree else tree:
                entry = tree[subset] if subset else tree
                bounds = metrics["confidence_intervals"][protocol][metric]
                assert entry.keys() >= {"mean", "videos", "per_category", "per_video"} and (bounds[subset] if subset else bounds) != ()
    task = load_task(name)
    for row, protocols in metrics["baselines"].items():
        assert row in task.rows
        for protocol, tree in protocols.items():
            assert protocol in metrics["settings"]["protocols"] and all(
                "mean" in (e if "mean" in e else next(iter(e.values()))) for e in tree.values()
            )
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == metrics
    page = (tmp_path / "report" / "report.html").read_text()
    assert task.short in page and all(label in page for row, label in task.rows.items() if row in metrics["baselines"])
    curves = list((tmp_path / "report" / "figures" / "curves").glob("*.png"))
    assert len(curves) == (page.count("<figure>")) and (len(curves) > 0) == (name not in ("youcook2", "magqa"))


@pytest.mark.parametrize("name", ["tvsum", "hisum", "charades", "qvh", "youcook2", "magqa"])
def test_comparison_with_differences_and_baselines(name, files, tmp_path, capsys):
    module, predictions, more = files[name]
    module.main([*map(str, ["--compare", predictions, predictions, *more, "--output", tmp_path / "c.json"])])
    shown = capsys.readouterr().out
    assert "minus A" in shown and max(map(len, shown.splitlines())) <= 80
    rows = load_task(name).rows
    assert not rows or any(f"of others: {label}" in shown or f"; {label}" in shown for label in rows.values())
    found = json.loads((tmp_path / "c.json").read_text())
    protocol, tree = next(iter(next(iter(found["differences_to_first"].values())).items()))
    entry = next(iter(tree.values()))
    assert (entry if "mean" in entry else next(iter(entry.values())))["mean"] == 0 and protocol in found["predictions"].popitem()[1][
        "protocols"
    ]


def test_figures_name_the_baselines_of_any_benchmark(files, tmp_path):
    module, predictions, more = files["charades"]
    module.main([*map(str, ["--predictions", predictions, *more, "--output", tmp_path / "m.json"])])
    visualize.main(
        [
            "compare",
            "--metrics",
            f"Ours={tmp_path / 'm.json'}",
            "--columns",
            "fixed_threshold_w0_t0.50/mIoU",
            "--output",
            str(tmp_path / "t"),
        ]
    )
    table = (tmp_path / "t.tex").read_text()
    whole = json.loads((tmp_path / "m.json").read_text())["baselines"][charades.WHOLE]["fixed_threshold_w0_t0.50"]["mIoU"]["mean"]
    assert f"whole video & {whole:.1f}" in table


def test_the_old_name_of_the_uncertainty_threshold_is_refused_with_the_new_one():
    with pytest.raises(UserError, match="write --uncertainty_threshold 0.3"):
        visualize.main(["curves", "--predictions", "p.json", "--annotations", "a.tsv", "--threshold", "0.3", "--output", "z"])


def test_files_of_mmduet_and_aha_are_read_as_their_own(files, tmp_path):
    """`question_id` for the video, two-class relevance, three decimals, no uncertainty."""
    _, path, _ = files["tvsum"]
    entries = json.loads(path.read_text())
    theirs = []
    for entry in entries:
        heads = [
            {"time": h["time"], "relevance_score": [round(1 - s, 3), round(s, 3)]}
            for h in entry["debug_data"]
            for s in [h["relevance_score"]]
        ]
        theirs.append({"question_id": entry["video_uuid"], "debug_data": heads, "model_response_list": []})
    (tmp_path / "theirs.jsonl").write_text("\n".join(map(json.dumps, theirs)))
    annotations = tmp_path / "tvsum" / "demo-anno.tsv"
    ours, found = (tvsum.evaluate(p, annotations, protocols=["corr_full"], random_runs=1) for p in (path, tmp_path / "theirs.jsonl"))
    tau = [m["protocols"]["corr_full"]["kendall"]["mean"] for m in (ours, found)]
    assert tau[1] == pytest.approx(tau[0], abs=0.02) and found["videos"]["scored"] == len(entries)
    assert [p.video_id for p in read_predictions(tmp_path / "theirs.jsonl")] == [e["video_uuid"] for e in entries]


def test_random_rows_of_every_benchmark_name_their_runs(files):
    module, predictions, more = files["qvh"]
    metrics = module.evaluate(predictions, more[1], random_runs=3)
    entry = metrics["baselines"][RANDOM]["highlight_detection"]["HL-min-Fair-mAP"]
    assert entry["runs"] == 3 and entry["sd"] > 0 and np.isfinite(entry["mean"])


def test_strict_names_what_it_refuses(files):
    module, predictions, more = files["youcook2"]
    with pytest.raises(UserError, match="metrics missing: 4 .SODA_c, SODA_c_released_code, METEOR, Para_METEOR., and --strict allows none"):
        module.main([*map(str, ["--predictions", predictions, *more, "--strict", "--limit", 1])])
