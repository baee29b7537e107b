"""Rows that no distance can be taken to: named in an error, or dropped, counted and remembered."""

import hashlib

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from curation.group import Group
from curation.store.embeddings import Embeddings, block_digest, digests_are_wanted, joined_digest, rows_per_read
from foundation.errors import CurationError

DROP_THEM = "leave them out with bad_rows='drop' (--drop-bad-rows)"
LARGEST, SMALLEST = 1e18, 1e-15  # squared distances are kept as float32


def usable(rows: Float[np.ndarray, "m d"]) -> Bool[np.ndarray, "m"]:
    """Which of a few rows are finite, not too large and not zero."""
    largest = np.abs(rows).max(axis=1)
    return (largest > 0) & (largest <= LARGEST)  # NaN is neither


def find_bad_rows(x: Embeddings, unit: bool, rows_per_block: int, group: Group | None = None) -> Int[np.ndarray, "b"]:
    """(b,) int64 rows that are NaN, infinite or beyond `LARGEST`, or zero where ``unit`` is set; one pass in blocks.

    Raises:
        CurationError: all rows are shorter than `SMALLEST`, and not zero, where ``unit`` is not set.
    """
    return _look_at_rows(x, unit, rows_per_block, group or Group(), None)


def read_all_rows(x: Embeddings, unit: bool, group: Group | None = None) -> tuple[Int[np.ndarray, "b"], str | None]:
    """What `find_bad_rows` finds, and `Embeddings.digest` from the same pass."""
    known, group = x.digest_of_files(), group or Group()
    parts: list[bytes] | None = [] if known is None and digests_are_wanted(x) else None
    bad = _look_at_rows(x, unit, rows_per_read(x.dim), group, parts)
    if parts is None:
        return bad, known
    mine = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 16)
    return bad, joined_digest(x, (part.tobytes() for part in group.gather(mine)))


def _look_at_rows(
    x: Embeddings, unit: bool, rows_per_block: int, group: Group, digests: list[bytes] | None
) -> Int[np.ndarray, "b"]:
    """One pass over the rows of this process; the checksums of its blocks are appended to ``digests``."""
    found, longest = [np.empty(0, np.int64)], 0.0
    for start, block in x.blocks(rows_per_block, group.span(x.n_rows, rows_per_block)):
        if digests is not None:
            digests.append(block_digest(block))
        sums = block.float().square().sum(dim=1) if block.dtype != torch.float64 else block.square().sum(dim=1)
        length = float(sums.nan_to_num().max()) ** 0.5
        longest = max(longest, length if length >= SMALLEST else float(block.abs().max()))  # squares may be 0
        doubtful = ~(sums < LARGEST**2)  # NaN too
        if doubtful.any():  # many values that are not too large may have a sum that is
            rows = doubtful.nonzero().flatten()
            doubtful[rows] = ~(block[rows].double().abs().amax(dim=1) <= LARGEST)
        if unit:
            doubtful |= sums < SMALLEST**2
        if doubtful.any():
            found.append(doubtful.nonzero().flatten().cpu().numpy().astype(np.int64) + start)
    if not unit and 0 < (longest := float(group.gather(np.array([longest])).max())) < SMALLEST:
        raise CurationError(
            f"no row of {x.shards[0].name} is longer than {longest:.3g}, where squared distances vanish; scale the rows"
        )
    return group.gather(np.concatenate(found))


class KeptRows(Embeddings):
    """Embeddings without some rows; nothing is copied. ``row_ids`` says which pool row each one is.

    Args:
        source: what to leave rows out of.
        dropped: (b,) int64 rows to leave out, ascending.

    Raises:
        CurationError: no row is left.
    """

    def __init__(self, source: Embeddings, dropped: Int[np.ndarray, "b"]):
        if len(dropped) >= source.n_rows:
            raise CurationError(f"all {source.n_rows} rows are bad (NaN, infinite or zero): embed them again")
        kept = np.delete(np.arange(source.n_rows), dropped)
        ids = kept if source.row_ids is None else np.asarray(source.row_ids)[kept]
        self.source, self.dropped = source, dropped
        self.shards, self.offsets = source.shards, source.offsets
        self.n_rows, self.dim, self.dtype = len(kept), source.dim, source.dtype
        self.shape = (self.n_rows, self.dim)
        of_pool = {} if source.row_ids is not None else {"pool_rows": source.n_rows}  # without ids they are all of it
        self.metadata, self.row_ids = {**source.metadata, **of_pool}, ids
        # how many rows were dropped before the i-th dropped one, seen from the kept rows
        self._before = dropped - np.arange(len(dropped))

    def fingerprint(self) -> str:
        """Of the source and of which rows are left out: two choices of equally many rows differ."""
        digest = hashlib.blake2b(self.source.fingerprint().encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.dropped, np.int64).tobytes())
        return digest.hexdigest()

    def _original(self, rows: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        return rows + np.searchsorted(self._before, rows, side="right")

    @property
    def in_memory(self) -> Tensor | None:
        """None: the whole array would be a copy."""
        return None

    def block(self, start: int, stop: int) -> Float[Tensor, "m d"]:
        stop = min(stop, self.n_rows)
        first, last = self._original(np.array([start, stop - 1]))
        rows = self.source.block(int(first), int(last) + 1)
        inside = self.dropped[(self.dropped > first) & (self.dropped < last)] - first
        if not len(inside):
            return rows
        keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        keep[torch.from_numpy(inside)] = False
        return rows[keep]

    def take(self, rows: Int[np.ndarray, "m"]) -> Float[Tensor, "m d"]:
        return self.source.take(self._original(np.asarray(rows, dtype=np.int64)))

    def ask_for(self, start: int, stop: int) -> None:
        stop = min(stop, self.n_rows)
        if start < stop:
            first, last = self._original(np.array([start, stop - 1]))
            self.source.ask_for(int(first), int(last) + 1)

    def locate(self, row: int) -> str:
        return self.source.locate(int(self._original(np.array([row]))[0]))


def check_rows(
    x: Embeddings, unit: bool, rows_per_block: int, group: Group | None = None, remedy: str = DROP_THEM
) -> None:
    """Refuse rows which no distance can be taken to.

    Args:
        remedy: what else can be done with them.

    Raises:
        CurationError: a row is NaN, infinite or beyond `LARGEST`, or zero with cosine distance; the first is named by
            shard and row.
    """
    refuse_rows(x, find_bad_rows(x, unit, rows_per_block, group), remedy)


def refuse_rows(x: Embeddings, bad: Int[np.ndarray, "b"], remedy: str = DROP_THEM) -> None:
    """Name the first of the rows that `find_bad_rows` found; none: nothing to say.

    Raises:
        CurationError: see `check_rows`.
    """
    if not len(bad):
        return
    where, more = x.locate(int(bad[0])), f" ({len(bad)} bad rows in all)" if len(bad) > 1 else ""
    row = x.take(bad[:1]).double()
    if not torch.isfinite(row).all():
        raise CurationError(f"{where} holds NaN or infinity{more}; embed these rows again, or {remedy}")
    if row.abs().max() > LARGEST:
        raise CurationError(
            f"{where} holds {float(row.abs().max()):.3g}, beyond {LARGEST:g}{more}; scale the rows, or {remedy}"
        )
    what = "is all zeros" if not row.any() else "is as good as zero"
    raise CurationError(f"{where} {what}, which has no cosine distance{more}; use metric l2, or {remedy}")
