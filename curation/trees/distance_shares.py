"""The share of a subset that each point gets from clusters by distance: k-means levels with resampling, and linkage.

Where `communities` knows ranks of neighbours, these know how far apart they are. They are wrong elsewhere, so
that a little of them in the mean makes it better: wide concepts win here, compact ones there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage

from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.sampling import balanced_targets
from foundation.errors import CurationError

ROWS_PER_CELL = 8
FANOUT, LEAST_CLUSTERS, MOST_LEVELS = 4, 10, 4  # of the k-means levels
RESAMPLES = 10  # of the levels above the first: m of the paper
PART = 0.25  # of the points that the balanced sample, whose expectation the shares are, takes
GRAIN = 1_000  # a point is so many parts, for a sampling of whole numbers to come close to its expectation
LIKE_UNIFORM = 0.6  # KL of uniform to shares, in nats, at most: beyond it they rather err


def expected_shares(nested: Sequence[Int[np.ndarray, "n"]], part: float = PART) -> Float[np.ndarray, "n"]:
    """Shares of points as a balanced sample of some of them takes each; sum to 1.

    Args:
        nested: cluster of every point, fine to coarse, numbered without gaps, each within one of the next.
        part: of the points, in the sample.
    """
    n = len(nested[0])
    rng = np.random.default_rng(0)  # where parts of a point go to
    above, targets = np.zeros(n, np.int64), np.array([round(part * n * GRAIN)])
    for labels in reversed(nested):
        parent = np.zeros(int(labels.max()) + 1, np.int64)
        parent[labels] = above
        targets = balanced_targets(parent, np.bincount(labels) * GRAIN, targets, rng)
        above = labels
    share = (targets / np.bincount(nested[0]))[nested[0]]
    return share / share.sum()


def tempered(shares: Float[np.ndarray, "n"], most: float = LIKE_UNIFORM) -> Float[np.ndarray, "n"]:
    """Shares to the power, at most 1, at which the KL divergence of uniform to them is no more than ``most`` nats."""

    def at(power: float) -> tuple[np.ndarray, float]:
        found = np.maximum(shares, 1e-12 / len(shares)) ** power
        found /= found.sum()
        return found, float(-np.log(found * len(found)).mean())

    if at(1.0)[1] <= most:
        return at(1.0)[0]
    low, high = 0.0, 1.0
    for _halving in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[1] > most else (middle, high)
    return at(low)[0]


def level_sizes(n_points: int) -> list[int]:
    """Clusters of each k-means level, fine to coarse."""
    sizes = [max(2, n_points // ROWS_PER_CELL)]
    while len(sizes) < MOST_LEVELS and sizes[-1] // FANOUT >= LEAST_CLUSTERS:
        sizes.append(sizes[-1] // FANOUT)
    return sizes


@dataclass(frozen=True)
class DistanceShares:
    """Shares of points by clusters of several kinds; each sums to 1.

    Attributes:
        two_levels: by the two finest k-means levels: nearly even over the support where that has few dimensions.
        levels: by all k-means levels.
        linkage: by complete linkage of the cells of the finest, cut into 2, 4, 8, ...
    """

    two_levels: Float[np.ndarray, "n"]
    levels: Float[np.ndarray, "n"]
    linkage: Float[np.ndarray, "n"]


def distance_shares(x: Float[np.ndarray, "n d"], metric: str, seed: int) -> DistanceShares | None:
    """Shares by k-means levels and by linkage; None: too few distinct points for cells.

    Args:
        x: (n, d) float32; the linkage takes n² / 128 distances of memory.
        metric: "l2" or "cosine".
    """
    sizes = level_sizes(len(x))
    if len(x) < 2 * LEAST_CLUSTERS:
        return None
    resamples = [0] + [RESAMPLES] * (len(sizes) - 1)
    try:
        tree = HierarchicalKMeans(sizes, resamples, metric=metric, max_iterations=30, seed=seed, progress=False).fit(x)
    except CurationError:  # fewer distinct points than cells
        return None
    nested = [np.asarray(tree.levels[0].assignment)]
    for level in tree.levels[1:]:
        nested.append(np.asarray(level.assignment)[nested[-1]])
    cells = nested[0]
    joined = linkage(np.asarray(tree.levels[0].centroids), "complete")
    cuts = [2**power for power in range(1, sizes[0].bit_length()) if 2**power < sizes[0]]
    by_linkage = [cells, *(fcluster(joined, cut, "maxclust")[cells] - 1 for cut in reversed(cuts))]
    shares = [
        tempered(expected_shares([np.unique(labels, return_inverse=True)[1] for labels in levels]))
        for levels in (nested[:2], nested, by_linkage)
    ]
    return DistanceShares(*shares)
