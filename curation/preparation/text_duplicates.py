"""Exact and near duplicates among texts: which rows to keep, and which row each dropped one repeats."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, UInt32, UInt64
from tqdm import tqdm

from foundation.errors import CurationError

WORD = re.compile(r"\w+")
WINDOW = 64  # rows before it that a row is compared with in a large group of equal keys
ROWS_PER_SKETCH = 16_384


@dataclass(frozen=True)
class Duplicates:
    """Groups of rows that say the same.

    Attributes:
        representative: (n,) int64 the row that stands for each row: the lowest of its group; kept rows name themselves.
    """

    representative: Int[np.ndarray, "n"]

    @property
    def kept(self) -> Int[np.ndarray, "m"]:
        """Rows to keep, ascending."""
        return np.flatnonzero(self.representative == np.arange(len(self.representative)))

    @property
    def counts(self) -> dict[str, int]:
        rows, kept = len(self.representative), len(self.kept)
        return {"rows_in": rows, "rows_out": kept, "dropped": rows - kept}


def normalise(text: str) -> str:
    """Words in lower case, one space between: punctuation, case, white space and Unicode variants do not count."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", text).lower()))


def exact_duplicates(texts: Iterable[str]) -> Duplicates:
    """Rows of the same normalised text (see `normalise`); a text without words is compared as it is."""
    first: dict[bytes, int] = {}
    return Duplicates(np.asarray([first.setdefault(_digest(text), row) for row, text in enumerate(texts)], np.int64))


def _digest(text: str) -> bytes:
    return hashlib.blake2b((normalise(text) or text).encode(errors="surrogatepass"), digest_size=16).digest()


def first_of_equals(digests: UInt64[np.ndarray, "n 2"]) -> Int[np.ndarray, "n"]:
    """The first row that has the digest of each row: `exact_duplicates` of `Sketches.digests`."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the first row of equals comes first
    found = digests[order]
    new = np.ones(len(order), bool)
    new[1:] = (found[1:] != found[:-1]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


@dataclass(frozen=True)
class Sketches:
    """What of texts is needed to find those that repeat each other, a few hundred bytes for each.

    Attributes:
        digests: (n, 2) of the normalised text.
        keys: (n, bands) of the bands of its signature: texts that share one are candidates.
        starts: (n + 1,) where the n-grams of each text begin in
        grams: (g,) hashes of its distinct word n-grams, ascending.
        signatures: (n, permutations) MinHash signatures.
    """

    digests: UInt64[np.ndarray, "n 2"]
    keys: UInt64[np.ndarray, "n bands"]
    starts: Int[np.ndarray, "n+1"]
    grams: UInt64[np.ndarray, "g"]
    signatures: UInt32[np.ndarray, "n permutations"]


def bands_of(threshold: float, permutations: int = 128) -> tuple[int, int]:
    """Bands of a signature and rows of each, such that texts as alike as ``threshold`` mostly share a band.

    Raises:
        CurationError: `datasketch` is not installed.
    """
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise CurationError("near duplicates need datasketch; pip install 'curated-ssl[text]'") from error
    # above, it finds no two bands; a lower one misses nothing, for every candidate is compared
    index = MinHashLSH(threshold=min(threshold, 0.97), num_perm=permutations)
    return int(index.b), int(index.r)


def sketch(
    texts: Sequence[str], bands: tuple[int, int], shingle: int = 5, permutations: int = 128, seed: int = 1
) -> Sketches:
    """Sketches of texts, each by itself: those of parts are parts of those of the whole.

    Args:
        bands: of `bands_of`.
        shingle: words of an n-gram; a text with fewer words is one n-gram.
        permutations: length of a signature.
    """
    from datasketch import MinHash

    digests, signatures = np.empty((len(texts), 2), np.uint64), []
    grams: list[np.ndarray] = [np.empty(0, np.uint64)]
    empty = MinHash(num_perm=permutations, seed=seed)
    for row, text in enumerate(texts):
        digests[row] = np.frombuffer(_digest(text), np.uint64)
        encoded = [gram.encode(errors="surrogatepass") for gram in _grams(text, shingle)]
        signature = empty.copy()
        signature.update_batch(encoded)
        signatures.append(signature.hashvalues)
        hashes = b"".join(hashlib.blake2b(gram, digest_size=8).digest() for gram in encoded)
        grams.append(np.sort(np.frombuffer(hashes, np.uint64)))
    starts = np.cumsum([len(part) for part in grams])
    whole = np.array(signatures, np.uint32).reshape(len(texts), permutations)
    n, width = bands
    # of each band a sum with odd random factors: what collides is measured, so no more is asked of it
    factors = np.random.default_rng(0).integers(1 << 63, size=(n, width), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    keys = (whole[:, : n * width].reshape(-1, n, width).astype(np.uint64) * factors).sum(2, dtype=np.uint64)
    return Sketches(digests, keys, starts, np.concatenate(grams), whole)


def candidates(keys: UInt64[np.ndarray, "n"], rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "p 2"]:
    """Pairs of rows with the same key, the lower row first.

    In a group of more than `WINDOW` rows each is paired with the `WINDOW` before it: boilerplate that thousands share
    costs no square of their number.

    Args:
        keys: of one band.
        rows: ascending.
    """
    order = np.argsort(keys, kind="stable")
    found = keys[order]
    pairs = []
    for step in range(1, min(WINDOW, len(order) - 1) + 1):
        same = np.flatnonzero(found[step:] == found[:-step])
        if not len(same):
            break
        pairs.append(np.stack([rows[order[same]], rows[order[same + step]]], 1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def joined_pairs(n: int, pairs: Int[np.ndarray, "p 2"]) -> Duplicates:
    """Groups of ``n`` rows that pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    label = connected_components(graph, directed=False)[1] if n else np.empty(0, np.int64)
    lowest = np.full(n, n, np.int64)
    np.minimum.at(lowest, label, np.arange(n))
    return Duplicates(lowest[label])


def overlap(one: UInt64[np.ndarray, "a"], other: UInt64[np.ndarray, "b"]) -> float:
    """Jaccard similarity of two sets of n-grams."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1)


def near_duplicates(
    texts: Sequence[str],
    threshold: float = 0.7,
    shingle: int = 5,
    permutations: int = 128,
    verify: bool = True,
    seed: int = 1,
    progress: bool = True,
) -> Duplicates:
    """Rows whose sets of word n-grams overlap: MinHash and locality-sensitive hashing, signatures by `datasketch`.

    Pairs are candidates when a band of their signatures agrees; with ``verify`` the Jaccard similarity of the n-grams
    themselves decides, else that of the signatures. Groups are the connected parts of the pairs, so two rows of one
    group may be less alike than the threshold.

    Args:
        threshold: least Jaccard similarity of duplicates.
        shingle: words of an n-gram; a text with fewer words is one n-gram.
        permutations: length of a signature; the error of an estimated similarity is about 1 / sqrt(permutations).
        verify: measure candidates exactly.

    Raises:
        CurationError: bad settings, or `datasketch` is not installed.
    """
    if not 0 < threshold <= 1 or shingle < 1 or permutations < 2:
        raise CurationError(
            f"threshold {threshold} must lie in (0, 1], shingle {shingle} be at least 1, permutations {permutations} 2"
        )
    bands = bands_of(threshold, permutations)
    parts = []
    with tqdm(total=len(texts), unit=" texts", desc="near duplicates", disable=not progress) as bar:
        for start in range(0, len(texts), ROWS_PER_SKETCH):
            mine = texts[start : start + ROWS_PER_SKETCH]
            part = sketch(mine, bands, shingle, permutations, seed)
            # what does not decide is not held for all rows
            parts.append(replace(part, signatures=part.signatures[:0]) if verify else part)
            bar.update(len(mine))
    if not parts:
        return Duplicates(np.empty(0, np.int64))
    keys, grams = (np.concatenate([getattr(part, name) for part in parts]) for name in ("keys", "grams"))
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.flatnonzero(lengths)  # a text without words is like none
    found = [candidates(keys[rows, band], rows) for band in range(keys.shape[1])]
    pairs = np.unique(np.concatenate(found), axis=0)
    if verify:
        sets = (grams[starts[i] : starts[i + 1]] for i in pairs.ravel())
        alike = np.array([overlap(one, other) for one, other in zip(sets, sets, strict=True)])
    else:
        signatures = np.concatenate([part.signatures for part in parts])
        alike = (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(1) if len(pairs) else np.empty(0)
    return joined_pairs(len(texts), pairs[alike >= threshold])


def _grams(text: str, n: int) -> set[str]:
    words = normalise(text).split()
    if not words:
        return set()
    return {" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}
