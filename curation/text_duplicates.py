"""Exact and near duplicates among texts: which rows to keep, and which row each dropped one repeats."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from foundation.errors import CurationError

WORD = re.compile(r"\w+")


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
    found = []
    for row, text in enumerate(texts):
        key = hashlib.blake2b((normalise(text) or text).encode(errors="surrogatepass"), digest_size=16).digest()
        found.append(first.setdefault(key, row))
    return Duplicates(np.asarray(found, np.int64))


def near_duplicates(
    texts: Sequence[str],
    threshold: float = 0.7,
    shingle: int = 5,
    permutations: int = 128,
    verify: bool = True,
    seed: int = 1,
    progress: bool = True,
) -> Duplicates:
    """Rows whose sets of word n-grams overlap: MinHash and locality-sensitive hashing through `datasketch`.

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
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise CurationError("near duplicates need datasketch; pip install 'curated-ssl[text]'") from error
    if not 0 < threshold <= 1 or shingle < 1 or permutations < 2:
        raise CurationError(
            f"threshold {threshold} must lie in (0, 1], shingle {shingle} be at least 1, permutations {permutations} 2"
        )
    index = MinHashLSH(threshold=threshold, num_perm=permutations)
    parent = np.arange(len(texts))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    signatures: dict[int, MinHash] = {}  # the index holds bands only; needed where signatures are the measure
    for row, text in enumerate(tqdm(texts, unit=" texts", desc="near duplicates", disable=not progress)):
        grams = _grams(text, shingle)
        signature = MinHash(num_perm=permutations, seed=seed)
        signature.update_batch([gram.encode(errors="surrogatepass") for gram in grams])
        if not verify:
            signatures[row] = signature
        for other in sorted(index.query(signature)):
            one, two = root(row), root(other)
            if one == two:
                continue
            if verify:
                rest = _grams(texts[other], shingle)
                alike = len(grams & rest) / max(len(grams | rest), 1)
            else:
                alike = signature.jaccard(signatures[other])
            if alike >= threshold:
                parent[max(one, two)] = min(one, two)
        if grams:
            index.insert(row, signature)
    return Duplicates(np.asarray([root(row) for row in range(len(texts))], np.int64))


def _grams(text: str, n: int) -> set[str]:
    words = normalise(text).split()
    if not words:
        return set()
    return {" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}
