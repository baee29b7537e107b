"""Multi-crop: global and local crops of a batch with the published colours, drawn from the seed and the step alone.

All random numbers are uniform draws made with numpy before, on the CPU: the same seed and step give the same crops
on any device, for any number of processes.
"""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from foundation.errors import CurationError
from foundation.settings import NonNegative, PartOfOne, Pixels, Positive, Range, Share, check
from pretrain.colour import ORDERS, gaussian_blur, grey, jitter, solarize
from pretrain.crops import BOX_DRAWS, random_boxes, resized_crops

COLOUR_DRAWS = 10
N_DRAWS = BOX_DRAWS + 1 + COLOUR_DRAWS + 1  # the last turns a view from above


@dataclass(frozen=True)
class ColourSettings:
    """Colour augmentation; the defaults are those of BYOL (appendix B) and of the text of DINO and its successors.

    The code of DINOv2 and DINOv3 passes 1 - p on where it means p, so that what it runs is blur_global1=0.0,
    blur_global2=0.9, blur_local=0.5; the recipes that carry these names have that.

    Attributes:
        jitter: probability of the colour jitter.
        brightness, contrast, saturation: factors are uniform in 1 - x .. 1 + x.
        hue: shift is uniform in -x .. x turns.
        grey: probability of a grey image.
        blur_global1, blur_global2, blur_local: probability of a Gaussian blur.
        sigma: least and greatest sigma of the blur, pixels.
        blur_kernel: pixels of the blur's kernel.
        solarize: probability in the second global crop.
        flip: probability of a mirrored crop.
        turns: views from above: all four rotations by a right angle alike.
    """

    jitter: Share = 0.8
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.2
    hue: Annotated[float, Range(ge=0, le=0.5)] = 0.1
    grey: Share = 0.2
    blur_global1: Share = 1.0
    blur_global2: Share = 0.1
    blur_local: Share = 0.5
    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    blur_kernel: Pixels = 9
    solarize: Share = 0.2
    flip: Share = 0.5
    turns: bool = False

    def __post_init__(self) -> None:
        check(self, "crops.colour")
        if self.blur_kernel % 2 == 0 or self.sigma[0] > self.sigma[1]:
            raise CurationError("colour.blur_kernel must be odd, and colour.sigma two rising positive numbers")


@dataclass(frozen=True)
class CropSettings:
    """Multi-crop (SwAV, section 3.2).

    Attributes:
        global_size, local_size: sides in pixels.
        n_local: local crops; there are always two global ones.
        global_scale, local_scale: least and greatest share of the image's area.
        canvas: side in pixels of the square that images are read into, the longer side scaled to it where it is
            larger; 0 is twice the global size: a crop of a sixth of the area still has a pixel for each of its own.
        mean, std: of the normalisation, RGB in 0..1.
        colour: see `ColourSettings`.
    """

    global_size: Pixels = 224
    local_size: Pixels = 96
    n_local: Annotated[int, Range(ge=0, le=100)] = 8
    global_scale: tuple[PartOfOne, PartOfOne] = (0.32, 1.0)
    local_scale: tuple[PartOfOne, PartOfOne] = (0.05, 0.32)
    canvas: Annotated[int, Range(ge=0, le=16_384)] = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    colour: ColourSettings = field(default_factory=ColourSettings)

    def __post_init__(self) -> None:
        check(self, "crops")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise CurationError(f"crops.{name} is {low}, {high}; the smaller comes first")

    @property
    def canvas_size(self) -> int:
        return self.canvas or 2 * self.global_size

    @property
    def n_crops(self) -> int:
        return 2 + self.n_local


def step_draws(settings: CropSettings, batch_size: int, seed: int, step: int) -> Float[np.ndarray, "b crops draws"]:
    """The uniform draws of all samples of a step: every process draws all and takes its own."""
    rng = np.random.default_rng([seed, step, 0])
    return rng.random((batch_size, settings.n_crops, N_DRAWS), dtype=np.float32)


def multi_crop(
    canvases: UInt8[Tensor, "b 3 s s"],
    sizes: Int[np.ndarray, "b two"],
    draws: Float[np.ndarray, "b crops draws"],
    settings: CropSettings,
) -> tuple[Float[Tensor, "two*b 3 g g"], Float[Tensor, "l*b 3 m m"]]:
    """Normalised global and local crops, crop by crop: first all images of crop 1, then of crop 2, ...

    Args:
        canvases: images in the upper left corner of a square.
        sizes: height and width of each image within it.
        draws: of `step_draws`, the rows of these samples.
    """
    images = canvases.float() / 255
    found: list[list[Tensor]] = [[], []]
    for crop in range(settings.n_crops):
        is_local = crop >= 2
        size = settings.local_size if is_local else settings.global_size
        scale = settings.local_scale if is_local else settings.global_scale
        u = draws[:, crop]
        boxes = random_boxes(sizes, u[:, :BOX_DRAWS], scale)
        flip = u[:, BOX_DRAWS] < settings.colour.flip
        view = resized_crops(images, boxes, size, flip).clamp_(0, 1)
        view = _coloured(view, u[:, BOX_DRAWS + 1 :], crop, settings.colour)
        found[is_local].append(_normalised(view, settings))
    local = torch.cat(found[1]) if found[1] else images.new_empty(0, 3, settings.local_size, settings.local_size)
    return torch.cat(found[0]), local


def _coloured(view: Tensor, u: Float[np.ndarray, "b draws"], crop: int, settings: ColourSettings) -> Tensor:
    """Colours of one crop of every image; each operation sees only the images that drew it."""

    def chosen(draw: int, probability: float) -> Tensor:
        return torch.from_numpy(np.flatnonzero(u[:, draw] < probability)).to(view.device)

    def factor(draw: int, low: float, high: float, rows: Tensor) -> Tensor:
        values = torch.from_numpy(low + u[:, draw] * (high - low)).to(view.device, view.dtype)
        return values[rows]

    rows = chosen(0, settings.jitter)
    if len(rows):
        order = torch.from_numpy((u[:, 1] * len(ORDERS)).astype(np.int64)).to(view.device)[rows]
        spreads = (settings.brightness, settings.contrast, settings.saturation)
        brightness, contrast, saturation = (factor(2 + i, max(0.0, 1 - x), 1 + x, rows) for i, x in enumerate(spreads))
        hue = factor(5, -settings.hue, settings.hue, rows)
        view[rows] = jitter(view[rows], order, brightness, contrast, saturation, hue)
    rows = chosen(6, settings.grey)
    if len(rows):
        view[rows] = grey(view[rows]).expand(-1, 3, -1, -1)
    probability = (settings.blur_global1, settings.blur_global2)[crop] if crop < 2 else settings.blur_local
    rows = chosen(7, probability)
    if len(rows):
        view[rows] = gaussian_blur(view[rows], factor(8, *settings.sigma, rows), settings.blur_kernel)
    if crop == 1:
        rows = chosen(9, settings.solarize)
        if len(rows):
            view[rows] = solarize(view[rows])
    if settings.turns:
        quarter = torch.from_numpy((u[:, 10] * 4).astype(np.int64)).to(view.device)
        for turn in (1, 2, 3):
            rows = (quarter == turn).nonzero()[:, 0]
            if len(rows):
                view[rows] = view[rows].rot90(turn, (2, 3))
    return view


def _normalised(view: Tensor, settings: CropSettings) -> Tensor:
    mean = view.new_tensor(settings.mean)[:, None, None]
    std = view.new_tensor(settings.std)[:, None, None]
    return view.sub_(mean).div_(std)
