"""Embeddings as one (n, d) array, wherever they lie: memory, ``.npy`` files, a folder of shards, parquet, Arrow.

Nothing here reads the whole array: rows come in blocks, in their own dtype, from memory-mapped files.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curation.store.shards import (
    DTYPES,
    ArrayShard,
    ArrowShard,
    ParquetShard,
    TensorShard,
    only_list_column,
    require_column,
)
from foundation.errors import CurationError, one_line
from foundation.files import (
    check_files,
    checksums_are_verified,
    digest_json,
    load_array,
    load_json,
)
from foundation.numbers import is_digits
from foundation.paths import inside, regular_file
from foundation.settings import LARGEST_INT, Choices, Count, CountOrZero, short

FORMAT_VERSION = 1
# of which results a row_ids.npy may be: a file of each
ROW_IDS_OF = {"embeddings.json": "embeddings", "tree.json": "a tree", "dropped.parquet": "kept rows"}
SUFFIXES = (".npy", ".parquet", ".pq", ".arrow", ".feather", ".ipc")
IDENTITY = ("weights", "axes", "image_size", "max_tokens")  # of an embedder in ``embeddings.json``, besides its name
EMBED_AGAIN = "embed again into another folder"


def require_own_row_ids(folder: Path, mine: str) -> None:
    """Refuse to put a ``row_ids.npy`` in the place of another result's.

    Args:
        mine: which of `ROW_IDS_OF` the caller writes.

    Raises:
        CurationError: the folder holds one of the others.
    """
    for name, what in ROW_IDS_OF.items():
        if name != mine and os.path.lexists(folder / name):
            raise CurationError(f"{folder} holds {what}, whose row_ids.npy would be replaced; choose another -o")


def check_row_ids(row_ids: np.ndarray, n_rows: int, name: str) -> Int[np.ndarray, "n"]:
    """Pool rows of embeddings, as they are.

    Raises:
        CurationError: not one whole number for each embedding, negative, or not ascending.
    """
    if row_ids.ndim != 1 or row_ids.dtype.kind not in "iu":
        raise CurationError(f"{name} holds {row_ids.dtype} of shape {row_ids.shape}; it must be one int64 for each row")
    if len(row_ids) != n_rows:
        raise CurationError(f"{name} has {len(row_ids)} rows but the embeddings have {n_rows}; make it again")
    for at in (0, -1) if len(row_ids) else ():
        if not 0 <= int(row_ids[at]) <= LARGEST_INT:
            raise CurationError(f"{name}: row {at % n_rows} is {row_ids[at]}, which is no row of a pool; make it again")
    for start in range(0, len(row_ids) - 1, 1 << 22):
        part = np.asarray(row_ids[start : start + (1 << 22) + 1])
        if (part[1:] <= part[:-1]).any():
            at = start + int(np.argmax(part[1:] <= part[:-1])) + 1
            raise CurationError(
                f"{name}: row {at} is {row_ids[at]} after {row_ids[at - 1]}; pool rows must ascend, each once"
            )
    return row_ids if row_ids.dtype == np.int64 else row_ids.astype(np.int64)


class Embeddings:
    """An (n, d) array of embeddings in one or more shards. Make one with `open_embeddings`.

    Attributes:
        shape: (n, d).
        dtype: "float16", "bfloat16", "float32" or "float64".
        metadata: what ``embeddings.json`` says (embedder, pool fingerprint, skipped rows), else empty.
        row_ids: (n,) int64 pool row of every embedding row; None when they are the same.
    """

    def __init__(
        self, shards: Sequence[Any], metadata: dict[str, Any] | None = None, row_ids: np.ndarray | None = None
    ):
        shards = [shard for shard in shards if shard.rows] or list(shards[:1])
        if not shards or not shards[0].rows or not shards[0].dim:
            raise CurationError("the embeddings are empty: no rows to work on")
        for shard in shards:
            if (shard.dim, shard.dtype) != (shards[0].dim, shards[0].dtype):
                raise CurationError(
                    f"{shard.name} is {shard.dim}-d {shard.dtype} but {shards[0].name} is {shards[0].dim}-d "
                    f"{shards[0].dtype}; shards of one array must agree"
                )
        self.shards = shards
        self.offsets = np.concatenate([[0], np.cumsum([shard.rows for shard in shards], dtype=np.int64)])
        self.n_rows, self.dim, self.dtype = int(self.offsets[-1]), int(shards[0].dim), shards[0].dtype
        self.shape = (self.n_rows, self.dim)
        self.metadata = metadata or {}
        self.row_ids = None if row_ids is None else check_row_ids(row_ids, self.n_rows, "row_ids.npy")

    def __len__(self) -> int:
        return self.n_rows

    @property
    def in_memory(self) -> Tensor | None:
        """The whole array where it already lies in memory as one tensor, else None."""
        if len(self.shards) == 1 and isinstance(self.shards[0], TensorShard):
            return self.shards[0].tensor
        return None

    def block(self, start: int, stop: int) -> Float[Tensor, "m d"]:
        """Rows start..stop in their own dtype; a view where the memory allows."""
        stop = min(stop, self.n_rows)
        pieces = []
        while start < stop:
            shard = bisect_right(self.offsets, start) - 1
            low, high = int(self.offsets[shard]), int(min(stop, self.offsets[shard + 1]))
            try:
                pieces.append(self.shards[shard].block(start - low, high - low))
            except (OSError, ValueError) as error:
                if isinstance(error, CurationError):
                    raise
                raise CurationError(f"{self.shards[shard].name} cannot be read any more: {error}") from error
            start = high
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def ask_for(self, start: int, stop: int) -> None:
        """Let the disk read rows start..stop while others are worked on; they may lie beyond the end."""
        stop = min(stop, self.n_rows)
        while start < stop:
            shard = bisect_right(self.offsets, start) - 1
            low, high = int(self.offsets[shard]), int(min(stop, self.offsets[shard + 1]))
            self.shards[shard].ask_for(start - low, high - low)
            start = high

    def blocks(
        self, rows_per_block: int, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Float[Tensor, "m d"]]]:
        """(first row, rows) from the first row to the last, or from start to stop of ``span``."""
        first, last = span or (0, self.n_rows)
        for start in range(first, last, rows_per_block):
            self.ask_for(start + rows_per_block, min(start + 2 * rows_per_block, last))
            yield start, self.block(start, min(start + rows_per_block, last))

    def take(self, rows: np.ndarray) -> Float[Tensor, "m d"]:
        """The given rows, in the given order. Files are read in ascending order of row."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(self.shards) == 1:
            if (np.diff(rows) >= 0).all():
                return self.shards[0].take(rows)
            order = np.argsort(rows, kind="stable")
            found = self.shards[0].take(rows[order])
            inverse = np.empty_like(order)
            inverse[order] = np.arange(len(rows))
            return found[torch.from_numpy(inverse).to(found.device)]
        out = torch.empty((len(rows), self.dim), dtype=DTYPES[self.dtype])
        shard_of = np.searchsorted(self.offsets, rows, side="right") - 1
        for shard in np.unique(shard_of):
            mine = np.flatnonzero(shard_of == shard)
            mine = mine[np.argsort(rows[mine], kind="stable")]
            out[torch.from_numpy(mine)] = self.shards[shard].take(rows[mine] - self.offsets[shard])
        return out

    def locate(self, row: int) -> str:
        """Where a row lies, for error messages: "row 17 of shard-00002.npy"."""
        shard = bisect_right(self.offsets, row) - 1
        return f"row {row - int(self.offsets[shard])} of {self.shards[shard].name}"

    def fingerprint(self) -> str:
        """BLAKE2b-128 of the shape and of up to 1,024 evenly spaced rows as float32, wherever they are stored."""
        rows = np.unique(np.linspace(0, self.n_rows - 1, min(self.n_rows, 1024)).astype(np.int64))
        digest = hashlib.blake2b(repr(self.shape).encode(), digest_size=16)
        digest.update(self.take(rows).to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def digest_of_files(self) -> str | None:
        """Of the checksums in ``embeddings.json``, where all rows lie in such a folder; nothing is read."""
        entries = self.metadata.get("shards") or [{}]
        known = [entry.get("checksum") for entry in entries]
        return None if None in known else f"files {digest_json(known)}"

    def digest(self, most_bytes: int | None = None) -> str | None:
        """Checksum of every row: of the files where ``embeddings.json`` has it, else of a pass over the rows.

        Args:
            most_bytes: of rows that are read for it.

        Returns:
            None: more bytes, or no checksums are wanted (`foundation.files.verify_checksums`), or rows in memory.
        """
        found = self.digest_of_files()
        if found is not None:
            return found
        n_bytes = self.n_rows * self.dim * DTYPES[self.dtype].itemsize
        if not digests_are_wanted(self) or (most_bytes is not None and n_bytes > most_bytes):
            return None
        parts = (block_digest(block) for _start, block in self.blocks(rows_per_read(self.dim)))
        return joined_digest(self, parts)


def digests_are_wanted(x: Embeddings) -> bool:
    """Whether the rows shall be remembered by their checksum: not those in memory, and not where checksums are off."""
    return x.in_memory is None and checksums_are_verified()


def rows_per_read(dim: int, n_bytes: int = 32 << 20) -> int:
    """How many float32 rows make a block of ``n_bytes``; of 32 MiB, every block has a checksum of its own."""
    return max(256, n_bytes // (4 * dim))


def block_digest(block: Float[Tensor, "m d"]) -> bytes:
    """(16 bytes) BLAKE2b-128 of rows as they are stored."""
    stored: Any = block.cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(stored, digest_size=16).digest()


def joined_digest(x: Embeddings, blocks: Iterable[bytes]) -> str:
    """Of the checksums of all blocks of embeddings, in their order."""
    whole = hashlib.blake2b(f"{x.shape} {x.dtype}".encode(), digest_size=16)
    for part in blocks:
        whole.update(part)
    return "rows " + whole.hexdigest()


def open_embeddings(source: Any, column: str | None = None) -> Embeddings:
    """Open embeddings without reading them.

    Args:
        source: an (n, d) array or tensor; the path of an ``.npy``, parquet or Arrow file; a folder of shards (with
            ``embeddings.json``, or plain ``.npy``/parquet files in the order of their names); a folder of such folders
            with ``embeddings.json``, one for each part of a pool, in the order of their names; a list of such paths or
            arrays; a `datasets.Dataset`. float16, bfloat16, float32 or float64.
        column: the column of float lists in parquet, Arrow or a dataset; needed when there are several.

    Raises:
        CurationError: nothing is there, or shapes and dtypes do not fit together.
    """
    if isinstance(source, Embeddings):
        return source
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), column)
    if isinstance(source, np.lib.npyio.NpzFile):
        raise CurationError(f"an .npz archive holds several arrays; give one of {', '.join(source.files)}")
    if isinstance(source, (list, tuple)):
        return Embeddings([shard for item in source for shard in open_embeddings(item, column).shards])
    if isinstance(source, Tensor):
        return Embeddings([TensorShard(source)])
    if hasattr(source, "features") and hasattr(source, "data"):
        dataset = source if source._indices is None else source.flatten_indices()
        table = dataset.data.table
        name = only_list_column(table.schema, "the dataset") if column is None else column
        require_column(name, table.column_names, "the dataset")
        return Embeddings([ArrowShard(table[name], f"dataset column {name}")])
    array = np.asarray(source)
    if array.ndim == 2 and array.flags.writeable and str(array.dtype) in DTYPES and array.dtype.isnative:
        return Embeddings([TensorShard(torch.from_numpy(array), "array")])
    return Embeddings([ArrayShard(array, "array")])


def _open_path(path: Path, column: str | None) -> Embeddings:
    if path.is_dir():
        return _open_folder(path, column)
    regular_file(path, "give an .npy, parquet or Arrow file, or a folder of them")
    if path.suffix == ".npy":
        _no_column(path, column)
        return Embeddings([ArrayShard(load_array(path), path.name)])
    if path.suffix in (".parquet", ".pq"):
        return Embeddings([ParquetShard(path, column)])
    if path.suffix in (".arrow", ".feather", ".ipc"):
        import pyarrow as pa

        try:
            source = pa.memory_map(str(path))
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                table = pa.ipc.open_stream(source).read_all()
            name = only_list_column(table.schema, path.name) if column is None else column
            require_column(name, table.column_names, str(path))
            table[name].validate(full=True)  # offsets that leave the file would be followed
        except (OSError, pa.ArrowException) as error:
            raise CurationError(f"{path} cannot be read as Arrow ({one_line(error)}); make it again") from error
        return Embeddings([ArrowShard(table[name], path.name)])
    raise CurationError(
        f"{path} is not an .npy, .parquet or .arrow file of embeddings; `curate run` and `curate embed` make them of "
        "pictures and text"
    )


def has_columns(source: Path) -> bool:
    """Whether embeddings lie in files with columns, of which one may be named: parquet or Arrow."""
    files = source.iterdir() if source.is_dir() else [source]
    return any(path.suffix in SUFFIXES and path.suffix != ".npy" for path in files)


def _no_column(path: Path, column: str | None) -> None:
    if column is not None:
        raise CurationError(f"{path} has no columns, so none is called {column!r}; leave --column out")


def _open_folder(folder: Path, column: str | None) -> Embeddings:
    if not os.path.lexists(folder / "embeddings.json"):
        if (folder / "row_ids.npy").exists():  # rows of the pool that nothing else knows
            raise CurationError(f"{folder} has row_ids.npy, but its embeddings.json is missing; {EMBED_AGAIN}")
        files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
        files = [path for path in files if path.name != "row_ids.npy"]
        parts = [] if files else sorted(path.parent for path in folder.glob("*/embeddings.json"))
        if parts:
            return _joined({part: _open_folder(part, column) for part in parts})
        if not files:
            raise CurationError(f"{folder} holds no .npy, .parquet or .arrow files; is it the embeddings folder?")
        return Embeddings([shard for path in files for shard in _open_path(path, column).shards])
    _no_column(folder, column)
    info = read_info(folder)
    if not info["complete"]:
        raise CurationError(f"{folder} is not finished; run the same `curate embed` again to resume it")
    files = [inside(folder, entry["file"], str(folder / "embeddings.json")) for entry in info["shards"]]
    shards = []
    for path, entry in zip(files, info["shards"], strict=True):
        shard = ArrayShard(load_array(path), path.name, info["dtype"] == "bfloat16")
        if (shard.rows, shard.dim, shard.dtype) != (entry["rows"], info["dim"], info["dtype"]):
            raise CurationError(
                f"{path} is {shard.array.shape} of {shard.dtype}, not ({entry['rows']}, {info['dim']}) of "
                f"{info['dtype']} as embeddings.json says; {EMBED_AGAIN}"
            )
        shards.append(shard)
    ids = folder / "row_ids.npy"
    if not ids.exists() and info.get("row_ids_checksum"):
        raise CurationError(f"{ids} is missing; {EMBED_AGAIN}")
    checksums = [entry["checksum"] for entry in info["shards"]]
    check_files(zip([*files, ids], [*checksums, info.get("row_ids_checksum")], strict=True), EMBED_AGAIN)
    return Embeddings(shards, info, load_array(ids) if ids.exists() else None)


def embedder_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """What makes rows comparable with others, of what ``embeddings.json`` says; {} where nothing is known.

    A name may hold a path, which moves; where the weights or axes are known it does not matter.
    """
    found = {key: metadata[key] for key in IDENTITY if key in metadata}
    if "embedder" in metadata and not {"weights", "axes"} & found.keys():
        found["embedder"] = metadata["embedder"]
    return found


def require_one_embedder(mine: dict[str, Any], others: dict[str, Any], what: str) -> None:
    """Refuse rows of two embedders, between which no distance means anything, where both are known.

    Args:
        mine, others: of `embedder_of`.
        what: the two, for the message: "the rows and the tree".

    Raises:
        CurationError: they differ.
    """
    if mine and others and mine != others:
        key = next(key for key in ("embedder", *IDENTITY) if mine.get(key) != others.get(key))
        raise CurationError(
            f"{what} are of different embedders ({key} {short(mine.get(key))} and {short(others.get(key))}): embed "
            "both with the same one (of char_svd, the second with --embedder char_svd:FOLDER of the first)"
        )


def _joined(folders: dict[Path, Embeddings]) -> Embeddings:
    """Parts of a pool as one: rows of a part come after all pool rows of the parts before it.

    Raises:
        CurationError: a part does not say how many rows of the pool it was made of, has another embedder, or is of the
            same rows as another part.
    """
    parts = list(folders.values())
    infos = [part.metadata for part in parts]
    rows = [info.get("pool_rows") for info in infos]
    for folder, info, n in zip(folders, infos, rows, strict=True):
        if not isinstance(n, int) or n < 0:
            raise CurationError(f"{folder} does not say how many rows its pool has; {EMBED_AGAIN}")
        for key in ("embedder", *IDENTITY):
            if info.get(key) != infos[0].get(key):
                raise CurationError(
                    f"{folder} has {key} {short(info.get(key))}, the parts before {short(infos[0].get(key))}; "
                    "parts of one pool need one embedder"
                )
    seen: dict[str, Path] = {}
    for folder, info in zip(folders, infos, strict=True):
        if (first := seen.setdefault(info.get("pool_fingerprint") or str(folder), folder)) is not folder:
            raise CurationError(f"{folder} is of the same rows as {first}, and they would count twice; leave one out")
    starts = np.cumsum([0, *rows])
    ids = None
    if any(part.row_ids is not None or part.n_rows != n for part, n in zip(parts, rows, strict=True)):
        placed = zip(starts[:-1], parts, strict=True)
        ids = np.concatenate([start + (np.arange(p.n_rows) if p.row_ids is None else p.row_ids) for start, p in placed])
    metadata = {key: value for key, value in infos[0].items() if all(info.get(key) == value for info in infos)}
    metadata.pop("pool_fingerprint", None)  # of parts that are alike
    metadata |= {"pool_rows": int(starts[-1]), "shards": [entry for info in infos for entry in info["shards"]]}
    return Embeddings([shard for part in parts for shard in part.shards], metadata, ids)


@dataclass
class _ShardEntry:
    file: str
    rows: Count
    checksum: str | None = None


@dataclass
class _Info:
    """What ``embeddings.json`` holds, besides what an embedder adds."""

    format_version: int
    dim: Count
    dtype: Annotated[str, Choices(*DTYPES)]
    complete: bool
    shards: list[_ShardEntry]
    rows: CountOrZero = 0
    row_ids_checksum: str | None = None
    embedder: str | None = None
    axes: str | None = None
    axes_of: str | None = None
    pool_fingerprint: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def read_info(folder: Path) -> dict[str, Any]:
    """The checked content of ``embeddings.json``.

    Raises:
        CurationError: another format, or not what it must hold.
    """
    path = folder / "embeddings.json"
    version = load_json(path, remedy=EMBED_AGAIN).get("format_version")
    if version != FORMAT_VERSION:
        raise CurationError(f"{path} has format {short(version)}, not {FORMAT_VERSION}; {EMBED_AGAIN}")
    info = load_json(path, _Info, EMBED_AGAIN)
    total = sum(entry["rows"] for entry in info["shards"])
    if info.get("rows", total) != total:
        raise CurationError(f"{path} says {info['rows']} rows, but its shards have {total}; {EMBED_AGAIN}")
    for row in info.get("skipped", {}):
        if not is_digits(row):
            raise CurationError(f"{path} skips {short(row)}, which is no row; {EMBED_AGAIN}")
    return info
