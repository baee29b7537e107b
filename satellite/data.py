"""From rows of a table of tiles to batches: pictures normalised, heights in metres with where they are valid.

Which tiles make up step s, how they are turned and coloured is a function of (seed, s), see `training.data`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foundation.errors import CurationError
from satellite.normalise import BandStatistics, band_statistics, normalise, white_of
from satellite.rasters import Raster
from satellite.settings import TrainSettings
from satellite.tiles import TileSettings, check_rasters, open_pair
from satellite.units import metres_per
from training.data import Slot
from training.order import Order

Batch = dict[str, Tensor]
Tile = tuple[Float[np.ndarray, "c s s"], Bool[np.ndarray, "s s"], Float[np.ndarray, "s s"]]


class TileReader:
    """Reads tiles of a table; rasters are opened when first needed, in each process its own.

    Args:
        table: of `satellite.tiles`.
        settings: that it was cut with.
        cache_tiles: how many tiles may be kept in memory; all or none are.

    Raises:
        CurationError: a raster has changed since its tiles were cut.
    """

    def __init__(self, table: pa.Table, settings: TileSettings, cache_tiles: int = 0):
        check_rasters(table)
        self._columns = {name: table[name].to_numpy() for name in ("row", "col", "valid", "labelled", "tallest")}
        self._names = {name: _codes(table[name]) for name in ("image", "heights")}
        self.settings = settings
        self.kept: dict[int, Tile] | None = {} if len(table) <= cache_tiles else None
        self._open: dict[tuple[str, str], tuple[Raster, Raster | None]] = {}

    def __len__(self) -> int:
        return len(self._columns["row"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files do not travel to other processes

    def place(self, tile: int) -> dict[str, Any]:
        """What the table says of a tile."""
        names = {name: values[codes[tile]] for name, (values, codes) in self._names.items()}
        return names | {name: column[tile].item() for name, column in self._columns.items()}

    def rasters(self, tile: int) -> tuple[Raster, Raster | None]:
        place = self.place(tile)
        key = (place["image"], place["heights"])
        if key not in self._open:
            self._open[key] = open_pair(key[0], key[1] or None, self.settings)
        return self._open[key]

    @property
    def n_bands(self) -> int:
        return len(self.rasters(0)[0].bands)

    @property
    def dtype(self) -> str:
        return self.rasters(0)[0].dtype

    def read(self, tile: int) -> Tile:
        """Values of the bands, where they are valid, and heights in metres, NaN where not known.

        Raises:
            CurationError: the rasters are not those that the tile was cut from, as far as its row says.
        """
        if self.kept is not None and tile in self.kept:
            return self.kept[tile]
        colour, labels = self.rasters(tile)
        place, size = self.place(tile), self.settings.size
        values, valid = colour.read(place["row"], place["col"], size, size)
        heights = np.full((size, size), np.nan, np.float32)
        if labels is not None:
            found, known = labels.read(place["row"], place["col"], size, size)
            heights = np.where(known & valid, found[0] * metres_per(self.settings.units), np.nan).astype(np.float32)
        self._require_same(place, valid, heights)
        if self.kept is not None:
            self.kept[tile] = values, valid, heights
        return values, valid, heights

    @staticmethod
    def _require_same(place: dict[str, Any], valid: Bool[np.ndarray, "s s"], heights: Float[np.ndarray, "s s"]) -> None:
        known = np.isfinite(heights)
        found = {"valid": float(valid.mean())}
        if place["heights"]:
            found |= {"labelled": float(known.mean()), "tallest": float(heights[known].max(initial=0))}
        for name, value in found.items():
            if not abs(value - place[name]) <= 1e-6 + 1e-4 * abs(place[name]):
                raster = place["image"] if name == "valid" else place["heights"]
                raise CurationError(
                    f"{raster} has changed since its tiles were cut (row {place['row']}, column {place['col']}: {name} "
                    f"{value:g}, not {place[name]:g}); cut them again: python -m satellite tiles"
                )

    def statistics(self, tiles: Int[np.ndarray, "n"], white: float = 0.0) -> BandStatistics:
        """Of the valid pixels of some tiles."""
        return band_statistics((self.read(int(tile))[:2] for tile in tiles), white_of(self.dtype, white))


def _codes(column: pa.ChunkedArray) -> tuple[list[str], Int[np.ndarray, "n"]]:
    """Different values of a column of names, and which of them each row has."""
    encoded = column.combine_chunks().dictionary_encode() if column.type == pa.string() else column.combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def labelled_rows(table: pa.Table, rows: Int[np.ndarray, "n"] | None, min_valid: float) -> Int[np.ndarray, "m"]:
    """Rows with enough known heights.

    Raises:
        CurationError: there is none.
    """
    rows = np.arange(len(table)) if rows is None else np.asarray(rows, np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= len(table)):
        raise CurationError(f"row {rows.max()} is not in the table of {len(table)} tiles")
    kept = rows[table["labelled"].to_numpy()[rows] >= max(min_valid, 1e-9)]
    if not len(kept):
        raise CurationError(f"none of {len(rows)} tiles has heights on {min_valid:.0%} of its pixels")
    return kept


class TileBatches:
    """The micro-batch of a slot: pictures as the model sees them, heights in metres, NaN where not known."""

    def __init__(
        self, reader: TileReader, rows: Int[np.ndarray, "n"], statistics: BandStatistics, settings: TrainSettings
    ):
        self.reader, self.statistics, self.settings = reader, statistics, settings
        self.order = Order(rows, settings.seed)

    def __call__(self, slot: Slot) -> Batch:
        rows = self.order.sample(slot.numbers)
        n_bands = len(self.statistics.mean)
        # every process draws for the whole batch and takes its own
        draws = np.random.default_rng([self.settings.seed, slot.step]).random((slot.batch_size, 1 + 2 * n_bands))
        tiles = [self._tile(int(row), draw) for row, draw in zip(rows, draws[slot.places], strict=True)]
        images, heights = (np.stack(part) for part in zip(*tiles, strict=True))
        return {"images": torch.from_numpy(images), "heights": torch.from_numpy(heights)}

    def _tile(self, row: int, draw: Float[np.ndarray, "k"]) -> tuple[np.ndarray, np.ndarray]:
        values, valid, heights = self.reader.read(row)
        image = normalise(values, valid, self.statistics)
        if self.settings.jitter:
            strength = self.settings.jitter * (2 * draw[1:] - 1).astype(np.float32)
            gain, shift = np.split(strength[:, None, None], 2)
            image = np.where(valid, image * (1 + gain) + shift, image)
        if self.settings.symmetries:
            which = int(draw[0] * 8)
            image, heights = (symmetry(part, which) for part in (image, heights))
        return np.ascontiguousarray(image), np.ascontiguousarray(heights)


def symmetry(x: Float[np.ndarray, "... s s"], which: int) -> Float[np.ndarray, "... s s"]:
    """One of the eight symmetries of the square: seen from above, all are as likely."""
    turned = np.rot90(x, which % 4, axes=(-2, -1))
    return turned[..., ::-1] if which >= 4 else turned


def with_white(statistics: BandStatistics, white: float) -> BandStatistics:
    """Published statistics for files of another range."""
    return replace(statistics, white=white)
