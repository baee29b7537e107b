"""Galleries: which clusters are shown, and which of their rows. What lies in a cluster is seen, not read."""

from typing import Any

import numpy as np
from jaxtyping import Int

from curation.pages.examples import Examples, jpeg
from curation.trees.tree import ClusterTree


def contact_sheet(pool: Any, rows: Int[np.ndarray, "m"], columns: int = 12, size: int = 64, gap: int = 3) -> bytes:
    """JPEG of the pictures of some pool rows, left to right, top to bottom; unreadable ones stay grey."""
    return jpeg(Examples(pool).sheet(rows, columns, size, gap))


def gallery_clusters(tree: ClusterTree, level: int, n: int, seed: int = 0, min_rows: int = 1) -> Int[np.ndarray, "c"]:
    """Up to n clusters of at least ``min_rows`` rows, those of most rows first.

    Where there are more, a third are the largest, a third are drawn at random, a third are the smallest.
    """
    counts = tree.row_counts(level)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts >= min_rows)]
    if len(order) <= n:
        return order
    ends = max(1, n // 3)
    chance = np.random.default_rng(seed).choice(np.arange(ends, len(order) - ends), n - 2 * ends, replace=False)
    return np.concatenate([order[:ends], order[np.sort(chance)], order[-ends:]])


def examples_of(
    tree: ClusterTree, level: int, clusters: Int[np.ndarray, "c"], n: int, seed: int = 0
) -> list[Int[np.ndarray, "m"]]:
    """Up to n rows beneath each cluster: at level 1 the closest to the centroid first, above at random."""
    slots = np.full(len(tree.levels[level].centroids), -1)
    slots[clusters] = np.arange(len(clusters))
    slot_of = slots[tree.row_clusters(level)]
    rows = np.flatnonzero(slot_of >= 0)
    slot_of = slot_of[rows]
    if level == 0:
        order = np.lexsort((np.asarray(tree.levels[0].distance)[rows], slot_of))
        return [part[:n] for part in _split(rows[order], slot_of, len(clusters))]
    members = _split(rows[np.argsort(slot_of, kind="stable")], slot_of, len(clusters))
    chance = [np.random.default_rng([seed, level, int(cluster)]) for cluster in clusters]
    return [rng.choice(part, min(n, len(part)), replace=False) for rng, part in zip(chance, members, strict=True)]


def _split(ordered: Int[np.ndarray, "n"], slot_of: Int[np.ndarray, "n"], k: int) -> list[np.ndarray]:
    return np.split(ordered, np.cumsum(np.bincount(slot_of, minlength=k))[:-1]) if k else []


def cluster_examples(tree: ClusterTree, level: int, cluster: int, n: int, seed: int = 0) -> Int[np.ndarray, "m"]:
    """The same for one cluster."""
    return examples_of(tree, level, np.array([cluster]), n, seed)[0]


def closest_rows(tree: ClusterTree, level: int, clusters: Int[np.ndarray, "c"], n: int) -> list[Int[np.ndarray, "m"]]:
    """Up to n rows for each cluster that lie near its centroid.

    At level 1 the closest rows; above, the closest row of each of the n closest children that have one.
    """
    points, slot_of = _closest_points(tree, level, clusters, n)
    for below in range(level - 1, -1, -1):
        found, owner = _closest_points(tree, below, points, 1)
        points, slot_of = found, slot_of[owner]
    return _split(points, slot_of, len(clusters))


def _closest_points(
    tree: ClusterTree, level: int, clusters: Int[np.ndarray, "c"], n: int
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """The n points of each cluster closest to its centroid, by cluster, and the position of their cluster."""
    slots = np.full(len(tree.levels[level].centroids), -1)
    slots[clusters] = np.arange(len(clusters))
    slot_of = slots[np.asarray(tree.levels[level].assignment)]
    wanted = slot_of >= 0
    if level:
        wanted &= tree.row_counts(level - 1) > 0
    points = np.flatnonzero(wanted)
    slot_of = slot_of[points]
    order = np.lexsort((np.asarray(tree.levels[level].distance)[points], slot_of))
    points, slot_of = points[order], slot_of[order]
    first = np.searchsorted(slot_of, np.arange(len(clusters)))
    kept = np.arange(len(points)) - first[slot_of] < n
    return points[kept], slot_of[kept]
