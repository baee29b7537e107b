"""What embeddings are made of: pieces in memory, ``.npy`` files, parquet or Arrow, read by blocks or by rows."""

import mmap
from bisect import bisect_right
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import CurationError, one_line
from foundation.paths import regular_file

MAPPED_AROUND = 2 << 20  # bytes: a page that is read may be part of a large one, which is mapped as a whole
ROWS_PER_RELEASE = 1024  # of rows that may lie apart
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
            raise CurationError(f"{path} cannot be read as parquet ({one_line(error)}); make it again") from error
        self.name, self.rows = str(path), self.file.metadata.num_rows
        self.column = only_list_column(self.file.schema_arrow, self.name) if column is None else column
        require_column(self.column, self.file.schema_arrow.names, str(path))
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
                raise CurationError(
                    f"{self.name} cannot be read as parquet ({one_line(error)}); make it again"
                ) from error
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


def only_list_column(schema: Any, name: str) -> str:
    import pyarrow as pa

    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    names = [
        field.name
        for field in schema
        if any(is_list(field.type) for is_list in lists) and pa.types.is_floating(field.type.value_type)
    ]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise CurationError(f"{name} needs one column of float lists, found {found}; name it with --column (column=)")
    return names[0]


def require_column(name: str, names: list[str], where: str) -> None:
    if names.count(name) != 1:
        how_many = f"{names.count(name)} columns" if name in names else "no column"
        raise CurationError(f"{where} has {how_many} {name!r}; it has {', '.join(names)}")
