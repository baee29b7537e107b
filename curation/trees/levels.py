"""Upper levels from communities: every cluster of a level deserves the same share of the subset.

Balanced sampling gives the children of a node the same. So where shares are known for the clusters of level 1
(`communities`), upper levels that cut the line of clusters, neighbours beside each other, into pieces of equal
share make the usual tree and the usual sampling hand them out. A group that deserves much is several top clusters.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import leaves_list, linkage

from curation.kmeans import KMeansResult, kmeans
from curation.kmeans.update import cluster_starts
from curation.store.embeddings import Embeddings, open_embeddings
from curation.store.rows import SelectedRows
from curation.trees.communities import CommunitySettings, concept_shares
from curation.trees.neighbours import MAX_DIMENSIONS, leading_axes
from curation.trees.sampling import take_from_clusters
from curation.trees.tree import ClusterTree, Level
from foundation.errors import CurationError

MAX_POINTS = 32_768  # of the neighbour graphs: rows where there are no more, else members of every level-1 cluster
ROWS_PER_BLOCK = 8_192
MAX_LEAVES = 4_000  # of one linkage, which needs the square of it in memory
ROWS_PER_CLUSTER = 8
FANOUT = 8  # clusters of a level within one of the level above
TOP_CLUSTERS = 32
PIECES = TOP_CLUSTERS * FANOUT  # no level-1 cluster deserves more of the subset than one of them


def first_level(n_rows: int) -> int:
    """Clusters of level 1: one for 8 rows up to 160,000 of them, then growing as the square root of the rows."""
    if n_rows <= 160_000:
        return max(1, min(n_rows // ROWS_PER_CLUSTER, n_rows - 1))
    return round(20_000 * (n_rows / 160_000) ** 0.5)


def graph_points(
    labels: Int[np.ndarray, "n"], k: int, rng: np.random.Generator, limit: int = MAX_POINTS
) -> Int[np.ndarray, "m"]:
    """Rows to put into the neighbour graphs: all, or as many of every cluster, drawn at random."""
    n = len(labels)
    if n <= limit:
        return np.arange(n)
    each = np.minimum(np.bincount(labels, minlength=k), max(1, limit // k))
    return np.flatnonzero(take_from_clusters(labels, each, "random", rng))


def graph_space(
    x: Embeddings, rows: Int[np.ndarray, "m"], dimensions: int = MAX_DIMENSIONS
) -> Float[np.ndarray, "m e"]:
    """Some rows in their leading axes about the origin: lengths and angles are kept as far as they fit.

    No centring: the mean of a long-tailed pool is where its head lies. Read in blocks, twice where there are more
    dimensions than are kept.
    """
    blocks = np.array_split(rows, -(-len(rows) // ROWS_PER_BLOCK))
    if x.dim <= dimensions:
        return torch.cat([x.take(block).float().cpu() for block in blocks]).numpy()
    moments = torch.zeros(x.dim, x.dim, dtype=torch.float64)
    for block in blocks:
        part = x.take(block).float().cpu()
        moments += (part.T @ part).double()
    kept = torch.from_numpy(leading_axes(moments.numpy(), dimensions))
    return torch.cat([x.take(block).float().cpu() @ kept for block in blocks]).numpy()


def cluster_shares(
    labels: Int[np.ndarray, "n"], points: Int[np.ndarray, "m"], shares: Float[np.ndarray, "m"], k: int
) -> Float[np.ndarray, "k"]:
    """Share of every level-1 cluster, from those of its points; of a cluster without points, the least there is."""
    found = np.bincount(labels[points], weights=shares, minlength=k)
    found[found == 0] = found[found > 0].min()
    return found / found.sum()


def split_heavy(
    level: Level, x: Embeddings, shares: Float[np.ndarray, "k"], metric: str, seed: int, pieces: int = PIECES
) -> Level:
    """Level 1 with the clusters that deserve more than one piece of the subset split, by k-means, into so many.

    k-means gives a compact concept beside a wide one a single cluster, and balanced sampling gives a cluster no more
    than its part of the node above.
    """
    labels, distance = np.array(level.assignment), np.array(level.distance)
    starts = cluster_starts(labels, len(shares))
    by_cluster = np.argsort(labels, kind="stable")
    centroids = [np.array(level.centroids)]
    k = len(shares)
    for cluster in np.flatnonzero(shares > 1 / pieces):
        rows = by_cluster[starts[cluster] : starts[cluster + 1]]
        wanted = min(int(np.ceil(shares[cluster] * pieces)), len(rows))
        found = _parts(x, rows, wanted, metric, np.random.SeedSequence([seed, 8, int(cluster)]))
        if found is None:
            continue
        parts = len(found.centroids)
        labels[rows] = np.where(found.labels == 0, cluster, k + found.labels - 1)
        distance[rows] = found.distances
        centroids[0][cluster] = found.centroids[0]
        centroids.append(found.centroids[1:])
        k += parts - 1
    if len(centroids) == 1:
        return level
    return Level(np.concatenate(centroids), labels, distance, record=level.record)


def _parts(
    x: Embeddings, rows: Int[np.ndarray, "m"], k: int, metric: str, seed: np.random.SeedSequence
) -> KMeansResult | None:
    """k-means of some rows, of fewer clusters where they are not so many distinct ones; None: they are all alike."""
    members = open_embeddings(x.take(rows)) if len(rows) <= ROWS_PER_BLOCK else SelectedRows(x, rows)
    while k > 1:
        try:
            return kmeans(members, k, seed, max_iterations=10, metric=metric)
        except CurationError:  # fewer distinct rows than clusters: the rows themselves were checked before
            k //= 2
    return None


def _line(points: Float[np.ndarray, "m d"]) -> Int[np.ndarray, "m"]:
    """An order in which neighbours stand together: the leaves of an average linkage, of means where there are many."""
    if len(points) < 3:
        return np.arange(len(points))
    if len(points) <= MAX_LEAVES:
        return leaves_list(linkage(points, "average"))
    parts = kmeans(points, -(-len(points) // (MAX_LEAVES // 4)), max_iterations=10)
    order = [np.flatnonzero(parts.labels == part) for part in _line(parts.centroids)]
    return np.concatenate([rows[_line(points[rows])] for rows in order])


def line_up(
    centroids: Float[np.ndarray, "k d"], communities: Sequence[Int[np.ndarray, "k"]], weights: Float[np.ndarray, "k"]
) -> Int[np.ndarray, "k"]:
    """Clusters in one line: communities stay together, coarse and fine, and those alike stand side by side.

    Args:
        communities: of every cluster, fine to coarse, nested.
    """
    if not communities:
        return _line(centroids)
    coarse = communities[-1]
    ids = np.unique(coarse)
    means = np.stack([np.average(centroids[coarse == i], axis=0, weights=weights[coarse == i]) for i in ids])
    parts = [np.flatnonzero(coarse == i) for i in ids[_line(means.astype(np.float32))]]
    finer = communities[:-1]
    return np.concatenate(
        [rows[line_up(centroids[rows], [labels[rows] for labels in finer], weights[rows])] for rows in parts]
    )


def cut_line(shares: Float[np.ndarray, "k"], pieces: int) -> Int[np.ndarray, "k"]:
    """Piece of every cluster of a line, so that the pieces have nearly equal shares; numbered from 0, none empty.

    A cluster goes where the middle of its share lies: pieces are fewer where single clusters have more than one share.
    """
    middle = (np.cumsum(shares) - shares / 2) / shares.sum()
    piece = np.minimum((middle * pieces).astype(np.int64), pieces - 1)
    return np.unique(piece, return_inverse=True)[1]


def equal_levels(shares: Float[np.ndarray, "k"], top: int, fanout: int, n_levels: int) -> list[Int[np.ndarray, "c"]]:
    """Assignments of the upper levels over a line of clusters, finest first: level 2's is of the k clusters.

    From the top: pieces of equal share, each cut in ``fanout`` pieces of equal share, and so on.
    """
    pieces = [cut_line(shares, top)]
    for _level in range(n_levels - 1):
        above = pieces[-1]
        finer = np.empty(len(shares), np.int64)
        first = 0
        for piece in range(int(above.max()) + 1):
            mine = np.flatnonzero(above == piece)
            own = cut_line(shares[mine], min(fanout, len(mine)))
            finer[mine] = own + first
            first += int(own.max()) + 1
        pieces.append(finer)
    found = [pieces[-1]]
    for fine, coarse in zip(pieces[::-1], pieces[::-1][1:], strict=False):
        parent = np.zeros(int(fine.max()) + 1, np.int64)
        parent[fine] = coarse
        found.append(parent)
    return found


def grow_levels(
    tree: ClusterTree,
    x: Any,
    seed: int = 0,
    settings: CommunitySettings | None = None,
    progress: bool = True,
    limit: int = MAX_POINTS,
) -> ClusterTree:
    """A tree of one level with upper levels on it, in which equal shares balance concepts.

    Args:
        tree: level 1, fitted on ``x``.
        x: (n, d), the rows of the tree in its order; only those of the graphs are read.
        limit: points of the graphs, at most.
    """
    source = open_embeddings(x)
    first = tree.levels[0]
    k = len(first.centroids)
    if k < FANOUT:
        return tree
    labels = np.asarray(first.assignment)
    rng = np.random.default_rng([seed, 7])
    rows = graph_points(labels, k, rng, limit)
    shares = concept_shares(graph_space(source, rows), settings, seed, progress)
    heavy = cluster_shares(labels, rows, shares.of_points, k)
    first = split_heavy(first, source, heavy, tree.settings.get("metric", "l2"), seed)
    labels, k = np.asarray(first.assignment), len(first.centroids)
    weights = cluster_shares(labels, rows, shares.of_points, k)
    order = line_up(np.asarray(first.centroids), _vote(labels, rows, shares.nested, k), weights)
    n_levels = 1 if k < 4 * FANOUT else 2 if k < 16 * FANOUT**2 else 3
    top = max(2, min(TOP_CLUSTERS, k // 4))
    levels = [first]
    position = np.empty(k, np.int64)
    position[order] = np.arange(k)
    for number, line in enumerate(equal_levels(weights[order], top, FANOUT, n_levels)):
        assignment = line[position] if not number else line
        levels.append(_level(levels[-1], assignment))
    found = {
        **tree.settings,
        "upper_levels": "communities",
        "belief_distance": round(shares.apart, 4),
        "isolation": round(shares.isolation, 4),
        "overlap": round(shares.overlap, 4),
        "evidence": round(shares.evidence, 4),
        "graph_points": len(rows),
    }
    found["levels"] = [len(level.centroids) for level in levels]
    for key in ("n_resamples", "sample_sizes"):
        found[key] = [*tree.settings[key], *[0] * (len(levels) - 1)]
    return ClusterTree(levels, found, tree.row_ids)


def _vote(
    labels: Int[np.ndarray, "n"], points: Int[np.ndarray, "m"], nested: Sequence[np.ndarray], k: int
) -> list[Int[np.ndarray, "k"]]:
    """Communities of the clusters, from those of their points: the fine one that most have, and its parents."""
    labels = labels[points]
    fine = nested[0]
    n_fine = int(fine.max()) + 1
    pairs, counts = np.unique(labels * n_fine + fine, return_counts=True)
    order = np.argsort(counts, kind="stable")
    own = np.zeros(k, np.int64)
    own[pairs[order] // n_fine] = pairs[order] % n_fine  # the last write, of the largest count, stays
    found = [own]
    for labels_above in nested[1:]:
        parent = np.zeros(n_fine, np.int64)
        parent[fine] = labels_above
        found.append(parent[own])
    return found


def _level(below: Level, assignment: Int[np.ndarray, "c"]) -> Level:
    """Means of the clusters beneath, and how far each is from its mean."""
    points = np.asarray(below.centroids, np.float64)
    k = int(assignment.max()) + 1
    sizes = np.bincount(assignment, minlength=k)
    centroids = np.zeros((k, points.shape[1]))
    np.add.at(centroids, assignment, points)
    centroids = (centroids / sizes[:, None]).astype(np.float32)
    distance = ((points - centroids[assignment]) ** 2).sum(axis=1).astype(np.float32)
    return Level(centroids, assignment, distance)
