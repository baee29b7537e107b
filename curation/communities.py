"""Communities of a neighbour graph at several resolutions, and the share of a subset that each point should get.

A cut into groups is worth a share where few edges join the groups. Modularity says it without a scale: two groups stay
apart at resolution g when they share fewer than g times the edges that chance would give them (Reichardt and Bornholdt,
2006). Coarse resolutions find domains, fine ones the concepts within; a subset is shared evenly top-down through them.

What is even is a matter of belief: concepts may be as many as there are groups, or as there are places (radius covers
of the points), on rows or on directions. No one belief is right for every embedding, but each fails in its own way, and
the KL divergence to uniform is convex: the mean of several is never worse than they are on average, mostly far better.

Concepts that overlap make no communities. There, what lies apart from its like is rare, if all are alike in scatter:
then density is frequency. So as far as the communities found are alike in density, isolation is one more belief.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, csr_matrix
from tqdm import tqdm

from curation.neighbours import cover, nearest, shared_neighbour_graph

FEW_DIMENSIONS = 16


@dataclass(frozen=True)
class CommunitySettings:
    """How the shares of points are found; chosen on development seeds of the balance benchmark.

    Attributes:
        resolutions: of the modularity, fine to coarse.
        radii: of the covers, in median distances to the nearest neighbour; 0: every point stands for itself.
        weights: of the beliefs of each radius in the mean. Small radii see compact concepts beside wide ones, large
            ones see that a crowd of near-copies is no concept.
        neighbours: of each point in the graphs.
        forms: of the points: "rows" as they are, "directions" at unit length.
        trust: that the coarsest communities are concepts of equal right, see `even_shares`. Islands of few rows among
            many rows that hang together are as often one odd concept of a hundred as one domain of five.
        isolation: weight of isolation beside the mean of the others, where density is the same all over the pool.
        isolation_radius: of the cover whose places are apart, in median distances to the nearest neighbour.
        scatter: standard deviation of the log density up to which isolation has its weight, and from which it has none.
    """

    resolutions: tuple[float, ...] = (10.0, 1.0, 0.1)
    radii: tuple[float, ...] = (0.15, 0.7, 1.0)
    weights: tuple[float, ...] = (2.0, 1.0, 1.0)
    neighbours: tuple[int, ...] = (15,)
    forms: tuple[str, ...] = ("directions", "rows")
    trust: float = 0.85
    isolation: float = 0.5
    isolation_radius: float = 0.5
    scatter: tuple[float, float] = (1.5, 1.8)


def communities(graph: csr_array, resolution: float, seed: int) -> Int[np.ndarray, "n"]:
    """Community of every node, numbered from 0, by the Louvain algorithm (Blondel et al., 2008), nodes in random order.

    The Leiden algorithm of the same library draws from C's global random numbers, so that no seed repeats it.
    """
    from sknetwork.clustering import Louvain

    if graph.nnz == 0:
        return np.arange(graph.shape[0])
    found = Louvain(resolution, shuffle_nodes=True, return_probs=False, return_aggregate=False, random_state=seed)
    return np.unique(found.fit_predict(csr_matrix(graph)), return_inverse=True)[1].astype(np.int64)


def nested_communities(graph: csr_array, resolutions: tuple[float, ...], seed: int) -> list[Int[np.ndarray, "n"]]:
    """Communities at each resolution, fine to coarse: those of one are the nodes of the next, so that they nest."""
    found: list[np.ndarray] = []
    current = np.arange(graph.shape[0])
    for resolution in resolutions:
        merged = communities(graph, resolution, seed)
        current = merged[current]
        found.append(current)
        nodes, k = len(merged), int(merged.max()) + 1
        member = csr_array((np.ones(nodes, np.float32), (merged, np.arange(nodes))), shape=(k, nodes))
        graph = (member @ graph @ member.T).tocsr()
    return found


def even_shares(
    levels: list[Int[np.ndarray, "n"]], rows: Int[np.ndarray, "n"] | None = None, trust: float = 1.0
) -> Float[np.ndarray, "n"]:
    """Share of every point when each node of a nested partition gives its children the same; sums to 1.

    Args:
        levels: cluster of every point, fine to coarse.
        rows: that each point stands for; None: one.
        trust: in the coarsest clusters: 1 gives each the same, 0 as many as its rows are, between r^(1 - trust).
    """
    n_top = int(levels[-1].max()) + 1
    mass = np.bincount(levels[-1], weights=rows, minlength=n_top).astype(np.float64) ** (1 - trust)
    share, above = mass / mass.sum(), levels[-1]
    for labels in [*levels[:-1][::-1], np.arange(len(levels[0]))]:
        parent = np.zeros(int(labels.max()) + 1, np.int64)
        parent[labels] = above
        share = share[parent] / np.bincount(parent, minlength=len(share))[parent]
        above = labels
    return share


def isolation_shares(
    x: Float[np.ndarray, "n d"], radius: float, neighbours: int, weights: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], float]:
    """Shares in inverse proportion to density, and how unequal it is.

    Density is r^-d, with r the distance to the last of some neighbours and d the intrinsic dimension by maximum
    likelihood (Levina and Bickel, 2004), among the places of a cover, so that near-copies count as one.

    Args:
        x: (n, d) float32.
        radius: of the cover, in the units of x.
        neighbours: to the last of which r is measured.
        weights: (n,) of the points in the second answer.

    Returns:
        (n,) shares that sum to 1, and the standard deviation of the log density (nats); infinite where there are no
        more places than neighbours, for then nothing is known of density.
    """
    group, leaders = cover(x, radius)
    if len(leaders) <= neighbours:
        return np.full(len(x), 1 / len(x)), np.inf
    distances, _found = nearest(np.ascontiguousarray(x[leaders]), neighbours)
    apart = np.log(np.maximum(distances, 1e-9))
    ratios = (apart[:, -1:] - apart[:, :-1]).clip(0, 5).mean(axis=1)
    place_weights = np.bincount(group, weights=weights) / weights.sum()
    rarity = (apart[:, -1] - apart[:, -1].mean()) / max(float(ratios.mean()), 1e-3)
    weighted = apart[:, -1] / max(float(place_weights @ ratios), 1e-3)
    scatter = float(np.sqrt(place_weights @ (weighted - place_weights @ weighted) ** 2))
    share = (np.exp(np.minimum(rarity, 20.0)) / np.bincount(group))[group]
    return share / share.sum(), scatter


def _points(x: Float[np.ndarray, "n d"], form: str) -> tuple[Float[np.ndarray, "n d"], float]:
    """Points in a form, and the median distance to the nearest that is elsewhere; 0: all are in one place."""
    if form == "directions":
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    distances, _found = nearest(x, 1)
    apart = distances[distances > 0]
    return x, float(np.median(apart)) if len(apart) else 0.0


def _with_isolation(
    x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, "n"], settings: CommunitySettings
) -> tuple[Float[np.ndarray, "n"], float]:
    """The shares of the communities, mixed with those of isolation as far as density is even, and its weight."""
    points, unit = _points(x, settings.forms[0])
    if not unit:
        return mean, 0.0
    share, scatter = isolation_shares(points, settings.isolation_radius * unit, max(settings.neighbours), mean)
    alike, unlike = settings.scatter
    weight = settings.isolation * float(np.clip((unlike - scatter) / (unlike - alike), 0, 1))
    return (1 - weight) * mean + weight * share, weight


def _beliefs(
    x: Float[np.ndarray, "n d"], settings: CommunitySettings, seed: int
) -> Iterator[tuple[float, list[np.ndarray], np.ndarray]]:
    """For each belief: its weight, nested communities of the points, and the points' shares."""
    for form in settings.forms:
        points, unit = _points(x, form)
        for radius, weight in zip(settings.radii, settings.weights, strict=True):
            if radius and unit:
                group, leaders = cover(points, radius * unit)
            else:
                group = leaders = np.arange(len(points))
            places = np.ascontiguousarray(points[leaders])
            most = min(max(settings.neighbours), len(places) - 1)
            if most < 1:
                continue
            _distances, found = nearest(places, most)
            size = np.bincount(group)
            for k in sorted({min(k, most) for k in settings.neighbours}):
                graph = shared_neighbour_graph(np.ascontiguousarray(found[:, :k]))
                nested = nested_communities(graph, settings.resolutions, seed)
                share = (even_shares(nested, size, settings.trust) / size)[group]
                yield weight, [labels[group] for labels in nested], share


@dataclass(frozen=True)
class ConceptShares:
    """What each point of a balanced subset deserves.

    Attributes:
        of_points: (n,) sum to 1.
        nested: communities of the points, fine to coarse, of the belief nearest to the mean.
        apart: how far the beliefs are apart: mean total variation to their mean, 0 (all alike) to 1.
        isolation: weight that isolation had.
    """

    of_points: Float[np.ndarray, "n"]
    nested: list[Int[np.ndarray, "n"]]
    apart: float
    isolation: float


def concept_shares(
    x: Float[np.ndarray, "n d"], settings: CommunitySettings | None = None, seed: int = 0, progress: bool = False
) -> ConceptShares:
    """The share of a balanced subset that each point should get, and communities to order the points by.

    Args:
        x: (n, d) float32 points, n up to about a hundred thousand, d as of `curation.levels.graph_space`.
        settings: the beliefs to take the mean of.
        seed: of the communities.
    """
    settings = settings or CommunitySettings()
    if x.shape[1] < FEW_DIMENSIONS:  # directions of points in the plane say little of the points
        settings = replace(settings, forms=("rows",))
    x = np.ascontiguousarray(x, dtype=np.float32)
    n_beliefs = len(settings.forms) * len(settings.radii) * len(settings.neighbours)
    shares, nested, weights = [], [], []
    for weight, levels, share in tqdm(
        _beliefs(x, settings, seed), total=n_beliefs, desc="communities", unit="graph", disable=not progress
    ):
        nested.append(levels)
        weights.append(weight)
        shares.append(share)
    if not shares:
        return ConceptShares(np.full(len(x), 1 / len(x)), [np.zeros(len(x), np.int64)], 0.0, 0.0)
    mean = np.average(shares, axis=0, weights=weights)
    mean /= mean.sum()
    apart = [float(np.abs(share - mean).sum() / 2) for share in shares]
    of_points, isolation = _with_isolation(x, mean, settings)
    return ConceptShares(of_points, nested[int(np.argmin(apart))], float(np.mean(apart)), isolation)
