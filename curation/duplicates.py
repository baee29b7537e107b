"""Duplicates: rows that add nothing, or that leak a test set into the pool.

Three notions, from strict to loose: equal bytes, equal to the eye (perceptual hash), close as embeddings; for the last,
`curation.near_duplicates` has the rule that needs no threshold to be tuned.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from curation.embeddings import Embeddings, open_embeddings
from foundation.errors import CurationError
from foundation.paths import regular_file

ROWS_PER_BLOCK = 16_384


@dataclass(frozen=True)
class DuplicateReport:
    """Which rows to keep.

    Attributes:
        keep: (m,) int64 rows, ascending.
        dropped: (n - m,) int64 rows, ascending.
        duplicate_of: (n - m,) int64: the kept row that each dropped one repeats; or the row of the reference set.
    """

    keep: Int[np.ndarray, "m"]
    dropped: Int[np.ndarray, "r"]
    duplicate_of: Int[np.ndarray, "r"]

    def __str__(self) -> str:
        return f"{len(self.keep):,} of {len(self.keep) + len(self.dropped):,} rows kept, {len(self.dropped):,} dropped"


def _from_groups(group: Int[np.ndarray, "n"]) -> DuplicateReport:
    """Keep the lowest row of every group."""
    _values, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    representative = first[inverse]
    dropped = np.flatnonzero(representative != np.arange(len(group)))
    return DuplicateReport(np.sort(first), dropped, representative[dropped])


def _from_pairs(n: int, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> DuplicateReport:
    """Keep the lowest row of every connected component."""
    rows, columns = [], []
    for row, column in pairs:
        rows.append(row)
        columns.append(column)
    row, column = np.concatenate([*rows, [0]]), np.concatenate([*columns, [0]])
    graph = coo_array((np.ones(len(row), bool), (row, column)), shape=(n, n))
    return _from_groups(connected_components(graph, directed=False)[1])


def picture_bytes(picture: Any) -> bytes:
    """The stored bytes of an undecoded picture, else its pixels."""
    if isinstance(picture, dict):
        if picture.get("bytes"):
            return picture["bytes"]
        if "://" in picture["path"]:
            return repr(picture["path"]).encode()
        return regular_file(picture["path"]).read_bytes()
    return repr(picture.size).encode() + picture.convert("RGBA").tobytes()


def exact_duplicates(pool: Any, column: str = "image", progress: bool = True) -> DuplicateReport:
    """Rows whose stored bytes (images) or text are equal; the first of each group is kept.

    Raises:
        CurationError: no such column.
    """
    from datasets import Image

    if column not in pool.column_names:
        raise CurationError(f"the pool has no column {column!r}; it has {', '.join(pool.column_names)}")
    if isinstance(pool.features[column], Image):
        pool = pool.cast_column(column, Image(decode=False))
    seen: dict[bytes, int] = {}
    group = np.empty(len(pool), np.int64)
    for row, value in enumerate(tqdm(pool[column], desc="exact duplicates", unit="row", disable=not progress)):
        content = value.encode() if isinstance(value, str) else picture_bytes(value)
        group[row] = seen.setdefault(hashlib.blake2b(content, digest_size=16).digest(), row)
    return _from_groups(group)


def can_hash() -> bool:
    """Whether `imagehash` is installed."""
    return find_spec("imagehash") is not None


def perceptual_hash(picture: Any, hash_size: int = 8) -> UInt8[np.ndarray, "b"]:
    """(hash_size^2 / 8,) uint8 perceptual hash of an opaque picture, from `imagehash`."""
    import imagehash

    return np.packbits(imagehash.phash(picture.convert("L"), hash_size=hash_size).hash.ravel())


def similar_hashes(
    hashes: UInt8[np.ndarray, "n b"], max_distance: int, window: int = 512
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Pairs of rows whose hashes differ in at most ``max_distance`` bits, without comparing all.

    Of max_distance + 1 bands of the bits one is equal in both. Rows of an equal band are compared with the next
    ``window`` in the order of their hashes: all pairs are found where no band is shared by more rows.
    """
    bits = np.unpackbits(hashes, axis=1)
    rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for band in np.array_split(np.arange(bits.shape[1]), max_distance + 1):
        keys = np.packbits(bits[:, band], axis=1)
        order = np.lexsort([*hashes.T[::-1], *keys.T[::-1]])
        band_of, sorted_hashes = keys[order], hashes[order]
        for offset in range(1, min(window, len(order) - 1) + 1):
            same = (band_of[:-offset] == band_of[offset:]).all(1)
            if not same.any():
                break
            first = np.flatnonzero(same)
            apart = np.bitwise_count(sorted_hashes[first] ^ sorted_hashes[first + offset]).sum(1)
            first = first[apart <= max_distance]
            rows.append(order[first])
            columns.append(order[first + offset])
    return np.concatenate(rows), np.concatenate(columns)


def perceptual_hashes(
    pool: Any, column: str = "image", hash_size: int = 8, progress: bool = True
) -> tuple[UInt8[np.ndarray, "n b"], Bool[np.ndarray, "n"]]:
    """(n, hash_size^2 / 8) uint8 perceptual hashes of the images, and (n,) whether each could be read."""
    if not can_hash():
        raise CurationError("perceptual hashes need: pip install 'curated-ssl[filters]'")
    hashes = np.zeros((len(pool), hash_size * hash_size // 8), np.uint8)
    readable = np.zeros(len(pool), bool)
    for row in tqdm(range(len(pool)), desc="perceptual hashes", unit="image", disable=not progress):
        try:
            picture = pool[row][column].convert("RGBA")
        except (OSError, ValueError):
            continue
        # transparency would hash as black
        flat = picture.copy()
        flat.paste("white", (0, 0, *picture.size))
        flat.alpha_composite(picture)
        hashes[row] = perceptual_hash(flat, hash_size)
        readable[row] = True
    return hashes, readable


def perceptual_duplicates(
    pool: Any, column: str = "image", max_distance: int = 4, hash_size: int = 8, progress: bool = True
) -> DuplicateReport:
    """Images whose perceptual hashes differ in at most ``max_distance`` of their hash_size^2 bits.

    Unreadable images are kept: they are the embedder's to name.
    """
    import faiss

    hashes, readable = perceptual_hashes(pool, column, hash_size, progress)
    rows = np.flatnonzero(readable)
    index = faiss.IndexBinaryFlat(hashes.shape[1] * 8)
    index.add(hashes[rows])

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(rows), ROWS_PER_BLOCK):
            block = hashes[rows[start : start + ROWS_PER_BLOCK]]
            # faiss takes distances strictly below the radius
            limits, _distances, found = index.range_search(block, max_distance + 1)
            lengths = (limits[1:] - limits[:-1]).astype(np.int64)
            yield rows[np.repeat(np.arange(len(lengths)) + start, lengths)], rows[found]

    return _from_pairs(len(pool), pairs())


def _unit(x: Embeddings, start: int, stop: int) -> np.ndarray:
    rows = x.block(start, stop).float().cpu().numpy()
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _index_of(x: Embeddings) -> Any:
    """An exact inner-product index; half precision, so that it needs two bytes for each value."""
    import faiss

    index = faiss.IndexScalarQuantizer(x.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, x.n_rows, ROWS_PER_BLOCK):
        index.add(_unit(x, start, start + ROWS_PER_BLOCK))
    return index


def _neighbours(
    queries: Embeddings, reference: Embeddings, threshold: float, title: str, progress: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    index = _index_of(reference)
    for start in tqdm(range(0, queries.n_rows, ROWS_PER_BLOCK), desc=title, unit="block", disable=not progress):
        block = _unit(queries, start, start + ROWS_PER_BLOCK)
        limits, _similarity, found = index.range_search(block, threshold)
        lengths = (limits[1:] - limits[:-1]).astype(np.int64)
        yield np.repeat(np.arange(len(lengths)) + start, lengths), found


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise CurationError(f"threshold {threshold} is a cosine similarity and must lie in (0, 1]")


def embedding_duplicates(x: Any, threshold: float = 0.96, progress: bool = True) -> DuplicateReport:
    """Rows that chains of cosine similarity at or above ``threshold`` connect; the lowest of each group is kept.

    Exact search over all pairs, for pools of up to a few million rows; above, use `curation.baselines.semdedup_subset`,
    which compares within clusters.
    """
    _check_threshold(threshold)
    source = open_embeddings(x)
    return _from_pairs(source.n_rows, _neighbours(source, source, threshold, "near duplicates", progress))


def held_out_duplicates(x: Any, held_out: Any, threshold: float = 0.96, progress: bool = True) -> DuplicateReport:
    """Pool rows at or above ``threshold`` of cosine similarity to a row of a held-out set: drop them before training.

    ``duplicate_of`` names the first such row of the held-out set.

    Raises:
        CurationError: the two were not embedded in the same dimensions.
    """
    _check_threshold(threshold)
    source, reference = open_embeddings(x), open_embeddings(held_out)
    if source.dim != reference.dim:
        raise CurationError(f"the pool has {source.dim} dimensions but the held-out set {reference.dim}")
    match = np.full(source.n_rows, reference.n_rows, np.int64)
    for rows, found in _neighbours(source, reference, threshold, "rows of the held-out set", progress):
        np.minimum.at(match, rows, found)
    leaked = match < reference.n_rows
    return DuplicateReport(np.flatnonzero(~leaked), np.flatnonzero(leaked), match[leaked])
