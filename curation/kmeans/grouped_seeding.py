"""Seeding of very many centroids: greedy k-means++ within groups of rows, shared by all processes, kept as it goes.

At once, greedy k-means++ costs rows x centroids, and rows are drawn in proportion to centroids: the square of k. Within
groups of a few hundred centroids each it costs rows x (centroids of a group), which grows as k. The groups are the
cells of a coarse clustering of the sample. Every group gives a sequence of choices; the k with the largest falls
of the sum of squared distances win, so each group gets as many centroids as it needs without a guess of its dimension.

Groups cut what lies between their centres, and each piece takes a centroid of its own. So a few rounds of swaps follow,
as in the breathing k-means of Fritzke (2020): centroids whose rows another serves nearly as well make room for choices
that the groups add to what all of them have. docs/results/seeding.md has the inertia beside greedy k-means++.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.group import Group
from curation.kmeans.assignment import CentroidSearch, rows_per_read
from curation.kmeans.frame import Frame
from curation.kmeans.greedy import greedy_choices, greedy_kmeans_plusplus
from curation.kmeans.pieces import run_jobs
from curation.store.embeddings import Embeddings
from foundation.errors import CurationError

OF_A_GROUP = 512  # centroids, on average
ATTEMPTS = 8  # at a limit of choices for each group, twice as many each time
SWAPS = 3  # rounds
NEAR = 4  # groups in which a centroid is looked at: those with the nearest centres
FAST: Any = {"reassoc", "contract"}  # of floating-point sums: the same in every process of a machine


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


def group_settings(k: int) -> tuple[int, int]:
    """Groups, and candidates for each centroid (Arthur and Vassilvitskii: 2 + ln k)."""
    return max(2, round(k / OF_A_GROUP)), 2 + int(math.log(k))


@dataclass(frozen=True)
class Sample:
    """Rows that are seeded on.

    Args:
        rows: (n,) rows of ``x``, ascending, the same in every process.
        frame: in which their distances are measured.
    """

    x: Embeddings
    rows: Int[np.ndarray, "n"]
    frame: Frame

    def take(self, places: Any) -> Float[Tensor, "m d"]:
        """The rows at these places of the sample (indices or a slice), float32 in the frame, on the CPU."""
        return self.frame.apply(self.x.take(self.rows[places]).cpu())


def seeding_work(n_rows: float, k: int, dim: int) -> float:
    """Multiply-adds of `seed_in_groups`: greedy choices, twice as many as are taken, and the rounds of swaps."""
    n_groups, n_trials = group_settings(k)
    of_a_group = k / n_groups
    choices = 2 * of_a_group * n_trials
    swaps = SWAPS * (min(NEAR, n_groups) * of_a_group + of_a_group / 2 * n_trials)
    return n_rows * (choices + swaps) * dim


def seed_in_groups(
    sample: Sample,
    k: int,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    *,
    progress: Any = None,
    group: Group | None = None,
    folder: Path | None = None,
) -> Float[Tensor, "k d"]:
    """k rows of the sample, in its frame, the same for any number of processes.

    Args:
        rng: in the same state in every process.
        folder: where results of groups are kept; a killed call goes on from them.

    Raises:
        CurationError: fewer than k distinct rows.
    """
    group = group or Group()
    n_groups, n_trials = group_settings(k)
    root = int(rng.integers(1 << 62))

    def say(text: str) -> None:
        if progress is not None:
            progress.set_postfix_str(f"seeding in {n_groups} groups: {text}")

    centres = _centres(sample, n_groups, np.random.default_rng([root, 0]), group)
    labels = _labels(sample, centres, device, precision, group)
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.searchsorted(labels[order], np.arange(1, n_groups)))
    sizes = np.array([len(places) for places in members])
    # twice the share of its rows is more than a group needs, unless it is far more spread out than the others
    limits = np.ceil(sizes * min(1.0, 2.0 * k / len(sample.rows))).astype(np.int64) + 1
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for attempt in range(ATTEMPTS):
        again = np.array([i for i in range(n_groups) if i not in found], np.int64)
        mine, seeds = [members[i] for i in again], [[root, 1, i] for i in again.tolist()]
        choose = _chooser(sample, mine, limits[again], seeds, n_trials)
        here = None if folder is None else folder / f"attempt_{attempt}"
        lengths, columns = run_jobs(sizes[again] * limits[again], choose, here, group, numba.get_num_threads(), say)
        ends = np.cumsum(lengths)
        for i, start, end in zip(again.tolist(), ends - lengths, ends, strict=True):
            found[i] = columns[0][start:end], columns[1][start:end]
        falls = np.concatenate([found[i][1] for i in range(n_groups)])
        whole = limits >= sizes
        if len(falls) < k:
            if whole.all():
                raise CurationError(f"only {len(falls)} distinct rows for k={k} clusters; lower k or remove duplicates")
            cut = ~whole
        else:
            threshold = np.partition(falls, len(falls) - k)[len(falls) - k]
            # a group whose last choice would still win might have more of them
            cut = np.array([len(found[i][0]) >= limits[i] and found[i][1][-1] >= threshold for i in range(n_groups)])
            cut &= ~whole
        if not cut.any() or attempt == ATTEMPTS - 1:
            break
        limits = np.where(cut, np.minimum(2 * limits, sizes), limits)
        found = {i: item for i, item in found.items() if not cut[i]}
    chosen = np.concatenate([found[i][0] for i in range(n_groups)])
    taken = chosen[np.sort(np.argsort(-falls, kind="stable")[:k])]
    for number in range(SWAPS):
        look = _swapper(sample, members, sample.take(taken), centres, [root, 2, number], n_trials)
        here = None if folder is None else folder / f"swaps_{number}"
        title = f"swaps, round {number + 1} of {SWAPS}, "
        threads = numba.get_num_threads()
        _, columns = run_jobs(sizes, look, here, group, threads, lambda text, title=title: say(title + text))  # type: ignore[misc]
        changed = _swapped(taken, *columns)
        if changed is None:
            break
        taken = changed
    return sample.take(taken).to(device)


def _swapper(
    sample: Sample,
    members: list[np.ndarray],
    centroids: Float[Tensor, "k d"],
    centres: Float[Tensor, "g d"],
    root: list[int],
    n_trials: int,
) -> Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The job of a group: what each centroid is worth to its rows, and what further choices would be worth.

    It gives (kind, index, value): kind 0 the sum by which distances grow without centroid ``index``, kind 1 the fall of
    the sum by a new one at place ``index``.
    """
    n_groups, k = len(centres), len(centroids)
    near = [
        torch.cdist(part, centres).topk(min(NEAR, n_groups), dim=1, largest=False).indices.numpy()
        for part in centroids.split(1 << 16)
    ]
    groups = np.concatenate(near).ravel()
    by_group = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[by_group], np.arange(n_groups + 1))
    candidates = by_group // min(NEAR, n_groups)
    one_reads = threading.Lock()

    def look(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places = members[number]
        theirs = candidates[bounds[number] : bounds[number + 1]]
        if not len(places) or len(theirs) < 2:
            return np.empty(0, np.int8), np.empty(0, np.int64), np.empty(0)
        with one_reads:
            mine = np.ascontiguousarray(sample.take(places).numpy())
        nearest, closest, second = _two_nearest(mine, np.ascontiguousarray(centroids[theirs].numpy()))
        served, at = np.unique(nearest, return_inverse=True)
        grows = np.bincount(at, (second - closest).astype(np.float64))
        wanted = max(1, int(len(mine) * k / len(sample.rows) / 2))
        uniforms = np.random.default_rng([*root, number]).random((wanted, n_trials))
        picked, left = np.empty(wanted, np.int64), np.empty(wanted + 1)
        left[0] = closest.sum(dtype=np.float64)
        n = _further(mine, closest, uniforms, picked, left[1:])
        falls = _decreasing(-np.diff(left[: n + 1])) if n else np.empty(0)
        kinds = np.repeat(np.array([0, 1], np.int8), [len(served), n])
        index = np.concatenate([theirs[served], places[picked[:n]]])
        return kinds, index, np.concatenate([grows, falls])

    return look


def _swapped(
    taken: Int[np.ndarray, "k"], kinds: np.ndarray, index: np.ndarray, values: np.ndarray
) -> Int[np.ndarray, "k"] | None:
    """Half of the swaps that seem to pay: each counts on the others to stay; None where none does."""
    grows = np.bincount(index[kinds == 0], values[kinds == 0], minlength=len(taken))
    places, falls = index[kinds == 1], values[kinds == 1]
    gains, costs = np.argsort(-falls, kind="stable"), np.argsort(grows, kind="stable")
    n = min(len(gains), len(costs))
    n_swaps = (int((falls[gains[:n]] > grows[costs[:n]]).sum()) + 1) // 2
    if not n_swaps:
        return None
    return np.sort(np.concatenate([np.delete(taken, costs[:n_swaps]), places[gains[:n_swaps]]]))


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _two_nearest(x, centroids):
    """Nearest centroid of every row, and the squared distances to it and to the next one; on one thread.

    A product of matrices would be faster, but its last bits depend on the number of threads.
    """
    n, dim = x.shape
    nearest, closest, second = np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n, np.float32)
    for i in range(n):
        best, first, next_one = 0, np.float32(np.inf), np.float32(np.inf)
        for j in range(len(centroids)):
            total = np.float32(0)
            for f in range(dim):
                difference = x[i, f] - centroids[j, f]
                total += difference * difference
            if total < first:
                best, first, next_one = j, total, first
            elif total < next_one:
                next_one = total
        nearest[i], closest[i], second[i] = best, first, next_one
    return nearest, closest, second


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _further(x, closest, uniforms, chosen, left):
    """Greedy choices beyond what already is at squared distances ``closest`` (n,), which they lower; how many."""
    n, dim = x.shape
    cumulative = np.empty(n)
    distances, best_distances = np.empty(n, np.float32), np.empty(n, np.float32)
    for step in range(len(chosen)):
        total = 0.0
        for i in range(n):
            total += closest[i]
            cumulative[i] = total
        if total <= 0:
            return step
        smallest = np.inf
        for t in range(uniforms.shape[1]):
            row = min(np.searchsorted(cumulative, uniforms[step, t] * total, side="right"), n - 1)
            potential = 0.0
            for i in range(n):
                squared = np.float32(0)
                for f in range(dim):
                    difference = x[i, f] - x[row, f]
                    squared += difference * difference
                distances[i] = min(squared, closest[i])
                potential += distances[i]
            if potential < smallest:
                chosen[step], smallest = row, potential
                best_distances[:] = distances
        left[step] = smallest
        closest[:] = best_distances
        closest[chosen[step]] = 0
    return len(chosen)


def _chooser(
    sample: Sample, members: list[np.ndarray], limits: np.ndarray, seeds: list[list[int]], n_trials: int
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """The job of a group: places in the sample of its choices, and the fall of the sum by each, smoothed to decrease.

    Args:
        members: of each group, its places in the sample; ``limits`` and ``seeds``: its most choices, its random seed.
    """
    one_reads = threading.Lock()  # readers of parquet keep what they decoded last

    def choose(job: int) -> tuple[np.ndarray, np.ndarray]:
        places = members[job]
        if not len(places):
            return np.empty(0, np.int64), np.empty(0)
        with one_reads:
            mine = sample.take(places).numpy()
        rng = np.random.default_rng(seeds[job])
        picked, left = greedy_choices(mine, int(min(limits[job], len(places))), rng, n_trials)
        # the first choice of a group is worth more than any later one: no group goes without
        return places[picked], np.concatenate([[np.inf], _decreasing(-np.diff(left))])

    return choose


def _centres(sample: Sample, n_groups: int, rng: np.random.Generator, group: Group) -> Float[Tensor, "g d"]:
    """Centres of the groups: greedy k-means++ on a few rows by the first process, then two Lloyd iterations on them."""
    dim = sample.x.dim
    centres = torch.empty((n_groups, dim))
    with group.all_or_none():
        if group.first:
            some = sample.take(rng.permutation(len(sample.rows))[: 64 * n_groups])  # in random order
            start = some[: 16 * n_groups].numpy()
            centres = some[torch.from_numpy(greedy_kmeans_plusplus(start, n_groups, np.ones(len(start)), rng, 1))]
            for _ in range(2):
                labels = CentroidSearch(centres).nearest(some)[0].long()
                sums = torch.zeros((n_groups, dim), dtype=torch.float64).index_add_(0, labels, some.double())
                counts = torch.bincount(labels, minlength=n_groups)[:, None]
                centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres.double()).float()
    return group.share_tensor(centres.contiguous())


def _labels(
    sample: Sample, centres: Tensor, device: str | torch.device, precision: str, group: Group
) -> Int[np.ndarray, "n"]:
    """(n,) int32 nearest centre of every row of the sample; each process places its own."""
    search = CentroidSearch(centres.to(device), precision)
    step = rows_per_read(sample.x.dim)
    first, last = group.span(len(sample.rows), step)
    parts = [np.empty(0, np.int32)]
    for start in range(first, last, step):
        taken = sample.x.take(sample.rows[start : min(start + step, last)])
        block = sample.frame.apply(taken.to(search.device))
        parts.append(search.nearest(block)[0].cpu().numpy())
    return group.gather(np.concatenate(parts))
