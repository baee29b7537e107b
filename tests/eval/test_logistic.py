"""Logistic regression and few-shot: parity with scikit-learn, the reference everyone compares against."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from eval.fewshot import CLASSIFIERS, few_shot, nearest_centroid
from eval.logistic import fit_logistic, logistic_accuracy, logistic_regression
from foundation.errors import CurationError


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(500) % 3
    x = rng.normal(size=(3, 8))[y] + 1.5 * rng.normal(size=(500, 8))
    return x[:300], y[:300], x[300:], y[300:]


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_agrees_with_scikit_learn(data, c: float):
    x, y, x_test, _ = data
    model = fit_logistic(x, y, c, tolerance=1e-9, rows_per_block=77)
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(x, y)
    expected = reference.predict_proba(x_test)
    np.testing.assert_allclose(model.scores(x_test).softmax(1).numpy(), expected, atol=1e-5)
    assert model.gradient < 1e-7


def test_the_sweep_chooses_on_the_validation_part_and_refits_on_everything(data):
    x, y, x_test, y_test = data
    cs = (1e-4, 1e-1, 10.0)
    model = logistic_regression(x, y, cs)
    assert set(model.val_accuracy) == set(cs)
    best = max(model.val_accuracy.values())
    assert model.c == min(c for c in cs if model.val_accuracy[c] == best)
    alone = fit_logistic(x, y, model.c)
    torch.testing.assert_close(model.scores(x_test), alone.scores(x_test), atol=1e-2, rtol=1e-2)
    found = logistic_accuracy(x, y, x_test, y_test, cs=cs)
    assert found["accuracy"] > 0.6
    assert logistic_accuracy(x, y, x_test, y_test[::-1].copy(), cs=cs)["c"] == found["c"]


def test_a_class_without_training_rows_still_has_a_column(data):
    x, y, _, _ = data
    assert fit_logistic(x, y, n_classes=5).scores(x).shape == (300, 5)


def test_bad_settings_are_named(data):
    x, y, _, _ = data
    with pytest.raises(CurationError, match="positive"):
        fit_logistic(x, y, c=0)
    with pytest.raises(CurationError, match="no C"):
        logistic_regression(x, y, cs=())


@pytest.mark.parametrize("classifier", sorted(CLASSIFIERS))
def test_few_shot_is_above_chance_rises_with_shots_and_is_reproducible(data, classifier: str):
    x, y, x_test, y_test = (np.asarray(a) for a in data)
    found = few_shot(x, y, x_test, y_test, shots=(1, 30), n_draws=3, classifier=classifier)
    assert found[30].mean > 1 / 3
    assert found[1].mean < found[30].mean + 0.05
    assert len(found[1].accuracies) == 3
    assert found == few_shot(x, y, x_test, y_test, shots=(1, 30), n_draws=3, classifier=classifier)


def test_few_shot_mistakes_are_named(data):
    with pytest.raises(CurationError, match="fewer than 101"):
        few_shot(*data, shots=(101,))
    with pytest.raises(CurationError, match="centroid, knn, logistic"):
        few_shot(*data, classifier="svm")


def test_nearest_centroid_never_names_an_absent_class():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert set(nearest_centroid(x, torch.tensor([0, 3] * 10), x).tolist()) <= {0, 3}
