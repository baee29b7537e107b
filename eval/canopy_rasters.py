"""Two rasters of heights, block by block, to `eval.canopy`: maps larger than memory are judged square by square."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.canopy import CanopySettings, canopy_metrics
from eval.results import inputs_of, require_same
from foundation.errors import CurationError
from foundation.files import save_json
from foundation.intervals import Interval
from foundation.paths import regular_file
from foundation.settings import Range, require_number

CANOPY = "canopy.json"
LEAST_SIDE = 4  # pixels of a block
# metres: beyond them, it is a number for "no data" that the file does not declare
NO_DEPTH, NO_HEIGHT = -50.0, 20_000.0
TALLEST = 116.0  # metres: Hyperion, a coast redwood (Sequoia sempervirens)
UNITS = {100: "centimetres", 10: "decimetres"}
BELOW = -2.0  # metres: few pixels of a canopy are lower, by noise
LOOKED_AT = 64  # blocks, for doubts
PREDICTED = "made by satellite predict"  # as `python -m satellite predict` says in the tags of its maps


class _Blocks:
    """Blocks of one band of a raster, read when asked for; NaN is not known."""

    def __init__(self, source: Any, windows: list[Any]):
        self.source, self.windows = source, windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> np.ndarray:
        if i >= len(self.windows):
            raise IndexError(i)
        try:
            found = self.source.read(1, window=self.windows[i], masked=True)
        except Exception as error:
            raise CurationError(
                f"{self.source.name}: {self.windows[i]} cannot be read ({error}); is it whole?"
            ) from error
        heights = found.astype(np.float64).filled(np.nan)
        known = heights[np.isfinite(heights)]
        if len(known) and not NO_DEPTH <= known.min() <= known.max() <= NO_HEIGHT:
            largest = known[np.abs(known).argmax()]
            raise CurationError(
                f"{self.source.name} holds a height of {largest:g} m; if that number stands for no data, say so in the "
                f"file: gdal_edit.py -a_nodata {largest:g}"
            )
        return heights


def measure_maps(
    predicted: str | Path,
    truth: str | Path,
    block: float = 100.0,
    output: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Interval]:
    """Measures of a map against lidar, both in metres on one grid; writes ``canopy.json`` into the folder ``output``.

    Args:
        block: side of the squares that are resampled, metres.
        say: is told of `doubts`; they stand among the results, too.

    Raises:
        CurationError: a raster that cannot be opened, grids that differ (says how), a CRS without lengths, or
            `require_same`.
    """
    import rasterio
    from rasterio.windows import Window

    for path in (predicted, truth):
        regular_file(path, "give a raster of heights")
    inputs = inputs_of([str(predicted), str(truth), block], [predicted, truth])
    if output is not None:
        require_same(Path(output) / CANOPY, [inputs], overwrite)
    try:
        first, second = rasterio.open(predicted), rasterio.open(truth)
    except Exception as error:
        raise CurationError(f"{predicted} or {truth} cannot be opened: {error}") from error
    with first, second:
        if first.crs is None or not first.crs.is_projected:
            raise CurationError(f"{predicted} has no projected reference system: its pixels have no size in metres")
        for name, source in ((predicted, first), (truth, second)):
            if source.count != 1:
                raise CurationError(f"{name} has {source.count} bands; heights have one: is it a picture?")
            if "complex" in source.dtypes[0]:
                raise CurationError(f"{name} holds complex numbers; heights are plain ones, in metres")
        for name, a, b in (
            ("reference systems", first.crs, second.crs),
            ("sizes", first.shape, second.shape),
            ("places", tuple(first.transform), tuple(second.transform)),
        ):
            if a != b and (name != "places" or not np.allclose(a, b, rtol=0, atol=1e-3 * abs(first.transform.a))):
                raise CurationError(
                    f"{predicted} and {truth} have different {name}: {a} and {b}; warp one to the other"
                )
        settings = CanopySettings(abs(first.transform.a) * first.crs.linear_units_factor[1])
        require_number(block, Range(gt=0), "block")
        side = round(min(block / settings.resolution, max(first.shape)))
        if side < LEAST_SIDE:
            raise CurationError(
                f"a block of {block:g} m has {side} pixels of {settings.resolution:g} m on a side; give one of "
                f"{LEAST_SIDE} pixels or more"
            )
        rows, cols = range(0, first.height, side), range(0, first.width, side)
        windows = [Window(c, r, min(side, first.width - c), min(side, first.height - r)) for r in rows for c in cols]
        maps, lidar = _Blocks(first, windows), _Blocks(second, windows)
        found, lines = canopy_metrics(maps, lidar, settings), doubts(maps, lidar)
    for line in lines:
        say(line)
    if output is not None:
        metrics = {name: asdict(interval) for name, interval in found.items()}
        content = {"settings": asdict(settings), "block": block, "metrics": metrics, "inputs": inputs}
        save_json(Path(output) / CANOPY, {**content, "warnings": lines})
    return found


def doubts(predicted: _Blocks, truth: _Blocks) -> list[str]:
    """What speaks against one being a map and the other lidar, both in metres: a line each; some blocks are read."""
    lines = []
    made = [PREDICTED in source.tags().get("TIFFTAG_SOFTWARE", "") for source in (predicted.source, truth.source)]
    if made[1] and not made[0]:
        lines.append(f"{truth.source.name} is a predicted map; lidar comes second")
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), LOOKED_AT)).astype(np.int64)).tolist()
    p, t = (np.concatenate([part[i].ravel() for i in chosen]) for part in (predicted, truth))
    p, t = (part[np.isfinite(p) & np.isfinite(t)] for part in (p, t))
    if len(t) and np.array_equal(p, t):
        return [*lines, f"{predicted.source.name} and {truth.source.name} hold the same heights"]
    for name, heights in ((predicted.source.name, p), (truth.source.name, t)):
        if len(heights) and (below := float((heights < BELOW).mean())) > 0.1:
            lines.append(f"{below:.0%} of the heights of {name} are below {BELOW:g} m; those of a canopy begin at 0")
    tall = t > np.median(t[t > 0]) if (t > 0).any() else np.zeros(len(t), bool)
    if not tall.any():
        return lines
    medians = {predicted.source.name: float(np.median(p[tall])), truth.source.name: float(np.median(t[tall]))}
    (less, low), (more, high) = sorted(medians.items(), key=lambda item: item[1])
    unit = next((UNITS[factor] for factor in UNITS if low > 0 and 0.7 <= high / low / factor <= 1.4), None)
    if unit:
        times = f"{high / low:.0f} times those of {less}"
        lines.append(f"heights of {more} are about {times}: are they in {unit}? Metres are expected")
    elif high > TALLEST:
        lines.append(
            f"tall pixels of {more} hold {high:.0f}; no tree has more than {TALLEST:.0f} m: are they in metres?"
        )
    return lines
