"""A subset of a pool: which rows, how often, and which clusters they came from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from foundation.errors import CurationError
from foundation.files import checksum, load_json, save_json, write_atomically

FORMAT_VERSION = 1
NAMES = ("path", "key")


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
        metadata = {"tree_checksum": tree.checksum, **metadata}
        for key in ("pool_fingerprint", "embeddings_fingerprint"):
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
        save_json(folder / "subset.json", {**info, "checksum": checksum(path)})

    @classmethod
    def load(cls, folder: str | Path) -> "Subset":
        """Read a subset.

        Raises:
            CurationError: a file is missing, of another format version, truncated or changed.
        """
        folder = Path(folder)
        info = load_json(folder / "subset.json")
        if info.get("format_version") != FORMAT_VERSION:
            raise CurationError(f"{folder}/subset.json has format {info.get('format_version')}, not {FORMAT_VERSION}")
        path = folder / "subset.parquet"
        if checksum(path) != info.get("checksum"):
            raise CurationError(f"{path} is not the file that subset.json describes; sample the subset again")
        columns = {name: column.to_numpy() for name, column in zip(*_columns(pq.read_table(path)), strict=True)}
        names = {name: columns.pop(name).tolist() for name in NAMES if name in columns}
        known = ("format_version", "rows", "size", "checksum")
        metadata = {key: value for key, value in info.items() if key not in known}
        return cls(columns.pop("id"), columns.pop("copies"), columns, metadata, names)


def _columns(table: pa.Table) -> tuple[list[str], list[Any]]:
    return table.column_names, table.columns
