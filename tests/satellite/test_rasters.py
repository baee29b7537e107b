"""A raster that is read wrongly is a map that is wrong: nodata, grids, units and damage are met with a sentence."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio")

from foundation.errors import CurationError
from satellite.rasters import CACHE_BYTES, check_same_grid, open_raster
from tests.satellite.conftest import write_raster


def ramp(bands: int = 1, side: int = 40, dtype: str = "float32") -> np.ndarray:
    return np.arange(bands * side * side).reshape(bands, side, side).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_values_arrive_as_they_are_in_the_order_of_the_bands(tmp_path: Path, dtype: str):
    values = (ramp(4) % 251).astype(dtype)
    with open_raster(write_raster(tmp_path / "a.tif", values), [3, 1]) as raster:
        found, valid = raster.read(5, 7, 10, 12)
    np.testing.assert_array_equal(found, values[[2, 0], 5:15, 7:19].astype(np.float32))
    assert valid.all()
    assert raster.dtype == dtype
    assert raster.grid.resolution == 0.5


def test_nodata_nan_and_what_lies_outside_are_not_valid(tmp_path: Path):
    values = ramp()
    values[0, 0, 0], values[0, 1, 1] = -9999, np.nan
    with open_raster(write_raster(tmp_path / "a.tif", values, nodata=-9999)) as raster:
        found, valid = raster.read(-2, -2, 6, 6)
    expected = np.zeros((6, 6), bool)
    expected[2:, 2:] = True
    expected[2, 2] = expected[3, 3] = False
    np.testing.assert_array_equal(valid, expected)
    assert (found[0][~valid] == 0).all()


def test_a_coarser_resolution_averages_and_leaves_nodata_out(tmp_path: Path):
    values = np.full((1, 40, 40), 8.0, np.float32)
    values[0, :, 1::2] = 4
    values[0, :20, :20] = -1
    with open_raster(write_raster(tmp_path / "a.tif", values, nodata=-1), resolution=1.0) as raster:
        found, valid = raster.read(0, 0, 20, 20)
    assert (raster.grid.height, raster.grid.width, raster.grid.resolution) == (20, 20, 1.0)
    assert not valid[:10, :10].any()
    assert valid[10:].all()
    np.testing.assert_allclose(found[0][valid], 6.0)


def test_another_reference_system_keeps_places_and_sees_no_black_outside(tmp_path: Path):
    path = write_raster(tmp_path / "a.tif", np.full((3, 60, 60), 200, np.uint8))
    with open_raster(path, crs="EPSG:32611", resolution=0.5) as raster:
        found, valid = raster.read(0, 0, raster.grid.height, raster.grid.width)
    assert found[:, valid].min() > 150
    assert 0.5 < valid.mean() < 1  # turned by the convergence of the meridians: the corners are empty
    assert valid.sum() == pytest.approx(3600, rel=0.05)


def test_a_raster_in_degrees_names_a_projection(tmp_path: Path):
    from rasterio.transform import from_origin

    place = {"crs": "EPSG:4326", "transform": from_origin(-123.1, 44.05, 1e-5, 1e-5)}
    path = write_raster(tmp_path / "a.tif", np.ones((1, 50, 50), np.float32), **place)
    with pytest.raises(CurationError, match="EPSG:32610"):
        open_raster(path)
    with open_raster(path, crs="EPSG:32610", resolution=1.0) as raster:
        assert raster.grid.resolution == 1.0


@pytest.mark.parametrize("lacks", ["crs", "transform"])
@pytest.mark.filterwarnings("ignore")
def test_a_missing_georeference_says_what_to_do(tmp_path: Path, lacks: str):
    import rasterio

    path = write_raster(tmp_path / "a.tif", ramp(), **{lacks: rasterio.Affine.identity() if lacks != "crs" else None})
    with pytest.raises(CurationError, match="gdal_edit"):
        open_raster(path)


def test_grids_that_differ_are_told_apart_with_amounts(tmp_path: Path):
    from rasterio.transform import from_origin

    base = open_raster(write_raster(tmp_path / "a.tif", ramp()))
    cases = {
        "1 m east and -2 m north": {"transform": from_origin(500_001, 4_999_998, 0.5, 0.5)},
        "0.5 m and 0.6 m": {"transform": from_origin(500_000, 5_000_000, 0.6, 0.6)},
        "EPSG:32610 and EPSG:32611": {"crs": "EPSG:32611"},
    }
    for text, place in cases.items():
        other = open_raster(write_raster(tmp_path / "b.tif", ramp(), **place))
        with pytest.raises(CurationError, match=text):
            check_same_grid(base, other)
    smaller = open_raster(write_raster(tmp_path / "b.tif", ramp(side=30)))
    with pytest.raises(CurationError, match="40 x 40 and 30 x 30"):
        check_same_grid(base, smaller)


def test_a_truncated_file_is_named(tmp_path: Path):
    whole = write_raster(tmp_path / "a.tif", ramp(3, 400), compress="deflate", tiled=True)
    content = whole.read_bytes()
    (tmp_path / "half.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "stub.tif").write_bytes(content[:50])
    for name in ("half.tif", "stub.tif"):
        with (
            pytest.raises(CurationError, match=f"{name}.*(truncated|whole)"),
            open_raster(tmp_path / name) as raster,
        ):
            raster.read(0, 0, 400, 400)


def test_bands_and_files_that_are_not_there(tmp_path: Path):
    path = write_raster(tmp_path / "a.tif", ramp())
    with pytest.raises(CurationError, match="no band 4"):
        open_raster(path, [4])
    with pytest.raises(CurationError, match="does not exist"):
        open_raster(tmp_path / "none.tif")


def test_gdal_keeps_few_blocks_unless_the_user_wants_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By itself it takes 5 % of the machine's memory, once in every process that reads tiles."""
    from rasterio.env import get_gdal_config, set_gdal_config

    path, before, large = write_raster(tmp_path / "a.tif", ramp()), get_gdal_config("GDAL_CACHEMAX"), 1 << 30
    try:
        for given, wanted in (("", CACHE_BYTES), ("1GB", large)):
            monkeypatch.setenv("GDAL_CACHEMAX", given) if given else monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
            set_gdal_config("GDAL_CACHEMAX", large)
            open_raster(path).close()
            assert get_gdal_config("GDAL_CACHEMAX") == wanted
    finally:
        set_gdal_config("GDAL_CACHEMAX", before)
