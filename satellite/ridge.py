"""The linear head in closed form: ridge regression of heights on frozen features, exact, in seconds, without a rate.

Sums that fit into memory whatever the number of tiles, and one solve: the fairest way to compare backbones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foundation.errors import CurationError
from satellite.backbone import Backbone
from satellite.head import resize

PENALTIES = tuple(10.0**power for power in range(-6, 2))  # of the mean variance of a feature
Pictures = Float[Tensor, "b c h w"]
Heights = Float[Tensor, "b h w"]


@dataclass(frozen=True)
class RidgeHead:
    """Weights on standardised features.

    Attributes:
        mean, scale: of each feature, over the training pixels.
        weights: metres per standard deviation.
        offset: mean height, metres.
        penalty: that was chosen.
    """

    mean: Float[Tensor, "d"]
    scale: Float[Tensor, "d"]
    weights: Float[Tensor, "d"]
    offset: float
    penalty: float

    def __call__(self, backbone: Backbone, images: Pictures) -> Heights:
        """Heights in metres, not below 0, at the size of the pictures."""
        x = (features(backbone, images) - self.mean) / self.scale
        heights = (x @ self.weights + self.offset)[:, None].float()
        return resize(heights, tuple(images.shape[2:]))[:, 0].clamp_min(0)


def fit_ridge(backbone: Backbone, batches: Iterable[tuple[Pictures, Heights]], folds: int = 5) -> RidgeHead:
    """Fit on batches of pictures and heights (metres, NaN not known); whole batches are the folds of the penalty.

    Raises:
        CurationError: fewer than two batches, or no known height.
    """
    sums: list[Tensor] = []
    for i, (images, heights) in enumerate(batches):
        x = features(backbone, images)
        y, weight = pooled(heights.to(x), (x.shape[1], x.shape[2]))
        ones = torch.ones_like(y)[..., None]
        z = torch.cat([x, y[..., None], ones], 3).flatten(0, 2)
        gram = z.T @ (z * weight.flatten()[:, None])
        if i < folds:
            sums.append(gram)
        else:
            sums[i % folds] += gram
    if len(sums) < 2 or not sum(float(s[-1, -1]) for s in sums):
        raise CurationError("ridge needs at least two batches of tiles with known heights")
    whole = torch.stack(sums)
    errors = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for fold in range(len(sums)):
        head = _solve(whole.sum(0) - whole[fold])
        for place, penalty in enumerate(PENALTIES):
            errors[place] += _squared_error(whole[fold], *head(penalty))
    best = PENALTIES[int(errors.argmin())]
    mean, scale, weights, offset = _solve(whole.sum(0))(best)
    return RidgeHead(mean, scale, weights, offset, best)


@torch.no_grad()
def features(backbone: Backbone, images: Pictures) -> Float[Tensor, "b h w d"]:
    """Maps of the blocks side by side at the size of the finest, in float64."""
    maps = [found for found, _ in backbone(images)]
    size = max((tuple(x.shape[2:]) for x in maps), key=np.prod)
    return torch.cat([resize(x, size) for x in maps], 1).permute(0, 2, 3, 1).double()


def pooled(heights: Heights, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean of the known heights in each cell of a coarser grid (b, h, w), and the share that is known."""
    known = torch.isfinite(heights).to(heights)
    share = F.adaptive_avg_pool2d(known, size)
    total = F.adaptive_avg_pool2d(torch.nan_to_num(heights), size)
    return total / share.clamp_min(1e-9), share


def _solve(gram: Float[Tensor, "k k"]) -> Callable[[float], tuple[Tensor, Tensor, Tensor, float]]:
    """From weighted sums of (features, height, 1) to a function of the penalty."""
    n = gram[-1, -1]
    mean = gram[:-1, -1] / n
    covariance = gram[:-1, :-1] / n - torch.outer(mean, mean)
    scale = covariance.diagonal()[:-1].clamp_min(1e-12).sqrt()
    correlation = covariance[:-1, :-1] / torch.outer(scale, scale)
    target = covariance[:-1, -1] / scale
    values, vectors = torch.linalg.eigh(correlation)

    def at(penalty: float) -> tuple[Tensor, Tensor, Tensor, float]:
        weights = vectors @ ((vectors.T @ target) / (values.clamp_min(0) + penalty))
        return mean[:-1], scale, weights, float(mean[-1])

    return at


def _squared_error(gram: Tensor, mean: Tensor, scale: Tensor, weights: Tensor, offset: float) -> Tensor:
    """Sum of squared errors over the pixels of some sums: (c, -1, b) of a linear model squares to c' G c."""
    slope = weights / scale
    coefficients = torch.cat([slope, torch.tensor([-1.0, offset - float(mean @ slope)], dtype=torch.float64)])
    return coefficients @ gram @ coefficients
