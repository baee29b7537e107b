"""Measures of balance: how far a pool or a subset is from giving every concept the same weight."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from foundation.errors import CurationError


def _shares(counts: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 1 or not len(counts) or counts.min() < 0 or counts.sum() == 0:
        raise CurationError("counts must be one row of numbers that are not negative, and not all zero")
    return counts / counts.sum()


def kl_to_uniform(counts: Int[np.ndarray, "k"], n_concepts: int | None = None) -> float:
    """KL(counts || uniform over ``n_concepts``) in nats: 0 is balanced, ln(n_concepts) is a single concept.

    Concepts with no rows add nothing to the sum, but they count in ``n_concepts`` (default: the length of counts).
    """
    shares = _shares(counts)
    k = n_concepts or len(shares)
    shares = shares[shares > 0]
    return float(np.sum(shares * np.log(shares * k)))


def effective_number(counts: Int[np.ndarray, "k"]) -> float:
    """exp(entropy): how many equally large concepts would be as diverse."""
    shares = _shares(counts)
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def normalised_entropy(counts: Int[np.ndarray, "k"]) -> float:
    """Entropy over its maximum ln(k): 1 is balanced. A single concept counts as balanced."""
    k = len(np.asarray(counts))
    return 1.0 if k == 1 else float(np.log(effective_number(counts)) / np.log(k))


def gini(counts: Int[np.ndarray, "k"]) -> float:
    """Gini coefficient: 0 is balanced, near 1 one concept has everything."""
    shares = np.sort(_shares(counts))
    k = len(shares)
    return float(np.sum((2 * np.arange(1, k + 1) - k - 1) * shares) / k)


def rarest_decile_coverage(
    pool_counts: Int[np.ndarray, "k"], subset_counts: Int[np.ndarray, "k"]
) -> tuple[float, float]:
    """Of the tenth of the concepts that are rarest in the pool: the share that the subset holds, and of their rows.

    Concepts that the pool lacks are left out; ties in rarity go to the lower concept.

    Returns:
        (share of these concepts with a row in the subset, rows of the subset over rows of the pool in them).
    """
    pool_counts, subset_counts = np.asarray(pool_counts), np.asarray(subset_counts)
    present = np.flatnonzero(pool_counts)
    order = present[np.argsort(pool_counts[present], kind="stable")]
    rarest = order[: max(1, round(len(order) / 10))]
    kept = subset_counts[rarest]
    return float((kept > 0).mean()), float(kept.sum() / pool_counts[rarest].sum())


def kde_kl_to_uniform(
    points: Float[np.ndarray, "n 2"], low: float = -3.0, high: float = 3.0, bandwidth: float = 0.5, step: float = 0.02
) -> float:
    """KL(KDE of the points || uniform) on a grid over [low, high]^2, in nats (paper, section 4.1).

    The kernel is an isotropic Gaussian of standard deviation ``bandwidth``; the density is normalised on the grid. The
    Gaussian factorises, so the grid of the KDE is one matrix product of two one-dimensional kernels.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise CurationError(f"points have shape {points.shape}; the density is estimated for (n, 2)")
    grid = np.arange(low, high + step / 2, step)
    kernels = [np.exp(-0.5 * ((grid[:, None] - points[:, axis]) / bandwidth) ** 2) for axis in (0, 1)]
    density = kernels[0] @ kernels[1].T
    density /= density.sum()
    density = density[density > 0]
    return float(np.sum(density * np.log(density * len(grid) ** 2)))


def balance_row(counts: Int[np.ndarray, "k"], pool_counts: Int[np.ndarray, "k"] | None = None) -> dict[str, Any]:
    """All measures of one distribution over concepts, as a row of a table."""
    row = {
        "rows": int(np.sum(counts)),
        "concepts": int(np.count_nonzero(counts)),
        "kl": kl_to_uniform(counts),
        "entropy": normalised_entropy(counts),
        "gini": gini(counts),
        "effective": effective_number(counts),
    }
    if pool_counts is not None:
        row["rare_covered"], row["rare_kept"] = rarest_decile_coverage(pool_counts, counts)
    return row
