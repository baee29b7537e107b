"""Embeddings that need no network: byte histograms, and TF-IDF of character n-grams in fewer dimensions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from foundation.clock import spoken
from foundation.errors import CurationError
from foundation.files import write_atomically
from foundation.numbers import is_digits
from foundation.paths import regular_file

BYTES, CHARACTERS = "byte_histogram", "char_svd"
N_GRAMS, FEATURES, DIMENSIONS = (2, 5), 50_000, 128
AXES = 0.5  # time of finding the axes by that of counting n-grams; of texts of 1 kB
AXES_FILE = "axes.safetensors"  # what `CharacterEmbedder.save` writes beside the embeddings


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
        vectorizer: of scikit-learn, fitted to f n-grams.
        axes: (d, f) float32, the singular vectors.
    """

    vectorizer: Any
    axes: Float[np.ndarray, "d f"]

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit rows, float32; a text that shares no n-gram with those it was fitted on has a row of zeros."""
        x = (self.vectorizer.transform(texts) @ self.axes.T).astype(np.float32)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    def save(self, path: Path) -> None:
        """Write what it was fitted to, so that later texts are embedded alike: 4 bytes x d x f."""
        from safetensors.numpy import save

        n_grams = sorted(self.vectorizer.vocabulary_, key=self.vectorizer.vocabulary_.__getitem__)
        arrays = {"axes": np.ascontiguousarray(self.axes), "idf": self.vectorizer.idf_.astype(np.float32)}
        content = save(arrays, {"n_grams": json.dumps(n_grams)})
        write_atomically(path, lambda stream: stream.write(content))

    @classmethod
    def load(cls, path: Path) -> "CharacterEmbedder":
        """Read what `save` wrote.

        Raises:
            CurationError: no such file, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(regular_file(path), "np") as file:
                axes, idf = file.get_tensor("axes"), file.get_tensor("idf")
                n_grams = json.loads((file.metadata() or {})["n_grams"])
            if axes.dtype != np.float32 or axes.shape[1:] != (len(n_grams),) or len(set(n_grams)) != len(n_grams):
                raise ValueError("its parts do not fit each other")
            vectorizer = _vectorizer(vocabulary=n_grams)
            vectorizer.idf_ = idf
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CurationError(f"{path} holds no axes of {CHARACTERS} ({error}); embed its pool again") from error
        return cls(vectorizer, axes)


def _vectorizer(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char", ngram_range=N_GRAMS, sublinear_tf=True, dtype=np.float32, **options)


def fit_characters(
    texts: Sequence[str], dim: int = DIMENSIONS, seed: int = 0, progress: bool = False
) -> CharacterEmbedder:
    """An embedder fitted on these texts: the `FEATURES` most frequent n-grams of `N_GRAMS` characters in two or more.

    Some 250 texts of 1 kB a second on one core; with ``progress`` a bar says how far it is.

    Raises:
        CurationError: fewer texts or n-grams than dimensions.
    """
    from sklearn.decomposition import TruncatedSVD

    vectorizer = _vectorizer(min_df=2, max_features=FEATURES)
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
        axes = TruncatedSVD(dim, random_state=seed).fit(counts).components_
    return CharacterEmbedder(vectorizer, axes.astype(np.float32))


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
        raise CurationError(
            f"embedder {name!r} is unknown; use {BYTES}, {CHARACTERS}, {CHARACTERS}:DIMENSIONS, or {CHARACTERS}:FOLDER "
            "of finished embeddings"
        )
    return 256 if kind == BYTES else int(rest or DIMENSIONS)


def embed_lexically(
    name: str, fitted_on: Sequence[str], *texts: Sequence[str], seed: int = 0
) -> list[Float[np.ndarray, "n d"]]:
    """Embeddings of each list of texts by one `lexical_embedder`."""
    embed = lexical_embedder(name, fitted_on, seed)
    return [embed(part) for part in texts]
