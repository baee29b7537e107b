"""Heights of a raster of any size: tiles that overlap, blended, in constant memory, as a cloud-optimised GeoTIFF.

Tiles lie on one lattice over the whole raster. The output is made square by square; a square predicts every tile that
reaches into it, so the map does not depend on the squares, and one that is finished is a file: a killed run goes on.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.files import digest_json, load_array, require_replaceable, save_array
from foundation.locks import locked_folder
from foundation.settings import Count, NonNegative, Range, check
from satellite.errors import HeightWarning
from satellite.export import TrainedModel, load_model
from satellite.normalise import (
    WHITE,
    BandStatistics,
    band_statistics,
    is_float,
    kind_of,
    normalise,
    refuse_no_data,
    require_white,
    white_of,
)
from satellite.rasters import PREDICTED, Raster, open_raster

TOLERANCE = 0.05  # relative, of resolutions that count as the same
SAMPLED_WINDOWS = 200  # for the colours of a raster


@dataclass(frozen=True)
class PredictSettings:
    """How a raster is predicted; the first four change the numbers.

    Attributes:
        overlap: pixels that neighbouring tiles share; a quarter of a tile where -1.
        resample: bring a raster of another resolution to that of the model, rather than refuse it.
        match_colours: match the 5th and 95th percentile of each band to the training pictures (another sensor).
        white: value of the file that is 1; 0: see `_white`.
        square: side of a square of the output, pixels.
        batch_size: tiles at a time.
        device: "auto", "cpu", "cuda".
    """

    overlap: Annotated[int, Range(ge=-1)] = -1
    resample: bool = False
    match_colours: bool = False
    white: NonNegative = 0.0
    square: Count = 2048
    batch_size: Count = 16
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self)


def predict_raster(
    model: str | Path,
    image: str | Path,
    output: str | Path,
    settings: PredictSettings | None = None,
    crs: str | None = None,
    progress: bool = True,
) -> Path:
    """Write a map of heights: float32, metres, NaN where the picture has no data.

    Finished squares lie in ``.NAME.parts`` beside the output until the map is whole.

    Args:
        model: folder ``model/`` of a run.
        crs: to reproject to, where the raster is in degrees.

    Raises:
        CurationError: as `open_raster`; another resolution or number of bands than the model's; no valid pixel.
    """
    settings, output = settings or PredictSettings(), Path(output)
    require_replaceable(output)
    device = str(open_device(settings.device))
    trained = load_model(model, device)
    if settings.overlap > 3 * trained.seen.tile // 4:
        raise CurationError(
            f"overlap {settings.overlap} is more than three quarters of the tiles of {trained.seen.tile} pixels; each "
            "pixel would be predicted more than 16 times"
        )
    with ExitStack() as stack:
        raster = stack.enter_context(_open_for(trained, image, settings, crs))
        whole = output.with_name(f".{output.name}.parts")
        stack.enter_context(locked_folder(whole))
        parts = whole / _identity(trained, raster, settings)
        grid, side = raster.grid, settings.square
        seen_as = _colours(raster, trained, settings)
        if not settings.match_colours and not is_float(raster.dtype):  # of floats such numbers are refused
            _warn_of_no_data(raster, trained.seen.tile)
        squares = [(r, c) for r in range(0, grid.height, side) for c in range(0, grid.width, side)]
        for r, c in tqdm(squares, desc=output.name, unit="square", disable=not progress):
            path = parts / f"{r}_{c}.npy"
            if not path.exists():
                box = (r, c, min(side, grid.height - r), min(side, grid.width - c))
                save_array(path, predict_square(trained, raster, box, settings, seen_as, device))
        known = _assemble(parts, squares, raster, output)
        shutil.rmtree(whole)
        if not known:
            raise CurationError(f"{image} has no valid pixel: there is nothing to predict; look at its nodata value")
    return output


@torch.inference_mode()
def predict_square(
    trained: TrainedModel,
    raster: Raster,
    box: tuple[int, int, int, int],
    settings: PredictSettings,
    seen_as: BandStatistics,
    device: str,
) -> Float[np.ndarray, "h w"]:
    """Heights of a window (row, column, height, width) of a raster; NaN where it has no data."""
    row, col, height, width = box
    tile = trained.seen.tile
    overlap = tile // 4 if settings.overlap < 0 else settings.overlap
    total, weight = np.zeros((height, width)), np.zeros((height, width))
    has_data = np.zeros((height, width), bool)
    ramp = blending_weights(tile, overlap)
    places = [
        (r, c)
        for r in starts(raster.grid.height, tile, tile - overlap)
        if r < row + height and r + tile > row
        for c in starts(raster.grid.width, tile, tile - overlap)
        if c < col + width and c + tile > col
    ]
    for first in range(0, len(places), settings.batch_size):
        batch = places[first : first + settings.batch_size]
        images, valids = [], []
        for r, c in batch:
            values, valid = raster.read(r, c, tile, tile)
            if seen_as.of_shares and not settings.match_colours:
                given = settings.white or (seen_as.white if seen_as.white != 1 else 0)
                require_white(raster.dtype, given, str(raster.path), values)
            images.append(_normalised(values, valid, trained, seen_as, settings))
            valids.append(valid)
        found = trained.model(torch.from_numpy(np.stack(images)).to(device)).double().cpu().numpy()
        for (r, c), heights, valid in zip(batch, found, valids, strict=True):
            r0, c0, r1, c1 = max(r, row), max(c, col), min(r + tile, row + height), min(c + tile, col + width)
            inner, outer = np.s_[r0 - r : r1 - r, c0 - c : c1 - c], np.s_[r0 - row : r1 - row, c0 - col : c1 - col]
            total[outer] += (heights * ramp)[inner]
            weight[outer] += ramp[inner]
            has_data[outer] |= valid[inner]
    return np.where(has_data, total / np.maximum(weight, 1e-12), np.nan).astype(np.float32)


def starts(length: int, tile: int, step: int) -> list[int]:
    """Where tiles begin so that they cover ``length`` pixels; the last ends with it."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, step), length - tile]


def blending_weights(tile: int, overlap: int) -> Float[np.ndarray, "s s"]:
    """1 inside, falling linearly over the overlap to the border: two neighbours always add up to about 1."""
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    line = np.minimum(distance / max(overlap, 1), 1.0)
    return np.outer(line, line)


def _open_for(trained: TrainedModel, image: str | Path, settings: PredictSettings, crs: str | None) -> Raster:
    raster = open_raster(image, trained.seen.bands or None, crs=crs)
    found, wanted = raster.grid.resolution, trained.seen.resolution
    if abs(found / wanted - 1) <= TOLERANCE:
        return raster
    raster.close()
    if not settings.resample:
        raise CurationError(
            f"{image} has {found:g} m per pixel but the model was trained at {wanted:g} m ({found / wanted:.2g} "
            "times): heights would be wrong. Bring it to the model's resolution: --resample"
        )
    return open_raster(image, trained.seen.bands or None, resolution=wanted, crs=crs)


def _colours(raster: Raster, trained: TrainedModel, settings: PredictSettings) -> BandStatistics:
    """Statistics of the raster where colours are matched; else those of training, with the raster's white."""
    if not settings.match_colours:
        return replace(trained.statistics, white=settings.white or _white(raster, trained))
    windows = _windows(raster, trained.seen.tile)
    return band_statistics(windows, white_of(raster.dtype, settings.white), str(raster.path))


def _warn_of_no_data(raster: Raster, side: int) -> None:
    """See `refuse_no_data`: heights are predicted there, too."""
    sample = [values[:, valid][:, ::7] for values, valid in _windows(raster, side)]
    if (found := np.concatenate(sample, 1)).size:
        try:
            refuse_no_data(found, 1.0, str(raster.path))
        except CurationError as error:
            warnings.warn(str(error), HeightWarning, stacklevel=2)


def _windows(raster: Raster, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Squares here and there."""
    grid, rng = raster.grid, np.random.default_rng(0)
    rows = rng.integers(max(grid.height - side, 0) + 1, size=SAMPLED_WINDOWS)
    cols = rng.integers(max(grid.width - side, 0) + 1, size=SAMPLED_WINDOWS)
    return (raster.read(int(r), int(c), side, side) for r, c in zip(rows, cols, strict=True))


def _white(raster: Raster, trained: TrainedModel) -> float:
    """The value of a raster that is 1, where none is given: as in training for its type, else that of the type.

    Raises:
        CurationError: neither is known, or the raster has another range than floats of training whose white no type
            tells.
    """
    own, name = trained.statistics, str(raster.path)
    of_type = own.of_shares and own.white in (1, *WHITE.values())
    kind = kind_of(raster.dtype)
    of_before = {white: dtype for dtype, white in WHITE.items()} | {1.0: "float"}  # models that do not say
    seen = kind_of(trained.seen.dtype or of_before.get(own.white, kind))
    if kind != seen:
        if of_type:
            return require_white(raster.dtype, 0, name)
        raise CurationError(
            f"{name} holds {raster.dtype}, but the model was trained on {trained.seen.dtype or seen}, of which "
            f"{own.white:g} counts as 1; say which value of this file is as bright: --white"
        )
    if kind == "float" and not of_type and own.high:
        sample = [values[:, valid][:, ::7] for values, valid in _windows(raster, trained.seen.tile)]
        if (found := np.concatenate(sample, 1) / own.white).size:
            low, high = np.percentile(found, [5, 95], axis=1)
            if (high < own.low).all() or (low > own.high).all():
                raise CurationError(
                    f"{name} holds values about {np.median(found):.3g}, but the model was trained on "
                    f"{min(own.low):.3g} to {max(own.high):.3g}; say which value of this file counts as 1: --white, or "
                    "take --match-colours"
                )
    return own.white


def _normalised(
    values: Float[np.ndarray, "c s s"],
    valid: Bool[np.ndarray, "s s"],
    trained: TrainedModel,
    seen_as: BandStatistics,
    settings: PredictSettings,
) -> Float[np.ndarray, "c s s"]:
    if settings.match_colours:
        return normalise(values, valid, trained.statistics, seen_as)
    return normalise(values, valid, seen_as)


def _identity(trained: TrainedModel, raster: Raster, settings: PredictSettings) -> str:
    """Name of the parts of one prediction: those of another model, raster or setting lie apart."""
    science = {name: value for name, value in asdict(settings).items() if name not in ("batch_size", "device")}
    stat = raster.path.stat()
    inputs = {"model": trained.checksum, "image": str(raster.path), "bytes": stat.st_size, "changed": stat.st_mtime_ns}
    return digest_json([science, inputs, asdict(raster.grid)])[:16]


def _assemble(parts: Path, squares: list[tuple[int, int]], raster: Raster, output: Path) -> bool:
    """One cloud-optimised GeoTIFF from the squares, whole or absent; False, and none, where no height is known."""
    import rasterio
    import rasterio.shutil
    from rasterio.windows import Window

    grid = raster.grid
    plain, made = parts / "whole.tif", parts / "cog.tif"
    options: dict[str, Any] = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256}
    options |= {"compress": "deflate", "bigtiff": "if_safer", "count": 1, "dtype": "float32", "nodata": np.nan}
    options |= {"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width}
    known = False
    with rasterio.open(plain, "w", **options) as target:
        for r, c in squares:
            values = load_array(parts / f"{r}_{c}.npy")
            known = known or bool(np.isfinite(values).any())
            target.write(values, 1, window=Window(c, r, values.shape[1], values.shape[0]))
        target.units = ("m",)
        target.update_tags(TIFFTAG_SOFTWARE=PREDICTED)
        target.set_band_description(1, "canopy height")
    if not known:
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    rasterio.shutil.copy(plain, made, driver="COG", compress="deflate", predictor="YES", bigtiff="IF_SAFER")
    made.replace(output)
    return True
