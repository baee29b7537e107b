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
from curation.kmeans.assignment import FEW_DIMENSIONS, CentroidSearch, rows_per_read
from curation.kmeans.frame import Frame

STRATEGIES = ("auto", "kmeans++", "kmeans||", "random")
ROUNDS = 4  # passes of k-means|| after the first, each with about k candidates
SUBSAMPLE = 16  # rows for each cluster in the subsample of "auto"
TRIAL_BUDGET = 2e11  # multiply-adds: beyond it fewer candidates are tried for each centroid, down to one
GREEDY_BYTES = 2 << 30
CHUNK = 1024
PARALLEL_WORK = 2_000_000  # multiply-adds of a step that all threads share


def _greedy(x, transposed, weights, uniforms, chosen):
    """The loop of greedy k-means++; returns how many rows it found before all others were at distance 0.

    ``transposed`` (d, n) serves few dimensions, where the inner loop must run over rows; it is empty otherwise.
    """
    n, dim, n_trials = x.shape[0], x.shape[1], uniforms.shape[1]
    few_dimensions = transposed.shape[1] > 0
    n_chunks = (n + CHUNK - 1) // CHUNK
    closest = np.full(n, np.inf, np.float32)
    distances = np.empty((n_trials, n), np.float32)
    potentials = np.empty((n_chunks, n_trials))
    cumulative = np.cumsum(weights)
    candidates = np.empty(n_trials, np.int64)
    for step in range(len(chosen)):
        if step:
            running = 0.0
            for i in range(n):
                running += weights[i] * closest[i]
                cumulative[i] = running
            if running <= 0:
                return step
        tried = n_trials if step else 1
        for t in range(tried):
            target = uniforms[step, t] * cumulative[-1]
            candidates[t] = min(np.searchsorted(cumulative, target, side="right"), n - 1)
        for chunk in numba.prange(n_chunks):
            low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, n)
            for t in range(tried):
                row = candidates[t]
                if few_dimensions:
                    part = distances[t, low:high]
                    part[:] = np.float32(0)
                    for f in range(dim):
                        value = x[row, f]
                        for i in range(high - low):
                            difference = transposed[f, low + i] - value
                            part[i] += difference * difference
                else:
                    for i in range(low, high):
                        total = np.float32(0)
                        for f in range(dim):
                            difference = x[i, f] - x[row, f]
                            total += difference * difference
                        distances[t, i] = total
                potential = 0.0
                for i in range(low, high):
                    capped = min(distances[t, i], closest[i])
                    distances[t, i] = capped
                    potential += weights[i] * np.float64(capped)
                potentials[chunk, t] = potential
        best, smallest = 0, np.inf
        for t in range(tried):
            potential = 0.0
            for chunk in range(n_chunks):
                potential += potentials[chunk, t]
            if potential < smallest:
                best, smallest = t, potential
        chosen[step] = candidates[best]
        closest[:] = distances[best]
        closest[candidates[best]] = 0
    return len(chosen)


_FAST: Any = {"reassoc", "contract"}
_greedy_on_all_threads = numba.njit(parallel=True, fastmath=_FAST, cache=True)(_greedy)
_greedy_on_one_thread = numba.njit(fastmath=_FAST, cache=True)(_greedy)


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
    n, dim = x.shape
    chosen = np.empty(k, np.int64)
    transposed = np.ascontiguousarray(x.T) if dim <= FEW_DIMENSIONS else np.empty((dim, 0), np.float32)
    # starting threads costs more than a small step itself
    greedy = _greedy_on_all_threads if n * n_trials * dim > PARALLEL_WORK else _greedy_on_one_thread
    found = greedy(np.ascontiguousarray(x), transposed, weights.astype(np.float64), rng.random((k, n_trials)), chosen)
    if found < k:
        raise CurationError(f"only {found} distinct rows for k={k} clusters; lower k or remove duplicates")
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
