"""Transforms made from a model's own one: random crops with its normalisation, and its crop without."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.images import Transform
from eval.models import FrozenModel


def augmented(model: FrozenModel) -> Transform:
    """Random resized crop and flip, as linear probes are usually trained, with the model's size and normalisation."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(model.image_size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(model.mean, model.std),
        ]
    )


def denormalise(model: FrozenModel) -> tuple[Callable[[Image.Image], Image.Image], Callable[[Image.Image], Tensor]]:
    """The model's transform in two halves: to the 8-bit image that the model sees, and from there to its tensor."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))

    def crop(image: Image.Image) -> Image.Image:
        pixels = (model.transform(image) * std + mean).clamp(0, 1) * 255
        return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())

    def normalise(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - mean) / std

    return crop, normalise


class SeededCrop:
    """A random crop and flip of each row that depends on seed and row only."""

    def __init__(self, transform: Transform, seed: int):
        self.transform, self.seed = transform, seed
        self.identity = f"view {seed}"

    def of_row(self, image: Image.Image, row: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + row)
            return self.transform(image)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.of_row(image, 0)


def two_views(model: FrozenModel, seed: int) -> tuple[SeededCrop, SeededCrop]:
    """Two independent random crops of every image, for alignment."""
    crops = augmented(model)
    return SeededCrop(crops, 2 * seed), SeededCrop(crops, 2 * seed + 1)
