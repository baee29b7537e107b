"""The stage prepare of the satellite experiment: tiles of a scene, apart in space, and the embeddings of the pool.

Files of the stage: ``tiles.parquet`` (all tiles), ``pool_rows.npy``, ``labelled.npy`` and ``test.npy`` (rows of it),
``pool.parquet/`` (shards of pictures and their cover class), ``embeddings/``, ``labels.npy`` (class of canopy cover of
each row of the pool, -1: not known; only to describe subsets), ``pool.json`` (counts, statistics). With ``zipf`` the
labels are classes of land cover; ``test.parquet/`` and ``test_embeddings/`` hold the test tiles, and ``test_cover.npy``
their classes (see `experiments.satellite.cover`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, Value
from datasets import Image as ImageFeature
from jaxtyping import Int

from curation.embedding.embedders import open_embedder, parse_embedder
from curation.pools.pool import open_pool
from curation.preparation.near_duplicates import near_held_out
from experiments.engine.inputs import DATA, locate, require_dim
from experiments.engine.shards import embed_shards, once, own_device, read_column, write_shards
from experiments.engine.stages import StageRun
from experiments.satellite.cover import TEST_COVER, draw_unequal, overlap_of, tile_covers
from experiments.satellite.scenes import forest_scene, save_scene
from foundation.errors import CurationError
from foundation.files import save_array, save_json
from foundation.settings import Count, NonNegative, Positive, check
from satellite.data import TileReader
from satellite.pretraining import tile_png
from satellite.tiles import Split, TileSettings, cut_tiles, footprints, load_tiles, save_tiles, spatial_split

SYNTHETIC = "synthetic"
TILES, POOL, TEST_POOL, COUNTS = "tiles.parquet", "pool.parquet", "test.parquet", "pool.json"
COVER_CLASSES = (0.01, 0.1, 0.3, 0.6)  # borders of the share of pixels at least CANOPY metres high
CANOPY = 5.0
STATISTICS_TILES = 65_536  # of the pool, at most, that means and deviations of the bands are taken of
LEAST_LABELLED = 0.5  # share of pixels with a height, of a tile that a head learns from or is tested on


@dataclass(frozen=True)
class PoolSettings:
    """Section ``science.pool``.

    Attributes:
        image, heights: rasters, in the folder of CURATED_SSL_DATA; "synthetic" generates a scene for each seed.
        scene: rows and columns of a generated scene.
        tile, stride: pixels; tiles of the pool overlap, those of the test do not.
        resolution: metres per pixel.
        units: of the heights.
        rows: of the pool, drawn from the train side.
        labelled: tiles that the head learns from, drawn from the train side, the same for every arm.
        block, n_folds, margin: metres; see `satellite.tiles.spatial_split`. Seed s tests fold s modulo n_folds.
        embedder, image_size, dim: see `curation.embedding.embedders.open_embedder`.
        zipf: exponent of the sizes of the classes of land cover in the pool, known from heights and colours; which is
            at the head goes in turns over the seeds, labelled tiles are even over them, and the test weighs them
            alike. 0: the ground as it is.
    """

    image: str = SYNTHETIC
    heights: str = ""
    scene: tuple[Count, Count] = (1024, 1024)
    tile: Count = 64
    stride: Count = 32
    resolution: Positive = 0.5
    units: str = "m"
    rows: Count = 500
    labelled: Count = 200
    block: Positive = 150.0
    n_folds: Count = 5
    margin: NonNegative = 16.0
    embedder: str = "efficientnet_lite0"
    image_size: Count = 64
    dim: Count = 1280
    zipf: NonNegative = 0.0

    def __post_init__(self) -> None:
        check(self, "science.pool")
        parse_embedder(self.embedder)


def input_files(pool: PoolSettings) -> Sequence[Path]:
    """What decides the pool besides its settings. A missing one is left for `prepare` to name: a dry run needs none."""
    names = [] if pool.image == SYNTHETIC else [pool.image, pool.heights]
    return [path for path in map(locate, names) if path.exists()]


def opens(pool: PoolSettings) -> list[Callable[[], object]]:
    """Calls that open what the pool will be made with, each for a moment.

    They raise `CurationError` where a raster or the embedder is not there.
    """
    stored = [] if pool.image == SYNTHETIC else [partial(_stored_rasters, pool)]
    return [*stored, lambda: require_dim(open_embedder(pool.embedder, pool.image_size or None, "cpu"), pool.dim)]


def rasters(run: StageRun, pool: PoolSettings) -> tuple[Path, Path]:
    """Colour and heights."""
    if pool.image == SYNTHETIC:
        scene = forest_scene(pool.scene[0], pool.scene[1], pool.resolution, run.seed or 0)
        return save_scene(scene, run.folder, pool.resolution)
    return _stored_rasters(pool)


def _stored_rasters(pool: PoolSettings) -> tuple[Path, Path]:
    found = locate(pool.image), locate(pool.heights)
    for path in found:
        if not path.exists():
            raise CurationError(f"{path} is not there; set {DATA} to the folder of {pool.image} and {pool.heights}")
    return found


def split_of(boxes: np.ndarray, pool: PoolSettings, seed: int) -> Split:
    """Train and test tiles of a seed: the seeds go through the folds, then through other draws of the folds."""
    fold, draw = seed % pool.n_folds, seed // pool.n_folds
    return spatial_split(boxes, pool.block, pool.n_folds, fold, pool.margin, draw)


def prepare(run: StageRun) -> dict[str, float]:
    """Stage action: cut tiles, set test ground apart, draw pool and labelled tiles, embed the pool."""
    pool, seed = PoolSettings(**run.settings), run.seed or 0
    rng = np.random.default_rng([seed, 51])
    image, heights = rasters(run, pool)
    # least share 0: tiles without heights are as much of the pool as others
    settings = TileSettings(pool.tile, pool.stride, 0.0, pool.resolution, "", (1, 2, 3), pool.units)
    tiles = run.folder / TILES  # of an interrupted run, or of another process: of the same inputs
    once(tiles, lambda: save_tiles(cut_tiles([image], [heights], settings, run.progress), tiles, settings))
    table, _ = load_tiles(tiles)
    split = split_of(footprints(table), pool, seed)
    column = {name: table[name].to_numpy() for name in ("row", "col", "valid", "labelled")}
    whole = column["valid"] >= LEAST_LABELLED
    known = whole & (column["labelled"] >= LEAST_LABELLED)
    apart = (column["row"] % pool.tile == 0) & (column["col"] % pool.tile == 0)
    reader = TileReader(table, settings)
    test = split.test[(known & apart)[split.test]]
    land = tile_covers(reader, np.flatnonzero(known)) if pool.zipf else None
    if land is None:
        rows = _drawn(split.train[whole[split.train]], pool.rows, "rows", rng)
        labelled = _drawn(split.train[known[split.train]], pool.labelled, "labelled", rng)
    else:
        ground = split.train[known[split.train]]
        rows = draw_unequal(ground, land[ground], pool.rows, pool.zipf, seed)
        labelled = draw_unequal(ground, land[ground], pool.labelled, 0.0, seed + 1)
    for name, mine in (("pool_rows", rows), ("labelled", labelled), ("test", test)):
        save_array(run.folder / f"{name}.npy", mine)
    _write_pictures(run.folder / POOL, reader, rows, land, run.progress)
    classes = read_column(run.folder / POOL, "cover")
    save_array(run.folder / "labels.npy", classes)
    embedder = open_embedder(
        pool.embedder, pool.image_size or None, device=own_device(str(run.speed.get("device", "cpu")))
    )
    require_dim(embedder, pool.dim)
    embed_shards(open_pool(run.folder / POOL), embedder, run.folder / "embeddings", progress=run.progress)
    looked_at = rows
    if len(rows) > STATISTICS_TILES:
        looked_at = np.sort(np.random.default_rng([seed, 52]).choice(rows, STATISTICS_TILES, replace=False))
    counts = {**_counts(table, classes, rows, labelled, test), "statistics": asdict(reader.statistics(looked_at))}
    if land is not None:
        save_array(run.folder / TEST_COVER, land[test])
        boxes = footprints(table)
        counts |= overlap_of(boxes[np.union1d(rows, labelled)], boxes[test], pool.margin)
        _write_pictures(run.folder / TEST_POOL, reader, test, land, run.progress)
        embed_shards(open_pool(run.folder / TEST_POOL), embedder, run.folder / "test_embeddings", progress=run.progress)
        near = near_held_out(run.folder / "embeddings", run.folder / "test_embeddings", progress=run.progress)
        counts |= {"test_cover": np.bincount(land[test]).tolist(), "near_test": len(near.dropped)}
    save_json(run.folder / COUNTS, counts)
    return {"samples": float(len(rows))}


def _write_pictures(
    folder: Path,
    reader: TileReader,
    tiles: Int[np.ndarray, "n"],
    land: Int[np.ndarray, "all"] | None,
    progress: bool,
) -> None:
    """Shards of the tiles' pictures with their class: of land cover where it is given, else of canopy cover."""

    def row(i: int) -> dict[str, Any]:
        tile = int(tiles[i])
        values, _valid, known = reader.read(tile)
        cover = cover_class(known) if land is None else int(land[tile])
        return {"image": {"bytes": tile_png(reader, tile, values), "path": None}, "cover": cover}

    features = Features({"image": ImageFeature(), "cover": Value("int64")})
    write_shards(folder, len(tiles), row, features, progress=progress)


def cover_class(heights: np.ndarray) -> int:
    """Index of the class of canopy cover; -1 where less than a fifth is known."""
    known = np.isfinite(heights)
    if known.mean() < 0.2:
        return -1
    return int(np.searchsorted(COVER_CLASSES, (heights[known] >= CANOPY).mean(), side="right"))


def _drawn(rows: Int[np.ndarray, "n"], size: int, name: str, rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    if len(rows) < size:
        raise CurationError(f"science.pool.{name} is {size}, but the train side has {len(rows)} such tiles; lower it")
    return np.sort(rng.choice(rows, size, replace=False))


def _counts(table: pa.Table, classes: np.ndarray, rows: np.ndarray, labelled: np.ndarray, test: np.ndarray) -> Any:
    cover = np.bincount(classes[classes >= 0], minlength=len(COVER_CLASSES) + 1)
    sizes = {"tiles": len(table), "rows": len(rows), "labelled": len(labelled), "test": len(test)}
    return {**sizes, "cover": cover.tolist(), "not_known": int((classes < 0).sum())}


def pictures(prepared: Path) -> Any:
    """Pool of a folder of `prepare`, for galleries and preparation."""
    return open_pool(prepared / POOL)
