"""Which patches the student does not see: rectangles of BEiT, drawn from the seed, the step and the crop alone."""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int

from foundation.errors import CurationError
from foundation.settings import Choices, Count, PartOfOne, Share, check

TRIES = 10


@dataclass(frozen=True)
class MaskSettings:
    """Masked global crops (iBOT, section 3.1; DINOv2, appendix B).

    Attributes:
        probability: share of the global crops that are masked.
        low, high: least and greatest share of masked patches in a masked crop; shares are spread evenly between them.
        kind: "block" (rectangles) or "random" (patches one by one).
        min_patches: of a rectangle.
        max_share: greatest share of the patches in one rectangle.
        aspect: least ratio of a rectangle's sides; the greatest is its inverse.
        fill: what rectangles leave over is made up by patches one by one (DINOv3's code), so that every mask has just
            its share.
    """

    probability: Share = 0.5
    low: Share = 0.1
    high: Share = 0.5
    kind: Annotated[str, Choices("block", "random")] = "block"
    min_patches: Count = 4
    max_share: PartOfOne = 0.5
    aspect: PartOfOne = 0.3
    fill: bool = False

    def __post_init__(self) -> None:
        check(self, "mask")
        if self.low > self.high:
            raise CurationError(f"mask.low is {self.low}; it must not exceed mask.high, {self.high}")


def mask_shares(n_crops: int, settings: MaskSettings, rng: np.random.Generator) -> Float[np.ndarray, "n"]:
    """Share of patches to mask in each crop, 0 for crops without a mask.

    The range of shares is cut into as many equal parts as there are masked crops and each draws from its own part, so
    that every batch has the same spread; then the crops are shuffled.
    """
    n_masked = int(n_crops * settings.probability)
    edges = np.linspace(settings.low, settings.high, n_masked + 1)
    shares = np.zeros(n_crops)
    shares[:n_masked] = edges[:-1] + rng.random(n_masked) * np.diff(edges)
    return rng.permutation(shares)


def block_mask(
    grid: tuple[int, int], n_masked: int, settings: MaskSettings, rng: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """At most ``n_masked`` patches in rectangles (BEiT, algorithm 1).

    Rectangles are drawn until the number is reached or ten tries in a row find no place; with ``settings.fill`` single
    patches then make up the number.
    """
    height, width = grid
    mask = np.zeros(grid, dtype=bool)
    # the largest block counts whole patches of the grid: 0.5 * side // patch * side // patch would round early
    largest = int(settings.max_share * height * width)
    log_aspect = math.log(settings.aspect)
    count = 0
    while count < n_masked:
        room = min(n_masked - count, largest)
        for _ in range(TRIES):
            area = rng.uniform(settings.min_patches, max(room, settings.min_patches))
            ratio = math.exp(rng.uniform(log_aspect, -log_aspect))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if not (0 < h < height and 0 < w < width):
                continue
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            block = mask[top : top + h, left : left + w]
            new = h * w - int(block.sum())
            if 0 < new <= room:
                block[:] = True
                count += new
                break
        else:
            break
    if settings.fill:
        mask.flat[rng.choice(np.flatnonzero(~mask), max(n_masked - count, 0), replace=False)] = True
    return mask


def make_mask(
    grid: tuple[int, int], share: float, settings: MaskSettings, rng: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """A mask of at most ``share`` of the patches of a grid."""
    n_masked = int(grid[0] * grid[1] * share)
    if settings.kind == "block":
        return block_mask(grid, n_masked, settings, rng)
    mask = np.zeros(grid[0] * grid[1], dtype=bool)
    mask[rng.permutation(mask.size)[:n_masked]] = True
    return mask.reshape(grid)


def step_masks(
    grid: tuple[int, int], crops: Int[np.ndarray, "c"], n_crops: int, settings: MaskSettings, seed: int, step: int
) -> Bool[np.ndarray, "c p"]:
    """Masks of some of a step's global crops: the same whichever process draws them.

    Args:
        grid: patches of a global crop, rows and columns.
        crops: which of the ``n_crops`` global crops of the whole step.
    """
    shares = mask_shares(n_crops, settings, np.random.default_rng([seed, step, 1]))
    masks = [
        make_mask(grid, shares[crop], settings, np.random.default_rng([seed, step, 2, int(crop)])) for crop in crops
    ]
    return np.stack(masks).reshape(len(crops), -1)
