"""Console tables: at most 80 columns, whatever the names and numbers, and nothing is lost."""

from __future__ import annotations

import re

import numpy as np
import pytest

from aha.results.table import WIDTH, block, wrapped


@pytest.mark.parametrize("seed", range(30))
def test_tables_fit_80_columns_and_hold_every_cell(seed):
    random = np.random.default_rng(seed)

    def word(most: int) -> str:
        return "".join(random.choice(list("abcdefgh_- "), random.integers(1, most))).strip() or "x"

    columns = [word(40) for _ in range(random.integers(1, 14))]
    numbers = iter(range(1000, 9999))
    rows = [(word(70), [f"{next(numbers)}" + "9" * int(random.integers(0, 14)) for _ in columns]) for _ in range(random.integers(1, 6))]
    text = block(word(200), columns, rows)
    assert WIDTH == 80 and max(map(len, text.splitlines())) <= 80
    assert sorted(re.findall(r"\b\d{4,}\b", text)) == sorted(cell for _, cells in rows for cell in cells)
    for name in columns:
        assert all(letter in text for letter in name.replace(" ", ""))


def test_sentences_are_wrapped_with_what_belongs_to_them_moved_in():
    lines = wrapped("  kendall: " + "word " * 40)
    assert all(len(line) <= 80 for line in lines) and lines[0].startswith("  kendall") and lines[1].startswith("      word")
    assert wrapped("/a/path/that/is/longer/" + "x" * 90) == ["/a/path/that/is/longer/" + "x" * 90] and wrapped("") == [""]
