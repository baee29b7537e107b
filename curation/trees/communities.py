"""Communities of a neighbour graph at several resolutions, and the share of a subset that each point should get.

A cut into groups is worth a share where few edges join the groups. Modularity says it without a scale: two groups stay
apart at resolution g when they share fewer than g times the edges that chance would give them (Reichardt and Bornholdt,
2006). Coarse resolutions find domains, fine ones the concepts within; a subset is shared evenly top-down through them.

What is even is a matter of belief: groups may be those of the points, of places (covers of the points by radius), of
directions, or of cells by distance (`distance_shares`). No one belief is right for every embedding, but each
fails in its own way, and the KL divergence to uniform is convex: the mean of several is never worse than they are on
average, mostly far better. In few dimensions cells by distance are right: clusters of k-means follow the density p as
p^(d / (d + 2)), so that a few levels of them flatten a plane, and next to nothing in twenty dimensions. Where all
graphs fall apart into the same groups, though, these are right even there: of cells a wide group has more than a
compact one.

Concepts that overlap make no communities. There, what lies apart from its like is rare, if all are alike in scatter:
then density is frequency. So as far as the communities found are alike in density, isolation is one more belief.

An even pool has no shares to find, yet every belief finds some: its noise. What several beliefs say alike is evidence,
what one says alone is not. So shares are brought nearer to those of random rows the less the beliefs have in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, csr_matrix
from tqdm import tqdm

from curation.trees.distance_shares import distance_shares
from curation.trees.neighbours import cover, nearest, shared_neighbour_graph

FEW_DIMENSIONS = 16


@dataclass(frozen=True)
class Belief:
    """One view of the points in which communities are looked for.

    Attributes:
        form: of the points: "rows" as they are, "directions" at unit length, "centred" the same about their mean: what
            all rows share, as the rows of one network do, no longer counts.
        radius: of the cover, in median distances to the nearest neighbour; 0: every point stands for itself. Small
            radii see compact concepts beside wide ones, large ones see that a crowd of near-copies is no concept.
        weight: in the mean of all beliefs.
        neighbours: of each place in the graph.
    """

    form: str
    radius: float
    weight: float
    neighbours: int = 15


@dataclass(frozen=True)
class CommunitySettings:
    """How the shares of points are found; chosen on development seeds of the balance benchmark.

    Attributes:
        resolutions: of the modularity, fine to coarse.
        beliefs: to take the mean of. Below `FEW_DIMENSIONS` all are of rows.
        trust: that the coarsest communities are concepts of equal right, see `even_shares`. Islands of few rows among
            many rows that hang together are as often one odd concept of a hundred as one domain of five.
        by_distance: weight of k-means levels and of linkage in the mean (`curation.trees.distance_shares`).
        by_cells: weight of the two finest k-means levels, where points have few dimensions.
        dimension: intrinsic, of the places of the first belief, up to which ``by_cells`` is whole, and from which it is
            nothing.
        agreement: of the graphs (`agreement`) up to which ``by_cells`` is whole, and from which it is nothing.
        isolation: weight of isolation beside the mean of all others, where density differs over the pool, and where it
            is the same.
        isolation_radius: of the cover whose places are apart, in median distances to the nearest neighbour. Where
            nearly all rows are within it of each other, isolation says nothing.
        isolation_neighbours: to the last of which a place's distance is measured.
        scatter: standard deviation of the log density from which isolation has the first of its weights, and up to
            which it has the second.
        scatter_radius: of the cover in which that is measured.
        overlap: share of the edges between communities of the middle resolution, mean over the graphs, up to which
            isolation has no weight, since the communities say it all, and from which it has the whole.
        sharpness: power of the shares in the end, where beliefs agree: a mean of shares that err in different places is
            too flat.
        doubt: variance in common (`common_variance`) at which that power is halved; it falls to 0 with it, and then
            all rows deserve the same.
    """

    resolutions: tuple[float, ...] = (10.0, 1.0, 0.1)
    beliefs: tuple[Belief, ...] = (
        Belief("directions", 0.7, 2.0),
        Belief("directions", 0.15, 4.0, neighbours=40),
        Belief("centred", 0.15, 2.0),
        Belief("rows", 0.15, 2.0),
    )
    trust: float = 0.85
    by_distance: float = 1.0
    by_cells: float = 12.0
    dimension: tuple[float, float] = (7.0, 11.0)
    agreement: tuple[float, float] = (0.9, 0.95)
    isolation: tuple[float, float] = (0.05, 0.9)
    isolation_radius: float = 1.4
    isolation_neighbours: int = 15
    scatter: tuple[float, float] = (1.7, 1.3)
    scatter_radius: float = 0.5
    overlap: tuple[float, float] = (0.06, 0.12)
    sharpness: float = 1.4
    doubt: float = 0.06


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


def _slopes(distances: Float[np.ndarray, "p k"]) -> Float[np.ndarray, "p"]:
    """1 / intrinsic dimension at each place, by maximum likelihood (Levina and Bickel, 2004); 0: of one neighbour.

    Args:
        distances: to the nearest other places, ascending.
    """
    if distances.shape[1] < 2:
        return np.zeros(len(distances))
    apart = np.log(np.maximum(distances, 1e-9))
    return (apart[:, -1:] - apart[:, :-1]).clip(0, 5).mean(axis=1)


def _places(
    x: Float[np.ndarray, "n d"], radius: float, neighbours: int
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "p"], Float[np.ndarray, "p"]] | None:
    """Places of a cover: which is each point's; log distance to the last of their neighbours; 1 / dimension there.

    None: no more places than neighbours, so that nothing is known of density.
    """
    group, leaders = cover(x, radius)
    if len(leaders) <= neighbours:
        return None
    distances, _found = nearest(np.ascontiguousarray(x[leaders]), neighbours)
    return group, np.log(np.maximum(distances[:, -1], 1e-9)), _slopes(distances)


def isolation_shares(x: Float[np.ndarray, "n d"], radius: float, neighbours: int) -> Float[np.ndarray, "n"]:
    """Shares in inverse proportion to density r^-d, by the places of a cover, so that near-copies count as one.

    Args:
        x: (n, d) float32.
        radius: of the cover, in the units of x.
        neighbours: to the last of which r is measured; d is the intrinsic dimension.

    Returns:
        (n,), sum to 1; all the same where there are no more places than neighbours.
    """
    found = _places(x, radius, neighbours)
    if found is None:
        return np.full(len(x), 1 / len(x))
    group, apart, slope = found
    rarity = (apart - apart.mean()) / max(float(slope.mean()), 1e-3)
    share = (np.exp(np.minimum(rarity, 20.0)) / np.bincount(group))[group]
    return share / share.sum()


def density_scatter(
    x: Float[np.ndarray, "n d"], radius: float, neighbours: int, weights: Float[np.ndarray, "n"]
) -> float:
    """Standard deviation of the log density (nats) over weighted points; infinite where nothing is known of it."""
    found = _places(x, radius, neighbours)
    if found is None:
        return np.inf
    group, apart, slope = found
    of_place = np.bincount(group, weights=weights) / weights.sum()
    log_density = apart / max(float(of_place @ slope), 1e-3)
    return float(np.sqrt(of_place @ (log_density - of_place @ log_density) ** 2))


def _points(x: Float[np.ndarray, "n d"], form: str) -> tuple[Float[np.ndarray, "n d"], float]:
    """Points in a form, and the median distance to the nearest that is elsewhere; 0: all are in one place."""
    if form == "centred":
        x = x - x.mean(axis=0)
    if form != "rows":
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    distances, _found = nearest(x, 1)
    apart = distances[distances > 0]
    return x, float(np.median(apart)) if len(apart) else 0.0


def _isolation(
    points: Float[np.ndarray, "n d"],
    unit: float,
    mean: Float[np.ndarray, "n"],
    overlap: float,
    settings: CommunitySettings,
) -> tuple[Float[np.ndarray, "n"], float]:
    """Shares by isolation, and their weight: the more communities overlap, and the more alike density is.

    Density is looked at in the subset that the mean would make.
    """
    neighbours = settings.isolation_neighbours
    apart, mixed = settings.overlap
    needed = float(np.clip((overlap - apart) / (mixed - apart), 0, 1))
    scatter = density_scatter(points, settings.scatter_radius * unit, neighbours, mean) if unit and needed else np.inf
    if np.isinf(scatter):
        return mean, 0.0
    unlike, alike = settings.scatter
    least, most = settings.isolation
    weight = least + (most - least) * float(np.clip((unlike - scatter) / (unlike - alike), 0, 1))
    return isolation_shares(points, settings.isolation_radius * unit, neighbours), needed * weight


def _between(graph: csr_array, labels: Int[np.ndarray, "n"]) -> float:
    """Share of the weight of edges that join different clusters; of a graph without edges 0."""
    rows, columns = graph.nonzero()
    total = graph.data.sum()
    return float(graph.data[labels[rows] != labels[columns]].sum() / total) if total else 0.0


@dataclass(frozen=True)
class _Graph:
    """What the graph of one belief says.

    Attributes:
        nested: communities of the points, fine to coarse.
        share: (n,) of the points.
        between: share of the edges that join communities of the middle resolution.
        dimension: intrinsic, of the places.
    """

    nested: list[Int[np.ndarray, "n"]]
    share: Float[np.ndarray, "n"]
    between: float
    dimension: float


def _graph(
    points: Float[np.ndarray, "n d"], radius: float, neighbours: int, settings: CommunitySettings, seed: int
) -> _Graph | None:
    """Communities of the points by their places in a cover; None: all points are in one place."""
    if radius:
        group, leaders = cover(points, radius)
    else:
        group = leaders = np.arange(len(points))
    places = np.ascontiguousarray(points[leaders])
    k = min(neighbours, len(places) - 1)
    if k < 1:
        return None
    distances, found = nearest(places, k)
    graph = shared_neighbour_graph(found)
    nested = nested_communities(graph, settings.resolutions, seed)
    size = np.bincount(group)
    return _Graph(
        nested=[labels[group] for labels in nested],
        share=(even_shares(nested, size, settings.trust) / size)[group],
        between=_between(graph, nested[len(nested) // 2]),
        dimension=1 / max(float(_slopes(distances).mean()), 1e-3),
    )


def agreement(partitions: Sequence[Int[np.ndarray, "n"]]) -> float:
    """How much partitions of the same points say the same: normalised mutual information, mean over pairs, 0 to 1.

    0 where one of them has a single part, or stands alone: it says nothing.
    """
    from sklearn.metrics import normalized_mutual_info_score

    if len(partitions) < 2 or any(labels.max() == 0 for labels in partitions):
        return 0.0
    return float(np.mean([normalized_mutual_info_score(*pair) for pair in combinations(partitions, 2)]))


def common_variance(shares: Sequence[Float[np.ndarray, "n"]]) -> float:
    """Variance of log shares that beliefs have in common, in nats²: mean size of the covariance of two of them.

    As of any measurements of one thing (Spearman, 1910): what a belief gets wrong by itself is in no covariance. One
    that says the contrary of all others, as a wide cover of compact concepts, sees what they see: signs do not count.
    Infinite for a single belief.

    Args:
        shares: (n,) of each belief, none negative.
    """
    if len(shares) < 2:
        return np.inf
    logs = np.log(np.maximum(np.stack(shares), 1e-9 / len(shares[0])))
    logs -= logs.mean(axis=1, keepdims=True)
    covariances = logs @ logs.T / logs.shape[1]
    return float(np.abs(covariances[np.triu_indices(len(shares), 1)]).mean())


def _of_rows(beliefs: tuple[Belief, ...]) -> tuple[Belief, ...]:
    """The same beliefs of rows as they are; those that are alike then are one, with the weight of all."""
    weights: dict[tuple[float, int], float] = {}
    for belief in beliefs:
        view = belief.radius, belief.neighbours
        weights[view] = weights.get(view, 0.0) + belief.weight
    return tuple(Belief("rows", radius, weight, neighbours) for (radius, neighbours), weight in weights.items())


@dataclass(frozen=True)
class ConceptShares:
    """What each point of a balanced subset deserves.

    Attributes:
        of_points: (n,) sum to 1.
        nested: communities of the points, fine to coarse, of the belief nearest to the mean.
        apart: how far the beliefs are apart: mean total variation to their mean, 0 (all alike) to 1.
        isolation: weight that isolation had.
        overlap: share of the edges that join communities, mean over the graphs.
        evidence: how much of the shares' power was left, 0 to 1, by what the beliefs have in common.
    """

    of_points: Float[np.ndarray, "n"]
    nested: list[Int[np.ndarray, "n"]]
    apart: float
    isolation: float
    overlap: float
    evidence: float


def concept_shares(
    x: Float[np.ndarray, "n d"], settings: CommunitySettings | None = None, seed: int = 0, progress: bool = False
) -> ConceptShares:
    """The share of a balanced subset that each point should get, and communities to order the points by.

    Args:
        x: (n, d) float32 points, n up to about a hundred thousand, d as of `curation.trees.levels.graph_space`.
        settings: the beliefs to take the mean of.
        seed: of the communities.
    """
    settings = settings or CommunitySettings()
    flat = x.shape[1] < FEW_DIMENSIONS
    if flat:  # directions of points in the plane say little of the points
        settings = replace(settings, beliefs=_of_rows(settings.beliefs))
    x = np.ascontiguousarray(x, dtype=np.float32)
    form_of = cache(partial(_points, x))
    graphs, weights = [], []
    for belief in tqdm(settings.beliefs, desc="communities", unit="graph", disable=not progress):
        points, unit = form_of(belief.form)
        found = _graph(points, belief.radius * unit, belief.neighbours, settings, seed)
        if found is not None:
            graphs.append(found)
            weights.append(belief.weight)
    if not graphs:
        return ConceptShares(np.full(len(x), 1 / len(x)), [np.zeros(len(x), np.int64)], 0.0, 0.0, 0.0, 0.0)
    overlap = float(np.average([graph.between for graph in graphs], weights=weights))
    shares = [graph.share for graph in graphs]
    cells = distance_shares(x, "l2" if flat else "cosine", seed) if settings.by_distance or settings.by_cells else None
    if cells is not None:
        few = np.interp(graphs[0].dimension, settings.dimension, (1, 0))
        if few:
            few *= np.interp(agreement([graph.nested[-1] for graph in graphs]), settings.agreement, (1, 0))
        shares += [cells.two_levels, cells.levels, cells.linkage]
        weights += [settings.by_cells * float(few), settings.by_distance, settings.by_distance]
    mean = np.average(shares, axis=0, weights=weights)
    mean /= mean.sum()
    apart = [float(np.abs(share - mean).sum() / 2) for share in shares]
    lonely, isolation = _isolation(*form_of(settings.beliefs[0].form), mean, overlap, settings)
    common = common_variance([*shares[: len(graphs)], *shares[len(graphs) + 1 :]])  # two_levels repeats levels
    evidence = 1 / (1 + settings.doubt / max(common, 1e-12))
    of_points = ((1 - isolation) * mean + isolation * lonely) ** (settings.sharpness * evidence)
    of_points /= of_points.sum()
    nearest_belief = graphs[int(np.argmin(apart[: len(graphs)]))]
    return ConceptShares(of_points, nearest_belief.nested, float(np.mean(apart)), isolation, overlap, evidence)
