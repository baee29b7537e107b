"""Linear depth on frozen patch features: RMSE in metres.

One linear layer to 256 bins of depth, expectation over them (Bhat et al. 2021, AdaBins, with fixed uniform bins), and
the scale-invariant log loss (Eigen et al. 2014).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eval.dense import DenseSettings, in_order, reader_of, train_head
from foundation.errors import CurationError
from foundation.intervals import Interval, mean_interval


class DepthHead(nn.Module):
    """Linear layer to bins, relu-normalised, expectation: (b, h, w, d) to metres (b, 4 h, 4 w)."""

    def __init__(self, d: int, nearest: float, furthest: float, n_bins: int = 256, upsample: int = 4):
        super().__init__()
        self.linear, self.upsample = nn.Conv2d(d, n_bins, 1), upsample
        self.register_buffer("depths", torch.linspace(nearest, furthest, n_bins))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b H W"]:
        logits = self.linear(x.permute(0, 3, 1, 2))
        logits = F.interpolate(logits, scale_factor=self.upsample, mode="bilinear", align_corners=False)
        weights = logits.relu() + 0.1  # never zero everywhere: the gradient would be lost
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), self.depths)


def linear_depth(
    train: Any,
    test: Any,
    nearest: float = 0.001,
    furthest: float = 10.0,
    settings: DenseSettings | None = None,
    device: str | torch.device = "cpu",
    n_bins: int = 256,
) -> dict[str, Interval]:
    """Train a linear depth head and measure it.

    Args:
        train, test: (features (n, h, w, d), depths (n, H, W) in metres), or (function of rows, n) as above.
        nearest, furthest: metres; pixels outside, and NaN, are not judged (0 is the usual mark of "no measurement").

    Returns:
        See `depth_metrics`; each the mean over images, with its interval.
    """
    settings = settings or DenseSettings()
    if not 0 < nearest < furthest:
        raise CurationError(f"depths from {nearest} to {furthest} metres: give 0 < nearest < furthest")
    read, n = reader_of(train, "train")
    read_test, n_test = reader_of(test, "test")

    def loss(head: nn.Module, x: Tensor, depths: Tensor) -> Tensor | None:
        predicted = resize_depth(head(x), depths)
        valid = valid_depths(depths, nearest, furthest)
        return scale_invariant_loss(predicted[valid], depths[valid].float()) if valid.any() else None

    head = train_head(lambda d: DepthHead(d, nearest, furthest, n_bins), loss, read, n, settings, device)
    values: dict[str, list[float]] = {}
    with torch.inference_mode():
        for x, depths in in_order(read_test, n_test, settings.batch_size, device):
            predicted = resize_depth(head(x), depths).clamp(nearest, furthest)
            for guess, truth in zip(predicted, depths.float(), strict=True):
                valid = valid_depths(truth, nearest, furthest)
                for name, value in (depth_metrics(guess[valid], truth[valid]) if valid.any() else {}).items():
                    values.setdefault(name, []).append(value)
    if not values:
        raise CurationError(f"no test pixel has a depth between {nearest} and {furthest} metres; are the units right?")
    return {name: mean_interval(per_image) for name, per_image in values.items()}


def resize_depth(predicted: Float[Tensor, "b h w"], depths: Float[Tensor, "b H W"]) -> Float[Tensor, "b H W"]:
    return F.interpolate(predicted[:, None], size=depths.shape[1:], mode="bilinear", align_corners=False)[:, 0]


def valid_depths(depths: Tensor, nearest: float, furthest: float) -> Tensor:
    return (depths > nearest) & (depths < furthest)


def scale_invariant_loss(predicted: Float[Tensor, "p"], truth: Float[Tensor, "p"]) -> Float[Tensor, ""]:
    """sqrt(var(g) + 0.15 mean(g)^2), g = log predicted - log truth: one common factor costs little."""
    g = predicted.clamp_min(1e-6).log() - truth.log()
    return (g.var(correction=0) + 0.15 * g.mean().square() + 1e-12).sqrt()


def depth_metrics(predicted: Float[Tensor, "p"], truth: Float[Tensor, "p"]) -> dict[str, float]:
    """The usual measures of one image.

    Returns:
        ``rmse`` (metres), ``abs_rel``, ``log10``, and ``a1``: share of pixels within a factor of 1.25.
    """
    predicted, truth = predicted.double(), truth.double()
    ratio = torch.maximum(predicted / truth, truth / predicted)
    return {
        "rmse": float((predicted - truth).square().mean().sqrt()),
        "abs_rel": float(((predicted - truth).abs() / truth).mean()),
        "log10": float((predicted.log10() - truth.log10()).abs().mean()),
        "a1": float((ratio < 1.25).double().mean()),
    }
