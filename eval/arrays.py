"""Features and labels as tensors, checked once, in one place."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from foundation.errors import CurationError

ROWS_PER_CHECK = 1 << 16


def as_features(x: Any, name: str = "features") -> Float[Tensor, "n d"]:
    """A float32 (or float64) matrix from an array or tensor; float16 and bfloat16 are widened.

    Raises:
        CurationError: not two-dimensional, empty, of integers, or with a NaN or infinity; the first bad row is named.
    """
    if not isinstance(x, Tensor):
        x = np.asarray(x)
        x = torch.from_numpy(x if x.flags.writeable else x.copy())
    if x.ndim != 2 or 0 in x.shape:
        raise CurationError(
            f"{name} has shape {tuple(x.shape)}; it must be (rows, features), with at least one of each"
        )
    if not x.is_floating_point():
        raise CurationError(f"{name} is {x.dtype}; features must be floating-point numbers")
    x = x.detach()
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    for start in range(0, len(x), ROWS_PER_CHECK):
        bad = ~torch.isfinite(x[start : start + ROWS_PER_CHECK]).all(1)
        if bad.any():
            row = start + int(bad.nonzero()[0, 0])
            raise CurationError(f"{name}: row {row} has a NaN or an infinity; the model broke there, or the file did")
    return x


def as_labels(y: Any, n: int, name: str = "labels") -> Int[Tensor, "n"]:
    """Class indices as int64, one for each of ``n`` rows.

    Raises:
        CurationError: another length, not integers, or a negative label.
    """
    y = torch.as_tensor(y if isinstance(y, Tensor) else np.array(y))
    if y.ndim != 1 or len(y) != n:
        raise CurationError(f"{name} has shape {tuple(y.shape)} but there are {n} rows; give one class index per row")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise CurationError(f"{name} is {y.dtype}; class indices must be integers")
    y = y.long()
    if len(y) and int(y.min()) < 0:
        raise CurationError(f"{name}: row {int((y < 0).nonzero()[0, 0])} is negative; leave unlabelled rows out")
    return y


def check_same_width(train: Float[Tensor, "n d"], test: Float[Tensor, "m d"]) -> None:
    """Refuse features of two different models.

    Raises:
        CurationError: the two have different numbers of columns.
    """
    if train.shape[1] != test.shape[1]:
        raise CurationError(
            f"train features have {train.shape[1]} columns but test features {test.shape[1]}: "
            "they come from different models or poolings"
        )


def count_classes(*labels: Int[Tensor, "..."]) -> int:
    """One more than the greatest label."""
    return 1 + max(int(y.max()) for y in labels if len(y))


def to_device(x: Tensor, device: str | torch.device | None) -> Tensor:
    """``x`` on a device; None leaves it where it is."""
    return x if device is None else x.to(device, non_blocking=True)
