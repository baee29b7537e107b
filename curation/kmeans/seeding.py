"""Seeding: where Lloyd starts decides where it ends.

Greedy k-means++ (Arthur and Vassilvitskii, 2007) is the quality to reach but costs one pass over the data for each
centroid. On a uniform subsample of a few rows for each cluster it ends at the same inertia at a fraction of the cost:
that is "auto". For very many centroids it runs within the groups of a coarse clustering of the subsample: 1/sqrt(k) of
the cost, and an inertia that ended 2 % higher on a 64-dimensional long-tailed mixture, since groups cut concepts.
k-means|| (Bahmani et al., 2012) samples thousands of candidates in each of a few passes, weighs every
candidate by the points nearest to it, and reduces them to k by weighted greedy k-means++.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.embeddings import Embeddings
from curation.group import Group
from curation.kmeans.assignment import FEW_DIMENSIONS, CentroidSearch, rows_per_read
from curation.kmeans.frame import Frame
from foundation.errors import CurationError

STRATEGIES = ("auto", "kmeans++", "kmeans||", "random")
ROUNDS = 4  # passes of k-means|| after the first, each with about k candidates
SUBSAMPLE = 16  # rows for each cluster in the subsample of "auto"
GROUPED_WORK = 5e12  # rows of the subsample x centroids x dimensions beyond which "auto" seeds within groups
GROUP_TRIAL_BUDGET = 2e12  # multiply-adds of seeding within groups, as TRIAL_BUDGET
TRIAL_BUDGET = 2e11  # multiply-adds: beyond it fewer candidates are tried for each centroid, down to one
GREEDY_BYTES = 2 << 30
CHUNK = 1024
PARALLEL_WORK = 2_000_000  # multiply-adds of a step that all threads share


def _greedy(x, transposed, weights, uniforms, chosen, left):
    """The loop of greedy k-means++; returns how many rows it found before all others were at distance 0.

    ``left`` (k,) gets the weighted sum of squared distances after each choice.

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
        chosen[step], left[step] = candidates[best], smallest
        closest[:] = distances[best]
        closest[candidates[best]] = 0
    return len(chosen)


_FAST: Any = {"reassoc", "contract"}
_greedy_on_all_threads = numba.njit(parallel=True, fastmath=_FAST, cache=True)(_greedy)
_greedy_on_one_thread = numba.njit(fastmath=_FAST, cache=True, nogil=True)(_greedy)


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
    uniforms = rng.random((k, n_trials))
    found = greedy(np.ascontiguousarray(x), transposed, weights.astype(np.float64), uniforms, chosen, np.empty(k))
    if found < k:
        raise CurationError(f"only {found} distinct rows for k={k} clusters; lower k or remove duplicates")
    return chosen


@numba.njit(cache=True)
def _decreasing(values):
    """The closest sequence that never rises (isotonic regression): one unlucky draw does not hide those after it."""
    means, sizes, n = np.empty(len(values)), np.empty(len(values), np.int64), 0
    for value in values:
        means[n], sizes[n] = value, 1
        n += 1
        while n > 1 and means[n - 1] > means[n - 2]:
            total = sizes[n - 2] + sizes[n - 1]
            means[n - 2] = (means[n - 2] * sizes[n - 2] + means[n - 1] * sizes[n - 1]) / total
            sizes[n - 2] = total
            n -= 1
    out = np.empty(len(values))
    place = 0
    for part in range(n):
        out[place : place + sizes[part]] = means[part]
        place += sizes[part]
    return out


def grouped_kmeans_plusplus(
    x: Float[np.ndarray, "n d"],
    k: int,
    groups: Int[np.ndarray, "n"],
    rng: np.random.Generator,
    n_trials: int,
    progress: Any = None,
) -> Int[np.ndarray, "k"]:
    """Greedy k-means++ within each group of rows; the k choices that lower the sum of squared distances most win.

    For many centroids: with g equal groups it takes 1/g of the operations. A choice is kept if its fall of the sum,
    smoothed to decrease within the group, is among the k largest of all groups, so each group gets as many centroids as
    it needs without a guess of its dimension.

    Returns:
        (k,) int64 distinct rows.

    Raises:
        CurationError: fewer than k distinct rows.
    """
    n, dim = x.shape
    n_groups = int(groups.max()) + 1
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(n_groups + 1))
    root = int(rng.integers(1 << 62))

    def choose(group: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        rows = order[starts[group] : starts[group + 1]]
        mine = np.ascontiguousarray(x[rows])
        wanted = min(wanted, len(rows))
        chosen, left = np.empty(wanted, np.int64), np.empty(wanted)
        transposed = np.ascontiguousarray(mine.T) if dim <= FEW_DIMENSIONS else np.empty((dim, 0), np.float32)
        uniforms = np.random.default_rng([root, group]).random((wanted, n_trials))
        found = _greedy_on_one_thread(mine, transposed, np.ones(len(mine)), uniforms, chosen, left)
        # the first choice of a group is worth more than any later one: no group goes without
        return rows[chosen[:found]], np.concatenate([[np.inf], _decreasing(-np.diff(left[:found]))])

    # twice the share of its rows is more than a group needs, unless it is far more spread out than the others
    share = 2.0 * k / n
    for attempt in range(8):
        limits = np.ceil(np.diff(starts) * min(1.0, share * 2**attempt)).astype(np.int64) + 1
        with ThreadPoolExecutor(max(1, numba.get_num_threads())) as pool:
            found = list(pool.map(choose, range(n_groups), limits.tolist()))
        rows = np.concatenate([item[0] for item in found])
        falls = np.concatenate([item[1] for item in found])
        if progress is not None:
            progress.set_postfix_str(f"seeding in {n_groups} groups")
        if len(rows) < k:
            if (limits >= np.diff(starts)).all():
                raise CurationError(f"only {len(rows)} distinct rows for k={k} clusters; lower k or remove duplicates")
            continue
        threshold = np.partition(falls, len(falls) - k)[len(falls) - k]
        cut = np.array(
            [len(item[0]) < limit or item[1][-1] < threshold for item, limit in zip(found, limits, strict=True)]
        )
        whole = limits >= np.diff(starts)
        if (cut | whole).all():
            break
    best = np.sort(np.argsort(-falls, kind="stable")[:k])
    return rows[best]


def seed_centroids(
    x: Embeddings,
    k: int,
    frame: Frame,
    rng: np.random.Generator,
    strategy: str = "auto",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    *,
    progress: Any = None,
    group: Group | None = None,
) -> Float[Tensor, "k d"]:
    """k starting centroids, float32 in ``frame``; the same generator state gives the same centroids.

    Several processes share the passes of "kmeans||"; greedy choices are made by the first one.

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
    group = group or Group()
    if strategy == "kmeans||":
        candidates, weights = _oversample(x, k, frame, rng, device, precision, progress, group)
    elif not group.first:
        candidates, weights = torch.empty((0, x.dim)), np.empty(0)
    else:
        if strategy == "kmeans++" or x.n_rows <= SUBSAMPLE * k:
            sample = x.block(0, x.n_rows)
        else:
            sample = x.take(np.sort(rng.choice(x.n_rows, SUBSAMPLE * k, replace=False)))
        candidates = frame.apply(sample)
        weights = np.ones(len(candidates))
    found = torch.empty((k, x.dim))
    with group.all_or_none():
        if group.first:
            in_memory = candidates.cpu().numpy()
            found = torch.from_numpy(in_memory[_chosen(in_memory, weights, k, strategy, rng, progress)])
    return group.share_tensor(found).to(device)


def _chosen(
    x: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, "n"],
    k: int,
    strategy: str,
    rng: np.random.Generator,
    progress: Any,
) -> Int[np.ndarray, "k"]:
    """k of the candidates by greedy k-means++, within groups where there are very many."""
    if strategy == "auto" and len(x) * k * x.shape[1] > GROUPED_WORK:
        n_groups, n_trials = grouped_settings(len(x), k, x.shape[1])
        return grouped_kmeans_plusplus(x, k, _groups(x, n_groups, rng), rng, n_trials, progress)
    return greedy_kmeans_plusplus(x, k, weights, rng, _n_trials(len(x), k, x.shape[1], strategy))


def grouped_settings(n: int, k: int, dim: int) -> tuple[int, int]:
    """Groups, and candidates for each centroid, of seeding within groups."""
    n_groups = max(2, round(math.sqrt(k)))
    work = n * (2 * k / n_groups) * dim
    return n_groups, max(1, min(2 + int(math.log(k)), int(GROUP_TRIAL_BUDGET / work)))


def _groups(x: Float[np.ndarray, "n d"], n_groups: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """(n,) nearest of ``n_groups`` centres: greedy k-means++ on a few rows, then two Lloyd iterations on them."""
    few = rng.choice(len(x), min(len(x), 64 * n_groups), replace=False)  # in random order
    rows = torch.from_numpy(x[few])
    n_start = min(len(few), 16 * n_groups)
    centres = rows[torch.from_numpy(greedy_kmeans_plusplus(x[few[:n_start]], n_groups, np.ones(n_start), rng, 1))]
    for _ in range(2):
        labels = CentroidSearch(centres).nearest(rows)[0].long()
        sums = torch.zeros((n_groups, x.shape[1]), dtype=torch.float64).index_add_(0, labels, rows.double())
        counts = torch.bincount(labels, minlength=n_groups)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres.double()).float()
    search = CentroidSearch(centres)
    parts = [search.nearest(block)[0].numpy() for block in torch.from_numpy(x).split(rows_per_read(x.shape[1]))]
    return np.concatenate(parts).astype(np.int64)


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
    group: Group,
) -> tuple[Float[Tensor, "c d"], Float[np.ndarray, "c"]]:
    """Candidates of k-means|| with the number of rows nearest to each; each process passes over its own rows.

    The first k are uniform: while few centres exist, D^2 hardly differs from row to row in many dimensions.
    """
    step = rows_per_read(x.dim)
    first, last = group.span(x.n_rows, step)
    closest = np.full(last - first, np.inf, np.float32)
    nearest = np.zeros(last - first, np.int64)
    root = int(rng.integers(1 << 62))
    rows = np.sort(rng.choice(x.n_rows, k, replace=False))
    found: list[Tensor] = []
    n_found = 0
    for round_ in range(ROUNDS + 1):
        fresh = frame.apply(x.take(rows).to(device))
        search = CentroidSearch(fresh, precision)
        for start, block in x.blocks(step, (first, last)):
            labels, distances = search.nearest(frame.apply(block.to(device)))
            here = slice(start - first, start - first + len(block))
            closer = distances.cpu().numpy() < closest[here]
            nearest[here][closer] = labels.cpu().numpy()[closer] + n_found
            closest[here][closer] = distances.cpu().numpy()[closer]
            if progress is not None:
                progress.set_postfix_str(f"seeding, pass {round_ + 1} of {ROUNDS + 1}")
        found.append(fresh)
        n_found += len(fresh)
        parts = [closest[i : i + step].sum(dtype=np.float64) for i in range(0, len(closest), step)]
        total = float(group.gather(np.array(parts, np.float64)).sum())
        if total <= 0 or round_ == ROUNDS:
            break
        drawn = [np.empty(0, np.int64)]
        for start in range(first, last, step):
            mine = closest[start - first : start - first + step].astype(np.float64)
            # random numbers of each block on its own: they do not depend on the process that has it
            uniforms = np.random.default_rng([root, round_, start]).random(len(mine))
            drawn.append(np.flatnonzero(uniforms * total < k * mine) + start)
        rows = group.gather(np.concatenate(drawn))
        if not len(rows):
            largest = int(closest.argmax()) if len(closest) else 0
            tops = group.gather(closest[largest : largest + 1])
            rows = group.gather(np.array([largest + first] if len(closest) else [], np.int64))[[int(tops.argmax())]]
    weights = group.total(np.bincount(nearest, minlength=n_found)).astype(np.float64)
    used = weights > 0
    if used.sum() < k:
        raise CurationError(
            f"only {int(used.sum())} distinct rows were found for k={k} clusters; lower k or remove duplicates"
        )
    return torch.cat(found)[torch.from_numpy(used).to(device)], weights[used]
