"""Near-duplicates by embedding, with a rule that is safe on any embedding.

A fixed cosine threshold is not: in some embeddings every two rows have a cosine of 0.9, and chains of similar rows join
what is not alike. Here the mean is taken off first; a pair must be close (cosine, after that) and also much closer than
either row's own neighbourhood; a dropped row is always close to the very row that is kept, never through others; and
many rows that are close to one are kept, for no distance tells a rare concept from one row with its copies. Where
something else does, such as the looks of pictures, it decides, and the embedding must only agree.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from curation.group import Group
from curation.kmeans.assignment import rows_per_read
from curation.kmeans.pieces import run_jobs
from curation.preparation.duplicates import DuplicateReport
from curation.store.bad_rows import check_rows
from curation.store.embeddings import Embeddings, embedder_of, open_embeddings, require_one_embedder
from curation.store.rows import SelectedRows
from foundation.errors import CurationError

ROWS_PER_BLOCK = 4096
EXACT_ROWS = 50_000  # up to here all pairs are compared; above, the rows of the nearest cells of an inverted file
PROBES = 16  # cells of the inverted file that a row is looked for in
INDEX_BYTES = 8 << 30  # beyond it, rows are compared within clusters that fit
CLUSTERS_A_PART, PART_ITERATIONS = 8, 10
Alike = Callable[[Int[np.ndarray, "p"], Int[np.ndarray, "p"]], Bool[np.ndarray, "p"]]
EQUAL = 1e-4  # of the typical length: nearer than this, two rows are one, whatever their neighbourhood
ROUNDING = 4e-3  # of the typical length: what an index says below this is measured again from the rows themselves


@dataclass(frozen=True)
class NearRule:
    """When two rows repeat each other.

    Attributes:
        threshold: least cosine of their embeddings, after the mean of the pool is taken off.
        ratio: greatest share of the distance to the 40th neighbour, of either row, that the two may be apart. Where the
            embedding has few dimensions, the share is lowered until a pool without duplicates loses ``false_alarm``.
        neighbours: which neighbour sets that scale; rows that repeat more often than this are still found where they
            are all but equal.
        false_alarm: share of rows lost at most where rows lie at random and nothing is repeated.
        largest_group: rows of a group, the kept one among them, up to which it is taken for one row and its copies. Of
            more, only those go that are all but equal to another.
        leeway: by how much less than ``threshold`` the cosine may be where other signs say that two rows repeat each
            other. Then neither ``ratio`` nor ``largest_group`` is asked.
    """

    threshold: float = 0.95
    ratio: float = 0.5
    neighbours: int = 40
    false_alarm: float = 0.01
    largest_group: int = 4
    leeway: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise CurationError(f"threshold {self.threshold:g} is a cosine similarity and must lie in (0, 1]")
        if not 0 < self.ratio <= 1 or not 0 < self.false_alarm < 1 or self.neighbours < 2:
            raise CurationError(
                f"ratio {self.ratio:g} must lie in (0, 1], false_alarm {self.false_alarm:g} in (0, 1), and neighbours "
                f"{self.neighbours} be at least 2"
            )
        if self.largest_group < 1:
            raise CurationError(f"largest_group {self.largest_group} must be at least 1")
        if not 0 <= self.leeway < 1:
            raise CurationError(f"leeway {self.leeway:g} is a part of a cosine and must lie in [0, 1)")

    def least(self, alike: bool) -> float:
        """The least cosine of rows that other signs call alike, and of those that nothing but distance tells of."""
        return self.threshold - self.leeway if alike else self.threshold

    def limit(self, dimension: float) -> float:
        """The share in use: in ``dimension`` dimensions, K ratio^dimension of the rows pass it by chance."""
        return min(self.ratio, (self.false_alarm / self.neighbours) ** (1 / max(dimension, 0.1)))


@dataclass(frozen=True)
class NearDuplicates(DuplicateReport):
    """As `DuplicateReport`, where ``duplicate_of`` is the row at the centre of its group.

    Attributes:
        similarity: (n - m,) float32 cosine of each dropped row and the one it repeats, after the mean is taken off.
        measured: what the rule saw: ``mean_cosine`` of two rows before the mean is taken off, intrinsic ``dimension``,
            the ``ratio`` in use, rows ``searched`` at once, rows ``alike`` that were kept since their group is large.
    """

    similarity: Float[np.ndarray, "r"] = field(default_factory=lambda: np.empty(0, np.float32))
    measured: dict[str, float] = field(default_factory=dict)


class _Centred:
    """Rows of embeddings as float32, of unit length where asked, with the mean of all taken off."""

    def __init__(self, source: Embeddings, unit: bool, mean: Float[np.ndarray, "d"] | None = None):
        self.source, self.unit = source, unit
        self.mean = np.zeros(source.dim) if mean is None else mean
        self.typical = 1.0
        if mean is None:
            self._measure()

    def _measure(self) -> None:
        total, squares, lengths = np.zeros(self.source.dim), 0.0, 0.0
        for start in range(0, self.source.n_rows, ROWS_PER_BLOCK):
            rows = self.rows(start, start + ROWS_PER_BLOCK).astype(np.float64)
            total += rows.sum(0)
            squares += float((rows * rows).sum())
            lengths += float(np.sqrt((rows * rows).sum(1)).sum())
        n = self.source.n_rows
        self.mean = total / n
        middle = float(self.mean @ self.mean)
        self.typical = math.sqrt(max(squares / n - middle, 0.0))
        self.mean_cosine = middle / max((lengths / n) ** 2, 1e-30)
        if self.typical <= 1e-6 * max(math.sqrt(middle), 1e-30):
            raise CurationError(
                f"all {n} embeddings are alike, so no row can be told from another; embed with another network"
            )

    def _finish(self, rows: np.ndarray) -> np.ndarray:
        if self.unit:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return np.ascontiguousarray(rows - self.mean, dtype=np.float32)

    def rows(self, start: int, stop: int) -> Float[np.ndarray, "m d"]:
        return self._finish(self.source.block(start, min(stop, self.source.n_rows)).float().cpu().numpy())

    def take(self, rows: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
        return self._finish(self.source.take(rows).float().cpu().numpy())

    def lengths(self) -> Float[np.ndarray, "n"]:
        blocks = range(0, self.source.n_rows, ROWS_PER_BLOCK)
        return np.concatenate([np.linalg.norm(self.rows(s, s + ROWS_PER_BLOCK), axis=1) for s in blocks])

    def distances(self, a: Int[np.ndarray, "p"], b: Int[np.ndarray, "p"]) -> Float[np.ndarray, "p"]:
        """Distance of pairs of rows, from their difference: exact where they are all but equal."""
        found = np.empty(len(a), np.float32)
        for start in range(0, len(a), ROWS_PER_BLOCK):
            part = slice(start, start + ROWS_PER_BLOCK)
            found[part] = np.linalg.norm(self.take(a[part]) - self.take(b[part]), axis=1)
        return found

    def cosines(self, a: Int[np.ndarray, "p"], b: Int[np.ndarray, "p"]) -> Float[np.ndarray, "p"]:
        """Cosine of pairs of rows; 1 where both lie at the mean."""
        found = np.empty(len(a), np.float32)
        for start in range(0, len(a), ROWS_PER_BLOCK):
            part = slice(start, start + ROWS_PER_BLOCK)
            one, two = self.take(a[part]), self.take(b[part])
            found[part] = _cosine(
                np.linalg.norm(one, axis=1),
                np.linalg.norm(two, axis=1),
                np.linalg.norm(one - two, axis=1),
                self.typical,
            )
        return found


def _cosine(one: np.ndarray, two: np.ndarray, apart: np.ndarray, typical: float) -> np.ndarray:
    """Cosine from two lengths and a distance; rows that are equal have 1, even at the mean."""
    product = one * two
    cosine = (one * one + two * two - apart * apart) / np.maximum(2 * product, 1e-30)
    return np.where(apart <= EQUAL * typical, 1.0, np.clip(cosine, -1, 1))


def _index(n_rows: int, dim: int) -> Any:
    """An empty index for so many rows: exact for few, an inverted file of half-precision rows for many."""
    import faiss

    if n_rows <= EXACT_ROWS:
        return faiss.IndexFlatL2(dim)
    cells = int(4 * math.sqrt(n_rows))
    half = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatL2(dim), dim, cells, half, faiss.METRIC_L2)
    index.nprobe = PROBES
    return index


def _filled(x: _Centred) -> Any:
    index, n = _index(x.source.n_rows, x.source.dim), x.source.n_rows
    if not index.is_trained:
        rows = np.sort(np.random.default_rng(0).choice(n, min(n, 40 * index.nlist), replace=False))
        index.train(x.take(rows))
    for start in range(0, n, ROWS_PER_BLOCK):
        index.add(x.rows(start, start + ROWS_PER_BLOCK))
    return index


def _neighbours(
    index: Any, queries: _Centred, k: int, title: str | None
) -> Iterator[tuple[int, Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]]:
    """First row, distances and rows of the k nearest, nearest first; a row that is missing is -1."""
    n = queries.source.n_rows
    for start in tqdm(range(0, n, ROWS_PER_BLOCK), desc=title, unit="block", disable=title is None):
        squared, found = index.search(queries.rows(start, start + ROWS_PER_BLOCK), k)
        yield start, np.sqrt(np.maximum(squared, 0)), found


def _dimension(distances: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m"]:
    """Intrinsic dimension around each row by maximum likelihood (Levina & Bickel, 2004), from the further half of the
    neighbours alone, since the nearer ones may be duplicates: log(r_k / r_j) is log(k / j) / dimension on average.

    Column j holds the distance of the j-th neighbour; column 0 is the row itself.
    """
    k = distances.shape[1] - 1
    j = np.arange(max(1, k // 2), k)
    if not len(j):
        return np.full(len(distances), 1e3)
    logs = np.log(np.maximum(distances[:, -1:], 1e-12) / np.maximum(distances[:, j], 1e-12)).mean(1)
    return float(np.log(k / j).mean()) / np.maximum(logs, 1e-4)


def star_groups(n: int, a: Int[np.ndarray, "p"], b: Int[np.ndarray, "p"]) -> Int[np.ndarray, "n"]:
    """(n,) int64 centre of each row's group: the row with most pairs takes all its partners, then the next, and so on.

    Unlike connected components, no chain forms: each member is a partner of its centre. Ties go to the lower row.
    """
    a, b = np.concatenate([a, b]), np.concatenate([b, a])
    keys = np.unique(a[a != b] * np.int64(n) + b[a != b])
    a, b = keys // n, keys % n
    starts = np.searchsorted(a, np.arange(n + 1))
    degree = np.diff(starts)
    centre = np.full(n, -1, np.int64)
    paired = np.flatnonzero(degree)
    for row in paired[np.argsort(-degree[paired], kind="stable")]:
        if centre[row] < 0:
            partners = b[starts[row] : starts[row + 1]]
            centre[partners[centre[partners] < 0]] = row
            centre[row] = row
    alone = centre < 0
    centre[alone] = np.flatnonzero(alone)
    return centre


def near_duplicates(
    x: Any,
    rule: NearRule | None = None,
    metric: str = "cosine",
    pairs: tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]] | None = None,
    confirm: float = 0.7,
    *,
    alike: Alike | None = None,
    progress: bool = True,
    group: Group | None = None,
    work: Path | None = None,
) -> NearDuplicates:
    """Rows that repeat another, by embedding; the centre of each group is kept.

    Up to 50,000 rows all pairs are compared; above, the nearest cells of an inverted file (faiss); where that needs
    more than 8 GiB, within clusters, which processes share: the result does not depend on their number.

    Args:
        x: (n, d), anything `open_embeddings` takes.
        metric: "cosine" brings rows to unit length first; "l2" takes them as they are.
        pairs: rows that look alike by other signs (perceptual hashes); they are duplicates where their cosine is at
            least ``confirm``, without regard to their neighbourhood.
        alike: (p,) rows, and as many others -> which of these pairs repeat each other by other signs: of rows that are
            near neighbours they decide, unless two are all but equal. None: distances alone.
        group: the processes that share the work, of which each gets the whole result; None: this one alone.
        work: where finished clusters are kept, and gone on from; all processes see it.

    Raises:
        CurationError: a threshold out of range, or all rows alike.
    """
    rule, group = rule or NearRule(), group or Group()
    source = open_embeddings(x)
    n = source.n_rows
    if n < 2:
        return NearDuplicates(np.arange(n), np.empty(0, np.int64), np.empty(0, np.int64))
    centred = _Centred(source, metric == "cosine")
    parts = _parts(source, metric, progress, group)
    centre = np.arange(n)

    def search(number: int) -> tuple[np.ndarray, np.ndarray]:
        part = parts[number]
        mine = centred if len(parts) == 1 else _part_of(centred, part)
        of_part = None if alike is None else partial(_of_rows, alike, part)
        found, large, seen = _groups(mine, rule, progress and group.first, of_part)
        # first the dimension of the whole part, then dropped rows, then those of large groups: their centre, below zero
        moved, stay = np.flatnonzero(found != np.arange(len(part))), np.flatnonzero(large >= 0)
        rows = np.concatenate([[0], part[moved], part[stay]])
        return rows, np.concatenate([[seen], part[found[moved]], -1.0 - part[large[stay]]])

    if group.size > 1:  # torchrun leaves OpenMP one thread, srun as many as the machine has
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
    lengths, (rows, values) = run_jobs(np.array([len(part) for part in parts]), search, work, group)
    heads = np.cumsum(lengths) - lengths
    dimensions = values[heads]
    rows, values = np.delete(rows, heads), np.delete(values, heads).astype(np.int64)  # below 2^53 whole as float64
    centre[rows[values >= 0]] = values[values >= 0]
    rows, values = rows[values < 0], values[values < 0]
    ratio = rule.limit(float(np.median(dimensions)))
    if pairs is not None and len(pairs[0]):
        sure = centred.cosines(*pairs) >= confirm
        a, b = pairs[0][sure], pairs[1][sure]
        # the stars found so far, and the new pairs, are joined as stars again
        inside = np.flatnonzero(centre != np.arange(n))
        centre = star_groups(n, np.concatenate([inside, a]), np.concatenate([centre[inside], b]))
    dropped = np.flatnonzero(centre != np.arange(n))
    similarity = centred.cosines(dropped, centre[dropped])
    stay = centre[rows] == rows
    measured = {
        "mean_cosine": round(centred.mean_cosine, 4),
        "dimension": round(float(np.median(dimensions)), 2),
        "ratio": round(ratio, 4),
        "searched": max(len(part) for part in parts),
        "alike": int(stay.sum()) - len(np.unique(values[stay])),
    }
    return NearDuplicates(np.flatnonzero(centre == np.arange(n)), dropped, centre[dropped], similarity, measured)


def _of_rows(
    alike: Alike, rows: Int[np.ndarray, "m"], a: Int[np.ndarray, "p"], b: Int[np.ndarray, "p"]
) -> Bool[np.ndarray, "p"]:
    """Asked of positions among some rows."""
    return alike(rows[a], rows[b])


def _part_of(x: _Centred, rows: Int[np.ndarray, "m"]) -> _Centred:
    part = _Centred(SelectedRows(x.source, rows), x.unit, x.mean)
    part.typical = x.typical
    return part


def part_sizes(n_rows: float, dim: int) -> tuple[int, int]:
    """Rows that are compared with each other at most, and the clusters that they are packed from; (rows, 0): all."""
    bytes_each = dim * (4 if n_rows <= EXACT_ROWS else 2)
    most = max(1024, INDEX_BYTES // bytes_each)
    return (int(n_rows), 0) if n_rows <= most else (most, CLUSTERS_A_PART * math.ceil(n_rows / most))


def _parts(source: Embeddings, metric: str, progress: bool, group: Group) -> list[Int[np.ndarray, "m"]]:
    """Rows that are compared with each other: all, or clusters packed into parts of `INDEX_BYTES`."""
    most, k = part_sizes(source.n_rows, source.dim)
    if not k:
        return [np.arange(source.n_rows)]
    from curation.kmeans import kmeans

    title = "clusters" if progress and group.first else False
    labels = kmeans(source, k, metric=metric, max_iterations=PART_ITERATIONS, progress=title, group=group).labels
    order = np.argsort(labels, kind="stable")
    pieces: list[list[np.ndarray]] = []
    room = 0
    for rows in np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1]):
        for piece in np.array_split(rows, max(1, math.ceil(len(rows) / most))):
            if not pieces or len(piece) > room:
                pieces.append([])
                room = most
            pieces[-1].append(piece)
            room -= len(piece)
    return [np.sort(np.concatenate(piece)) for piece in pieces]


def _groups(
    x: _Centred, rule: NearRule, progress: bool, alike: Alike | None
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"], float]:
    """Centre of each row's group; of a row that is kept as one of a large group the centre of that, of others -1; and
    the median intrinsic dimension.

    A row whose neighbours all repeat it may repeat further ones: then the kept rows are compared once more, and a row
    that is not close to its last centre is kept after all.
    """
    n = x.source.n_rows
    centre, left = np.arange(n), np.arange(n)
    dimension = 1e3
    equal: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(4):
        mine = x if len(left) == n else _part_of(x, left)
        of_left = None if alike is None else partial(_of_rows, alike, left)
        title = f"near duplicates, pass {number + 1}" if progress else None
        a, b, same, full, seen = _close_pairs(mine, rule, title, of_left)
        equal.append((left[a[same]], left[b[same]]))
        dimension = seen if number == 0 else dimension
        found = left[star_groups(len(left), a, b)]
        step = np.arange(n)
        step[left] = found
        centre = step[centre]
        left = np.flatnonzero(centre == np.arange(n))
        if not full or len(left) < 2:
            break
    if number:
        dropped = np.flatnonzero(centre != np.arange(n))
        far = dropped[x.cosines(dropped, centre[dropped]) < rule.least(alike is not None)]
        centre[far] = far
    if alike is not None:
        return centre, np.full(n, -1), dimension
    first = _first_equal(centre, *(np.concatenate(rows) for rows in zip(*equal, strict=True)))
    different = np.bincount(centre[first == np.arange(n)], minlength=n)  # rows of each group
    large = (different > rule.largest_group)[centre]
    return np.where(large, first, centre), np.where(large & (first == np.arange(n)), centre, -1), dimension


def _first_equal(
    centre: Int[np.ndarray, "n"], a: Int[np.ndarray, "p"], b: Int[np.ndarray, "p"]
) -> Int[np.ndarray, "n"]:
    """Of each row the first of its group that it is all but equal to, by pairs of such rows."""
    n, inside = len(centre), centre[a] == centre[b]
    pairs = coo_array((np.ones(int(inside.sum()), bool), (a[inside], b[inside])), shape=(n, n))
    _count, part = connected_components(pairs, directed=False)
    return np.unique(part, return_index=True)[1][part]


def _close_pairs(
    x: _Centred, rule: NearRule, title: str | None, alike: Alike | None
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Bool[np.ndarray, "p"], bool, float]:
    """Pairs that the rule calls duplicates, which of them are all but equal, whether some row has only such neighbours,
    and the median dimension."""
    n = x.source.n_rows
    k = min(rule.neighbours, n - 1)
    lengths, index = x.lengths(), _filled(x)
    scale, dimension = np.zeros(n, np.float32), np.zeros(n, np.float32)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, distances, found in _neighbours(index, x, k + 1, title):
        rows = np.arange(start, start + len(found))
        distances = np.where(found < 0, np.inf, distances)
        scale[rows] = np.where(np.isfinite(distances), distances, 0).max(1)
        dimension[rows] = _dimension(np.where(np.isfinite(distances), distances, scale[rows, None]))
        near = (found >= 0) & (found != rows[:, None])
        if alike is None:
            near &= (distances <= rule.ratio * scale[rows, None]) | (distances <= ROUNDING * x.typical)
        position, rank = np.nonzero(near)
        a, b, apart = rows[position], found[position, rank], distances[position, rank]
        doubtful = apart <= ROUNDING * x.typical
        apart[doubtful] = x.distances(a[doubtful], b[doubtful])
        close = np.flatnonzero(_cosine(lengths[a], lengths[b], apart, x.typical) >= rule.least(alike is not None))
        if alike is not None:
            close = close[alike(a[close], b[close]) | (apart[close] <= EQUAL * x.typical)]
        kept.append((a[close], b[close], apart[close]))
    a, b, apart = (np.concatenate(part) for part in zip(*kept, strict=True))
    median = float(np.median(dimension))
    equal = apart <= EQUAL * x.typical
    sure = equal | (apart <= rule.limit(median) * np.minimum(scale[a], scale[b])) | (alike is not None)
    a, b = a[sure].astype(np.int64), b[sure].astype(np.int64)
    full = bool(len(a)) and k < n - 1 and bool(np.bincount(a, minlength=n).max() >= k)
    return a, b, equal[sure], full, median


def near_held_out(
    x: Any, held_out: Any, rule: NearRule | None = None, metric: str = "cosine", progress: bool = True
) -> NearDuplicates:
    """Pool rows that repeat a row of a held-out set, by the same rule: drop them before training.

    ``duplicate_of`` names the nearest row of the held-out set.

    Raises:
        CurationError: the two were not embedded in the same dimensions, or see `near_duplicates`.
    """
    rule = rule or NearRule()
    source, reference = open_embeddings(x), open_embeddings(held_out)
    if source.dim != reference.dim:
        raise CurationError(f"the pool has {source.dim} dimensions but the held-out set {reference.dim}")
    require_one_embedder(embedder_of(source.metadata), embedder_of(reference.metadata), "the pool and the held-out set")
    check_rows(reference, metric == "cosine", rows_per_read(reference.dim), remedy="leave them out")
    pool = _Centred(source, metric == "cosine")
    other = _Centred(reference, metric == "cosine", pool.mean)
    lengths, theirs = pool.lengths(), other.lengths()
    nearest = np.full(source.n_rows, -1, np.int64)
    apart = np.zeros(source.n_rows, np.float32)
    for start, distances, found in _neighbours(_filled(other), pool, 1, "held-out rows" if progress else None):
        nearest[start : start + len(found)], apart[start : start + len(found)] = found[:, 0], distances[:, 0]
    cosine = _cosine(lengths, theirs[nearest], apart, pool.typical)
    rows = np.flatnonzero((nearest >= 0) & (cosine >= rule.threshold))
    median, ratio = 0.0, rule.ratio
    if len(rows) and source.n_rows > 2:
        k = min(rule.neighbours, source.n_rows - 1)
        scale, dimension = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
        for start, distances, _found in _neighbours(_filled(pool), _part_of(pool, rows), k + 1, None):
            distances = np.where(np.isfinite(distances), distances, 0)
            scale[start : start + len(distances)] = distances.max(1)
            dimension[start : start + len(distances)] = _dimension(distances)
        median = float(np.median(dimension))
        ratio = rule.limit(median)
        rows = rows[(apart[rows] <= ratio * scale) | (apart[rows] <= EQUAL * pool.typical)]
    keep = np.delete(np.arange(source.n_rows), rows)
    measured = {"mean_cosine": round(pool.mean_cosine, 4), "dimension": round(median, 2), "ratio": round(ratio, 4)}
    return NearDuplicates(keep, rows, nearest[rows], cosine[rows].astype(np.float32), measured)
