"""Two-step clustering for millions of centroids: k-means, then each cluster is split on its own.

The paper makes 10 M level-1 clusters this way: 100,000 clusters, each split in 100. A row belongs to the nearest
centroid within its coarse cluster, so placing it costs k1 + s distances instead of k1 x s.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from curation.group import Group
from curation.kmeans.assignment import CentroidSearch, assign_all, rows_per_read
from curation.kmeans.frame import Frame
from curation.kmeans.lloyd import assign_filled, fit_centroids
from curation.kmeans.pieces import Pieces
from curation.kmeans.settings import KMeansSettings
from curation.kmeans.update import cluster_starts
from curation.store.embeddings import Embeddings
from curation.store.shards import TensorShard

READ_BYTES = 256 << 20  # of rows of coarse clusters, as float32


@dataclass
class Centroids:
    """The centroids of a level, with the coarse ones they were split from, if any.

    Attributes:
        points: (k, d) float32.
        coarse: (k1, d) float32 coarse centroids, or None.
        coarse_of: (k,) int64 coarse cluster of every centroid, ascending, or None.
    """

    points: Float[np.ndarray, "k d"]
    coarse: Float[np.ndarray, "k1 d"] | None = None
    coarse_of: Int[np.ndarray, "k"] | None = None

    def assign(
        self,
        x: Embeddings,
        metric: str,
        device: str | torch.device,
        precision: str,
        span: tuple[int, int] | None = None,
    ) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """(n,) int64 labels and (n,) float32 squared distances; through the coarse clusters where there are any.

        Args:
            span: first and last (exclusive) row, for the n rows between them alone.
        """
        if self.coarse is None or self.coarse_of is None:
            return assign_to(x, self.points, metric, device, precision, span)
        parents, _distances = assign_to(x, self.coarse, metric, device, precision, span)
        labels, distances = np.empty(len(parents), np.int64), np.empty(len(parents), np.float32)
        offset = span[0] if span else 0
        starts, first = (
            cluster_starts(parents, len(self.coarse)),
            np.searchsorted(self.coarse_of, np.arange(len(self.coarse) + 1)),
        )
        order = np.argsort(parents, kind="stable")
        for cluster, rows, member in _members(x, order + offset, starts, np.flatnonzero(np.diff(starts))):
            rows -= offset
            fine = slice(int(first[cluster]), int(first[cluster + 1]))
            found, squared = assign_to(member, self.points[fine], metric, device, precision)
            labels[rows], distances[rows] = found + fine.start, squared
        return labels, distances

    def without(self, empty: Int[np.ndarray, "e"]) -> "Centroids":
        """These centroids less the given ones."""
        keep = np.setdiff1d(np.arange(len(self.points)), empty)
        return Centroids(self.points[keep], self.coarse, None if self.coarse_of is None else self.coarse_of[keep])


def assign_to(
    x: Embeddings,
    points: Float[np.ndarray, "k d"],
    metric: str,
    device: str | torch.device,
    precision: str,
    span: tuple[int, int] | None = None,
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Nearest of ``points`` for all rows or those of a span; the frame follows from the points alone."""
    tensor = torch.from_numpy(np.array(points))
    frame = Frame.of(tensor, unit=metric == "cosine")
    return assign_all(x, CentroidSearch(frame.apply(tensor).to(device), precision), frame, span=span)


def split_clusters(
    x: Embeddings,
    coarse: Float[np.ndarray, "k1 d"],
    n_splits: int,
    seeds: np.random.SeedSequence,
    settings: KMeansSettings,
    progress: bool | str = False,
    group: Group | None = None,
    folder: Path | None = None,
) -> Centroids:
    """Split every coarse cluster into up to ``n_splits`` by k-means on its own rows.

    A cluster with fewer distinct rows than ``n_splits`` gives one centroid for each of them. Every process splits the
    clusters of one stretch, of about equally many rows.

    Args:
        folder: where the splits of finished clusters are kept; a killed call goes on from them.
    """
    group = group or Group()
    span = group.span(x.n_rows, rows_per_read(x.dim))
    mine, _distances = assign_to(x, coarse, settings.metric, settings.device, settings.precision, span)
    parents = group.assemble("parents", mine)
    starts = cluster_starts(parents, len(coarse))
    first, last = np.searchsorted(starts, x.n_rows * np.array([group.rank, group.rank + 1]) // group.size)
    last = len(coarse) if group.rank == group.size - 1 else last
    # the rows of these clusters, ordered by cluster
    order = np.flatnonzero((parents >= first) & (parents < last)) if group.size > 1 else np.arange(x.n_rows)
    order = order[np.argsort(parents[order], kind="stable")]
    starts = starts - starts[first]
    points, coarse_of = [np.empty((0, x.dim), np.float32)], [np.empty(0, np.int64)]
    title = progress if isinstance(progress, str) else "splitting clusters"
    pieces = Pieces(folder)
    done = pieces.load(int(first), int(last))
    clusters = first + np.flatnonzero(np.diff(starts[first : last + 1]))
    clusters = clusters[~np.isin(clusters, list(done))]
    bar = tqdm(clusters, desc=title, unit="cluster", leave=False, disable=not (progress and group.first))
    for cluster, _rows, member in _members(x, order, starts, bar):
        distinct = np.unique(member.block(0, member.n_rows).float().cpu().numpy(), axis=0)
        if len(distinct) <= n_splits:
            found = distinct
        else:
            # a generator of its own for each cluster: the result does not depend on the order of the work
            rng = np.random.default_rng([int(seeds.generate_state(1)[0]), int(cluster)])
            found, _history = fit_centroids(member, n_splits, rng, settings)
            found = assign_filled(member, found, settings).centroids
        done[int(cluster)] = (found,)
        pieces.keep(int(cluster), done[int(cluster)])
    pieces.flush()
    for cluster in sorted(done):
        points.append(done[cluster][0])
        coarse_of.append(np.full(len(done[cluster][0]), cluster, np.int64))
    whole = group.assemble("split_points", np.concatenate(points))
    return Centroids(whole, coarse, group.assemble("split_coarse_of", np.concatenate(coarse_of)))


def _members(
    x: Embeddings, order: Int[np.ndarray, "n"], starts: Int[np.ndarray, "k1+1"], clusters: Iterable[int]
) -> Iterator[tuple[int, Int[np.ndarray, "m"], Embeddings]]:
    """Clusters with their rows, which are ``order[starts[c]:starts[c + 1]]``.

    The rows of many clusters are read at once, in ascending order: one by one, storage would be asked for every row.
    """
    begin, held, block = 0, 0, torch.empty(0)
    limit = max(1, READ_BYTES // (4 * x.dim))
    for cluster in clusters:
        low, high = int(starts[cluster]), int(starts[cluster + 1])
        if high > held:
            last = int(np.searchsorted(starts, low + limit, side="right")) - 1
            begin, held = low, max(high, int(starts[last]))
            block = x.take(order[begin:held])
        yield int(cluster), order[low:high].copy(), Embeddings([TensorShard(block[low - begin : high - begin], "rows")])
