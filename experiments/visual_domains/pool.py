"""The pool of visual domains: pictures, embeddings and grey values once for all seeds; split and draw by seed."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from curation.embedding.embed import embed_pool
from curation.embedding.embedders import Embedder, open_embedder, parse_embedder
from curation.pools.pool import open_pool
from curation.preparation.near_duplicates import near_held_out
from curation.store.embeddings import Embeddings, open_embeddings
from eval.pixel_model import SIDE, grey_pictures
from eval.rarity import NEIGHBOURS, distance_to_pool
from experiments.engine.inputs import locate, require_dim
from experiments.engine.stages import StageRun, fingerprint
from experiments.engine.zipf import zipf_in_turns
from experiments.visual_domains.sources import TILES, encoded, file_of, has_roles, picture_pool, thumbnails
from foundation.errors import CurationError
from foundation.files import digest_json, load_array, load_json, save_array, save_json, write_atomically
from foundation.images import read_image
from foundation.settings import Count, CountOrZero, NonNegative, Range, check
from satellite.tiles import spatial_split

PICTURES, GREY, EMBEDDINGS, THUMBNAILS = "pictures.parquet", "grey.npy", "embeddings", "thumbnails"
TEST, DISTANCE, POOL = "test.npy", "distance.npy", "pool.json"
ROWS, MANUAL_ROWS = "rows.npy", "manual_rows.npy"  # places in the shared pictures: of the pool, of the hand-curated set
# settings that the pictures of all seeds depend on
SHARED = ["domains", "most", "most_held", "side", "embedder", "image_size"]

PartOfAll = Annotated[float, Range(gt=0, lt=1)]  # something is taken, something is left


@dataclass(frozen=True)
class PoolSettings:
    """Section ``science.pool``.

    Attributes:
        domains: names of `experiments.visual_domains.sources.PICTURES`, or "clipart/FOLDER".
        rows: pictures in the pool of one seed.
        zipf: the domains' pictures in the pool fall as rank^-zipf. As many seeds as there are domains are one round:
            its number draws the ranks, and its seeds turn them, so that every domain has every rank once.
        most, most_held: pictures of a domain, and of its held-out part, that are read at all: for time.
        test_rows: held-out pictures of each domain at most.
        test_share: of a domain without a held-out part of its own, held out by the seed: pictures drawn at random, or
            of a raster squares of ground.
        block: side of these squares, pixels.
        margin: pixels between them and any tile of the pool.
        trusted: pictures of each domain in the set that the arm `retrieval` starts from, neither in pool nor in test.
        manual: the domain that is a hand-curated set by itself, whose pictures the arm `manual` takes; "": none.
        side: of the grey pictures that are judged, pixels.
        embedder: what the curation sees, of `curation.embedding.embedders.open_embedder`.
        image_size: that it sees; 0: its own.
        dim: of its embeddings.
    """

    domains: list[str]
    rows: Count
    zipf: NonNegative = 1.5
    most: Count = 3000
    most_held: Count = 500
    test_rows: Count = 100
    test_share: PartOfAll = 0.2
    block: Count = 400
    margin: CountOrZero = 32
    trusted: CountOrZero = 10
    manual: str = ""
    side: Count = SIDE
    embedder: str = "efficientnet_lite0"
    image_size: CountOrZero = 96
    dim: Count = 1280

    def __post_init__(self) -> None:
        check(self, "science.pool")
        if len(set(self.domains)) < max(len(self.domains), 2):
            raise CurationError(f"science.pool.domains is {self.domains}; give two or more different ones")
        for domain in self.domains:
            file_of(domain)
        if self.manual and self.manual not in self.domains:
            raise CurationError(f"science.pool.manual is {self.manual!r}; give one of {', '.join(self.domains)}")
        parse_embedder(self.embedder)

    @property
    def names(self) -> list[str]:
        """The domains in the order of their numbers."""
        return sorted(self.domains)


def input_files(pool: PoolSettings) -> list[Path]:
    """What decides the pool besides its settings. A missing one is left for `prepare` to name: a dry run needs none."""
    files = [file_of(domain, role) for domain in pool.domains for role in ("pool", "test")]
    return [path for path in map(locate, dict.fromkeys(files)) if path.exists()]


def opens(pool: PoolSettings) -> list[Callable[[], object]]:
    """Calls that open what the pool will be made with, each for a moment.

    They raise `CurationError` where pictures of a domain or the embedder are not there.
    """
    asked = [
        (domain, role) for domain in pool.domains for role in (("pool", "test") if has_roles(domain) else ("pool",))
    ]
    pictures = [partial(picture_pool, domain, role) for domain, role in asked]
    return [*pictures, lambda: require_dim(open_embedder(pool.embedder, pool.image_size or None, "cpu"), pool.dim)]


@dataclass(frozen=True)
class Pictures:
    """All pictures, in a folder that every seed shares.

    Attributes:
        folder: holds pictures.parquet, grey.npy, embeddings/ and thumbnails/.
        domain: (n,) number of each picture's domain.
        held: (n,) whether it is held out by its publisher.
        corner: (n, 2) row and column of a tile in its raster; -1 for other pictures.
        grey: (n, side, side) grey values.
    """

    folder: Path
    domain: Int[np.ndarray, "n"]
    held: Bool[np.ndarray, "n"]
    corner: Int[np.ndarray, "n two"]
    grey: UInt8[np.ndarray, "n side side"]

    def embeddings(self, name: str = EMBEDDINGS) -> Embeddings:
        return open_embeddings(str(self.folder / name))


def _stored(pool: PoolSettings) -> Iterator[dict[str, Any]]:
    """One row a picture: as stored, of a raster as PNG."""
    for number, domain in enumerate(pool.names):
        for role in ("pool", "test") if has_roles(domain) else ("pool",):
            found = picture_pool(domain, role)
            most = pool.most if role == "pool" else pool.most_held
            rows = np.sort(np.random.default_rng([number, 71]).permutation(len(found))[:most])
            plain = found.with_format("arrow")
            for row in rows.tolist():
                line = plain[row]
                image = line["image"][0].as_py()
                corner = [line[name][0].as_py() for name in ("row", "col")] if domain == "land" else [-1, -1]
                image = encoded(read_image(image)) if domain == "land" else {"bytes": image["bytes"], "path": None}
                yield {"image": image, "domain": number, "held": role == "test", "row": corner[0], "col": corner[1]}


def open_pictures(pool: PoolSettings, run: StageRun) -> Pictures:
    """Gather, shrink and embed; what was finished before is opened.

    Raises:
        CurationError: a picture that cannot be read, or an embedder of another dimension.
    """
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from filelock import FileLock

    shared = {name: getattr(pool, name) for name in SHARED}
    shared["content"] = [fingerprint(path) for path in input_files(pool)]
    folder = run.folder.parents[1] / f"pictures-{digest_json(shared)[:8]}"  # beside the stages of all seeds
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PICTURES
    with FileLock(folder / ".lock"):  # seeds that run side by side wait for the first
        if not path.exists():
            number = Value("int64")
            features = Features(
                {"image": ImageFeature(), "domain": number, "held": Value("bool"), "row": number, "col": number}
            )
            rows = Dataset.from_list(list(_stored(pool)), features=features)
            write_atomically(path, lambda stream: rows.to_parquet(stream))
        pictures = open_pool(path)
        if not (folder / GREY).exists():
            save_array(folder / GREY, grey_pictures((row["image"] for row in pictures), pool.side))
        device = str(run.speed.get("device", "cpu"))
        network = open_embedder(pool.embedder, pool.image_size or None, device)
        require_dim(network, pool.dim)
        _embed(pictures, network, folder / EMBEDDINGS, run)
        _embed(pictures, thumbnails(), folder / THUMBNAILS, run)
    plain = pictures.with_format(None)
    corner = np.stack([np.array(plain["row"][:]), np.array(plain["col"][:])], axis=1)
    return Pictures(folder, np.array(plain["domain"][:]), np.array(plain["held"][:]), corner, load_array(folder / GREY))


def _embed(pictures: Any, embedder: Embedder, folder: Path, run: StageRun) -> None:
    found = embed_pool(pictures, embedder, folder, n_workers=0, rows_per_shard=2048, progress=run.progress)
    if found.skipped:
        row, reason = next(iter(found.skipped.items()))
        raise CurationError(
            f"picture {row} of {folder.parent / PICTURES} cannot be read ({reason}); get its file again"
        )


def split_domain(
    pictures: Pictures, number: int, pool: PoolSettings, seed: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]:
    """Pictures of a domain that may be in the pool of a seed, and those that are held out."""
    mine = np.flatnonzero(pictures.domain == number)
    if pictures.held[mine].any():
        return mine[~pictures.held[mine]], mine[pictures.held[mine]]
    corner = pictures.corner[mine]
    if (corner < 0).any():
        order = np.random.default_rng([seed, number, 72]).permutation(mine)
        n = max(round(len(mine) * pool.test_share), 1)
        return np.sort(order[n:]), np.sort(order[:n])
    boxes = np.concatenate([corner[:, ::-1], corner[:, ::-1] + TILES.tile], axis=1).astype(np.float64)
    n_folds = round(1 / pool.test_share)  # the seeds go through the folds, then through other draws of them
    split = spatial_split(boxes, pool.block, n_folds, seed % n_folds, pool.margin, seed // n_folds)
    return mine[split.train], mine[split.test]


def unseen(
    pictures: Pictures, held: Int[np.ndarray, "m"], rows: Int[np.ndarray, "n"], progress: bool
) -> Int[np.ndarray, "k"]:
    """Held-out pictures that are no near-duplicate of a pool picture, as the embedder of the curation sees them."""
    x = pictures.embeddings()
    found = near_held_out(x.take(held), x.take(rows), progress=progress)
    return held[found.keep]


def prepare(run: StageRun) -> dict[str, float]:
    """Stage action: the pictures held out by this seed, and ``pool.rows`` of the others as its pool.

    Writes ``embeddings.npy``, ``labels.npy`` (domain of each picture), ``trusted.npy`` and ``manual.npy`` as all
    experiments do; ``rows.npy``, ``test.npy`` and ``manual_rows.npy``, the place of each in the shared pictures;
    ``distance.npy``, of each test picture to the pool under its thumbnail; ``pool.json``.
    """
    pool, seed = PoolSettings(**run.settings), run.seed or 0
    pictures = open_pictures(pool, run)
    rng = np.random.default_rng([seed, 73])
    free, held, trusted = [], [], []
    for number in range(len(pool.names)):
        train, test = split_domain(pictures, number, pool, seed)
        train = rng.permutation(train)
        trusted.append(train[: pool.trusted])
        free.append(train[pool.trusted :])
        held.append(rng.permutation(test))
    round_, turn = divmod(seed, len(pool.names))
    ranks = np.random.default_rng([round_, 74])
    sizes = zipf_in_turns(np.array([len(part) for part in free]), pool.rows, pool.zipf, turn, ranks)
    rows = np.sort(np.concatenate([part[:size] for part, size in zip(free, sizes, strict=True)]))
    manual = np.sort(free[pool.names.index(pool.manual)]) if pool.manual else rows[:0]
    new = unseen(pictures, np.concatenate(held), np.union1d(rows, manual), run.progress)
    left = [part[np.isin(part, new)] for part in held]
    for name, part in zip(pool.names, left, strict=True):
        if not len(part):
            raise CurationError(f"the pool holds every held-out picture of {name!r}; leave the domain out")
    test = np.concatenate([np.sort(part[: pool.test_rows]) for part in left])
    x, small = pictures.embeddings(), pictures.embeddings(THUMBNAILS)
    save_array(run.folder / "embeddings.npy", np.asarray(x.take(rows)))
    save_array(run.folder / "labels.npy", pictures.domain[rows])
    if pool.trusted:
        save_array(run.folder / "trusted.npy", np.asarray(x.take(np.sort(np.concatenate(trusted)))))
    distance = distance_to_pool(small.take(test), small.take(rows), min(NEIGHBOURS, len(rows)))
    save_array(run.folder / DISTANCE, distance)
    save_array(run.folder / ROWS, rows)
    if pool.manual:
        save_array(run.folder / "manual.npy", pictures.domain[manual])
        save_array(run.folder / MANUAL_ROWS, manual)
    save_array(run.folder / TEST, test)
    about = {
        "pictures": os.path.relpath(pictures.folder, run.folder),
        "rows": len(rows),
        "rows_of": dict(zip(pool.names, map(int, sizes), strict=True)),
        "test_of": {name: min(len(part), pool.test_rows) for name, part in zip(pool.names, left, strict=True)},
        "held_of": {name: len(part) for name, part in zip(pool.names, held, strict=True)},
        "in_pool_of": {name: len(part) - len(kept) for name, part, kept in zip(pool.names, held, left, strict=True)},
        "trusted": sum(len(part) for part in trusted),
        "manual": pool.manual,
    }
    save_json(run.folder / POOL, about)
    return {"samples": float(len(rows))}


def pictures_of(prepared: Path) -> Path:
    """Folder of the shared pictures that a folder of `prepare` was drawn from."""
    return (prepared / load_json(prepared / POOL)["pictures"]).resolve()


def pictures(prepared: Path) -> Any:
    """Pool of a folder of `prepare`, for galleries and preparation."""
    return open_pool(pictures_of(prepared) / PICTURES).select(load_array(prepared / ROWS))
