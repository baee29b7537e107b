"""Pretraining on tiles: views that make sense from above, and a pool that `pretrain` and `curation` read.

From above there is no up: all eight symmetries are as likely. A crop of a picture from the ground changes how near a
thing is; from above the scale is known, so crops are said in metres of ground. Light and haze change bands a little;
grey pictures and solarisation have no counterpart.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from foundation.errors import CurationError
from pretrain.multicrop import ColourSettings, CropSettings
from satellite.data import TileReader
from satellite.normalise import BandStatistics, require_white


def crops_from_above(
    tile: int,
    resolution: float,
    global_metres: tuple[float, float],
    local_metres: tuple[float, float],
    global_size: int,
    local_size: int,
    *,
    n_local: int = 8,
    jitter: float = 0.2,
    statistics: BandStatistics | None = None,
) -> CropSettings:
    """Settings of `pretrain` for tiles.

    Args:
        tile: side of the tiles, pixels.
        resolution: metres per pixel.
        global_metres, local_metres: least and greatest side of a crop on the ground.
        global_size, local_size: pixels of the crops.
        jitter: of brightness and contrast; half of it of saturation, a tenth of it of hue.
        statistics: of the pool; None: those of ImageNet.

    Raises:
        CurationError: a crop larger than the tile.
    """
    side = tile * resolution
    for name, (low, high) in (("global", global_metres), ("local", local_metres)):
        if not 0 < low <= high <= side * 1.0001:
            raise CurationError(
                f"{name} crops of {low:g} to {high:g} m do not fit a tile of {side:g} m ({tile} pixels of "
                f"{resolution:g} m); cut larger tiles or take smaller crops"
            )

    def share(metres: tuple[float, float]) -> tuple[float, float]:
        return min((metres[0] / side) ** 2, 1.0), min((metres[1] / side) ** 2, 1.0)

    colour = ColourSettings(
        brightness=jitter,
        contrast=jitter,
        saturation=jitter / 2,
        hue=jitter / 10,
        grey=0.0,
        blur_global1=0.5,
        blur_local=0.3,
        solarize=0.0,
        turns=True,
    )
    seen: dict[str, Any] = {}
    if statistics is not None:
        if len(statistics.mean) != 3:
            raise CurationError(f"pretraining reads three bands, the statistics have {len(statistics.mean)}")
        seen = {"mean": statistics.mean, "std": statistics.std}
    return CropSettings(
        global_size=global_size,
        local_size=local_size,
        n_local=n_local,
        global_scale=share(global_metres),
        local_scale=share(local_metres),
        canvas=tile,
        colour=colour,
        **seen,
    )


def tile_images(reader: TileReader, white: float) -> Iterator[dict[str, Any]]:
    """Rows of a pool: each tile as PNG bytes, losslessly where the files are 8 bits deep; nodata is black.

    Args:
        white: value that is white; 0: of the type.

    Raises:
        CurationError: not three bands, or see `require_white`.
    """
    if reader.n_bands != 3:
        raise CurationError(
            f"a pool of pictures has three bands, the tiles have {reader.n_bands}; choose three: --bands"
        )
    for tile in range(len(reader)):
        yield {"image": {"bytes": tile_png(reader, tile, reader.read(tile)[0], white), "path": f"tile {tile}"}}


def tile_png(reader: TileReader, tile: int, values: Float[np.ndarray, "three s s"], white: float = 0.0) -> bytes:
    """The picture of a tile that was read."""
    return png(values, require_white(reader.dtype, white, reader.place(tile)["image"], values))


def png(values: Float[np.ndarray, "three s s"], white: float) -> bytes:
    """A picture whose value ``white`` is 255."""
    pixels: UInt8[np.ndarray, "s s three"] = (
        np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png", compress_level=1)
    return stream.getvalue()
