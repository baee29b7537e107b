"""From rows of a pool to batches: decoded into canvases by workers, cropped and coloured later, where the model is.

Which rows make up step s, their crops and their masks are a function of (seed, s), see `training.data`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from foundation.errors import CurationError
from foundation.images import read_image, reason_of
from pretrain.losses import patch_weights
from pretrain.masking import step_masks
from pretrain.multicrop import step_draws
from pretrain.settings import PretrainSettings
from training.data import Slot
from training.order import Order


class CanvasReader:
    """Images of a pool in the upper left corner of a square, decoded once where all fit into memory.

    Args:
        pool: `datasets.Dataset` with a column ``image``.
        side: of the square, pixels; larger images are scaled down to it.
        cache_rows: how many canvases may be kept; all or none are.
    """

    def __init__(self, pool: Any, side: int, cache_rows: int = 0):
        if "image" not in pool.column_names:
            raise CurationError(f"the pool has no column image; it has {', '.join(pool.column_names)}")
        self.stored = pool.select_columns("image").with_format("arrow")  # undecoded: a bad image must not end the run
        self.side = side
        self.kept: dict[int, tuple[np.ndarray, tuple[int, int]] | str] | None = None
        if len(pool) <= cache_rows:
            self.kept = {}

    def read(self, rows: Int[np.ndarray, "b"]) -> tuple[UInt8[Tensor, "b 3 s s"], Int[np.ndarray, "b two"], dict]:
        """Canvases, heights and widths, and row -> reason of the unreadable ones.

        The next readable image of the batch takes the place of an unreadable one.

        Raises:
            CurationError: none is readable.
        """
        found = [self._canvas(int(row)) for row in rows]
        bad = {int(row): item for row, item in zip(rows, found, strict=True) if isinstance(item, str)}
        good = [item for item in found if not isinstance(item, str)]
        if not good:
            row, reason = next(iter(bad.items()))
            raise CurationError(f"none of the {len(rows)} images of a batch can be read; row {row}: {reason}")
        canvases = torch.zeros(len(rows), 3, self.side, self.side, dtype=torch.uint8)
        sizes = np.empty((len(rows), 2), np.int64)
        spare = 0
        for i, item in enumerate(found):
            if isinstance(item, str):
                item, spare = good[spare % len(good)], spare + 1
            pixels, (height, width) = item
            canvases[i, :, :height, :width] = torch.from_numpy(pixels)
            sizes[i] = height, width
        return canvases, sizes, bad

    def _canvas(self, row: int) -> tuple[np.ndarray, tuple[int, int]] | str:
        """Pixels (3, h, w) and their size, or why there are none."""
        if self.kept is not None and row in self.kept:
            return self.kept[row]
        try:
            stored = self.stored[row]["image"][0].as_py()
            image = read_image(stored, self.side // 2)
            if max(image.size) > self.side:
                share = self.side / max(image.size)
                size = (max(round(image.width * share), 1), max(round(image.height * share), 1))
                image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
            found: Any = (pixels, pixels.shape[1:])
        except Exception as error:  # Pillow raises many types on broken files
            found = reason_of(error)
        if self.kept is not None:
            self.kept[row] = found
        return found


@dataclass
class Batch:
    """A micro-batch of b images; numpy stays on the CPU, tensors go to the model.

    Attributes:
        canvases: (b, 3, s, s) uint8.
        sizes: (b, 2) height and width within the canvas.
        draws: (b, crops, draws) uniform draws of the crops.
        masks: (2 b, p) masked patches of the global crops, crop by crop.
        masked: (m,) where they are in the flattened masks.
        weights: (m,) one over the masked patches of the same crop.
        bad: row -> reason of the unreadable ones, whose places others took.
        slot: of which step, and which part of it.
    """

    canvases: UInt8[Tensor, "b 3 s s"]
    sizes: np.ndarray
    draws: np.ndarray
    masks: Tensor
    masked: Tensor
    weights: Tensor
    bad: dict[int, str]
    slot: Slot

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        for name in ("canvases", "masks", "masked", "weights"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=non_blocking))
        return self

    def pin_memory(self) -> "Batch":
        for name in ("canvases", "masks", "masked", "weights"):
            setattr(self, name, getattr(self, name).pin_memory())
        return self


class CropBatches:
    """The micro-batch of a slot: images, the draws of their crops, the masks of their patches.

    Args:
        grid: rows and columns of patches in a global crop.
    """

    def __init__(self, reader: CanvasReader, order: Order, grid: tuple[int, int], settings: PretrainSettings):
        self.reader, self.order, self.grid, self.settings = reader, order, grid, settings

    def __call__(self, slot: Slot) -> Batch:
        settings = self.settings
        rows = self.order.sample(slot.numbers)
        canvases, sizes, bad = self.reader.read(rows)
        draws = step_draws(settings.crops, slot.batch_size, settings.seed, slot.step)[slot.places]
        masks, masked, weights = self._masks(slot)
        return Batch(canvases, sizes, draws, masks, masked, weights, bad, slot)

    def _masks(self, slot: Slot) -> tuple[Tensor, Tensor, Tensor]:
        n_crops = 2 * len(slot.places)
        if not self.grid[0] or not self.settings.loss.ibot:
            return torch.zeros(n_crops, 0, dtype=torch.bool), torch.zeros(0, dtype=torch.long), torch.zeros(0)
        crops = np.concatenate([slot.places, slot.batch_size + slot.places])
        drawn = step_masks(self.grid, crops, 2 * slot.batch_size, self.settings.mask, self.settings.seed, slot.step)
        masks = torch.from_numpy(drawn)
        masked = masks.flatten().nonzero()[:, 0]
        return masks, masked, patch_weights(masked // masks.shape[1], n_crops)
