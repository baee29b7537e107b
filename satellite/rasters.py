"""Rasters of any size and format that GDAL reads, as windows of float32 bands with a mask of what is valid."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from foundation.errors import CurationError, one_line
from foundation.paths import regular_file

CACHE_BYTES = 256 << 20  # of blocks that GDAL keeps: a row of tiles across a wide raster
FINEST = 16  # times finer than it is, a raster may be resampled
SAME = 1e-3  # of a pixel: grids that differ by less are one grid
PREDICTED = "made by satellite predict"  # in the tags of its maps


@dataclass(frozen=True)
class Grid:
    """Where the pixels lie, north up.

    Attributes:
        crs: coordinate reference system as WKT or "EPSG:n".
        left, top: of the upper left corner, in units of the CRS.
        pixel: side of a pixel, in units of the CRS.
        height, width: pixels.
        unit: metres in a unit of the CRS.
    """

    crs: str
    left: float
    top: float
    pixel: float
    height: int
    width: int
    unit: float = 1.0

    @property
    def resolution(self) -> float:
        """Metres per pixel."""
        return self.pixel * self.unit

    @property
    def transform(self) -> Any:
        from rasterio.transform import from_origin

        return from_origin(self.left, self.top, self.pixel, self.pixel)

    def bounds(self, row: Any, col: Any, height: int, width: int) -> tuple[Any, Any, Any, Any]:
        """West, south, east, north of a window, in units of the CRS; of many where row and column are arrays."""
        west, north = self.left + col * self.pixel, self.top - row * self.pixel
        return west, north - height * self.pixel, west + width * self.pixel, north


class Raster:
    """An open raster on a north-up grid of square pixels; closed by ``with`` or `close`.

    Attributes:
        path, grid: which, where.
        bands: 1-based bands that `read` returns, in this order.
        dtype: of the file.
        warped: the file itself is on another grid.
        predicted: it is a map that `satellite.infer` made.
    """

    def __init__(self, path: Path, source: Any, dataset: Any, grid: Grid, bands: Sequence[int]):
        self.path, self.grid, self.bands = path, grid, tuple(bands)
        self._source, self._dataset = source, dataset
        self.dtype = str(source.dtypes[self.bands[0] - 1])
        self.warped = dataset is not source
        self.predicted = PREDICTED in source.tags().get("TIFFTAG_SOFTWARE", "")
        # asking for the mask of such a file costs as much as its values
        self._whole = all(len(flags) == 1 and flags[0].name == "all_valid" for flags in dataset.mask_flag_enums)

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[Float[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
        """Values of a window and where they are valid; the window may reach beyond the raster, where nothing is.

        Valid is what neither nodata, nor a mask or alpha band, nor a NaN leaves out; invalid values are 0.

        Raises:
            CurationError: the file is truncated there.
        """
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        values = np.zeros((len(self.bands), height, width), np.float32)
        valid = np.zeros((height, width), bool)
        r0, c0 = max(row, 0), max(col, 0)
        r1, c1 = min(row + height, self.grid.height), min(col + width, self.grid.width)
        if r0 >= r1 or c0 >= c1:
            return values, valid
        window = Window(c0, r0, c1 - c0, r1 - r0)
        inner = np.s_[r0 - row : r1 - row, c0 - col : c1 - col]
        try:
            found = self._dataset.read(indexes=list(self.bands), window=window).astype(np.float32)
            mask = np.ones(found.shape[1:], bool)
            if not self._whole:
                mask = self._dataset.dataset_mask(window=window) > 0
        except (RasterioError, OSError) as error:
            raise CurationError(
                f"{self.path}: rows {r0}..{r1}, columns {c0}..{c1} cannot be read ({one_line(error)}); the file is "
                "truncated or damaged: get it again"
            ) from error
        mask &= np.isfinite(found).all(0)
        values[:, inner[0], inner[1]] = np.where(mask, found, 0)
        valid[inner] = mask
        return values, valid

    def close(self) -> None:
        if self.warped:
            self._dataset.close()
        self._source.close()

    def __enter__(self) -> "Raster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_raster(
    path: str | Path,
    bands: Sequence[int] | None = None,
    resolution: float = 0.0,
    crs: str | None = None,
    grid: Grid | None = None,
    resampling: str = "auto",
) -> Raster:
    """Open a raster, reprojected lazily where it is not on the wanted grid.

    Args:
        bands: 1-based; None takes all but an alpha band.
        resolution: metres per pixel; 0 keeps that of the file.
        crs: such as "EPSG:32610"; None keeps that of the file, which must then have lengths.
        grid: the exact grid; overrides resolution and crs.
        resampling: of `rasterio.enums.Resampling`; "auto" averages where pixels are merged, else bilinear.

    Raises:
        CurationError: no such file, no raster, no georeference, bands that are not there, or a CRS in degrees.
    """
    import rasterio
    from rasterio.crs import CRS
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
    from rasterio.vrt import WarpedVRT

    path = regular_file(path, "give a raster that GDAL reads")
    _limit_cache()
    try:
        with warnings.catch_warnings():  # of a raster that lies nowhere: it is refused just below
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            source = rasterio.open(path)
    except (RasterioError, OSError) as error:
        raise CurationError(
            f"raster {path} cannot be opened ({one_line(error)}); is it whole, and a raster?"
        ) from error
    try:
        if source.crs is None or source.transform.is_identity:
            what = "coordinate reference system" if source.crs is None else "position"
            raise CurationError(
                f"raster {path} has no {what}; say where it lies: gdal_edit.py -a_srs EPSG:n -a_ullr LEFT TOP RIGHT "
                f"BOTTOM {path.name}"
            )
        colours = [i for i in source.indexes if source.colorinterp[i - 1] != ColorInterp.alpha]
        chosen = list(colours if bands is None else bands)
        for band in chosen:
            if band not in source.indexes:
                raise CurationError(f"raster {path} has no band {band}; it has 1..{source.count}")
            if "complex" in source.dtypes[band - 1]:
                raise CurationError(f"band {band} of raster {path} holds complex numbers; give their amplitude")
        try:
            target = source.crs if grid is None and crs is None else CRS.from_user_input(grid.crs if grid else crs)
        except CRSError as error:
            raise CurationError(f"{crs!r} is no coordinate reference system ({one_line(error)})") from error
        if target.is_geographic:
            raise CurationError(
                f"raster {path} is in degrees, its pixels have no size in metres; reproject it as you read: "
                f"--crs {_utm(source)}"
            )
        grid = grid or _own_grid(source, target, resolution)
        own = source.transform
        alike = target == source.crs and own.b == own.d == 0 and own.a > 0
        alike = alike and not _differences(_as_grid(source), grid) and abs(own.a + own.e) <= SAME * own.a
        if alike:
            return Raster(path, source, source, grid, chosen)
        merges = target == source.crs and grid.pixel > 1.5 * abs(own.a)
        how = ("average" if merges else "bilinear") if resampling == "auto" else resampling
        options: dict[str, Any] = {}
        if source.nodata is None and ColorInterp.alpha not in source.colorinterp:
            if np.issubdtype(np.dtype(source.dtypes[0]), np.floating):
                options = {"src_nodata": np.nan, "nodata": np.nan}
            else:
                options = {"add_alpha": True}  # else what lies outside would read as black
        dataset = WarpedVRT(
            source,
            crs=target,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            resampling=Resampling[how],
            **options,
        )
        return Raster(path, source, dataset, grid, chosen)
    except BaseException:
        source.close()
        raise


def _limit_cache() -> None:
    """GDAL would keep blocks up to 5 % of the machine's memory, in every process; ``GDAL_CACHEMAX`` has its way."""
    from rasterio.env import set_gdal_config

    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)


def open_heights(path: str | Path, resolution: float = 0.0, crs: str | None = None, grid: Grid | None = None) -> Raster:
    """A raster of heights, which has one band; see `open_raster`.

    Raises:
        CurationError: as `open_raster`, or it has several bands, as a picture has.
    """
    raster = open_raster(path, None, resolution, crs, grid)
    if len(raster.bands) > 1:
        raster.close()
        raise CurationError(f"raster {path} has {len(raster.bands)} bands; heights have one: is it a picture?")
    return raster


def check_same_grid(a: Raster, b: Raster) -> None:
    """Refuse two rasters whose pixels do not lie on one another.

    Raises:
        CurationError: says which of CRS, resolution, origin and size differ, and by how much.
    """
    found = _differences(a.grid, b.grid)
    if found:
        raise CurationError(
            f"{a.path} and {b.path} do not lie on one grid: {'; '.join(found)}. Put the second on the grid of the "
            "first: --align"
        )


def _differences(a: Grid, b: Grid) -> list[str]:
    from rasterio.crs import CRS

    found = []
    if CRS.from_user_input(a.crs) != CRS.from_user_input(b.crs):
        return [f"CRS {_name(a.crs)} and {_name(b.crs)}"]
    if abs(a.pixel - b.pixel) > SAME * a.pixel / max(a.width, a.height):
        found.append(f"resolution {a.resolution:g} m and {b.resolution:g} m ({b.pixel / a.pixel:.4g} times)")
    dx, dy = b.left - a.left, b.top - a.top
    if max(abs(dx), abs(dy)) > SAME * a.pixel:
        found.append(
            f"upper left corner off by {dx * a.unit:g} m east and {dy * a.unit:g} m north "
            f"({dx / a.pixel:g} and {dy / a.pixel:g} pixels)"
        )
    if (a.height, a.width) != (b.height, b.width):
        found.append(f"size {a.height} x {a.width} and {b.height} x {b.width} pixels")
    return found


def _as_grid(source: Any) -> Grid:
    transform = source.transform
    return Grid(
        source.crs.to_wkt(),
        transform.c,
        transform.f,
        abs(transform.a),
        source.height,
        source.width,
        source.crs.linear_units_factor[1] if source.crs.is_projected else 1.0,
    )


def _own_grid(source: Any, target: Any, resolution: float) -> Grid:
    """The grid that covers the file in the target CRS at a resolution in metres (0: its own)."""
    from rasterio.warp import calculate_default_transform

    own = source.transform
    unit = target.linear_units_factor[1]
    if target == source.crs and own.b == own.d == 0 and own.a > 0 and own.e < 0:
        here = _as_grid(source)
        pixel = resolution / unit if resolution else here.pixel
        _refuse_finer(resolution, here.resolution)
        if abs(pixel - here.pixel) <= SAME * here.pixel / max(here.width, here.height) and abs(own.a + own.e) <= SAME:
            return here
        height = max(1, int(source.height * abs(own.e) / pixel + 1e-6))
        width = max(1, int(source.width * own.a / pixel + 1e-6))
        return Grid(target.to_wkt(), own.c, own.f, pixel, height, width, unit)
    place = (source.crs, target, source.width, source.height, *source.bounds)
    transform, width, height = calculate_default_transform(*place)
    if resolution:
        _refuse_finer(resolution, abs(transform.a) * unit)
        transform, width, height = calculate_default_transform(*place, resolution=resolution / unit)
    return Grid(target.to_wkt(), transform.c, transform.f, abs(transform.a), height, width, unit)


def _refuse_finer(wanted: float, found: float) -> None:
    if 0 < wanted < found / FINEST:
        raise CurationError(f"resolution {wanted:g} m is finer than 1/{FINEST} of the {found:g} m of the raster")


def _utm(source: Any) -> str:
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    zone = int(((west + east) / 2 + 180) // 6) + 1
    return f"EPSG:{(32600 if south + north >= 0 else 32700) + zone}" if 1 <= zone <= 60 else "EPSG:n"


def _name(crs: str) -> str:
    from rasterio.crs import CRS

    known = CRS.from_user_input(crs)
    code = known.to_epsg()
    return f"EPSG:{code}" if code else known.to_string()[:60]
