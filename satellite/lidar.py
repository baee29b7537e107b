"""From an airborne point cloud to a picture and a canopy height model on one grid.

Picture: colour of the highest return in each cell. Height: highest return minus ground. Ground: lowest return of
class 2 where the cloud is classified, else a morphological filter (Zhang et al. 2003) of the lowest returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from tqdm import tqdm

from foundation.errors import CurationError
from foundation.files import whole_file
from foundation.paths import regular_file
from satellite.rasters import Grid
from satellite.units import metres_per, warn_if_implausible

POINTS_PER_CHUNK = 2_000_000
GROUND, BUILDING, WATER = 2, 6, 9
NOISE = (7, 18)
RASTERS, MADE_BY = ("colour.tif", "height.tif"), "made by lidar_to_canopy"


@dataclass(frozen=True)
class LidarSettings:
    """How a cloud becomes rasters.

    Attributes:
        resolution: metres per pixel.
        crs: of the points; "" takes that of the file.
        units: of the heights (z): m, ft, us-ft.
        ground: "auto" takes classified ground where the file has some, "classes", or "morphological".
        leave_out: classes of returns that are no canopy; cells whose highest return is of one become nodata.
        slope: rise over run that ground may have (morphological filter).
        window: metres, of the largest opening: above the width of the widest crown or roof (morphological filter).
        fill: metres; ground is interpolated across holes of any size, the surface only up to this distance.
    """

    resolution: float = 0.5
    crs: str = ""
    units: str = "m"
    ground: str = "auto"
    leave_out: tuple[int, ...] = (BUILDING,)
    slope: float = 0.3
    window: float = 20.0
    fill: float = 1.0

    def __post_init__(self) -> None:
        metres_per(self.units)
        if self.resolution <= 0 or self.window <= self.resolution:
            raise CurationError(
                f"resolution {self.resolution} m and window {self.window} m: both positive, window larger"
            )
        if self.ground not in ("auto", "classes", "morphological"):
            raise CurationError(f"ground {self.ground!r} is unknown; use auto, classes or morphological")


@dataclass(frozen=True)
class Canopy:
    """Rasters of a cloud.

    Attributes:
        colour: (3, h, w); None where the cloud has no colours.
        height: metres above ground; NaN where nothing is known.
        ground: metres.
        grid: where.
    """

    colour: UInt8[np.ndarray, "3 h w"] | None
    height: Float[np.ndarray, "h w"]
    ground: Float[np.ndarray, "h w"]
    grid: Grid


def canopy_from_lidar(
    paths: Sequence[str | Path], settings: LidarSettings | None = None, progress: bool = True
) -> Canopy:
    """Rasters of one or several point clouds of one survey; points are read in pieces.

    Raises:
        CurationError: a file that cannot be read, has no points or no reference system, or surveys of different ones.
    """
    settings = settings or LidarSettings()
    grid = _grid(paths, settings)
    shape = (grid.height, grid.width)
    top, low = np.full(shape, -np.inf), np.full(shape, np.inf)
    ground, kind = np.full(shape, np.inf), np.zeros(shape, np.uint8)
    colour, has_colour, brightest = np.zeros((3, *shape), np.uint16), True, 0
    z_unit = metres_per(settings.units)
    for path in paths:
        with _open(path) as reader:
            bar = tqdm(total=reader.header.point_count, desc=Path(path).name, unit="point", disable=not progress)
            try:
                for points in reader.chunk_iterator(POINTS_PER_CHUNK):
                    classes = np.asarray(points.classification)
                    keep = ~np.isin(classes, NOISE)
                    x, y, z = (np.asarray(axis)[keep] for axis in (points.x, points.y, points.z))
                    classes, z = classes[keep], z * z_unit
                    row = np.clip(((grid.top - y) / grid.pixel).astype(np.int64), 0, grid.height - 1)
                    col = np.clip(((x - grid.left) / grid.pixel).astype(np.int64), 0, grid.width - 1)
                    np.minimum.at(low, (row, col), z)
                    is_ground = np.isin(classes, (GROUND, WATER))
                    np.minimum.at(ground, (row[is_ground], col[is_ground]), z[is_ground])
                    # of each cell the highest point comes last, and is the one that an assignment keeps
                    order = np.argsort(z, kind="stable")
                    row, col, z, classes = row[order], col[order], z[order], classes[order]
                    higher = z > top[row, col]
                    row, col = row[higher], col[higher]
                    top[row, col], kind[row, col] = z[higher], classes[higher]
                    has_colour = has_colour and hasattr(points, "red")
                    if has_colour:
                        rgb = np.stack([np.asarray(points[name]) for name in ("red", "green", "blue")])
                        brightest = max(brightest, int(rgb.max(initial=0)))
                        colour[:, row, col] = rgb[:, keep][:, order][:, higher]
                    bar.update(len(points))
            except CurationError:
                raise
            except Exception as error:  # laspy and lazrs raise many types on damaged files
                raise CurationError(
                    f"{path} cannot be read to its end ({error}); it is truncated: get it again"
                ) from error
            finally:
                bar.close()
    known = np.isfinite(top)
    if not known.any():
        raise CurationError(f"{paths[0]}: no point is left after noise (classes 7 and 18) is dropped")
    classified = np.isfinite(ground).any()
    if settings.ground == "classes" and not classified:
        raise CurationError(f"{paths[0]} has no points of class 2 (ground); use --ground morphological")
    if settings.ground == "morphological" or not classified:
        ground = np.where(ground_cells(low, grid.resolution, settings), low, np.inf)
    terrain = fill_holes(np.where(np.isfinite(ground), ground, np.nan))
    surface, source = _surface(top, known, settings.fill / grid.resolution)
    height = np.maximum(surface - terrain, 0).astype(np.float32)
    height[np.isin(kind[source[0], source[1]], settings.leave_out)] = np.nan
    warn_if_implausible(float(np.nanmax(height)), settings.units, str(paths[0]))
    if has_colour:
        # many files hold 8 bits in the 16 of the format
        picture = colour[:, source[0], source[1]] >> (8 if brightest > 255 else 0)
        picture = np.where(np.isfinite(surface), picture, 0).astype(np.uint8)
    return Canopy(picture if has_colour else None, height, terrain.astype(np.float32), grid)


def ground_cells(low: Float[np.ndarray, "h w"], resolution: float, settings: LidarSettings) -> Bool[np.ndarray, "h w"]:
    """Cells whose lowest return is ground: openings of growing windows lower it by less than the slope allows.

    Progressive morphological filter (Zhang et al. 2003): windows double up to ``settings.window``; what an opening
    lowers by more than slope x (growth of the window) + 0.3 m stood on the ground.
    """
    known = np.isfinite(low)
    surface = _nearest(np.where(known, low, np.nan))
    is_ground = known.copy()
    width, before = max(resolution, 1.0), 0.0
    while True:
        width = min(width, settings.window)
        cells = 2 * max(1, round(width / resolution / 2)) + 1
        opened = ndimage.grey_opening(surface, size=(cells, cells), mode="nearest")
        is_ground &= surface - opened <= settings.slope * (width - before) + 0.3
        surface, before = opened, width
        if width >= settings.window:
            return is_ground
        width *= 2


def fill_holes(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """NaN filled smoothly from the borders of the hole: a coarse-to-fine pyramid of means of what is known."""
    known = np.isfinite(values)
    if known.all():
        return values
    if not known.any():
        raise CurationError("no ground was found; raise slope or window, or give classified points")
    h, w = values.shape
    if max(h, w) <= 2:
        return np.where(known, values, np.nanmean(values))
    pad = ((0, h % 2), (0, w % 2))
    weight = np.pad(known.astype(float), pad)
    total = np.pad(np.where(known, values, 0), pad)
    blocks = (weight.shape[0] // 2, 2, weight.shape[1] // 2, 2)
    count = weight.reshape(blocks).sum((1, 3))
    coarse = np.divide(total.reshape(blocks).sum((1, 3)), count, out=np.full(count.shape, np.nan), where=count > 0)
    rows, cols = (np.arange(h) - 0.5) / 2, (np.arange(w) - 0.5) / 2
    fine = ndimage.map_coordinates(fill_holes(coarse), np.meshgrid(rows, cols, indexing="ij"), order=1, mode="nearest")
    return np.where(known, values, fine)


def save_canopy(canopy: Canopy, folder: str | Path) -> tuple[Path, Path]:
    """Write `RASTERS`: colours (uint8; skipped where there are none) and heights (float32, metres, NaN is nodata)."""
    import rasterio

    folder = Path(folder)
    shared: dict[str, Any] = {
        "driver": "GTiff",
        "crs": canopy.grid.crs,
        "transform": canopy.grid.transform,
        "height": canopy.grid.height,
        "width": canopy.grid.width,
        "tiled": True,
        "compress": "deflate",
    }
    if canopy.colour is not None:
        with (
            whole_file(folder / "colour.tif") as path,
            rasterio.open(path, "w", count=3, dtype="uint8", **shared) as target,
        ):
            target.write(canopy.colour)
            target.update_tags(TIFFTAG_SOFTWARE=MADE_BY)
    with (
        whole_file(folder / "height.tif") as path,
        rasterio.open(path, "w", count=1, dtype="float32", nodata=np.nan, **shared) as target,
    ):
        target.write(canopy.height, 1)
        target.units = ("m",)
        target.update_tags(TIFFTAG_SOFTWARE=MADE_BY)
        target.set_band_description(1, "height above ground")
    return folder / "colour.tif", folder / "height.tif"


def _open(path: str | Path) -> Any:
    import laspy

    path = regular_file(path, "give a point cloud, LAS or LAZ")
    try:
        return laspy.open(path)
    except Exception as error:
        raise CurationError(f"point cloud {path} cannot be opened ({error}); is it LAS or LAZ, and whole?") from error


def _grid(paths: Sequence[str | Path], settings: LidarSettings) -> Grid:
    """A grid over all clouds; its origin is a multiple of the pixel, so that surveys fit one another."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    low, high, found = np.full(2, np.inf), np.full(2, -np.inf), set()
    for path in paths:
        with _open(path) as reader:
            header = reader.header
            if not header.point_count:
                raise CurationError(f"point cloud {path} has no points")
            low, high = np.minimum(low, header.mins[:2]), np.maximum(high, header.maxs[:2])
            crs = settings.crs or _crs(header)
        if not crs:
            raise CurationError(f"point cloud {path} names no reference system; give it: --crs EPSG:n")
        found.add(crs)
    if len(found) > 1:
        raise CurationError(f"the point clouds are in {len(found)} reference systems; bring them into one")
    try:
        known = CRS.from_user_input(found.pop())
    except CRSError as error:
        raise CurationError(f"the reference system of {paths[0]} is not understood ({error}); give --crs") from error
    if known.is_geographic:
        raise CurationError(f"{paths[0]} is in degrees; project it first (pdal translate with filters.reprojection)")
    unit = known.linear_units_factor[1]
    pixel = settings.resolution / unit
    left, top = np.floor(low[0] / pixel) * pixel, np.ceil(high[1] / pixel) * pixel
    width, height = int((high[0] - left) // pixel) + 1, int((top - low[1]) // pixel) + 1
    return Grid(known.to_wkt(), float(left), float(top), pixel, height, width, unit)


def _crs(header: Any) -> str:
    """Reference system of a LAS header: WKT, or the EPSG code in its GeoTIFF keys; "" where there is none."""
    for record in header.vlrs:
        text = getattr(record, "string", "")
        if type(record).__name__ == "WktCoordinateSystemVlr" and text:
            return str(text).rstrip("\0")
        for key in getattr(record, "geo_keys", ()):
            if key.id == 3072 and key.value_offset != 32767:  # projected CRS, not user-defined
                return f"EPSG:{key.value_offset}"
    return ""


def _nearest(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    rows, cols = ndimage.distance_transform_edt(np.isnan(values), return_distances=False, return_indices=True)
    return values[rows, cols]


def _surface(
    top: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], reach: float
) -> tuple[Float[np.ndarray, "h w"], Any]:
    """Highest returns, small holes filled by the nearest one, and the cell each value comes from."""
    distance, source = ndimage.distance_transform_edt(~known, return_indices=True)
    surface = np.where(distance <= reach, top[source[0], source[1]], np.nan)
    return surface, source
