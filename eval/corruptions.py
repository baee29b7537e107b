"""Common corruptions made on the fly: noise, blur, weather and digital faults at five severities.

After Hendrycks & Dietterich 2019 ("Benchmarking neural network robustness to common corruptions and perturbations"),
whose severities are used where a formula is published. Lengths scale with the image (the paper's are for 224 pixels),
and the noise of an image depends on seed and image only. Figures are comparable between models measured here, not with
ImageNet-C itself, which is a fixed set of files; frost and snow, which need pictures of their own, are left out.
"""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage
from torch import Tensor

from foundation.errors import CurationError

Picture = Float[np.ndarray, "h w 3"]  # values in [0, 1]
Corruption = Callable[[Picture, int, np.random.Generator], Picture]
PAPER_SIDE = 224
SEVERITIES = (1, 2, 3, 4, 5)


def _scale(x: Picture) -> float:
    return min(x.shape[:2]) / PAPER_SIDE


def gaussian_noise(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    return x + rng.normal(scale=(0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], size=x.shape)


def shot_noise(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    draw = rng.random(x.shape)
    return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, x))


def speckle_noise(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    return x * (1 + rng.normal(scale=(0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1], size=x.shape))


def gaussian_blur(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    # a pixel is itself a blur: without this small images would not change at all (32 pixels: 0.4 ... 0.9, as CIFAR-C)
    sigma = np.hypot(0.35, (1, 2, 3, 4, 6)[severity - 1] * _scale(x))
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="reflect")


def defocus_blur(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    return _filter(x, _disk(float(np.hypot(0.6, (3, 4, 6, 8, 10)[severity - 1] * _scale(x)))))


def motion_blur(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    length = (10, 15, 15, 18, 20)[severity - 1] * _scale(x)
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    half = max(1, int(np.ceil(length / 2)))
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    for t in np.linspace(-length / 2, length / 2, 8 * half + 1):
        kernel[half + round(t * np.sin(angle)), half + round(t * np.cos(angle))] += 1
    return _filter(x, kernel / kernel.sum())


def zoom_blur(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    furthest = (1.11, 1.16, 1.21, 1.26, 1.33)[severity - 1]
    zooms = np.linspace(1, furthest, 8)
    return np.mean([_zoomed(x, zoom) for zoom in zooms], axis=0)


def fog(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    thickness, roughness = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    cloud = _plasma(max(x.shape[:2]), roughness, rng)[: x.shape[0], : x.shape[1], None]
    return (x + thickness * cloud) * (x.max() / (x.max() + thickness)) if x.max() else x + 0 * cloud


def brightness(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    # the value of HSV is the greatest channel: raising it alone scales the pixel
    value = x.max(2, keepdims=True)
    raised = np.clip(value + 0.1 * severity, 0, 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised)


def saturate(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    factor, offset = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[severity - 1]
    value = x.max(2, keepdims=True)
    saturation = (value - x.min(2, keepdims=True)) / np.maximum(value, 1e-6)
    wanted = np.clip(saturation * factor + offset, 0, 1)
    ratio = np.where(saturation > 1e-6, wanted / np.maximum(saturation, 1e-6), 1.0)
    return value - (value - x) * ratio


def contrast(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def elastic(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    side = min(x.shape[:2])
    strength, smooth = ((0.03, 0.08), (0.04, 0.06), (0.05, 0.05), (0.06, 0.04), (0.07, 0.03))[severity - 1]
    grid = np.meshgrid(np.arange(x.shape[0]), np.arange(x.shape[1]), indexing="ij")
    moved = []
    for axis in grid:
        shift = ndimage.gaussian_filter(rng.uniform(-1, 1, size=x.shape[:2]), smooth * side, mode="reflect")
        moved.append(axis + shift / max(np.abs(shift).max(), 1e-12) * strength * side)
    return np.stack([ndimage.map_coordinates(x[..., c], moved, order=1, mode="reflect") for c in range(3)], axis=2)


def pixelate(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    picture = _to_pil(x)
    small = (max(1, int(picture.width * share)), max(1, int(picture.height * share)))
    return _from_pil(picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST))


def jpeg(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    stream = io.BytesIO()
    _to_pil(x).save(stream, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    with Image.open(stream) as picture:
        return _from_pil(picture)


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, speckle_noise, gaussian_blur, defocus_blur, motion_blur, zoom_blur,
        fog, brightness, saturate, contrast, elastic, pixelate, jpeg,
    )
}  # fmt: skip


def corrupt(image: Image.Image, name: str, severity: int, seed: int) -> Image.Image:
    """A corrupted copy of an RGB image; the same seed gives the same copy.

    Raises:
        CurationError: unknown corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise CurationError(f"corruption {name!r} is unknown; use {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise CurationError(f"severity {severity} must be 1 to 5")
    x = np.asarray(image, dtype=np.float64) / 255
    return _to_pil(CORRUPTIONS[name](x, severity, np.random.default_rng(seed)))


class Corrupted:
    """A transform that corrupts first: the image is cut to what the model sees, corrupted, and normalised.

    Args:
        crop: PIL image to PIL image of the model's size.
        normalise: PIL image to tensor.
    """

    def __init__(
        self,
        crop: Callable[[Image.Image], Image.Image],
        normalise: Callable[[Image.Image], Tensor],
        name: str,
        severity: int,
        seed: int = 0,
    ):
        self.crop, self.normalise, self.name, self.severity, self.seed = crop, normalise, name, severity, seed
        self.identity = f"{name} {severity} {seed}"

    def of_row(self, image: Image.Image, row: int) -> Tensor:
        """The tensor of dataset row ``row``."""
        return self.normalise(corrupt(self.crop(image), self.name, self.severity, self.seed * 1_000_003 + row))

    def __call__(self, image: Image.Image) -> Tensor:
        return self.of_row(image, 0)


def _to_pil(x: Picture) -> Image.Image:
    return Image.fromarray((np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8))


def _from_pil(image: Image.Image) -> Picture:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def _disk(radius: float) -> Float[np.ndarray, "k k"]:
    """A disk with a soft edge, summing to one."""
    half = int(np.ceil(radius))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return disk / disk.sum()


def _filter(x: Picture, kernel: Float[np.ndarray, "k k"]) -> Picture:
    return ndimage.convolve(x, kernel[..., None], mode="reflect")


def _zoomed(x: Picture, zoom: float) -> Picture:
    """The middle of a picture at ``zoom``, same size."""
    h, w = x.shape[:2]
    rows, columns = ((np.arange(n) - (n - 1) / 2) / zoom + (n - 1) / 2 for n in (h, w))
    where = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([ndimage.map_coordinates(x[..., c], where, order=1, mode="nearest") for c in range(3)], axis=2)


def _plasma(side: int, roughness: float, rng: np.random.Generator) -> Float[np.ndarray, "s s"]:
    """Clouds in [0, 1]: noise on grids of 2, 4, 8, ... cells, each weaker by ``roughness`` than the one before."""
    total = np.zeros((side, side))
    cells, weight = 2, 1.0
    while cells <= side:
        noise = rng.random((cells + 1, cells + 1))
        where = np.meshgrid(*[np.linspace(0, cells, side)] * 2, indexing="ij")
        total += weight * ndimage.map_coordinates(noise, where, order=1, mode="nearest")
        cells, weight = 2 * cells, weight / roughness
    total -= total.min()
    return total / max(total.max(), 1e-12)
