"""What one process holds at the same time, counted phase by phase from the code (docs/user-guide.md has it as a table).

The largest process is the first: it alone seeds by greedy k-means++ and draws resampled sets. Embeddings are read in
blocks and not held.
"""

import math
from collections.abc import Sequence

from curation.kmeans.seeding import GROUPED_WORK, SUBSAMPLE
from curation.kmeans.two_step import READ_BYTES
from curation.preparation.near_duplicates import EXACT_ROWS, ROWS_PER_BLOCK, part_sizes
from curation.store.rows import HELD_BYTES
from curation.trees.hierarchy import LevelPlan
from curation.trees.neighbours import MAX_DIMENSIONS

PROGRAM = 0.85e9  # Python and torch with their libraries; measured
BLOCKS = 0.15e9  # of k-means: rows on their way, scores, sums that are kept from one iteration to the next
# Of each value of the centroids while Lloyd iterates. On the processor: the search among all (8 bytes) and among those
# that moved (8), float64 sums with their error (16), means on their way (16); of several processes what they exchange
# (8 more). On a GPU: the search (6), sums (16), a block that is added to them exactly (40).
LLOYD, LLOYD_OF_SEVERAL, LLOYD_ON_GPU = 48, 56, 64
LLOYD_STATES = 8  # the last centroids and those to be saved, where the rest is on a GPU
GPU_BLOCKS = 1.5e9  # rows and scores of a block, CUDA itself; assumed
# Of each row: nearest centroid, bound, distance, last label; label and distance in the end; of a two-step level coarse
# cluster, label, two distances, order and what it is sorted with; of a resampled set, rows by cluster and copies
ITERATED, ASSIGNED, SPLIT, DRAWN = 16, 12, 40, 24
GRAPHS, GRAPH_ROW = 0.05e9, 12 * MAX_DIMENSIONS + 4096  # their libraries; of each row forms of it, neighbours, edges
# Of near-duplicates: a value of a row that the cells are made of (stored, float32, float64), of each row of an index
# what is found, and of each row of the pool its part: while they are made, and then
CELL_VALUE, INDEX_ROW, PARTING, PARTED = 18, 100, 28, 16
CELLS, CELL_ROWS = 4, 40  # x sqrt(rows), and rows for each, as `curation.preparation.near_duplicates` makes them


def tree_bytes(
    rows: float, dim: int, levels: Sequence[LevelPlan], width: int, processes: int, gpu: bool, fit_rows: int = 0
) -> tuple[float, float]:
    """Bytes of the largest process of `HierarchicalKMeans.fit`, and of its GPU (0: none).

    Args:
        width: bytes of a stored value.
        processes: that share the rows.
        gpu: each has one, which holds what a Lloyd iteration works with.
        fit_rows: rows that level 1 is fitted on; 0: all.
    """
    peak, finished, copy, n = 0.0, 0.0, 0.0, float(rows)
    for level in levels:
        fitted = min(n, fit_rows or n)
        busy, own, stays = _level_bytes(n, fitted, dim, level, width, processes, gpu)
        peak = max(peak, finished + copy + max(busy, stays + own))
        finished, copy = finished + stays, own  # the points of the next level are a copy of the centroids
        n, width, fit_rows = float(level.n_clusters), 4, 0
    device = max(level.k for level in levels) * dim * LLOYD_ON_GPU + GPU_BLOCKS
    return PROGRAM + BLOCKS + peak, device if gpu else 0.0


def _level_bytes(
    n: float, fitted: float, dim: int, level: LevelPlan, width: int, processes: int, gpu: bool
) -> tuple[float, float, float]:
    """Most bytes that a level of n points needs, those of its centroids at the end, and all that stays of it."""
    k, split, mine = level.k, level.n_splits > 1, n / processes
    centroids = 4.0 * level.n_clusters * dim
    own = 0.0 if split and processes > 1 else centroids  # else they lie in a file that the processes map
    lloyd = LLOYD_STATES if gpu else LLOYD if processes == 1 else LLOYD_OF_SEVERAL
    phases = [_seeding_bytes(fitted, k, dim, width), ITERATED * mine + k * dim * lloyd]
    kept = 0.0
    if split:
        # splits of finished clusters, in pieces that the system does not get back; while they are joined twice
        kept = centroids / processes
        reading = 2.0 * min(READ_BYTES / 4, mine * dim) * width + 4 * k * dim
        phases += [2 * kept + SPLIT * fitted / processes + reading, kept + own + SPLIT * mine + reading]
    busy = max(phases)
    if level.n_resamples:
        members = level.sample_size or max(1, math.ceil(n / level.n_clusters / 2))
        drawn = min(n, level.n_clusters * float(members)) * dim * width / processes
        # beside the last labels and centroids
        busy = max(busy + (drawn if drawn <= HELD_BYTES else 0.0), DRAWN * n) + ASSIGNED * mine + own
    return busy, own, own + kept + (ASSIGNED * n if processes == 1 else 0.0)


def _seeding_bytes(n: float, k: int, dim: int, width: int) -> float:
    """The sample as stored and twice as float32; of seeding within groups two generations of centroids."""
    sample = min(n, SUBSAMPLE * k)
    if sample * k * dim > GROUPED_WORK:
        return 8.0 * k * dim + DRAWN * sample
    return sample * dim * (width + 8)


def graph_bytes(rows: float, dim: int, k: int, points: float, processes: int) -> float:
    """Bytes of the first process while it finds communities of ``points`` rows and puts levels on the k clusters."""
    # what level 1 left and its copy with heavy clusters split; then graphs, or rows drawn from clusters
    level_1 = 3 * 4.0 * k * dim + rows * ASSIGNED * (2 if processes == 1 else 1)
    graphs = points * GRAPH_ROW + 24.0 * dim * dim + GRAPHS
    return PROGRAM + level_1 + max(graphs, DRAWN * rows)


def index_bytes(rows: float, dim: int) -> float:
    """Bytes of a process that looks for near-duplicates: the index of all rows, or of one part of them."""
    part, k = part_sizes(rows, dim)
    if part <= EXACT_ROWS:
        index = 2 * 4.0 * part * dim  # it grows by doubling
    else:
        cell_rows = CELL_ROWS * CELLS * math.sqrt(part)
        index = max(part * (2.0 * dim + 8), cell_rows * dim * CELL_VALUE)
    index += part * INDEX_ROW + ROWS_PER_BLOCK * dim * 20
    return PROGRAM + (max(index + PARTED * rows, PARTING * rows) if k else index)
