"""Canopy metrics against their formulas, and what makes them lie: nodata, short trees, blocks that are all alike."""

from pathlib import Path

import numpy as np
import pytest

from eval.canopy import CanopySettings, canopy_metrics, pool
from eval.cli import main
from foundation.errors import CurationError

SETTINGS = CanopySettings(resolution=0.5, pool_pixels=10, pool_metres=10.0, n_resamples=200)


def maps(n: int = 6, side: int = 60, seed: int = 0):
    rng = np.random.default_rng(seed)
    truth = rng.gamma(1, 8, (n, side, side))
    truth[rng.random(truth.shape) < 0.3] = 0
    truth[rng.random(truth.shape) < 0.1] = np.nan
    return truth + rng.normal(1, 3, truth.shape), truth


def test_every_measure_agrees_with_its_formula():
    predicted, truth = maps()
    found = {name: interval.value for name, interval in canopy_metrics(predicted, truth, SETTINGS).items()}
    known = np.isfinite(truth)
    p, t = predicted[known], truth[known]
    assert found["mae"] == pytest.approx(np.abs(p - t).mean())
    assert found["rmse"] == pytest.approx(np.sqrt(((p - t) ** 2).mean()))
    assert found["me"] == pytest.approx((p - t).mean())
    assert found["r2"] == pytest.approx(1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())
    tall = (t >= 10) & (t < 20)
    assert found["mae_10_20"] == pytest.approx(np.abs(p - t)[tall].mean())
    assert found["me_30_up"] == pytest.approx((p - t)[t >= 30].mean())
    assert found["iou_5m"] == pytest.approx(((p >= 5) & (t >= 5)).sum() / ((p >= 5) | (t >= 5)).sum())
    cells = [[], []]
    for a, b in zip(predicted, truth, strict=True):
        for r in range(3, 53, 10):
            for c in range(3, 53, 10):
                mine = np.isfinite(b[r : r + 10, c : c + 10])
                for values, kept in zip((a, b), cells, strict=True):
                    kept.append(values[r : r + 10, c : c + 10][mine].mean())
    p, t = map(np.array, cells)
    assert found["block_r2"] == pytest.approx(1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())


def test_a_perfect_map_and_a_flat_one():
    _, truth = maps()
    found = canopy_metrics(np.nan_to_num(truth), truth, SETTINGS)
    assert found["mae"].value == found["edge_error"].value == 0
    assert found["r2"].value == found["block_r2"].value == found["iou_2m"].value == 1
    flat = canopy_metrics(np.full_like(truth, np.nanmean(truth)), truth, SETTINGS)
    assert flat["r2"].value == pytest.approx(0)
    assert flat["edge_error"].value == pytest.approx(1)
    assert flat["me"].value == pytest.approx(0)


def test_a_class_without_pixels_is_a_dash_of_no_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    predicted, truth = maps()
    truth[truth >= 20] = 3
    truth[2, 0, 0] = 25
    found = canopy_metrics(np.nan_to_num(predicted), truth, SETTINGS)
    assert (found["mae_30_up"].n, found["mae_20_30"].n, found["mae"].n) == (0, 1, 6)
    monkeypatch.setattr("eval.canopy_rasters.measure_maps", lambda *_: found)
    main(["canopy", "a.tif", "b.tif", "-o", "out"])
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["mae_30_up"] == ["-", "-", "n", "0"]
    assert not any("nan" in words for words in lines.values())


def test_intervals_are_over_blocks():
    # pixels of a block share one error: 3,600 pixels each say no more than one
    rng = np.random.default_rng(1)
    _, truth = maps(12)
    shift = rng.normal(0, 2, 12)
    found = canopy_metrics(truth + shift[:, None, None], truth, SETTINGS)["me"]
    assert found.n == 12
    assert found.high - found.low == pytest.approx(2 * 1.96 * shift.std() / np.sqrt(12), rel=0.3)


def test_a_measure_without_pixels_is_nan_and_cells_need_enough():
    low = np.ones((2, 60, 60))
    found = canopy_metrics(low, low, SETTINGS)
    assert np.isnan(found["mae_30_up"].value)
    assert np.isnan(found["r2"].value)
    known = np.zeros((26, 26), bool)
    known[3:8, 3:13] = True
    np.testing.assert_array_equal(pool(np.ones((26, 26)), known, 10, 3, 0.5), [1.0])
    assert len(pool(np.ones((26, 26)), known, 10, 3, 0.6)) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p, t: (p[:-1], t), "5 predicted blocks and 6"),
        (lambda p, t: (p[:, :-1], t), "maps of one size"),
        (lambda p, t: (p * np.nan, t), "true height but no prediction"),
        (lambda p, t: (p, t * np.nan), "nodata"),
    ],
)
def test_bad_input_is_named(change, text: str):
    with pytest.raises(CurationError, match=text):
        canopy_metrics(*change(*maps()), SETTINGS)


def test_rasters_are_judged_as_arrays_are(tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    from eval.canopy_rasters import measure_maps

    predicted, truth = (values[0] for values in maps())

    def write(name: str, values: np.ndarray, left: float = 0) -> Path:
        place = rasterio.transform.from_origin(left, 100, 0.5, 0.5)
        options = {"count": 1, "height": 60, "width": 60, "dtype": "float32", "nodata": np.nan, "crs": "EPSG:32610"}
        with rasterio.open(tmp_path / name, "w", driver="GTiff", transform=place, **options) as target:
            target.write(values.astype(np.float32), 1)
        return tmp_path / name

    paths = write("p.tif", np.nan_to_num(predicted)), write("t.tif", truth)
    found = measure_maps(*paths, block=15, output=tmp_path)
    known = np.isfinite(truth)
    assert found["mae"].n == 4
    assert found["mae"].value == pytest.approx(np.abs(predicted - truth)[known].mean(), rel=1e-4)
    assert (tmp_path / "canopy.json").exists()
    measure_maps(*paths, block=15, output=tmp_path)
    with pytest.raises(CurationError, match=r"canopy\.json holds results of other settings"):
        measure_maps(*paths, block=10, output=tmp_path)
    write("p.tif", np.nan_to_num(predicted) + 1)
    with pytest.raises(CurationError, match=r"canopy\.json holds results of other settings"):
        measure_maps(*paths, block=15, output=tmp_path)
    measure_maps(*paths, block=10, output=tmp_path, overwrite=True)
    with pytest.raises(CurationError, match="different places"):
        measure_maps(paths[0], write("moved.tif", truth, left=3))
    with (
        rasterio.open(paths[0]) as source,
        rasterio.open(tmp_path / "rgb.tif", "w", **{**source.profile, "count": 3}) as picture,
    ):
        picture.write(np.repeat(source.read(), 3, axis=0))
    with pytest.raises(CurationError, match="3 bands; heights have one"):
        measure_maps(tmp_path / "rgb.tif", paths[1])


def test_rasters_that_are_no_map_and_lidar_in_metres_are_spoken_of(tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    from eval.canopy_rasters import PREDICTED, measure_maps

    predicted, truth = (np.nan_to_num(np.abs(values[0])) for values in maps())
    predicted = 0.8 * predicted + 1

    def write(name: str, values: np.ndarray, software: str = "") -> Path:
        options = {"count": 1, "height": 60, "width": 60, "dtype": "float32", "crs": "EPSG:32610"}
        place = rasterio.transform.from_origin(0, 100, 0.5, 0.5)
        with rasterio.open(tmp_path / name, "w", driver="GTiff", transform=place, **options) as target:
            target.write(values.astype(np.float32), 1)
            target.update_tags(TIFFTAG_SOFTWARE=software)
        return tmp_path / name

    def said(*paths: Path) -> list[str]:
        lines: list[str] = []
        measure_maps(*paths, block=15, say=lines.append)
        return lines

    p, t = write("p.tif", predicted, PREDICTED), write("t.tif", truth)
    assert said(p, t) == []
    assert "p.tif is a predicted map; lidar comes second" in said(t, p)[0]
    assert "hold the same heights" in said(t, write("copy.tif", truth))[0]
    assert "in centimetres?" in said(p, write("cm.tif", truth * 100))[0]
    assert "in centimetres?" in said(write("pcm.tif", predicted * 100), t)[0]
    assert "in decimetres?" in said(p, write("dm.tif", truth * 10))[0]
    assert "no tree has more than 116 m" in said(write("flat.tif", predicted * 0), write("cm.tif", truth * 100))[0]
    assert "of the heights of" in said(p, write("below.tif", -truth / 2))[0]
    truth[:9] = -9999
    with pytest.raises(CurationError, match="-a_nodata -9999"):
        measure_maps(p, write("nodata.tif", truth), block=15)


def test_the_judge_knows_predicted_maps_and_impossible_heights_as_the_room_that_makes_them():
    """Neither room may import the other; a change in one must reach both."""
    pytest.importorskip("rasterio")
    from eval import canopy_rasters
    from satellite import rasters, units

    assert canopy_rasters.PREDICTED == rasters.PREDICTED
    assert (canopy_rasters.NO_DEPTH, canopy_rasters.NO_HEIGHT) == (units.NO_DEPTH, units.NO_HEIGHT)
