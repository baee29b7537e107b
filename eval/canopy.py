"""Canopy height maps against lidar: errors in metres, with intervals over blocks of ground.

Neighbouring pixels show the same tree, so blocks are what is resampled. Every measure is a ratio of sums over blocks:
a resample is a weighted sum, as everywhere in `foundation.intervals`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from foundation.errors import CurationError
from foundation.intervals import Interval, bootstrap

Sums = Float[np.ndarray, "r k"]


@dataclass(frozen=True)
class CanopySettings:
    """What is measured.

    Attributes:
        resolution: metres per pixel.
        pool_pixels: side of the averaged cells of block-R2, pixels (Tolan et al. 2024: 50).
        pool_metres: the same in metres, for maps of another resolution; 0 leaves it out.
        border: pixels of each block that block-R2 leaves out (Tolan et al.: 3).
        classes: borders of the height classes, metres.
        covers: a pixel is canopy from these heights on, metres.
        min_valid: least share of valid pixels in an averaged cell.
        n_resamples, level, seed: of the intervals.
    """

    resolution: float
    pool_pixels: int = 50
    pool_metres: float = 30.0
    border: int = 3
    classes: tuple[float, ...] = (0, 2, 5, 10, 20, 30)
    covers: tuple[float, ...] = (2.0, 5.0)
    min_valid: float = 0.5
    n_resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resolution <= 0 or self.pool_pixels < 1 or self.border < 0 or self.pool_metres < 0:
            raise CurationError(f"canopy settings must be positive: {self}")
        if list(self.classes) != sorted(set(self.classes)) or len(self.classes) < 1:
            raise CurationError(f"height classes {self.classes} must rise")


@dataclass
class _Measure:
    """Sums of each block, and the value of weighted sums (r, k); ``counted``: the column that is 0 without pixels."""

    value: Callable[[Sums], Float[np.ndarray, "r"]]
    counted: int = 0
    sums: list[list[float]] = field(default_factory=list)


class Maps(Protocol):
    """Maps in metres, in memory or read when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Float[np.ndarray, "h w"]: ...


def canopy_metrics(
    predicted: Maps,
    truth: Maps,
    settings: CanopySettings,
) -> dict[str, Interval]:
    """Measures over blocks of ground, each a pair of maps in metres; NaN is not known and not judged.

    Returns:
        ``mae``, ``rmse``, ``me`` (mean error, positive: too tall), ``r2``; ``block_r2`` and ``block_r2_metres`` (of
        averages over cells); ``mae_0_2`` ... and ``me_0_2`` ... by class of true height; ``iou_2m``, ``iou_5m`` of
        canopy cover; ``edge_error`` (see `edge_sums`). ``n`` is blocks with such pixels; a measure of none is NaN.

    Raises:
        CurationError: no blocks, shapes that differ, a prediction missing where the truth is known, or nothing known.
    """
    if not len(predicted) or len(predicted) != len(truth):
        raise CurationError(f"{len(predicted)} predicted blocks and {len(truth)} true ones; give one for one")
    names = list(zip(settings.classes, [*settings.classes[1:], np.inf], strict=True))
    found: dict[str, _Measure] = {name: _Measure(value) for name, value in _OVERALL.items()}
    found |= {f"block_{name}": _Measure(_r2) for name in _pools(settings)}
    for low, high in names:
        for kind in ("mae", "me"):
            found[f"{kind}_{_class_name(low, high)}"] = _Measure(_ratio, 1)
    found |= {f"iou_{cover:g}m": _Measure(_ratio, 1) for cover in settings.covers}
    found["edge_error"] = _Measure(_ratio, 1)
    total = 0
    for i in range(len(truth)):
        p, t = np.asarray(predicted[i], np.float64), np.asarray(truth[i], np.float64)
        if p.shape != t.shape or p.ndim != 2:
            raise CurationError(f"block {i}: prediction {p.shape} and truth {t.shape} must be maps of one size")
        known = np.isfinite(t)
        if not np.isfinite(p[known]).all():
            n = int((~np.isfinite(p[known])).sum())
            raise CurationError(f"block {i}: {n} pixels have a true height but no prediction; cut the truth to the map")
        total += int(known.sum())
        error, heights = (p - t)[known], t[known]
        moments = _moments(error, heights)
        for name in _OVERALL:
            found[name].sums.append(moments)
        for name, side in _pools(settings).items():
            cells = [pool(values, known, side, settings.border, settings.min_valid) for values in (p, t)]
            found[f"block_{name}"].sums.append(_moments(cells[0] - cells[1], cells[1]))
        for low, high in names:
            mine = (heights >= low) & (heights < high)
            for kind, values in (("mae", np.abs(error)), ("me", error)):
                found[f"{kind}_{_class_name(low, high)}"].sums.append([float(values[mine].sum()), float(mine.sum())])
        for cover in settings.covers:
            a, b = p[known] >= cover, heights >= cover
            found[f"iou_{cover:g}m"].sums.append([float((a & b).sum()), float((a | b).sum())])
        found["edge_error"].sums.append(edge_sums(p, t, known))
    if not total:
        raise CurationError("no pixel of the truth is known; look at its nodata value")
    return {name: _interval(measure, settings) for name, measure in found.items()}


def pool(
    values: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], side: int, border: int, min_valid: float
) -> Float[np.ndarray, "m"]:
    """Means over side x side cells inside the border, known pixels only; cells with too few of them are left out."""
    h, w = values.shape
    rows, cols = (h - 2 * border) // side, (w - 2 * border) // side
    if rows < 1 or cols < 1:
        return np.zeros(0)
    inner = np.s_[border : border + rows * side, border : border + cols * side]
    cells = (rows, side, cols, side)
    weight = known[inner].reshape(cells).sum((1, 3))
    sums = np.where(known, values, 0)[inner].reshape(cells).sum((1, 3))
    enough = weight >= max(min_valid * side**2, 1)
    return sums[enough] / weight[enough]


def edge_sums(
    predicted: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]
) -> list[float]:
    """Sums of |E(p) - E(t)| and of E(p) + E(t), E the magnitude of the Sobel gradient: their ratio is the edge error.

    0: the edges of crowns are where they are and as steep; 1: none is. After the edge error of Tolan et al. 2024.
    """
    from scipy import ndimage

    inside = ndimage.binary_erosion(known, np.ones((3, 3)))
    edges = []
    for values in (predicted, truth):
        clean = np.where(known, values, 0)
        edges.append(np.hypot(ndimage.sobel(clean, 0), ndimage.sobel(clean, 1))[inside])
    return [float(np.abs(edges[0] - edges[1]).sum()), float((edges[0] + edges[1]).sum())]


def _pools(settings: CanopySettings) -> dict[str, int]:
    pools = {"r2": settings.pool_pixels}
    if settings.pool_metres:
        pools["r2_metres"] = max(1, round(settings.pool_metres / settings.resolution))
    return pools


def _class_name(low: float, high: float) -> str:
    return f"{low:g}_{high:g}" if np.isfinite(high) else f"{low:g}_up"


def _moments(error: Float[np.ndarray, "p"], truth: Float[np.ndarray, "p"]) -> list[float]:
    """n, sum e, sum |e|, sum e^2, sum t, sum t^2."""
    sums = (error.sum(), np.abs(error).sum(), (error**2).sum(), truth.sum(), (truth**2).sum())
    return [float(len(error)), *(float(value) for value in sums)]


def _ratio(s: Sums) -> Float[np.ndarray, "r"]:
    return np.divide(s[:, 0], s[:, 1], out=np.full(len(s), np.nan), where=s[:, 1] > 0)


def _r2(s: Sums) -> Float[np.ndarray, "r"]:
    """1 - residual / variance about the mean of all pixels (or cells) of the resample."""
    n = np.maximum(s[:, 0], 1)
    spread = s[:, 5] - s[:, 4] ** 2 / n
    enough = (s[:, 0] > 1) & (spread > 1e-9 * np.maximum(s[:, 5], 1e-12))
    return np.where(enough, 1 - s[:, 3] / np.where(enough, spread, 1), np.nan)


_OVERALL: dict[str, Callable[[Sums], Float[np.ndarray, "r"]]] = {
    "mae": lambda s: s[:, 2] / np.maximum(s[:, 0], 1),
    "rmse": lambda s: np.sqrt(s[:, 3] / np.maximum(s[:, 0], 1)),
    "me": lambda s: s[:, 1] / np.maximum(s[:, 0], 1),
    "r2": _r2,
}


def _interval(measure: _Measure, settings: CanopySettings) -> Interval:
    sums = np.array(measure.sums)

    def statistic(counts: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
        return measure.value(counts @ sums)

    found = bootstrap(statistic, len(sums), None, settings.n_resamples, settings.level, settings.seed)
    return replace(found, n=int((sums[:, measure.counted] > 0).sum()))
