"""Map and galleries: a dot with another cluster's pictures, or a page of ten megabytes, misleads or does not open."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from curation.pages.examples import Examples, jpeg
from curation.pages.gallery import closest_rows, examples_of, gallery_clusters
from curation.pages.map import MOST_DOTS, PoolMap, as_script, dots_of, draw_maps, project
from curation.pages.report import write_report
from curation.trees.subset import Subset
from curation.trees.tree import ClusterTree, Level


def random_tree(n: int, sizes: list[int], dim: int = 8, seed: int = 0, evenness: float = 0.3) -> ClusterTree:
    """A tree of any shape: uneven, with empty clusters."""
    rng = np.random.default_rng(seed)
    levels, points = [], n
    for k in sizes:
        shares = rng.dirichlet(np.full(k, evenness))
        assignment, distance = rng.choice(k, points, p=shares), rng.random(points).astype(np.float32)
        levels.append(Level(rng.normal(size=(k, dim)).astype(np.float32), assignment, distance))
        points = k
    return ClusterTree(levels, {"metric": "l2"})


def test_examples_lie_beneath_their_cluster_closest_first():
    tree = random_tree(3_000, [200, 40, 5])
    for level in range(3):
        of_row, counts = tree.row_clusters(level), tree.row_counts(level)
        clusters = gallery_clusters(tree, level, 9, min_rows=2)
        assert (counts[clusters] >= 2).all()
        assert (np.diff(counts[clusters]) <= 0).all(), "the largest come first"
        for cluster, rows in zip(clusters, examples_of(tree, level, clusters, 6), strict=True):
            assert len(rows) == min(6, counts[cluster])
            assert (of_row[rows] == cluster).all()
            assert len(set(rows.tolist())) == len(rows)
            if level == 0:
                members = np.flatnonzero(of_row == cluster)
                distance = tree.levels[0].distance
                assert distance[rows].tolist() == np.sort(distance[members])[: len(rows)].tolist()


def test_closest_rows_descend_through_the_closest_children():
    tree = random_tree(2_000, [150, 30, 4])
    clusters = np.flatnonzero(tree.row_counts(2))[::-1]
    for cluster, rows in zip(clusters, closest_rows(tree, 2, clusters, 3), strict=True):
        children = np.flatnonzero((tree.levels[2].assignment == cluster) & (tree.row_counts(1) > 0))
        children = children[np.argsort(tree.levels[2].distance[children])][:3]
        expected = []
        for child in children:
            below = np.flatnonzero((tree.levels[1].assignment == child) & (tree.row_counts(0) > 0))
            first = below[np.argmin(tree.levels[1].distance[below])]
            members = np.flatnonzero(tree.levels[0].assignment == first)
            expected.append(members[np.argmin(tree.levels[0].distance[members])])
        assert rows.tolist() == expected


def test_a_map_of_a_large_tree_is_a_fair_sample():
    small, coarse = random_tree(900, [120, 9]), random_tree(20_000, [9_000, 800, 7], evenness=9)
    assert dots_of(small) == (0, pytest.approx(np.flatnonzero(small.row_counts(0))))
    assert dots_of(coarse)[0] == 1
    large = random_tree(30_000, [15_000, 20])
    level, clusters = dots_of(large)
    assert (level, len(set(clusters.tolist()))) == (0, MOST_DOTS)
    assert (large.row_counts(0)[clusters] > 0).all()
    present = np.flatnonzero(large.row_counts(0))
    whole = np.bincount(large.levels[1].assignment[present], minlength=20) / len(present)
    shown = np.bincount(large.levels[1].assignment[clusters], minlength=20) / MOST_DOTS
    assert np.abs(whole - shown).max() <= 1 / MOST_DOTS, "every branch has its share of dots"


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (7, 1), (9, 1), (40, 3), (12, 0)])
def test_any_number_of_centroids_has_places(shape):
    points = np.random.default_rng(0).normal(size=shape) if shape[1] else np.ones((shape[0], 3))
    places = project(points)
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()
    assert places.min() >= 0
    assert places.max() <= 1


def test_what_is_near_stays_near():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 25)
    places = project(rng.normal(size=(6, 16))[group] * 8 + rng.normal(size=(150, 16)))
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).mean() > 0.95


def test_two_trees_of_one_width_share_a_projection():
    """Equal centroids must lie at nearly the same place, or side by side means nothing."""
    one, other = random_tree(500, [60, 6], seed=0), random_tree(500, [60, 6], seed=1)
    other.levels[0].centroids = one.levels[0].centroids.copy()
    maps = [PoolMap(one), PoolMap(other)]
    rows = np.arange(0, 500, 7)
    found = draw_maps(maps, [rows, rows], Examples(), [np.arange(500)] * 2, [None, None])
    places = [{i: (x, y) for i, x, y in zip(f["id"], f["x"], f["y"], strict=True)} for f in found]
    both = sorted(places[0].keys() & places[1].keys())
    assert len(both) > 20
    apart = np.linalg.norm([np.subtract(places[0][i], places[1][i]) for i in both], axis=1)
    assert np.median(apart) < 100, "of a map 1,000 wide"
    assert sum(found[0]["subset"]) == len(rows)
    assert sum(found[0]["pool"]) == 500


def test_json_cannot_end_its_script():
    assert "</" not in as_script({"name": "</script><b>"})


def test_a_picture_keeps_to_its_bytes():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8))
    assert len(jpeg(noise, 60_000)) <= 60_000 < len(jpeg(noise))
    assert Image.open(io.BytesIO(jpeg(noise, 60_000))).size == (400, 400)


@pytest.mark.parametrize("sizes", [[5_000], [2_000, 300, 80, 40, 20, 9, 4, 2]])
def test_trees_of_any_shape_have_a_light_page(sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "curation.pages.map.project", lambda points, *_: np.random.default_rng(0).random((len(points), 2))
    )
    tree = random_tree(20_000, sizes)
    labels = np.random.default_rng(0).zipf(1.2, 20_000) % 3_000
    write_report(tree, Subset.from_rows(tree.sample(900), tree), tmp_path / "r.html", labels=labels, progress=False)
    assert (tmp_path / "r.html").stat().st_size < 2_000_000


@pytest.mark.slow
def test_a_million_rows_take_seconds_and_a_light_page(tmp_path):
    """Hours of clustering must not end in a page that nobody waits for, or that no browser opens."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    tree = random_tree(1_000_000, [100_000, 10_000, 1_000], dim=128, evenness=1)
    noise = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).resize((256, 256)) for _ in range(64)]
    pool = Dataset.from_dict(
        {"image": [{"bytes": jpeg(picture), "path": None} for picture in noise]},
        features=Features({"image": ImageFeature()}),
    ).select(rng.integers(0, 64, 1_000_000))
    labels = rng.zipf(1.3, 1_000_000) % 1_000
    subset = Subset.from_rows(tree.sample(100_000), tree)
    started = time.process_time()
    write_report(tree, subset, tmp_path / "r.html", pool, labels, progress=False)
    seconds, size = time.process_time() - started, (tmp_path / "r.html").stat().st_size
    print(f"{seconds:.1f} s of one core, {size / 1e6:.1f} MB")
    assert seconds < 15
    assert size < 5_000_000
