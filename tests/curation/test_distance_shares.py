"""Shares by distance: wrong ones would tilt every default tree, without a word."""

from dataclasses import astuple

import numpy as np
import pytest

from curation.trees.distance_shares import distance_shares, expected_shares, level_sizes, tempered
from curation.trees.sampling import balanced_targets, take_from_clusters


def test_shares_are_what_a_balanced_sample_takes_on_average():
    """Against thousands of samples through the same nested clusters."""
    rng = np.random.default_rng(0)
    fine = rng.choice(12, 400, p=np.arange(1, 13) / 78)
    coarse = np.arange(12) // 5
    taken = np.zeros(400)
    for _draw in range(3_000):
        tops = balanced_targets(np.zeros(3, int), np.bincount(coarse[fine]), np.array([100]), rng)
        targets = balanced_targets(coarse, np.bincount(fine, minlength=12), tops, rng)
        taken += take_from_clusters(fine, targets, "random", rng)
    expected = expected_shares([fine, coarse[fine]], 0.25) * 100
    assert np.abs(taken / 3_000 - expected).max() < 0.05
    assert expected.max() <= 1 + 1e-9


@pytest.mark.parametrize("most", [0.2, 0.6])
def test_unequal_shares_are_tempered_and_keep_their_order(most: float):
    shares = np.random.default_rng(0).pareto(1.0, 500)
    shares /= shares.sum()
    found = tempered(shares, most)
    assert -np.log(found * 500).mean() == pytest.approx(most, abs=1e-3)
    assert found.sum() == pytest.approx(1)
    assert np.array_equal(np.argsort(found), np.argsort(shares))
    assert tempered(np.full(9, 1 / 9), most) == pytest.approx(np.full(9, 1 / 9))


@pytest.mark.parametrize(("metric", "dim"), [("cosine", 32), ("l2", 2)])
def test_a_rare_concept_apart_gets_more_than_its_rows(metric: str, dim: int):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], [900, 100]))
    x = ((rng.normal(size=(2, dim)) * 9)[labels] + rng.normal(size=(1000, dim))).astype(np.float32)
    found = distance_shares(x, metric, 0)
    assert found is not None
    for share in (found.two_levels, found.levels, found.linkage):
        assert share.sum() == pytest.approx(1)
        assert share[labels == 1].sum() > 0.2
    again = distance_shares(x, metric, 0)
    assert again is not None
    assert all(np.array_equal(a, b) for a, b in zip(astuple(found), astuple(again), strict=True))


def test_two_levels_flatten_the_plane():
    """A dense and a thin square side by side."""
    rng = np.random.default_rng(0)
    thin = rng.permutation(np.repeat([False, True], [1800, 200]))
    square = np.stack([rng.random(2000) + thin, rng.random(2000)], axis=1).astype(np.float32)
    found = distance_shares(square, "l2", 0)
    assert found is not None
    assert 0.3 < found.two_levels[thin].sum() < 0.6  # of a tenth of the rows


def test_too_few_distinct_points_have_no_cells():
    assert distance_shares(np.ones((100, 4), np.float32), "l2", 0) is None
    assert distance_shares(np.eye(5, dtype=np.float32), "l2", 0) is None
    assert level_sizes(8_000) == [1000, 250, 62, 15]
    assert level_sizes(30) == [3]
