"""Metric building blocks: golden unit vectors, brute force and scipy as oracles, degenerate cases."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture
from scipy import stats

from aha.core.folds import folds
from aha.errors import UserError
from aha.metrics import bootstrap, highlights, keyshots, rank


def unit(part: str) -> list[dict]:
    return json.loads(shared_fixture("eval/unit_golden.json").read_text())[part]


def close(value: float, golden: float | None) -> bool:
    return bool(np.isnan(value)) if golden is None else abs(float(value) - golden) < 1e-9


# ---------------------------------------------------------------- rank correlation


def test_rank_correlation_golden():
    for case in unit("rank_correlation"):
        x, y = np.array(case["x"]), np.array(case["y"])
        found = rank.rank_correlation(x, y)
        assert close(found.kendall, case["kendall_tau_b"]), case
        assert close(found.kendall_tau_a, case["kendall_tau_a"]), case
        assert close(found.spearman, case["spearman"]), case
        assert close(rank.kendall_tau_b(x, y), case["kendall_tau_b"])
        assert close(rank.spearman(x, y), case["spearman"])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_rank_correlation_is_scipys(n, x_levels, y_levels, seed, distinct):
    rng = np.random.default_rng(seed)
    x = rng.permutation(n) / 7 if distinct else rng.integers(0, x_levels, n) / 7
    y = rng.integers(1, y_levels + 1, (3, n))
    found = rank.rank_correlation(x, y)
    for row in range(3):
        tau, rho = stats.kendalltau(x, y[row]).statistic, rank.spearman(x, y[row])
        assert np.isclose(found.kendall[row], tau, atol=1e-12, equal_nan=True)
        assert np.isclose(rank.kendall_tau_b(x, y[row]), tau, atol=1e-12, equal_nan=True)
        assert np.isclose(found.spearman[row], rho, atol=1e-12, equal_nan=True)
        if len(set(x)) > 1 and len(set(y[row])) > 1:
            assert np.isclose(rho, stats.spearmanr(x, y[row]).statistic, atol=1e-12)


def test_pairs_of_people_equal_one_by_one():
    people = np.random.default_rng(0).integers(1, 6, (5, 300))
    pairs = rank.pairwise_rank_correlation(people)
    expected = [stats.kendalltau(people[i], people[j]).statistic for i, j in itertools.combinations(range(5), 2)]
    np.testing.assert_allclose(pairs.kendall, expected, atol=1e-12)


def test_long_vectors_take_scipy_and_agree():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 50, 2500), rng.integers(0, 50, 2500)
    assert np.isclose(rank.kendall_tau_b(x, y), float(rank.rank_correlation(x, y).kendall), atol=1e-12)


# ---------------------------------------------------------------- key shots


def test_knapsack_golden():
    for case in unit("knapsack"):
        picked = keyshots.knapsack(np.array([case["values"]]), np.array(case["weights"]), case["capacity"])[0]
        assert np.flatnonzero(picked).tolist() == case["picked"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 25), st.integers(0, 2**32 - 1))
def test_knapsack_is_optimal_and_rows_are_independent(items, capacity, seed):
    rng = np.random.default_rng(seed)
    weights, values = rng.integers(1, 9, items), rng.integers(-2, 9, (3, items)) / 8
    picked = keyshots.knapsack(values, weights, capacity)
    for row in range(3):
        assert weights[picked[row]].sum() <= capacity
        subsets = (np.array(s, dtype=bool) for s in itertools.product((0, 1), repeat=items))
        assert values[row][picked[row]].sum() == max(values[row][s].sum() for s in subsets if weights[s].sum() <= capacity)
        assert (picked[row] == keyshots.knapsack(values[row : row + 1], weights, capacity)[0]).all()
        assert (values[row][picked[row]] > 0).all()


def test_matlab_quantile_golden():
    for case in unit("matlab_quantile"):
        assert close(keyshots.matlab_quantile(np.array(case["x"]), case["q"]), case["value"])


def test_official_summary_golden():
    for case in unit("official_summary"):
        if "scores" not in case:
            assert keyshots.official_shots(45).tolist() == [[0, 45]]  # undefined in the script: one shot here
            continue
        scores = np.array([case["scores"]], dtype=float)
        shots = keyshots.official_shots(scores.shape[1])
        assert shots.tolist() == case["shots_half_open"]
        # The golden vectors were made from scores as given; constant ones are 0 after normalising.
        for normalised in (scores, keyshots.min_max(scores)):
            assert np.flatnonzero(keyshots.official_summary(normalised, shots)[0]).tolist() == case["selected_frames"], case["case"]


def test_keyshot_summary_golden():
    for case in unit("keyshot_summary"):
        shots = np.array(case["shots_inclusive"]) + [0, 1]
        found = keyshots.keyshot_summary(np.array([case["scores"]]), shots)[0]
        assert np.flatnonzero(found).tolist() == case["selected_frames"]


def test_shots_cover_the_video():
    assert keyshots.official_shots(200).tolist() == [[0, 60], [60, 120], [120, 200]]
    assert keyshots.even_shots(200).tolist() == [[0, 60], [60, 120], [120, 180], [180, 200]]


def test_f1_is_zero_without_overlap_and_for_empty_summaries():
    summaries = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    references = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], dtype=bool)
    np.testing.assert_allclose(keyshots.f1(summaries, references), [[2 / 3, 0], [0, 0]])


# ---------------------------------------------------------------- highlights


def test_average_precision_golden():
    for case in unit("average_precision"):
        assert close(highlights.average_precision(np.array(case["labels"]), np.array(case["scores"])), case["ap"])


def test_trapezoid_ap_golden():
    for case in unit("trapezoid_ap"):
        assert close(float(highlights.trapezoid_ap(np.array(case["top5_labels"]))), case["ap"])


def test_orders_of_equal_scores():
    scores = np.array([1.0, 2.0, 1.0, 2.0])
    assert highlights.order(scores).tolist() == [1, 3, 0, 2]
    assert highlights.order(scores, last_first=True).tolist() == [3, 1, 2, 0]


def test_lower_median_and_top_share():
    assert highlights.above_lower_median(np.array([[1, 2, 3, 4]])).tolist() == [[False, False, True, True]]
    assert highlights.top_share(np.array([3.0, 1.0, 3.0, 2.0]), 0.15).tolist() == [True, False, True, False]


# ---------------------------------------------------------------- bootstrap, folds


def test_bootstrap_interval_covers_the_normal_one():
    values = np.random.default_rng(3).normal(size=(400, 1))
    low, high = bootstrap.confidence_intervals(values)[0]
    half = 1.96 * values.std() / 20
    assert abs(low - (values.mean() - half)) < 0.01 and abs(high - (values.mean() + half)) < 0.01


def test_bootstrap_leaves_undefined_videos_out():
    values = np.array([[1.0, np.nan], [1.0, 2.0], [1.0, np.nan]])
    bounds = bootstrap.confidence_intervals(values)
    assert bounds[0].tolist() == [1.0, 1.0] and np.isnan(bounds[1]).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("ABCD"), min_size=5, max_size=40), st.integers(2, 5), st.integers(0, 3))
def test_folds_are_a_balanced_partition(categories, n_folds, seed):
    named = {f"v{i}": c for i, c in enumerate(categories)}
    parts = folds(named, n_folds, seed)
    assert sorted(i for part in parts for i in part) == sorted(named)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for category in set(categories):
        shares = [sum(named[i] == category for i in part) for part in parts]
        assert max(shares) - min(shares) <= 1
    assert parts == folds(dict(reversed(named.items())), n_folds, seed)


def test_folds_need_enough_videos():
    with pytest.raises(UserError, match="cannot be split"):
        folds({"a": "x"}, 5)
