"""The affine frame in which distances are measured, so that float32 has digits to spare.

Data far from the origin, or of huge or tiny scale, would lose the differences that k-means lives on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from curation.store.embeddings import Embeddings

SAMPLE_ROWS = 4096


@dataclass(frozen=True)
class Frame:
    """x -> (x - shift) * scale, after scaling each row to unit length where ``unit`` is set (cosine).

    Attributes:
        shift: (d,) float64, or None where the data lie around the origin.
        scale: a power of two, so that it rounds nothing.
        unit: rows are scaled to unit length first.
    """

    shift: Tensor | None = None
    scale: float = 1.0
    unit: bool = False

    @classmethod
    def of(cls, sample: Float[Tensor, "m d"], unit: bool = False) -> "Frame":
        """The frame that suits a sample of rows (in any dtype)."""
        if unit:
            return cls(unit=True)
        rows = sample.to("cpu", torch.float64)
        mean, squares = rows.mean(dim=0), float(torch.dot(rows.flatten(), rows.flatten()))
        # a mean longer than the spread costs the product leading digits; a shorter one is not worth a pass
        shift = mean if 2 * len(rows) * float(mean.square().sum()) > squares else None
        center = 0 if shift is None else shift
        largest = float(torch.maximum(rows.amax(dim=0) - center, center - rows.amin(dim=0)).max())
        normal = largest == 0 or 1e-6 < largest < 1e6
        return cls(shift, 1.0 if normal else float(2.0 ** -np.round(np.log2(largest))))

    def apply(self, block: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """A block of rows as contiguous float32 in this frame; the block itself where nothing changes."""
        if self.unit:
            rows = block.float()
            return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if self.shift is None and self.scale == 1.0:
            return block.float().contiguous()
        # the difference is taken in float64: float32 input far from the origin then loses nothing at all
        rows = block.double()
        if self.shift is not None:
            rows = rows - self.shift.to(rows.device)
        return (rows * self.scale).float()

    def invert(self, rows: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """Centroids from this frame back to the units of the data, float32."""
        back = rows.double() / self.scale
        return (back if self.shift is None else back + self.shift.to(back.device)).float()


def sample_rows(x: Embeddings, n: int = SAMPLE_ROWS) -> Float[Tensor, "m d"]:
    """Up to ``n`` evenly spaced rows."""
    return x.take(np.unique(np.linspace(0, x.n_rows - 1, min(n, x.n_rows)).astype(np.int64)))
