"""GeoTIFF as a pool: a tile must be the pixels of its window, and no raster may be decoded to count its tiles."""

import sys
from pathlib import Path

import numpy as np
import pytest

from curation.pools.pool import matching_files, open_pool, pool_fingerprint
from curation.pools.tiles import TileCut, parse_cut
from foundation.errors import CurationError
from foundation.images import read_image

rasterio = pytest.importorskip("rasterio")


def write_raster(path: Path, pixels: np.ndarray, nodata: float | None = None, place: bool = True) -> Path:
    from rasterio.transform import from_origin

    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)} if place else {}
    bands, height, width = pixels.shape
    options = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype, "nodata": nodata, **where}
    with rasterio.open(path, "w", driver="GTiff", **options) as sink:
        sink.write(pixels)
    return path


@pytest.fixture
def colour() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (3, 600, 530), dtype=np.uint8)


def stored(pool, row: int) -> dict:
    return pool.with_format("arrow")[row]["image"][0].as_py()


def test_rows_are_windows_with_their_place_and_are_read_when_asked(tmp_path: Path, colour: np.ndarray):
    scene = write_raster(tmp_path / "a scene" / "ä.tif", colour)
    pool = open_pool(scene.parent)
    assert [(row["row"], row["col"]) for row in pool] == [(0, 0), (0, 256), (256, 0), (256, 256)]
    for row in range(4):
        top, left = pool[row]["row"], pool[row]["col"]
        window = colour[:, top : top + 256, left : left + 256].transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(pool[row]["image"]), window)
        np.testing.assert_array_equal(np.asarray(read_image(stored(pool, row))), window)
    assert (pool[3]["west"], pool[3]["north"]) == (502_560, 4_997_440)
    assert pool[3]["crs"] == "EPSG:32633"
    assert stored(pool, 0)["bytes"] is None
    assert pool_fingerprint(pool) == pool_fingerprint(open_pool(scene))


def test_folders_are_labels_and_what_follows_the_mark_cuts(tmp_path: Path, colour: np.ndarray):
    write_raster(tmp_path / "north" / "1.tif", colour)
    write_raster(tmp_path / "south" / "2.tif", colour[:, :100])
    pool = open_pool(f"{tmp_path}#tile=128&stride=64&bands=2")
    names = pool.features["label"]
    counts = {name: sum(names.int2str(label) == name for label in pool["label"]) for name in names.names}
    assert counts == {"north": 8 * 7, "south": 7}  # a raster lower than a tile is one tile high
    assert pool[0]["image"].mode == "L"
    assert pool[len(pool) - 1]["image"].size == (128, 100)
    np.testing.assert_array_equal(np.asarray(pool[1]["image"]), colour[1, :128, 64:192])


def test_other_types_share_one_stretch_and_empty_tiles_are_left_out(tmp_path: Path):
    heights = np.linspace(0, 50, 512 * 512, dtype=np.float32).reshape(1, 512, 512)
    heights[:, :256, :256] = -9999
    scene = write_raster(tmp_path / "h.tif", heights, nodata=-9999)
    pool = open_pool(str(scene))
    assert len(pool) == 3
    means = [np.asarray(row["image"]).mean() for row in pool]
    assert means[0] < means[1] <= means[2]
    with pytest.raises(CurationError, match="none of the 4 tiles of 256 pixels"):
        open_pool(str(write_raster(tmp_path / "none.tif", np.full_like(heights, -9999), nodata=-9999)))


def test_pictures_in_tiff_stay_pictures(tmp_path: Path, colour: np.ndarray):
    write_raster(tmp_path / "plain" / "scan.tif", colour, place=False)
    write_raster(tmp_path / "chips" / "a.tif", colour[:, :64, :64])
    assert open_pool(tmp_path / "plain")[0]["image"].size == (530, 600)
    assert open_pool(tmp_path / "chips").column_names == ["image"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}/a.tif#tile=x", "'tile=x' is none of"),
        ("{}/a.tif#tile=2", "8 pixels or more"),
        ("{}/a.tif#bands=9", "has no band 9; it has 1 to 3"),
        ("{}/cut.tif", "cannot be opened|truncated or damaged"),
        ("{}/*.jpg", "no file is called"),
        ("{}/{{a,c}}.tif", "no file is called .*c.tif"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, colour: np.ndarray, source: str, message: str):
    whole = write_raster(tmp_path / "a.tif", colour).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(CurationError, match=message) as error:
        open_pool(source.format(tmp_path))
    assert "\n" not in str(error.value)


def test_without_rasterio_one_line_says_what_to_install(tmp_path: Path, colour, monkeypatch: pytest.MonkeyPatch):
    scene = write_raster(tmp_path / "a.tif", colour)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(CurationError, match=r"pip install 'curated-ssl\[rasters\]'"):
        open_pool(scene)


def test_a_raster_that_goes_away_is_a_skipped_row_and_no_crash(tmp_path: Path, colour: np.ndarray):
    scene = write_raster(tmp_path / "a.tif", colour)
    pool = open_pool(scene)
    scene.unlink()
    with pytest.raises(OSError, match=r"a\.tif"):
        read_image(stored(pool, 0))


def test_patterns_name_files_as_a_shell_does(tmp_path: Path):
    for name in ("wds-0000.tar", "wds-0001.tar", "wds-0002.tar", "b.parquet"):
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in matching_files(f"{tmp_path}/wds-{{0000..0002}}.tar")]
    assert names == ["wds-0000.tar", "wds-0001.tar", "wds-0002.tar"]
    assert [path.name for path in matching_files(f"{tmp_path}/{{b.parquet,wds-000[12].tar}}")] == [
        "b.parquet",
        *names[1:],
    ]
    with pytest.raises(CurationError, match=r"wds-0003\.tar"):
        matching_files(f"{tmp_path}/wds-{{0001..0003}}.tar")
    assert parse_cut("tile=64&min_valid=0") == TileCut(64, min_valid=0)


def test_parquet_jsonl_and_tar_open_by_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import io
    import json
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for i in range(3):
        pq.write_table(pa.table({"text": [f"row {i}"]}), tmp_path / f"train-0000{i}-of-00003.parquet")
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"text": f"line {i}"}) + "\n")
        with tarfile.open(tmp_path / f"wds-000{i}.tar", "w") as shard:
            entry = tarfile.TarInfo("a.txt")
            entry.size = 1
            shard.addfile(entry, io.BytesIO(b"abc"[i : i + 1]))
    assert open_pool(f"{tmp_path}/train-*.parquet")["text"][:] == ["row 0", "row 1", "row 2"]
    assert open_pool(f"{tmp_path}/[02].jsonl")["text"][:] == ["line 0", "line 2"]
    assert open_pool(f"{tmp_path}/wds-{{0001..0002}}.tar")["text"][:] == ["b", "c"]
