"""Random resized crops of a whole batch at once: two small matrix products per crop, on any device.

A resized crop is linear in the pixels and separable: out = A_rows x A_columns^T, with one pair of matrices per sample
that holds the weights of an antialiased bicubic filter (Keys 1981, a = -0.5, as in Pillow). A flip turns the columns.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TRIES = 10  # of a box that fits, as in torchvision
BOX_DRAWS = 2 * TRIES + 2
KEYS = -0.5  # the parameter of the cubic filter


@dataclass(frozen=True)
class Boxes:
    """Rectangles in pixels, one for each sample.

    Attributes:
        top, left, height, width: (n,) int64.
    """

    top: Int[np.ndarray, "n"]
    left: Int[np.ndarray, "n"]
    height: Int[np.ndarray, "n"]
    width: Int[np.ndarray, "n"]


def random_boxes(
    sizes: Int[np.ndarray, "n two"],
    draws: Float[np.ndarray, "n draws"],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Boxes of `torchvision.transforms.v2.RandomResizedCrop`: area uniform in ``scale``, log aspect uniform.

    Args:
        sizes: height and width of each image.
        draws: (n, BOX_DRAWS) uniform in [0, 1): the only randomness.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height.

    Returns:
        The first of ten boxes that fits; else the largest central one within ``ratio``.
    """
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = height * width * (scale[0] + draws[:, :TRIES] * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + draws[:, TRIES : 2 * TRIES] * (high - low))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)
    rows = np.arange(len(sizes))
    found = fits[rows, first]
    full_h, full_w = height[:, 0], width[:, 0]
    image_ratio = full_w / full_h
    fallback_w = np.where(image_ratio > ratio[1], np.rint(full_h * ratio[1]), full_w)
    fallback_h = np.where(image_ratio < ratio[0], np.rint(full_w / ratio[0]), full_h)
    w = np.where(found, w[rows, first], fallback_w).astype(np.int64)
    h = np.where(found, h[rows, first], fallback_h).astype(np.int64)
    place = draws[:, 2 * TRIES :]
    top, left = (place[:, 0] * (sizes[:, 0] - h + 1)), (place[:, 1] * (sizes[:, 1] - w + 1))
    centre_top, centre_left = (sizes[:, 0] - h) // 2, (sizes[:, 1] - w) // 2
    top = np.where(found, top.astype(np.int64), centre_top)
    left = np.where(found, left.astype(np.int64), centre_left)
    return Boxes(top, left, h, w)


def _cubic(x: Float[Tensor, "..."], a: float = KEYS) -> Float[Tensor, "..."]:
    """Keys's kernel."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_weights(
    start: Int[Tensor, "n"], length: Int[Tensor, "n"], n_in: int, n_out: int
) -> Float[Tensor, "n out in"]:
    """Weights that take ``n_in`` pixels to ``n_out``, seeing only those from ``start`` on, ``length`` many."""
    if start.device.type == "cpu":
        from pretrain.pixels_cpu import fill_resize_weights

        weights = torch.zeros(len(start), n_out, n_in)
        fill_resize_weights(start.numpy(), length.numpy(), KEYS, weights.numpy())
        return weights
    return _resize_weights_anywhere(start, length, n_in, n_out)


def _resize_weights_anywhere(
    start: Int[Tensor, "n"], length: Int[Tensor, "n"], n_in: int, n_out: int
) -> Float[Tensor, "n out in"]:
    """The same in plain torch, for any device."""
    first, count = start.float()[:, None, None], length.float()[:, None, None]
    scale = count / n_out
    spread = scale.clamp_min(1.0)  # the filter widens when pixels are merged, never narrows
    out = torch.arange(n_out, device=start.device, dtype=torch.float32)[None, :, None]
    pixel = torch.arange(n_in, device=start.device, dtype=torch.float32)[None, None, :]
    centre = first + (out + 0.5) * scale
    weights = _cubic((pixel + 0.5 - centre) / spread)
    inside = (pixel >= first) & (pixel < first + count)
    weights = torch.where(inside, weights, torch.zeros_like(weights))
    return weights / weights.sum(-1, keepdim=True)


def resized_crops(
    images: Float[Tensor, "b c h w"],
    boxes: Boxes,
    size: int,
    flip: Bool[np.ndarray, "b"] | None = None,
) -> Float[Tensor, "b c size size"]:
    """A box of each image, resized to a square; ``flip`` mirrors left and right.

    Values may leave the range of the input by a little, as bicubic filters do: clamp where it matters.
    """
    device = images.device

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

    rows = resize_weights(on_device(boxes.top), on_device(boxes.height), images.shape[2], size)
    columns = resize_weights(on_device(boxes.left), on_device(boxes.width), images.shape[3], size)
    if flip is not None:
        columns = torch.where(on_device(flip)[:, None, None], columns.flip(1), columns)
    narrow = images.flatten(1, 2) @ columns.mT  # all channels in one product
    return rows[:, None] @ narrow.unflatten(1, images.shape[1:3])
