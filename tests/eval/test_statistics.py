"""Intervals, long tail, fairness and feature statistics: they decide whether a difference is called real."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from eval.fairness import accuracy_by_group
from eval.feature_stats import alignment, effective_rank, uniformity
from eval.longtail import class_bins, head_medium_tail
from foundation.errors import CurationError


def test_head_medium_tail_by_hand():
    counts = [500, 101, 100, 20, 19, 0]
    assert class_bins(counts).tolist() == [0, 0, 1, 1, 2, 2]
    assert class_bins([5, 9, 7, 7, 1, 3], "thirds").tolist() == [1, 0, 0, 1, 2, 2]
    truth = np.array([0, 0, 0, 0, 1, 2, 2, 4])
    predicted = np.array([0, 0, 0, 1, 1, 2, 0, 0])
    found = head_medium_tail(predicted, truth, counts)
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(
        {"head": (0.75 + 1) / 2, "medium": 0.5, "tail": 0.0, "all": (0.75 + 1 + 0.5) / 4,
         "spread": np.std([0.875, 0.5, 0.0])}
    )  # fmt: skip
    assert all(interval.low <= interval.value <= interval.high for interval in found.values())


def test_bins_without_a_tested_class_are_left_out():
    assert set(head_medium_tail([0, 1], [0, 1], [500, 400, 3])) == {"head", "all"}
    with pytest.raises(CurationError, match="reach 3"):
        head_medium_tail([0], [3], [500, 400, 3])
    with pytest.raises(CurationError, match="thirds"):
        head_medium_tail([0], [0], [5], edges="quarters")
    with pytest.raises(CurationError, match="number of images"):
        head_medium_tail([0], [0], [0.5])


def test_gap_is_best_minus_worst_group():
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 0, 1, 1])
    groups = ["rich"] * 4 + ["poor"] * 4 + ["few", None]
    found = accuracy_by_group(correct, groups, min_rows=2)
    assert (found.best, found.worst) == ("rich", "poor")
    assert found.gap.value == pytest.approx(0.5)
    assert found.relative_drop == pytest.approx(0.5 / 0.75)
    assert found.overall.value == pytest.approx(0.6)
    assert set(found.groups) == {"rich", "poor"}
    assert found.groups["poor"].n == 4


def test_fairness_mistakes_are_named():
    with pytest.raises(CurationError, match="a gap needs two"):
        accuracy_by_group([1, 0], ["a", "a"])
    with pytest.raises(CurationError, match="one group per test row"):
        accuracy_by_group([1, 0], ["a"])
    with pytest.raises(CurationError, match="result 1"):
        accuracy_by_group([1, np.nan], ["a", "b"])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 100))
def test_effective_rank_of_equal_directions_is_their_number(rank: int, seed: int):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(40, rank + 1)) - 0.0)[0]
    left -= left.mean(0)
    left = np.linalg.qr(left)[0][:, :rank]  # orthonormal columns without a mean
    right = np.linalg.qr(rng.normal(size=(10, rank)))[0]
    assert effective_rank(left @ right.T + 3.0) == pytest.approx(rank, rel=1e-6)


def test_alignment_and_uniformity_agree_with_their_formulas():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    y = x + 0.1 * rng.normal(size=x.shape)
    ux, uy = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    assert alignment(x, y) == pytest.approx((np.linalg.norm(ux - uy, axis=1) ** 2).mean())
    expected = np.log(np.exp(-2 * pdist(ux, "sqeuclidean")).mean())
    assert uniformity(x, rows_per_block=13) == pytest.approx(expected)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-9)


def test_feature_statistics_refuse_what_has_no_answer():
    for message, call in {
        "collapsed": lambda: effective_rank(torch.ones(5, 3)),
        "2 rows": lambda: effective_rank(torch.ones(1, 3)),
        "must be equal": lambda: alignment(torch.ones(5, 3), torch.ones(4, 3)),
    }.items():
        with pytest.raises(CurationError, match=message):
            call()
