"""Seeding: where Lloyd starts decides where it ends.

Greedy k-means++ (Arthur and Vassilvitskii, 2007) is the quality to reach but costs one pass over the data for each
centroid. k-means|| (Bahmani et al., 2012) samples thousands of candidates in each of a few passes, weighs every
candidate by the points nearest to it, and reduces them to k by weighted greedy k-means++ and a few weighted Lloyd steps.
"""

import math
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.embeddings import Embeddings
from curation.errors import CurationError
from curation.kmeans.assignment import CentroidSearch, rows_per_read
from curation.kmeans.frame import Frame
from curation.kmeans.update import ClusterSums

STRATEGIES = ("auto", "kmeans++", "kmeans||", "random")
ROUNDS = 4  # passes of k-means|| after the first, each with about k candidates
REFINEMENTS = 8  # weighted Lloyd steps over the candidates
GREEDY_LIMIT = 2e11  # multiply-adds that "auto" spends on exact greedy k-means++ before it turns to k-means||
GREEDY_BYTES = 2 << 30
CHUNK = 1024


@numba.njit(parallel=True, fastmath={"reassoc", "contract"}, cache=True)
def _try_candidates(x, weights, closest, candidates, distances, potentials):
    """Squared distance of all rows to each candidate, capped at ``closest``, and its weighted sum by chunk of rows."""
    n, n_candidates = x.shape[0], len(candidates)
    for chunk in numba.prange(potentials.shape[0]):
        for t in range(n_candidates):
            potentials[chunk, t] = 0.0
        for i in range(chunk * CHUNK, min((chunk + 1) * CHUNK, n)):
            for t in range(n_candidates):
                total = np.float32(0)
                for f in range(x.shape[1]):
                    difference = x[i, f] - x[candidates[t], f]
                    total += difference * difference
                capped = min(total, closest[i])
                distances[t, i] = capped
                potentials[chunk, t] += weights[i] * np.float64(capped)


def greedy_kmeans_plusplus(
    x: Float[np.ndarray, "n d"], k: int, weights: Float[np.ndarray, "n"], rng: np.random.Generator, n_trials: int
) -> Int[np.ndarray, "k"]:
    """Rows chosen by greedy k-means++: each time the best of ``n_trials`` rows drawn in proportion to weight x D^2.

    Args:
        x: (n, d) float32, in memory.
        weights: (n,) float64, positive.

    Returns:
        (k,) int64 distinct rows.

    Raises:
        CurationError: fewer than k distinct rows.
    """
    n = len(x)
    chosen = np.empty(k, np.int64)
    closest = np.full(n, np.inf, np.float32)
    distances = np.empty((n_trials, n), np.float32)
    potentials = np.empty((-(-n // CHUNK), n_trials))
    total = np.cumsum(weights)
    for step in range(k):
        if step:
            total = np.cumsum(weights * closest)
            if total[-1] <= 0:
                raise CurationError(f"only {step} distinct rows for k={k} clusters; lower k or remove duplicates")
        tried = 1 if step == 0 else n_trials
        drawn = np.searchsorted(total, rng.random(tried) * total[-1], side="right")
        drawn = np.minimum(drawn, n - 1)
        _try_candidates(x, weights, closest, drawn, distances, potentials)
        best = int(np.argmin(potentials[:, :tried].sum(axis=0)))
        chosen[step] = drawn[best]
        closest[:] = distances[best]
        closest[drawn[best]] = 0
    return chosen


def seed_centroids(
    x: Embeddings,
    k: int,
    frame: Frame,
    rng: np.random.Generator,
    strategy: str = "auto",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    progress: Any = None,
) -> Float[Tensor, "k d"]:
    """k starting centroids, float32 in ``frame``; the same generator state gives the same centroids.

    Args:
        strategy: "kmeans++" (greedy, exact, one pass for each centroid), "kmeans||", "random" (distinct rows), or
            "auto": greedy where it is cheap, else k-means||.

    Raises:
        CurationError: fewer (distinct) rows than k, or greedy k-means++ on an input too large for it.
    """
    if strategy not in STRATEGIES:
        raise CurationError(f"seeding {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")
    if k > x.n_rows:
        raise CurationError(f"k={k} clusters need at least {k} rows but there are {x.n_rows}; lower k")
    if k == x.n_rows:
        return frame.apply(x.block(0, k).to(device))
    if strategy == "random":
        rows = np.sort(rng.choice(x.n_rows, k, replace=False))
        return frame.apply(x.take(rows).to(device))
    n_trials = 2 + int(math.log(k))  # as Arthur and Vassilvitskii suggest
    small = x.n_rows * x.dim * 4 <= GREEDY_BYTES
    cheap = x.n_rows * k * x.dim * n_trials <= GREEDY_LIMIT or x.n_rows <= 4 * k
    if strategy == "kmeans++" and not small:
        raise CurationError(
            f"seeding kmeans++ would read {x.n_rows} rows {k} times; use seeding kmeans|| for an input of this size"
        )
    if strategy == "kmeans++" or (strategy == "auto" and cheap and small):
        rows_in_frame = frame.apply(x.block(0, x.n_rows)).cpu().numpy()
        chosen = greedy_kmeans_plusplus(rows_in_frame, k, np.ones(x.n_rows), rng, n_trials)
        return torch.from_numpy(rows_in_frame[chosen]).to(device)
    candidates, weights = _oversample(x, k, frame, rng, device, precision, progress)
    return _reduce(candidates, weights, k, rng, n_trials, device, precision)


def _oversample(
    x: Embeddings,
    k: int,
    frame: Frame,
    rng: np.random.Generator,
    device: str | torch.device,
    precision: str,
    progress: Any,
) -> tuple[Float[Tensor, "c d"], Float[np.ndarray, "c"]]:
    """Candidates of k-means|| with the number of rows nearest to each.

    The first k are uniform: while few centres exist, D^2 hardly differs from row to row in many dimensions.
    """
    closest = np.full(x.n_rows, np.inf, np.float32)
    nearest = np.zeros(x.n_rows, np.int64)
    rows = np.sort(rng.choice(x.n_rows, k, replace=False))
    found: list[Tensor] = []
    n_found = 0
    for round_ in range(ROUNDS + 1):
        fresh = frame.apply(x.take(rows).to(device))
        search = CentroidSearch(fresh, precision)
        for start, block in x.blocks(rows_per_read(x.dim)):
            labels, distances = search.nearest(frame.apply(block.to(device)))
            stop = start + len(block)
            closer = distances.cpu().numpy() < closest[start:stop]
            nearest[start:stop][closer] = labels.cpu().numpy()[closer] + n_found
            closest[start:stop][closer] = distances.cpu().numpy()[closer]
            if progress is not None:
                progress.set_postfix_str(f"seeding, pass {round_ + 1} of {ROUNDS + 1}")
        found.append(fresh)
        n_found += len(fresh)
        total = closest.sum(dtype=np.float64)
        if total <= 0 or round_ == ROUNDS:
            break
        drawn = rng.random(x.n_rows) * total < k * closest.astype(np.float64)
        rows = np.flatnonzero(drawn)
        if not len(rows):
            rows = np.array([int(closest.argmax())])
    weights = np.bincount(nearest, minlength=n_found).astype(np.float64)
    used = weights > 0
    if used.sum() < k:
        raise CurationError(
            f"only {int(used.sum())} distinct rows were found for k={k} clusters; lower k or remove duplicates"
        )
    return torch.cat(found)[torch.from_numpy(used).to(device)], weights[used]


def _reduce(
    candidates: Float[Tensor, "c d"],
    weights: Float[np.ndarray, "c"],
    k: int,
    rng: np.random.Generator,
    n_trials: int,
    device: str | torch.device,
    precision: str,
) -> Float[Tensor, "k d"]:
    """k centroids from weighted candidates: weighted greedy k-means++, then weighted Lloyd steps."""
    rows = candidates.cpu().numpy()
    # many trials of many centroids would cost more than the Lloyd steps that follow repair
    trials = n_trials if len(rows) * k * rows.shape[1] * n_trials <= GREEDY_LIMIT else 1
    chosen = greedy_kmeans_plusplus(rows, k, weights, rng, trials)
    centroids = candidates[torch.from_numpy(chosen).to(device)].clone()
    weight = torch.from_numpy(weights).to(device)
    for _ in range(REFINEMENTS):
        labels, _distances = CentroidSearch(centroids, precision).nearest(candidates)
        sums = ClusterSums(k, rows.shape[1], candidates.device)
        sums.add(candidates, labels, weight)
        filled = sums.counts > 0
        centroids[filled] = sums.means()[filled]
    return centroids
