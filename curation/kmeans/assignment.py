"""Nearest centroid: a low-precision product proposes, a direct float64 distance decides.

The product x.c runs in bfloat16 where the hardware has units for it, in int16 where that is faster than float32, else
in float32. Its rounding error is bounded row by row from the rounding residuals; every centroid within twice the bound
of the best is measured directly. So the index is the exact argmin for any precision of the product, and no (n, k)
matrix exists beyond one cache-sized block.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.kmeans.frame import Frame
from curation.kmeans.tiles import (
    INTEGERS,
    MATRICES,
    MOST_DIMENSIONS,
    PAIRS,
    PANEL,
    PackedCentroids,
    as_float32,
    has_feature,
    high_scores,
    largest_below,
    lowest_bit,
    multiply_block,
    pack_row,
    round_centroids,
    round_to_bfloat16,
    take_next,
)
from curation.store.embeddings import Embeddings, open_embeddings, rows_per_read
from foundation.errors import CurationError

SCORE_BYTES = 16 << 20  # of a block of scores: large products keep all cores busy, and it still fits the last cache
GPU_SCORE_BYTES = 1 << 29
ROWS_AT_ONCE = 32  # of one thread
FEW_DIMENSIONS = 16  # below, a matrix product costs more than plain differences
# The bound of `CentroidSearch._slack`, term by term; u = 2^-24 is the unit roundoff of float32.
SUM_ROUNDOFF = 2.0**-23  # 2 u: each of the d additions of a float32 dot product errs by u, doubled for blocked orders
SUM_TERMS = 8  # besides the d of the dot product: the subtraction of the half norm, the norms in the bound itself
HALF_NORM_ROUNDOFF = 2.0**-22  # of |c|^2 / 2, rounded to float32 and subtracted: u each on a half, with room
LOW_NORM = 1.01  # |low| <= (1 + 2^-8) |x| after rounding to bfloat16
TWICE = 2.02  # two scores are compared, each off by the bound; 1 % for the float32 arithmetic of the bound
SMALLEST = 1e-37  # above the smallest normal float32 (1.2e-38), below which rounding errors are not relative
FEW_TERMS = 4  # relative error of a sum of d squared differences: (d + 4) 2 u; of two that are compared, twice that
UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-23}  # twice the true one: room for the bound's own error


@numba.njit(fastmath={"reassoc", "contract"}, inline="always")
def _squared_distance(x, c):
    total = 0.0
    for f in range(x.shape[0]):
        difference = np.float64(x[f]) - np.float64(c[f])
        total += difference * difference
    return total


@numba.njit(parallel=True, fastmath={"reassoc", "contract"}, cache=True)
def _round_rows(x, patterns, norm, residual):
    """`round_to_bfloat16` of every row."""
    for i in numba.prange(x.shape[0]):
        norm[i], residual[i] = round_to_bfloat16(x[i], patterns[i])


@numba.njit(parallel=True, fastmath={"reassoc", "contract"}, cache=True)
def _squares_of(x, low, squares, residuals):
    """Squared norm of every row, and of its difference to the rounded one; float64."""
    for i in numba.prange(len(x)):
        square, residual = 0.0, 0.0
        for f in range(x.shape[1]):
            value = np.float64(x[i, f])
            difference = value - np.float64(as_float32(low[i, f]))
            square += value * value
            residual += difference * difference
        squares[i], residuals[i] = square, residual


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"}, inline="always")
def _panel_maxima(scores, half_norms, largest):
    """Largest score of every panel of columns, where a product did not leave it."""
    k = scores.shape[0]
    for panel in range((k + PANEL - 1) // PANEL):
        most = np.float32(-np.inf)
        for j in range(panel * PANEL, min((panel + 1) * PANEL, k)):
            most = max(most, as_float32(scores[j]) - half_norms[j])
        largest[panel] = most


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"}, inline="always")
def _squared_norm(x):
    squared = 0.0
    for f in range(x.shape[0]):
        squared += np.float64(x[f]) * np.float64(x[f])
    return squared


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"}, inline="always")
def _score_bound(squared, runner_up, others, slack):
    """Upper bound on the score of all centroids but the nearest, for a row of this squared norm.

    ``runner_up`` is the smallest distance that was measured and lost, ``others`` the largest score that was not
    measured; half the slack bounds the error of a score.
    """
    bound = others + slack * np.float32(0.5)
    if runner_up < np.inf:
        exact = (squared - runner_up) * 0.5
        bound = max(bound, np.float32(exact + 1e-6 * (abs(exact) + 1e-6 * squared)))
    return bound


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"}, inline="always")
def _decide_row(scores, row, half_norms, largest, slack, x, centroids):
    """Exact argmin among the centroids whose score is within ``slack`` of the best, squared distance, and a bound.

    The bound is on the true score of every other centroid; half the slack bounds the error of one. ``scores`` are what
    `products_of` takes, ``largest`` holds the row's largest of every panel.
    """
    best = np.float32(-np.inf)
    for panel in range(len(largest)):
        best = max(best, largest[panel])
    threshold = best - slack
    nearest, smallest, runner_up, others = -1, np.inf, np.inf, largest_below(largest, threshold)
    for panel in range(len(largest)):
        if largest[panel] < threshold:
            continue
        found, most = high_scores(scores, row, half_norms, panel, threshold)
        others = max(others, most)
        while found:
            j = panel * PANEL + lowest_bit(found)
            found &= found - np.uint32(1)
            distance = _squared_distance(x, centroids[j])
            if distance < smallest:  # strict: a tie goes to the lower index
                nearest, smallest, runner_up = j, distance, smallest
            else:
                runner_up = min(runner_up, distance)
    squared = _squared_norm(x) if runner_up < np.inf else 0.0
    return nearest, smallest, _score_bound(squared, runner_up, others, slack)


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"}, cache=True)
def _decide(scores, half_norms, slack, x, centroids, labels, distances, bounds):
    """`_decide_row` for all rows of a product that torch has made."""
    n, k = scores.shape
    for part_of_rows in numba.prange((n + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE):
        largest = np.empty((k + PANEL - 1) // PANEL, np.float32)
        for i in range(part_of_rows * ROWS_AT_ONCE, min((part_of_rows + 1) * ROWS_AT_ONCE, n)):
            _panel_maxima(scores[i], half_norms, largest)
            found = _decide_row(scores, i, half_norms, largest, slack[i], x[i], centroids)
            labels[i], distances[i], bounds[i] = found


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"}, cache=True)
def _search(x, rows, packed, half_norms, step, terms, centroids, rooms, next_block, labels, distances, bounds):
    """Product and decision of some rows of ``x``, a block at a time for each thread.

    Args:
        rows: (m,) their numbers; labels, distances and bounds of these are written.
        packed, half_norms, step, rooms: of `PackedCentroids`.
        terms: see `CentroidSearch.slack_terms`.
        next_block: (1,) int64 zero, from which threads take their work.
    """
    all_tiles, all_low, all_units, all_scores, all_maxima = rooms
    at_once = all_scores.shape[2]
    for worker in numba.prange(all_scores.shape[0]):
        tiles, low, units = all_tiles[worker], all_low[worker], all_units[worker]
        scores, maxima = all_scores[worker], all_maxima[worker]
        slack = np.empty(at_once, np.float32)
        while True:
            first = take_next(next_block) * at_once
            if first >= len(rows):
                break
            some = rows[first : first + at_once]
            for place in range(len(some)):
                norm, residual, unit = pack_row(x[some[place]], low, tiles, place)
                units[place] = unit * step
                slack[place] = norm * terms[0] + residual * terms[1] + terms[2]
            multiply_block(tiles, len(some), packed, half_norms, units, scores, maxima)
            for place in range(len(some)):
                i = some[place]
                found = _decide_row(scores, place, half_norms, maxima[place], slack[place], x[i], centroids)
                labels[i], distances[i], bounds[i] = found


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"}, cache=True)
def _nearest_in_few_dimensions(x, axis, order, transposed, slack, centroids, labels, distances):
    """Exact argmin without a product: float32 differences, whose error is relative, propose; float64 decides.

    Centroids come sorted along one axis, so that a row looks at those around it until the axis alone is too far.

    Args:
        axis, order: the axis, and the (k,) numbers of the centroids along it.
        transposed: (d, k) centroids in that order, so that the inner loop runs over them.
        slack: relative, above 1; with room for the error of one squared difference.
    """
    n, k, chunk, rows_at_once = len(x), transposed.shape[1], 32, 256
    n_chunks = (k + chunk - 1) // chunk
    for part in numba.prange((n + rows_at_once - 1) // rows_at_once):
        squared, least = np.empty(k, np.float32), np.empty(n_chunks, np.float32)
        for i in range(part * rows_at_once, min((part + 1) * rows_at_once, n)):
            along = x[i, axis]
            after = min(np.searchsorted(transposed[axis], along) // chunk, n_chunks - 1)
            before, best = after - 1, np.float32(np.inf)
            first_seen, last_seen = after, after  # chunks from here to before there
            while True:
                limit = best * slack + np.float32(SMALLEST)
                current = -1
                if after < n_chunks:
                    gap = max(transposed[axis, after * chunk] - along, np.float32(0))
                    if gap * gap <= limit:
                        current, after, last_seen = after, after + 1, after + 1
                if current < 0 and before >= 0:
                    gap = max(along - transposed[axis, before * chunk + chunk - 1], np.float32(0))
                    if gap * gap <= limit:
                        current, before, first_seen = before, before - 1, before
                if current < 0:
                    break
                first, last = current * chunk, min(current * chunk + chunk, k)
                there = squared[first:last]
                there[:] = np.float32(0)
                for f in range(x.shape[1]):
                    value = x[i, f]
                    for j in range(last - first):
                        difference = value - transposed[f, first + j]
                        there[j] += difference * difference
                smallest_here = np.float32(np.inf)
                for j in range(last - first):
                    smallest_here = min(smallest_here, there[j])
                least[current] = smallest_here
                best = min(best, smallest_here)
            threshold = best * slack + np.float32(SMALLEST)
            nearest, smallest = -1, np.inf
            for current in range(first_seen, last_seen):
                if least[current] > threshold:
                    continue
                for j in range(current * chunk, min(current * chunk + chunk, k)):
                    if squared[j] <= threshold:
                        distance = _squared_distance(x[i], centroids[order[j]])
                        if distance < smallest or (distance == smallest and order[j] < nearest):
                            nearest, smallest = order[j], distance
            labels[i] = nearest
            distances[i] = smallest


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a bfloat16 product is faster than a float32 one on this device (NUMBA_CPU_FEATURES can say less)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(PAIRS or has_feature("amx-bf16") or capabilities.get("bf16"))  # the last of ARM


def bits(scores: Tensor) -> np.ndarray:
    """Scores as compiled code takes them: float32, or the bit patterns of bfloat16."""
    return (scores.view(torch.uint16) if scores.dtype == torch.bfloat16 else scores).numpy()


def slack_terms(
    n_sums: int, largest_norm: float, largest_residual: float, output: float = UNIT_ROUNDOFF[torch.float32]
) -> Float[np.ndarray, "3"]:
    """Factors of a row's norm, of its rounding residual, and a constant: they sum to the slack of the row.

    The slack is twice the bound on |computed score - true score|. With x = low + residual, |x.c - low.low_c| <=
    |residual||c| + |low||residual_c| (Cauchy-Schwarz); the product then rounds its float32 sums and its output.

    Args:
        n_sums: rounded additions of a product: its dimensions, or 0 where it is exact.
        largest_norm, largest_residual: of all centroids, the residual being what rounding took of each.
        output: roundoff of what the product writes.
    """
    sums = (n_sums + SUM_TERMS) * SUM_ROUNDOFF * largest_norm
    of_norm = LOW_NORM * largest_residual + sums + output * largest_norm
    return TWICE * np.array([of_norm, largest_norm, HALF_NORM_ROUNDOFF * largest_norm**2]) + np.array([0, 0, SMALLEST])


class CentroidSearch:
    """Centroids prepared for nearest-neighbour queries.

    Args:
        centroids: (k, d) in the frame of the queries; float32.
        precision: of the product: "auto", "bfloat16", "int16" (float32 where there are no such tiles) or "float32".
            The answer is the same for all.
    """

    compiled = True  # on the CPU; else plain torch, as on any other device
    in_tiles = True  # on the CPU, where torch has no faster products; else its own
    fused = True  # on CUDA, where Triton is there; else plain torch

    def __init__(self, centroids: Float[Tensor, "k d"], precision: str = "auto"):
        self.centroids = centroids.float().contiguous()
        self.k, self.dim = self.centroids.shape
        self.device = self.centroids.device
        self.few_dimensions = self.dim <= FEW_DIMENSIONS and self.device.type == "cpu"
        if precision == "auto":
            faster_one = "bfloat16" if has_bfloat16_units(self.device) else "int16"
            precision = faster_one if self.k >= 64 and self.dim >= 32 else "float32"
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.low = self.centroids.to(self.dtype)
        self.transposed = self.low.t()
        squares, residuals = self._squares()
        self.half_norms = (squares / 2).float()
        self.largest_norm, self.largest_residual = float(squares.max().sqrt()), float(residuals.max().sqrt())
        row_bytes = self.k * self.low.element_size()
        budget = SCORE_BYTES if self.device.type == "cpu" else GPU_SCORE_BYTES
        self.rows_per_block = max(64, min(8192, budget // row_bytes // 64 * 64))
        others_faster = precision == "bfloat16" and not (PAIRS or MATRICES)
        self.tiled = self.device.type == "cpu" and self.compiled and self.in_tiles and not others_faster
        self.tiled &= not self.few_dimensions
        self.integers = precision == "int16" and self.tiled and INTEGERS and self.dim <= MOST_DIMENSIONS
        self.packed = None
        if self.integers:
            low, step, self.largest_residual = round_centroids(self.centroids.numpy(), self.largest_norm)
            self.packed = PackedCentroids(low, self.half_norms.numpy(), step)
        elif self.tiled:
            self.packed = PackedCentroids(bits(self.low), self.half_norms.numpy())
        self.room: Tensor | None = None  # kept between blocks: fresh memory costs a page fault every 4 kB

    def _squares(self) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
        """Squared norms of the centroids and of what rounding took of each; float64."""
        if self.device.type == "cpu":
            squares, residuals = np.empty(self.k), np.empty(self.k)
            _squares_of(self.centroids.numpy(), bits(self.low), squares, residuals)
            return torch.from_numpy(squares), torch.from_numpy(residuals)
        exact = self.centroids.double()
        return exact.square().sum(dim=1), (exact - self.low.double()).square().sum(dim=1)

    def slack_terms(self, rounded: bool = True) -> Float[np.ndarray, "3"]:
        """`slack_terms` of these centroids; ``rounded`` where the product rounds its output, too."""
        output = UNIT_ROUNDOFF[self.dtype if rounded else torch.float32]
        n_sums = 0 if self.integers else self.dim
        return slack_terms(n_sums, self.largest_norm, self.largest_residual, output)

    def _slack(self, norm: Any, residual: Any, rounded: bool = True) -> Any:
        of_norm, of_residual, constant = self.slack_terms(rounded).tolist()
        return norm * of_norm + residual * of_residual + constant

    def _lower(self, x: Float[Tensor, "m d"], rounded: bool = True) -> tuple[Tensor, Float[Tensor, "m"]]:
        """The rows in the precision of the product, and the slack of each."""
        if self.device.type != "cpu":
            low = x.to(self.dtype)
            residual = torch.linalg.vector_norm(x - low.float(), dim=1)
            return low, self._slack(torch.linalg.vector_norm(x, dim=1), residual, rounded)
        norm, residual = np.empty(len(x), np.float32), np.zeros(len(x), np.float32)
        if self.dtype == torch.float32:
            norm = torch.linalg.vector_norm(x, dim=1).numpy()
            low = x
        else:
            patterns = np.empty(x.shape, np.uint16)
            _round_rows(x.numpy(), patterns, norm, residual)
            low = torch.from_numpy(patterns).view(torch.bfloat16)
        return low, torch.from_numpy(self._slack(norm, residual, rounded).astype(np.float32))

    def nearest(
        self, x: Float[Tensor, "m d"], bounds: Float[np.ndarray, "m"] | None = None
    ) -> tuple[Int[Tensor, "m"], Float[Tensor, "m"]]:
        """Index (int32) of the nearest centroid and squared distance (float32) of float32 rows on the same device.

        Args:
            x: rows.
            bounds: on the CPU, with more than 16 dimensions: gets for each row an upper bound on the score
                x.c - |c|^2 / 2 of all centroids but the nearest.
        """
        labels = torch.empty(len(x), dtype=torch.int32, device=self.device)
        distances = torch.empty(len(x), dtype=torch.float32, device=self.device)
        if self.few_dimensions:
            relative = np.float32(1 + 2 * (self.dim + FEW_TERMS) * SUM_ROUNDOFF)
            centroids = self.centroids.numpy()
            axis = int(np.ptp(centroids, axis=0).argmax())
            order = np.argsort(centroids[:, axis], kind="stable")
            transposed = np.ascontiguousarray(centroids[order].T)
            how = axis, order, transposed, relative, centroids
            _nearest_in_few_dimensions(x.numpy(), *how, labels.numpy(), distances.numpy())
            return labels, distances
        if self._use_kernel() and len(x):
            self._nearest_fused(x, labels, distances)
            return labels, distances
        on_cpu = self.device.type == "cpu" and self.compiled
        if self.tiled:
            others = np.empty(len(x), np.float32) if bounds is None else bounds
            self.search_rows(x, np.arange(len(x)), labels.numpy(), distances.numpy(), others)
            return labels, distances
        others = np.empty(len(x) if on_cpu else 0, np.float32) if bounds is None else bounds
        for start, stop, scores, slack in self.scores(x):
            found = labels[start:stop], distances[start:stop]
            if not on_cpu:
                self._decide_anywhere(scores, slack, x[start:stop], *found)
                continue
            _decide(
                bits(scores),
                self.half_norms.numpy(),
                slack.numpy(),
                x[start:stop].numpy(),
                self.centroids.numpy(),
                found[0].numpy(),
                found[1].numpy(),
                others[start:stop],
            )
        return labels, distances

    def search_rows(
        self,
        x: Float[Tensor, "m d"],
        rows: Int[np.ndarray, "r"],
        labels: Int[np.ndarray, "m"],
        distances: Float[np.ndarray, "m"],
        bounds: Float[np.ndarray, "m"],
    ) -> None:
        """`nearest` of some rows, where this search runs in tiles; writes at the places of these rows."""
        packed = self.packed
        assert packed is not None
        how = packed.values, packed.half_norms, packed.step, self.slack_terms(rounded=False), self.centroids.numpy()
        _search(x.numpy(), rows, *how, packed.rooms(), np.zeros(1, np.int64), labels, distances, bounds)

    def _use_kernel(self) -> bool:
        return self.fused and self.device.type == "cuda" and find_spec("triton") is not None

    def _nearest_fused(self, x: Float[Tensor, "m d"], labels: Int[Tensor, "m"], distances: Float[Tensor, "m"]) -> None:
        """The kernel decides the rows whose second best score is out of reach; the others are looked at in full."""
        from curation.kmeans.fused import best_two

        low, slack = self._lower(x, rounded=False)
        best, second, index = best_two(low, self.low, self.half_norms)
        labels.copy_(index)
        for start in range(0, len(x), self.rows_per_block):
            rows = slice(start, start + self.rows_per_block)
            nearest = self.centroids[labels[rows].long()]
            distances[rows] = (x[rows].double() - nearest.double()).square().sum(dim=1).float()
        unsure = (second >= best - slack).nonzero().flatten()
        for some in unsure.split(self.rows_per_block):
            mine = x[some]
            found = torch.empty_like(labels[: len(some)]), torch.empty_like(distances[: len(some)])
            for first, last, scores, wide in self.scores(mine):
                part = slice(first, last)
                self._decide_anywhere(scores, wide, mine[part], found[0][part], found[1][part])
            labels[some], distances[some] = found

    def scores(self, x: Float[Tensor, "m d"]) -> Iterator[tuple[int, int, Tensor, Float[Tensor, "b"]]]:
        """Products x.c in blocks that fit the cache: start, stop, (b, k) scores, slack; one block at a time is kept."""
        if self.room is None:
            self.room = torch.empty((self.rows_per_block, self.k), dtype=self.dtype, device=self.device)
        for start in range(0, len(x), self.rows_per_block):
            rows = x[start : start + self.rows_per_block]
            low, slack = self._lower(rows)
            scores = self.room[: len(rows)]
            torch.mm(low, self.transposed, out=scores)
            yield start, start + len(rows), scores, slack

    def _decide_anywhere(self, scores: Tensor, slack: Tensor, x: Tensor, labels: Tensor, distances: Tensor) -> None:
        """The same decision in plain torch, for any device."""
        values = scores.float() - self.half_norms
        best, argbest = values.max(dim=1)
        candidate = values >= (best - slack)[:, None]
        chosen = argbest.clone()
        exact = (x.double() - self.centroids[argbest].double()).square().sum(dim=1)
        unsure = (candidate.sum(dim=1) > 1).nonzero().flatten()
        pairs_at_once = max(1, (1 << 26) // self.dim)
        for rows in unsure.split(max(1, pairs_at_once // max(1, self.k))):
            row, column = candidate[rows].nonzero(as_tuple=True)
            measured = (x[rows][row].double() - self.centroids[column].double()).square().sum(dim=1)
            smallest = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=x.device)
            smallest.scatter_reduce_(0, row, measured, "amin")
            tied = torch.where(measured == smallest[row], column, self.k)
            lowest = torch.full((len(rows),), self.k, dtype=column.dtype, device=x.device)
            lowest.scatter_reduce_(0, row, tied, "amin")
            chosen[rows], exact[rows] = lowest, smallest
        labels.copy_(chosen)
        distances.copy_(exact)


def nearest_centroid(
    x: Any, centroids: Any, metric: str = "l2", device: str | torch.device = "cpu", precision: str = "auto"
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Index of the nearest centroid and the squared Euclidean distance to it.

    Args:
        x: (n, d), anything `open_embeddings` takes; read in blocks.
        centroids: (k, d) array or tensor.
        metric: "l2", or "cosine": both sides are scaled to unit length, and the distance is 2 - 2 cos.
        device: where the product runs.
        precision: of the product; the answer is the same for all.

    Returns:
        (n,) int64 labels, the exact argmin with ties to the lower index, and (n,) float32 squared distances.

    Raises:
        CurationError: the widths differ.
    """
    source = open_embeddings(x)
    points = torch.as_tensor(np.asarray(centroids) if not isinstance(centroids, Tensor) else centroids)
    if points.shape[1] != source.dim:
        raise CurationError(f"the rows have {source.dim} dimensions but the centroids {points.shape[1]}")
    frame = Frame.of(points, unit=metric == "cosine")
    search = CentroidSearch(frame.apply(points).to(device), precision)
    return assign_all(source, search, frame)


def assign_all(
    x: Embeddings, search: CentroidSearch, frame: Frame, progress: Any = None, span: tuple[int, int] | None = None
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """`CentroidSearch.nearest` over all rows, or those of ``span``, in blocks; distances in the units of the data."""
    first, last = span or (0, x.n_rows)
    labels = np.empty(last - first, np.int64)
    distances = np.empty(last - first, np.float32)
    for start, block in x.blocks(rows_per_read(x.dim), (first, last)):
        found, squared = search.nearest(frame.apply(block.to(search.device)))
        here = slice(start - first, start - first + len(block))
        labels[here] = found.cpu().numpy()
        distances[here] = squared.cpu().numpy() / frame.scale**2
        if progress is not None:
            progress.update(len(block))
    return labels, distances
