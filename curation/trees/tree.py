"""The cluster tree: what hierarchical k-means leaves behind, and all that is drawn from it."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from curation.kmeans.assignment import rows_per_read
from curation.kmeans.two_step import Centroids
from curation.pools.pool import OWN_POOL, require_own_pool
from curation.store.bad_rows import check_rows
from curation.store.embeddings import Embeddings, check_row_ids, embedder_of, open_embeddings, require_one_embedder
from curation.trees.balance import effective_number, gini, normalised_entropy
from curation.trees.sampling import balanced_targets, fractional_targets, take_from_clusters
from foundation.errors import CurationError
from foundation.files import check_files, digest_json, load_array, load_json, require_free_space, save_array, save_json
from foundation.paths import inside
from foundation.settings import LARGEST_SEED, Choices, Count, Range, require_number, short

FORMAT_VERSION = 1
METHODS = ("balanced", "flat", "random")
AGAIN = "cluster again"
MOST_COPIES = 1_000_000  # of one row; a subset counts them in 32 bits


@dataclass
class Level:
    """One level of the tree; "points" are the rows at level 1 and the centroids of the level below further up.

    Attributes:
        centroids: (k, d) float32, in the units of the data.
        assignment: (n_points,) int64 cluster of every point.
        distance: (n_points,) float32 squared distance of every point to its centroid.
        coarse: (k1, d) float32 and
        coarse_of: (k,) int64, where the clusters were split from coarse ones; else None.
        record: inertia of every k-means run of the level, seconds.
    """

    centroids: Float[np.ndarray, "k d"]
    assignment: Int[np.ndarray, "n"]
    distance: Float[np.ndarray, "n"]
    coarse: Float[np.ndarray, "k1 d"] | None = None
    coarse_of: Int[np.ndarray, "k"] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> Int[np.ndarray, "k"]:
        """Points in every cluster."""
        return np.bincount(self.assignment, minlength=len(self.centroids))

    @property
    def inertia(self) -> float:
        return float(self.distance.sum(dtype=np.float64))

    def arrays(self) -> dict[str, np.ndarray]:
        """File name -> array, as saved."""
        found = {"centroids": self.centroids, "assignment": self.assignment, "distance": self.distance}
        if self.coarse is not None and self.coarse_of is not None:
            found |= {"coarse_centroids": self.coarse, "coarse_of": self.coarse_of}
        return found


class _HashStream:
    """A writable stream that keeps nothing but the checksum of what goes through."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return len(data)


def array_checksum(array: np.ndarray) -> str:
    """Checksum of an array as its ``.npy`` file has it."""
    stream = _HashStream()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)  # type: ignore[arg-type]
    return stream.digest.hexdigest()


class ClusterTree:
    """A fitted hierarchy. Made by `curation.HierarchicalKMeans.fit` or `ClusterTree.load`.

    Attributes:
        levels: level 1 (the finest) first.
        settings: how it was made: levels, resampling, metric, seed, fingerprint of the embeddings.
        row_ids: (n,) int64 pool row of every row, or None when they are the same.
    """

    def __init__(self, levels: list[Level], settings: dict[str, Any], row_ids: np.ndarray | None = None):
        self.levels, self.settings, self.row_ids = levels, settings, row_ids

    @property
    def n_rows(self) -> int:
        return len(self.levels[0].assignment)

    @property
    def n_levels(self) -> int:
        return len(self.levels)

    def __repr__(self) -> str:
        sizes = " > ".join(str(len(level.centroids)) for level in self.levels)
        return f"ClusterTree({self.n_rows} rows > {sizes} clusters)"

    def row_clusters(self, level: int) -> Int[np.ndarray, "n"]:
        """(n,) int64 cluster of every row at ``levels[level]``."""
        return self.ancestors(np.asarray(self.levels[0].assignment), 0, level)

    def ancestors(self, clusters: Int[np.ndarray, "m"], level: int, above: int) -> Int[np.ndarray, "m"]:
        """(m,) int64 clusters of ``levels[above]`` over clusters of ``levels[level]``."""
        for higher in self.levels[level + 1 : above + 1]:
            clusters = np.asarray(higher.assignment)[clusters]
        return clusters

    def row_counts(self, level: int) -> Int[np.ndarray, "k"]:
        """(k,) int64 rows beneath every cluster of ``levels[level]``."""
        counts = self.levels[0].sizes
        for above in self.levels[1 : level + 1]:
            counts = np.bincount(above.assignment, weights=counts, minlength=len(above.centroids)).astype(np.int64)
        return counts

    def assign(
        self, x: Any, device: str | torch.device = "cpu", precision: str = "auto"
    ) -> Int[np.ndarray, "m n_levels"]:
        """Place rows in the tree: the nearest level-1 centroid, then its ancestors.

        Args:
            x: (m, d), anything `open_embeddings` takes.

        Returns:
            (m, n_levels) int64 clusters, level 1 first.

        Raises:
            CurationError: the width is not that of the tree, another embedder, or a row that no distance can be taken
                to.
        """
        source = open_embeddings(x)
        dim = self.levels[0].centroids.shape[1]
        if source.dim != dim:
            raise CurationError(f"the rows have {source.dim} dimensions but the tree was made of {dim}")
        of_tree = self.settings.get("embedded_by") or {}  # of older trees nothing is known
        require_one_embedder(embedder_of(source.metadata), of_tree, "the rows and the tree")
        first, metric = self.levels[0], self.settings.get("metric", "l2")
        check_rows(source, metric == "cosine", rows_per_read(source.dim), remedy="leave them out")
        centroids = Centroids(first.centroids, first.coarse, first.coarse_of)
        labels, _distances = centroids.assign(source, metric, device, precision)
        found = [labels]
        for above in self.levels[1:]:
            found.append(np.asarray(above.assignment)[found[-1]])
        return np.stack(found, axis=1)

    def check_embeddings(self, x: Any) -> None:
        """Refuse embeddings that this tree was not made of.

        Raises:
            CurationError: the fingerprints differ.
        """
        found, expected = open_embeddings(x).fingerprint(), self.settings.get("embeddings_fingerprint")
        if expected is not None and found != expected:
            raise CurationError(
                f"the tree was made of other embeddings (fingerprint {expected}, these have {found}); "
                "give the embeddings that it was fitted on, or cluster these"
            )

    def check_pool(self, pool: Any) -> None:
        """Refuse a pool that this tree was not made of, see `curation.pools.pool.require_own_pool`."""
        require_own_pool(pool, self.n_rows, self.row_ids, self.settings.get("pool_fingerprint"), "the tree")
        of = self.settings.get("pool_rows", len(pool))
        if len(pool) != of:
            raise CurationError(f"the pool has {len(pool):,} rows but the tree came from one of {of:,}; {OWN_POOL}")

    def sample(
        self, size: int, strategy: str = "random", max_copies: int = 1, seed: int = 0, method: str = "balanced"
    ) -> Int[np.ndarray, "size"]:
        """Draw a subset.

        Args:
            size: how many rows, copies counted.
            strategy: which rows of a level-1 cluster go first: "random", "closest" to the centroid, or "furthest".
            max_copies: how often one row may be taken (the multiplier m of the paper); copies are spread evenly.
            seed: the same seed gives the same rows.
            method: "balanced" top-down through all levels (the paper), "flat" the same number from each level-1
                cluster, "random" from all rows.

        Returns:
            (size,) int64 rows, ascending, repeated where copied.

        Raises:
            CurationError: a bad setting, or more rows wanted than there are.
        """
        if method not in METHODS:
            raise CurationError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
        if not 1 <= max_copies <= MOST_COPIES:
            raise CurationError(f"max_copies={max_copies} must be at least 1 and at most {MOST_COPIES}")
        require_number(seed, Range(ge=0, le=LARGEST_SEED), "seed")
        if not 0 < size <= self.n_rows * max_copies:
            raise CurationError(
                f"size {size} must lie between 1 and {self.n_rows * max_copies} "
                f"({self.n_rows} rows x {max_copies} copies); lower the size or raise max_copies (--max-copies)"
            )
        rng = np.random.default_rng(seed)
        if method == "random":
            labels, wanted = np.zeros(self.n_rows, np.int64), np.array([size])
            copies = take_from_clusters(labels, wanted, "random", rng)
        else:
            targets = np.array([size], np.int64)
            for level in range(self.n_levels - 1, -1, -1) if method == "balanced" else [0]:
                targets = balanced_targets(
                    self._parents(level, method), self.row_counts(level) * max_copies, targets, rng
                )
            first = self.levels[0]
            copies = take_from_clusters(np.asarray(first.assignment), targets, strategy, rng, first.distance)
        return np.repeat(np.arange(self.n_rows), copies)

    def _parents(self, level: int, method: str = "balanced") -> Int[np.ndarray, "k"]:
        if level == self.n_levels - 1 or method == "flat":
            return np.zeros(len(self.levels[level].centroids), np.int64)
        return np.asarray(self.levels[level + 1].assignment)

    def sampling_weights(self, size: int | None = None) -> Float[np.ndarray, "n"]:
        """Probability of every row for a sampler that draws with weights instead of a fixed subset.

        Args:
            size: expected rows of a balanced subset of this size, where small clusters are used up and the rest share
                what is left; None: every child of a node weighs the same, however few rows it has.

        Returns:
            (n,) float64, sums to 1; equal within each level-1 cluster.
        """
        share: np.ndarray = np.array([1.0 if size is None else float(size)])
        for level in range(self.n_levels - 1, -1, -1):
            parents, counts = self._parents(level), self.row_counts(level)
            if size is None:
                share = share[parents] / np.bincount(parents, minlength=len(share))[parents]
            else:
                share = fractional_targets(parents, counts, share)
        per_row = share / np.maximum(self.row_counts(0), 1)
        weights = per_row[np.asarray(self.levels[0].assignment)]
        return weights / weights.sum()

    def statistics(self) -> list[dict[str, Any]]:
        """For each level: clusters, points, inertia, sizes in points, and the balance of the rows beneath."""
        rows = []
        for number, level in enumerate(self.levels):
            counts = self.row_counts(number)
            rows.append(
                {
                    "level": number + 1,
                    "k": len(level.centroids),
                    "points": len(level.assignment),
                    "inertia": level.inertia,
                    "empty": int((level.sizes == 0).sum()),
                    "min_size": int(level.sizes.min()),
                    "median_size": float(np.median(level.sizes)),
                    "max_size": int(level.sizes.max()),
                    "min_rows": int(counts.min()),
                    "max_rows": int(counts.max()),
                    "entropy": float(normalised_entropy(counts)),
                    "gini": float(gini(counts)),
                    "effective_clusters": float(effective_number(counts)),
                    **level.record,
                }
            )
        return rows

    def _files(self) -> dict[str, np.ndarray]:
        files = {
            f"level_{number + 1}/{name}.npy": array
            for number, level in enumerate(self.levels)
            for name, array in level.arrays().items()
        }
        return files if self.row_ids is None else files | {"row_ids.npy": np.asarray(self.row_ids)}

    @cached_property
    def file_checksums(self) -> dict[str, str]:
        return {name: array_checksum(array) for name, array in self._files().items()}

    @property
    def checksum(self) -> str:
        """Of all arrays: the same tree has the same checksum, saved or not."""
        return digest_json(self.file_checksums)

    def save(self, folder: str | Path) -> None:
        """Write ``level_1/centroids.npy`` ..., then ``tree.json``, which makes the tree whole.

        Raises:
            CurationError: the disk is full.
        """
        folder = Path(folder)
        files = self._files()
        require_free_space(folder, sum(array.nbytes for array in files.values()))
        (folder / "tree.json").unlink(missing_ok=True)
        for name, array in files.items():
            save_array(folder / name, np.asarray(array))
        for old in [*folder.glob("level_*/*.npy"), *folder.glob("row_ids.npy")]:  # of the tree that was here before
            if old.relative_to(folder).as_posix() not in files:
                old.unlink()
        for empty in folder.glob("level_*"):
            if not any(empty.iterdir()):
                empty.rmdir()
        save_json(
            folder / "tree.json",
            {
                "format_version": FORMAT_VERSION,
                "rows": self.n_rows,
                "checksum": self.checksum,
                "settings": self.settings,
                "levels": self.statistics(),
                "files": self.file_checksums,
            },
            seal=True,
        )

    @classmethod
    def load(cls, folder: str | Path, verify: bool = True) -> "ClusterTree":
        """Open a saved tree; its arrays are memory-mapped.

        Args:
            verify: compare the checksum of every file first.

        Raises:
            CurationError: not a tree, not finished, of another format version, truncated, or changed.
        """
        folder = Path(folder)
        if not (folder / "tree.json").exists():
            raise CurationError(f"{folder} holds no finished tree (no tree.json); run `curate cluster` on it (again)")
        info = _read_info(folder)
        said = str(folder / "tree.json")
        paths = {name: inside(folder, name, said) for name in info["files"]}
        arrays = {name: load_array(path) for name, path in paths.items()}
        if verify:
            check_files(
                ((path, info["files"][name]) for name, path in paths.items()),
                "it is not what tree.json describes: cluster again",
            )
        levels: list[Level] = []
        known = set(cls._statistics_keys())
        for number, statistics in enumerate(info["levels"]):
            part = {
                key: arrays.get(f"level_{number + 1}/{key}.npy")
                for key in ("centroids", "assignment", "distance", "coarse_centroids", "coarse_of")
            }
            if part["centroids"] is None or part["assignment"] is None or part["distance"] is None:
                raise CurationError(f"{folder}/tree.json names no files for level {number + 1}; cluster again")
            record = {key: value for key, value in statistics.items() if key not in known}
            below = levels[-1].centroids if levels else None
            _check_level(part, below, f"{folder}: level {number + 1}")
            levels.append(
                Level(
                    part["centroids"],
                    part["assignment"],
                    part["distance"],
                    part["coarse_centroids"],
                    part["coarse_of"],
                    record,
                )
            )
        if info.get("rows", len(levels[0].assignment)) != len(levels[0].assignment):
            raise CurationError(
                f"{said} says {info['rows']} rows, but level 1 has {len(levels[0].assignment)}; {AGAIN}"
            )
        row_ids = arrays.get("row_ids.npy")
        if row_ids is not None:
            row_ids = check_row_ids(row_ids, len(levels[0].assignment), str(folder / "row_ids.npy"))
        tree = cls(levels, info["settings"], row_ids)
        tree.__dict__["file_checksums"] = info["files"]
        return tree

    @staticmethod
    def _statistics_keys() -> tuple[str, ...]:
        sizes = ("min_size", "median_size", "max_size", "min_rows", "max_rows")
        return ("level", "k", "points", "inertia", "empty", *sizes, "entropy", "gini", "effective_clusters")


@dataclass
class _Settings:
    metric: Annotated[str, Choices("l2", "cosine")] = "l2"
    embeddings_fingerprint: str | None = None
    embeddings_digest: str | None = None
    pool_fingerprint: str | None = None
    pool_rows: Count | None = None
    near_copies_out: bool | None = None
    embedded_by: dict[str, Any] | None = None


@dataclass
class _Info:
    """What ``tree.json`` holds at least."""

    format_version: int
    settings: _Settings
    levels: list[dict[str, Any]]
    files: dict[str, str]
    rows: Annotated[int, Range(ge=1)] = 1


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "tree.json"
    version = load_json(path, remedy=AGAIN).get("format_version")
    if version != FORMAT_VERSION:
        raise CurationError(f"{path} has format {short(version)}, not {FORMAT_VERSION}; {AGAIN}")
    info = load_json(path, _Info, AGAIN)
    if not info["levels"]:
        raise CurationError(f"{path} has no levels; {AGAIN}")
    return info


def read_tree_settings(folder: Path) -> dict[str, Any]:
    """How the tree in a folder was made.

    Raises:
        CurationError: ``tree.json`` is not what it must be.
    """
    settings: dict[str, Any] = _read_info(folder)["settings"]
    return settings


def same_digest(one: str | None, other: str | None) -> bool:
    """Whether two of `Embeddings.digest` may be of the same rows; None, or files against rows, tells nothing."""
    if one is None or other is None or one.split()[0] != other.split()[0]:
        return True
    return one == other


def is_made_of(settings: dict[str, Any], x: Embeddings, most_bytes: int | None = None) -> bool:
    """Whether no row of the embeddings has changed since a tree with these settings was fitted on them.

    Args:
        most_bytes: see `Embeddings.digest`.
    """
    known = settings.get("embeddings_digest")
    return known is None or same_digest(known, x.digest(most_bytes))


def _check_level(part: dict[str, np.ndarray | None], below: Float[np.ndarray, "n d"] | None, where: str) -> None:
    """Refuse arrays of a level that do not fit together.

    Args:
        below: centroids of the level below; None for level 1.
    """
    centroids, assignment, distance = part["centroids"], part["assignment"], part["distance"]
    coarse, coarse_of = part["coarse_centroids"], part["coarse_of"]
    assert centroids is not None
    assert assignment is not None
    assert distance is not None

    def need(right: bool, what: str) -> None:
        if not right:
            raise CurationError(f"{where}: {what}; {AGAIN}")

    need(centroids.ndim == 2 and centroids.dtype == np.float32 and 0 not in centroids.shape, "centroids are no float32")
    need(bool(np.isfinite(centroids).all()), "centroids hold NaN or infinity")
    need(assignment.ndim == 1 and assignment.dtype == np.int64 and len(assignment) > 0, "assignment is no int64 list")
    need(distance.shape == assignment.shape and distance.dtype == np.float32, "distances do not fit the assignment")
    need(bool(np.isfinite(distance).all()), "distances hold NaN or infinity")
    if below is not None:
        need(len(assignment) == len(below), f"it places {len(assignment)} points, not the {len(below)} below it")
        width = centroids.shape[1]
        need(width == below.shape[1], f"its centroids have {width} dimensions, those below {below.shape[1]}")
    inside = int(assignment.min()) >= 0 and int(assignment.max()) < len(centroids)
    need(inside, f"a point is in cluster {assignment.min()} or {assignment.max()} of {len(centroids)}")
    need((coarse is None) == (coarse_of is None), "a split level needs coarse_centroids.npy and coarse_of.npy")
    if coarse is not None and coarse_of is not None:
        need(coarse.ndim == 2 and coarse.shape[1] == centroids.shape[1], "coarse centroids have another width")
        need(coarse_of.shape == centroids.shape[:1] and coarse_of.dtype == np.int64, "coarse_of does not fit")
        ascending = bool((np.diff(coarse_of) >= 0).all())
        need(ascending and coarse_of[0] >= 0 and coarse_of[-1] < len(coarse), "coarse_of is out of range")
