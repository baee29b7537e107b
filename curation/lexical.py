"""Embeddings that need no network: byte histograms, and TF-IDF of character n-grams in fewer dimensions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from foundation.clock import spoken
from foundation.errors import CurationError
from foundation.numbers import is_digits

BYTES, CHARACTERS = "byte_histogram", "char_svd"
N_GRAMS, FEATURES, DIMENSIONS = (2, 5), 50_000, 128
AXES = 0.5  # time of finding the axes by that of counting n-grams; of texts of 1 kB


def byte_histograms(texts: Sequence[str]) -> Float[np.ndarray, "n 256"]:
    """Square root of each UTF-8 byte's share of a text, float32: unit rows, whose distance is Hellinger's times sqrt 2.

    Raises:
        CurationError: a text without a byte.
    """
    found = np.empty((len(texts), 256), np.float32)
    for row, text in enumerate(texts):
        counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
        if not counts.any():
            raise CurationError(f"text {row} is empty: it has no histogram; leave empty texts out")
        found[row] = np.sqrt(counts / counts.sum())
    return found


@dataclass(frozen=True)
class CharacterEmbedder:
    """TF-IDF of character n-grams, cut to the leading singular vectors. Make one with `fit_characters`.

    Attributes:
        vectorizer, svd: of scikit-learn, fitted.
    """

    vectorizer: Any
    svd: Any

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit rows, float32; a text that shares no n-gram with those it was fitted on has a row of zeros."""
        x = self.svd.transform(self.vectorizer.transform(texts)).astype(np.float32)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def fit_characters(
    texts: Sequence[str], dim: int = DIMENSIONS, seed: int = 0, progress: bool = False
) -> CharacterEmbedder:
    """An embedder fitted on these texts: the `FEATURES` most frequent n-grams of `N_GRAMS` characters in two or more.

    Some 250 texts of 1 kB a second on one core; with ``progress`` a bar says how far it is.

    Raises:
        CurationError: fewer texts or n-grams than dimensions.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=N_GRAMS, min_df=2, max_features=FEATURES, sublinear_tf=True, dtype=np.float32
    )
    started = perf_counter()
    told = tqdm(texts, desc="count n-grams", unit=" texts", leave=False, disable=not progress)
    counts = vectorizer.fit_transform(told) if len(texts) > 1 else np.empty((len(texts), 0))
    if min(counts.shape) <= dim:
        raise CurationError(
            f"{len(texts):,} texts with {counts.shape[1]:,} n-grams cannot be embedded in {dim} dimensions; "
            "lower the dimensions, or give more texts"
        )
    about = f"axes of the n-grams, about {spoken(AXES * (perf_counter() - started))}"
    with tqdm(total=1, desc=about, bar_format="{desc}", leave=False, disable=not progress):
        return CharacterEmbedder(vectorizer, TruncatedSVD(dim, random_state=seed).fit(counts))


def is_lexical(name: str) -> bool:
    """Whether this names an embedder of this module: "byte_histogram", "char_svd" or "char_svd:DIMENSIONS"."""
    return name.partition(":")[0] in (BYTES, CHARACTERS)


def lexical_embedder(
    name: str, fitted_on: Sequence[str], seed: int = 0
) -> Callable[[Sequence[str]], Float[np.ndarray, "n d"]]:
    """What embeds texts under this name, as float32.

    Args:
        name: see `is_lexical`.
        fitted_on: texts that the axes are fitted to, where the embedder has any.

    Raises:
        CurationError: an unknown name, or dimensions that are none.
    """
    dim = lexical_dimensions(name)
    return byte_histograms if name.partition(":")[0] == BYTES else fit_characters(fitted_on, dim, seed)


def lexical_dimensions(name: str) -> int:
    """Width of the embeddings of ``byte_histogram`` or ``char_svd:DIMENSIONS``.

    Raises:
        CurationError: an unknown name, or no such number of dimensions.
    """
    kind, _, rest = name.partition(":")
    if not is_lexical(name) or (rest and (kind == BYTES or not is_digits(rest) or len(rest) > 5 or int(rest) < 1)):
        raise CurationError(f"embedder {name!r} is unknown; use {BYTES}, {CHARACTERS} or {CHARACTERS}:DIMENSIONS")
    return 256 if kind == BYTES else int(rest or DIMENSIONS)


def embed_lexically(
    name: str, fitted_on: Sequence[str], *texts: Sequence[str], seed: int = 0
) -> list[Float[np.ndarray, "n d"]]:
    """Embeddings of each list of texts by one `lexical_embedder`."""
    embed = lexical_embedder(name, fitted_on, seed)
    return [embed(part) for part in texts]
