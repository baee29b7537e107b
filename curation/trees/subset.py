"""A subset of a pool: which rows, how often, and which clusters they came from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from foundation.errors import CurationError
from foundation.files import check_files, checksum, load_json, save_json, write_atomically
from foundation.paths import regular_file
from foundation.settings import Count, CountOrZero, short

FORMAT_VERSION = 1
AGAIN = "sample the subset again"
NAMES = ("path", "key")
WEIGHTS = "weights.npy"  # of the rows of the tree, where they were asked for


@dataclass
class Subset:
    """Rows of a pool, to be handed to `datasets.Dataset.select`.

    Attributes:
        ids: (m,) int64 distinct pool rows, ascending.
        copies: (m,) int32 how often each is taken, at least 1.
        clusters: name ("level_1", ...) -> (m,) int64 cluster of each row.
        names: ``path`` (files of the pool) or ``key`` (samples of WebDataset shards) of each row, where it has some.
        metadata: method, target, seed, tree checksum, pool fingerprint, ...
    """

    ids: Int[np.ndarray, "m"]
    copies: Int[np.ndarray, "m"]
    clusters: dict[str, Int[np.ndarray, "m"]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.ids, np.int64)
        if len(self.copies) and int(np.max(self.copies)) > np.iinfo(np.int32).max:
            raise CurationError(f"a row is taken {np.max(self.copies)} times, more than 32 bits hold; lower the copies")
        self.copies = np.asarray(self.copies, np.int32)
        columns: dict[str, Any] = {"copies": self.copies, **self.clusters, **self.names}
        for name, column in columns.items():
            if len(column) != len(self.ids):
                raise CurationError(f"subset column {name} has {len(column)} rows but there are {len(self.ids)} ids")

    @classmethod
    def from_rows(cls, rows: Int[np.ndarray, "m"], tree: Any = None, **metadata: Any) -> "Subset":
        """From row ids that may repeat; ``tree`` (a `ClusterTree`) adds the clusters and the pool's own row ids."""
        ids, copies = np.unique(np.asarray(rows, np.int64), return_counts=True)
        if tree is None:
            return cls(ids, copies, {}, metadata)
        if len(ids) and (ids[0] < 0 or ids[-1] >= tree.n_rows):
            raise CurationError(f"row {ids[-1] if ids[0] >= 0 else ids[0]} is not in the tree of {tree.n_rows} rows")
        clusters = {f"level_{level + 1}": tree.row_clusters(level)[ids] for level in range(tree.n_levels)}
        metadata = {
            "tree_checksum": tree.checksum,
            "level_clusters": [len(x.centroids) for x in tree.levels],
            **metadata,
        }
        for key in ("pool_fingerprint", "pool_rows", "embeddings_fingerprint", "upper_levels"):
            if key in tree.settings:
                metadata.setdefault(key, tree.settings[key])
        pool_ids = ids if tree.row_ids is None else np.asarray(tree.row_ids)[ids]
        return cls(pool_ids, copies, clusters, metadata)

    def __len__(self) -> int:
        return int(self.copies.sum())

    def rows(self) -> Int[np.ndarray, "n"]:
        """int64 pool rows, repeated as often as they are taken: what a trainer selects."""
        return np.repeat(self.ids, self.copies)

    def save(self, folder: str | Path) -> None:
        """Write ``subset.parquet``, then ``subset.json``, which makes it whole."""
        folder = Path(folder)
        (folder / "subset.json").unlink(missing_ok=True)
        table = pa.table({"id": self.ids, **self.names, "copies": self.copies, **self.clusters})
        path = folder / "subset.parquet"
        write_atomically(path, lambda stream: pq.write_table(table, stream))
        info = {**self.metadata, "format_version": FORMAT_VERSION, "rows": len(self.ids), "size": len(self)}
        save_json(folder / "subset.json", {**info, "checksum": checksum(path)}, seal=True)

    @classmethod
    def load(cls, folder: str | Path) -> "Subset":
        """Read a subset.

        Raises:
            CurationError: a file is missing, of another format version, truncated or changed.
        """
        folder = Path(folder)
        info = read_info(folder)
        path = folder / "subset.parquet"
        check_files([(regular_file(path, AGAIN), info["checksum"])], f"it is not what subset.json describes: {AGAIN}")
        columns = _read_columns(path)
        if (len(columns["id"]), int(columns["copies"].sum())) != (info["rows"], info["size"]):
            found = f"{len(columns['id'])} rows, with copies {columns['copies'].sum()}"
            raise CurationError(
                f"{path} has {found}, not {info['rows']} and {info['size']} as subset.json says; {AGAIN}"
            )
        names = {name: columns.pop(name).tolist() for name in NAMES if name in columns}
        _check_clusters(path, columns, info.get("level_clusters"))
        known = ("format_version", "rows", "size", "checksum")
        metadata = {key: value for key, value in info.items() if key not in known}
        return cls(columns.pop("id"), columns.pop("copies"), columns, metadata, names)


@dataclass
class _Info:
    """What ``subset.json`` holds at least."""

    format_version: int
    rows: CountOrZero
    size: CountOrZero
    checksum: str
    tree_checksum: str | None = None
    pool_fingerprint: str | None = None
    pool_rows: Count | None = None
    level_clusters: list[Count] | None = None  # of each level of the tree


def read_info(folder: Path) -> dict[str, Any]:
    """The checked content of ``subset.json``.

    Raises:
        CurationError: another format, or not what it must hold.
    """
    path = folder / "subset.json"
    if not path.exists():
        raise CurationError(f"{folder} holds no finished subset (no subset.json); run `curate sample` (again)")
    version = load_json(path, remedy=AGAIN).get("format_version")
    if version != FORMAT_VERSION:
        raise CurationError(f"{path} has format {short(version)}, not {FORMAT_VERSION}; {AGAIN}")
    return load_json(path, _Info, AGAIN)


def _read_columns(path: Path) -> dict[str, Any]:
    """Columns of ``subset.parquet``, each whole numbers without holes; rows ascend and are taken at least once."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CurationError(f"{path} cannot be read as parquet ({' '.join(str(error).split())}); {AGAIN}") from error
    for name in ("id", "copies"):
        if name not in table.column_names:
            raise CurationError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}; {AGAIN}")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in NAMES and pa.types.is_string(column.type) and not column.null_count:
            continue
        if not pa.types.is_integer(column.type) or column.null_count:
            raise CurationError(f"{path}: column {name!r} holds {column.type} or nulls, not whole numbers; {AGAIN}")
    columns = {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
    ids, copies = columns["id"], columns["copies"]
    if len(ids) and (int(ids[0]) < 0 or (np.diff(ids.astype(np.int64)) <= 0).any()):
        raise CurationError(f"{path}: ids must ascend from 0 or more, each once; {AGAIN}")
    if len(copies) and int(copies.min()) < 1:
        raise CurationError(f"{path}: row {int(ids[int(np.argmin(copies))])} is taken {copies.min()} times; {AGAIN}")
    return columns


def _check_clusters(path: Path, columns: dict[str, Any], clusters: list[int] | None) -> None:
    """Refuse clusters that no tree has, or that the tree of the subset does not have.

    Args:
        clusters: of each level, where the subset says so.
    """
    known = {f"level_{i + 1}": k for i, k in enumerate(clusters or [])}
    for name in columns.keys() - {"id", "copies"}:
        if clusters is not None and name not in known:
            raise CurationError(f"{path}: there is a column {name!r}, but the tree has {len(known)} levels; {AGAIN}")
        values = columns[name][(columns[name] < 0) | (columns[name] >= known.get(name, np.inf))]
        if len(values):
            raise CurationError(f"{path}: {name} holds cluster {values[0]}, which the tree does not have; {AGAIN}")
