"""Test texts that the training texts contain: a judge that has read the answers measures memory.

The share of a test text's word 8-grams that occur anywhere in the training texts, as in the contamination study of PaLM
(Chowdhery et al. 2022, section 8), where a share of 0.7 counts as seen.
"""

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from jaxtyping import Bool, Float

WORDS, SHARE = 8, 0.7
WORD = re.compile(r"\w+")
Gram = tuple[str, ...]


def _grams(text: str, n: int) -> set[Gram]:
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))} if words else set()


def wanted_grams(test: Iterable[str], n: int = WORDS) -> list[set[Gram]]:
    """Distinct word n-grams of each test text; a text of fewer than n words is one n-gram."""
    return [_grams(text, n) for text in test]


def found_grams(train: Iterable[str], asked: AbstractSet[Gram], n: int = WORDS) -> set[Gram]:
    """Which of the n-grams occur in some training text; memory grows with ``asked`` alone."""
    found: set[Gram] = set()
    for text in train:
        found |= _grams(text, n) & asked
    return found


def shares_of(wanted: Sequence[set[Gram]], found: AbstractSet[Gram]) -> Float[np.ndarray, "n"]:
    """Share of each text's n-grams that were found; 0 for a text without words."""
    return np.asarray([len(grams & found) / len(grams) if grams else 0.0 for grams in wanted])


def seen_shares(train: Iterable[str], test: Sequence[str], n: int = WORDS) -> Float[np.ndarray, "n"]:
    """Share of each test text's distinct word n-grams that some training text has; 0 for a text without words.

    Case and punctuation do not count; a text of fewer than n words is one n-gram. Memory grows with the test texts
    alone.
    """
    wanted = wanted_grams(test, n)
    return shares_of(wanted, found_grams(train, set().union(*wanted), n))


def seen(train: Iterable[str], test: Sequence[str], n: int = WORDS, share: float = SHARE) -> Bool[np.ndarray, "n"]:
    """Whether at least ``share`` of a test text's word n-grams occur in the training texts."""
    return seen_shares(train, test, n) >= share
