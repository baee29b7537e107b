"""A pool of tiles from one or many rasters, each with its footprint, and splits that are apart in space.

Tiles that overlap, or that touch, share trees: random splits of them measure memory. So folds are squares of ground,
and a margin is left out around the test squares.
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, Shaped
from tqdm import tqdm

from curation.pools.tiles import tile_grid
from foundation.errors import CurationError, one_line
from foundation.files import checksums_are_verified, sampled_checksum, write_atomically
from foundation.paths import regular_file
from foundation.schema import check_content
from foundation.settings import Count, CountOrZero, NonNegative, Range, Share, check, fill
from satellite.errors import HeightWarning
from satellite.normalise import kind_of
from satellite.rasters import Raster, check_same_grid, open_heights, open_raster
from satellite.units import metres_per, refuse_no_height, warn_if_implausible

MADE_BY = "made by satellite tiles"
RASTERS = b"rasters"  # in the metadata of a table: what its tiles were cut from
MOST_BLOCKS = 250_000  # squares of ground of a split
BLOCK_SIDES = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32)  # tiles on a side, of the blocks that are proposed
PIXELS_AT_ONCE = 1 << 20  # of a band that are read to look at tiles side by side
NAME = pa.dictionary(pa.int32(), pa.string())  # millions of tiles share a few
COLUMNS = {
    "image": NAME,
    "heights": NAME,
    "row": pa.int64(),
    "col": pa.int64(),
    "size": pa.int64(),
    "resolution": pa.float64(),
    "crs": NAME,
    "valid": pa.float64(),
    "labelled": pa.float64(),
    "tallest": pa.float64(),
    "west": pa.float64(),
    "south": pa.float64(),
    "east": pa.float64(),
    "north": pa.float64(),
}


@dataclass(frozen=True)
class TileSettings:
    """How rasters are cut.

    Attributes:
        size: side of a tile, pixels.
        stride: pixels from tile to tile; 0 is the size: no overlap.
        min_valid: least share of valid pixels, in the picture and, where there are heights, in them.
        resolution: metres per pixel to which everything is brought; 0 keeps that of each raster.
        crs: to which everything is brought; "" keeps that of each raster.
        bands: 1-based bands of the picture; () takes all.
        units: of the heights: m, dm, cm, ft, us-ft.
        align: put heights on the grid of their picture where they are on another.
    """

    size: Annotated[int, Range(ge=8, le=16_384)] = 256
    stride: CountOrZero = 0
    min_valid: Share = 0.5
    resolution: NonNegative = 0.0
    crs: str = ""
    bands: tuple[Count, ...] = ()
    units: str = "m"
    align: bool = False

    def __post_init__(self) -> None:
        check(self)
        metres_per(self.units)


def open_pair(image: str | Path, heights: str | Path | None, settings: TileSettings) -> tuple[Raster, Raster | None]:
    """A picture and its heights on one grid.

    Raises:
        CurationError: as `open_raster`, or the two are on different grids and ``settings.align`` is off.
    """
    colour = open_raster(image, settings.bands or None, settings.resolution, settings.crs or None)
    if not heights:
        return colour, None
    if settings.align:
        return colour, open_heights(heights, grid=colour.grid)
    labels = open_heights(heights, settings.resolution, settings.crs or None)
    check_same_grid(colour, labels)
    return colour, labels


def cut_tiles(
    images: Sequence[str | Path],
    heights: Sequence[str | Path] | None = None,
    settings: TileSettings | None = None,
    progress: bool = True,
) -> pa.Table:
    """The tiles of all rasters, with the columns `COLUMNS`; footprints are in units of the CRS.

    Args:
        heights: one raster of heights for each picture; None: there are none.

    Raises:
        CurationError: a raster that cannot be used, or no tile has enough valid pixels.
    """
    settings = settings or TileSettings()
    if heights is not None and len(heights) != len(images):
        raise CurationError(f"{len(images)} pictures but {len(heights)} rasters of heights; give one for each")
    twice = [name for name, number in Counter(os.path.realpath(image) for image in images).items() if number > 1]
    if twice:
        raise CurationError(f"{twice[0]} is given more than once; its tiles would count as often")
    rasters: dict[str, str] = {}
    parts: list[pa.Table] = []
    empty = seen = 0
    first = ""
    truths: Sequence[str | Path | None] = heights or [None] * len(images)
    for image, truth in zip(images, truths, strict=True):
        colour, labels = open_pair(image, truth, settings)
        with colour:
            rasters |= {str(path): sampled_checksum(Path(path)) for path in (image, truth) if path}
            if truth and rasters[str(image)] == rasters[str(truth)]:
                raise CurationError(
                    f"{image} and its heights {truth} are one and the same; give heights of the picture"
                )
            first = first or colour.dtype
            if kind_of(colour.dtype) != kind_of(first):
                raise CurationError(
                    f"{image} holds {colour.dtype} but {images[0]} {first}: no one value is white in both; bring them "
                    "to one type: gdal_translate -ot"
                )
            looks = list(_looks(colour, labels, settings, Path(image).name, progress))
            row, col, share, labelled, tallest, lowest = (np.concatenate(found) for found in zip(*looks, strict=True))
            seen += len(row)
            kept = share >= settings.min_valid
            if labels is not None:
                labels.close()
                if labels.predicted:
                    said = f"{truth} is a map that `python -m satellite predict` made; a head learns its errors, too"
                    warnings.warn(said, HeightWarning, stacklevel=2)
                highest = float(tallest[kept].max(initial=0))
                refuse_no_height(highest, float(lowest[kept].min(initial=0)), settings.units, str(truth))
                warn_if_implausible(highest, settings.units, str(truth))
                kept &= labelled >= settings.min_valid
            empty += int((~kept).sum())
            row, col = row[kept], col[kept]
            bounds = colour.grid.bounds(row, col, settings.size, settings.size)
            columns: dict[str, Any] = {"image": str(image), "heights": str(truth or ""), "row": row, "col": col}
            columns |= {"size": settings.size, "resolution": colour.grid.resolution, "crs": colour.grid.crs}
            columns |= {"valid": share[kept], "labelled": labelled[kept], "tallest": tallest[kept]}
            columns |= dict(zip(("west", "south", "east", "north"), bounds, strict=True))
            parts.append(pa.table([_column(columns[name], COLUMNS[name], len(row)) for name in COLUMNS], list(COLUMNS)))
    if not sum(len(part) for part in parts):
        raise CurationError(
            f"none of {seen} tiles of {settings.size} pixels has {settings.min_valid:.0%} valid pixels "
            f"({empty} have fewer); lower min_valid or size, or look at the nodata value of the rasters"
        )
    return pa.concat_tables(parts).unify_dictionaries().replace_schema_metadata({RASTERS: json.dumps(rasters)})


def _looks(
    colour: Raster, labels: Raster | None, settings: TileSettings, title: str, progress: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Row, column, valid share, share with heights, greatest and least height (metres) of the tiles, in stretches.

    Tiles side by side are read at once. Not so where the raster is warped as it is read: what a pixel is then depends
    on the window, and `satellite.data.TileReader` must find what was found here.
    """
    size = settings.size
    rows, cols = tile_grid(colour.grid.height, colour.grid.width, size, settings.stride)
    at_once = max(PIXELS_AT_ONCE // (size * cols.step), 1)
    if colour.warped or (labels is not None and labels.warped):
        at_once = 1
    with tqdm(total=len(rows) * len(cols), desc=title, unit="tile", disable=not progress) as bar:
        yield tuple(np.empty(0, dtype) for dtype in (np.int64, np.int64, *[float] * 4))
        for row in rows:
            for first in range(0, len(cols), at_once):
                mine = np.array(cols[first : first + at_once])
                window = row, int(mine[0]), size, int(mine[-1] - mine[0]) + size
                valid = _side_by_side(colour.read(*window)[1], size, cols.step)
                share = valid.mean((1, 2))
                labelled = tallest = lowest = np.zeros(len(mine))
                if labels is not None:
                    values, known = labels.read(*window)
                    heights, known = _side_by_side(values[0], size, cols.step), _side_by_side(known, size, cols.step)
                    known = known & valid
                    labelled = known.mean((1, 2))
                    heights = np.where(known, heights, 0)
                    tallest, lowest = (
                        edge((1, 2)).astype(float) * metres_per(settings.units) for edge in (heights.max, heights.min)
                    )
                yield np.full(len(mine), row), mine, share, labelled, tallest, lowest
                bar.update(len(mine))


def _side_by_side(strip: Shaped[np.ndarray, "s w"], size: int, step: int) -> Shaped[np.ndarray, "n s s"]:
    """The tiles of a strip, a view."""
    return np.lib.stride_tricks.sliding_window_view(strip, size, 1)[:, ::step].swapaxes(0, 1)


def _column(value: Any, kind: pa.DataType, rows: int) -> pa.Array:
    """A column, of one value that all rows share or of one for each."""
    if kind == NAME:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value], pa.string()))
    return pa.array(np.broadcast_to(value, rows), kind)


def save_tiles(tiles: pa.Table, path: str | Path, settings: TileSettings) -> None:
    """Write the table as parquet, the settings in its metadata."""
    about = {b"tiles": json.dumps(asdict(settings)), b"made_by": MADE_BY}
    tiles = tiles.replace_schema_metadata({**(tiles.schema.metadata or {}), **about})
    write_atomically(Path(path), lambda stream: pq.write_table(tiles, stream, write_page_checksum=True))


def load_tiles(path: str | Path) -> tuple[pa.Table, TileSettings]:
    """What `save_tiles` wrote.

    Raises:
        CurationError: no such table, or not of tiles.
    """
    again = "make it: python -m satellite tiles"
    path = regular_file(path, again)
    try:
        names = [name for name, kind in COLUMNS.items() if kind == NAME]  # in older tables, plain strings
        table = pq.read_table(path, page_checksum_verification=True, read_dictionary=names)
        content = json.loads((table.schema.metadata or {})[b"tiles"])
    except (OSError, pa.ArrowException, KeyError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise CurationError(f"{path} is no whole table of tiles ({reason}); {again}") from error
    missing = [name for name, kind in COLUMNS.items() if name not in table.schema.names or table[name].type != kind]
    if missing or not len(table) or any(table[name].null_count for name in COLUMNS):
        raise CurationError(f"{path} is no whole table of tiles (column {(missing or ['row'])[0]}); {again}")
    return table, fill(TileSettings, content)


def check_rasters(tiles: pa.Table) -> None:
    """Refuse rasters that have changed since tiles were cut from them.

    Raises:
        CurationError: one has, or is gone.
    """
    for raster, known in rasters_of(tiles).items() if checksums_are_verified() else ():
        if sampled_checksum(Path(raster)) != known:
            raise CurationError(
                f"{raster} has changed since its tiles were cut; cut them again: python -m satellite tiles"
            )


def rasters_of(tiles: pa.Table) -> dict[str, str]:
    """`sampled_checksum` of each raster that tiles were cut from; {} of tables of before.

    Raises:
        CurationError: the table says something else there.
    """
    content = (tiles.schema.metadata or {}).get(RASTERS, b"{}")
    try:
        found: dict[str, str] = json.loads(content)
        check_content(dict[str, str], found, "the table of tiles", "cut them again")
    except (ValueError, RecursionError) as error:
        raise CurationError(f"the table of tiles is no whole one ({error}); cut them again") from error
    return found


def footprints(tiles: pa.Table) -> Float[np.ndarray, "n four"]:
    """West, south, east, north of each tile in metres; all must share one CRS.

    Raises:
        CurationError: they do not.
    """
    from rasterio.crs import CRS

    names = tiles["crs"].unique().to_pylist()
    if len(names) > 1:
        raise CurationError(f"the tiles are in {len(names)} reference systems; cut them in one: --crs EPSG:n")
    unit = CRS.from_user_input(names[0]).linear_units_factor[1]
    return np.stack([tiles[name].to_numpy() for name in ("west", "south", "east", "north")], 1) * unit


@dataclass(frozen=True)
class Split:
    """Rows of a table of tiles: neither side holds a pixel of the other, nor of the margin between them."""

    train: Int[np.ndarray, "n"]
    test: Int[np.ndarray, "m"]


def fold_of_blocks(shape: tuple[int, int], n_folds: int, seed: int = 0) -> Int[np.ndarray, "r c"]:
    """A fold for each square of ground: shuffled, all folds alike in number."""
    order = np.random.default_rng(seed).permutation(shape[0] * shape[1])
    return (order % n_folds).reshape(shape)


def spatial_split(
    boxes: Float[np.ndarray, "n four"], block: float, n_folds: int, fold: int, margin: float = 0.0, seed: int = 0
) -> Split:
    """Train and test tiles of one fold of a spatial cross-validation.

    Args:
        boxes: `footprints`, metres.
        block: side of the squares of ground, metres; from the south-west corner of all tiles.
        n_folds, fold: how many, which one is tested.
        margin: metres between any train and any test tile; about the reach of a tree's shadow.
        seed: of the draw of folds.

    Returns:
        Test: tiles that lie wholly in squares of the fold. Train: those that keep ``margin`` from all these squares.

    Raises:
        CurationError: a side is empty: the blocks are too small for the tiles, or too few; names others that do.
    """
    if not 0 <= fold < n_folds or block <= 0 or margin < 0:
        raise CurationError(f"fold {fold} of {n_folds}, block {block} m, margin {margin} m make no split")
    extent = boxes[:, 2:].max(0) - boxes[:, :2].min(0)
    if _number_of_blocks(extent, block) > MOST_BLOCKS:
        raise CurationError(f"blocks of {block:g} m are more than {MOST_BLOCKS:,} on {extent[0]:g} x {extent[1]:g} m")
    found = _split(boxes, block, n_folds, fold, margin, seed)
    for name, rows in (("train", found.train), ("test", found.test)):
        if not len(rows):
            side = float(boxes[0, 2] - boxes[0, 0])
            others = [s for s in side * np.array(BLOCK_SIDES) if _number_of_blocks(extent, s) <= MOST_BLOCKS]
            splits = [(other, _split(boxes, other, n_folds, fold, margin, seed)) for other in others]
            # the share that a fold should have, as nearly as can be; of as good ones the nearest to what was asked
            good = [(other, split) for other, split in splits if len(split.train) and len(split.test)]

            def worse(candidate: tuple[float, Split]) -> tuple[float, float]:
                other, split = candidate
                share = len(split.test) / (len(split.train) + len(split.test))
                return round(abs(share - 1 / n_folds), 1), abs(float(np.log(other / block)))

            advice = "choose other blocks or folds, a smaller margin, or smaller tiles"
            if good:
                other, split = min(good, key=worse)
                advice = f"blocks of {other:g} m leave {len(split.train):,} to train on and {len(split.test):,} to test"
            rows_of, columns_of = np.ceil(extent[::-1] / block).astype(int)
            raise CurationError(
                f"fold {fold} of {n_folds} leaves no {name} tiles: {rows_of} x {columns_of} blocks of {block:g} m, "
                f"margin {margin:g} m, tiles of {side:g} m; {advice}"
            )
    return found


def _number_of_blocks(extent: Float[np.ndarray, "two"], block: float) -> float:
    return float(np.ceil(extent / block).prod())


def _split(
    boxes: Float[np.ndarray, "n four"], block: float, n_folds: int, fold: int, margin: float, seed: int
) -> Split:
    """`spatial_split`, whatever is left."""
    origin = boxes[:, :2].min(0)
    width, height = np.ceil((boxes[:, 2:].max(0) - origin) / block).astype(int)
    folds = fold_of_blocks((int(height), int(width)), n_folds, seed)
    near = touches(boxes, folds == fold, origin, block, margin)
    inside = ~touches(boxes, folds != fold, origin, block, 0.0)
    return Split(np.flatnonzero(~near), np.flatnonzero(inside))


def touches(
    boxes: Float[np.ndarray, "n four"],
    blocks: Bool[np.ndarray, "r c"],
    origin: Float[np.ndarray, "two"],
    block: float,
    margin: float,
) -> Bool[np.ndarray, "n"]:
    """Which boxes come nearer than ``margin`` (in each axis) to a marked square of ground."""
    slack = 1e-6 * block  # boxes that end where a square begins do not touch it
    # squares from `first` up to `last` are touched on each axis, and sums over rectangles count the marked ones
    first = np.floor((boxes[:, :2] - origin - margin + slack) / block).astype(np.int64)
    last = np.ceil((boxes[:, 2:] - origin + margin - slack) / block).astype(np.int64)
    (c0, r0), (c1, r1) = (np.clip(ends, 0, blocks.shape[::-1]).T for ends in (first, last))
    sums = np.pad(blocks.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0] > 0
