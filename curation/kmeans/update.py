"""The update step: sums and counts of each cluster, the same for any number of threads, blocks or processes.

Rows of one block are added in float64, in ascending order; the sums of blocks are added with their rounding error kept
(double-double), so that float32 means do not depend on how the blocks are dealt out. Late iterations move few rows, so
what a cluster sums to in a block is kept, and added anew where a row came or left.
"""

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.group import Group, two_sum
from curation.kmeans.tiles import fetch, take_next

AHEAD = 4  # rows of a cluster lie apart: memory is asked for them so many rows before they are added
LINE = 16  # float32 of a line of the cache
KEPT_BYTES = 128 << 20  # of the sums of clusters in blocks; where they need more, none are kept


def cluster_starts(labels: Int[np.ndarray, "n"], k: int) -> Int[np.ndarray, "k+1"]:
    """Where each cluster begins once the rows are grouped by cluster."""
    return np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=k))]).astype(np.int64)


@numba.njit(cache=True)
def _by_cluster(labels, k):
    """Rows ordered by cluster, ascending within each, and where each cluster begins: (n,) and (k + 1,) int64."""
    starts = np.zeros(k + 1, np.int64)
    for label in labels:
        starts[label + 1] += 1
    for cluster in range(k):
        starts[cluster + 1] += starts[cluster]
    order, place = np.empty(len(labels), np.int64), starts[:-1].copy()
    for row in range(len(labels)):
        order[place[labels[row]]] = row
        place[labels[row]] += 1
    return order, starts


@numba.njit(cache=True)
def _mark_changed(before, labels, stale):
    """Mark the clusters that a row came to or left, and keep the labels."""
    for row in range(len(labels)):
        if before[row] != labels[row]:
            if before[row] >= 0:
                stale[before[row]] = True
            stale[labels[row]] = True
            before[row] = labels[row]


@numba.njit(parallel=True, cache=True)
def _add_segments(n_threads, x, weights, order, starts, next_cluster, stale, parts, sums, rest, counts):
    """Add the rows of each cluster to its sums.

    Args:
        stale: (k,) bool, the clusters whose row of ``parts`` is not the sum of their rows yet; empty: all.
        parts: (k, d) float64, or (n_threads, d) where ``stale`` is empty and none is kept.
    """
    for worker in numba.prange(n_threads):
        while True:
            cluster = take_next(next_cluster)
            if cluster >= len(starts) - 1:
                break
            if starts[cluster] == starts[cluster + 1]:
                continue
            part = parts[cluster if len(stale) else np.int64(worker)]
            if not len(stale) or stale[cluster]:
                part[:] = 0.0
                for position in range(starts[cluster], starts[cluster + 1]):
                    row = order[position]
                    if position + AHEAD < len(order):
                        ahead = x[order[position + AHEAD]]
                        for f in range(0, x.shape[1], LINE):
                            fetch(ahead, f)
                    weight = weights[row] if len(weights) else 1.0
                    for f in range(x.shape[1]):
                        part[f] += weight * np.float64(x[row, f])
            for position in range(starts[cluster], starts[cluster + 1]):
                counts[cluster] += weights[order[position]] if len(weights) else 1.0
            for f in range(x.shape[1]):
                before, added = sums[cluster, f], part[f]
                total = before + added
                there = total - before
                rest[cluster, f] += (before - (total - there)) + (added - there)
                sums[cluster, f] = total


class KeptParts:
    """What each cluster summed to in each block, and the rows it had there, from iteration to iteration.

    Args:
        n_rows, rows_per_block: of all blocks, the last of which may be shorter.
        k, dim: of the centroids.
    """

    def __init__(self, n_rows: int, rows_per_block: int, k: int, dim: int):
        shape = -(-n_rows // rows_per_block), k, dim
        self.fits = 8 * int(np.prod(shape, dtype=object)) <= KEPT_BYTES
        self.parts = np.empty(shape if self.fits else (0, 0, 0))
        self.labels = np.full(n_rows if self.fits else 0, -1, np.int32)
        self.rows_per_block = rows_per_block

    def of_block(self, start: int, labels: Int[np.ndarray, "m"]) -> tuple[np.ndarray, np.ndarray]:
        """Which clusters have other rows than before, (k,) bool, and the sums in the block of row ``start``, (k, d)."""
        parts = self.parts[start // self.rows_per_block]
        stale = np.zeros(len(parts), np.bool_)
        _mark_changed(self.labels[start : start + len(labels)], labels, stale)
        return stale, parts


class ClusterSums:
    """Sums (k, d) with their rounding error, and counts (k,), in float64, filled block by block.

    Args:
        kept: what the last iteration summed, on the CPU.
    """

    def __init__(self, k: int, dim: int, device: torch.device, kept: KeptParts | None = None):
        self.sums = torch.zeros((k, dim), dtype=torch.float64, device=device)
        self.rest = torch.zeros_like(self.sums)
        self.counts = torch.zeros(k, dtype=torch.float64, device=device)
        self.kept = kept if kept is not None and kept.fits else None

    def add(
        self,
        x: Float[Tensor, "m d"],
        labels: Int[Tensor, "m"],
        weights: Float[Tensor, "m"] | None = None,
        start: int = 0,
    ) -> None:
        """Add float32 rows to the clusters that ``labels`` (int32) name, each as often as its weight (default 1).

        Args:
            start: number of the first row, among those of `KeptParts`.
        """
        if self.sums.device.type != "cpu":
            self._add_anywhere(x, labels, weights)
            return
        order, starts = _by_cluster(labels.numpy(), len(self.counts))
        n_threads = numba.get_num_threads()
        stale, parts = np.empty(0, np.bool_), np.empty((n_threads, x.shape[1]))
        if self.kept is not None:
            stale, parts = self.kept.of_block(start, labels.numpy())
        weight = np.empty(0) if weights is None else weights.double().numpy()
        sums, rest, counts = self.sums.numpy(), self.rest.numpy(), self.counts.numpy()
        where = order, starts, np.zeros(1, np.int64), stale, parts
        _add_segments(n_threads, x.numpy(), weight, *where, sums, rest, counts)

    def _add_anywhere(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> None:
        """The same in plain torch; a segmented sum, since scattered additions on a GPU come in any order."""
        order = torch.argsort(labels, stable=True)
        lengths = torch.bincount(labels, minlength=len(self.counts))
        weight = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
        rows = x[order].double() * weight[order, None]
        part = torch.segment_reduce(rows, "sum", lengths=lengths, initial=0.0)
        self.sums, lost = two_sum(self.sums, part)
        self.rest += lost
        self.counts += torch.segment_reduce(weight[order], "sum", lengths=lengths, initial=0.0)

    def means(self, group: Group | None = None) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k"]]:
        """Float32 means (zero for empty clusters) and float64 counts over the blocks of all processes."""
        group = group or Group()
        sums, rest, counts = group.reduce_scatter(self.sums, self.rest, self.counts)
        means = ((sums + rest) / counts.clamp(min=1e-300)[:, None]).float()
        return group.all_gather(means, len(self.sums)), group.all_gather(counts, len(self.counts))
