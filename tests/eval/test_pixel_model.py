"""The pixel judge: exact against a dictionary in fractions, a distribution, and it knows its own kind of picture."""

from collections import Counter
from fractions import Fraction
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from eval.pixel_model import LEVELS, OFFSETS, fit_pixels, grey_pictures, quantised
from foundation.errors import CurationError

pictures_of = st.integers(1, 4).flatmap(lambda n: arrays(np.uint8, (n, 4, 5), elements=st.integers(0, 2)))


def before(picture: np.ndarray, row: int, column: int, neighbours: int) -> tuple[int | None, ...]:
    """Values of the nearest pixels before one; None outside the picture."""
    found: list[int | None] = []
    for down, right in OFFSETS[:neighbours]:
        y, x = row + down, column + right
        found.append(int(picture[y, x]) if y >= 0 and 0 <= x < picture.shape[1] else None)
    return tuple(found)


def naive(train: np.ndarray, picture: np.ndarray, neighbours: int, levels: int) -> float:
    """Bits of a picture by the formula, one dictionary for all contexts, in exact fractions until the logarithm."""
    followers: dict[tuple[int | None, ...], Counter[int]] = {}
    for known in train:
        for place in np.ndindex(known.shape):
            for n in range(neighbours + 1):
                followers.setdefault(before(known, *place, n), Counter())[int(known[place])] += 1
    bits = 0.0
    for place in np.ndindex(picture.shape):
        p = Fraction(1, levels)
        for n in range(neighbours + 1):
            counts = followers.get(before(picture, *place, n))
            if counts:
                p = (counts[int(picture[place])] + len(counts) * p) / (counts.total() + len(counts))
        bits -= log2(p)
    return bits


def waves(n: int, seed: int, along: int) -> np.ndarray:
    """Stripes of random phase and width with some noise, along rows or columns."""
    rng = np.random.default_rng(seed)
    x = np.arange(16) * rng.uniform(0.3, 1.0, (n, 1)) + rng.uniform(0, 6, (n, 1))
    stripes = 128 + 100 * np.sin(x)
    whole = np.repeat(np.expand_dims(stripes, along), 16, axis=along) + rng.normal(0, 5, (n, 16, 16))
    return quantised(np.clip(whole, 0, 255).astype(np.uint8))


@given(pictures_of, pictures_of, st.integers(0, len(OFFSETS)))
@settings(max_examples=40, deadline=None)
def test_every_picture_takes_the_bits_of_the_formula(train: np.ndarray, test: np.ndarray, neighbours: int):
    model = fit_pixels(train, neighbours, 4)
    both = np.concatenate([test, train])
    expected = [naive(train, picture, neighbours, 4) for picture in both]
    np.testing.assert_allclose(model.bits(both), expected, rtol=1e-12, atol=1e-12)


@given(pictures_of, pictures_of, st.integers(0, len(OFFSETS)), st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one_at_any_pixel(
    train: np.ndarray, test: np.ndarray, neighbours: int, row: int, column: int
):
    p = fit_pixels(train, neighbours).distribution(test[0], row, column)
    assert p.shape == (LEVELS,)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p > 0).all()


def test_training_helps_and_more_of_its_own_kind_helps_more_than_of_another():
    test = waves(20, 1, along=1)
    few, more = waves(20, 2, along=1), waves(200, 3, along=1)
    trained = {"few": few, "more": more, "other": np.concatenate([few, waves(180, 4, along=2)])}
    mean = {name: fit_pixels(pictures).bits(test).mean() / 256 for name, pictures in trained.items()}
    assert mean["more"] < mean["other"] < 4  # bits of a pixel that nothing is known of
    assert mean["more"] < mean["few"] < 4
    assert fit_pixels(more).bits(test).mean() < fit_pixels(more, 0).bits(test).mean()


def test_a_picture_never_borrows_from_its_neighbour_and_order_decides_nothing():
    train, test = waves(12, 5, 1), waves(3, 6, 1)
    model = fit_pixels(train)
    alone = [model.bits(picture[None])[0] for picture in test]
    np.testing.assert_array_equal(model.bits(test), alone)
    np.testing.assert_array_equal(fit_pixels(train[::-1]).bits(test), model.bits(test))


def test_pictures_become_grey_squares_of_few_levels():
    white, red = Image.new("RGB", (40, 20), "white"), Image.new("RGB", (8, 8), (255, 0, 0))
    grey = grey_pictures([white, red], 4)
    assert grey.shape == (2, 4, 4)
    assert np.unique(grey).tolist() == [76, 255]
    assert np.unique(quantised(grey)).tolist() == [76 // 16, 15]
    assert quantised(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), 8).max() == 7
    assert grey_pictures([], 4).shape == (0, 4, 4)


def test_mistakes_are_one_line():
    some = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(CurationError, match="no picture"):
        fit_pixels(some[:0])
    with pytest.raises(CurationError, match=r"neighbours 13.*0\.\.12"):
        fit_pixels(some, 13)
    with pytest.raises(CurationError, match=r"levels 17.*2\.\.16"):
        fit_pixels(some, levels=17)
    with pytest.raises(CurationError, match=r"below 16, not uint8 .* up to 200; see"):
        fit_pixels(some + 200)
