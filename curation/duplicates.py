"""What near-duplicates are told by: stored bytes, and perceptual hashes; and the report of any search for them.

`curation.prepare` puts the rules together; for embeddings `curation.near_duplicates` has the one without a threshold to
tune.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from foundation.images import picture_file


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


def picture_bytes(picture: Any) -> bytes:
    """The stored bytes of an undecoded picture, else its pixels."""
    if isinstance(picture, dict):
        if picture.get("bytes"):
            return picture["bytes"]
        if "://" in picture["path"]:
            return repr(picture["path"]).encode()
        return picture_file(picture["path"]).read_bytes()
    return repr(picture.size).encode() + picture.convert("RGBA").tobytes()


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
