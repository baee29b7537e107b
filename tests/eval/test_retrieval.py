"""Retrieval: average precision and the revisited protocol, against the definitions written out naively."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from eval.retrieval import (
    PROTOCOLS,
    GroundTruth,
    Query,
    label_retrieval,
    rank,
    read_ground_truth,
    revisited,
    trapezoid_ap,
)
from foundation.errors import CurationError

BOX = (0.0, 0.0, 9.0, 9.0)


def naive_ap(ranking: list[int], relevant: set[int], junk: set[int]) -> float:
    """The area under precision against recall as the Oxford benchmark walks down the list."""
    hits, seen, area, old_recall, old_precision = 0, 0, 0.0, 0.0, 1.0
    for image in ranking:
        if image in junk:
            continue
        hits += image in relevant
        seen += 1
        recall, precision = hits / len(relevant), hits / seen
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def test_revisited_protocol_agrees_with_a_naive_walk():
    rng = np.random.default_rng(0)
    queries = []
    for q in range(6):
        parts = rng.permutation(30)
        hard = parts[5:11].tolist() if q != 2 else []
        queries.append(Query(f"q{q}", BOX, parts[:5].tolist(), hard, parts[11:17].tolist()))
    truth = GroundTruth([f"i{i}" for i in range(30)], queries)
    ranking = np.stack([rng.permutation(30) for _ in queries])
    found = revisited(ranking, truth)
    for name, (wanted, ignored) in PROTOCOLS.items():
        expected = []
        for order, query in zip(ranking, queries, strict=True):
            relevant = {i for part in wanted for i in getattr(query, part)}
            junk = {i for part in ignored for i in getattr(query, part)}
            expected.append(naive_ap(order.tolist(), relevant, junk) if relevant else np.nan)
        np.testing.assert_allclose(found[name].per_query, expected)
        assert found[name].mean_ap == pytest.approx(np.nanmean(expected))
    assert np.isnan(found["hard"].per_query[2])


def test_perfect_and_worst_rankings():
    truth = GroundTruth(["a", "b", "c", "d"], [Query("q", BOX, [0], [1], [2])])
    perfect = revisited(np.array([[2, 0, 1, 3]]), truth)
    assert all(result.mean_ap == 1 for result in perfect.values())
    assert perfect["medium"].precision == {1: 1.0, 5: 1.0, 10: 1.0}
    assert revisited(np.array([[3, 2, 1, 0]]), truth)["easy"].precision[1] == 0
    assert trapezoid_ap(np.array([1]), 1) == pytest.approx((0 + 1 / 2) / 2)


def test_label_retrieval_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 5)), rng.integers(4, size=40)
    y[7] = 9  # the only one of its class
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = label_retrieval(x, y, queries_per_block=7)
    for i in range(40):
        rest = np.arange(40) != i
        if i == 7:
            assert np.isnan(found[i])
            continue
        assert found[i] == pytest.approx(average_precision_score(y[rest] == y[i], (unit @ unit[i])[rest]))
    other = label_retrieval(x[:5], y[:5], x[5:], y[5:])
    assert other[0] == pytest.approx(average_precision_score(y[5:] == y[0], unit[5:] @ unit[0]))


def test_ground_truth_is_read_from_json_and_never_unpickled(tmp_path: Path):
    content = {
        "imlist": ["a", "b", "c"],
        "qimlist": ["q"],
        "gnd": [{"bbx": [1, 2, 30, 40], "easy": [0], "hard": [], "junk": [2]}],
    }
    good = tmp_path / "gnd.json"
    good.write_text(json.dumps(content))
    truth = read_ground_truth(good)
    assert truth.queries[0].box == (1, 2, 30, 40)
    assert rank(np.eye(3)[:1], np.eye(3)).tolist() == [[0, 1, 2]]
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (marker,))

    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CurationError, match="can run code"):
        read_ground_truth(tmp_path / "gnd.pkl")
    assert not marker.exists()
    for message, change in {
        "imlist has 3": {"gnd": [{**content["gnd"][0], "easy": [3]}]},
        "revisited format": {"gnd": []},
    }.items():
        good.write_text(json.dumps(content | change))
        with pytest.raises(CurationError, match=message):
            read_ground_truth(good)
    with pytest.raises(CurationError, match="does not exist"):
        read_ground_truth(tmp_path / "none.json")
    with pytest.raises(CurationError, match="ranking has shape"):
        revisited(np.zeros((2, 3), int), truth)
