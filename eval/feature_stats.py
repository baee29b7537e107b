"""Plain numbers of the features themselves: effective rank, alignment, uniformity."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eval.arrays import as_features
from foundation.errors import CurationError


def effective_rank(features: Any, centre: bool = True) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007; RankMe, Garrido et al. 2023).

    Between 1 (all rows on one line) and min(n, d) (all directions equally used): a collapsed model has a low one.

    Args:
        features: (n, d), n >= 2.
        centre: subtract the mean first; RankMe does not, and then a shared offset hides collapse.

    Raises:
        CurationError: all rows are equal (or zero): there is no direction at all.
    """
    x = as_features(features).double()
    if len(x) < 2:
        raise CurationError("effective rank needs at least 2 rows")
    mean = x.mean(0)
    scale = float(x.square().mean().sqrt())
    if centre:
        x = x - mean
    if not float(x.abs().max()) > 1e-9 * scale:
        raise CurationError("all feature rows are equal: the model has collapsed, and the effective rank is undefined")
    values = torch.linalg.svdvals(x)
    p = values / values.sum()
    return float(torch.exp(torch.special.entr(p).sum()))


def alignment(first: Any, second: Any, alpha: float = 2.0) -> float:
    """Mean distance^alpha of positive pairs on the unit sphere; lower is better (Wang & Isola 2020, equation 1).

    Args:
        first, second: (n, d) features of two views of the same n images.
    """
    x, y = as_features(first, "first view"), as_features(second, "second view")
    if x.shape != y.shape:
        raise CurationError(f"the two views have shapes {tuple(x.shape)} and {tuple(y.shape)}; they must be equal")
    distance = (F.normalize(x.double(), dim=1) - F.normalize(y.double(), dim=1)).norm(dim=1)
    return float(distance.pow(alpha).mean())


def uniformity(features: Any, t: float = 2.0, rows_per_block: int = 1024) -> float:
    """log E exp(-t |x - y|^2) over distinct pairs on the unit sphere; lower is better (Wang & Isola 2020, equation 2).

    Exact over all n (n - 1) / 2 pairs, in blocks.

    Args:
        features: (n, d), n >= 2.
    """
    x: Float[Tensor, "n d"] = F.normalize(as_features(features), dim=1)
    n = len(x)
    if n < 2:
        raise CurationError("uniformity needs at least 2 rows")
    total = 0.0
    for first in range(0, n, rows_per_block):
        block = x[first : first + rows_per_block]
        squared = (2 - 2 * block @ x.T).clamp_min(0)
        kernel = torch.exp(-t * squared)
        kernel[torch.arange(len(block)), torch.arange(first, first + len(block))] = 0  # a row is no pair with itself
        total += float(kernel.double().sum())
    return float(torch.tensor(total / (n * (n - 1)), dtype=torch.float64).log())
