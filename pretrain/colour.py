"""Colour augmentations, each image of a batch by its own strength; the arithmetic of torchvision.transforms.v2."""

from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # of torchvision: ITU-R BT.601
ORDERS = list(permutations(range(4)))  # in which brightness, contrast, saturation and hue are applied

Images = Float[Tensor, "b 3 h w"]
PerImage = Float[Tensor, "b"]


def grey(images: Images) -> Float[Tensor, "b 1 h w"]:
    """Luma of colours in 0..1."""
    r, g, b = images.unbind(1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b)[:, None]


def _blend(images: Images, other: Tensor, factor: PerImage) -> Images:
    """factor images + (1 - factor) other, kept in 0..1."""
    return torch.lerp(other.expand_as(images), images, factor[:, None, None, None]).clamp_(0, 1)


def adjust_brightness(images: Images, factor: PerImage) -> Images:
    """0 is black, 1 the image."""
    return (images * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Images, factor: PerImage) -> Images:
    """0 is the mean grey, 1 the image."""
    return _blend(images, grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Images, factor: PerImage) -> Images:
    """0 is grey, 1 the image."""
    return _blend(images, grey(images), factor)


def adjust_hue(images: Images, shift: PerImage) -> Images:
    """Hue turned by ``shift`` turns, -0.5 to 0.5, in the HSV space."""
    r, g, b = images.unbind(1)
    value, which = images.max(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixth = torch.where(which == 0, (g - b) / safe, torch.where(which == 1, (b - r) / safe + 2, (r - g) / safe + 4))
    turned = sixth + 6 * shift[:, None, None]
    # value minus chroma times a trapezoid of the hue: HSV to RGB without cases (Smith 1978 in one formula)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = torch.remainder(turned + offset, 6.0)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)


def solarize(images: Images, threshold: float = 0.5) -> Images:
    """Values from the threshold on are inverted."""
    return torch.where(images >= threshold, 1 - images, images)


def gaussian_blur(images: Images, sigma: PerImage, kernel_size: int = 9) -> Images:
    """Each image by a Gaussian of its own ``sigma`` (pixels), mirrored at the borders."""
    b, c, h, w = images.shape
    half = min(kernel_size // 2, h - 1, w - 1)
    x = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    padded = F.pad(images, (half, half, half, half), mode="reflect").reshape(1, b * c, h + 2 * half, w + 2 * half)
    padded = F.conv2d(padded, kernel[:, None, :, None], groups=b * c)
    return F.conv2d(padded, kernel[:, None, None, :], groups=b * c).view(b, c, h, w)


def jitter(
    images: Images,
    order: Int[Tensor, "b"],
    brightness: PerImage,
    contrast: PerImage,
    saturation: PerImage,
    hue: PerImage,
) -> Images:
    """Colour jitter; ``order`` of each image is an index of `ORDERS`."""
    if images.device.type == "cpu" and images.dtype == torch.float32:
        from pretrain.pixels_cpu import jitter_images

        images = images.clone(memory_format=torch.contiguous_format)
        factors = torch.stack([brightness, contrast, saturation, hue]).float().numpy()
        orders = np.array(ORDERS, np.int64)[order.numpy()]
        jitter_images(images.flatten(2).numpy(), orders, factors, np.array(LUMA, np.float32))
        return images
    return _jitter_anywhere(images, order, brightness, contrast, saturation, hue)


def _jitter_anywhere(
    images: Images,
    order: Int[Tensor, "b"],
    brightness: PerImage,
    contrast: PerImage,
    saturation: PerImage,
    hue: PerImage,
) -> Images:
    """The same in plain torch, for any device."""
    steps = ((adjust_brightness, brightness), (adjust_contrast, contrast))
    steps += ((adjust_saturation, saturation), (adjust_hue, hue))  # type: ignore[assignment]
    table = torch.tensor(ORDERS, device=images.device)[order]
    images = images.clone()
    for place in range(4):
        for i, (adjust, factor) in enumerate(steps):
            chosen = (table[:, place] == i).nonzero()[:, 0]
            if len(chosen):
                images[chosen] = adjust(images[chosen], factor[chosen])
    return images
