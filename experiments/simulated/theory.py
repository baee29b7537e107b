"""The 1-D check of the theory: k-means with distance ||.||^s puts centroids with density p^(d / (d + s)).

In one dimension clusters are intervals of the sorted points, so an assignment is one binary search.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.engine.results import Task
from experiments.simulated.data import THEORY_RANGE, theory_density, theory_points
from foundation.errors import CurationError
from foundation.settings import Count, check

COARSEST = 8
NEWTON_STEPS = 4
BINS = 40


@dataclass(frozen=True)
class TheorySettings:
    """Section ``science.studies.theory`` of the config; names as there."""

    powers: list[Count]
    n_points: Count
    n_clusters: Count
    n_seeds: Count

    def __post_init__(self) -> None:
        check(self)


def cell_sizes(x: Float[np.ndarray, "n"], centroids: Float[np.ndarray, "k"]) -> Int[np.ndarray, "k"]:
    """(k,) int64 points nearest to each centroid; both arrays ascending."""
    borders = np.searchsorted(x, (centroids[1:] + centroids[:-1]) / 2)
    return np.diff(borders, prepend=0, append=len(x))


def power_centroids(
    x: Float[np.ndarray, "n"], sizes: Int[np.ndarray, "k"], start: Float[np.ndarray, "k"], power: int
) -> Float[np.ndarray, "k"]:
    """(k,) minimisers of the sum of |x - c|^power in each run of ``sizes`` points; empty runs keep their start.

    Power 2 is the mean. For others Newton steps from the middle of the run: the sum is convex, and with an even
    power it is a polynomial.
    """
    k = len(sizes)
    cluster = np.repeat(np.arange(k), sizes)
    filled = sizes > 0
    mean = np.bincount(cluster, weights=x, minlength=k) / np.maximum(sizes, 1)
    if power == 2:
        return np.where(filled, mean, start)
    last = np.cumsum(sizes)
    first = last - sizes
    low, high = x[np.minimum(first, len(x) - 1)], x[np.maximum(last - 1, 0)]
    centroids = np.where(filled, (low + high) / 2, start)
    width = np.where(filled & (high > low), (high - low) / 2, 1.0)
    for _ in range(NEWTON_STEPS):
        # in units of half the run, so that the 8th power neither vanishes nor overflows
        away = (x - centroids[cluster]) / width[cluster]
        even = np.ones_like(away)
        for _factor in range((power - 2) // 2):  # far faster than away ** (power - 2)
            even *= away * away
        slope = np.bincount(cluster, weights=even * away, minlength=k)
        curvature = (power - 1) * np.bincount(cluster, weights=even, minlength=k)
        step = width * slope / np.where(curvature > 0, curvature, 1.0)
        centroids = np.where(filled, np.clip(centroids + step, low, high), start)
    return centroids


def energy(x: Float[np.ndarray, "n"], centroids: Float[np.ndarray, "k"], power: int) -> float:
    """Mean of |x - nearest centroid|^power."""
    return float(np.mean(np.abs(x - np.repeat(centroids, cell_sizes(x, centroids))) ** power))


def power_kmeans(x: Float[np.ndarray, "n"], k: int, power: int, iterations: int = 60) -> Float[np.ndarray, "k"]:
    """Generalised k-means in one dimension, coarse to fine.

    Lloyd's steps are local: with k clusters a slope of the density across all of them takes about k^2 steps to
    settle. So a few clusters settle first (4 k^2 steps), and their positions, interpolated, start twice as many.

    Args:
        x: (n,) float64, ascending.
        power: s, even.

    Returns:
        (k,) float64 centroids, ascending.

    Raises:
        CurationError: an odd power, or fewer points than clusters.
    """
    if power < 2 or power % 2:
        raise CurationError(f"science.theory.powers holds {power}; every power must be even and at least 2")
    if not 1 <= k <= len(x):
        raise CurationError(f"science.theory.n_clusters is {k} but there are {len(x)} points; lower it")
    counts = [k]
    while counts[-1] > 2 * COARSEST:
        counts.append(-(-counts[-1] // 2))
    centroids = np.quantile(x, (np.arange(counts[-1]) + 0.5) / counts[-1])
    for count in reversed(counts):
        if count != len(centroids):
            ends = np.concatenate([[x[0]], centroids, [x[-1]]])
            known = np.concatenate([[0.0], (np.arange(len(centroids)) + 0.5) / len(centroids), [1.0]])
            centroids = np.interp((np.arange(count) + 0.5) / count, known, ends)
        for _ in range(max(iterations, 4 * COARSEST**2 if count <= 2 * COARSEST else 0)):
            moved = power_centroids(x, cell_sizes(x, centroids), centroids, power)
            if np.array_equal(moved, centroids):
                break
            centroids = moved
    return centroids


def density_exponent(centroids: Float[np.ndarray, "k"]) -> float:
    """Slope of log(density of centroids) over log(p), weighted least squares over equal bins of [-3, 3]."""
    edges = np.linspace(-THEORY_RANGE, THEORY_RANGE, BINS + 1)
    counts = np.histogram(centroids, edges)[0].astype(np.float64)
    fine = np.linspace(-THEORY_RANGE, THEORY_RANGE, BINS * 50, endpoint=False) + THEORY_RANGE / (BINS * 50)
    mass = theory_density(fine).reshape(BINS, 50).mean(axis=1)
    used = counts > 0
    slope, _offset = np.polyfit(np.log(mass[used]), np.log(counts[used]), 1, w=np.sqrt(counts[used]))
    return float(slope)


def histogram_kl(points: Float[np.ndarray, "n"]) -> float:
    """KL(histogram || uniform) in nats over the equal bins of [-3, 3]."""
    shares = np.histogram(points, np.linspace(-THEORY_RANGE, THEORY_RANGE, BINS + 1))[0] / len(points)
    shares = shares[shares > 0]
    return float(np.sum(shares * np.log(shares * BINS)))


def theory_tasks(settings: TheorySettings, seeds: Sequence[int]) -> list[Task]:
    """One task for each (power, seed): exponent of the centroid density, KL to uniform, histogram for the figure."""

    def compute(power: int, seed: int) -> dict[str, Any]:
        x = theory_points(seed, settings.n_points)
        found = power_kmeans(x, settings.n_clusters, power)
        edges = np.linspace(-THEORY_RANGE, THEORY_RANGE, 2 * BINS + 1)
        return {
            "exponent": density_exponent(found),
            "kl": histogram_kl(found),
            "points_kl": histogram_kl(x),
            "energy": energy(x, found, power),
            "empty": int((cell_sizes(x, found) == 0).sum()),
            "histogram": np.histogram(found, edges)[0].tolist(),
        }

    decisive = {key: value for key, value in asdict(settings).items() if key in ("n_points", "n_clusters")}
    return [
        Task("theory", f"s{power}", seed, decisive, lambda power=power, seed=seed: compute(power, seed))  # type: ignore[misc]
        for power in settings.powers
        for seed in seeds[: settings.n_seeds]
    ]
