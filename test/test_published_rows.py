"""Published rows: each has a source and a protocol of ours; only the same protocol, split and videos stand beside our numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from aha.eval import MODULES, load_task, published
from aha.eval.published import Counted, Row
from aha.results.layout import Layout
from aha.visualize import published_of

ROW = Row("M", "P", 2020, "hd_top5", "val10", 10, {"top5_map": 0.8}, "somewhere")
LAYOUT = Layout("TVSum", (), ())
NUMBERS = {"hd_top5": {"top5_map": {"all50": {"mean": 0.7}, "val10": {"mean": 0.75}}}}


# protocols that depend on flags: what the commands call them
NAMED_BY_FLAGS = {"charades": r"fixed_threshold_w\d+_t0\.\d\d|univtg_windows"}


@pytest.mark.parametrize("benchmark", MODULES)
def test_every_row_has_a_protocol_and_metrics_of_ours(benchmark):
    known = {protocol.name: set(protocol.metrics) for protocol in load_task(benchmark).protocols}
    for row in published.read_rows(benchmark):
        if row.protocol not in known:
            assert re.fullmatch(NAMED_BY_FLAGS[benchmark], row.protocol), row
        else:
            assert set(row.numbers) <= known[row.protocol], row


@pytest.mark.parametrize("benchmark", MODULES)
def test_every_row_says_where_it_was_read(benchmark):
    for row in published.read_rows(benchmark):
        assert row.read_in and row.split and 2010 < row.year < 2030 and row.numbers
        for metric, categories in row.per_category.items():
            assert sum(categories.values()) / len(categories) == pytest.approx(row.numbers[metric], abs=1e-5)


def test_the_same_protocol_split_and_videos_stand_beside_ours():
    text = published.render([ROW], NUMBERS, {"val10": Counted(10, 10)}, LAYOUT)
    assert "this prediction" in text and "0.7500" in text and "0.8000" in text and "not comparable" not in text


@pytest.mark.parametrize(
    ("row", "splits", "reason"),
    [
        (ROW, {}, "split val10, which was not evaluated"),
        (ROW, {"val10": Counted(9, 10)}, "9 of them were scored here"),
        (ROW, {"val10": Counted(5, 5)}, "on 10 of val10, and 5 were"),
        (Row("M", "P", 2020, "other", "val10", 10, {"x": 1.0}, "somewhere"), {"val10": Counted(10, 10)}, "protocol other"),
        (
            Row("M", "P", 2020, "hd_top5", "val10", 10, {"x": 1.0}, "somewhere", "tuned on test"),
            {"val10": Counted(10, 10)},
            "tuned on test",
        ),
    ],
)
def test_anything_else_is_listed_with_the_reason(row, splits, reason):
    text = " ".join(published.render([row], NUMBERS, splits, LAYOUT).split())  # lines end where a terminal does
    assert text.startswith("not comparable, because") and reason in text and "this prediction" not in text
    (entry,) = published.document([row], NUMBERS, splits)
    assert not entry["comparable"] and reason in entry["because"]


def test_a_benchmark_without_rows_says_so():
    assert "none could be traced" in published.render(published.read_rows("summe"), {}, {}, LAYOUT)


def test_bars_of_a_metrics_file_hold_its_comparable_rows():
    rows = [replace(ROW, per_category={"top5_map": {"VT": 0.8}}), replace(ROW, method="N", unlike="tuned on test")]
    content = {"published": published.document(rows, NUMBERS, {"val10": Counted(10, 10)})}
    assert published_of(content, "hd_top5/top5_map/val10") == {"M (2020)": {"mean": 0.8, "per_category": {"VT": 0.8}}}
    assert published_of(content, "hd_top5/top5_map/all50") == {} and published_of({}, "hd_top5/top5_map") == {}
