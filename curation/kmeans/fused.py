"""Nearest centroid on a GPU without the (n, k) matrix: one Triton kernel multiplies and keeps the best two scores.

A row whose second score is more than the slack below its best has its argmin; only the others are looked at again.
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
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"], Int[Tensor, "m"]]:
    """Best and second best of x.c - |c|^2 / 2 over the centroids (float32), and the index (int32) of the best.

    Args:
        x, centroids: of one dtype (bfloat16 or float32), rows contiguous.
        half_norms: float32.
        shape: see `BlockShape`; None: the one of the device.
    """
    shape = shape or shape_for(x.device, x.dtype)
    best = torch.empty(len(x), dtype=torch.float32, device=x.device)
    second, index = torch.empty_like(best), torch.empty(len(x), dtype=torch.int32, device=x.device)
    grid = (triton.cdiv(len(x), shape.rows),)
    _best_two[grid](
        x,
        centroids,
        half_norms,
        best,
        second,
        index,
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
    return best, second, index
