"""The stage prepare of the image experiment: a long-tailed pool with near-duplicates and junk, and its embeddings.

Files of the stage: ``pool.parquet/`` (shards of image, label, kind), ``embeddings/``, ``labels.npy`` (-1: junk),
``trusted.npy``, ``bank.parquet/`` and ``test.parquet/`` (the same; never in the pool), ``pool.json`` (counts). Of a
pool without classes the labels are all -1 and ``labels.npy`` is not there; bank and test come from ``test``, or are not
there either, and a suite of evaluations judges.
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Value
from datasets import Image as ImageFeature
from jaxtyping import Int
from PIL import Image

from curation.embedding.embedders import open_embedder, parse_embedder
from curation.pools.pool import open_pool
from curation.store.embeddings import open_embeddings
from experiments.engine.inputs import DATA, locate, require_dim
from experiments.engine.processes import placed
from experiments.engine.shards import embed_shards, own_device, write_shards
from experiments.engine.stages import StageRun
from experiments.web_images.faults import junk, near_duplicate
from foundation.errors import CurationError
from foundation.files import save_array, save_json
from foundation.images import picture_file, read_image
from foundation.settings import CONFIGS, BelowOne, Count, CountOrZero, NonNegative, check
from pretrain.settings import PretrainSettings, load_settings, settings_from

POOL, BANK, TEST, COUNTS = "pool.parquet", "bank.parquet", "test.parquet", "pool.json"
KINDS = ("image", "near_duplicate", "junk")
SSL = "ssl"


@dataclass(frozen=True)
class PoolSettings:
    """Section ``science.pool``.

    Attributes:
        source: images (`curation.pools.pool.open_pool`), in this project or in the folder of CURATED_SSL_DATA.
        test: labelled images to test on; "" takes them from the source.
        labelled: the source has classes. Without, it is taken as it is, probes are fitted on ``test`` as well, and
            where that is "" ``science.evaluate.suite`` must say what is measured.
        top_level: labels like "animals/birds" are cut at the first "/".
        test_rows, bank_rows: images of each class to test on, and to fit probes on: a balanced labelled bank. Images
            of one ``duplicate_group`` (a column of the source, if it has it) never lie on both sides.
        least: classes with fewer images left for the pool are left out.
        largest, imbalance: images of the most frequent class, and how many times as many as the rarest has, classes
            between on an exponential curve; classes take their ranks in turns over the seeds. 0: the source as it is.
        bursts: share of the pool that are near-duplicates of images of the most frequent third of the classes.
        copies: least and greatest number of near-duplicates of one image.
        junk: share of the pool that shows nothing.
        rows: of the pool; 0 counts them from largest, imbalance and classes.
        classes: of the source, for that count.
        embedder: of `curation.embedding.embedders`; "ssl" is the model of ``ssl`` trained on the pool itself.
        image_size: that the embedder sees.
        dim: of its embeddings.
        ssl: settings of `pretrain`, for the embedder "ssl"; {} takes configs/pretrain/conv_cpu.yaml.
        side: of junk pictures, pixels.
    """

    source: str
    test: str = ""
    labelled: bool = True
    top_level: bool = False
    test_rows: Count = 100
    bank_rows: Count = 100
    least: CountOrZero = 10
    largest: CountOrZero = 1000
    imbalance: NonNegative = 100.0
    bursts: BelowOne = 0.2
    copies: list[CountOrZero] = field(default_factory=lambda: [5, 20])
    junk: BelowOne = 0.2
    rows: CountOrZero = 0
    classes: Count = 10
    embedder: str = "efficientnet_lite0"
    image_size: CountOrZero = 96
    dim: Count = 1280
    ssl: dict[str, Any] = field(default_factory=dict)
    side: Count = 32

    def __post_init__(self) -> None:
        check(self, "science.pool")
        if self.bursts + self.junk >= 1:
            raise CurationError("science.pool.bursts and junk are shares of the pool; together they must be below 1")
        if not self.largest and not self.rows:
            raise CurationError("science.pool.rows must say about how many rows the source has where largest is 0")
        if not self.labelled and (self.largest or self.bursts):
            raise CurationError(
                "science.pool.labelled is false: without classes none can be made frequent; set science.pool.largest=0 "
                "and science.pool.bursts=0"
            )
        if self.largest and self.imbalance < 1:
            raise CurationError(f"science.pool.imbalance is {self.imbalance}; it must be at least 1")
        if self.embedder != SSL:
            parse_embedder(self.embedder)

    def science(self) -> dict[str, Any]:
        """All that decides the pool: every field, and the whole recipe of an embedder that is trained on it."""
        return asdict(self) | ({"ssl": ssl_recipe(self).science()} if self.embedder == SSL else {})


def ssl_recipe(pool: PoolSettings) -> PretrainSettings:
    """Recipe of the model that embeds the pool where ``embedder`` is "ssl"."""
    return settings_from(pool.ssl) if pool.ssl else load_settings(CONFIGS / "pretrain/conv_cpu.yaml")


def class_sizes(pool: PoolSettings, n_classes: int) -> Int[np.ndarray, "c"]:
    """Images of the class of each rank, the most frequent first (Cui et al. 2019: an exponential curve)."""
    ranks = np.arange(n_classes) / max(n_classes - 1, 1)
    return np.maximum(np.rint(pool.largest * pool.imbalance**-ranks), 1).astype(np.int64)


def pool_rows(pool: PoolSettings) -> float:
    """Rows of the pool, counted or as given."""
    if pool.rows:
        return float(pool.rows)
    return float(class_sizes(pool, pool.classes).sum() / (1 - pool.bursts - pool.junk))


def input_files(pool: PoolSettings) -> list[Path]:
    """What decides the pool besides its settings. A missing one is left for `prepare` to name: a dry run needs none."""
    paths = [locate(source) for source in (pool.source, pool.test) if source]
    return [path for path in paths if path.exists()]


def opens(pool: PoolSettings) -> list[Callable[[], object]]:
    """Calls that open what the pool will be made with, each for a moment.

    They raise `CurationError` where the source, the test images or the embedder is not there, or has no labels.
    """
    found: list[Callable[[], object]] = [partial(open_images, pool.source)]
    if pool.labelled:
        found = [partial(open_source, pool.source, pool.top_level)]
    if pool.test:
        found.append(partial(open_source, pool.test, pool.top_level))
    if pool.embedder != SSL:
        found.append(lambda: require_dim(open_embedder(pool.embedder, pool.image_size or None, "cpu"), pool.dim))
    return found


@dataclass
class Source:
    """Labelled images: stored bytes, class, and group of near-duplicates of each."""

    images: Any
    labels: Int[np.ndarray, "n"]
    groups: Int[np.ndarray, "n"]
    names: list[str]

    def image(self, row: int) -> Image.Image:
        return read_image(self.images[int(row)]["image"][0].as_py())


def open_images(source: str) -> Any:
    """The pool of a source.

    Raises:
        CurationError: it is not there.
    """
    path = locate(source)
    if not path.exists():
        raise CurationError(
            f"science.pool.source {source!r} is not there; set {DATA} to the folder that it lies in, or "
            "science.pool.source to labelled images (a folder with a sub-folder for each class, or parquet)"
        )
    return open_pool(path)


def open_source(source: str, top_level: bool) -> Source:
    """Open labelled images.

    Raises:
        CurationError: they are not there, or have no labels.
    """
    opened = open_images(source)
    if "label" not in opened.column_names:
        raise CurationError(
            f"{locate(source)} has no column label; the experiment needs classes to test on, or "
            "science.pool.labelled=false and science.evaluate.suite"
        )
    feature = opened.features["label"]
    plain = opened.with_format(None)
    labels = np.array(plain["label"][:])
    names = list(getattr(feature, "names", None) or [str(i) for i in range(int(labels.max()) + 1)])
    if top_level:
        tops = sorted({name.split("/")[0] for name in names})
        labels = np.array([tops.index(names[label].split("/")[0]) for label in labels])
        names = tops
    groups = np.arange(len(labels))
    if "duplicate_group" in opened.column_names:
        groups = np.unique(np.array(plain["duplicate_group"][:]), return_inverse=True)[1]
    return Source(opened.with_format("arrow"), labels, groups, names)


def held_out(source: Source, per_class: int, rng: np.random.Generator, free: np.ndarray) -> Int[np.ndarray, "m"]:
    """``per_class`` free rows of every class, whole groups at a time; then these groups are free no longer."""
    found: list[int] = []
    for label in range(len(source.names)):
        mine = rng.permutation(np.flatnonzero((source.labels == label) & free))
        seen: set[int] = set()
        for row in mine:
            if len(seen) == per_class:
                break
            if source.groups[row] not in seen:  # one of each group, so that near-duplicates do not weigh twice
                seen.add(int(source.groups[row]))
                found.append(int(row))
    free &= ~np.isin(source.groups, source.groups[found])
    return np.array(found, dtype=np.int64)


def prepare(run: StageRun) -> dict[str, float]:
    """Stage action: draw the pool of this seed, spoil it as the web does, embed it."""
    pool, seed = PoolSettings(**run.settings), run.seed or 0
    rng = np.random.default_rng([seed, 41])
    if not pool.labelled:
        return _prepare_unlabelled(run, pool, rng)
    source = open_source(pool.source, pool.top_level)
    free = np.ones(len(source.labels), dtype=bool)
    other = open_source(pool.test, pool.top_level) if pool.test else source
    # the same test images for every seed where they are given; else another draw for each
    test_rng = np.random.default_rng(0) if pool.test else rng
    test = held_out(other, pool.test_rows, test_rng, np.ones(len(other.labels), bool) if pool.test else free)
    bank = held_out(source, pool.bank_rows, rng, free)
    rows, kept = long_tail(source, pool, free, seed, rng)
    renamed = np.full(len(source.names), -1)
    renamed[kept] = np.arange(len(kept))

    share, clean = 1 - pool.bursts - pool.junk, renamed[source.labels[rows]]
    # what is made here waits in a file; pictures of the source are read when their shard is written
    made = _Made(run.folder)
    copied = _bursts(source, rows, clean, round(len(rows) * pool.bursts / share), pool, rng, made)
    n_copies, n_junk = len(made), round(len(rows) * pool.junk / share)
    for _ in range(n_junk):
        made.append(_png(junk(pool.side, rng)))
    labels = np.concatenate([clean, copied, np.full(n_junk, -1)])
    kinds = np.repeat([0, 1, 2], [len(rows), n_copies, n_junk])
    order = rng.permutation(len(labels))  # what is spoiled must not be told by its place
    labels, kinds = labels[order], kinds[order]

    def picture(place: int) -> bytes:
        return _png(source.image(rows[place])) if place < len(rows) else made[place - len(rows)]

    folder = run.folder
    _write(folder / POOL, lambda i: picture(int(order[i])), labels, kinds, run.progress)
    for name, mine, origin in ((BANK, bank, source), (TEST, test, other)):
        inside = mine[renamed[origin.labels[mine]] >= 0]
        answers = renamed[origin.labels[inside]]
        _write(folder / name, partial(_stored, origin, inside), answers, np.zeros(len(inside), int), run.progress)
    save_array(folder / "labels.npy", labels)
    embed(run, pool, seed)
    counts = np.bincount(labels[kinds == 0], minlength=len(kept))
    save_json(
        folder / COUNTS,
        {
            "classes": [source.names[label] for label in kept],
            "images": counts.tolist(),
            "kinds": {name: int((kinds == i).sum()) for i, name in enumerate(KINDS)},
            "rows": len(labels),
        },
    )
    return {"samples": float(len(labels))}


def _prepare_unlabelled(run: StageRun, pool: PoolSettings, rng: np.random.Generator) -> dict[str, float]:
    """`prepare` of a pool without classes: the source as it is, with junk."""
    images = open_images(pool.source).with_format("arrow")
    n_junk = round(len(images) * pool.junk / (1 - pool.junk))
    made = _Made(run.folder)
    for _ in range(n_junk):
        made.append(_png(junk(pool.side, rng)))
    order = rng.permutation(len(images) + n_junk)
    kinds = np.where(order < len(images), 0, 2)

    def picture(i: int) -> bytes:
        place = int(order[i])
        if place >= len(images):
            return made[place - len(images)]
        stored = images[place]["image"][0].as_py()
        if n_junk:  # which must not be told by its format
            return _png(read_image(stored))
        # as it came: what cannot be read is skipped by the embedding and counted by the training
        return bytes(picture_file(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"])

    _write(run.folder / POOL, picture, np.full(len(order), -1), kinds, run.progress)
    names: list[str] = []
    if pool.test:
        other = open_source(pool.test, pool.top_level)
        names, free = other.names, np.ones(len(other.labels), bool)
        drawn = np.random.default_rng(0)
        for name, per_class in ((TEST, pool.test_rows), (BANK, pool.bank_rows)):
            mine = held_out(other, per_class, drawn, free)
            kind = np.zeros(len(mine), int)
            _write(run.folder / name, partial(_stored, other, mine), other.labels[mine], kind, run.progress)
    embed(run, pool, run.seed or 0)
    counts = {name: int((kinds == i).sum()) for i, name in enumerate(KINDS)}
    save_json(run.folder / COUNTS, {"classes": names, "images": [], "kinds": counts, "rows": len(order)})
    return {"samples": float(len(order))}


class _Made:
    """Pictures that are made before their place in the pool is known, in a file of this process without a name."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with this process
        self._ends = [0]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, picture: bytes) -> None:
        self._file.write(picture)
        self._ends.append(self._ends[-1] + len(picture))

    def __getitem__(self, i: int) -> bytes:
        self._file.seek(self._ends[i])
        return self._file.read(self._ends[i + 1] - self._ends[i])


def long_tail(
    source: Source, pool: PoolSettings, free: np.ndarray, seed: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "c"]]:
    """Rows of the pool, and the classes that it has."""
    by_class = [np.flatnonzero((source.labels == label) & free) for label in range(len(source.names))]
    kept = np.array([label for label, mine in enumerate(by_class) if len(mine) >= pool.least], dtype=np.int64)
    if len(kept) < 2:
        raise CurationError(
            f"{len(kept)} class(es) of {pool.source} have {pool.least} images besides {pool.test_rows} to test on and "
            f"{pool.bank_rows} for probes; lower these"
        )
    if not pool.largest:
        return np.concatenate([by_class[label] for label in kept]), kept
    sizes = class_sizes(pool, len(kept))
    # class difficulty would hide the effect: over the seeds every class is frequent as often as rare
    ranks = np.roll(np.random.default_rng(0).permutation(len(kept)), seed * max(len(kept) // 5, 1))
    drawn = []
    for label, rank in zip(kept, ranks, strict=True):
        mine = by_class[label]
        if len(mine) < sizes[rank]:
            raise CurationError(f"class {source.names[label]} has {len(mine)} images, {sizes[rank]} are asked for")
        drawn.append(rng.permutation(mine)[: sizes[rank]])
    return np.concatenate(drawn), kept


def _bursts(
    source: Source,
    rows: Int[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    n: int,
    pool: PoolSettings,
    rng: np.random.Generator,
    made: _Made,
) -> Int[np.ndarray, "m"]:
    """Append ``n`` near-duplicates of images of the most frequent third of the classes; their labels."""
    counts = np.bincount(labels)
    frequent = np.argsort(-counts, kind="stable")[: max(len(counts) // 3, 1)]
    popular = rng.permutation(np.flatnonzero(np.isin(labels, frequent)))
    originals: list[int] = []
    which = 0
    while len(made) < n:
        original = int(popular[which % len(popular)])
        image = source.image(rows[original])
        which += 1
        for _ in range(min(int(rng.integers(pool.copies[0], pool.copies[1] + 1)), n - len(made))):
            made.append(_png(near_duplicate(image, rng)))
            originals.append(original)
    return labels[np.array(originals, dtype=np.int64)]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _stored(source: Source, rows: Int[np.ndarray, "n"], i: int) -> bytes:
    return _png(source.image(rows[i]))


def _write(
    path: Path,
    picture: Callable[[int], bytes],
    labels: Int[np.ndarray, "n"],
    kinds: Int[np.ndarray, "n"],
    progress: bool,
) -> None:
    features = Features({"image": ImageFeature(), "label": Value("int64"), "kind": Value("int64")})

    def row(i: int) -> dict[str, Any]:
        return {"image": {"bytes": picture(i), "path": None}, "label": int(labels[i]), "kind": int(kinds[i])}

    write_shards(path, len(labels), row, features, progress=progress)


def embed(run: StageRun, pool: PoolSettings, seed: int) -> None:
    """``embeddings/`` of the pool and ``trusted.npy`` of five bank images of each class."""
    name = pool.embedder
    if name == SSL:
        from pretrain.train import pretrain

        recipe = ssl_recipe(pool)
        recipe = replace(recipe, seed=seed, speed=replace(recipe.speed, **placed()))
        result = pretrain(recipe, open_pool(run.folder / POOL), run.folder / SSL, progress=run.progress)
        if not result.finished:
            raise KeyboardInterrupt  # a signal: the same command goes on
        name = f"checkpoint:{result.folder}"
    embedder = open_embedder(name, pool.image_size or None, device=own_device(str(run.speed.get("device", "cpu"))))
    embed_shards(open_pool(run.folder / POOL), embedder, run.folder / "embeddings", progress=run.progress)
    require_dim(embedder, pool.dim)
    if not (run.folder / BANK).exists():
        return
    bank = open_pool(run.folder / BANK)
    labels = np.array(bank.with_format(None)["label"][:])
    first = np.concatenate([np.flatnonzero(labels == label)[:5] for label in np.unique(labels)])
    trusted = run.folder / "trusted"
    embed_shards(bank.select(first), embedder, trusted)
    found = open_embeddings(str(trusted))
    save_array(run.folder / "trusted.npy", found.block(0, len(found)).float().numpy())


def pictures(prepared: Path) -> Any:
    """Pool of a folder of `prepare`, for galleries and preparation."""
    return open_pool(prepared / POOL)
