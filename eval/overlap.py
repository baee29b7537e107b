"""Test texts that the training texts contain: a judge that has read the answers measures memory.

The share of a test text's word 8-grams that occur anywhere in the training texts, as in the contamination study of PaLM
(Chowdhery et al. 2022, section 8), where a share of 0.7 counts as seen.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

WORDS, SHARE = 8, 0.7
WORD = re.compile(r"\w+")


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))} if words else set()


def seen_shares(train: Iterable[str], test: Sequence[str], n: int = WORDS) -> Float[np.ndarray, "n"]:
    """Share of each test text's distinct word n-grams that some training text has; 0 for a text without words.

    Case and punctuation do not count; a text of fewer than n words is one n-gram. Memory grows with the test texts
    alone.
    """
    wanted = [_grams(text, n) for text in test]
    asked = set().union(*wanted) if wanted else set()
    found: set[tuple[str, ...]] = set()
    for text in train:
        found |= _grams(text, n) & asked
    return np.asarray([len(grams & found) / len(grams) if grams else 0.0 for grams in wanted])


def seen(train: Iterable[str], test: Sequence[str], n: int = WORDS, share: float = SHARE) -> Bool[np.ndarray, "n"]:
    """Whether at least ``share`` of a test text's word n-grams occur in the training texts."""
    return seen_shares(train, test, n) >= share
