"""Few-shot classification: n labelled images per class, drawn several times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from eval.arrays import as_features, as_labels, check_same_width, count_classes
from eval.knn import knn_predictions
from eval.logistic import fit_logistic
from eval.splits import few_shot_rows
from foundation.errors import CurationError

Classifier = Callable[[Float[Tensor, "n d"], Int[Tensor, "n"], Float[Tensor, "m d"]], Int[Tensor, "m"]]


@dataclass(frozen=True)
class FewShot:
    """Accuracy over the draws.

    Attributes:
        shots: labelled images per class.
        mean, std: of the accuracy over the draws (std with n - 1; 0 for one draw).
        accuracies: of every draw.
    """

    shots: int
    mean: float
    std: float
    accuracies: list[float]


def nearest_centroid(
    train: Float[Tensor, "n d"], labels: Int[Tensor, "n"], test: Float[Tensor, "m d"]
) -> Int[Tensor, "m"]:
    """The class whose mean unit feature has the largest cosine (Snell et al. 2017, prototypical networks)."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    n_classes = count_classes(labels)
    sums = train.new_zeros(n_classes, train.shape[1]).index_add_(0, labels, train)
    similarity = test @ F.normalize(sums, dim=1).T
    absent = labels.bincount(minlength=n_classes) == 0
    similarity[:, absent] = -float("inf")
    return similarity.argmax(1)


def one_neighbour(
    train: Float[Tensor, "n d"], labels: Int[Tensor, "n"], test: Float[Tensor, "m d"]
) -> Int[Tensor, "m"]:
    """The class of the nearest labelled image."""
    return knn_predictions(train, labels, test, ks=(1,))[1]


def logistic(train: Float[Tensor, "n d"], labels: Int[Tensor, "n"], test: Float[Tensor, "m d"]) -> Int[Tensor, "m"]:
    """Logistic regression of unit features, C = 100: too few rows to choose it on a validation part."""
    model = fit_logistic(F.normalize(train, dim=1), labels, c=100.0)
    return model.scores(F.normalize(test, dim=1)).argmax(1)


CLASSIFIERS: dict[str, Classifier] = {"centroid": nearest_centroid, "knn": one_neighbour, "logistic": logistic}


def few_shot(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    shots: Sequence[int] = (1, 2, 5, 10),
    n_draws: int = 5,
    classifier: str = "centroid",
    seed: int = 0,
) -> dict[int, FewShot]:
    """Accuracy on the test set with ``shots`` labelled training images per class; draw j uses the seed ``seed + j``.

    Raises:
        CurationError: a class has fewer rows than shots, or an unknown classifier.
    """
    train, test = as_features(train_features, "train features"), as_features(test_features, "test features")
    check_same_width(train, test)
    labels = as_labels(train_labels, len(train), "train labels")
    truth = as_labels(test_labels, len(test), "test labels")
    if classifier not in CLASSIFIERS:
        raise CurationError(f"few-shot classifier {classifier!r} is unknown; use {', '.join(CLASSIFIERS)}")
    if n_draws < 1:
        raise CurationError(f"{n_draws} draws: give at least 1")
    found = {}
    for n in shots:
        accuracies = []
        for draw in range(n_draws):
            rows = few_shot_rows(labels, n, seed + draw)
            predicted = CLASSIFIERS[classifier](train[rows], labels[rows], test)
            accuracies.append(float((predicted == truth).double().mean()))
        std = float(np.std(accuracies, ddof=1)) if n_draws > 1 else 0.0
        found[n] = FewShot(n, float(np.mean(accuracies)), std, accuracies)
    return found
