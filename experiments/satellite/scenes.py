"""Generated forest scenes: relief, land cover in patches, crowns with shadows. Synthetic, and no claim to be more.

A scene is unbalanced as land is: most of it is field, grass or asphalt, and tall trees are rare.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from foundation.files import whole_file

# share of the land, crowns per hectare, mean crown radius (m), mean height (m), colour of the ground, of the crowns
COVERS = (
    (0.50, 0, 0.0, 0.0, (0.52, 0.50, 0.36), (0.0, 0.0, 0.0)),  # field
    (0.18, 4, 2.0, 5.0, (0.45, 0.45, 0.45), (0.22, 0.34, 0.20)),  # asphalt, street trees
    (0.16, 25, 1.2, 2.5, (0.42, 0.50, 0.26), (0.30, 0.38, 0.20)),  # scrub
    (0.12, 220, 2.8, 14.0, (0.32, 0.30, 0.22), (0.18, 0.30, 0.14)),  # broad-leaved forest
    (0.04, 260, 2.2, 27.0, (0.24, 0.22, 0.18), (0.10, 0.20, 0.14)),  # tall conifers
)
SUN = (0.6, 0.6)  # metres of shadow to the south-east for a metre of height


@dataclass(frozen=True)
class Scene:
    """A generated scene.

    Attributes:
        colour: (3, h, w).
        height: canopy, metres.
        ground: metres.
        cover: index of `COVERS`.
    """

    colour: UInt8[np.ndarray, "3 h w"]
    height: Float[np.ndarray, "h w"]
    ground: Float[np.ndarray, "h w"]
    cover: UInt8[np.ndarray, "h w"]


def forest_scene(height: int, width: int, resolution: float = 0.5, seed: int = 0, patch: float = 40.0) -> Scene:
    """A scene of height x width pixels.

    Args:
        resolution: metres per pixel.
        patch: metres, about the width of a patch of one land cover.
    """
    rng = np.random.default_rng(seed)
    shape = (height, width)
    ground = smooth_noise(rng, shape, 150 / resolution) * 5
    field = smooth_noise(rng, shape, patch / resolution)
    shares = np.cumsum([cover[0] for cover in COVERS])[:-1]
    cover = np.searchsorted(np.quantile(field, shares), field).astype(np.uint8)
    canopy = np.zeros(shape)
    tint = np.zeros((3, *shape))
    colour = np.array([c[4] for c in COVERS]).T[:, cover]
    for kind, (_, density, radius, tall, _, crown) in enumerate(COVERS):
        rows, cols = np.nonzero(cover == kind)
        n = rng.poisson(len(rows) * resolution**2 / 10_000 * density) if density else 0
        for i in rng.integers(len(rows), size=n) if n else ():
            r = radius * rng.lognormal(0, 0.25) / resolution
            top = tall * rng.lognormal(0, 0.2)
            _add_crown(canopy, tint, rows[i], cols[i], r, top, np.array(crown) * rng.uniform(0.8, 1.2))
    leafy = canopy > 0
    colour = np.where(leafy, tint, colour)
    slope = np.stack(np.gradient(canopy + ground, resolution))
    light = np.clip(0.8 - 0.25 * (slope[0] + slope[1]) / (1 + np.abs(slope).sum(0)), 0.4, 1.2)
    colour = colour * np.where(_shadow(canopy, resolution), 0.45, light)
    colour = colour + 0.03 * rng.standard_normal(colour.shape) + 0.02 * smooth_noise(rng, shape, 6 / resolution)
    pixels = np.clip(np.rint(colour * 255), 1, 255).astype(np.uint8)
    return Scene(pixels, canopy.astype(np.float32), ground, cover)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], width: float) -> Float[np.ndarray, "h w"]:
    """Gaussian noise of mean 0 and deviation 1, smooth over ``width`` pixels."""
    step = max(1, int(width / 4))
    coarse = rng.standard_normal((shape[0] // step + 8, shape[1] // step + 8))
    coarse = ndimage.gaussian_filter(coarse, width / step / 2)
    rows, cols = np.arange(shape[0]) / step + 3, np.arange(shape[1]) / step + 3
    fine = ndimage.map_coordinates(coarse, np.meshgrid(rows, cols, indexing="ij"), order=1)
    return (fine - fine.mean()) / fine.std()


def _add_crown(
    canopy: Float[np.ndarray, "h w"],
    tint: Float[np.ndarray, "3 h w"],
    row: int,
    col: int,
    radius: float,
    top: float,
    colour: Float[np.ndarray, "three"],
) -> None:
    """A half ellipsoid on its lower half of stem; where crowns overlap the higher one is seen."""
    reach = int(np.ceil(radius))
    r0, c0 = max(row - reach, 0), max(col - reach, 0)
    box = np.s_[r0 : row + reach + 1, c0 : col + reach + 1]
    here = canopy[box]
    rows, cols = np.ogrid[r0 : r0 + here.shape[0], c0 : c0 + here.shape[1]]
    distance = ((rows - row) ** 2 + (cols - col) ** 2) / max(radius, 0.5) ** 2
    crown = np.where(distance <= 1, top * (0.5 + 0.5 * np.sqrt(np.maximum(1 - distance, 0))), 0)
    higher = crown > here
    canopy[box] = np.where(higher, crown, here)
    for band in range(3):
        tint[band][box] = np.where(higher, colour[band], tint[band][box])


def _shadow(canopy: Float[np.ndarray, "h w"], resolution: float) -> np.ndarray:
    """Pixels behind something higher, looking towards the sun."""
    longest = max(canopy.max() * max(SUN), resolution)
    shaded = np.zeros(canopy.shape, bool)
    for away in np.arange(1, longest / resolution, 2).astype(int):
        rise = away * resolution / SUN[0]
        shaded[away:, away:] |= canopy[:-away, :-away] > canopy[away:, away:] + rise
    return shaded


def save_scene(scene: Scene, folder: Path, resolution: float, crs: str = "EPSG:32610") -> tuple[Path, Path]:
    """Write ``colour.tif`` and ``height.tif``; the place on the ground is made up."""
    import rasterio
    from rasterio.transform import from_origin

    shared = {"driver": "GTiff", "height": scene.height.shape[0], "width": scene.height.shape[1], "tiled": True}
    shared |= {"crs": crs, "transform": from_origin(500_000, 5_000_000, resolution, resolution)}
    with (
        whole_file(folder / "colour.tif") as path,
        rasterio.open(path, "w", count=3, dtype="uint8", **shared) as target,
    ):
        target.write(scene.colour)
    with (
        whole_file(folder / "height.tif") as path,
        rasterio.open(path, "w", count=1, dtype="float32", nodata=np.nan, **shared) as target,
    ):
        target.write(scene.height, 1)
    return folder / "colour.tif", folder / "height.tif"
