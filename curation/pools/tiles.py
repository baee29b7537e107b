"""Tiles of GeoTIFF rasters as pictures of a pool: cut by window as they are read, never written, never held.

A tile is an address, ``tile://raster/data/scene.tif?row=0&col=256&...``, that fsspec opens as a PNG file: `datasets`
and `foundation.images.read_image` read it as they read any other picture.
"""

import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import fsspec
import numpy as np
from fsspec.spec import AbstractFileSystem
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from foundation.errors import CurationError, one_line
from foundation.files import sampled_checksum
from foundation.images import OPENERS
from foundation.paths import is_regular, regular_file
from foundation.settings import Range, require_number

PROTOCOL = "tile"
ADDRESS = f"{PROTOCOL}://raster"
GEOGRAPHIC = (33550, 34264, 34735)  # TIFF tags: scale of a pixel, transformation, keys of the reference system
WIDTH, HEIGHT = 256, 257
LOOK_AT = 32  # files, evenly spaced, that tell whether a folder of TIFFs is one of rasters
MOST_TILES = 5_000_000  # of a raster
OVERVIEW = 1024  # pixels along the longer side of the look that sets the stretch of a raster


@dataclass(frozen=True)
class TileCut:
    """How a raster becomes tiles.

    Attributes:
        tile: side, pixels.
        stride: pixels from tile to tile; 0: the side, no overlap.
        bands: 1-based, one (grey) or three (red, green, blue); (): the first three, or the first of fewer.
        min_valid: least share of pixels that hold data.
    """

    tile: int = 256
    stride: int = 0
    bands: tuple[int, ...] = ()
    min_valid: float = 0.5

    def __post_init__(self) -> None:
        for name in ("tile", "stride", "min_valid"):
            require_number(getattr(self, name), Range(ge=0, le=1 << 20), name)
        if self.tile < 8 or self.stride < 0 or len(self.bands) not in (0, 1, 3) or not 0 <= self.min_valid <= 1:
            raise CurationError(
                f"tile={self.tile} stride={self.stride} bands={','.join(map(str, self.bands))} "
                f"min_valid={self.min_valid:g} cut no tiles: 8 pixels or more, one band or three, a share of 0 to 1"
            )


def parse_cut(text: str) -> TileCut:
    """``tile=512&bands=4,3,2`` as a `TileCut`.

    Raises:
        CurationError: another key, or no number.
    """
    read: dict[str, Callable[[str], Any]] = {
        "tile": int,
        "stride": int,
        "bands": lambda value: tuple(int(band) for band in value.split(",")),
        "min_valid": float,
    }
    cut = TileCut()
    for part in filter(None, text.split("&")):
        key, _, value = part.partition("=")
        try:
            cut = replace(cut, **{key: read[key](value)})
        except (KeyError, ValueError) as error:
            if isinstance(error, CurationError):
                raise
            raise CurationError(
                f"#{text}: {part!r} is none of tile=256, stride=0, bands=4,3,2, min_valid=0.5"
            ) from error
    return cut


def tile_grid(height: int, width: int, size: int, stride: int = 0) -> tuple[range, range]:
    """Upper rows and left columns of all whole tiles; a tile lies at each pair.

    Raises:
        CurationError: more than `MOST_TILES` of them.
    """
    step = stride or size
    if ((height - size) // step + 1) * ((width - size) // step + 1) > MOST_TILES:
        raise CurationError(
            f"a raster of {height} x {width} pixels has more than {MOST_TILES:,} tiles; raise the stride"
        )
    return range(0, height - size + 1, step), range(0, width - size + 1, step)


def tile_starts(height: int, width: int, size: int, stride: int = 0) -> list[tuple[int, int]]:
    """Upper left pixels (row, column) of all whole tiles; see `tile_grid`."""
    rows, cols = tile_grid(height, width, size, stride)
    return [(row, col) for row in rows for col in cols]


def tiff_tags(path: Path) -> ImageFileDirectory_v2 | None:
    """The first directory of a TIFF, whatever its bands and types; None where it is no TIFF."""
    if not is_regular(path):
        return None
    try:
        with open(path, "rb") as stream:
            header = stream.read(8)
            header += stream.read(8) if header[2:4] in (b"\x2b\x00", b"\x00\x2b") else b""  # BigTIFF
            tags = ImageFileDirectory_v2(header)
            stream.seek(tags.next)
            tags.load(stream)
            return tags
    except (OSError, SyntaxError, ValueError, KeyError, IndexError):
        return None


def are_rasters(files: Sequence[Path], tile: int) -> bool:
    """Whether TIFF files are to be cut: one of `LOOK_AT` has a place on the ground and is larger than a tile."""
    for file in [files[i] for i in np.unique(np.linspace(0, len(files) - 1, LOOK_AT).astype(int))]:
        tags = tiff_tags(file)
        if tags is None or not any(tag in tags for tag in GEOGRAPHIC):
            continue
        if max(int(tags.get(WIDTH, 0)), int(tags.get(HEIGHT, 0))) > tile:
            return True
    return False


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError as error:
        raise CurationError("tiles of GeoTIFF need rasterio: pip install 'curated-ssl[rasters]'") from error
    return rasterio


def _open(path: Path) -> Any:
    rasterio = _rasterio()
    regular_file(path, "leave it out of the pool")
    try:
        return rasterio.open(path)
    except (rasterio.errors.RasterioError, OSError) as error:
        raise CurationError(f"raster {path} cannot be opened ({one_line(error)}); is it whole?") from error


def _look(source: Any, bands: tuple[int, ...], size: int) -> tuple[Float[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
    """The whole raster in few pixels, so that a tile has 8 x 8 of them, and where they hold data."""
    longest = max(source.height, source.width)
    scale = min(1.0, max(OVERVIEW, math.ceil(longest * 8 / size)) / longest)
    shape = max(1, round(source.height * scale)), max(1, round(source.width * scale))
    values = source.read(indexes=list(bands), out_shape=(len(bands), *shape)).astype(np.float32)
    return values, (source.dataset_mask(out_shape=shape) > 0) & np.isfinite(values).all(0)


def _stretch(values: Float[np.ndarray, "c h w"], valid: Bool[np.ndarray, "h w"]) -> list[tuple[float, float]]:
    """Black and white of each band: the 2nd and 98th percentile of the whole raster, so that its tiles compare."""
    found = []
    for band in values:
        low, high = (float(v) for v in np.percentile(band[valid], (2, 98))) if valid.any() else (0.0, 1.0)
        found.append((low, high if high > low else low + 1))
    return found


def raster_tiles(path: Path, cut: TileCut) -> tuple[list[dict[str, Any]], int]:
    """The tiles of one raster with enough data, and how many have too little.

    A raster smaller than a tile is one tile of its own size.

    Returns:
        Rows with ``image`` (the address), ``raster``, ``row``, ``col``, ``height``, ``width`` in pixels, ``valid``
        (share of pixels with data), and ``west``, ``south``, ``east``, ``north`` in units of ``crs``.

    Raises:
        CurationError: it cannot be read, has no such band, or rasterio is not installed.
    """
    rasterio = _rasterio()
    with _open(path) as source:
        colours = [i for i in source.indexes if source.colorinterp[i - 1] != rasterio.enums.ColorInterp.alpha]
        bands = cut.bands or tuple(colours[:3] if len(colours) >= 3 else colours[:1])
        for band in bands:
            if band not in source.indexes:
                raise CurationError(f"raster {path} has no band {band}; it has 1 to {source.count}")
            if "complex" in source.dtypes[band - 1]:
                raise CurationError(f"band {band} of raster {path} holds complex numbers, which are no picture")
        try:
            values, valid = _look(source, bands, cut.tile)
        except (rasterio.errors.RasterioError, OSError) as error:
            raise CurationError(f"raster {path} is truncated or damaged ({one_line(error)}); get it again") from error
        bytes_already = all(source.dtypes[band - 1] == "uint8" for band in bands)
        stretch = [] if bytes_already else _stretch(values, valid)
        height, width = min(cut.tile, source.height), min(cut.tile, source.width)
        # a side shorter than a tile is one tile wide
        starts = tile_starts(max(source.height, cut.tile), max(source.width, cut.tile), cut.tile, cut.stride)
        crs = source.crs.to_string() if source.crs is not None else None
        rows: list[dict[str, Any]] = []
        up, left = valid.shape[0] / source.height, valid.shape[1] / source.width
        for row, col in starts:
            inside = valid[
                int(row * up) : max(int(row * up) + 1, round((row + height) * up)),
                int(col * left) : max(int(col * left) + 1, round((col + width) * left)),
            ]
            share = float(inside.mean())
            if share < cut.min_valid:
                continue
            west, north = _on_ground(source.transform, col, row)
            east, south = _on_ground(source.transform, col + width, row + height)
            place = {"row": row, "col": col, "height": height, "width": width}
            address = _address(path, place, bands, stretch)
            rows.append({"image": address, "raster": str(path), **place, "valid": share})
            rows[-1] |= {"west": west, "south": south, "east": east, "north": north, "crs": crs}
    return rows, len(starts) - len(rows)


def _on_ground(transform: Any, col: int, row: int) -> tuple[float, float]:
    """Easting and northing of the upper left corner of a pixel."""
    found = (transform.a * col + transform.b * row + transform.c, transform.d * col + transform.e * row + transform.f)
    return float(found[0]), float(found[1])


def _address(path: Path, place: dict[str, int], bands: tuple[int, ...], stretch: list[tuple[float, float]]) -> str:
    query: dict[str, Any] = {**place, "bands": ",".join(map(str, bands))}
    if stretch:
        query["stretch"] = ",".join(f"{low:.7g}:{high:.7g}" for low, high in stretch)
    return f"{ADDRESS}{quote(str(path.absolute()))}?{urlencode(query, safe=',:')}"


def raster_content(address: str) -> str:
    """Checksum of the raster of a tile, see `foundation.files.sampled_checksum`; "": it cannot be read."""
    path = unquote(urlsplit(address).path)
    try:
        state = os.stat(path)
        return _sampled_once(path, state.st_size, state.st_mtime_ns)
    except (OSError, CurationError):
        return ""


@lru_cache(maxsize=4096)
def _sampled_once(path: str, _bytes: int, _changed: int) -> str:
    return sampled_checksum(Path(path))


def read_tile(address: str) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a tile by its address; pixels without data are black.

    Raises:
        OSError: the raster is not there any more, or damaged at this place.
        CurationError: rasterio is not installed, or this is no address of a tile.
    """
    rasterio = _rasterio()
    parts = urlsplit(address)
    try:
        query = {key: values[0] for key, values in parse_qs(parts.query, strict_parsing=True).items()}
        col, row, width, height = (int(query[key]) for key in ("col", "row", "width", "height"))
        bands = [int(band) for band in query["bands"].split(",")]
        pairs = [tuple(map(float, pair.split(":"))) for pair in query.get("stretch", "").split(",") if pair]
    except (KeyError, ValueError) as error:
        raise CurationError(f"{address} is no address of a tile") from error
    path = unquote(parts.path)
    window = rasterio.windows.Window(col, row, width, height)
    if not is_regular(path):
        raise OSError(f"{path} is no regular file")
    try:
        with rasterio.open(path) as source:
            values = source.read(indexes=bands, window=window)
            valid = source.dataset_mask(window=window) > 0
    except rasterio.errors.RasterioError as error:
        raise OSError(f"{path}, row {row}, column {col}: {one_line(error)}") from error
    if pairs:
        low, high = (np.array(side, np.float32)[:, None, None] for side in zip(*pairs, strict=True))
        scaled = (values.astype(np.float32) - low) / (high - low) * 255
        values = np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8)
    return np.where(valid, values, 0).astype(np.uint8).transpose(1, 2, 0)


def tile_image(address: str) -> Image.Image:
    """`read_tile` as a grey or RGB picture."""
    pixels = read_tile(address)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


class TileFileSystem(AbstractFileSystem):
    """What fsspec opens ``tile://`` with: each address is a PNG file."""

    protocol = PROTOCOL
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> io.BytesIO:  # type: ignore[override]
        if mode != "rb":
            raise OSError(f"{path} can only be read")
        stream = io.BytesIO()
        tile_image(path).save(stream, "PNG", compress_level=1)
        stream.seek(0)
        return stream


fsspec.register_implementation(PROTOCOL, TileFileSystem, clobber=True)
OPENERS[PROTOCOL] = tile_image  # the pixels themselves, which no PNG need be made of


def open_rasters(files: Iterable[Path], root: Path, cut: TileCut) -> Any:
    """The tiles of all rasters as a `datasets.Dataset`; with sub-folders the folder of a raster is the label.

    Raises:
        CurationError: no tile has enough data, or see `raster_tiles`.
    """
    from datasets import ClassLabel, Dataset
    from datasets import Image as ImageFeature

    rows: list[dict[str, Any]] = []
    empty = 0
    for file in files:
        mine, lacking = raster_tiles(file, cut)
        label = file.parent.relative_to(root).as_posix()
        rows += [{**row, "label": label} for row in mine]
        empty += lacking
    if not rows:
        raise CurationError(
            f"none of the {empty} tiles of {cut.tile} pixels in {root} has {cut.min_valid:.0%} of its pixels "
            "with data; lower it as #min_valid=0.1, or look at the nodata value of the rasters"
        )
    labels = sorted({row["label"] for row in rows})
    pool = Dataset.from_list(rows).cast_column("image", ImageFeature())
    return pool.remove_columns("label") if labels == ["."] else pool.cast_column("label", ClassLabel(names=labels))
