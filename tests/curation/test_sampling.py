"""Balanced sampling: the promise of the product is that every concept gets its share and no row is invented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import ClusterTree, CurationError
from curation.trees.sampling import balanced_targets, fractional_targets, take_from_clusters
from curation.trees.tree import Level


def random_tree(rng: np.random.Generator, n: int, ks: list[int]) -> ClusterTree:
    levels, points = [], n
    for k in ks:
        assignment = np.concatenate([np.arange(k), (rng.zipf(1.5, points - k) - 1) % k])
        rng.shuffle(assignment)
        levels.append(Level(rng.normal(size=(k, 3)).astype(np.float32), assignment, rng.random(points, np.float32)))
        points = k
    return ClusterTree(levels, {})


def slow_cut(sizes: np.ndarray, target: int) -> int:
    """The largest cut by its definition, one step at a time."""
    cut = 0
    while np.minimum(cut + 1, sizes).sum() <= target and cut < sizes.max():
        cut += 1
    return cut


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(0, 2**31))
def test_targets_follow_the_definition_of_the_cut(families: list[list[int]], seed: int):
    rng = np.random.default_rng(seed)
    parent = np.concatenate([np.full(len(family), i) for i, family in enumerate(families)])
    sizes = np.concatenate(families)
    targets = rng.integers(0, 60, len(families))
    shuffle = rng.permutation(len(parent))
    given_ = np.empty(len(parent), np.int64)
    given_[shuffle] = balanced_targets(parent[shuffle], sizes[shuffle], targets, rng)
    for i, family in enumerate(families):
        mine, size = given_[parent == i], np.array(family)
        assert mine.sum() == min(targets[i], size.sum())
        cut = slow_cut(size, targets[i])
        base = np.minimum(cut, size)
        assert ((mine == base) | ((mine == base + 1) & (size > cut))).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["random", "closest", "furthest"]), st.sampled_from([1, 2, 3]))
def test_a_sample_has_its_size_and_no_row_too_often(seed: int, strategy: str, copies: int):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, 400, [40, 8, 3])
    size = int(rng.integers(1, 400 * copies + 1))
    for method in ("balanced", "flat", "random"):
        rows = tree.sample(size, strategy=strategy, max_copies=copies, seed=seed % 1000, method=method)
        assert len(rows) == size
        assert np.unique(rows, return_counts=True)[1].max() <= copies
        assert ((rows >= 0) & (rows < 400)).all()
        np.testing.assert_array_equal(
            rows, tree.sample(size, strategy=strategy, max_copies=copies, seed=seed % 1000, method=method)
        )


def test_balance_holds_at_every_node():
    tree = random_tree(np.random.default_rng(0), 5000, [200, 20, 5])
    rows = tree.sample(600, seed=1)
    targets = np.array([600])
    parents = [tree.levels[1].assignment, tree.levels[2].assignment, np.zeros(5, np.int64)]
    for level in (2, 1, 0):
        counts = np.bincount(tree.row_clusters(level)[rows], minlength=len(tree.levels[level].centroids))
        for node in range(len(targets)):
            mine, sizes = counts[parents[level] == node], tree.row_counts(level)[parents[level] == node]
            unfilled = mine[mine < sizes]
            if len(unfilled):
                # clusters that still have rows got the same number, but for the remainder; full ones got no more
                assert unfilled.max() - unfilled.min() <= 1
                assert (mine[mine == sizes] <= unfilled.max() + 1).all()
        targets = counts


@pytest.mark.parametrize("strategy", ["closest", "furthest"])
def test_ordered_strategies_take_the_ends(strategy: str):
    rng = np.random.default_rng(0)
    labels, distances = rng.integers(0, 7, 300), rng.random(300).astype(np.float32)
    wanted = np.minimum(np.bincount(labels, minlength=7), [5, 0, 1, 50, 60, 3, 3])
    taken = take_from_clusters(labels, wanted, strategy, rng, distances)
    for cluster in range(7):
        inside, outside = distances[(labels == cluster) & (taken > 0)], distances[(labels == cluster) & (taken == 0)]
        assert len(inside) == wanted[cluster]
        if len(inside) and len(outside):
            assert inside.max() <= outside.min() if strategy == "closest" else inside.min() >= outside.max()


def test_random_strategy_is_uniform_within_a_cluster():
    labels = np.zeros(10, np.int64)
    rng = np.random.default_rng(0)
    hits = sum(take_from_clusters(labels, np.array([3]), "random", rng) for _ in range(5000))
    # 1500 expected, standard deviation 32: five of them
    assert np.abs(hits - 1500).max() < 160


def test_weights_are_the_expected_balanced_sample():
    tree = random_tree(np.random.default_rng(3), 1000, [60, 10])
    weights = tree.sampling_weights(size=200)
    drawn = np.zeros(60)
    for seed in range(300):
        drawn += np.bincount(tree.levels[0].assignment[tree.sample(200, seed=seed)], minlength=60)
    expected = np.bincount(tree.levels[0].assignment, weights=weights, minlength=60) * 200
    # rounding to whole rows moves a cluster by less than one row at each of the two levels
    assert np.abs(drawn / 300 - expected).max() < 1
    assert weights.sum() == pytest.approx(1)


def test_unlimited_weights_give_every_child_the_same():
    tree = random_tree(np.random.default_rng(3), 1000, [60, 10])
    top = np.bincount(tree.row_clusters(1), weights=tree.sampling_weights(), minlength=10)
    np.testing.assert_allclose(top, 0.1)


def test_fractional_targets_fill_small_clusters_first():
    found = fractional_targets(np.zeros(3, np.int64), np.array([1.0, 4.0, 100.0]), np.array([10.0]))
    np.testing.assert_allclose(found, [1, 4, 5])


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"size": 401}, "between 1 and 400"),
        ({"size": 0}, "between 1 and 400"),
        ({"size": 5, "strategy": "best"}, "strategy 'best'"),
        ({"size": 5, "method": "best"}, "method 'best'"),
        ({"size": 5, "max_copies": 0}, "max_copies"),
    ],
)
def test_bad_settings_are_named(settings_, message: str):
    with pytest.raises(CurationError, match=message):
        random_tree(np.random.default_rng(0), 400, [10]).sample(**settings_)
