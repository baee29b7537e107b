"""Side by side: colour, prediction, truth and error of a window of a map."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from foundation.errors import CurationError
from foundation.files import write_atomically
from satellite.rasters import Raster, open_heights, open_raster
from satellite.units import metres_per, warn_if_implausible

MADE_BY = "made by satellite picture"


def save_side_by_side(
    image: str | Path,
    predicted: str | Path,
    truth: str | Path | None,
    output: str | Path,
    window: tuple[int, int, int, int] | None = None,
    units: str = "m",
    side: int = 1000,
) -> None:
    """A PNG of a window (row, column, height, width) of the predicted map, at most ``side`` pixels a panel.

    Picture and truth are put on the grid of the map.

    Raises:
        CurationError: a raster that cannot be used, a window beyond the map, or nothing is predicted in it.
    """
    with open_heights(predicted) as made:
        row, col, height, width = window or (0, 0, made.grid.height, made.grid.width)
        if min(height, width) < 1 or row + height > made.grid.height or col + width > made.grid.width:
            raise CurationError(
                f"the window {row},{col},{height},{width} is not within {predicted}, which has {made.grid.height} rows "
                f"and {made.grid.width} columns"
            )
        step = max(1, -(-max(height, width) // side))
        heights = _panel(made, (row, col, height, width), step)[0]
        if not np.isfinite(heights).any():
            raise CurationError(
                f"{predicted} has no heights in rows {row}..{row + height}, columns {col}..{col + width}"
            )
        with open_raster(image, grid=made.grid) as colour:
            picture = _panel(colour, (row, col, height, width), step)
        if not np.isfinite(picture).any():
            raise CurationError(f"{image} has no pixels where {predicted} lies; give the picture of the same place")
        true = None
        if truth is not None:
            with open_heights(truth, grid=made.grid) as labels:
                true = _panel(labels, (row, col, height, width), step)[0] * metres_per(units)
            if not np.isfinite(true).any():
                raise CurationError(f"{truth} has no heights where {predicted} lies; give those of the same place")
            warn_if_implausible(float(np.nanmax(true)), units, str(truth))
        resolution = made.grid.resolution * step
    figure = _figure(_stretched(picture), heights, true, resolution)
    about = {"Software": MADE_BY}
    write_atomically(Path(output), lambda stream: figure.savefig(stream, format="png", dpi=100, metadata=about))


def _panel(raster: Raster, window: tuple[int, int, int, int], step: int) -> Float[np.ndarray, "c h w"]:
    """A window, every ``step``-th pixel, read in strips."""
    row, col, height, width = window
    strips = []
    for first in range(row, row + height, 64 * step):
        values, valid = raster.read(first, col, min(64 * step, row + height - first), width)
        strips.append(np.where(valid, values, np.nan)[:, ::step, ::step])
    return np.concatenate(strips, 1)


def _stretched(picture: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "h w three"]:
    """The first three bands (or one, grey) between their 2nd and 98th percentile."""
    bands = picture[:3] if len(picture) >= 3 else np.repeat(picture[:1], 3, 0)
    low, high = np.nanpercentile(bands.reshape(3, -1), [2, 98], axis=1)
    shown = (bands - low[:, None, None]) / np.maximum(high - low, 1e-6)[:, None, None]
    return np.nan_to_num(np.clip(shown, 0, 1), nan=1.0).transpose(1, 2, 0)


def _figure(picture: Any, heights: Any, true: Any, resolution: float) -> Any:
    from matplotlib.figure import Figure

    n = 2 if true is None else 4
    figure = Figure(figsize=(4.2 * n, 4.6), layout="constrained")
    axes = figure.subplots(1, n)
    extent = (0, heights.shape[1] * resolution, 0, heights.shape[0] * resolution)
    tallest = float(np.nanpercentile(heights if true is None else np.stack([heights, true]), 99.5))
    axes[0].imshow(picture, extent=extent)
    axes[0].set_title("colour")
    shown = axes[1].imshow(heights, extent=extent, vmin=0, vmax=tallest, cmap="viridis")
    axes[1].set_title("predicted height (m)")
    figure.colorbar(shown, ax=axes[1], shrink=0.7)
    if true is not None:
        shown = axes[2].imshow(true, extent=extent, vmin=0, vmax=tallest, cmap="viridis")
        axes[2].set_title("lidar height (m)")
        figure.colorbar(shown, ax=axes[2], shrink=0.7)
        error = heights - true
        shown = axes[3].imshow(error, extent=extent, vmin=-tallest / 2, vmax=tallest / 2, cmap="RdBu")
        axes[3].set_title("predicted - lidar (m)")
        figure.colorbar(shown, ax=axes[3], shrink=0.7)
    for axis in axes:
        axis.set_xlabel("m")
    return figure
