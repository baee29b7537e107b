"""Balanced sampling: how many points each cluster gives, and which (paper section 3.3).

All levels are vectorised: a level with 100,000 nodes costs one sort, not 100,000 loops.
"""

import numba
import numpy as np
from jaxtyping import Float, Int

from curation.kmeans.update import cluster_starts
from foundation.errors import CurationError

STRATEGIES = ("random", "closest", "furthest")


def balanced_targets(
    parent: Int[np.ndarray, "c"], sizes: Int[np.ndarray, "c"], targets: Int[np.ndarray, "p"], rng: np.random.Generator
) -> Int[np.ndarray, "c"]:
    """Share every parent's target among its children as evenly as their sizes allow.

    For each parent with target N the largest integer cut c with sum_j min(c, s_j) <= N is found; child j gets
    min(c, s_j), and what is left goes as +1 to randomly chosen children with s_j > c.

    Args:
        parent: index of the parent of every child, 0 <= parent < p.
        sizes: how many points every child can give.
        targets: how many points every parent must give; more than its children hold means all of them.

    Returns:
        (c,) int64; for every parent the sum is min(target, sum of sizes).
    """
    parent, sizes, targets = (np.asarray(a, dtype=np.int64) for a in (parent, sizes, targets))
    if not len(parent):
        return np.empty(0, np.int64)
    order = np.lexsort((sizes, parent))
    sorted_parent, sorted_sizes = parent[order], sizes[order]
    first = np.searchsorted(sorted_parent, np.arange(len(targets)))
    n_children = np.diff(np.append(first, len(order)))
    rank = np.arange(len(order)) - first[sorted_parent]
    before = np.cumsum(sorted_sizes) - sorted_sizes
    before -= before[first[sorted_parent]]
    remaining = n_children[sorted_parent] - rank
    target = targets[sorted_parent]
    # a child is given whole while the cut at its own size would still be affordable for it and all larger ones
    whole = before + remaining * sorted_sizes <= target
    n_whole = np.bincount(sorted_parent[whole], minlength=len(targets))
    spent = np.bincount(sorted_parent, weights=sorted_sizes * whole, minlength=len(targets)).astype(np.int64)
    n_cut = n_children - n_whole
    left = np.maximum(targets - spent, 0)
    cut = left // np.maximum(n_cut, 1)
    remainder = np.where(n_cut > 0, left - cut * n_cut, 0)
    given = np.where(whole, sorted_sizes, cut[sorted_parent])
    # random ranks among the cut children of each parent; the whole ones sort last
    key = rng.random(len(order)) + whole
    shuffled = np.lexsort((key, sorted_parent))
    given[shuffled] += rank < remainder[sorted_parent]
    out = np.empty(len(order), np.int64)
    out[order] = given
    return out


def fractional_targets(
    parent: Int[np.ndarray, "c"], sizes: Float[np.ndarray, "c"], targets: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "c"]:
    """The same with a real-valued cut and no remainder: the expected share of every child."""
    order = np.lexsort((sizes, parent))
    sorted_parent, sorted_sizes = parent[order], sizes[order].astype(np.float64)
    first = np.searchsorted(sorted_parent, np.arange(len(targets)))
    n_children = np.diff(np.append(first, len(order)))
    rank = np.arange(len(order)) - first[sorted_parent]
    before = np.cumsum(sorted_sizes) - sorted_sizes
    before -= before[first[sorted_parent]]
    whole = before + (n_children[sorted_parent] - rank) * sorted_sizes <= np.asarray(targets)[sorted_parent]
    n_whole = np.bincount(sorted_parent[whole], minlength=len(targets))
    spent = np.bincount(sorted_parent, weights=sorted_sizes * whole, minlength=len(targets))
    cut = np.maximum(targets - spent, 0) / np.maximum(n_children - n_whole, 1)
    out = np.empty(len(order))
    out[order] = np.where(whole, sorted_sizes, cut[sorted_parent])
    return out


@numba.njit(cache=True)
def _group_rows(labels, starts):
    """Rows in the order of their clusters (a counting sort); ``starts`` (k + 1,) is where each cluster begins."""
    rows = np.empty(len(labels), np.int64)
    position = starts[:-1].copy()
    for row in range(len(labels)):
        cluster = labels[row]
        rows[position[cluster]] = row
        position[cluster] += 1
    return rows


@numba.njit(cache=True)
def _take_random(rows, starts, wanted, uniform, copies):
    """Partial Fisher-Yates in every cluster; with full rounds of copies for targets beyond the size."""
    used = 0
    for cluster in range(len(wanted)):
        start, size = starts[cluster], starts[cluster + 1] - starts[cluster]
        if size == 0:
            continue
        rounds, rest = wanted[cluster] // size, wanted[cluster] % size
        for i in range(rest):
            j = i + int(uniform[used] * (size - i))
            used += 1
            rows[start + i], rows[start + j] = rows[start + j], rows[start + i]
        for i in range(size):
            copies[rows[start + i]] = rounds + (1 if i < rest else 0)


def take_from_clusters(
    labels: Int[np.ndarray, "n"],
    wanted: Int[np.ndarray, "k"],
    strategy: str,
    rng: np.random.Generator,
    distances: Float[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "n"]:
    """How many copies of every row: ``wanted[j]`` in all from cluster j, spread as evenly as possible over its rows.

    Args:
        labels: cluster of every row.
        strategy: which rows go first: "random", "closest" to the centroid or "furthest" (dropped by the authors of
            the paper as harmful; here for ablations). Ties go to the lower row.
        distances: of every row to its centroid, for "closest" and "furthest".

    Returns:
        (n,) int64 copies.
    """
    if strategy not in STRATEGIES:
        raise CurationError(f"strategy {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")
    labels = np.asarray(labels)
    starts = cluster_starts(labels, len(wanted))
    copies = np.zeros(len(labels), np.int64)
    sizes = np.diff(starts)
    if strategy == "random":
        rows = _group_rows(labels, starts)
        n_random = int((wanted % np.maximum(sizes, 1)).sum())
        _take_random(rows, starts, np.asarray(wanted, np.int64), rng.random(n_random), copies)
        return copies
    if distances is None:
        raise CurationError(f"strategy {strategy!r} needs the distances to the centroids")
    rows = _group_rows(labels, starts)
    _sort_within(rows, starts, np.asarray(distances), strategy == "furthest")
    _take_first(rows, starts, np.asarray(wanted, np.int64), copies)
    return copies


@numba.njit(parallel=True, cache=True)
def _sort_within(rows, starts, distances, descending):
    """Order the rows of each cluster by distance; ties by row."""
    for cluster in numba.prange(len(starts) - 1):
        members = rows[starts[cluster] : starts[cluster + 1]]
        key = distances[members]
        order = np.argsort(-key if descending else key, kind="mergesort")
        members[:] = members[order]


@numba.njit(cache=True)
def _take_first(rows, starts, wanted, copies):
    """The first rows of each cluster, in full rounds of copies where the target is beyond its size."""
    for cluster in range(len(wanted)):
        start, size = starts[cluster], starts[cluster + 1] - starts[cluster]
        for i in range(size):
            copies[rows[start + i]] = wanted[cluster] // size + (1 if i < wanted[cluster] % size else 0)


def members_to_resample(
    labels: Int[np.ndarray, "n"],
    distances: Float[np.ndarray, "n"],
    k: int,
    n_members: int,
    strategy: str,
    rng: np.random.Generator,
) -> Int[np.ndarray, "m"]:
    """Sorted rows of the resampled set: ``n_members`` of each cluster, closest to the centroid or at random."""
    sizes = np.bincount(labels, minlength=k)
    copies = take_from_clusters(labels, np.minimum(sizes, n_members), strategy, rng, distances)
    return np.flatnonzero(copies)
