"""Near-duplicates: a rule that goes too far deletes a pool, one that does too little leaves it full of copies."""

import numpy as np
import pytest

import curation.preparation.near_duplicates as module
from curation.preparation.near_duplicates import NearRule, near_duplicates, near_held_out, star_groups
from foundation.errors import CurationError

RNG = np.random.default_rng(0)


def find(x: np.ndarray, metric: str = "cosine", **options):
    return near_duplicates(x.astype(np.float32), metric=metric, progress=False, **options)


def shapes() -> dict[str, tuple[np.ndarray, str]]:
    """Embeddings without duplicates, on which a fixed cosine of 0.96 and chains would leave next to nothing."""
    noise = RNG.normal(size=(1500, 48))
    concepts = RNG.normal(size=(15, 48))[RNG.integers(0, 15, 1500)]
    return {
        "every cosine above 0.99": (noise + 20, "cosine"),
        "one strong direction": (noise * np.exp(-np.arange(48) / 6) + 50 * np.eye(48)[0], "cosine"),
        "tight concepts": (concepts + 0.05 * noise, "cosine"),
        "tight concepts, far from zero": (concepts + 0.05 * noise + 9, "l2"),
        "two dimensions": (RNG.normal(size=(1500, 2)), "l2"),
        "three dimensions": (RNG.random((1500, 3)), "cosine"),
        "ten dimensions": (RNG.normal(size=(1500, 10)), "l2"),
    }


@pytest.mark.parametrize("name", shapes())
def test_a_pool_without_duplicates_keeps_its_rows_whatever_the_embedding(name: str):
    x, metric = shapes()[name]
    assert len(find(x, metric).dropped) <= 0.02 * len(x)


@pytest.mark.parametrize("name", shapes())
def test_copies_are_found_whatever_the_embedding(name: str):
    x, metric = shapes()[name]
    apart = np.linalg.norm(x - np.median(x, 0), axis=1).mean()
    copies = np.repeat(np.arange(0, 120, 3), 3)
    pool = np.concatenate([x, x[copies] + 1e-5 * apart * RNG.normal(size=(len(copies), x.shape[1]))])
    found = find(pool, metric)
    groups = np.concatenate([np.arange(len(x)), copies])
    right = groups[found.dropped] == groups[found.duplicate_of]
    assert right.sum() >= 0.98 * len(copies)
    assert (~right).sum() <= 0.02 * len(x)


def test_every_dropped_row_is_near_the_row_that_is_kept_for_it_and_never_through_others():
    """A chain of small steps around a circle: linked components would leave one row of 400."""
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    wide = np.zeros((800, 40))
    wide[:400, 0], wide[:400, 1] = np.cos(angles), np.sin(angles)
    wide[400:, 2:] = RNG.normal(size=(400, 38)) / 6
    rule = NearRule(0.95, neighbours=700, false_alarm=0.99, largest_group=800)
    found = find(wide, rule=rule)
    assert len(found.keep) > 400 + 5
    x = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    x -= x.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (x[found.dropped] * x[found.duplicate_of]).sum(1)
    np.testing.assert_allclose(found.similarity, cosine, atol=1e-3)
    assert cosine.min() >= 0.95 - 1e-3
    assert set(found.duplicate_of) <= set(found.keep)
    np.testing.assert_array_equal(np.union1d(found.keep, found.dropped), np.arange(800))


def test_a_burst_of_more_equal_rows_than_there_are_neighbours_leaves_one():
    x = RNG.normal(size=(600, 32))
    found = find(np.concatenate([x, np.repeat(x[:1], 500, axis=0)]))
    assert len(found.keep) == 600


def rare(rows: int, rng: np.random.Generator, dim: int = 64) -> np.ndarray:
    """2,000 rows and then a concept of few more, whose rows lie as close to each other as copies of one do."""
    return np.concatenate([rng.normal(size=(2000, dim)), rng.normal(size=dim) + 0.05 * rng.normal(size=(rows, dim))])


@pytest.mark.parametrize("rows", [5, 12, 31])
def test_a_rare_concept_is_not_taken_for_one_row_and_its_copies(rows: int):
    x = rare(rows, np.random.default_rng(rows))
    found = find(x)
    assert found.dropped.tolist() == []
    assert found.measured["alike"] == rows - 1
    assert len(find(x, rule=NearRule(largest_group=40)).dropped) == rows - 1


def test_of_a_rare_concept_what_is_all_but_equal_goes():
    """Each of its rows comes three times, one of them fifty times."""
    x = rare(10, np.random.default_rng(1))
    copies = np.repeat(np.arange(2000, 2010), [49, *[2] * 9])
    found = find(np.concatenate([x, x[copies] + 1e-6]))
    np.testing.assert_array_equal(found.dropped, np.arange(2010, 2010 + len(copies)))
    np.testing.assert_array_equal(found.duplicate_of, copies)


def test_rows_of_a_large_group_that_go_by_their_looks_are_not_counted_as_kept():
    """The note on a rare concept told 11 rows as kept of which 7 were left out."""
    x = rare(12, np.random.default_rng(12))
    found = find(x, pairs=(np.full(7, 2000), np.arange(2001, 2008)))
    np.testing.assert_array_equal(found.dropped, np.arange(2001, 2008))
    assert found.measured["alike"] == 4
    everything = find(x, pairs=(np.full(11, 2011), np.arange(2000, 2011)))
    assert (len(everything.dropped), everything.measured["alike"]) == (11, 0)


def test_equal_rows_count_once_for_the_size_of_a_group():
    """Two rows that repeat each other, each of them five times, are two rows."""
    x = rare(2, np.random.default_rng(2))
    found = find(np.concatenate([x, np.repeat(x[2000:], 4, axis=0)]))
    assert len(found.keep) == 2001
    assert found.measured["alike"] == 0


def test_stars_take_partners_alone():
    centre = star_groups(7, np.array([0, 1, 2, 5]), np.array([1, 2, 3, 6]))
    np.testing.assert_array_equal(centre, [1, 1, 1, 3, 4, 5, 5])
    np.testing.assert_array_equal(star_groups(3, np.empty(0, int), np.empty(0, int)), [0, 1, 2])


def test_pairs_that_look_alike_are_dropped_only_where_the_embedding_agrees():
    x = RNG.normal(size=(400, 32))
    x[1] = x[0] + 0.25 * RNG.normal(size=32)
    pairs = np.array([0, 2]), np.array([1, 3])
    found = find(x, rule=NearRule(0.999), pairs=pairs)
    assert found.dropped.tolist() == [1]
    assert found.duplicate_of.tolist() == [0]


def test_large_pools_are_searched_in_cells_and_in_parts(monkeypatch: pytest.MonkeyPatch):
    x = RNG.normal(size=(1200, 24))
    pool = np.concatenate([x, x[:200] + 1e-3 * RNG.normal(size=(200, 24))])
    exact = find(pool)
    assert len(exact.dropped) == 200
    monkeypatch.setattr(module, "EXACT_ROWS", 500)
    cells = find(pool)
    assert len(np.setxor1d(exact.dropped, cells.dropped)) <= 6
    monkeypatch.setattr(module, "INDEX_BYTES", 1100 * 24 * 2)
    parts = find(pool)
    assert parts.measured["searched"] <= 1100
    assert len(np.setxor1d(exact.dropped, parts.dropped)) <= 15


def test_held_out_rows_are_found_by_the_same_rule():
    pool, test = RNG.normal(size=(900, 32)) + 30, RNG.normal(size=(80, 32)) + 30
    pool[50:70] = test[10:30] + 1e-2 * RNG.normal(size=(20, 32))
    found = near_held_out(pool.astype(np.float32), test.astype(np.float32), progress=False)
    np.testing.assert_array_equal(found.dropped, np.arange(50, 70))
    np.testing.assert_array_equal(found.duplicate_of, np.arange(10, 30))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_rows_are_kept(n: int):
    assert len(find(RNG.normal(size=(n, 16))).keep) == n


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find(np.ones((50, 4))), "all 50 embeddings are alike"),
        (lambda: NearRule(threshold=1.2), "threshold 1.2 is a cosine"),
        (lambda: NearRule(threshold=0), "threshold 0 is a cosine"),
        (lambda: NearRule(ratio=0), r"ratio 0 must lie in"),
        (lambda: near_held_out(np.ones((5, 4)), np.ones((5, 3))), "4 dimensions but the held-out set 3"),
    ],
)
def test_mistakes_are_one_line(call, message: str):
    with pytest.raises(CurationError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
