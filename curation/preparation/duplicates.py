"""What near-duplicates are told by: stored bytes, perceptual hashes and colours; and the report of any search for them.

`prepare` puts the rules together; for embeddings `near_duplicates` has the one without a threshold to tune.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from foundation.images import picture_file

GRID = 4  # places along each side at which colours are compared
GAIN = 0.75  # a copy may be so much darker, or its original
# bits of a hash that a mirror flips: odd waves across
MIRRORED = np.packbits(np.tile(np.arange(8) % 2 == 1, 8))
PAIRS_AT_ONCE = 1 << 20


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


def colour_grid(picture: Any) -> UInt8[np.ndarray, "g g 3"]:
    """Mean red, green and blue of each of `GRID` x `GRID` parts of an opaque picture."""
    from PIL.Image import Resampling

    return np.asarray(picture.convert("RGB").resize((GRID, GRID), Resampling.BOX))


def same_colours(
    grids: UInt8[np.ndarray, "n g g 3"],
    a: Int[np.ndarray, "p"],
    b: Int[np.ndarray, "p"],
    most: float,
    mirrored: bool = False,
) -> Bool[np.ndarray, "p"]:
    """Pairs whose colours differ by at most ``most`` of 255 on average, when the one is made as bright as the other.

    Perceptual hashes see shades of grey alone: drawings of one motif in other colours have one hash.

    Args:
        mirrored: compare with the second in the mirror.
    """
    across = -1 if mirrored else 1
    same = np.empty(len(a), bool)
    for start in range(0, len(a), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        one, two = grids[a[part]], grids[b[part]][:, :, ::across]
        one, two = (colours.reshape(len(colours), -1).astype(np.float32) for colours in (one, two))
        gain = (one * two).sum(1) / np.maximum((one * one).sum(1), 1)
        gain = np.clip(gain, GAIN, 1 / GAIN)
        same[part] = np.abs(one * gain[:, None] - two).mean(1) <= most
    return same


def alike(
    hashes: UInt8[np.ndarray, "n b"],
    grids: UInt8[np.ndarray, "n g g 3"],
    a: Int[np.ndarray, "p"],
    b: Int[np.ndarray, "p"],
    bits: int,
    colour: float,
) -> Bool[np.ndarray, "p"]:
    """Pairs of pictures that may be copies to the eye: hash and colours of one and the other, or its mirror image.

    Args:
        bits: of the hashes that may differ;
        colour: see `same_colours`.
    """
    differ = hashes[a] ^ hashes[b]
    found = np.zeros(len(a), bool)
    for mirrored in (False, True):
        far = np.bitwise_count(differ ^ MIRRORED if mirrored else differ).sum(1) > bits
        near = np.flatnonzero(~far & ~found)
        found[near] = same_colours(grids, a[near], b[near], colour, mirrored)
    return found


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
