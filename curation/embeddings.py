"""Embeddings as one (n, d) array, wherever they lie: memory, ``.npy`` files, a folder of shards, parquet, Arrow.

Nothing here reads the whole array: rows come in blocks, in their own dtype, from memory-mapped files.
"""

import hashlib
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from foundation.errors import CurationError
from foundation.files import (
    check_files,
    checksum,
    checksums_are_verified,
    clear_folder,
    digest_json,
    load_array,
    load_json,
    require_free_space,
    save_array,
    save_json,
)
from foundation.numbers import is_digits
from foundation.paths import inside, regular_file
from foundation.settings import LARGEST_INT, Choices, Count, CountOrZero, short

FORMAT_VERSION = 1
# of which results a row_ids.npy may be: a file of each
ROW_IDS_OF = {"embeddings.json": "embeddings", "tree.json": "a tree", "dropped.parquet": "kept rows"}
SUFFIXES = (".npy", ".parquet", ".pq", ".arrow", ".feather", ".ipc")
MAPPED_AROUND = 2 << 20  # bytes: a page that is read may be part of a large one, which is mapped as a whole
ROWS_PER_RELEASE = 1024  # of rows that may lie apart
IDENTITY = ("weights", "axes", "image_size", "max_tokens")  # of an embedder in ``embeddings.json``, besides its name
EMBED_AGAIN = "embed again into another folder"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class Shard(Protocol):
    """One contiguous piece of the rows."""

    name: str
    rows: int

    def block(self, start: int, stop: int) -> Float[Tensor, "m d"]: ...
    def take(self, rows: np.ndarray) -> Float[Tensor, "m d"]: ...

    def ask_for(self, start: int, stop: int) -> None:
        """Say that these rows come next, so that the disk can read them meanwhile."""


class _Shard:
    """A shard that cannot read ahead."""

    def ask_for(self, start: int, stop: int) -> None:
        """Nothing to do."""


class ArrayShard(_Shard):
    """A numpy array (memory-mapped or not). bfloat16, which numpy lacks, is stored as uint16 bit patterns."""

    def __init__(self, array: np.ndarray, name: str, bfloat16: bool = False):
        if array.ndim != 2:
            raise CurationError(f"{name} has shape {array.shape}; embeddings need two dimensions (rows, features)")
        stored_as_bits = bfloat16 and array.dtype == np.uint16
        if not stored_as_bits and str(array.dtype) not in DTYPES:
            swapped = str(array.dtype.newbyteorder("=")) in DTYPES  # of another byte order
            remedy = "; save them as x.astype(x.dtype.newbyteorder('='))" if swapped else ""
            raise CurationError(f"{name} holds {array.dtype}; embeddings must be one of {', '.join(DTYPES)}{remedy}")
        self.array, self.name, self.bfloat16 = array, name, stored_as_bits
        self.rows, self.dim = array.shape
        self.dtype = "bfloat16" if stored_as_bits else str(array.dtype)
        # of maps of another mode, rows may be views, and changes that are in no file would be lost
        self.releases = getattr(array, "mode", None) == "r"

    def _tensor(self, block: np.ndarray) -> Tensor:
        if self.bfloat16:
            return torch.from_numpy(np.array(block)).view(torch.bfloat16)
        # torch cannot mark a tensor read-only, so a view of a read-only map warns; a block is copied instead
        return torch.from_numpy(block if block.flags.writeable and block.dtype.isnative else np.array(block))

    def block(self, start: int, stop: int) -> Tensor:
        found = self._tensor(self.array[start:stop])
        self._release(start, stop)
        return found

    def take(self, rows: np.ndarray) -> Tensor:
        if not self.releases:
            return self._tensor(self.array[rows])
        out = np.empty((len(rows), self.dim), self.array.dtype)
        for first in range(0, len(rows), ROWS_PER_RELEASE):
            part = rows[first : first + ROWS_PER_RELEASE]
            out[first : first + len(part)] = self.array[part]
            self._release(int(part.min()), int(part.max()) + 1)
        return self._tensor(out)

    def ask_for(self, start: int, stop: int) -> None:
        """The kernel reads the pages of these rows while others are worked on."""
        self._advise("MADV_WILLNEED", start, stop)

    def _release(self, start: int, stop: int) -> None:
        """Rows that were copied no longer count as memory of this process; the system still caches their pages.

        Those that it mapped around them go too.
        """
        if self.releases:
            around = MAPPED_AROUND // max(self.array.strides[0], 1) + 1
            self._advise("MADV_DONTNEED", max(0, start - around), stop + around)

    def _advise(self, advice: str, start: int, stop: int) -> None:
        """Tell the kernel about the pages of some rows, where they are mapped; they may lie beyond the end."""
        mapped = getattr(self.array, "_mmap", None)
        if mapped is None or not hasattr(mmap, advice) or not self.array.flags.c_contiguous:
            return
        # a memory map begins at a multiple of the allocation granularity, before the header of the file
        header = self.array.offset % mmap.ALLOCATIONGRANULARITY if hasattr(self.array, "offset") else 0
        row = self.array.strides[0]
        first = (header + start * row) // mmap.PAGESIZE * mmap.PAGESIZE
        length = min(header + stop * row, len(mapped)) - first
        if length > 0:
            mapped.madvise(getattr(mmap, advice), first, length)


class TensorShard(_Shard):
    """A torch tensor, on any device."""

    def __init__(self, tensor: Tensor, name: str = "tensor"):
        if tensor.ndim != 2:
            raise CurationError(f"the {name} has shape {tuple(tensor.shape)}; embeddings need two dimensions")
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        if self.dtype not in DTYPES:
            raise CurationError(f"the {name} holds {self.dtype}; embeddings must be one of {', '.join(DTYPES)}")
        self.tensor, self.name = tensor.detach(), name
        self.rows, self.dim = tensor.shape

    def block(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop]

    def take(self, rows: np.ndarray) -> Tensor:
        return self.tensor[torch.from_numpy(rows).to(self.tensor.device)]


class ArrowShard(_Shard):
    """A list column of an Arrow table: memory-mapped for Arrow files and ``datasets``.

    Args:
        first: row of the file that the column begins with, for messages.
    """

    def __init__(self, column: Any, name: str, first: int = 0):
        import pyarrow as pa

        kind = column.type
        lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not lists or not pa.types.is_floating(kind.value_type):
            raise CurationError(f"{name} is a column of {kind}; embeddings need lists of floats, all of one length")
        self.column, self.name, self.rows, self.first = column, name, len(column), first
        self.dtype = {"halffloat": "float16", "float": "float32", "double": "float64"}[str(kind.value_type)]
        fixed = pa.types.is_fixed_size_list(kind)
        # the first row that there is says how long all are
        self.dim = kind.list_size if fixed else (len(column.drop_null()[0]) if self.rows > column.null_count else 0)
        if self.rows and not self.dim:
            raise CurationError(f"{name} holds no values; embeddings need lists of floats, all of one length")

    def _tensor(self, piece: Any, rows: np.ndarray) -> Tensor:
        """A piece of the column; ``rows`` are the numbers of its rows, for messages."""
        import pyarrow.compute as pc

        rows = rows + self.first
        if piece.null_count:
            row = rows[int(np.argmax(piece.is_null().to_numpy(zero_copy_only=False)))]
            raise CurationError(f"row {row} of {self.name} has no embedding (null); leave such rows out")
        # row by row: rows that are too long and too short may have the right total
        lengths = pc.list_value_length(piece).to_numpy(zero_copy_only=False)
        if (lengths != self.dim).any():
            at = int(np.argmax(lengths != self.dim))
            raise CurationError(
                f"row {rows[at]} of {self.name} has {lengths[at]} values where others have {self.dim}; all embeddings "
                "need one length"
            )
        pieces: list[np.ndarray] = []
        for chunk in (chunk for chunk in getattr(piece, "chunks", [piece]) if len(chunk)):
            flat = chunk.flatten()
            if flat.null_count:
                at = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))) // max(self.dim, 1)
                before = sum(part.size for part in pieces) // max(self.dim, 1)
                raise CurationError(f"row {rows[before + at]} of {self.name} has a null among its values; leave it out")
            pieces.append(flat.to_numpy(zero_copy_only=False))
        flat = np.concatenate(pieces) if pieces else np.empty(0, self.dtype)
        return torch.from_numpy(np.array(flat).reshape(len(piece), self.dim))

    def block(self, start: int, stop: int) -> Tensor:
        return self._tensor(self.column.slice(start, stop - start), np.arange(start, stop))

    def take(self, rows: np.ndarray) -> Tensor:
        return self._tensor(self.column.take(rows), rows)


class ParquetShard(_Shard):
    """A list column of a parquet file. One decoded row group is held at a time, since parquet cannot be mapped."""

    def __init__(self, path: Path, column: str | None):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self.file = pq.ParquetFile(regular_file(path), page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise CurationError(f"{path} cannot be read as parquet ({_line(error)}); make it again") from error
        self.name, self.rows = str(path), self.file.metadata.num_rows
        self.column = _only_list_column(self.file.schema_arrow, self.name) if column is None else column
        _require_column(self.column, self.file.schema_arrow.names, str(path))
        sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._group, self._held = -1, ArrowShard(self.file.schema_arrow.empty_table()[self.column], self.name)
        self.dtype, self.dim = self._held.dtype, self._held.dim
        self.dim = self._row_group(0).dim if self.rows else self.dim

    def _row_group(self, group: int) -> ArrowShard:
        if group != self._group:
            try:
                column = self.file.read_row_group(group, [self.column])[self.column]
            except Exception as error:  # pyarrow: OSError, ArrowInvalid, ArrowNotImplementedError, ...
                raise CurationError(f"{self.name} cannot be read as parquet ({_line(error)}); make it again") from error
            held = ArrowShard(column, self.name, int(self.offsets[group]))
            if self.dim and held.dim not in (0, self.dim):  # 0: a group of nulls alone, which names its row
                raise CurationError(
                    f"row {held.first} of {self.name} has {held.dim} values where others have {self.dim}; all "
                    "embeddings need one length"
                )
            self._held, self._group = held, group
        return self._held

    def block(self, start: int, stop: int) -> Tensor:
        pieces = []
        while start < stop:
            group = bisect_right(self.offsets, start) - 1
            low, high = int(self.offsets[group]), int(min(stop, self.offsets[group + 1]))
            pieces.append(self._row_group(group).block(start - low, high - low))
            start = high
        return torch.cat(pieces) if pieces else torch.empty((0, self.dim), dtype=DTYPES[self.dtype])

    def take(self, rows: np.ndarray) -> Tensor:
        out = torch.empty((len(rows), self.dim), dtype=DTYPES[self.dtype])
        groups = np.searchsorted(self.offsets, rows, side="right") - 1
        for group in np.unique(groups):
            mine = np.flatnonzero(groups == group)
            out[torch.from_numpy(mine)] = self._row_group(int(group)).take(rows[mine] - self.offsets[group])
        return out


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _only_list_column(schema: Any, name: str) -> str:
    import pyarrow as pa

    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    names = [
        field.name
        for field in schema
        if any(is_list(field.type) for is_list in lists) and pa.types.is_floating(field.type.value_type)
    ]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise CurationError(f"{name} needs one column of float lists, found {found}; name it with column=")
    return names[0]


def _require_column(name: str, names: list[str], where: str) -> None:
    if names.count(name) != 1:
        how_many = f"{names.count(name)} columns" if name in names else "no column"
        raise CurationError(f"{where} has {how_many} {name!r}; it has {', '.join(names)}")


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
        name = _only_list_column(table.schema, "the dataset") if column is None else column
        _require_column(name, table.column_names, "the dataset")
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
            name = _only_list_column(table.schema, path.name) if column is None else column
            _require_column(name, table.column_names, str(path))
            table[name].validate(full=True)  # offsets that leave the file would be followed
        except (OSError, pa.ArrowException) as error:
            raise CurationError(f"{path} cannot be read as Arrow ({_line(error)}); make it again") from error
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


class EmbeddingWriter:
    """Writes shards of embeddings; whole shards survive a kill, and a new writer goes on after them.

    Args:
        folder: where ``shard-00000.npy`` ... and ``embeddings.json`` go.
        dim: width of a row.
        dtype: stored dtype; bfloat16 is stored as uint16 bit patterns.
        rows_per_shard: a shard is held in memory until it is full.
        metadata: goes into ``embeddings.json``; a folder with other metadata is refused,
        overwrite: or emptied.

    Attributes:
        n_written: rows in whole shards on disk: where to go on after a kill.
    """

    def __init__(
        self,
        folder: str | Path,
        dim: int,
        dtype: str = "float16",
        rows_per_shard: int = 65_536,
        metadata: dict[str, Any] | None = None,
        overwrite: bool = False,
    ):
        if dtype not in DTYPES:
            raise CurationError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        self.folder, self.dim, self.dtype, self.rows_per_shard = Path(folder), dim, dtype, rows_per_shard
        self.info: dict[str, Any] = {
            **(metadata or {}),
            "format_version": FORMAT_VERSION,
            "rows": 0,
            "dim": dim,
            "dtype": dtype,
            "rows_per_shard": rows_per_shard,
            "complete": False,
            "shards": [],
        }
        self._held: list[Tensor] = []
        self._held_rows = 0
        require_own_row_ids(self.folder, "embeddings.json")
        if (self.folder / "embeddings.json").exists():
            self._resume(overwrite)

    def _resume(self, overwrite: bool) -> None:
        """Go on after the shards that are there; of another embedder or damaged, they are refused or replaced."""
        try:
            found = read_info(self.folder)
            for key, value in self.info.items():
                if key not in ("rows", "complete", "shards") and found.get(key) != value:
                    raise CurationError(
                        f"{self.folder} holds embeddings of {key}={short(found.get(key))}, not {short(value)}; choose "
                        "another folder, or --overwrite"
                    )
            said = str(self.folder / "embeddings.json")
            shards = [(inside(self.folder, entry["file"], said), entry["checksum"]) for entry in found["shards"]]
            check_files(shards, f"delete {self.folder} and embed again, or --overwrite")
        except CurationError:
            if not overwrite:
                raise
            clear_folder(self.folder)
        else:
            self.info = found

    @property
    def n_written(self) -> int:
        return int(self.info["rows"])

    @property
    def complete(self) -> bool:
        return bool(self.info["complete"])

    def append(self, rows: np.ndarray | Float[Tensor, "m d"]) -> None:
        """Add rows; whole shards go to disk.

        Raises:
            CurationError: the width is wrong, a row is NaN or infinite, or the disk is full.
        """
        tensor = torch.as_tensor(rows)
        if tensor.ndim != 2 or tensor.shape[1] != self.dim:
            raise CurationError(f"rows of shape {tuple(tensor.shape)} do not fit embeddings of {self.dim} dimensions")
        tensor = tensor.detach().to("cpu", DTYPES[self.dtype])
        finite = torch.isfinite(tensor).all(dim=1)
        if not finite.all():
            row = self.n_written + self._held_rows + int((~finite).nonzero()[0])
            raise CurationError(f"embedding row {row} is NaN or beyond the range of {self.dtype}; use --dtype float32")
        self._held.append(tensor)
        self._held_rows += len(tensor)
        while self._held_rows >= self.rows_per_shard:
            self._write_shard(self.rows_per_shard)

    def _write_shard(self, rows: int) -> None:
        held = torch.cat(self._held)
        shard, rest = held[:rows].contiguous(), held[rows:]
        require_free_space(self.folder, shard.nbytes)
        array = shard.view(torch.uint16).numpy() if self.dtype == "bfloat16" else shard.numpy()
        path = self.folder / f"shard-{len(self.info['shards']):05d}.npy"
        save_array(path, array)
        self.info["shards"].append({"file": path.name, "rows": len(shard), "checksum": checksum(path)})
        self.info["rows"] += len(shard)
        save_json(self.folder / "embeddings.json", self.info, seal=True)
        self._held, self._held_rows = ([rest] if len(rest) else []), len(rest)

    def finish(self, **metadata: Any) -> None:
        """Write what is held and mark the folder complete; ``metadata`` joins ``embeddings.json``."""
        if self._held_rows:
            self._write_shard(self._held_rows)
        self.info.update(metadata)
        self.info["complete"] = True
        if (self.folder / "row_ids.npy").exists():
            self.info["row_ids_checksum"] = checksum(self.folder / "row_ids.npy")
        save_json(self.folder / "embeddings.json", self.info, seal=True)

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held, self._held_rows = [], 0
