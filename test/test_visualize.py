"""Figures for papers: PNG and PDF are written, numbers in tables are those of the metrics files, bad input is one sentence."""

from __future__ import annotations

import numpy as np
import pytest
from eval_data import write_hisum
from PIL import Image

from aha.core.files import write_json
from aha.errors import UserError
from aha.results.figures import cell_text, stretched
from aha.visualize import comparison, label_of, main, table_latex


def metrics_file(path, offset: float):
    def tree(mean):
        return {"mean": mean, "per_category": {"A_1": mean, "B": None}, "per_video": {}}

    write_json(path, {
        "protocols": {"corr_full": {"kendall": tree(0.2 + offset), "spearman": tree(None)},
                      "hd_top5": {"top5_map": {"all50": tree(0.5), "val10": tree(0.6)}}},
        "confidence_intervals": {"corr_full": {"kendall": [0.1, 0.3], "spearman": None}},
        "baselines": {"random": {"corr_full": {"kendall": {"mean": -0.0001}}}},
    })  # fmt: skip
    return path


@pytest.fixture
def files(tmp_path):
    return [f"Ours_x={metrics_file(tmp_path / 'a.json', 0.1)}", f"Theirs={metrics_file(tmp_path / 'b.json', 0.0)}"]


def is_figure(base) -> bool:
    with Image.open(base.with_suffix(".png")) as image:
        return image.width > 300 and base.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_table_has_the_numbers_of_the_files(files, tmp_path):
    main(
        [
            "compare",
            "--metrics",
            *files,
            "--columns",
            "corr_full/kendall",
            "hd_top5/top5_map/val10",
            "corr_full/spearman",
            "--output",
            str(tmp_path / "t"),
        ]
    )
    assert is_figure(tmp_path / "t")
    latex = (tmp_path / "t.tex").read_text()
    assert r"Ours\_x & \textbf{0.300 [0.100, 0.300]} & \textbf{0.600} & -- \\" in latex
    assert "Theirs & 0.200 [0.100, 0.300] & 0.600 & --" in latex and "random & 0.000 & -- & --" in latex


def test_categories_and_curves(files, tmp_path):
    main(["categories", "--metrics", *files, "--output", str(tmp_path / "c.pdf")])
    assert is_figure(tmp_path / "c")
    people = np.random.default_rng(0).integers(1, 6, (20, 60))
    rows = [f"video1\tVT\t{','.join(map(str, row))}" for row in people]
    (tmp_path / "x-anno.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "x-info.tsv").write_text("category\tvideo_id\ttitle\turl\tlength\nVT\tvideo1\tA $title\thttp://x\t0:04\n")
    write_json(tmp_path / "p.json", {"videos": {"video1": {"frames": [0, 15, 30, 45], "scores": [0.1, 0.9, 0.4, 0.4]}}})
    main(
        [
            "curves",
            "--predictions",
            f"Ours={tmp_path / 'p.json'}",
            "--annotations",
            str(tmp_path / "x-anno.tsv"),
            "--output",
            str(tmp_path / "curves"),
        ]
    )
    assert is_figure(tmp_path / "curves")
    with pytest.raises(UserError, match="nobody"):
        main(
            [
                "curves",
                "--predictions",
                str(tmp_path / "p.json"),
                "--annotations",
                str(tmp_path / "x-anno.tsv"),
                "--video_ids",
                "nobody",
                "--output",
                "z",
            ]
        )


def test_curves_over_the_h5_of_mr_hisum(tmp_path):
    scores = write_hisum(tmp_path)
    ours, others = list(scores), {i: values[::-1] for i, values in scores.items()}
    write_json(tmp_path / "ours.json", {i: list(map(float, values)) for i, values in scores.items()})
    write_json(tmp_path / "others.json", {i: list(map(float, values)) for i, values in others.items()})
    given = ["curves", "--predictions", f"Ours={tmp_path / 'ours.json'}", f"Theirs={tmp_path / 'others.json'}", "--annotations"]
    main([*given, str(tmp_path / "mr_hisum.h5"), "--output", str(tmp_path / "h")])
    assert is_figure(tmp_path / "h")
    main([*given, str(tmp_path / "mr_hisum.h5"), "--output", str(tmp_path / "one"), "--video_ids", ours[0]])
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "h.png") as all_of_them:
        assert one.width < all_of_them.width
    with pytest.raises(UserError, match="nobody is not in"):
        main([*given, str(tmp_path / "mr_hisum.h5"), "--output", str(tmp_path / "z"), "--video_ids", "nobody"])


def test_metrics_go_by_the_names_that_people_use(files, tmp_path):
    content = {"settings": {"benchmark": "tvsum"}}
    assert label_of(content, "corr_full/kendall") == "Kendall tau (corr_full)"
    assert label_of(content, "hd_top5/top5_map/val10") == "top-5 mAP (hd_top5 val10)"
    assert label_of({"settings": {"benchmark": "hisum"}}, "official/f1") == "key-shot F1 (%) (official)"
    assert label_of({"settings": {"benchmark": "summe"}}, "keyshots_h5/f_avg") == "F1, mean match, % (keyshots_h5)"
    assert label_of({}, "some/new_metric") == "new metric (some)"
    main(["compare", "--metrics", *files, "--columns", "corr_full/kendall", "--output", str(tmp_path / "t")])
    assert r"Kendall tau (corr\_full)" in (tmp_path / "t.tex").read_text()


def test_bad_input_is_one_sentence(files, tmp_path):
    write_json(tmp_path / "no.json", [])
    for arguments, words in (
        (["--metrics", *files, "--columns", "corr_full/tau"], "hd_top5/top5_map/all50|val10"),
        (["--metrics", *files, "--columns", "kendall"], "PROTOCOL/METRIC"),
        (["--metrics", str(tmp_path / "no.json")], "no metrics file"),
        (["--metrics", files[0], files[0]], "twice"),
        (["--metrics", str(tmp_path / "missing.json")], "does not exist"),
    ):
        with pytest.raises(UserError) as told:
            main(["compare", *arguments, "--output", str(tmp_path / "z")])
        assert words in str(told.value)
    assert not list(tmp_path.glob("z*"))


def test_cells_and_stretching():
    assert cell_text(None, None) == "–" and cell_text(-1e-5, None) == "0.000" and cell_text(64.19, [60.0, 68.26]) == "64.2 [60.0, 68.3]"
    assert stretched(np.array([2.0, 4.0]), 1, 5).tolist() == [1, 5] and stretched(np.array([3.0, 3.0]), 1, 5).tolist() == [3, 3]
    rows = [("a", [(0.1, None)]), ("b", [(0.2, None)])]
    assert table_latex(rows, ["x/y"], 1).count("midrule") == 2 and comparison({"a": {"protocols": {"x": {"y": {"mean": 1}}}}}, ["x/y"])[0][
        1
    ] == [(1, None)]
