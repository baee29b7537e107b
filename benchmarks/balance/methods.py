"""What the benchmark compares: each method takes rows and a size, never a label, and gives the rows of a subset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from benchmarks.balance.pools import Pool
from curation.baselines import clusters_of, d4_subset, flat_kmeans_subset, oracle_subset, semdedup_subset
from curation.kmeans import kmeans
from curation.pools.labels import Labels
from curation.preparation.near_duplicates import near_duplicates
from curation.trees.communities import FEW_DIMENSIONS, communities
from curation.trees.community_tree import CommunityTree
from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.neighbours import nearest, principal_axes, shared_neighbour_graph
from curation.trees.sampling import balanced_targets, take_from_clusters
from curation.trial import RANDOM, try_on_labels, ways
from experiments.simulated.data import NOISE

MAX_ITERATIONS = 30
PAPER_ROWS = (25, 80, 250)  # rows for each cluster of levels 1, 2, 3
NEIGHBOURS = 15
LABELLED = 300  # rows whose labels choose a method

Draw = Callable[[Pool, int, int], Int[np.ndarray, "m"]]
Blind = Callable[[Float[np.ndarray, "n d"], int, int], Int[np.ndarray, "m"]]


@dataclass(frozen=True)
class Method:
    """One way to a subset.

    Attributes:
        title: as the table names it.
        what: it does, for the page.
        draw: (pool, size, seed) -> rows of the subset, at most so many.
        for_bursts: it is tried only where a pool has near-duplicates.
        by_name: it is tried only where its name is asked for: it sees labels, or takes long.
    """

    title: str
    what: str
    draw: Draw
    for_bursts: bool = False
    by_name: bool = False


def blind(draw: Blind) -> Draw:
    """A method that sees the rows, and no label."""
    return lambda pool, size, seed: draw(pool.x, size, seed)


def prepared(draw: Blind) -> Draw:
    """A method behind the removal of near-duplicates."""

    def draw_kept(pool: Pool, size: int, seed: int) -> np.ndarray:
        keep = near_duplicates(pool.x, progress=False).keep
        return keep[draw(np.ascontiguousarray(pool.x[keep]), min(size, len(keep)), seed)]

    return draw_kept


def random_rows(pool: Pool, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 82]).choice(len(pool.x), size, replace=False)


def true_labels(pool: Pool, size: int, seed: int) -> np.ndarray:
    """Balanced over the concepts; no junk."""
    known = np.flatnonzero(pool.concept_of != NOISE)
    return known[oracle_subset(pool.concept_of[known], min(size, len(known)), seed).ids]


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows at unit length; a zero row stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def centred_axes(x: Float[np.ndarray, "n d"], dimensions: int = 64) -> Float[np.ndarray, "n e"]:
    """Rows without their mean, at unit length, in their leading axes."""
    return principal_axes(unit(x - x.mean(axis=0)), dimensions)


def community_tree(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The default."""
    return CommunityTree(seed=seed, progress=False).fit(x).sample(size, seed=seed)


def paper(
    x: np.ndarray, size: int, seed: int, n_resamples: int = 10, form: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """Hierarchical k-means with resampling in three levels."""
    levels = [max(2, len(x) // rows) for rows in PAPER_ROWS]
    return _hierarchy(x if form is None else form(x), size, seed, levels, "l2", n_resamples)


def former_levels(n_rows: int) -> list[int]:
    """8 rows in a cluster of level 1, 4 (of many: 10) in each above."""
    levels = [max(2, n_rows // 8)]
    ratio = 4 if levels[0] < 10_000 else 10
    while len(levels) < 4 and levels[-1] // ratio >= 10:
        levels.append(levels[-1] // ratio)
    return levels


def former_default(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    """What the commands did before communities."""
    return _hierarchy(x, size, seed, former_levels(len(x)), "cosine", 10)


def advised(pool: Pool, size: int, seed: int) -> np.ndarray:
    """What labels of a tenth of the rows, at most `LABELLED`, choose; they count in the measure, too."""
    n = len(pool.x)
    asked = np.random.default_rng([seed, 83]).permutation(n)[: min(LABELLED, n // 10)]
    codes = np.full(n, -1)
    codes[asked] = pool.concept_of[asked]  # junk has no label
    there, codes_there = np.unique(codes[codes >= 0], return_inverse=True)
    codes[codes >= 0] = codes_there
    chosen = try_on_labels(pool.x, size, Labels(codes, list(map(str, there))), seed, progress=False).best
    if chosen.baseline == RANDOM:
        return random_rows(pool, size, seed + 1)
    way = next(way for way in ways(pool.x.shape[1]) if way.name == chosen.name)
    return way.subsets(pool.x, size, seed)[0]


def _hierarchy(x: np.ndarray, size: int, seed: int, levels: list[int], metric: str, n_resamples: int) -> np.ndarray:
    fit = HierarchicalKMeans(
        levels, n_resamples, metric=metric, max_iterations=MAX_ITERATIONS, seed=seed, progress=False
    )
    return fit.fit(np.ascontiguousarray(x, dtype=np.float32)).sample(size, seed=seed)


def flat(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    return flat_kmeans_subset(x, clusters_of("flat", len(x)), size, seed, progress=False).ids


def semdedup(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    return semdedup_subset(x, clusters_of("semdedup", len(x)), size, seed=seed, progress=False).ids


def d4(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    return d4_subset(x, clusters_of("d4", len(x)), size, seed=seed, progress=False).ids


def balanced_draw(nested: Sequence[Int[np.ndarray, "n"]], size: int, seed: int) -> Int[np.ndarray, "size"]:
    """Balanced sampling through clusters of rows, finest first, each within one of the next."""
    rng = np.random.default_rng(seed)
    above, targets = np.zeros(len(nested[0]), np.int64), np.array([size])
    for labels in reversed(nested):
        parent = np.zeros(int(labels.max()) + 1, np.int64)
        parent[labels] = above
        targets = balanced_targets(parent, np.bincount(labels), targets, rng)
        above = labels
    return np.flatnonzero(take_from_clusters(nested[0], targets, "random", rng))


def halving(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Clusters of 8 rows, joined by complete linkage, and the tree cut into 2, 4, 8, ..."""
    from scipy.cluster.hierarchy import fcluster, linkage

    k = max(2, len(x) // 8)
    first = kmeans(unit(x) if x.shape[1] >= FEW_DIMENSIONS else x, k, seed=seed, max_iterations=MAX_ITERATIONS)
    joined = linkage(first.centroids, "complete")
    cuts = [2**power for power in range(1, 20) if 2**power < k]
    nested = [first.labels, *(fcluster(joined, cut, "maxclust")[first.labels] - 1 for cut in reversed(cuts))]
    return balanced_draw([np.unique(labels, return_inverse=True)[1] for labels in nested], size, seed)


def one_graph(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Communities of the rows' shared-neighbour graph at resolution 1, the same number of rows of each."""
    points = principal_axes(unit(x) if x.shape[1] >= FEW_DIMENSIONS else x, 128)
    _distances, found = nearest(points, NEIGHBOURS)
    return balanced_draw([communities(shared_neighbour_graph(found), 1.0, seed)], size, seed)


METHODS = {
    "random": Method("random rows", "each row as likely", random_rows),
    "labels": Method("true labels", "balanced over the concepts themselves: the best there is", true_labels),
    "communities": Method("communities", "the default, `CommunityTree` as it is", blind(community_tree)),
    "paper": Method("paper", "levels n/25, n/80, n/250; 10 resamplings, Euclidean distance", blind(paper)),
    "paper_no_resampling": Method("paper, m = 0", "without resampling", blind(partial(paper, n_resamples=0))),
    "paper_unit": Method("paper, unit rows", "rows at unit length first", blind(partial(paper, form=unit))),
    "paper_axes": Method(
        "paper, PCA-64", "centred, unit length, 64 leading axes first", blind(partial(paper, form=centred_axes))
    ),
    "former": Method(
        "former default", "8 rows a cluster, up to 4 levels, cosine, 10 resamplings", blind(former_default)
    ),
    "flat": Method("flat k-means", "one level of n/50 clusters", blind(flat)),
    "semdedup": Method("SemDeDup", "n/50 clusters; the least repeated quarter", blind(semdedup)),
    "d4": Method("D4", "SemDeDup to 75 %, then the least prototypical", blind(d4)),
    "halving": Method("linkage", "complete linkage of n/8 centroids, cut in 2, 4, 8, ...", blind(halving)),
    "one_graph": Method("one graph", "communities of the rows at resolution 1 alone", blind(one_graph)),
    "communities_prepared": Method(
        "communities, prepared", "the default, near-duplicates removed first, as `curate run`", prepared(community_tree)
    ),
    "paper_prepared": Method("paper, prepared", "the paper's, near-duplicates removed first", prepared(paper), True),
    "advised": Method(
        "labels choose",
        "what `curate advise --labels` names, by labels of a tenth of the rows, at most 300: the default, the paper's "
        "with its switches, one level, SemDeDup, or random rows",
        advised,
        by_name=True,
    ),
}
