"""Neighbour graphs of a few ten thousand points: who is near whom, at every point's own scale.

Edges of a k-nearest-neighbour graph do not know distances, only ranks. So a wide concept and a compact one of as many
points have graphs of the same shape, which distances, and k-means on them, do not see.
"""

import numba
import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

MAX_DIMENSIONS = 128  # of the space in which neighbours are searched
ROUNDS = 5  # of thinning: each sees 30 neighbours of a point


def leading_axes(moments: Float[np.ndarray, "d d"], dimensions: int = MAX_DIMENSIONS) -> Float[np.ndarray, "d e"]:
    """Axes about the origin (no centring: lengths and angles are kept as far as they fit), the strongest first."""
    _values, axes = np.linalg.eigh(moments)
    return np.ascontiguousarray(axes[:, ::-1][:, :dimensions], dtype=np.float32)


def principal_axes(x: Float[np.ndarray, "n d"], dimensions: int = MAX_DIMENSIONS) -> Float[np.ndarray, "n e"]:
    """Rows in their leading axes; as they are where they have no more dimensions."""
    if x.shape[1] <= dimensions:
        return np.ascontiguousarray(x, dtype=np.float32)
    return np.ascontiguousarray(x @ leading_axes((x.T @ x).astype(np.float64), dimensions), dtype=np.float32)


def nearest(x: Float[np.ndarray, "n d"], k: int) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Distances to the k nearest other points, and which they are; exact."""
    import faiss

    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    squared, found = index.search(x, k + 1)
    # a point is its own nearest, but among equal points faiss may name another first
    own = found == np.arange(len(x))[:, None]
    own[~own.any(axis=1), -1] = True
    keep = ~own
    squared, found = squared[keep].reshape(len(x), k), found[keep].reshape(len(x), k)
    return np.sqrt(np.maximum(squared, 0)), found


@numba.njit(cache=True)
def _greedy_cover(order, distances, found, radius):
    """Group of every point: in this order, a point without a group takes all its neighbours that have none."""
    group = np.full(len(found), -1, np.int64)
    leaders = np.empty(len(found), np.int64)
    n = 0
    for point in order:
        if group[point] >= 0:
            continue
        group[point] = n
        for place in range(found.shape[1]):
            if distances[point, place] > radius:
                break
            if group[found[point, place]] < 0:
                group[found[point, place]] = n
        leaders[n] = point
        n += 1
    return group, leaders[:n]


def cover(
    x: Float[np.ndarray, "n d"], radius: float, neighbours: int = 30
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]:
    """Groups of points within ``radius`` of their leader, points in crowded places first.

    Returns:
        (n,) group of every point and (m,) the leader of every group.
    """
    group, leaders = np.arange(len(x)), np.arange(len(x))
    for _round in range(ROUNDS):
        k = min(neighbours, len(leaders) - 1)
        if k < 1:
            break
        distances, found = nearest(np.ascontiguousarray(x[leaders]), k)
        crowded = (distances <= radius).sum(axis=1)
        if not crowded.any():
            break
        merged, kept = _greedy_cover(np.argsort(-crowded, kind="stable"), distances, found, radius)
        done = len(kept) > 0.98 * len(leaders)
        group, leaders = merged[group], leaders[kept]
        if done:
            break
    return group, leaders


@numba.njit(cache=True)
def _shared(found):
    """Neighbours that a point and each of its neighbours share; ``found`` has its rows sorted."""
    n, k = found.shape
    shared = np.zeros((n, k), np.float32)
    for point in range(n):
        for place in range(k):
            other = found[point, place]
            i = j = count = 0
            while i < k and j < k:
                a, b = found[point, i], found[other, j]
                if a == b:
                    count += 1
                    i += 1
                    j += 1
                elif a < b:
                    i += 1
                else:
                    j += 1
            shared[point, place] = count
    return shared


def shared_neighbour_graph(found: Int[np.ndarray, "n k"]) -> csr_array:
    """(n, n) symmetric: how many of their k nearest neighbours two points share, where one is a neighbour of the other.

    Jarvis and Patrick, 1973. Points that share none are not joined, so concepts apart fall into components. A point
    that shares none with anybody, as some do in many dimensions, is no concept: its neighbours have it, at weight 1.
    """
    n, k = found.shape
    weights = _shared(np.sort(found, axis=1))
    # `_shared` counted along sorted rows
    rows, columns = np.repeat(np.arange(n), k), np.sort(found, axis=1).ravel()
    graph = coo_array((weights.ravel(), (rows, columns)), shape=(n, n)).tocsr()
    graph = graph.maximum(graph.T).tocsr()
    graph.eliminate_zeros()
    if len(alone := np.flatnonzero(np.diff(graph.indptr) == 0)):
        ends = np.repeat(alone, k), found[alone].ravel()
        joined = coo_array((np.ones(len(alone) * k, np.float32), ends), shape=(n, n)).tocsr()
        graph = (graph + joined.maximum(joined.T)).tocsr()
    return graph
