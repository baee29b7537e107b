"""A map must lie where the picture lies, show no seams, and survive a kill."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio")
pytest.importorskip("lightning")

import satellite.infer as infer
from foundation.errors import CurationError
from satellite.cli import main
from satellite.data import TileReader
from satellite.errors import HeightWarning
from satellite.export import load_model
from satellite.infer import PredictSettings, blending_weights, predict_raster, starts
from satellite.pictures import save_side_by_side
from satellite.pretraining import tile_images
from satellite.rasters import open_raster
from satellite.tiles import TileSettings, cut_tiles
from satellite.train import train
from tests.satellite.conftest import write_raster
from tests.satellite.test_model import SMALL

SETTINGS = PredictSettings(device="cpu")


@pytest.fixture(scope="module")
def model(scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = TileSettings(size=64, bands=(1, 2, 3))
    table = cut_tiles([scene[0]], [scene[1]], settings, progress=False)
    return train(SMALL, table, settings, tmp_path_factory.mktemp("model") / "run", progress=False).folder


def heights(path: Path) -> np.ndarray:
    import rasterio

    with rasterio.open(path) as source:
        return source.read(1)


def test_the_map_is_a_cog_on_the_grid_of_the_picture(model: Path, scene, tmp_path: Path):
    import rasterio

    path = predict_raster(model, scene[0], tmp_path / "h.tif", SETTINGS, progress=False)
    with rasterio.open(path) as found, rasterio.open(scene[0]) as picture:
        assert (found.crs, found.transform, found.shape) == (picture.crs, picture.transform, picture.shape)
        assert found.units == ("m",)
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert np.isnan(found.nodata)
        assert found.dtypes == ("float32",)
    assert np.isfinite(heights(path)).all()
    assert not (tmp_path / ".h.tif.parts").exists()


def test_squares_and_batches_change_nothing(model: Path, scene, tmp_path: Path):
    found = []
    for i, settings in enumerate((SETTINGS, PredictSettings(square=50, batch_size=3, device="cpu"))):
        path = predict_raster(model, scene[0], tmp_path / f"{i}.tif", settings, progress=False)
        found.append(heights(path))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_a_killed_prediction_goes_on_where_it_was(model: Path, scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = PredictSettings(square=100, device="cpu")
    whole = heights(predict_raster(model, scene[0], tmp_path / "whole.tif", settings, progress=False))
    real, done = infer.predict_square, []

    def dies(*arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(infer, "predict_square", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_raster(model, scene[0], tmp_path / "h.tif", settings, progress=False)
    assert not (tmp_path / "h.tif").exists()
    with pytest.raises(KeyboardInterrupt):  # parts of other settings lie apart
        predict_raster(model, scene[0], tmp_path / "h.tif", SETTINGS, progress=False)
    rest: list[int] = []
    monkeypatch.setattr(infer, "predict_square", lambda *a: (rest.append(1), real(*a))[1])
    found = heights(predict_raster(model, scene[0], tmp_path / "h.tif", settings, progress=False))
    assert len(rest) == 12 - 5
    np.testing.assert_array_equal(found, whole)


def test_nodata_stays_nodata(model: Path, scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[0]) as source:
        values = source.read()
    values[:, :, 200:] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    found = heights(predict_raster(model, path, tmp_path / "h.tif", SETTINGS, progress=False))
    assert np.isnan(found[:, 200:]).all()
    assert np.isfinite(found[:, :200]).all()
    nothing = write_raster(tmp_path / "nothing.tif", values * 0, nodata=0)
    with pytest.raises(CurationError, match=r"nothing\.tif has no valid pixel"):
        predict_raster(model, nothing, tmp_path / "maps/h.tif", SETTINGS, progress=False)
    # a number for no data that the file does not declare was a very dark place
    undeclared = np.where(values == 0, np.float32(-9999), values / np.float32(255))
    for white, factor in ((0.0, 1), (255.0, 255)):
        path = write_raster(tmp_path / "undeclared.tif", np.where(undeclared < 0, undeclared, undeclared * factor))
        with pytest.raises(CurationError, match=r"undeclared\.tif holds -9999"):
            predict_raster(model, path, tmp_path / "maps/h.tif", replace(SETTINGS, white=white), progress=False)
    assert not any((tmp_path / "maps").glob("*"))
    path = write_raster(tmp_path / "wide.tif", np.where(values == 0, np.uint16(65535), values * np.uint16(40)))
    with pytest.warns(HeightWarning, match=r"wide\.tif: .* are exactly 65535"):
        predict_raster(model, path, tmp_path / "h.tif", replace(SETTINGS, white=10200.0), progress=False)


def test_a_picture_of_truth_in_other_units_or_of_another_place_is_spoken_of(scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[1]) as source:
        lidar = source.read()
    truth = write_raster(tmp_path / "cm.tif", lidar * 100)
    with pytest.warns(HeightWarning, match="--units cm"):
        save_side_by_side(scene[0], scene[1], truth, tmp_path / "p.png")
    far = write_raster(tmp_path / "far.tif", lidar, transform=rasterio.Affine(0.5, 0, 9e5, 0, -0.5, 5e6))
    with pytest.raises(CurationError, match=r"far\.tif has no heights where .* lies"):
        save_side_by_side(scene[0], scene[1], far, tmp_path / "p.png")


def test_statistics_that_do_not_fit_the_bands_are_refused(model: Path, tmp_path: Path):
    """A traceback, and only where colours were matched."""
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    del config["seal"]
    config["statistics"]["low"] = [0.1, 0.1]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(CurationError, match="other numbers of bands"):
        load_model(tmp_path / "model")


def test_another_resolution_is_refused_or_brought_to_the_models(model: Path, scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[0]) as source:
        values = source.read().reshape(3, 128, 2, 160, 2).mean((2, 4)).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", values, 1.0)
    with pytest.raises(CurationError, match=r"1 m per pixel but the model was trained at 0.5 m \(2 times\)"):
        predict_raster(model, path, tmp_path / "h.tif", SETTINGS, progress=False)
    settings = PredictSettings(resample=True, device="cpu")
    predict_raster(model, path, tmp_path / "h.tif", settings, progress=False)
    with open_raster(tmp_path / "h.tif") as found:
        assert (found.grid.resolution, found.grid.height, found.grid.width) == (0.5, 256, 320)


def test_matched_colours_undo_another_sensor(model: Path, scene, tmp_path: Path):
    import rasterio

    with rasterio.open(scene[0]) as source:
        values = source.read()
    dim = (values * 0.4 + 60).astype(np.uint8)
    path = write_raster(tmp_path / "dim.tif", dim)
    plain = heights(predict_raster(model, scene[0], tmp_path / "a.tif", SETTINGS, progress=False))
    wrong = heights(predict_raster(model, path, tmp_path / "b.tif", SETTINGS, progress=False))
    settings = PredictSettings(match_colours=True, device="cpu")
    right = heights(predict_raster(model, path, tmp_path / "c.tif", settings, progress=False))
    assert np.abs(right - plain).mean() < 0.5 * np.abs(wrong - plain).mean()


@pytest.mark.parametrize(("length", "tile", "step"), [(100, 32, 24), (32, 32, 8), (10, 32, 8), (97, 32, 32)])
def test_tiles_cover_everything(length: int, tile: int, step: int):
    covered = np.zeros(max(length, tile), bool)
    for start in starts(length, tile, step):
        covered[start : start + tile] = True
    assert covered[:length].all()
    assert starts(length, tile, step)[-1] + tile == max(length, tile)


def test_neighbours_add_up_to_one():
    line = blending_weights(32, 8)[16]
    np.testing.assert_allclose(line[-8:] + line[:8], 1)
    assert line.min() > 0


def test_the_command_goes_from_rasters_to_a_picture(scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> None:
        main([str(word) for word in words])

    small = ["steps=5", "batch_size=4", "head.width=8", "head.n_bins=16", "backbone.name=resnet10t"]
    run("tiles", scene[0], "--heights", scene[1], "-o", tmp_path / "t.parquet", "--size", 64, "--bands", "1,2,3")
    run("pool", tmp_path / "t.parquet", "-o", tmp_path / "pool.parquet")
    train_words = ["--block", 64, "--folds", 3, "--margin", 0]
    run("train", tmp_path / "t.parquet", *small, "-o", tmp_path / "run", *train_words)
    capsys.readouterr()
    run("train", tmp_path / "t.parquet", *small, "-o", tmp_path / "run", *train_words)
    assert capsys.readouterr().err == f"already there, nothing to do: {tmp_path / 'run/model'}\n"
    run("predict", tmp_path / "run/model", scene[0], "-o", tmp_path / "h.tif")
    window = ["--window", "0,0,128,128"]
    run("picture", scene[0], tmp_path / "h.tif", "--truth", scene[1], "-o", tmp_path / "p.png", *window)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    away = write_raster(tmp_path / "away.tif", np.ones((1, 9, 9), np.float32), crs="EPSG:32611")
    for words, said in (
        (["predict", tmp_path / "none", scene[0], "-o", tmp_path / "x.tif"], ""),
        (["picture", scene[0], away, "-o", tmp_path / "x.png"], "give the picture of the same place"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("satellite: error: ")
        assert last.endswith(said)


def test_a_pool_of_tiles_holds_the_pixels_of_the_raster(scene):
    import io

    from PIL import Image

    from satellite.data import TileReader
    from satellite.pretraining import crops_from_above, tile_images

    settings = TileSettings(size=64, bands=(1, 2, 3))
    reader = TileReader(cut_tiles([scene[0]], None, settings, progress=False), settings)
    row = next(iter(tile_images(reader, 255.0)))
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, reader.read(0)[0])
    crops = crops_from_above(64, 0.5, (16, 32), (6, 16), 32, 16)
    assert crops.global_scale == (0.25, 1.0)
    assert crops.colour.turns
    with pytest.raises(CurationError, match="do not fit a tile of 32 m"):
        crops_from_above(64, 0.5, (16, 48), (6, 16), 32, 16)


def test_one_picture_is_the_same_whatever_numbers_its_file_holds(model: Path, scene, tmp_path: Path):
    """8 bits or floats of 0..1 give one map; floats of 0..255 or 0..10000 gave a dark or blown one, silently."""
    with open_raster(scene[0]) as raster:
        pixels = raster.read(0, 0, raster.grid.height, raster.grid.width)[0]
    files = {
        name: write_raster(tmp_path / f"{name}.tif", (pixels * factor).astype(dtype))
        for name, factor, dtype in (
            ("shares", 1 / 255, np.float32),
            ("bytes", 1, np.float32),
            ("reflectances", 10_000 / 255, np.float64),
            ("whole", 10_000 / 255, np.int16),
        )
    }
    out = tmp_path / "maps/h.tif"
    wanted = heights(predict_raster(model, scene[0], out, SETTINGS, progress=False))
    out.unlink()
    for name, white in (("shares", 1.0), ("bytes", 255.0), ("reflectances", 10_000.0), ("whole", 10_000.0)):
        if name != "shares":
            with pytest.raises(CurationError, match=rf"{name}\.tif holds .* white"):
                predict_raster(model, files[name], out, SETTINGS, progress=False)
            assert not any(out.parent.iterdir())
        settings = PredictSettings(device="cpu", white=0.0 if name == "shares" else white)
        found = heights(predict_raster(model, files[name], out, settings, progress=False))
        np.testing.assert_allclose(found, wanted, atol=0.5 if name == "whole" else 1e-3, err_msg=name)
        out.unlink()
    # a model of such floats, which no type describes, asks back as well
    settings = TileSettings(size=64)
    table = cut_tiles([files["bytes"]], [scene[1]], settings, progress=False)
    of_bytes = train(replace(SMALL, steps=1), table, settings, tmp_path / "run", progress=False).folder
    predict_raster(of_bytes, files["bytes"], out, SETTINGS, progress=False)
    for image in (scene[0], files["shares"], files["reflectances"], files["whole"]):
        with pytest.raises(CurationError, match=f"{image.name} holds .* --white"):
            predict_raster(of_bytes, image, out, SETTINGS, progress=False)
    with pytest.raises(CurationError, match=r"bytes\.tif holds floats up to"):  # published means are of shares
        train(replace(SMALL, statistics="imagenet"), table, settings, tmp_path / "published", progress=False)
    with pytest.raises(CurationError, match=r"bytes\.tif holds floats up to"):
        next(tile_images(TileReader(table, settings), 0.0))
    with pytest.raises(CurationError, match=r"float32 but .* uint8"):
        cut_tiles([scene[0], files["shares"]], None, TileSettings(size=64, bands=(1, 2, 3)), progress=False)
