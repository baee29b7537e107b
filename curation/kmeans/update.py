"""The update step: sums and counts of each cluster, the same for any number of threads, blocks or processes.

Rows of one block are added in float64, in ascending order; the sums of blocks are added with their rounding error kept
(double-double), so that float32 means do not depend on how the blocks are dealt out.
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


@numba.njit(parallel=True, cache=True)
def _add_segments(n_threads, x, weights, order, starts, next_cluster, sums, rest, counts):
    for _worker in numba.prange(n_threads):
        part = np.empty(x.shape[1])
        while True:
            cluster = take_next(next_cluster)
            if cluster >= len(starts) - 1:
                break
            if starts[cluster] == starts[cluster + 1]:
                continue
            part[:] = 0.0
            for position in range(starts[cluster], starts[cluster + 1]):
                row = order[position]
                if position + AHEAD < len(order):
                    ahead = x[order[position + AHEAD]]
                    for f in range(0, x.shape[1], LINE):
                        fetch(ahead, f)
                weight = weights[row] if len(weights) else 1.0
                counts[cluster] += weight
                for f in range(x.shape[1]):
                    part[f] += weight * np.float64(x[row, f])
            for f in range(x.shape[1]):
                before, added = sums[cluster, f], part[f]
                total = before + added
                there = total - before
                rest[cluster, f] += (before - (total - there)) + (added - there)
                sums[cluster, f] = total


class ClusterSums:
    """Sums (k, d) with their rounding error, and counts (k,), in float64, filled block by block."""

    def __init__(self, k: int, dim: int, device: torch.device):
        self.sums = torch.zeros((k, dim), dtype=torch.float64, device=device)
        self.rest = torch.zeros_like(self.sums)
        self.counts = torch.zeros(k, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "m d"], labels: Int[Tensor, "m"], weights: Float[Tensor, "m"] | None = None) -> None:
        """Add float32 rows to the clusters that ``labels`` (int32) name, each as often as its weight (default 1)."""
        if self.sums.device.type != "cpu":
            self._add_anywhere(x, labels, weights)
            return
        order, starts = _by_cluster(labels.numpy(), len(self.counts))
        weight = np.empty(0) if weights is None else weights.double().numpy()
        sums, rest, counts = self.sums.numpy(), self.rest.numpy(), self.counts.numpy()
        where = order, starts, np.zeros(1, np.int64)
        _add_segments(numba.get_num_threads(), x.numpy(), weight, *where, sums, rest, counts)

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
