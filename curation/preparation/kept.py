"""What preparation keeps: a folder that `curation.preparation.prepare` writes, and every later step can take.

It holds ``row_ids.npy`` (int64 pool rows to keep, ascending), ``dropped.parquet`` (row, reason, the row that it repeats
or -1, their cosine or NaN), ``dropped.html`` (samples of what was dropped, next to what it repeats) and, written last,
``report.json``. Nothing is copied: `kept_rows` gives the embeddings without the rest.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from curation.pools.pool import OWN_POOL, pool_fingerprint, require_own_pool
from curation.preparation.dropped_page import dropped_page
from curation.store.bad_rows import KeptRows
from curation.store.embeddings import Embeddings, check_row_ids, open_embeddings
from foundation.errors import CurationError
from foundation.files import check_files, checksum, load_array, load_json, save_array, save_json, write_atomically
from foundation.paths import regular_file
from foundation.settings import CountOrZero, short

FORMAT_VERSION = 1
AGAIN = "prepare the pool again"


@dataclass
class Kept:
    """What preparation keeps.

    Attributes:
        rows: (m,) int64 pool rows to keep, ascending.
        dropped: (r,) int64 pool rows, ascending, with
        reasons: (r,) why,
        repeats: (r,) int64 the row that each repeats, kept unless it is junk itself; -1: none,
        similarity: (r,) float32 cosine of the two after the mean is taken off; NaN where it was not measured.
        report: counts and settings, as in ``report.json``.
    """

    rows: Int[np.ndarray, "m"]
    dropped: Int[np.ndarray, "r"]
    reasons: np.ndarray
    repeats: Int[np.ndarray, "r"]
    similarity: np.ndarray
    report: dict[str, Any]

    def line(self) -> str:
        """One line for people: how many rows are kept, and why the others are not."""
        counts = ", ".join(f"{number:,} {reason}" for reason, number in self.report["dropped"].items())
        total = len(self.rows) + len(self.dropped)
        return f"{len(self.rows):,} of {total:,} rows kept" + (f"; left out: {counts}" if counts else "")


def save_kept(kept: Kept, folder: Path, pool: Any = None, commands: Sequence[str] = ()) -> None:
    """Write a kept folder; ``report.json`` comes last and makes it whole."""
    (folder / "report.json").unlink(missing_ok=True)
    save_array(folder / "row_ids.npy", kept.rows)
    table = pa.table(
        {
            "row": kept.dropped,
            "reason": pa.array(kept.reasons.tolist(), pa.string()),
            "repeats": kept.repeats,
            "similarity": kept.similarity,
        }
    )
    write_atomically(folder / "dropped.parquet", lambda stream: pq.write_table(table, stream))
    page = dropped_page(kept.dropped, kept.reasons, kept.repeats, kept.similarity, kept.line(), kept.report, pool)
    write_atomically(folder / "dropped.html", lambda stream: stream.write(page.encode()))
    report = {**kept.report, "checksum": checksum(folder / "row_ids.npy"), "commands": list(commands)}
    report["dropped_checksum"] = checksum(folder / "dropped.parquet")
    save_json(folder / "report.json", report, seal=True)


def load_kept(folder: str | Path) -> Kept:
    """Read a kept folder.

    Raises:
        CurationError: a file is missing, of another format version, or changed.
    """
    folder = Path(folder)
    if not (folder / "report.json").exists():
        raise CurationError(f"{folder} holds no finished preparation; make it with curate dedup or curate filter")
    report = read_report(folder)
    places = [
        (folder / "row_ids.npy", report["checksum"]),
        (folder / "dropped.parquet", report.get("dropped_checksum")),
    ]
    check_files(places, f"it is not what report.json describes: {AGAIN}")
    rows = check_row_ids(load_array(folder / "row_ids.npy"), report["kept"], str(folder / "row_ids.npy"))
    path = regular_file(folder / "dropped.parquet", AGAIN)
    try:
        table = pq.read_table(path, columns=["row", "reason", "repeats", "similarity"])
        row, reason, repeats, similarity = (table[name].to_numpy() for name in table.column_names)
    except (OSError, ValueError, KeyError) as error:
        raise CurationError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); {AGAIN}") from error
    return Kept(np.array(rows), row, reason, repeats, similarity, report)


@dataclass
class _Report:
    """What ``report.json`` holds at least."""

    format_version: int
    kept: CountOrZero
    checksum: str
    notes: list[str]
    dropped: dict[str, CountOrZero]
    embeddings_fingerprint: str | None = None
    pool_fingerprint: str | None = None
    dropped_checksum: str | None = None
    inputs: str | None = None


def read_report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    version = load_json(path, remedy=AGAIN).get("format_version")
    if version != FORMAT_VERSION:
        raise CurationError(f"{path} has format {short(version)}, not {FORMAT_VERSION}; {AGAIN}")
    return load_json(path, _Report, AGAIN)


def kept_rows(embeddings: Any, kept: Kept | str | Path) -> Embeddings:
    """Embeddings of the kept rows alone, without a copy; their ``row_ids`` are pool rows.

    ``metadata["near_copies_out"]`` says whether rows that repeat others by their embedding were left out.

    Raises:
        CurationError: no kept row has an embedding, or the kept rows are of other embeddings or of another pool.
    """
    x = open_embeddings(embeddings)
    found = kept if isinstance(kept, Kept) else load_kept(kept)
    of = found.report.get("embeddings_fingerprint")
    if of is not None and of != x.fingerprint():
        raise CurationError("the kept rows were chosen by other embeddings; prepare again with these")
    require_one_pool(found, None, x)
    rows = rows_of(None, x)
    dropped = np.flatnonzero(~np.isin(rows, found.rows))
    if len(dropped) == len(rows):
        raise CurationError("none of the kept rows has an embedding; were they chosen from this pool?")
    kept_of = KeptRows(x, dropped) if len(dropped) else copy(x)
    kept_of.metadata = {**kept_of.metadata, "near_copies_out": "near" in found.report}
    return kept_of


def require_one_pool(kept: Kept, pool: Any, x: Embeddings | None) -> None:
    """Refuse kept rows of another pool, where both are known; of one that is not known, those of other embeddings.

    Raises:
        CurationError: they are.
    """
    mine = pool_fingerprint(pool) if pool is not None else x and x.metadata.get("pool_fingerprint")
    theirs, of = kept.report.get("pool_fingerprint"), kept.report.get("embeddings_fingerprint")
    if mine and theirs and mine != theirs:
        raise CurationError(f"the kept rows came from another pool, or from another column of it; {OWN_POOL}")
    if not (mine and theirs) and x is not None and of not in (None, x.fingerprint()):
        raise CurationError("the kept rows were chosen by other embeddings; prepare again with these")


def rows_of(pool: Any, x: Embeddings | None) -> Int[np.ndarray, "n"]:
    """Pool rows of the embeddings, or all of the pool."""
    if x is None:
        return np.arange(len(pool))
    if pool is not None:
        require_own_pool(pool, x.n_rows, x.row_ids, x.metadata.get("pool_fingerprint"), "the embeddings")
    return np.arange(x.n_rows) if x.row_ids is None else np.asarray(x.row_ids)
