"""Duplicates: one that stays weighs twice in training, an original that goes is lost."""

import itertools
import random

import numpy as np
import pytest

from curation.preparation.text_duplicates import exact_duplicates, near_duplicates, normalise
from foundation.errors import CurationError


def words(seed: int, n: int = 80) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=5)) for _ in range(n)]


def test_exact_duplicates_ignore_case_space_and_punctuation():
    texts = ["Hello, world!", "other", "hello   WORLD", "", "", "?!", "ﬁne", "fine"]
    found = exact_duplicates(texts)
    assert found.representative.tolist() == [0, 1, 0, 3, 3, 5, 6, 6]
    assert found.kept.tolist() == [0, 1, 3, 5, 6]
    assert found.counts == {"rows_in": 8, "rows_out": 5, "dropped": 3}


def test_near_duplicates_are_the_connected_pairs_above_the_threshold():
    texts = []
    for seed in range(12):
        base = words(seed)
        texts.append(" ".join(base))
        for changes in (1, 2, 4, 8, 20):
            draw = random.Random(100 * seed + changes)
            copy = list(base)
            for place in draw.sample(range(len(copy)), changes):
                copy[place] = "changed"
            texts.append(" ".join(copy))
    grams = [{tuple(w) for w in zip(*(t.split()[i:] for i in range(5)), strict=False)} for t in texts]
    found = near_duplicates(texts, threshold=0.5, permutations=256, progress=False).representative
    missed = 0
    parent = list(range(len(texts)))
    for a, b in itertools.combinations(range(len(texts)), 2):
        alike = len(grams[a] & grams[b]) / len(grams[a] | grams[b])
        if alike >= 0.5:
            missed += found[a] != found[b]
            one, two = parent[a], parent[b]
            parent = [min(one, two) if p in (one, two) else p for p in parent]
    assert missed <= 3  # hashing may miss a pair near the threshold
    # but it joins nothing that exact measurement does not
    assert all(parent[row] == parent[other] for row, other in enumerate(found))


def test_short_and_empty_texts():
    texts = ["", "", "one", "one", "two words", "Two words!", " . "]
    found = near_duplicates(texts, progress=False)
    assert found.representative.tolist() == [0, 1, 2, 2, 4, 4, 6]  # no words, no similarity
    assert near_duplicates([], progress=False).counts == {"rows_in": 0, "rows_out": 0, "dropped": 0}
    assert normalise("\uff21\uff0d\uff22  c") == "a b c"


def test_order_decides_which_row_stays_and_settings_are_checked():
    texts = [" ".join(words(1)), "x", " ".join(words(1))]
    assert near_duplicates(texts, progress=False).kept.tolist() == [0, 1]
    assert np.array_equal(near_duplicates(texts, verify=False, progress=False).kept, [0, 1])
    with pytest.raises(CurationError, match="threshold 0"):
        near_duplicates(texts, threshold=0)


@pytest.mark.parametrize("threshold", [0.97, 0.985, 1.0])
def test_only_equal_texts_are_as_alike_as_can_be(threshold: float):
    text = "a text of some eight or nine words in all"
    found = near_duplicates([text, text + " and more", text], threshold)
    assert found.kept.tolist() == [0, 1]
