"""Dense evaluations on frozen patch features: linear segmentation (mIoU) and linear depth (RMSE).

Segmentation: batch norm and one linear layer per patch, logits brought to the mask's size, cross-entropy; AdamW at 1e-3
with weight decay 1e-4, warm-up and linear decay (DINOv2's linear protocol: 40,000 steps of 16 images of 512 pixels).
Depth: one linear layer to 256 bins of depth, expectation over them, scale-invariant log loss (Eigen et al. 2014;
bins after Bhat et al. 2021, AdaBins).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from eval.bootstrap import Interval, bootstrap, mean_interval
from eval.errors import EvalError

Pair = tuple[Float[Tensor, "b h w d"], Tensor]  # patch features and the target at its own size
ReadPairs = Callable[[Int[Tensor, "b"]], Pair]


@dataclass(frozen=True)
class DenseSettings:
    """How a dense head is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate, weight_decay: AdamW.
        warmup: steps of linear warm-up, at most a tenth of the run.
        seed: of weights and order.
    """

    steps: int = 40_000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 1500
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or self.learning_rate <= 0 or min(self.warmup, self.weight_decay) < 0:
            raise EvalError(f"dense settings must be positive: {self}")

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step: linear up, then linear down to 0."""
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return (step + 1) / warmup
        return (self.steps - step) / (self.steps - warmup)


class SegmentationHead(nn.Module):
    """Batch norm and a linear layer: (b, h, w, d) to logits (b, classes, h, w)."""

    def __init__(self, d: int, n_classes: int):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(d), nn.Conv2d(d, n_classes, 1)
        nn.init.normal_(self.linear.weight, std=0.01)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b classes h w"]:
        return self.linear(self.norm(x.permute(0, 3, 1, 2)))


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


def linear_segmentation(
    train: Any,
    test: Any,
    n_classes: int,
    settings: DenseSettings | None = None,
    ignore: int = 255,
    device: str | torch.device = "cpu",
) -> "SegmentationResult":
    """Train a linear head on patch features and measure it.

    Args:
        train, test: (features (n, h, w, d), masks (n, H, W) of class indices), or (function of rows, n) that makes
            such a pair for some rows, so that features need not fit into memory.
        ignore: mask value that counts for nothing.

    Raises:
        EvalError: shapes, or a mask value that is neither a class nor ``ignore``.
    """
    settings = settings or DenseSettings()
    read, n = _pairs(train, "train")
    read_test, n_test = _pairs(test, "test")

    def loss(head: nn.Module, x: Tensor, masks: Tensor) -> Tensor | None:
        masks = check_masks(masks, n_classes, ignore)
        if not (masks != ignore).any():  # nothing labelled in this batch: the mean would be NaN
            return None
        logits = F.interpolate(head(x), size=masks.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, masks, ignore_index=ignore)

    head = _train(lambda d: SegmentationHead(d, n_classes), loss, read, n, settings, device)
    confusions = []
    with torch.inference_mode():
        for x, masks in _in_order(read_test, n_test, settings.batch_size, device):
            masks = check_masks(masks, n_classes, ignore)
            logits = F.interpolate(head(x), size=masks.shape[1:], mode="bilinear", align_corners=False)
            confusions.append(confusion(logits.argmax(1), masks, n_classes, ignore).cpu())
    return segmentation_result(torch.cat(confusions).numpy())


@dataclass(frozen=True)
class SegmentationResult:
    """mIoU over the classes that occur, with an interval over images.

    Attributes:
        miou: mean over classes of intersection / union.
        pixel_accuracy: share of the pixels.
        per_class: (classes,) IoU; NaN for a class that is in no mask.
        confusion: (n, classes, classes) pixels of each image; rows are the truth.
    """

    miou: Interval
    pixel_accuracy: Interval
    per_class: Float[np.ndarray, "classes"]
    confusion: Int[np.ndarray, "n classes classes"]


def confusion(
    predicted: Int[Tensor, "b h w"], masks: Int[Tensor, "b h w"], n_classes: int, ignore: int = 255
) -> Int[Tensor, "b classes classes"]:
    """Pixels of each image by (true class, predicted class)."""
    counts = []
    for guess, truth in zip(predicted, masks, strict=True):
        valid = truth != ignore
        index = truth[valid] * n_classes + guess[valid]
        counts.append(torch.bincount(index, minlength=n_classes**2).view(n_classes, n_classes))
    return torch.stack(counts)


def segmentation_result(counts: Int[np.ndarray, "n classes classes"], **options: Any) -> SegmentationResult:
    """mIoU and pixel accuracy of per-image confusion matrices; pixels are pooled over the test set first.

    Raises:
        EvalError: no labelled pixel.
    """
    n, n_classes = counts.shape[:2]
    hits = counts[:, range(n_classes), range(n_classes)].astype(np.float64)
    truth, guess = counts.sum(2).astype(np.float64), counts.sum(1).astype(np.float64)  # (n, classes) pixels
    present = truth.sum(0) > 0
    if not present.any():
        raise EvalError("no test pixel is labelled")

    def iou(draws: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r classes"]:
        intersection = draws @ hits
        union = draws @ truth + draws @ guess - intersection
        return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=(union > 0) & present)

    def miou(draws: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
        return np.nanmean(iou(draws), axis=1)

    def accuracy(draws: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
        return (draws @ hits.sum(1)) / np.maximum(draws @ truth.sum(1), 1)

    return SegmentationResult(
        bootstrap(miou, n, **options), bootstrap(accuracy, n, **options), iou(np.ones((1, n), np.int64))[0], counts
    )


def check_masks(masks: Tensor, n_classes: int, ignore: int) -> Int[Tensor, "b h w"]:
    """Masks as int64.

    Raises:
        EvalError: a value that is neither a class nor ``ignore``.
    """
    masks = masks.long()
    bad = (masks != ignore) & ((masks < 0) | (masks >= n_classes))
    if bad.any():
        raise EvalError(
            f"a mask has the value {int(masks[bad][0])}, but classes are 0 to {n_classes - 1} and {ignore} is ignored"
        )
    return masks


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
        raise EvalError(f"depths from {nearest} to {furthest} metres: give 0 < nearest < furthest")
    read, n = _pairs(train, "train")
    read_test, n_test = _pairs(test, "test")

    def loss(head: nn.Module, x: Tensor, depths: Tensor) -> Tensor | None:
        predicted = resize_depth(head(x), depths)
        valid = valid_depths(depths, nearest, furthest)
        return scale_invariant_loss(predicted[valid], depths[valid].float()) if valid.any() else None

    head = _train(lambda d: DepthHead(d, nearest, furthest, n_bins), loss, read, n, settings, device)
    values: dict[str, list[float]] = {}
    with torch.inference_mode():
        for x, depths in _in_order(read_test, n_test, settings.batch_size, device):
            predicted = resize_depth(head(x), depths).clamp(nearest, furthest)
            for guess, truth in zip(predicted, depths.float(), strict=True):
                valid = valid_depths(truth, nearest, furthest)
                for name, value in (depth_metrics(guess[valid], truth[valid]) if valid.any() else {}).items():
                    values.setdefault(name, []).append(value)
    if not values:
        raise EvalError(f"no test pixel has a depth between {nearest} and {furthest} metres; are the units right?")
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


def _train(
    make: Callable[[int], nn.Module],
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor | None],
    read: ReadPairs,
    n: int,
    settings: DenseSettings,
    device: str | torch.device,
) -> nn.Module:
    """A trained head in evaluation mode."""
    generator = torch.Generator().manual_seed(settings.seed)
    width = read(torch.tensor([0]))[0].shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = make(width).to(device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    queue = torch.empty(0, dtype=torch.long)
    learnt = False
    for step in range(settings.steps):
        while len(queue) < settings.batch_size:
            queue = torch.cat([queue, torch.randperm(n, generator=generator)])
        rows, queue = queue[: settings.batch_size], queue[settings.batch_size :]
        x, target = read(rows)
        value = loss(head, x.float().to(device), target.to(device))
        if value is None:
            continue
        if not torch.isfinite(value):
            raise EvalError(f"the loss of the dense head is {float(value)} at step {step}; lower learning_rate")
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * settings.rate(step)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        learnt = True
    if not learnt:
        raise EvalError("no training pixel has a valid target")
    return head.eval()


def _in_order(read: ReadPairs, n: int, batch_size: int, device: str | torch.device) -> Iterator[Pair]:
    for rows in torch.arange(n).split(batch_size):
        x, target = read(rows)
        yield x.float().to(device), target.to(device)


def _pairs(data: Any, name: str) -> tuple[ReadPairs, int]:
    """How to read rows, and how many there are.

    Raises:
        EvalError: arrays that are not (n, h, w, d) and (n, H, W).
    """
    if callable(data[0]):
        return data[0], int(data[1])
    features, targets = torch.as_tensor(data[0]), torch.as_tensor(data[1])
    if features.ndim != 4 or targets.ndim != 3 or len(features) != len(targets) or not len(features):
        raise EvalError(
            f"{name}: features {tuple(features.shape)} must be (n, h, w, d), targets {tuple(targets.shape)} (n, H, W)"
        )
    return lambda rows: (features[rows], targets[rows]), len(features)
