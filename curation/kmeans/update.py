"""The update step: float64 sums and counts of each cluster, in an order that no thread count can change."""

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@numba.njit(parallel=True, cache=True)
def _add_segments(x, weights, order, starts, clusters, sums, counts):
    for s in numba.prange(len(clusters)):
        cluster = clusters[s]
        for position in range(starts[s], starts[s + 1]):
            row = order[position]
            weight = weights[row] if len(weights) else 1.0
            counts[cluster] += weight
            for f in range(x.shape[1]):
                sums[cluster, f] += weight * np.float64(x[row, f])


class ClusterSums:
    """Sums (k, d) and counts (k,) in float64, filled block by block.

    Within a cluster rows are added in ascending order, whatever the blocks or threads: the same rows and labels give
    the same bytes.
    """

    def __init__(self, k: int, dim: int, device: torch.device):
        self.sums = torch.zeros((k, dim), dtype=torch.float64, device=device)
        self.counts = torch.zeros(k, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "m d"], labels: Int[Tensor, "m"], weights: Float[Tensor, "m"] | None = None) -> None:
        """Add float32 rows to the clusters that ``labels`` (int32) name, each as often as its weight (default 1)."""
        if self.sums.device.type != "cpu":
            self._add_anywhere(x, labels, weights)
            return
        order = np.argsort(labels.numpy(), kind="stable")
        ordered = labels.numpy()[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
        weight = np.empty(0) if weights is None else weights.double().numpy()
        _add_segments(x.numpy(), weight, order, starts, ordered[starts[:-1]], self.sums.numpy(), self.counts.numpy())

    def _add_anywhere(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> None:
        """The same in plain torch; a segmented sum, since scattered additions on a GPU come in any order."""
        order = torch.argsort(labels, stable=True)
        lengths = torch.bincount(labels, minlength=len(self.counts))
        weight = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
        rows = x[order].double() * weight[order, None]
        self.sums += torch.segment_reduce(rows, "sum", lengths=lengths, initial=0.0)
        self.counts += torch.segment_reduce(weight[order], "sum", lengths=lengths, initial=0.0)

    def means(self) -> Float[Tensor, "k d"]:
        """Float32 means; rows of empty clusters are zero."""
        return (self.sums / self.counts.clamp(min=1e-300)[:, None]).float()
