"""Labels of pool rows: one concept a row, with its name. Read column by column; rows without one are counted."""

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from foundation.errors import CurationError, one_line


@dataclass
class Labels:
    """The concept of every row.

    Attributes:
        codes: (n,) int64 index into ``names``, -1 where a row has no label.
        names: of the concepts.
    """

    codes: Int[np.ndarray, "n"]
    names: list[str]

    def take(self, rows: Int[np.ndarray, "m"], all_names: bool = False) -> "Labels":
        """Labels of these rows, with the names that occur among them, or with all.

        Raises:
            CurationError: a row lies beyond the labels, or none of the rows has a label.
        """
        if len(rows) and rows.max() >= len(self.codes):
            raise CurationError(f"{len(self.codes):,} labels, but row {rows.max():,} is used; one for each pool row")
        codes = self.codes[rows]
        present = np.bincount(codes[codes >= 0], minlength=len(self.names)) > 0
        if not present.any():
            raise CurationError("none of the rows has a label; give another column, or leave labels out")
        if all_names:
            return Labels(codes, self.names)
        renumbered = np.append(np.where(present, np.cumsum(present) - 1, -1), -1)  # the last entry serves code -1
        return Labels(renumbered[codes], [name for name, there in zip(self.names, present, strict=True) if there])


def read_labels(labels: Any, pool: Any = None) -> Labels:
    """Labels from a column of the pool or from an array.

    Nulls, NaN, infinity, empty strings and -1 (what `datasets` writes for hidden classes) are rows without a label.

    Args:
        labels: name of a pool column (classes, whole numbers, strings, truth values), or one value for each pool row.
        pool: `datasets.Dataset`, where ``labels`` is a name. Names of a ``ClassLabel`` column are taken from it.

    Raises:
        CurationError: no such column, or it does not hold one concept a row.
    """
    if isinstance(labels, Labels):
        return labels
    names: list[str] | None = None
    if isinstance(labels, str):
        what = f"label column {labels!r}"
        if pool is None:
            raise CurationError(
                f"there is no {what}: no pool was given; --pool FILE (parquet or JSONL) has a row for each embedding"
            )
        if labels not in pool.column_names:
            close = difflib.get_close_matches(labels, pool.column_names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CurationError(f"there is no {what}: the pool has {', '.join(pool.column_names)}{hint}")
        names = getattr(pool.features[labels], "names", None)
        column = pool.select_columns([labels]).with_format("arrow")[:][labels]
    else:
        what = "labels"
        try:
            column = pa.chunked_array([pa.array(labels, from_pandas=True)])
        except (pa.ArrowException, TypeError, ValueError) as error:
            reason = one_line(error)
            raise CurationError(f"labels are not one value for each row ({reason}); give one a row") from error
    return _encode(column, what, names)


def _encode(column: pa.ChunkedArray, what: str, class_names: list[str] | None) -> Labels:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return Labels(np.full(len(column), -1, np.int64), [])
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, None)
    if pa.types.is_floating(kind) or pa.types.is_signed_integer(kind):
        column = pc.if_else(pc.equal(column, pa.scalar(-1, kind)), None, column)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)
    elif not (pa.types.is_boolean(kind) or pa.types.is_unsigned_integer(kind)):
        raise CurationError(f"{what} holds {kind}; give one with a single class, number or string for each row")
    encoded = pa.concat_arrays(column.chunks or [pa.array([], kind)]).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=lambda i: values[i])
    rank = np.empty(len(values) + 1, np.int64)
    rank[order], rank[-1] = np.arange(len(values)), -1
    codes = rank[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)]
    return Labels(codes, [_name(values[i], class_names) for i in order])


def _name(value: Any, class_names: list[str] | None) -> str:
    if class_names is not None and isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
