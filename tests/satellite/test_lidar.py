"""A generated cloud with known ground and crowns: both must come back, in metres, whatever the units of the file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("laspy")
pytest.importorskip("rasterio")

from experiments.satellite.scenes import forest_scene
from foundation.errors import CurationError
from satellite.errors import HeightWarning
from satellite.lidar import LidarSettings, canopy_from_lidar
from satellite.rasters import open_raster

SIDE, RESOLUTION = 160, 0.5
ROOT = Path(__file__).parents[2]


def truth():
    return forest_scene(SIDE, SIDE, RESOLUTION, seed=3, patch=15)


def write_cloud(path: Path, classified: bool = True, unit: float = 1.0, vertical: float = 1.0) -> Path:
    """About 30 points a square metre: first returns from the canopy, last ones from the ground; some noise points."""
    import laspy

    scene = truth()
    rng = np.random.default_rng(0)
    n = int(30 * (SIDE * RESOLUTION) ** 2)
    x, y = rng.random((2, n)) * SIDE * RESOLUTION * 0.9999
    row, col = (y / RESOLUTION).astype(int), (x / RESOLUTION).astype(int)
    high, low = scene.height[row, col], scene.ground[row, col]
    through = rng.random(n) < 0.35
    z = low + np.where(through, 0, high) + rng.normal(0, 0.03, n)
    kind = np.where(through | (high < 0.1), 2, 5)
    header = laspy.LasHeader(point_format=7, version="1.4")
    header.scales = [0.001] * 3
    header.offsets = [500_000 / unit, 4_000_000 / unit, 0]
    cloud = laspy.LasData(header)
    noise = 20
    cloud.x = (500_000 + np.append(x, x[:noise])) / unit
    cloud.y = (4_000_000 + SIDE * RESOLUTION - np.append(y, y[:noise])) / unit
    cloud.z = np.append(z, np.full(noise, 500.0)) / vertical
    cloud.classification = np.append(kind, np.full(noise, 7)) if classified else np.append(0 * kind, np.full(noise, 7))
    for band, name in enumerate(("red", "green", "blue")):
        setattr(cloud, name, np.append(scene.colour[band, row, col], np.zeros(noise)).astype(np.uint16) << 8)
    cloud.write(path)
    return path


@pytest.mark.parametrize(("classified", "suffix"), [(True, "las"), (True, "laz"), (False, "laz")])
def test_ground_and_crowns_come_back(tmp_path: Path, classified: bool, suffix: str):
    path = write_cloud(tmp_path / f"a.{suffix}", classified)
    canopy = canopy_from_lidar([path], LidarSettings(RESOLUTION, "EPSG:32610"), progress=False)
    scene = truth()
    assert abs(canopy.grid.height - SIDE) <= 1
    h = canopy.height[:SIDE, :SIDE]
    g = canopy.ground[:SIDE, :SIDE]
    known = np.isfinite(h)
    assert known.mean() > 0.95
    # a few cells are hit by pulses only that went through the crown
    assert np.median(np.abs(h - scene.height[: h.shape[0], : h.shape[1]])[known]) < 0.15
    assert np.abs(g - scene.ground[: g.shape[0], : g.shape[1]]).mean() < (0.1 if classified else 0.5)
    tall = known & (scene.height > 8)
    assert np.abs(h[tall] - scene.height[tall]).mean() < 1.5
    same = known & (np.abs(h - scene.height) < 0.3)
    assert np.median(np.abs(canopy.colour[:, :SIDE, :SIDE].astype(int) - scene.colour)[:, same]) <= 1


def test_feet_become_metres(tmp_path: Path):
    foot = 0.3048
    path = write_cloud(tmp_path / "a.laz", unit=foot, vertical=foot)
    # EPSG:2992: Oregon, international feet
    canopy = canopy_from_lidar([path], LidarSettings(RESOLUTION, "EPSG:2992", units="ft"), progress=False)
    assert canopy.grid.resolution == pytest.approx(RESOLUTION)
    assert canopy.height[np.isfinite(canopy.height)].max() == pytest.approx(truth().height.max(), abs=1.0)


def test_what_is_wrong_with_a_cloud_is_said(tmp_path: Path):
    path = write_cloud(tmp_path / "a.laz")
    with pytest.raises(CurationError, match="names no reference system"):
        canopy_from_lidar([path], progress=False)
    with pytest.raises(CurationError, match="does not exist"):
        canopy_from_lidar([tmp_path / "b.laz"], progress=False)
    settings = LidarSettings(RESOLUTION, "EPSG:32610")
    content = path.read_bytes()
    (tmp_path / "half.laz").write_bytes(content[: len(content) // 2])
    with pytest.raises(CurationError, match=r"half.laz cannot be"):
        canopy_from_lidar([tmp_path / "half.laz"], settings, progress=False)
    bare = write_cloud(tmp_path / "bare.laz", classified=False)
    with pytest.raises(CurationError, match="no points of class 2"):
        canopy_from_lidar([bare], LidarSettings(RESOLUTION, "EPSG:32610", ground="classes"), progress=False)
    centimetres = write_cloud(tmp_path / "cm.laz", vertical=0.01)
    with pytest.warns(HeightWarning, match="--units cm"):
        canopy_from_lidar([centimetres], settings, progress=False)


def test_the_script_writes_pairs_on_one_grid(tmp_path: Path):
    path = write_cloud(tmp_path / "a.laz")
    script = [sys.executable, str(ROOT / "scripts/prepare/lidar_to_canopy.py"), str(path), "-o", str(tmp_path / "out")]
    found = subprocess.run([*script, "--crs", "EPSG:32610"], capture_output=True, text=True, check=True)
    assert "160" in found.stdout or "161" in found.stdout
    with open_raster(tmp_path / "out/colour.tif") as colour, open_raster(tmp_path / "out/height.tif") as height:
        assert colour.grid == height.grid
        assert height.read(0, 0, 50, 50)[0].max() > 1
    failed = subprocess.run(script, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("lidar_to_canopy: error: ")
