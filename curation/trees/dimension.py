"""Intrinsic dimension of rows: in how many directions they spread around a point, however many numbers a row has."""

import numpy as np
from jaxtyping import Float

FURTHEST_SHARE = 0.1  # of the ratios, left out of the fit as Facco et al. do


def two_nearest_dimension(distances: Float[np.ndarray, "n 2"]) -> float:
    """From the ratio of the distances to the second and the first neighbour (Facco et al., 2017).

    Args:
        distances: to the two nearest other points, the nearest first; points with an equal one are left out.

    Returns:
        The dimension, or NaN where fewer than ten points tell something.
    """
    first, second = distances[:, 0].astype(np.float64), distances[:, 1].astype(np.float64)
    logs = np.sort(np.log(second[first > 0] / first[first > 0]))
    n = len(logs)
    keep = int(n * (1 - FURTHEST_SHARE))
    if keep < 10 or not logs[keep - 1] > 0:
        return float("nan")
    # P(ratio <= r) = 1 - r^-d: a line through the origin
    survival = -np.log1p(-np.arange(1, keep + 1) / n)
    return float((logs[:keep] @ survival) / (logs[:keep] @ logs[:keep]))


def likely_dimension(distances: Float[np.ndarray, "n k"]) -> float:
    """By maximum likelihood (Levina and Bickel, 2004); inverses are averaged, as MacKay and Ghahramani correct it.

    Args:
        distances: to the k >= 3 nearest other points, ascending; points with an equal one are left out.

    Returns:
        The dimension, or NaN where fewer than ten points tell something.
    """
    apart = distances[distances[:, 0] > 0].astype(np.float64)
    k = distances.shape[1]
    if len(apart) < 10 or k < 3:
        return float("nan")
    logs = np.log(apart[:, -1:] / apart[:, :-1]).sum(axis=1)
    mean = float(logs.mean()) / (k - 2)
    return 1 / mean if mean > 0 else float("nan")
