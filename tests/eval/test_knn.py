"""k-NN: a wrong neighbour or a wrong weight silently moves the headline figure of every comparison."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from eval.knn import knn_accuracy, knn_predictions, knn_scores, nearest_neighbours
from foundation.errors import CurationError


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 12))
    labels = rng.integers(5, size=400)
    x = (centres[labels] + 1.5 * rng.normal(size=(400, 12))).astype(np.float32)
    return x[:300], labels[:300], x[300:], labels[300:]


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_agrees_with_scikit_learn(data, temperature: float):
    x, y, x_test, y_test = data
    unit, unit_test = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x.astype(float), x_test.astype(float)))
    for k, predicted in knn_predictions(x, y, x_test, ks=(1, 7, 30), temperature=temperature).items():
        # |a - b|^2 = 2 - 2 cos for unit vectors
        reference = KNeighborsClassifier(
            k, weights=lambda d: np.exp((1 - d**2 / 2 - 1) / temperature), algorithm="brute"
        ).fit(unit, y)
        assert (predicted.numpy() == reference.predict(unit_test)).all()
        accuracy = knn_accuracy(x, y, x_test, y_test, ks=(k,), temperature=temperature)[k]
        assert accuracy == pytest.approx(reference.score(unit_test, y_test))


def test_blocks_change_nothing_and_faiss_agrees():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 8, generator=generator) for n in (50, 333))
    products, rows = nearest_neighbours(queries, gallery, 9)
    expected = (queries.double() @ gallery.double().T).topk(9, dim=1)
    assert torch.equal(rows, expected.indices)
    for options in ({"query_block": 7, "gallery_block": 5}, {"gallery_block": 100}, {"backend": "faiss"}):
        other_products, other_rows = nearest_neighbours(queries, gallery, 9, **options)
        assert torch.equal(other_rows, rows)
        torch.testing.assert_close(other_products, products)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_a_query_does_not_find_itself_even_among_duplicates(backend: str):
    x = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    x = torch.cat([x, x[:10], x[:10]])
    _, rows = nearest_neighbours(x, x, 4, backend=backend, skip_self=True, gallery_block=16)
    assert not (rows == torch.arange(len(x))[:, None]).any()
    assert rows.shape == (60, 4)


def test_scores_are_shares_of_the_vote(data):
    x, y, x_test, _ = data
    scores = knn_scores(x, y, x_test, ks=(5, 20), n_classes=7)
    assert all(votes.shape == (100, 7) for votes in scores.values())
    torch.testing.assert_close(scores[20].sum(1), torch.ones(100))


def test_the_length_of_a_feature_does_not_matter(data):
    x, y, x_test, _ = data
    scaled = x * np.random.default_rng(2).uniform(0.1, 10, size=(300, 1)).astype(np.float32)
    assert torch.equal(knn_predictions(x, y, x_test, ks=(9,))[9], knn_predictions(scaled, y, x_test, ks=(9,))[9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": (301,)}, "300 training rows"),
        ({"ks": (0,)}, "at least 1"),
        ({"ks": ()}, "no k"),
        ({"temperature": 0.0}, "temperature"),
        ({"backend": "annoy"}, "torch, faiss"),
        ({"train_labels": np.zeros(299, int)}, "one class index per row"),
        ({"train_labels": np.full(300, 0.5)}, "integers"),
        ({"train_labels": np.full(300, -1)}, "negative"),
        ({"test_features": np.zeros((3, 5), np.float32)}, "different models"),
        ({"test_features": np.zeros(3, np.float32)}, "shape"),
        ({"train_features": np.full((300, 12), np.nan, np.float32)}, "row 0"),
        ({"train_features": np.zeros((300, 12), int)}, "floating-point"),
    ],
)
def test_bad_input_is_named(data, change: dict, message: str):
    x, y, x_test, _ = data
    arguments = {"train_features": x, "train_labels": y, "test_features": x_test, "ks": (3,)} | change
    with pytest.raises(CurationError, match=message):
        knn_predictions(**arguments)
