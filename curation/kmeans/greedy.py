"""Greedy k-means++ on rows in memory: each time the best of a few rows drawn in proportion to weight x D^2.

A row is measured against a candidate only where a product says that the candidate may be closer than what was chosen
before: the product's error is bounded as in `curation.kmeans.assignment`, so the choices are those of measuring all.
"""

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int

from curation.kmeans.assignment import FEW_DIMENSIONS, FEW_TERMS, SUM_ROUNDOFF, bits, slack_terms
from curation.kmeans.tiles import (
    INTEGERS,
    MOST_DIMENSIONS,
    PAIRS,
    PANEL,
    TILE_ROWS,
    PackedCentroids,
    multiply_block,
    pack_row,
    round_centroids,
)
from foundation.errors import CurationError

CHUNK = 1024  # rows of one thread at a time, and of one partial sum
ROOM = 2.0**-20  # of the largest squared norm: the comparison of scores is made in float32
PARALLEL_WORK = 2_000_000  # multiply-adds of a step that all threads share
STRETCH = 2_000_000_000  # multiply-adds of a call of the loop


@numba.njit(fastmath={"reassoc", "contract"}, inline="always")
def _drawn(target, sums, weights, closest):
    """First row up to which weights * closest sum to more than the target; ``sums`` are those of the chunks."""
    before, chunk = 0.0, 0
    while chunk < len(sums) - 1 and before + sums[chunk] <= target:
        before += sums[chunk]
        chunk += 1
    drawn = low = chunk * CHUNK
    for i in range(low, min(low + CHUNK, len(closest))):
        share = weights[i] * np.float64(closest[i])
        if share > 0:
            before += share
            drawn = i
            if before > target:
                break
    return drawn


@numba.njit(fastmath={"contract"})
def _cap(distances, closest, weights):
    """Lower the distances to ``closest`` where they are larger, and add them up by weight.

    Eight sums side by side, in an order that no compiler changes: the same on every CPU.
    """
    whole = len(distances) // 8 * 8
    for i in range(len(distances)):
        distances[i] = closest[i] if closest[i] < distances[i] else distances[i]
    a, b, c, d, e, f, g, h = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(0, whole, 8):
        a += weights[i] * np.float64(distances[i])
        b += weights[i + 1] * np.float64(distances[i + 1])
        c += weights[i + 2] * np.float64(distances[i + 2])
        d += weights[i + 3] * np.float64(distances[i + 3])
        e += weights[i + 4] * np.float64(distances[i + 4])
        f += weights[i + 5] * np.float64(distances[i + 5])
        g += weights[i + 6] * np.float64(distances[i + 6])
        h += weights[i + 7] * np.float64(distances[i + 7])
    rest = 0.0
    for i in range(whole, len(distances)):
        rest += weights[i] * np.float64(distances[i])
    return ((a + b) + (c + d)) + ((e + f) + (g + h)) + rest


def _greedy(x, transposed, packed, half_norms, worth, terms, weights, uniforms, start, stop, closest, chosen, left):
    """Choices ``start`` to ``stop`` of greedy k-means++; returns how many rows there are before all others are at
    distance 0.

    ``closest`` (n,) is the squared distance to what was chosen before, infinite at first. ``left`` (k,) gets the
    weighted sum of them after each choice.

    ``transposed`` (d, n) serves few dimensions, where the inner loop must run over rows; it is empty otherwise. Then
    ``packed``, ``half_norms`` and ``worth`` (the step of `PackedCentroids`) have the rows, ``terms`` the error of their
    scores.
    """
    n, dim, n_trials = x.shape[0], x.shape[1], uniforms.shape[1]
    few_dimensions = transposed.shape[1] > 0
    n_chunks = (n + CHUNK - 1) // CHUNK
    distances = np.empty((n_trials, n), np.float32)
    potentials = np.empty((n_chunks, n_trials))
    ones = np.ones(n, np.float32)
    drawn_by, sums = closest if start else ones, np.empty(n_chunks)  # sums of weights * drawn_by, of the chunks
    for chunk in range(n_chunks):
        low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, n)
        sums[chunk] = _cap(drawn_by[low:high], closest[low:high], weights[low:high])
    left_over = left[start - 1] if start else sums.sum()
    candidates = np.empty(n_trials, np.int64)
    tiles = np.zeros(((n_trials + TILE_ROWS - 1) // TILE_ROWS, packed.shape[1], TILE_ROWS), packed.dtype)
    one, reach = np.zeros(packed.shape[1], packed.dtype), np.empty(n_trials, np.float32)
    units = np.ones(len(tiles) * TILE_ROWS, np.float32)
    # |x - c|^2 = 2 (|c|^2 / 2 - score): a score below reach - within * closest cannot be that of a closer one
    within = np.float32(0.5 * (1 + 2 * (dim + FEW_TERMS) * SUM_ROUNDOFF))
    for step in range(start, stop):
        if step and left_over <= 0:
            return step
        tried = n_trials if step else 1
        for t in range(tried):
            candidates[t] = _drawn(uniforms[step, t] * left_over, sums, weights, closest if step else ones)
            if step and not few_dimensions:
                norm, residual, unit = pack_row(x[candidates[t]], one, tiles, t)
                units[t] = unit * worth
                half = 0.0
                for f in range(dim):
                    half += np.float64(x[candidates[t], f]) * np.float64(x[candidates[t], f]) / 2
                reach[t] = half - (norm * terms[0] + residual * terms[1] + terms[2]) / 2
        for chunk in numba.prange(n_chunks):
            low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, n)
            first, last = low // PANEL, (high + PANEL - 1) // PANEL
            scores = np.empty((last - first, len(tiles) * TILE_ROWS, PANEL), np.float32)
            maxima = np.empty((len(tiles) * TILE_ROWS, last - first), np.float32)
            if step and not few_dimensions:
                norms = half_norms[first * PANEL : last * PANEL]
                multiply_block(tiles, tried, packed[first:last], norms, units, scores, maxima)
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
                        product = scores[(i - low) // PANEL, t, (i - low) % PANEL]
                        if step and product - half_norms[i] < reach[t] - within * closest[i]:
                            distances[t, i] = closest[i]
                            continue
                        total = np.float32(0)
                        for f in range(dim):
                            difference = x[i, f] - x[row, f]
                            total += difference * difference
                        distances[t, i] = total
                potentials[chunk, t] = _cap(distances[t, low:high], closest[low:high], weights[low:high])
        best, smallest = 0, np.inf
        for t in range(tried):
            potential = 0.0
            for chunk in range(n_chunks):
                potential += potentials[chunk, t]
            if potential < smallest:
                best, smallest = t, potential
        chosen[step], left[step] = candidates[best], smallest
        left_over, sums[:], closest[:] = smallest, potentials[:, best], distances[best]
        closest[candidates[best]] = 0
    return stop


_FAST: Any = {"reassoc", "contract"}
_greedy_on_all_threads: Any = numba.njit(parallel=True, fastmath=_FAST, cache=True)(_greedy)
_greedy_on_one_thread: Any = numba.njit(fastmath=_FAST, cache=True, nogil=True)(_greedy)


def _choices(
    greedy: Any, x: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "n"], uniforms: Float[np.ndarray, "k t"]
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Rows chosen, and what is left after each; back in Python about once a second, where Ctrl-C is heard."""
    k, n_trials = uniforms.shape
    prepared, closest = _prepare(x), np.full(len(x), np.inf, np.float32)
    chosen, left, found = np.empty(k, np.int64), np.empty(k), 0
    stride = max(1, STRETCH // max(x.size * n_trials, 1))
    for start in range(0, k, stride):
        stop = min(start + stride, k)
        found = greedy(*prepared, weights, uniforms, start, stop, closest, chosen, left)
        if found < stop:
            break
    return chosen[:found], left[:found]


def _prepare(x: Float[np.ndarray, "n d"]) -> tuple[Any, ...]:
    """What `_greedy` needs of the rows: x, transposed, packed, half_norms, worth, terms."""
    x = np.ascontiguousarray(x)
    dim = x.shape[1]
    if dim <= FEW_DIMENSIONS:
        nothing = np.empty((0, 0, PANEL), np.float32), np.empty(0, np.float32), np.float32(1), np.zeros(3)
        return x, np.ascontiguousarray(x.T), *nothing
    rows = torch.from_numpy(x)
    low = rows.bfloat16() if PAIRS and dim >= 32 else rows
    half_norms, residual = np.empty(len(x), np.float32), 0.0
    for start in range(0, len(x), CHUNK):
        here = slice(start, start + CHUNK)
        exact = rows[here].double()
        half_norms[here] = exact.square().sum(dim=1) / 2
        residual = max(residual, float((exact - low[here].double()).square().sum(dim=1).max().sqrt()))
    largest = float(np.sqrt(2 * half_norms.max(initial=0))) * (1 + SUM_ROUNDOFF)
    integers = INTEGERS and not PAIRS and 32 <= dim <= MOST_DIMENSIONS
    if integers:
        rounded, step, residual = round_centroids(x, largest)
        packed = PackedCentroids(rounded, half_norms, step)
    else:
        packed = PackedCentroids(bits(low), half_norms)
    terms = slack_terms(0 if integers else dim, largest, residual)
    terms[2] += ROOM * largest**2
    return x, np.empty((dim, 0), np.float32), packed.values, packed.half_norms, packed.step, terms


def greedy_choices(
    x: Float[np.ndarray, "n d"], wanted: int, rng: np.random.Generator, n_trials: int
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Up to ``wanted`` rows on one thread, and the sum of squared distances that is left after each.

    Fewer where all other rows are at distance 0. More of them begin with the same ones.
    """
    return _choices(_greedy_on_one_thread, x, np.ones(len(x)), rng.random((wanted, n_trials)))


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
    # starting threads costs more than a small step itself
    greedy: Any = _greedy_on_all_threads if n * n_trials * dim > PARALLEL_WORK else _greedy_on_one_thread
    chosen, _ = _choices(greedy, x, weights.astype(np.float64), rng.random((k, n_trials)))
    if len(chosen) < k:
        raise CurationError(f"only {len(chosen)} distinct rows for k={k} clusters; lower k or remove duplicates")
    return chosen
