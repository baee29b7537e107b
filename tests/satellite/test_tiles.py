"""Tiles: none without data, none of one side near the other, heights in metres whatever the file holds."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio")

from foundation.errors import CurationError
from satellite.data import TileReader, symmetry
from satellite.errors import HeightWarning
from satellite.normalise import BandStatistics, band_statistics, match_percentiles, normalise
from satellite.tiles import TileSettings, cut_tiles, footprints, load_tiles, save_tiles, spatial_split
from tests.satellite.conftest import write_raster


def cut(*paths, **settings):
    return cut_tiles([paths[0]], [paths[1]] if len(paths) > 1 else None, TileSettings(**settings), progress=False)


def test_tiles_carry_their_footprint_and_survive_the_disk(scene, tmp_path: Path):
    settings = TileSettings(size=64, stride=32, bands=(1, 2, 3))
    table = cut_tiles([scene[0]], [scene[1]], settings, progress=False)
    assert len(table) == 7 * 9
    save_tiles(table, tmp_path / "tiles.parquet", settings)
    again, cut_with = load_tiles(tmp_path / "tiles.parquet")
    assert again.to_pylist() == table.to_pylist()
    assert cut_with == settings
    boxes = footprints(table)
    np.testing.assert_allclose(boxes[0], [500_000, 5_000_000 - 32, 500_032, 5_000_000])
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], 32)
    with pytest.raises(CurationError, match="no whole table"):
        load_tiles(scene[0])


def test_tiles_without_data_are_left_out_and_none_left_is_an_error(tmp_path: Path):
    values = np.full((3, 64, 64), 7, np.uint8)
    values[:, :, :40] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    assert [(t["row"], t["col"]) for t in cut(path, size=32).to_pylist()] == [(0, 32), (32, 32)]
    values[:] = 0
    with pytest.raises(CurationError, match="none of 4 tiles"):
        cut(write_raster(tmp_path / "b.tif", values, nodata=0), size=32)


@pytest.mark.parametrize("seed", range(5))
def test_train_and_test_are_apart_by_the_margin(scene, seed: int):
    boxes = footprints(cut(*scene, size=32, stride=8))
    n_test = 0
    for fold in range(4):
        split = spatial_split(boxes, block=40, n_folds=4, fold=fold, margin=6, seed=seed)
        a, b = boxes[split.train][:, None], boxes[split.test][None]
        gap_x = np.maximum(a[..., 0] - b[..., 2], b[..., 0] - a[..., 2])
        gap_y = np.maximum(a[..., 1] - b[..., 3], b[..., 1] - a[..., 3])
        assert np.maximum(gap_x, gap_y).min() >= 6 - 1e-6
        n_test += len(split.test)
    assert n_test > len(boxes) / 20


def test_a_split_without_tiles_says_so(scene):
    boxes = footprints(cut(*scene, size=64))
    with pytest.raises(CurationError, match="leaves no test tiles") as raised:
        spatial_split(boxes, block=20, n_folds=4, fold=0)
    block, *left = re.findall(r"blocks of ([\d.]+) m leave (\d+) to train on and (\d+) to test", str(raised.value))[0]
    split = spatial_split(boxes, float(block), n_folds=4, fold=0)  # what is proposed works
    assert [len(split.train), len(split.test)] == list(map(int, left))
    with pytest.raises(CurationError, match="choose other blocks or folds, a smaller margin, or smaller tiles"):
        spatial_split(boxes, block=20, n_folds=4, fold=0, margin=1e6)


@pytest.mark.parametrize(("units", "factor"), [("ft", 0.3048), ("cm", 0.01), ("m", 1.0)])
def test_heights_become_metres(scene, tmp_path: Path, units: str, factor: float):
    import rasterio

    with rasterio.open(scene[1]) as source:
        heights = source.read()
    path = write_raster(tmp_path / "h.tif", (heights / factor).astype(np.float32))
    settings = TileSettings(size=64, units=units)
    reader = TileReader(cut_tiles([scene[0]], [path], settings, progress=False), settings)
    np.testing.assert_allclose(reader.read(5)[2], heights[0, 64:128, 0:64], atol=1e-4)


def test_heights_in_other_units_than_said_are_noticed(scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[1]) as source:
        heights = source.read()
    path = write_raster(tmp_path / "h.tif", (heights * 100).astype(np.float32))
    with pytest.warns(HeightWarning, match="--units cm"):
        cut(scene[0], path, size=64)
    with pytest.raises(CurationError, match="unit 'yard'"):
        TileSettings(units="yard")


def test_an_undeclared_number_for_no_data_is_no_height(scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[1]) as source:
        heights = source.read()
    heights[0, 3, 3] = 3.4e38
    with pytest.raises(CurationError, match="-a_nodata 3"):
        cut(scene[0], write_raster(tmp_path / "h.tif", heights.astype(np.float32)), size=64)


@pytest.mark.parametrize("change", [lambda a: a * np.nan, lambda a: -a - 5, lambda a: a * 3])
def test_a_raster_that_has_changed_since_it_was_cut_is_refused(scene, tmp_path: Path, change):
    """Else a model would be trained on nothing, or on other heights, and end well."""
    import rasterio

    with rasterio.open(scene[1]) as source:
        heights = source.read()
    path = write_raster(tmp_path / "h.tif", heights.astype(np.float32))
    settings = TileSettings(size=64)
    table = cut_tiles([scene[0]], [path], settings, progress=False)
    forest = int(np.argmax(table["tallest"]))
    TileReader(table, settings).read(forest)
    write_raster(path, change(heights).astype(np.float32))
    with pytest.raises(CurationError, match=r"h.tif has changed .*cut them again"):
        TileReader(table, settings).read(forest)


@pytest.mark.parametrize("what", ["colours", "heights", "place"])
def test_a_table_of_rasters_that_have_changed_is_refused(scene, tmp_path: Path, what: str):
    """Of equal size, and as valid as before, so that no tile tells."""
    import rasterio

    paths = [tmp_path / "rgb.tif", tmp_path / "chm.tif"]
    for path, original in zip(paths, scene, strict=True):
        path.write_bytes(original.read_bytes())
    settings = TileSettings(size=64)
    table = cut_tiles(paths[:1], paths[1:], settings, progress=False)
    save_tiles(table, tmp_path / "tiles.parquet", settings)
    TileReader(*load_tiles(tmp_path / "tiles.parquet"))
    changed = paths[what == "heights"]
    for path in paths if what == "place" else [changed]:
        with rasterio.open(path, "r+") as raster:
            if what == "place":
                raster.transform = rasterio.Affine.translation(500, 0) @ raster.transform
            else:
                raster.write(raster.read()[..., ::-1])
    with pytest.raises(CurationError, match=rf"{changed.name} has changed since its tiles were cut"):
        TileReader(*load_tiles(tmp_path / "tiles.parquet"))
    for wrong in (b"{", b"[]", b'{"rgb.tif": 3}', b"[" * 5000):
        with pytest.raises(CurationError, match="table of tiles"):
            TileReader(table.replace_schema_metadata({b"rasters": wrong}), settings)
    again = cut_tiles(paths[:1], paths[1:], settings, progress=False)
    assert again.schema.metadata != table.schema.metadata, "a run would go on with the model of the old rasters"


@pytest.mark.parametrize(
    ("dtype", "number", "refused"),
    [
        ("float32", -9999, True),
        ("int16", -32768, True),
        ("uint16", 65535, True),
        ("uint8", 0, False),  # a black border is a picture, too
        ("uint8", 255, False),
    ],
)
def test_an_undeclared_number_for_no_data_is_no_colour(dtype: str, number: int, refused: bool):
    rng = np.random.default_rng(0)
    values = np.clip(rng.gamma(3, 25, (2, 60, 60)), 0, 255).astype(dtype)
    values[:, :3] = number
    window = values.astype(np.float32), np.ones((60, 60), bool)
    if refused:
        with pytest.raises(CurationError, match=rf"[45].\d% of the pixels are exactly {number}.* -a_nodata {number}"):
            band_statistics([window], 1.0)
    else:
        band_statistics([window], 1.0)


def test_heights_that_are_no_lidar_are_spoken_of(scene, tmp_path: Path):
    import rasterio

    from satellite.rasters import PREDICTED

    copy = tmp_path / "copy.tif"
    copy.write_bytes(scene[1].read_bytes())
    with pytest.raises(CurationError, match="are one and the same"):
        cut(scene[1], copy, size=64)
    with rasterio.open(copy, "r+") as raster:
        raster.update_tags(TIFFTAG_SOFTWARE=PREDICTED)
    with pytest.warns(HeightWarning, match="a map that `python -m satellite predict` made"):
        cut(scene[0], copy, size=64)


def test_an_undeclared_number_for_no_data_is_no_depth(scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[1]) as source:
        heights = source.read()
    heights[0, :9] = -9999
    with pytest.raises(CurationError, match="-a_nodata -9999"):
        cut(scene[0], write_raster(tmp_path / "h.tif", heights.astype(np.float32)), size=64)


def test_heights_on_another_grid_are_refused_or_aligned(scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[1]) as source:
        heights = source.read()
    coarse = heights.reshape(1, 128, 2, 160, 2).mean((2, 4))
    path = write_raster(tmp_path / "h.tif", coarse, 1.0)
    with pytest.raises(CurationError, match=r"resolution 0.5 m and 1 m \(2 times\)"):
        cut(scene[0], path, size=64)
    settings = TileSettings(size=64, align=True)
    reader = TileReader(cut_tiles([scene[0]], [path], settings, progress=False), settings)
    smoothed = heights[0, 64:128, 64:128].reshape(32, 2, 32, 2).mean((1, 3))
    found = reader.read(6)[2].reshape(32, 2, 32, 2).mean((1, 3))
    assert np.corrcoef(found.ravel(), smoothed.ravel())[0, 1] > 0.95


def test_statistics_leave_nodata_out():
    rng = np.random.default_rng(0)
    values = rng.normal(100, 20, (2, 50, 50)).astype(np.float32)
    valid = rng.random((50, 50)) < 0.5
    spoilt = np.where(valid, values, 0)
    found = band_statistics([(spoilt, valid), (spoilt * 0, valid & False)], white=200)
    for band in range(2):
        assert found.mean[band] == pytest.approx(values[band][valid].mean() / 200, rel=1e-5)
        assert found.std[band] == pytest.approx(values[band][valid].std() / 200, rel=1e-4)
    z = normalise(spoilt, valid, found)
    assert (z[:, ~valid] == 0).all()
    np.testing.assert_allclose(z[:, valid].std(1), 1, rtol=1e-4)
    with pytest.raises(CurationError, match="no valid pixel"):
        band_statistics([(spoilt, valid & False)], 1.0)
    with pytest.raises(CurationError, match=r"band 1 .* constant"):
        band_statistics([(np.ones((2, 4, 4), np.float32), np.ones((4, 4), bool))], 1.0)
    with pytest.raises(CurationError, match="constant"):  # sums of which leave a deviation of 4e-9
        band_statistics([(np.full((2, 64, 64), 7, np.float32), np.ones((64, 64), bool))] * 200, 255.0)


def test_percentiles_of_one_sensor_land_on_those_of_the_other():
    rng = np.random.default_rng(0)
    aerial = rng.gamma(2, 30, (3, 80, 80)).astype(np.float32)
    haze = aerial * np.array([0.5, 0.7, 0.9], np.float32)[:, None, None] + 20
    valid = np.ones((80, 80), bool)
    a, b = (band_statistics([(x, valid)], 255.0) for x in (aerial, haze))
    np.testing.assert_allclose(match_percentiles(haze / 255, b, a), aerial / 255, atol=0.01)
    with pytest.raises(CurationError, match="no percentiles"):
        match_percentiles(aerial, BandStatistics((0,), (1,)), a)


def test_the_eight_symmetries_are_different():
    x = np.arange(9.0).reshape(1, 3, 3)
    assert len({symmetry(x, which).tobytes() for which in range(8)}) == 8
