"""The default tree: what it promises of balance, of repeating itself, and of odd pools."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from curation.trees.balance import kl_to_uniform
from curation.trees.communities import (
    Belief,
    CommunitySettings,
    agreement,
    common_variance,
    concept_shares,
    even_shares,
    isolation_shares,
    nested_communities,
)
from curation.trees.community_tree import CommunityTree
from curation.trees.levels import cut_line, equal_levels, first_level, graph_points, grow_levels
from curation.trees.neighbours import cover, nearest, shared_neighbour_graph
from curation.trees.tree import ClusterTree
from foundation.errors import CurationError

ROWS = (Belief("rows", 0.15, 2.0), Belief("rows", 0.7, 1.0), Belief("rows", 1.0, 1.0))


def blobs(sizes: list[int], spreads: list[float], dim: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Concepts of these sizes and spreads, far apart, rows shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = rng.normal(size=(len(sizes), dim)) * 4
    x = centres[labels] + rng.normal(size=(len(labels), dim)) * np.asarray(spreads)[labels, None]
    return x.astype(np.float32), labels


def share_of(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.bincount(labels[rows], minlength=labels.max() + 1) / len(rows)


@pytest.mark.parametrize(
    ("spreads", "least"),
    [([0.2, 1.0, 1.0, 1.0], 0.2), ([1.0, 0.5, 0.5, 0.5], 0.14), ([1.0, 0.2, 0.2, 0.2], 0.1)],
    ids=["compact head", "wide head", "very wide head"],
)
def test_rare_concepts_get_more_than_at_random_however_wide_they_are(spreads: list[float], least: float):
    x, labels = blobs([1400, 200, 200, 200], spreads)  # 10 % each of the rare ones
    weights = CommunityTree(progress=False).fit(x).sampling_weights()
    assert np.bincount(labels, weights=weights)[1:].min() > least


def test_an_even_pool_stays_even():
    x, labels = blobs([300] * 6, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    rows = CommunityTree(progress=False).fit(x).sample(400, seed=1)
    assert kl_to_uniform(np.bincount(labels[rows])) < 0.05


def test_bursts_of_near_duplicates_do_not_eat_the_subset():
    x, labels = blobs([600, 150, 150], [0.5, 0.5, 0.5])
    rng = np.random.default_rng(3)
    head = np.flatnonzero(labels == 0)[:10]
    copies = np.repeat(x[head], 40, axis=0) + rng.normal(0, 0.001, (400, x.shape[1])).astype(np.float32)
    whole = np.concatenate([x, copies])
    rows = CommunityTree(progress=False).fit(whole).sample(300, seed=1)
    assert (rows >= len(x)).mean() < 0.3  # they are 31 % of the pool, and belong to one concept of three


def test_the_same_seed_gives_the_same_tree_from_memory_and_from_disk(tmp_path: Path):
    x, _labels = blobs([300, 60, 60], [0.5, 0.5, 0.5])
    np.save(tmp_path / "x.npy", x)
    there = CommunityTree(seed=5, progress=False).fit(x)
    saved = CommunityTree(seed=5, progress=False, work_dir=tmp_path / "w").fit(tmp_path / "x.npy", tmp_path / "tree")
    assert there.checksum == saved.checksum == ClusterTree.load(tmp_path / "tree").checksum
    assert not (tmp_path / "w").exists()
    assert CommunityTree(seed=6, progress=False).fit(x).checksum != there.checksum


class _Unfitted:
    """Level 1 with its settings, that can't be fitted."""

    def __init__(self, tree: ClusterTree):
        self.settings = {key: tree.settings[key] for key in ("max_iterations", "seed", "metric")}


def test_a_fit_that_was_killed_after_level_1_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x, _labels = blobs([300, 60, 60], [0.5, 0.5, 0.5])
    whole = CommunityTree(progress=False).fit(x)

    def killed(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("curation.trees.community_tree.grow_levels", killed)
    with pytest.raises(KeyboardInterrupt):
        CommunityTree(progress=False, work_dir=tmp_path / "w").fit(x, tmp_path / "tree")
    monkeypatch.undo()
    assert (tmp_path / "w" / "level_1" / "tree.json").exists()
    with pytest.raises(CurationError, match="other settings"):
        CommunityTree(progress=False, seed=1, work_dir=tmp_path / "w").fit(x, tmp_path / "tree")
    monkeypatch.setattr(CommunityTree, "_first", lambda *_args: _Unfitted(whole))  # level 1 is not fitted again
    assert CommunityTree(progress=False, work_dir=tmp_path / "w").fit(x, tmp_path / "tree").checksum == whole.checksum


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_tiny_pools_have_a_tree(n: int):
    x, _labels = blobs([40], [1.0])
    tree = CommunityTree(progress=False).fit(x[:n])
    assert tree.n_rows == n
    assert len(tree.sample(n, seed=0)) == n


def test_rows_that_are_all_alike_are_one_cluster():
    assert len(CommunityTree(progress=False).fit(np.ones((50, 20), np.float32)).levels[0].centroids) == 1


def test_bad_rows_are_named_or_dropped_and_settings_are_checked():
    x, _labels = blobs([200, 40], [0.5, 0.5])
    x[17] = np.nan
    with pytest.raises(CurationError, match="row 17"):
        CommunityTree(progress=False).fit(x)
    tree = CommunityTree(progress=False, bad_rows="drop").fit(x)
    assert tree.settings["dropped_rows"] == 1
    assert 17 not in tree.row_ids
    for wrong in ({"metric": "dot"}, {"clusters": -1}, {"graph_points": 3}, {"seed": -1}, {"max_iterations": 0}):
        with pytest.raises(CurationError):
            CommunityTree(**wrong)


def test_pieces_of_a_line_have_equal_shares_and_every_level_halves_on():
    rng = np.random.default_rng(0)
    shares = rng.random(1000)
    shares /= shares.sum()
    pieces = cut_line(shares, 10)
    sums = np.bincount(pieces, weights=shares)
    assert len(sums) == 10
    assert np.abs(sums - 0.1).max() < shares.max()
    assert (np.diff(pieces) >= 0).all()
    fine, coarse = equal_levels(shares, 10, 8, 2)
    assert len(fine) == 1000
    assert len(coarse) == fine.max() + 1 == 80
    assert coarse.max() == 9
    assert np.abs(np.bincount(coarse[fine], weights=shares) - 0.1).max() < shares.max()


def test_one_cluster_of_nearly_all_the_share_is_one_piece():
    pieces = cut_line(np.array([0.01, 0.97, 0.01, 0.01]), 4)
    assert pieces.tolist() == [0, 1, 2, 2]


def test_even_shares_are_even_at_every_node():
    fine, coarse = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1, 1])
    assert even_shares([fine, coarse]) == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 6, 1 / 6, 1 / 6])
    assert even_shares([np.zeros(4, np.int64)]) == pytest.approx([0.25] * 4)


def test_communities_nest_and_find_components():
    block = np.ones((5, 5)) - np.eye(5)
    graph = csr_array(np.kron(np.eye(4), block))
    nested = nested_communities(graph, (10.0, 1.0, 0.1), 0)
    assert len(np.unique(nested[-1])) == 4
    for fine, coarse in pairwise(nested):
        assert all(len(np.unique(coarse[fine == i])) == 1 for i in np.unique(fine))


def test_shared_neighbours_are_counted_as_sets():
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    distances, found = nearest(x, 6)
    full = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(full, np.inf)
    assert np.array_equal(found, np.argsort(full, axis=1)[:, :6])
    assert distances == pytest.approx(np.sort(full, axis=1)[:, :6], abs=1e-3)
    graph = shared_neighbour_graph(found).toarray()
    for i in range(60):
        for j in found[i]:
            assert graph[i, j] == len(set(found[i]) & set(found[j])) == graph[j, i]


def test_a_point_that_shares_no_neighbours_is_with_those_it_has():
    found = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4], [0, 3]])
    graph = shared_neighbour_graph(found).toarray()
    assert np.array_equal(graph[6], [1, 0, 0, 1, 0, 0, 0])
    assert np.array_equal(graph[:, 6], graph[6])
    assert (graph[:6, :6] == np.kron(np.eye(2), 1 - np.eye(3))).all()


def test_odd_rows_of_a_wide_concept_are_no_concepts():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(1500, 256)), 4 + rng.normal(size=(150, 256))]).astype(np.float32)
    _distances, found = nearest(x, 15)
    alone = [row for row, mine in enumerate(found) if not any(set(mine) & set(found[other]) for other in mine)]
    assert alone
    coarsest = nested_communities(shared_neighbour_graph(found), (10.0, 1.0, 0.1), 0)[-1]
    assert np.bincount(coarsest).tolist() == [1500, 150]


def test_graphs_that_fall_apart_alike_are_believed_in_few_dimensions_too():
    rng = np.random.default_rng(0)
    sizes, scales = [1600, 250, 150], [2.0, 0.6, 0.4]
    concept = np.repeat(range(3), sizes)
    centres = 8 * np.eye(6)[:3]
    x = (centres[concept] + np.repeat(scales, sizes)[:, None] * rng.normal(size=(2000, 6))).astype(np.float32)
    shares = np.bincount(concept, weights=concept_shares(x).of_points)
    assert shares.min() > 0.25
    assert shares.max() < 0.45


def test_partitions_agree_as_far_as_they_say_the_same():
    halves = np.repeat([0, 1], 50)
    assert agreement([halves, 1 - halves, halves]) == pytest.approx(1)
    assert agreement([halves, np.arange(100) % 2]) < 0.05
    assert agreement([halves]) == agreement([halves, np.zeros(100, np.int64)]) == 0


def test_a_cover_leaves_no_point_far_from_its_leader():
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    group, leaders = cover(x, 0.4)
    assert len(leaders) < 300
    assert np.array_equal(group[leaders], np.arange(len(leaders)))
    # a leader that is covered in a later round takes its points along: two radii then, seldom more
    away = np.linalg.norm(x - x[leaders[group]], axis=1)
    assert np.quantile(away, 0.9) < 0.4
    assert away.max() < 1.2


def test_equal_points_have_a_graph():
    x = np.repeat(np.eye(4, dtype=np.float32), 20, axis=0)
    shares = concept_shares(x, CommunitySettings(beliefs=ROWS))
    assert shares.of_points.sum() == pytest.approx(1)
    assert np.bincount(np.repeat(np.arange(4), 20), weights=shares.of_points) == pytest.approx([0.25] * 4, abs=0.05)
    assert 0 <= shares.apart <= 1


def overlapping(scatters: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A frequent and a rare concept, the centre of each within reach of the other's rows."""
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat([0, 1], [1800, 200]))
    x = rng.normal(size=(2000, 16)) * np.asarray(scatters)[labels, None]
    x[:, 0] += 3 + 2.5 * labels
    return x.astype(np.float32), labels


def rare_share(x: np.ndarray, labels: np.ndarray, isolation: tuple[float, float]) -> float:
    settings = CommunitySettings(beliefs=ROWS, isolation=isolation)
    return float(concept_shares(x, settings).of_points[labels == 1].sum())


def test_where_concepts_overlap_isolation_finds_the_rare_one():
    x, labels = overlapping((1.0, 1.0))
    assert rare_share(x, labels, (0.0, 0.8)) > rare_share(x, labels, (0.0, 0.0)) + 0.02


def test_isolation_says_nothing_where_scatter_differs():
    x, labels = blobs([900, 300, 300], [0.3, 1.0, 1.0])
    assert rare_share(x, labels, (0.0, 0.8)) == rare_share(x, labels, (0.0, 0.0))


@pytest.mark.parametrize(("dim", "heard"), [(2, True), (40, False)])
def test_cells_are_heard_in_few_dimensions_alone(dim: int, heard: bool):
    x = np.random.default_rng(0).exponential(size=(600, dim)).astype(np.float32)
    with_cells, without = (
        concept_shares(x, CommunitySettings(beliefs=ROWS, by_cells=weight)).of_points for weight in (12.0, 0.0)
    )
    assert (np.abs(with_cells - without).max() > 1e-4) == heard


def test_what_one_belief_says_alone_is_no_evidence():
    rng = np.random.default_rng(0)
    signal, *noise = np.log(rng.random((5, 4000)) + 0.1)
    alone = [np.exp(one) / np.exp(one).sum() for one in noise]
    alike = [np.exp(signal + one) / np.exp(signal + one).sum() for one in noise]
    assert common_variance(alone) < 0.02
    assert common_variance(alike) == pytest.approx(signal.var(), rel=0.1)
    assert common_variance([alone[0], 1 / alone[0]]) == pytest.approx(noise[0].var())
    assert common_variance(alone[:1]) == np.inf


def test_without_evidence_all_rows_deserve_the_same():
    """Even concepts that overlap: every belief sees groups, each belief others, and none of them is there."""
    rng, labels = np.random.default_rng(0), np.arange(1500) % 10
    x = (rng.normal(size=(10, 20))[labels] + 1.2 * rng.normal(size=(1500, 20))).astype(np.float32)
    believed, doubted = (concept_shares(x, CommunitySettings(doubt=doubt)) for doubt in (0.0, CommunitySettings.doubt))
    assert believed.evidence == 1
    assert doubted.evidence < 0.7
    kl = [kl_to_uniform(np.bincount(labels, weights=found.of_points)) for found in (believed, doubted)]
    assert kl[1] < 0.02 < kl[0]


def test_near_copies_are_one_place_to_isolation():
    x, _labels = blobs([300, 300], [1.0, 1.0])
    burst = x[:1] + np.random.default_rng(0).normal(0, 1e-4, (100, x.shape[1])).astype(np.float32)
    share = isolation_shares(np.concatenate([x, burst]), 0.1, 15)
    assert share.sum() == pytest.approx(1)
    assert share[600:].sum() + share[0] < 3 / 601


@pytest.mark.parametrize("places", [2, 3, 10])
def test_isolation_is_not_asked_where_there_are_few_places(places: int):
    """A pool of many equal rows and a few others: two places have no density to compare."""
    x = np.concatenate([np.zeros((40, 4)), np.eye(4)[np.arange(places - 1) % 4] * np.arange(1, places)[:, None]])
    shares = concept_shares(x.astype(np.float32))
    assert shares.isolation == 0
    assert np.isfinite(shares.of_points).all()


def test_large_pools_show_members_of_every_cluster_to_the_graph():
    labels = np.repeat(np.arange(10), [5, 995, *[1000] * 8])
    rows = graph_points(labels, 10, np.random.default_rng(0), limit=200)
    assert np.bincount(labels[rows]).tolist() == [5, *[20] * 9]
    assert first_level(80) == 10
    assert first_level(160_000) == first_level(160_001) == 20_000
    assert first_level(640_000) == 40_000


def test_upper_levels_need_no_rows_in_memory(tmp_path: Path):
    x, labels = blobs([1400, 200, 200, 200], [0.5] * 4, dim=160)
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    first = CommunityTree(progress=False)._first
    from curation.store.embeddings import open_embeddings

    source = open_embeddings(str(tmp_path / "x.npy"))
    tree = first(source, "cosine").fit(source)
    grown = grow_levels(tree, source, limit=500, progress=False)
    assert grown.settings["graph_points"] <= 500
    assert share_of(labels, grown.sample(400, seed=0)).min() > 0.15
