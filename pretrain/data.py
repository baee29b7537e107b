"""From rows of a pool to batches: decoded into canvases by workers, cropped and coloured later, where the model is.

Which rows make up step s, their crops and their masks are a function of (seed, s): resuming needs the step number and
nothing else, and no number of processes or workers changes the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from foundation.errors import CurationError
from foundation.images import read_image, reason_of
from pretrain.losses import patch_weights
from pretrain.masking import step_masks
from pretrain.multicrop import step_draws
from pretrain.order import Order
from pretrain.settings import PretrainSettings
from training.batches import BatchPlan


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
        rows: (b,) pool rows.
        bad: row -> reason of the unreadable ones, whose places others took.
        step, micro: of the optimiser, and of the micro-batch within the step.
    """

    canvases: UInt8[Tensor, "b 3 s s"]
    sizes: np.ndarray
    draws: np.ndarray
    masks: Tensor
    masked: Tensor
    weights: Tensor
    rows: np.ndarray
    bad: dict[int, str]
    step: int
    micro: int

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        for name in ("canvases", "masks", "masked", "weights"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=non_blocking))
        return self

    def pin_memory(self) -> "Batch":
        for name in ("canvases", "masks", "masked", "weights"):
            setattr(self, name, getattr(self, name).pin_memory())
        return self


class StepDataset(IterableDataset[Batch]):
    """Micro-batches of the steps ``start`` to ``settings.steps``, in order."""

    def __init__(
        self,
        reader: CanvasReader,
        order: Order,
        plan: BatchPlan,
        grid: tuple[int, int],
        settings: PretrainSettings,
        start: int,
    ):
        super().__init__()
        self.reader, self.order, self.plan, self.grid = reader, order, plan, grid
        self.settings, self.start = settings, start

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        accumulate = self.plan.accumulate
        # DataLoader takes one item of each worker in turn, so striding keeps the order
        for item in range(mine, (self.settings.steps - self.start) * accumulate, workers):
            yield self.batch(self.start + item // accumulate, item % accumulate)

    def batch(self, step: int, micro: int) -> Batch:
        settings, plan = self.settings, self.plan
        places = plan.within_step(micro)
        rows = self.order.sample(step * plan.batch_size + places)
        canvases, sizes, bad = self.reader.read(rows)
        draws = step_draws(settings.crops, plan.batch_size, settings.seed, step)[places]
        masks, masked, weights = self._masks(step, places)
        return Batch(canvases, sizes, draws, masks, masked, weights, rows, bad, step, micro)

    def _masks(self, step: int, places: Int[np.ndarray, "b"]) -> tuple[Tensor, Tensor, Tensor]:
        n_crops = 2 * len(places)
        if not self.grid[0] or not self.settings.loss.ibot:
            return torch.zeros(n_crops, 0, dtype=torch.bool), torch.zeros(0, dtype=torch.long), torch.zeros(0)
        crops = np.concatenate([places, self.plan.batch_size + places])
        drawn = step_masks(self.grid, crops, 2 * self.plan.batch_size, self.settings.mask, self.settings.seed, step)
        masks = torch.from_numpy(drawn)
        masked = masks.flatten().nonzero()[:, 0]
        return masks, masked, patch_weights(masked // masks.shape[1], n_crops)


def step_loader(dataset: StepDataset, n_workers: int = 0, pin_memory: bool = False) -> DataLoader[Batch]:
    """Loader of the dataset's micro-batches."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=n_workers,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,  # the default would turn numpy into tensors, which Lightning would move
        prefetch_factor=4 if n_workers else None,
    )


def _as_it_is(batch: Any) -> Any:
    return batch
