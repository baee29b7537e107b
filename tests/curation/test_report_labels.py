"""Labels: a hole that is taken for a concept, or a name that is lost, makes the report's measure a lie."""

import time

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from curation import CurationError
from curation.pages.verdict import compare_labels, losers
from curation.pools.labels import read_labels
from curation.trees.balance import kl_to_uniform


@pytest.mark.parametrize(
    ("given", "codes", "names"),
    [
        ([7, None, 3, -1, 7], [1, -1, 0, -1, 1], ["3", "7"]),
        ([1.0, float("nan"), 2.5, -1.0], [0, -1, 1, -1], ["1", "2.5"]),
        (["b", None, "", "  ", "a"], [1, -1, -1, -1, 0], ["a", "b"]),
        ([True, False], [1, 0], ["False", "True"]),
        (np.array(["x", None, float("nan")], object), [0, -1, -1], ["x"]),
        (np.array([255, 3], np.uint8), [1, 0], ["3", "255"]),
        (pa.array(["u", "v", "u"]).dictionary_encode(), [0, 1, 0], ["u", "v"]),
        ([None, None], [-1, -1], []),
        (range(2), [0, 1], ["0", "1"]),
    ],
)
def test_holes_are_not_concepts(given, codes, names):
    found = read_labels(given)
    assert found.codes.tolist() == codes
    assert found.names == names


def test_class_names_come_from_the_pool_whatever_its_order():
    features = Features({"label": ClassLabel(names=["cat", "dog", "emu"]), "n": Value("int64")})
    pool = Dataset.from_dict({"label": [2, -1, 0, 2], "n": [0, 1, 2, 3]}, features=features)
    found = read_labels("label", pool)
    assert [found.names[code] if code >= 0 else None for code in found.codes] == ["emu", None, "cat", "emu"]
    turned = read_labels("label", pool.select([3, 2, 1, 0]))
    assert turned.codes.tolist() == found.codes[::-1].tolist()
    part = found.take(np.array([0, 1]))
    assert (part.codes.tolist(), part.names) == ([0, -1], ["emu"])


@pytest.mark.parametrize("given", [[[1], [2]], [1, "a"], np.zeros((2, 2)), [{"a": 1}]])
def test_more_than_one_value_a_row_is_one_clear_line(given):
    with pytest.raises(CurationError, match=r"^labels .*; give one") as caught:
        read_labels(given)
    assert "\n" not in str(caught.value)


def test_a_large_column_is_read_as_a_column():
    pool = Dataset.from_dict({"label": np.arange(300_000) % 7})
    started = time.process_time()
    assert len(read_labels("label", pool).codes) == 300_000
    assert time.process_time() - started < 2, "row by row it takes half a minute"


def test_infinity_is_no_label():
    """A column of it was one class, and an oracle drew from that."""
    assert read_labels([1.0, float("inf"), float("-inf"), float("nan")]).codes.tolist() == [0, -1, -1, -1]


def test_a_verdict_names_rare_labels_of_which_random_rows_hold_more():
    """A subset may be more even as a whole, and have lost what is rarest."""
    codes = np.repeat(np.arange(4), [9_000, 700, 200, 100])
    labels = read_labels([("dog", "cat", "ship", "truck")[code] for code in codes])
    rng, take = np.random.default_rng(0), {0: 300, 1: 300, 2: 199, 3: 1}
    rows = np.concatenate([rng.choice(np.flatnonzero(codes == code), n, replace=False) for code, n in take.items()])
    found = compare_labels(labels, rows, np.arange(len(codes)))
    assert losers(found) == ["But of these rare labels random rows hold more (in brackets): 'truck' 1 (8)."]
    assert found.subset.sum() == 800
    assert found.most_even() == pytest.approx(kl_to_uniform(np.array([250, 250, 200, 100])))
    take[3] = 8
    rows = np.concatenate([rng.choice(np.flatnonzero(codes == code), n, replace=False) for code, n in take.items()])
    assert losers(compare_labels(labels, rows, np.arange(len(codes)))) == []
