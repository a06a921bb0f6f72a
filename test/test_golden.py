"""The model equals the public MMDuet and Aha code on the golden data (see golden.py for the items)."""

import golden
import pytest
from golden import FAMILIES


def check(rows):
    rows = list(rows)
    assert rows
    over = [(item, difference) for item, difference, tolerance in rows if not difference <= tolerance]
    assert not over


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vision(family, attention):
    check(golden.vision(family, attention))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_every_session(family, attention):
    check(golden.scores(family, attention))


@pytest.mark.parametrize("family, case", golden.cases())
def test_losses_and_gradients(family, case):
    check(golden.training(family, case, golden.batch_frames(case, family)))


def test_head_conversion_is_exact():
    check(golden.head_conversion())


def test_merged_adapter_computes_the_same():
    check(golden.merged())
