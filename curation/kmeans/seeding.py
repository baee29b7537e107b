"""Seeding: where Lloyd starts decides where it ends.

Greedy k-means++ (Arthur and Vassilvitskii, 2007) is the quality to reach but costs one pass over the data for each
centroid. On a uniform subsample of a few rows for each cluster it ends at the same inertia at a fraction of the cost:
that is "auto". k-means|| (Bahmani et al., 2012) samples thousands of candidates in each of a few passes, weighs every
candidate by the points nearest to it, and reduces them to k by weighted greedy k-means++.
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

STRATEGIES = ("auto", "kmeans++", "kmeans||", "random")
ROUNDS = 4  # passes of k-means|| after the first, each with about k candidates
SUBSAMPLE = 16  # rows for each cluster in the subsample of "auto"
TRIAL_BUDGET = 2e11  # multiply-adds: beyond it fewer candidates are tried for each centroid, down to one
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
        strategy: "auto" (greedy k-means++ on a uniform subsample), "kmeans++" (greedy over all rows, which must fit in
            memory), "kmeans||", or "random" (distinct rows).

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
    if strategy == "kmeans++" and x.n_rows * x.dim * 4 > GREEDY_BYTES:
        raise CurationError(
            f"seeding kmeans++ would read {x.n_rows} rows {k} times; use seeding auto or kmeans|| for such an input"
        )
    if strategy == "kmeans||":
        candidates, weights = _oversample(x, k, frame, rng, device, precision, progress)
    else:
        if strategy == "kmeans++" or x.n_rows <= SUBSAMPLE * k:
            sample = x.block(0, x.n_rows)
        else:
            sample = x.take(np.sort(rng.choice(x.n_rows, SUBSAMPLE * k, replace=False)))
        candidates = frame.apply(sample)
        weights = np.ones(len(candidates))
    in_memory = candidates.cpu().numpy()
    chosen = greedy_kmeans_plusplus(in_memory, k, weights, rng, _n_trials(len(in_memory), k, x.dim, strategy))
    return torch.from_numpy(in_memory[chosen]).to(device)


def _n_trials(n: int, k: int, dim: int, strategy: str) -> int:
    """2 + ln k candidates for each centroid (Arthur and Vassilvitskii), fewer where that would take too long."""
    wanted = 2 + int(math.log(k))
    return wanted if strategy == "kmeans++" else max(1, min(wanted, int(TRIAL_BUDGET / (n * k * dim))))


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
