"""Nearest centroid on a GPU without the (n, k) matrix: Triton kernels that multiply, keep the best, and look again.

One kernel keeps of each row the best two scores, and the best of each tile of centroids. A row whose second score is
more than the slack below its best has its argmin. Of the others, only tiles within the slack are multiplied again, by
rows that share a tile, and what lies within the slack there is measured in float64.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class BlockShape:
    """What a program of the kernel holds at once; it decides the speed alone.

    Attributes:
        rows, centroids: of the block of scores.
        dim: features of a step of the product.
        warps, stages: of Triton.
    """

    rows: int
    centroids: int
    dim: int
    warps: int
    stages: int


# none has been measured: shapes at which bfloat16 products of Triton are fast on Ampere and Hopper
SHAPES = (
    BlockShape(128, 128, 64, 8, 3),
    BlockShape(128, 128, 64, 4, 3),
    BlockShape(128, 128, 64, 8, 4),
    BlockShape(128, 256, 64, 8, 3),
    BlockShape(256, 128, 64, 8, 3),
    BlockShape(128, 64, 64, 4, 4),
    BlockShape(64, 256, 64, 8, 4),
    BlockShape(64, 128, 64, 4, 4),
    BlockShape(128, 128, 32, 8, 4),
)
SMALL = BlockShape(64, 64, 32, 4, 3)  # float32 blocks, or GPUs with little shared memory


def shape_for(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> BlockShape:
    """The block shape for a device: a large one needs the shared memory of server GPUs since Ampere."""
    if device.type != "cuda":  # Triton's interpreter
        return SHAPES[0]
    shared = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return SHAPES[0] if shared >= 160_000 and dtype == torch.bfloat16 else SMALL


@triton.jit
def _best_two(
    x,
    centroids,
    half_norms,
    best_out,
    second_out,
    index_out,
    tops_out,
    n,
    k,
    dim,
    x_stride,
    c_stride,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Per program: ROWS rows against all centroids, CENTROIDS at a time, DIM features at a time, summed in float32."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < n
    many = tl.zeros((ROWS,), tl.int64) + n
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    second = tl.full((ROWS,), float("-inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    features = tl.arange(0, DIM)
    for first in range(0, k, CENTROIDS):
        columns = first + tl.arange(0, CENTROIDS)
        column_mask = columns < k
        scores = tl.zeros((ROWS, CENTROIDS), tl.float32)
        for start in range(0, dim, DIM):
            here = start + features
            mine = tl.load(
                x + rows[:, None] * x_stride + here[None, :], mask=row_mask[:, None] & (here < dim)[None, :], other=0.0
            )
            theirs = tl.load(
                centroids + columns.to(tl.int64)[None, :] * c_stride + here[:, None],
                mask=column_mask[None, :] & (here < dim)[:, None],
                other=0.0,
            )
            scores = tl.dot(mine, theirs, scores, input_precision="ieee")
        scores -= tl.load(half_norms + columns, mask=column_mask, other=0.0)[None, :]
        scores = tl.where(column_mask[None, :], scores, float("-inf"))
        top, place = tl.max(scores, axis=1, return_indices=True)  # of equals the lowest
        others = tl.where(tl.arange(0, CENTROIDS)[None, :] == place[:, None], float("-inf"), scores)
        runner_up = tl.max(others, axis=1)
        tl.store(tops_out + (first // CENTROIDS) * many + rows, top, mask=row_mask)
        second = tl.maximum(tl.maximum(second, runner_up), tl.minimum(best, top))
        index = tl.where(top > best, first + place, index)
        best = tl.maximum(best, top)
    tl.store(best_out + rows, best, mask=row_mask)
    tl.store(second_out + rows, second, mask=row_mask)
    tl.store(index_out + rows, index, mask=row_mask)


def best_two(
    x: Float[Tensor, "m d"],
    centroids: Float[Tensor, "k d"],
    half_norms: Float[Tensor, "k"],
    shape: BlockShape | None = None,
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "t m"]]:
    """Best and second best of x.c - |c|^2 / 2 over the centroids (float32), the index (int32) of the best, and the best
    of each tile of ``shape.centroids`` centroids.

    Args:
        x, centroids: of one dtype (bfloat16 or float32), rows contiguous.
        half_norms: float32.
        shape: see `BlockShape`; None: the one of the device.
    """
    shape = shape or shape_for(x.device, x.dtype)
    best = torch.empty(len(x), dtype=torch.float32, device=x.device)
    second, index = torch.empty_like(best), torch.empty(len(x), dtype=torch.int32, device=x.device)
    tops = torch.empty((triton.cdiv(len(centroids), shape.centroids), len(x)), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(len(x), shape.rows),)
    _best_two[grid](
        x,
        centroids,
        half_norms,
        best,
        second,
        index,
        tops,
        len(x),
        len(centroids),
        x.shape[1],
        x.stride(0),
        centroids.stride(0),
        ROWS=shape.rows,
        CENTROIDS=shape.centroids,
        DIM=shape.dim,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    return best, second, index, tops


@triton.jit
def _round(x, low, norms, residuals, dim, x_stride, DIM: tl.constexpr):
    """Per program: one row in bfloat16, its norm, and the norm of what rounding took away."""
    row = tl.program_id(0).to(tl.int64)
    total, rest = tl.zeros((DIM,), tl.float32), tl.zeros((DIM,), tl.float32)
    for start in range(0, dim, DIM):
        here = start + tl.arange(0, DIM)
        value = tl.load(x + row * x_stride + here, mask=here < dim, other=0.0)
        rounded = value.to(tl.bfloat16)
        tl.store(low + row * dim + here, rounded, mask=here < dim)
        lost = value - rounded.to(tl.float32)
        total += value * value
        rest += lost * lost
    tl.store(norms + row, tl.sqrt(tl.sum(total)))
    tl.store(residuals + row, tl.sqrt(tl.sum(rest)))


def rounded_rows(
    x: Float[Tensor, "m d"],
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m"], Float[Tensor, "m"]]:
    """Float32 rows in bfloat16, their norms, and the norms of the differences, in one pass."""
    low = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    norms = torch.empty(len(x), dtype=torch.float32, device=x.device)
    residuals = torch.empty_like(norms)
    if len(x):
        _round[(len(x),)](x, low, norms, residuals, x.shape[1], x.stride(0), DIM=1024)
    return low, norms, residuals


@triton.jit
def _measure(x, centroids, rows, columns, out, dim, x_stride, c_stride, DIM: tl.constexpr):
    """Per program: the squared distance of one pair, in float64."""
    pair = tl.program_id(0).to(tl.int64)
    row, column = tl.load(rows + pair).to(tl.int64), tl.load(columns + pair).to(tl.int64)
    total = tl.zeros((DIM,), tl.float64)
    for start in range(0, dim, DIM):
        here = start + tl.arange(0, DIM)
        mine = tl.load(x + row * x_stride + here, mask=here < dim, other=0.0).to(tl.float64)
        theirs = tl.load(centroids + column * c_stride + here, mask=here < dim, other=0.0).to(tl.float64)
        total += (mine - theirs) * (mine - theirs)
    tl.store(out + pair, tl.sum(total))


def pair_distances(
    x: Float[Tensor, "m d"], centroids: Float[Tensor, "k d"], rows: Int[Tensor, "p"], columns: Int[Tensor, "p"]
) -> Float[Tensor, "p"]:
    """Squared distances (float64) of float32 rows and centroids, pair by pair."""
    out = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    if len(rows):
        strides = x.stride(0), centroids.stride(0)
        _measure[(len(rows),)](x, centroids, rows, columns, out, x.shape[1], *strides, DIM=1024)
    return out


@triton.jit
def _look_again(
    x,
    centroids,
    half_norms,
    rows,
    tiles,
    thresholds,
    found,
    k,
    dim,
    x_stride,
    c_stride,
    PAIRS: tl.constexpr,
    CENTROIDS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Per program: PAIRS rows that share a tile, and which centroids of the tile reach the rows' thresholds."""
    pairs = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    mine = tl.load(rows + pairs)
    there = mine >= 0
    place = tl.where(there, mine, 0)
    columns = tl.load(tiles + tl.program_id(0)).to(tl.int64) * CENTROIDS + tl.arange(0, CENTROIDS)
    known = columns < k
    scores = tl.zeros((PAIRS, CENTROIDS), tl.float32)
    for start in range(0, dim, DIM):
        here = start + tl.arange(0, DIM)
        inside = here < dim
        a = tl.load(x + place[:, None] * x_stride + here[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        b = tl.load(
            centroids + columns[None, :] * c_stride + here[:, None], mask=known[None, :] & inside[:, None], other=0.0
        )
        scores = tl.dot(a, b, scores, input_precision="ieee")
    scores -= tl.load(half_norms + columns, mask=known, other=0.0)[None, :]
    reached = scores >= tl.load(thresholds + place, mask=there, other=0.0)[:, None]
    reached = reached & known[None, :] & there[:, None]
    out = found + pairs[:, None] * CENTROIDS + tl.arange(0, CENTROIDS)[None, :]
    tl.store(out, reached.to(tl.int8))


PAIRS_AT_ONCE = 16  # rows that share a tile


def candidates(
    x: Float[Tensor, "m d"],
    centroids: Float[Tensor, "k d"],
    half_norms: Float[Tensor, "k"],
    tops: Float[Tensor, "t u"],
    rows: Int[Tensor, "u"],
    thresholds: Float[Tensor, "m"],
    shape: BlockShape | None = None,
) -> tuple[Int[Tensor, "c"], Int[Tensor, "c"]]:
    """Pairs of a row and a centroid whose score reaches the row's threshold.

    Args:
        x, centroids, half_norms: as `best_two` was given.
        tops: of the rows asked for, what `best_two` gave.
        rows: numbers of these rows.
        thresholds: of all rows.

    Returns:
        Row numbers and centroid numbers (int64).
    """
    shape = shape or shape_for(x.device, x.dtype)
    tile, which = (tops >= thresholds[rows]).nonzero(as_tuple=True)  # by tile, then by row
    counts = torch.bincount(tile, minlength=len(tops))
    groups = -(-counts // PAIRS_AT_ONCE)
    first = torch.cumsum(groups, 0) - groups  # of each tile
    place = first[tile] * PAIRS_AT_ONCE + torch.arange(len(tile), device=x.device)
    place -= (torch.cumsum(counts, 0) - counts)[tile]
    n_groups = int(groups.sum())
    dealt = torch.full((n_groups * PAIRS_AT_ONCE,), -1, dtype=torch.int64, device=x.device)
    dealt[place] = rows[which]
    tiles = torch.repeat_interleave(torch.arange(len(tops), device=x.device), groups)
    found = torch.empty((len(dealt), shape.centroids), dtype=torch.int8, device=x.device)
    if n_groups:
        _look_again[(n_groups,)](
            x,
            centroids,
            half_norms,
            dealt,
            tiles,
            thresholds,
            found,
            len(centroids),
            x.shape[1],
            x.stride(0),
            centroids.stride(0),
            PAIRS=PAIRS_AT_ONCE,
            CENTROIDS=shape.centroids,
            DIM=shape.dim,
        )
    pair, column = found.nonzero(as_tuple=True)
    return dealt[pair], tiles[pair // PAIRS_AT_ONCE] * shape.centroids + column
