"""Late iterations cost less: only centroids that moved since the last iteration can win a row (exact).

From iteration to iteration every row keeps its nearest centroid and an upper bound on the score x.c - |c|^2 / 2 of all
others. A centroid that did not move keeps its scores, so a row needs

- the moved centroids alone, where its own did not move, or moved and still scores above the bound; of these, where
  its own scores far above the bound, only those that moved so far that they could have crossed what lies between
  (Cauchy-Schwarz: x.(c' - c) <= |x||c' - c|), while the bound rises by what the others moved;
- all centroids otherwise.

The first half is the activity detection of Kaukoranta, Fraenti and Nevalainen (2000); the bound, which hardly decays
because what moves far is measured again, spares most rows the second. Labels are the same as those of a full search,
ties included, so a run that is killed and goes on without this state ends with the same bytes.
"""

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.kmeans.assignment import (
    ROWS_AT_ONCE,
    CentroidSearch,
    _panel_maxima,
    _score_bound,
    _squared_distance,
    bits,
)
from curation.kmeans.tiles import (
    PANEL,
    high_scores,
    largest_below,
    lowest_bit,
    multiply_some,
    pack_row,
    rows_of,
    take_next,
)

WORTH_IT = 0.95  # share of moved centroids above which all are searched
MARGIN_USED = 0.3  # of what a row's own centroid scores above the bound, in one iteration
ROUNDING = 2.0**-22  # of a bound that becomes a float32


@numba.njit(fastmath={"reassoc", "contract"}, inline="always")
def _norm_and_distance(x, c):
    """Squared norm of x, and its squared distance to c."""
    norm, distance = 0.0, 0.0
    for f in range(x.shape[0]):
        value = np.float64(x[f])
        difference = value - np.float64(c[f])
        norm += value * value
        distance += difference * difference
    return norm, distance


@numba.njit(parallel=True, fastmath={"reassoc", "contract"}, cache=True)
def _movement(before, after, moved, steps, falls):
    """Whether and how far each centroid moved, and how much half its squared norm fell: (k,) bool, float64, float64."""
    for i in numba.prange(len(before)):
        step, fall, differs = 0.0, 0.0, False
        for f in range(before.shape[1]):
            old, new = np.float64(before[i, f]), np.float64(after[i, f])
            differs |= old != new
            step += (new - old) * (new - old)
            fall += old * old - new * new
        moved[i], steps[i], falls[i] = differs, np.sqrt(step), fall / 2


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"}, inline="always")
def _decide_row_among_moved(
    scores, row, half_norms, largest, slack, x, squared, centroids, moved, own, distance, bound
):
    """Nearest of a row's own centroid and the moved ones, squared distance, and the bound on the scores of all others.

    Args:
        scores, row: what `products_of` takes, products with the moved centroids; half_norms: |c|^2 / 2 of these.
        moved: (m,) their numbers.
        largest: largest score of every panel.
        squared: norm of the row; distance: to its own centroid, squared; bound: on those that stayed.
    """
    nearest, smallest = own, distance
    runner_up = np.inf
    threshold = np.float32((squared - distance) / 2 - slack)
    others = largest_below(largest, threshold)
    for panel in range(len(largest)):
        if largest[panel] < threshold:  # never the panel of the own centroid: it scores above
            continue
        found, most = high_scores(scores, row, half_norms, panel, threshold)
        others = max(others, most)
        while found:
            j = panel * PANEL + lowest_bit(found)
            found &= found - np.uint32(1)
            if moved[j] == own:
                continue
            other = _squared_distance(x, centroids[moved[j]])
            if other < smallest or (other == smallest and moved[j] < nearest):
                nearest, smallest, runner_up = moved[j], other, smallest
            else:
                runner_up = min(runner_up, other)
    return nearest, smallest, max(bound, _score_bound(squared, runner_up, others, slack))


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"}, cache=True)
def _decide_among_moved(scores, half_norms, slack, x, centroids, moved, column_of, labels, distances, bounds, again):
    """`_decide_row_among_moved` for all rows of a product that torch has made; see `_search_moved`."""
    n, m = scores.shape
    for part_of_rows in numba.prange((n + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE):
        largest = np.empty((m + PANEL - 1) // PANEL, np.float32)
        for i in range(part_of_rows * ROWS_AT_ONCE, min((part_of_rows + 1) * ROWS_AT_ONCE, n)):
            own = labels[i]
            squared, distance = _norm_and_distance(x[i], centroids[own])
            again[i] = column_of[own] >= 0 and (squared - distance) / 2 <= bounds[i]
            if again[i]:
                continue
            _panel_maxima(scores[i], half_norms, largest)
            labels[i], distances[i], bounds[i] = _decide_row_among_moved(
                scores, i, half_norms, largest, slack[i], x[i], squared, centroids, moved, own, distance, bounds[i]
            )


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"}, inline="always")
def _columns_needed(score, bound, norm, steps, falls):
    """How many of the moved centroids, farthest movers first, can win a row, or would use up much of its margin.

    From ``m`` on, none scores more than it did by more than norm * steps[m] + falls[m].
    """
    least, most = 0, len(steps) - 1
    allowed = MARGIN_USED * (score - bound)
    while least < most:
        middle = (least + most) // 2
        if norm * steps[middle] + falls[middle] < allowed:
            most = middle
        else:
            least = middle + 1
    return least


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"}, cache=True)
def _search_moved(
    x,
    packed,
    half_norms,
    step,
    terms,
    centroids,
    moved,
    column_of,
    steps,
    falls,
    rooms,
    next_block,
    labels,
    distances,
    bounds,
    again,
    columns,
):
    """Product and decision among the moved centroids; ``again`` marks the rows for which that is not enough.

    Args:
        packed, half_norms, step, terms, rooms, next_block: as for `curation.kmeans.assignment._search`, but of the
            moved ones.
        moved: (m,) numbers of the moved ones, farthest movers first; column_of: (k,) the inverse, -1 for the others.
        steps, falls: (m + 1,) how far those from each on moved at most, and how much their half norms fell.
        labels, distances, bounds: of the last iteration; updated.
        columns: (n,) int32; gets how many moved centroids each row was compared with.
    """
    all_tiles, all_low, all_units, all_scores, all_maxima = rooms
    at_once = all_scores.shape[2]
    for worker in numba.prange(all_scores.shape[0]):
        tiles, low, units = all_tiles[worker], all_low[worker], all_units[worker]
        scores, maxima = all_scores[worker], all_maxima[worker]
        some, slack = np.empty(at_once, np.int64), np.empty(at_once, np.float32)
        squares, own_distance, needed = np.empty(at_once), np.empty(at_once), np.empty(at_once, np.int64)
        panels = np.empty(tiles.shape[0], np.int64)
        while True:
            first = take_next(next_block) * at_once
            if first >= len(x):
                break
            n_kept = 0
            for i in range(first, min(first + at_once, len(x))):
                own = labels[i]
                squared, distance = _norm_and_distance(x[i], centroids[own])
                score = (squared - distance) / 2
                again[i] = column_of[own] >= 0 and score <= bounds[i]
                if not again[i]:
                    some[n_kept], squares[n_kept], own_distance[n_kept] = i, squared, distance
                    needed[n_kept] = _columns_needed(score, np.float64(bounds[i]), np.sqrt(squared), steps, falls)
                    n_kept += 1
            # rows that need few come together, so that whole tiles do
            order = np.argsort(needed[:n_kept])
            for place in range(n_kept):
                norm, residual, unit = pack_row(x[some[order[place]]], low, tiles, place)
                units[place] = unit * step
                slack[place] = norm * terms[0] + residual * terms[1] + terms[2]
                panels[place // rows_of(tiles)] = (needed[order[place]] + PANEL - 1) // PANEL
            n_tiles = (n_kept + rows_of(tiles) - 1) // rows_of(tiles)
            multiply_some(tiles, panels[:n_tiles], packed, half_norms, units, scores, maxima)
            for place in range(n_kept):
                i, n_panels = some[order[place]], panels[place // rows_of(tiles)]
                n_columns = min(n_panels * PANEL, len(moved))
                columns[i] = n_columns
                bound = np.float64(bounds[i])
                if n_columns < len(moved):
                    grown = steps[n_columns] * np.sqrt(squares[order[place]]) + falls[n_columns]
                    bound += grown
                    bound += ROUNDING * (abs(bound) + grown)
                labels[i], distances[i], bounds[i] = _decide_row_among_moved(
                    scores,
                    place,
                    half_norms,
                    maxima[place, :n_panels],
                    slack[place],
                    x[i],
                    squares[order[place]],
                    centroids,
                    moved,
                    labels[i],
                    own_distance[order[place]],
                    np.float32(bound),
                )


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
        """Start an iteration with these centroids, in the frame of the rows; they are kept, so do not write to them."""
        room = None if self.search is None else self.search.room
        self.search = search = CentroidSearch(centroids, precision)
        search.room, self.moved_search = room, None
        usable = search.device.type == "cpu" and not search.few_dimensions
        if usable and self.before is not None:
            differs, step, fall = np.empty(search.k, np.bool_), np.empty(search.k), np.empty(search.k)
            _movement(self.before.numpy(), search.centroids.numpy(), differs, step, fall)
            moved = np.flatnonzero(differs)
            moved = moved if len(moved) else np.zeros(1, np.int64)  # a search needs a centroid
            if len(moved) < WORTH_IT * search.k:
                moved = moved[np.argsort(-step[moved], kind="stable")]
                self.moved = moved.astype(np.int32)
                self.column_of = np.full(search.k, -1, np.int32)
                self.column_of[self.moved] = np.arange(len(moved), dtype=np.int32)
                fall = np.maximum(fall[moved], 0.0)
                self.falls = np.append(np.maximum.accumulate(fall[::-1])[::-1], 0.0)
                self.steps = np.append(step[moved] * (1 + ROUNDING), 0.0)
                self.moved_search = CentroidSearch(search.centroids[torch.from_numpy(moved)], precision)
        self.before = search.centroids if usable else None
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
        how: tuple[Any, ...]
        state: tuple[Any, ...]
        centroids, among = self.search.centroids.numpy(), (self.moved, self.column_of)
        if self.search.tiled:
            packed = self.moved_search.packed
            assert packed is not None
            how = packed.values, packed.half_norms, packed.step, self.moved_search.slack_terms(rounded=False), centroids
            state = mine, distances.numpy(), bounds
            columns = np.zeros(len(x), np.int32)
            room = self.steps, self.falls, packed.rooms(), np.zeros(1, np.int64)
            _search_moved(x.numpy(), *how, *among, *room, *state, again, columns)
            self.searched += float(columns.sum())
            rows = np.flatnonzero(again)
            self.search.search_rows(x, rows, *state)
        else:
            self.searched += float(len(x)) * len(self.moved)
            half_norms = self.moved_search.half_norms.numpy()
            for first, last, scores, slack in self.moved_search.scores(x):
                here = slice(first, last)
                state = mine[here], distances[here].numpy(), bounds[here]
                how = bits(scores), half_norms, slack.numpy(), x[here].numpy(), centroids
                _decide_among_moved(*how, *among, *state, again[here])
            rows = np.flatnonzero(again)
            if len(rows):
                fresh = np.empty(len(rows), np.float32)
                labels, squared = self.search.nearest(x[torch.from_numpy(rows)], fresh)
                mine[rows], distances[torch.from_numpy(rows)], bounds[rows] = labels.numpy(), squared, fresh
        self.searched += float(len(rows)) * self.search.k
        return torch.from_numpy(mine.copy()), distances
