"""A small generated scene on disk, shared by the tests that read rasters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio")

from experiments.satellite.scenes import forest_scene, save_scene


def write_raster(path: Path, values: np.ndarray, resolution: float = 0.5, **options: Any) -> Path:
    """A GeoTIFF of (c, h, w) values at a fixed place in UTM zone 10."""
    import rasterio
    from rasterio.transform import from_origin

    given = {"crs": "EPSG:32610", "transform": from_origin(500_000, 5_000_000, resolution, resolution)} | options
    c, h, w = values.shape
    with rasterio.open(path, "w", driver="GTiff", count=c, height=h, width=w, dtype=values.dtype, **given) as target:
        target.write(values)
    return path


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Colour and height, 256 x 320 pixels of 0.5 m."""
    folder = tmp_path_factory.mktemp("scene")
    return save_scene(forest_scene(256, 320, seed=1), folder, 0.5)
