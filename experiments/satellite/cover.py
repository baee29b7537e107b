"""Land cover: the class of each tile from heights and colours, pools that are unequal over it, and even tests."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from eval.canopy import CanopySettings, canopy_metrics, pool
from experiments.engine.zipf import rank_sizes
from foundation.errors import CurationError
from satellite.data import TileReader

COVERS = ("forest", "single trees", "green ground", "bright ground", "dark ground")
TALL, FOREST, TREES, GREEN = 5.0, 0.5, 0.1, 0.4  # metres; share of tall pixels; share of the tiles that are green
TEST_COVER = "test_cover.npy"
ENDS = 2  # how many classes are "frequent", and how many "rare"


def cover_signs(
    colour: Float[np.ndarray, "three h w"], heights: Float[np.ndarray, "h w"]
) -> tuple[float, float, float]:
    """Share of the known pixels above `TALL` metres, greenness, and brightness of a tile; heights: NaN not known."""
    known = heights[np.isfinite(heights)]
    red, green, blue = colour
    tall = float((known > TALL).mean()) if len(known) else 0.0
    return tall, float((2 * green - red - blue).mean()), float((red + green + blue).mean())


def cover_classes(signs: Iterable[tuple[float, float, float]]) -> Int[np.ndarray, "n"]:
    """Index of `COVERS` for each tile, from its `cover_signs`.

    Without trees, the greener 40 % of all tiles are grass and the rest is parted at the median brightness: roofs,
    streets and bare soil above, fields, water and shade below. So the borders depend on the tiles that are given.
    """
    tall, greenness, brightness = np.array(list(signs), np.float64).T
    ground = np.where(brightness > np.median(brightness), 3, 4)
    ground = np.where(greenness > np.quantile(greenness, 1 - GREEN), 2, ground)
    return np.where(tall > FOREST, 0, np.where(tall > TREES, 1, ground))


def draw_unequal(
    tiles: Int[np.ndarray, "n"], classes: Int[np.ndarray, "n"], size: int, exponent: float, seed: int
) -> Int[np.ndarray, "m"]:
    """``size`` of the tiles, classes of sizes that fall as rank^-exponent, sorted.

    The head class goes through the classes with the seeds; the order of the others is drawn.

    Args:
        tiles: to draw from.
        classes: of each of them, indices of `COVERS`.

    Raises:
        CurationError: a class has fewer tiles than its rank takes.
    """
    rng = np.random.default_rng([seed, 57])
    head = seed % len(COVERS)
    ranked = [head, *rng.permutation([c for c in range(len(COVERS)) if c != head]).tolist()]
    drawn = []
    for kind, wanted in zip(ranked, rank_sizes(len(COVERS), size, exponent), strict=True):
        mine = tiles[classes == kind]
        if len(mine) < wanted:
            raise CurationError(
                f"science.pool.rows={size} with zipf={exponent:g} takes {wanted} tiles of {COVERS[kind]}, but the "
                f"train side of seed {seed} has {len(mine)}; lower rows, zipf or stride"
            )
        drawn.append(rng.choice(mine, wanted, replace=False))
    return np.sort(np.concatenate(drawn))


def tile_covers(reader: TileReader, tiles: Int[np.ndarray, "n"]) -> Int[np.ndarray, "all"]:
    """Class of every tile of the reader's table; -1 for those that are not among ``tiles``."""
    found = np.full(len(reader), -1)
    read = (reader.read(int(tile)) for tile in tiles)
    found[tiles] = cover_classes(cover_signs(colour, heights) for colour, _, heights in read)
    return found


def overlap_of(seen: Float[np.ndarray, "n four"], test: Float[np.ndarray, "m four"], margin: float) -> dict[str, float]:
    """``least_gap``: metres between the nearest tile that was seen and a test tile, in the axis where they are apart.

    Raises:
        CurationError: test tiles lie nearer than the margin to ground that was seen; they are counted.
    """
    gaps = []
    for west, south, east, north in test:
        x = np.maximum(seen[:, 0] - east, west - seen[:, 2])
        y = np.maximum(seen[:, 1] - north, south - seen[:, 3])
        gaps.append(float(np.maximum(x, y).min()))
    near = sum(gap < margin - 1e-6 * max(margin, 1.0) for gap in gaps)
    if near:
        raise CurationError(
            f"{near} of {len(test)} test tiles share ground with pool or labels, or lie nearer than {margin:g} m; "
            "set them apart in space"
        )
    return {"least_gap": min(gaps)}


def even_metrics(
    predicted: Float[np.ndarray, "n s s"],
    truth: Float[np.ndarray, "n s s"],
    classes: Int[np.ndarray, "n"],
    frequency: Sequence[int],
    settings: CanopySettings,
) -> dict[str, float]:
    """Errors on even ground: every class of land cover weighs the same, however many test tiles it has.

    Args:
        predicted, truth: metres; NaN is not known and not judged.
        classes: of the tiles, indices of `COVERS`.
        frequency: tiles of each class in the pool: the `ENDS` largest are the frequent, the `ENDS` smallest the rare.
        settings: of block-R2.

    Returns:
        ``even_r2`` and ``even_block_r2``: 1 - mean squared error over variance, classes of equal weight in both;
        ``even_mae``, ``even_rmse``; ``rare_mae``, ``frequent_mae``; for class c ``mae_c``, ``r2_c``, ``block_r2_c``
        (about its own mean: near or below 0 where a class is flat), and ``even_own_r2``, the mean of the ``r2_c``.

    Raises:
        CurationError: a class has no test tile.
    """
    found: dict[str, float] = {}
    moments: dict[str, list[tuple[float, float, float]]] = {"r2": [], "block_r2": []}  # of e^2, t, t^2
    for kind, name in enumerate(COVERS):
        mine = np.flatnonzero(classes == kind)
        if not len(mine):
            raise CurationError(f"no test tile is {name}; enlarge science.pool.block or take another seed")
        plain = canopy_metrics(predicted[mine], truth[mine], settings)
        for measure in ("mae", "rmse", "r2", "block_r2"):
            found[f"{measure}_{kind}"] = plain[measure].value
        cells: list[list[np.ndarray]] = [[], []]
        for p, t in zip(predicted[mine].astype(np.float64), truth[mine].astype(np.float64), strict=True):
            known = np.isfinite(t)
            for place, values in enumerate((p, t)):
                cells[place].append(pool(values, known, settings.pool_pixels, settings.border, settings.min_valid))
        known = np.isfinite(truth[mine])
        pairs = (predicted[mine][known], truth[mine][known]), tuple(np.concatenate(part) for part in cells)
        for measure, (p, t) in zip(moments, pairs, strict=True):
            p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
            moments[measure].append((float(((p - t) ** 2).mean()), float(t.mean()), float((t**2).mean())))
    for measure, of_class in moments.items():
        squares, mean, power = np.array(of_class).mean(0)
        found[f"even_{measure}"] = float(1 - squares / (power - mean**2))
    order = np.argsort(-np.asarray(frequency), kind="stable")
    mae = np.array([found[f"mae_{kind}"] for kind in range(len(COVERS))])
    found["even_mae"] = float(mae.mean())
    found["even_rmse"] = float(np.mean([found[f"rmse_{kind}"] for kind in range(len(COVERS))]))
    found["even_own_r2"] = float(np.mean([found[f"r2_{kind}"] for kind in range(len(COVERS))]))
    found["frequent_mae"], found["rare_mae"] = float(mae[order[:ENDS]].mean()), float(mae[order[-ENDS:]].mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}
