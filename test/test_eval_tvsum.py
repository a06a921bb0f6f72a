"""TVSum evaluation: every golden number, the command, data sets of other makers, honest handling of defects."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from eval_data import write_mat, write_predictions, write_tvsum
from paths import REPO, shared_fixture

from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import read_predictions
from aha.errors import UserError
from aha.eval import baselines, grids, tvsum
from aha.eval.annotations import read_tvsum
from aha.eval.shots import read_shots
from aha.eval.tvsum_facts import VAL10
from aha.eval.tvsum_protocols import PROTOCOLS, Truth
from aha.results.figures import MOMENTS
from aha.results.layout import RANDOM
from aha.results.tree import leaf, protocols_tree

PREDICTORS = ("sin300", "inv", "noisy", "coarse", "const")


@pytest.fixture(scope="module")
def benchmark() -> tvsum.TVSum:
    return tvsum.load(shared_fixture("eval/ydata-tvsum50-anno.tsv.gz"), shots=shared_fixture("eval/tvsum_shots_synthetic.json"))


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(shared_fixture("eval/tvsum_golden.json").read_text())["predictors"]


@pytest.fixture(scope="module")
def rows() -> dict:
    return json.loads(shared_fixture("eval/tvsum_reference_rows.json").read_text())


@pytest.fixture
def demo(tmp_path):
    """A data set that is not TVSum: other ids, categories and numbers of videos."""
    videos = write_tvsum(tmp_path)
    write_predictions(tmp_path / "predictions.json", videos)
    return tmp_path, videos


def samples_of(path, fusion=RELEVANCE) -> dict:
    return {prediction.video_id: prediction.samples(fusion) for prediction in read_predictions(path)}


def same(found: float | None, expected: float | None) -> bool:
    return found is None if expected is None else found is not None and abs(found - expected) < 1e-6


# ---------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_golden_number(name, benchmark, golden):
    scored = benchmark.score(shared_fixture(f"eval/tvsum_pred_{name}.json"))
    found = protocols_tree(scored.columns, benchmark.categories)
    checked = 0
    for protocol, metrics in golden[name].items():
        for metric, expected in metrics.items():
            for subset in [""] if "mean" in expected else list(expected):
                want = expected[subset] if subset else expected
                got = leaf(found, protocol, metric, subset)
                assert same(got["mean"], want["mean"]), (protocol, metric, subset)
                for part in ("per_category", "per_video"):
                    for key, value in want.get(part, {}).items():
                        assert same(got[part][key], value), (protocol, metric, subset, key)
                        checked += 1
    assert checked > 1000
    assert set(golden[name]) == {protocol.name for protocol in PROTOCOLS}


def test_tsv_and_mat_are_the_same_data(benchmark):
    from_mat = read_tvsum(shared_fixture("eval/ydata-tvsum50.mat"))
    assert list(from_mat) == list(benchmark.known)
    for video_id, video in benchmark.known.items():
        other = from_mat[video_id]
        assert (other.category, other.title, other.length_s, other.n_frames) == (
            video.category,
            video.title,
            video.length_s,
            video.n_frames,
        )
        assert (other.user_scores == video.user_scores).all()
    assert from_mat["HT5vyqe0Xaw"].title.startswith('"The stuck truck')  # literal quotes stay


def test_predictor_frames_are_the_one_fps_grid(benchmark):
    predicted = samples_of(shared_fixture("eval/tvsum_pred_noisy.json"))
    for video_id, video in benchmark.known.items():
        assert (predicted[video_id].frames == grids.second_frames(video.n_frames, video.fps)).all()


ROW_NAMES = {
    "human_vs_each_other_human": baselines.HUMAN,
    "human_vs_mean_of_the_19_others": baselines.HUMAN_MEAN,
    "mean_annotation_as_predictor_vs_each_human": baselines.UPPER,
}


def row_mean(benchmark: tvsum.TVSum, protocol: str, row: str, metric: str, ids: list[str] | None = None) -> float:
    cache = row_mean.__dict__
    if protocol not in cache:
        cache[protocol] = {i: baselines.video_baselines(truth, protocol, 1) for i, truth in benchmark.truths.items()}
    return float(np.mean([cache[protocol][i][row][metric] for i in ids or benchmark.truths]))


@pytest.mark.parametrize("protocol", ["corr_full", "corr_every15", "corr_1fps", "corr_clip2s"])
def test_reference_rows_of_correlations(protocol, benchmark, rows):
    for name, row in ROW_NAMES.items():
        for metric, expected in rows[protocol][name].items():
            assert same(row_mean(benchmark, protocol, row, metric), expected), (name, metric)
    # Random scores have no golden value: their mean is near 0.
    assert abs(row_mean(benchmark, protocol, RANDOM, "kendall")) < 0.03


def test_reference_rows_of_aha(benchmark, rows):
    for metric, expected in rows["aha_1fps_mean"]["human_vs_mean_of_the_19_others (ties: mean of both orders)"].items():
        assert same(row_mean(benchmark, "aha_1fps_mean", baselines.HUMAN_MEAN, metric), expected), metric


def test_reference_rows_of_top5(benchmark, rows):
    names = {"mean_annotation_as_predictor": baselines.UPPER, "human_vs_19_others": baselines.HUMAN}
    for name, row in names.items():
        for which in ("first", "last"):
            for subset, ids in (("val10", list(VAL10.values())), ("all50", None)):
                found = row_mean(benchmark, "hd_top5", row, f"top5_map_tie_{which}", ids)
                assert same(found, rows["hd_top5"][name][which][subset]), (name, which, subset)


@pytest.mark.parametrize("name", ["official60", "otani60", "shots"])
def test_reference_rows_of_f1(name, benchmark, rows):
    expected = rows["f1"][name]
    assert same(row_mean(benchmark, f"f1_{name}", baselines.HUMAN, "f1"), expected["human_vs_each_other_human"])
    assert same(row_mean(benchmark, f"f1_{name}", baselines.HUMAN, "f1_max_over_users"), expected["human_best_match_among_19"])
    assert abs(row_mean(benchmark, f"f1_{name}", RANDOM, "f1") - expected["random_frame_scores_10_runs"]) < 0.03


# The predictors that the official script was run on, as scores of frame k = 1..n.
OFFICIAL_PREDICTORS = {"sin": lambda k: np.sin(k / 300), "tan": lambda k: np.tan(k / 300), "inv": lambda k: -k}


@pytest.mark.parametrize("name", list(OFFICIAL_PREDICTORS))
def test_official_script_predictors(name, benchmark, rows):
    expected = rows["f1"]["official_script_predictors"][name]
    for shots, protocol in ((60, "f1_official60"), (50, "f1_official_pred50")):
        found = {}
        for video_id, truth in benchmark.truths.items():
            n = truth.video.n_frames
            found[video_id] = tvsum.score_video(truth, np.arange(n), OFFICIAL_PREDICTORS[name](np.arange(1.0, n + 1)), [protocol])[
                protocol
            ]["f1"]
        assert same(np.mean(list(found.values())), expected[f"pred_shots_{shots}"])
        for video_id, value in expected.get(f"per_video_pred_shots_{shots}", {}).items():
            assert same(found[video_id], value), (name, shots, video_id)


# ---------------------------------------------------------------- the command


def run(*argv: object, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", "aha.eval.tvsum", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=environment, timeout=600)


def test_no_torch_and_no_matplotlib_without_report():
    code = (
        "import sys; from aha.eval import tvsum, hisum\n"
        "for module in (tvsum, hisum):\n"
        "    try: module.main(['--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "found = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "seconds" in done.stdout or "frames" in done.stdout


def test_command_help_and_human_row(tmp_path):
    help_text = run("--help")
    assert help_text.returncode == 0 and "--predictions" in help_text.stdout
    annotations = shared_fixture("eval/ydata-tvsum50.mat")
    shown = run("--annotations", annotations, "--protocols", "corr_clip2s", "corr_1fps", "--random_runs", 2)
    assert shown.returncode == 0, shown.stderr
    human = [line.split()[-2:] for line in shown.stdout.splitlines() if "one human, each other" in line]
    assert human == [["0.1773", "0.2042"], ["0.1778", "0.2045"]]
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_command_on_another_data_set(demo):
    folder, _ = demo
    output = folder / "out" / "metrics.json"
    done = run("--predictions", folder / "predictions.json", "--annotations", folder / "demo-anno.tsv", "--output", output)
    assert done.returncode == 0, done.stderr
    assert "this prediction" in done.stdout and "garden" in done.stdout and "f1_shots" not in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    metrics = json.loads(output.read_text())
    assert set(metrics) == {"protocols", "baselines", "confidence_intervals", "videos", "settings"}
    assert metrics["videos"] == {"scored": 6, "skipped": {}, "constant": [], "trained_on": []}
    kendall = metrics["protocols"]["corr_full"]["kendall"]
    assert kendall["mean"] > metrics["baselines"][RANDOM]["corr_full"]["kendall"]["mean"]
    assert set(kendall["per_category"]) == {"garden", "street", "kitchen"} and len(kendall["per_video"]) == 6
    low, high = metrics["confidence_intervals"]["corr_full"]["kendall"]
    assert low <= kendall["mean"] <= high
    assert "val10" not in metrics["protocols"]["hd_top5"]["top5_map"]


def test_evaluate_is_the_command(demo):
    folder, _ = demo
    metrics = tvsum.evaluate(folder / "predictions.json", folder / "demo-anno.tsv", random_runs=2)
    assert metrics["settings"]["random_runs"] == 2 and metrics["videos"]["scored"] == 6


def test_baselines_are_cached_and_keyed_by_content(demo, monkeypatch):
    folder, videos = demo
    monkeypatch.setenv("AHA_CACHE", str(folder / "cache"))  # so that the first rows are computed here

    def rows_of() -> dict:
        return tvsum.evaluate(None, folder / "demo-anno.tsv", random_runs=2)["baselines"]

    first = rows_of()
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "video_baselines", lambda *_: pytest.fail("computed again"))
        assert rows_of() == first
    changed = (folder / "demo-anno.tsv").read_text().replace("clip-0\tgarden\t", "clip-0\tgarden\t1,", 1)
    row, rest = changed.split("\n", 1)
    (folder / "demo-anno.tsv").write_text(row.rsplit(",", 1)[0] + "\n" + rest)  # one opinion moved by a frame
    assert rows_of() != first


def test_a_damaged_or_unwritable_cache_costs_time_only(demo, monkeypatch):
    folder, _ = demo
    monkeypatch.setenv("AHA_CACHE", str(folder / "cache"))
    expected = tvsum.evaluate(None, folder / "demo-anno.tsv", protocols=["corr_full"], random_runs=1)["baselines"]
    files = list((folder / "cache").rglob("*.json"))
    assert files
    for file in files:
        file.write_text('{"cut off')
    assert tvsum.evaluate(None, folder / "demo-anno.tsv", protocols=["corr_full"], random_runs=1)["baselines"] == expected
    monkeypatch.setenv("AHA_CACHE", "/dev/null/nowhere")
    assert tvsum.evaluate(None, folder / "demo-anno.tsv", protocols=["corr_full"], random_runs=1)["baselines"] == expected


# ---------------------------------------------------------------- selection, layouts, weights


def test_selection(demo):
    folder, videos = demo
    annotations = folder / "demo-anno.tsv"
    assert list(tvsum.load(annotations, limit=2).truths) == ["clip-0", "clip-1"]
    assert list(tvsum.load(annotations, video_ids=["clip-3", "clip-1"]).truths) == ["clip-1", "clip-3"]
    parts = [set(tvsum.load(annotations, fold=k).truths) for k in range(5)]
    assert set().union(*parts) == set(videos) and sum(map(len, parts)) == len(videos)
    for bad in ({"fold": 5}, {"limit": 0}, {"video_ids": ["nobody"]}, {"protocols": ["f1_shots"]}):
        with pytest.raises(UserError):
            tvsum.load(annotations, **bad)


def scores_of(path, folder, **weights) -> dict:
    benchmark = tvsum.load(folder / "demo-anno.tsv", protocols=["corr_full", "hd_top5"])
    scored = benchmark.score(path, Fusion(**weights))
    found: dict = {}
    for column in scored.columns:
        for video_id, value in zip(column.ids, column.values):
            found.setdefault(video_id, {}).setdefault(column.protocol, {})[column.metric] = value
    return found


def test_layouts_give_the_same_numbers(demo):
    folder, videos = demo
    entries = json.loads((folder / "predictions.json").read_text())
    expected = scores_of(folder / "predictions.json", folder)
    relevance = {e["video_uuid"]: [h["relevance_score"] for h in e["debug_data"]] for e in entries}
    frames = {e["video_uuid"]: e["true_frames_list"] for e in entries}
    timed = [{"video_uuid": e["video_uuid"], "debug_data": e["debug_data"]} for e in entries]
    layouts = {
        "lines.jsonl": "\n".join(json.dumps(e) for e in entries) + "\n",
        "short.json": json.dumps({"videos": {i: {"frames": frames[i], "scores": s} for i, s in relevance.items()}}),
        "model_first.json": json.dumps({"model": "x", "videos": {i: {"frames": frames[i], "scores": s} for i, s in relevance.items()}}),
        "plain.json": json.dumps(relevance),
        "dense.json": json.dumps({i: np.repeat(s, 8).tolist() for i, s in relevance.items()}),
        "timed.json": json.dumps(timed),
        "community.json": json.dumps({f"video_{k}": s for k, s in enumerate(relevance.values(), 1)}),
    }
    for name, text in layouts.items():
        (folder / name).write_text(text)
        assert scores_of(folder / name, folder) == expected, name
    one = folder / "one.json"
    one.write_text(json.dumps(entries[0]))
    assert list(scores_of(one, folder)) == ["clip-0"]


def test_clip_scores_layout(demo):
    folder, videos = demo
    clips = [{"qid": 1, "vid": "clip-2", "pred_saliency_scores": videos["clip-2"][:, 8::16].mean(axis=0).tolist()}]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, clips)))
    found = scores_of(folder / "clips.jsonl", folder)["clip-2"]["corr_full"]["kendall"]
    mean = scores_of(folder / "predictions.json", folder)["clip-2"]["corr_full"]["kendall"]
    assert found > mean > 0


def test_weights_fuse_the_heads(demo):
    folder, _ = demo
    assert scores_of(folder / "predictions.json", folder, beta=2.0) == scores_of(folder / "predictions.json", folder)
    flipped = scores_of(folder / "predictions.json", folder, beta=-1.0)["clip-0"]["corr_full"]["kendall"]
    assert flipped == -scores_of(folder / "predictions.json", folder)["clip-0"]["corr_full"]["kendall"]
    path = folder / "u.json"
    heads = [{"time": t, "informative_score": 1.0, "relevance_score": 0.5, "uncertainty_score": u} for t, u in ((0.0, 0.1), (1.0, 0.4))]
    path.write_text(json.dumps([{"video_uuid": "v", "true_frames_list": [0, 8], "debug_data": heads}]))
    fused = samples_of(path, Fusion(alpha=1, beta=2, epsilon=10, uncertainty_threshold=0.3))["v"].scores
    np.testing.assert_allclose(fused, [2.0, 1.0])


def test_a_sampler_one_frame_late_keeps_its_labels():
    frames = np.array([0, 31, 61, 91])  # 30 fps, one frame late after the first
    found = grids.score_seconds(frames, np.arange(4.0), np.arange(4), 30.0)
    assert found.tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------- honest handling


def test_constant_missing_and_trained_on_videos(demo, capsys):
    folder, _ = demo
    entries = json.loads((folder / "predictions.json").read_text())[:5]
    for head in entries[1]["debug_data"]:
        head["relevance_score"] = 0.5
    entries[2]["trained_on"] = True
    path = folder / "partly.json"
    path.write_text(json.dumps(entries))
    (folder / "trained_on_videos.json").write_text(json.dumps(["clip-4", "clip-5", "elsewhere"]))
    arguments = ["--predictions", str(path), "--annotations", str(folder / "demo-anno.tsv"), "--protocols", "corr_full", "f1_otani60",
                 "--trained_on", str(folder / "trained_on_videos.json"), "--output", str(folder / "m.json"), "--random_runs", "1"]  # fmt: skip
    tvsum.main(arguments)
    shown = capsys.readouterr()
    assert "WARNING" in shown.err and "TRAINED ON 2 of the 5" in shown.err
    assert "this prediction (TRAINED ON)" in shown.out and "4 of 5" in shown.out and "skipped, no prediction: clip-5" in shown.out
    metrics = json.loads((folder / "m.json").read_text())
    assert metrics["videos"] == {
        "scored": 5, "skipped": {"clip-5": "no prediction"}, "constant": ["clip-1"], "trained_on": ["clip-2", "clip-4"],
    }  # fmt: skip
    kendall = metrics["protocols"]["corr_full"]["kendall"]
    assert kendall["per_video"]["clip-1"] is None and kendall["videos"] == 4
    others = [value for value in kendall["per_video"].values() if value is not None]
    assert kendall["mean"] == pytest.approx(np.mean(others))
    assert metrics["protocols"]["f1_otani60"]["f1"]["videos"] == 5
    assert metrics["baselines"][baselines.HUMAN]["corr_full"]["kendall"]["videos"] == 5  # the same videos as the prediction
    (folder / "m.json").unlink()
    with pytest.raises(UserError, match="--strict"):
        tvsum.main([*arguments, "--strict"])
    assert not (folder / "m.json").exists()


def test_top_level_trained_on(demo, capsys):
    folder, _ = demo
    scores = {i: p.scores.tolist() for i, p in samples_of(folder / "predictions.json").items()}
    for text in ({"trained_on": True, "videos": scores}, {"videos": scores, "trained_on": True}):
        (folder / "t.json").write_text(json.dumps(text))
        assert all(prediction.trained_on for prediction in read_predictions(folder / "t.json"))


def test_a_constant_annotator_is_left_out_of_the_mean(demo):
    folder, _ = demo
    video = read_tvsum(folder / "demo-anno.tsv")["clip-0"]
    video.user_scores[3] = 2
    frames = np.arange(0, video.n_frames, 8)
    found = tvsum.score_video(Truth(video), frames, np.arange(len(frames)) / 7, ["corr_full"])["corr_full"]["kendall"]
    assert np.isfinite(found)


# ---------------------------------------------------------------- compare, report


def test_compare(demo, capsys):
    folder, videos = demo
    write_predictions(folder / "other.json", dict(list(videos.items())[:4]), seed=5)
    arguments = ["--annotations", str(folder / "demo-anno.tsv"), "--protocols", "corr_full", "hd_top5", "--random_runs", "1"]
    files = ["--compare", str(folder / "predictions.json"), str(folder / "other.json"), "--output", str(folder / "c.json")]
    tvsum.main([*files, *arguments])
    shown = capsys.readouterr().out
    assert "compared on the 4 of 6 videos that all 2 files score; lost: clip-4, clip-5" in shown and "minus A" in shown
    assert "A = predictions: 4 videos scored" in shown and "B = other: 4 videos scored, 0 skipped" in shown
    assert max(map(len, shown.splitlines())) <= 80
    difference = json.loads((folder / "c.json").read_text())["differences_to_first"]["other"]["corr_full"]["kendall"]
    first, second = (tvsum.evaluate(folder / name, folder / "demo-anno.tsv", protocols=["corr_full"], random_runs=1)
                     for name in ("predictions.json", "other.json"))  # fmt: skip
    pairs = [(m["protocols"]["corr_full"]["kendall"]["per_video"]) for m in (first, second)]
    assert difference["videos"] == 4
    assert difference["mean"] == pytest.approx(np.mean([pairs[1][i] - pairs[0][i] for i in pairs[1]]))
    assert difference["interval"][0] <= difference["mean"] <= difference["interval"][1]


class Resources(HTMLParser):
    """Collects what a page would load from elsewhere, and how many images it carries."""

    def __init__(self):
        super().__init__()
        self.elsewhere, self.images, self.scripts, self.values = [], 0, 0, []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        source = found.get("src") or (found.get("href") if tag == "link" else None)
        self.images += tag == "img"
        self.scripts += tag == "script"
        self.values += [json.loads(found["data-values"])] if "data-values" in found else []
        if source and not source.startswith("data:"):
            self.elsewhere.append(source)


def test_report(demo):
    folder, videos = demo
    tvsum.main(["--predictions", str(folder / "predictions.json"), "--annotations", str(folder / "demo-anno.tsv"),
                "--report", str(folder / "report"), "--random_runs", "2"])  # fmt: skip
    page = (folder / "report" / "report.html").read_text()
    resources = Resources()
    resources.feed(page)
    assert resources.elsewhere == [] and resources.scripts == page.count("<script") == 1  # that of the values under the mouse
    predicted, mean = samples_of(folder / "predictions.json"), read_tvsum(folder / "demo-anno.tsv")
    for name, values in zip(predicted, resources.values, strict=True):
        assert list(values["lines"]) == ["prediction", "their mean"] and 0 < values["left"] < 0.2 and 0.9 < values["right"] <= 1
        assert {len(row) for row in (values["moments"], *values["lines"].values())} == {MOMENTS}
        shown = values["lines"]["prediction"]  # as predicted, though drawn at the height of the annotators
        assert {f"{score:.4g}" for score in predicted[name].scores} >= {f"{score:.4g}" for score in shown if score is not None}
        assert values["lines"]["their mean"][-1] == pytest.approx(mean[name].user_scores[:, -1].mean(), rel=1e-3)
        assert values["moments"][0] == "0:00"
    pictures = list((folder / "report" / "figures").rglob("*.png"))
    assert resources.images == len(pictures) == 1 + 3 + len(videos)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "The &#34;garden&#34; 0" in page
    assert json.loads((folder / "report" / "metrics.json").read_text())["videos"]["scored"] == len(videos)
    for name in ("corr_full", "hd_top5", "one human", "mean annotation"):
        assert name in page


def test_report_of_a_constant_prediction(demo):
    folder, videos = demo
    (folder / "const.json").write_text(json.dumps({i: [0.5] * 20 for i in videos}))
    tvsum.main(["--predictions", str(folder / "const.json"), "--annotations", str(folder / "demo-anno.tsv"), "--report",
                str(folder / "report"), "--random_runs", "1", "--protocols", "corr_every15", "--video_ids", "clip-1"])  # fmt: skip
    assert "constant prediction" in (folder / "report" / "report.html").read_text()


# ---------------------------------------------------------------- shots, other readers


def test_shot_lists(demo):
    folder, videos = demo
    known = read_tvsum(folder / "demo-anno.tsv")
    import h5py

    pairs = {i: [[0, 49], [50, 159]] for i in videos}
    (folder / "shots.json").write_text(json.dumps(pairs))
    with h5py.File(folder / "shots.h5", "w") as file:
        for number in range(1, 7):
            file[f"video_{number}/change_points"] = np.array([[0, 49], [50, 159]])
    for name in ("shots.json", "shots.h5"):
        found = read_shots(folder / name, known, list(known))
        assert all(shots.tolist() == [[0, 50], [50, 160]] for shots in found.values())
    for bad in ([[0, 49], [51, 159]], [[0, 159], [0, 159]], [[0, 158]], [], [[0, 1, 2]], "x", [[0, None]], {}):
        (folder / "bad.json").write_text(json.dumps({**pairs, "clip-2": bad}))
        with pytest.raises(UserError, match="clip-2"):
            read_shots(folder / "bad.json", known, list(known))


def test_gzip_mat_and_folder(demo):
    folder, videos = demo
    packed = folder / "packed"
    packed.mkdir()
    (packed / "demo-anno.tsv.gz").write_bytes(gzip.compress((folder / "demo-anno.tsv").read_bytes()))
    (packed / "demo-info.tsv").write_bytes((folder / "demo-info.tsv").read_bytes())
    plain, zipped = read_tvsum(folder / "demo-anno.tsv"), read_tvsum(packed / "demo-anno.tsv.gz")
    assert all((plain[i].user_scores == zipped[i].user_scores).all() for i in videos)
    official = folder / "tvsum" / "ydata-tvsum50-v1_1" / "matlab"
    official.mkdir(parents=True)
    write_mat(official / "ydata-tvsum50.mat", videos)
    found = read_tvsum(folder / "tvsum")
    assert found["clip-1"].title == "Título 1" and (found["clip-1"].user_scores == videos["clip-1"]).all()
    assert len(read_tvsum(folder / "packed")) == 50  # none under a published name: the copy that ships


def test_titles_of_protocols_name_a_source():
    assert all(re.search(r"\(|predictor's own|clips|comparable|as official", protocol.about) for protocol in PROTOCOLS)
