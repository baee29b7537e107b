"""Late iterations cost less: only centroids that moved since the last iteration can win a row (exact).

From iteration to iteration every row keeps its nearest centroid and an upper bound on the score x.c - |c|^2 / 2 of all
others. A centroid that did not move keeps its scores, so a row needs

- the moved centroids alone, where its own did not move, or moved and still scores above the bound;
- all centroids otherwise.

The first half is the activity detection of Kaukoranta, Fraenti and Nevalainen (2000); the bound, which needs no decay
because whatever moves is measured again, spares most rows the second. Labels are the same as those of a full search,
ties included, so a run that is killed and goes on without this state ends with the same bytes.
"""

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.kmeans.assignment import (
    CHUNK,
    ROWS_AT_ONCE,
    CentroidSearch,
    _as_float32,
    _chunk_maxima,
    _score_bound,
    _squared_distance,
    bits,
)

WORTH_IT = 0.7  # share of moved centroids above which all are searched


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"}, cache=True)
def _decide_among_moved(
    scores, half_norms, slack, x, centroids, exact_half_norms, moved, column_of, labels, distances, bounds, again
):
    """Nearest of a row's own centroid and the moved ones; ``again`` marks the rows for which that is not enough.

    Args:
        scores: (b, m) products with the moved centroids.
        half_norms: (m,) |c|^2 / 2 of the moved ones; exact_half_norms: (k,) float64 of all.
        moved: (m,) their numbers, ascending; column_of: (k,) the inverse, -1 for those that stayed.
        labels, distances, bounds: of the last iteration; updated.
    """
    n, m = scores.shape
    for part_of_rows in numba.prange((n + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE):
        largest = np.empty((m + CHUNK - 1) // CHUNK, np.float32)
        for i in range(part_of_rows * ROWS_AT_ONCE, min((part_of_rows + 1) * ROWS_AT_ONCE, n)):
            own = labels[i]
            score = -exact_half_norms[own]
            for f in range(x.shape[1]):
                score += np.float64(x[i, f]) * np.float64(centroids[own, f])
            again[i] = column_of[own] >= 0 and score <= bounds[i]
            if again[i]:
                continue
            nearest, smallest = own, _squared_distance(x[i], centroids[own])
            runner_up, others = np.inf, np.float32(-np.inf)
            _chunk_maxima(scores[i], half_norms, largest)
            threshold = np.float32(score - slack[i])
            for part in range(len(largest)):
                if largest[part] < threshold:  # never the part of the own centroid: it scores above
                    others = max(others, largest[part])
                    continue
                for j in range(part * CHUNK, min((part + 1) * CHUNK, m)):
                    value = _as_float32(scores[i, j]) - half_norms[j]
                    if moved[j] == own:
                        continue
                    if value < threshold:
                        others = max(others, value)
                        continue
                    distance = _squared_distance(x[i], centroids[moved[j]])
                    if distance < smallest or (distance == smallest and moved[j] < nearest):
                        nearest, smallest, runner_up = moved[j], distance, smallest
                    else:
                        runner_up = min(runner_up, distance)
            bounds[i] = max(bounds[i], _score_bound(x[i], runner_up, others, slack[i]))
            labels[i] = nearest
            distances[i] = smallest


class ActiveSearch:
    """Nearest centroids of all rows, iteration after iteration; 8 bytes a row.

    Args:
        n_rows: how many rows there are.
    """

    def __init__(self, n_rows: int):
        self.labels = np.zeros(n_rows, np.int32)
        self.bounds = np.zeros(n_rows, np.float32)
        self.before: Tensor | None = None
        self.search: CentroidSearch | None = None
        self.moved_search: CentroidSearch | None = None
        self.searched, self.asked = 0.0, 0.0  # columns searched and rows x centroids, to tell what was spared

    def begin(self, centroids: Float[Tensor, "k d"], precision: str) -> CentroidSearch:
        """Start an iteration with these centroids, in the frame of the rows."""
        room = None if self.search is None else self.search.room
        self.search = search = CentroidSearch(centroids, precision)
        search.room, self.moved_search = room, None
        usable = search.device.type == "cpu" and not search.few_dimensions
        if usable and self.before is not None:
            moved = (search.centroids != self.before).any(dim=1).nonzero().flatten()
            moved = moved if len(moved) else torch.zeros(1, dtype=torch.int64)  # a search needs a centroid
            if len(moved) < WORTH_IT * search.k:
                self.moved = moved.numpy().astype(np.int32)
                self.column_of = np.full(search.k, -1, np.int32)
                self.column_of[self.moved] = np.arange(len(moved), dtype=np.int32)
                self.exact_half_norms = (search.centroids.double().square().sum(dim=1) / 2).numpy()
                self.moved_search = CentroidSearch(search.centroids[moved], precision)
        self.before = search.centroids.clone() if usable else None
        return search

    def nearest(self, start: int, x: Float[Tensor, "m d"]) -> tuple[Int[Tensor, "m"], Float[Tensor, "m"]]:
        """Labels (int32) and squared distances (float32) of the rows from ``start`` on."""
        assert self.search is not None, "begin() comes first"
        self.asked += float(len(x)) * self.search.k
        if self.before is None:
            self.searched += float(len(x)) * self.search.k
            return self.search.nearest(x)
        bounds = self.bounds[start : start + len(x)]
        if self.moved_search is None:
            self.searched += float(len(x)) * self.search.k
            labels, distances = self.search.nearest(x, bounds)
            self.labels[start : start + len(x)] = labels.numpy()
            return labels, distances
        mine = self.labels[start : start + len(x)]
        distances = torch.empty(len(x), dtype=torch.float32)
        again = np.empty(len(x), np.bool_)
        for first, last, scores, slack in self.moved_search.scores(x):
            _decide_among_moved(
                bits(scores),
                self.moved_search.half_norms.numpy(),
                slack.numpy(),
                x[first:last].numpy(),
                self.search.centroids.numpy(),
                self.exact_half_norms,
                self.moved,
                self.column_of,
                mine[first:last],
                distances[first:last].numpy(),
                bounds[first:last],
                again[first:last],
            )
        rows = np.flatnonzero(again)
        if len(rows):
            fresh = np.empty(len(rows), np.float32)
            labels, squared = self.search.nearest(x[torch.from_numpy(rows)], fresh)
            mine[rows], distances[torch.from_numpy(rows)], bounds[rows] = labels.numpy(), squared, fresh
        self.searched += float(len(x)) * len(self.moved) + float(len(rows)) * self.search.k
        return torch.from_numpy(mine.copy()), distances
