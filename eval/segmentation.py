"""Linear segmentation on frozen patch features: mIoU.

Batch norm and one linear layer per patch, logits brought to the mask's size, cross-entropy; AdamW at 1e-3 with weight
decay 1e-4, warm-up and linear decay (DINOv2's linear protocol: 40,000 steps of 16 images of 512 pixels).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from eval.dense import DenseSettings, in_order, reader_of, train_head
from foundation.errors import CurationError
from foundation.intervals import Interval, bootstrap


class SegmentationHead(nn.Module):
    """Batch norm and a linear layer: (b, h, w, d) to logits (b, classes, h, w)."""

    def __init__(self, d: int, n_classes: int):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(d), nn.Conv2d(d, n_classes, 1)
        nn.init.normal_(self.linear.weight, std=0.01)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b classes h w"]:
        return self.linear(self.norm(x.permute(0, 3, 1, 2)))


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
        CurationError: shapes, or a mask value that is neither a class nor ``ignore``.
    """
    settings = settings or DenseSettings()
    read, n = reader_of(train, "train")
    read_test, n_test = reader_of(test, "test")

    def loss(head: nn.Module, x: Tensor, masks: Tensor) -> Tensor | None:
        masks = check_masks(masks, n_classes, ignore)
        if not (masks != ignore).any():  # nothing labelled in this batch: the mean would be NaN
            return None
        logits = F.interpolate(head(x), size=masks.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, masks, ignore_index=ignore)

    head = train_head(lambda d: SegmentationHead(d, n_classes), loss, read, n, settings, device)
    confusions = []
    with torch.inference_mode():
        for x, masks in in_order(read_test, n_test, settings.batch_size, device):
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
        CurationError: no labelled pixel.
    """
    n, n_classes = counts.shape[:2]
    hits = counts[:, range(n_classes), range(n_classes)].astype(np.float64)
    truth, guess = counts.sum(2).astype(np.float64), counts.sum(1).astype(np.float64)  # (n, classes) pixels
    present = truth.sum(0) > 0
    if not present.any():
        raise CurationError("no test pixel is labelled")

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
        CurationError: a value that is neither a class nor ``ignore``.
    """
    masks = masks.long()
    bad = (masks != ignore) & ((masks < 0) | (masks >= n_classes))
    if bad.any():
        raise CurationError(
            f"a mask has the value {int(masks[bad][0])}, but classes are 0 to {n_classes - 1} and {ignore} is ignored"
        )
    return masks
