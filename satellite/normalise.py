"""Statistics of bands that leave nodata out, normalisation by them, and colour matching between sensors."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from foundation.errors import CurationError

WHITE = {"uint8": 255.0, "uint16": 65535.0}
BRIGHTEST = 2.0  # share of white: glint, snow and clouds lie a little above 1
# a value that so great a share of the pixels have exactly, and no other of so many values within so many deviations
REPEATED, OTHERS, APART = 0.001, 16, 5.0
SAMPLES_PER_TILE, MOST_SAMPLES = 1000, 1 << 22


@dataclass(frozen=True)
class BandStatistics:
    """Of values divided by ``white``.

    Attributes:
        mean, std: of each band.
        low, high: 5th and 95th percentile of each band.
        white: value of the file that is 1: 255, 65535, 10000 for reflectances, 1 for floats.
        name: where they come from.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    white: float = 255.0
    name: str = ""

    @property
    def of_shares(self) -> bool:
        """Whether 1 is white; else they are of floats of another range, taken as they are."""
        return min(self.low or self.mean) >= -BRIGHTEST and max(self.high or self.mean) <= BRIGHTEST

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "BandStatistics":
        lists = {name: tuple(content[name]) for name in ("mean", "std", "low", "high")}
        return BandStatistics(**{**content, **lists})


PUBLISHED = {
    # Tolan et al. 2024, Maxar Vivid2 RGB; the same authors' training code says .430 for red
    "tolan": BandStatistics((0.420, 0.411, 0.296), (0.213, 0.156, 0.143), name="tolan"),
    "chmv2": BandStatistics((0.430, 0.411, 0.296), (0.213, 0.156, 0.143), name="chmv2"),
    "imagenet": BandStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), name="imagenet"),
}


def white_of(dtype: str, given: float = 0.0) -> float:
    """The value that stands for 1; floats are taken as they are unless one is given."""
    return given or WHITE.get(dtype, 1.0)


def is_float(dtype: str) -> bool:
    """Whether numbers of a raster are floats, whose type does not tell their range."""
    return dtype.startswith("float")


def kind_of(dtype: str) -> str:
    """Types of one kind have one white: all floats, and each of the whole numbers."""
    return "float" if is_float(dtype) else dtype


def require_white(dtype: str, given: float, name: str, values: Float[np.ndarray, "c h w"] | None = None) -> float:
    """As `white_of`, for what needs the true one.

    Args:
        values: some of ``name``.

    Raises:
        CurationError: whole numbers of a type that says nothing about the brightest of them, or floats far above 1.
    """
    if values is not None and is_float(dtype):
        least, largest = float(values.min(initial=0)), float(values.max(initial=0))
        if least < -BRIGHTEST * (given or 1):
            raise CurationError(
                f"{name} holds {least:g}, which is no brightness; if that number stands for no data, say so in the "
                f"file: gdal_edit.py -a_nodata {least:g}"
            )
        if not given and largest > BRIGHTEST:
            raise CurationError(
                f"{name} holds floats up to {largest:g}, which are no shares of white; say which value is white (255, "
                f"10000, ...), or where {largest:g} stands for no data: gdal_edit.py -a_nodata {largest:g}"
            )
    if not given and dtype not in WHITE and not is_float(dtype):
        raise CurationError(
            f"{name} holds numbers of type {dtype}, of which none is known to be white; give it as white"
        )
    return white_of(dtype, given)


def band_statistics(
    windows: Iterable[tuple[Float[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]], white: float, name: str = "data"
) -> BandStatistics:
    """Statistics of windows of a raster over their valid pixels; sums in float64, percentiles of a sample.

    The sample is of every window while it has fewer than `MOST_SAMPLES` pixels, then of every second, and so on.

    Raises:
        CurationError: nothing is valid, a band is constant, or see `refuse_no_data`.
    """
    count, total, squares = 0, np.zeros(0), np.zeros(0)
    sample: list[np.ndarray] = []
    every, size, seen = 1, 0, 0
    rng = np.random.default_rng(0)
    for values, valid in windows:
        x = values[:, valid].astype(np.float64) / white
        if not x.shape[1]:
            continue
        count += x.shape[1]
        total = total + x.sum(1) if len(total) else x.sum(1)
        squares = squares + (x**2).sum(1) if len(squares) else (x**2).sum(1)
        if seen % every == 0:
            sample.append(x[:, rng.integers(x.shape[1], size=min(SAMPLES_PER_TILE, x.shape[1]))])
            size += sample[-1].shape[1]
        seen += 1
        if size > MOST_SAMPLES:
            sample, every = sample[::2], 2 * every
            size = sum(part.shape[1] for part in sample)
    if not count:
        raise CurationError(f"{name}: no valid pixel to take statistics of; look at the nodata value")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if (std <= 1e-6 * np.abs(mean) + 1e-9).any():  # of what is constant, rounding leaves less than that
        raise CurationError(f"{name}: band {int(std.argmin()) + 1} (of those chosen) is constant; choose other bands")
    drawn = np.concatenate(sample, 1)
    refuse_no_data(drawn, white, name)
    low, high = np.percentile(drawn, [5, 95], axis=1)
    found = [tuple(float(value) for value in part) for part in (mean, std, low, high)]
    return BandStatistics(found[0], found[1], found[2], found[3], white, name)


def refuse_no_data(sample: Float[np.ndarray, "c n"], white: float, name: str) -> None:
    """Refuse bands whose least or greatest value can only be a number for "no data" that the file does not declare.

    Many pixels have exactly that value, and the next one is `APART` standard deviations of the others away. Shadows and
    clouds that are cut off at 0 or 255 have pixels between them and the others.

    Args:
        sample: of values divided by ``white``.

    Raises:
        CurationError: a band has such a value.
    """
    for values in sample:
        for edge in (values.min(), values.max()):
            others = values[values != edge]
            share = 1 - len(others) / len(values)
            if share < REPEATED or len(np.unique(others)) < OTHERS:
                continue
            if np.abs(others - edge).min() > APART * others.std():
                raise CurationError(
                    f"{name}: {share:.1%} of the pixels are exactly {edge * white:g}, far from all others; if that "
                    f"number stands for no data, say so in the files: gdal_edit.py -a_nodata {edge * white:g}"
                )


def normalise(
    values: Float[np.ndarray, "c h w"],
    valid: Bool[np.ndarray, "h w"],
    statistics: BandStatistics,
    seen_as: BandStatistics | None = None,
) -> Float[np.ndarray, "c h w"]:
    """Zero mean and unit variance by band; invalid pixels become 0, the mean.

    Args:
        values: as in the file.
        statistics: that the model was trained with.
        seen_as: of these values, where they come from another sensor: they are matched to ``statistics`` first.
    """
    if len(statistics.mean) != len(values):
        raise CurationError(
            f"statistics {statistics.name!r} have {len(statistics.mean)} bands but the picture has {len(values)}; "
            "choose the bands that the model was trained on"
        )
    x = values / np.float32(seen_as.white if seen_as else statistics.white)
    if seen_as is not None:
        x = match_percentiles(x, seen_as, statistics)
    mean = np.array(statistics.mean, np.float32)[:, None, None]
    std = np.array(statistics.std, np.float32)[:, None, None]
    return np.where(valid, (x - mean) / std, np.float32(0)).astype(np.float32)


def match_percentiles(
    x: Float[np.ndarray, "c h w"], source: BandStatistics, target: BandStatistics
) -> Float[np.ndarray, "c h w"]:
    """Affine map of each band that takes its 5th and 95th percentile to those of the target (Tolan et al., 2024).

    Raises:
        CurationError: one has no percentiles, as the published means have none.
    """
    for given in (source, target):
        if not given.low:
            raise CurationError(f"statistics {given.name!r} have no percentiles; take them of data to match colours")
    low, high = np.array(source.low, np.float32), np.array(source.high, np.float32)
    to_low, to_high = np.array(target.low, np.float32), np.array(target.high, np.float32)
    factor = (to_high - to_low) / np.maximum(high - low, 1e-6)
    return (x - low[:, None, None]) * factor[:, None, None] + to_low[:, None, None]
