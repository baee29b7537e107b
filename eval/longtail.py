"""Accuracy on head, medium and tail classes: does a model serve the classes that its training set rarely shows?

Classes are binned by their number of training images: head > 100, medium 20 ... 100, tail < 20 (Liu et al. 2019,
"Large-scale long-tailed recognition in an open world"), or into thirds of classes where sets are small (SDCLR,
Jiang et al. 2021, which also reports the spread over the three bins).
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from foundation.errors import CurationError
from foundation.intervals import Interval, Statistic, bootstrap

BINS = ("head", "medium", "tail")


def class_bins(train_counts: Any, edges: tuple[int, int] | str = (20, 100)) -> Int[np.ndarray, "classes"]:
    """Bin of every class: 0 head, 1 medium, 2 tail.

    Args:
        train_counts: (classes,) training images of each class.
        edges: (a, b): tail has fewer than a images, head more than b. "thirds": equal numbers of classes, by rank;
            equal counts go to the more frequent bin by class index.
    """
    counts = np.asarray(train_counts)
    if counts.ndim != 1 or not len(counts) or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise CurationError("train_counts must be one number of images, 0 or more, for every class")
    if edges == "thirds":
        rank = np.empty(len(counts), dtype=np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        return rank * 3 // len(counts)
    if isinstance(edges, str) or len(edges) != 2 or not 0 <= edges[0] <= edges[1]:
        raise CurationError(f"edges {edges!r} must be two ascending numbers of images, or 'thirds'")
    return np.where(counts > edges[1], 0, np.where(counts < edges[0], 2, 1)).astype(np.int64)


def head_medium_tail(
    predictions: Any,
    test_labels: Any,
    train_counts: Any,
    edges: tuple[int, int] | str = (20, 100),
    **options: Any,
) -> dict[str, Interval]:
    """Class-averaged accuracy of each bin and overall, with bootstrap intervals over the test rows.

    Args:
        predictions, test_labels: (n,) class indices.
        train_counts: (classes,) training images of each class (`numpy.bincount` of the training labels).
        edges: see `class_bins`.
        options: of `foundation.intervals.bootstrap`.

    Returns:
        ``head``, ``medium``, ``tail`` (those that have a tested class), ``all``, and ``spread``: the standard
        deviation over the bins (population, as in SDCLR).

    Raises:
        CurationError: labels outside ``train_counts``.
    """
    predicted, truth = np.asarray(predictions), np.asarray(test_labels)
    if predicted.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise CurationError(f"predictions {predicted.shape} and test labels {truth.shape} must be equal and not empty")
    bins = class_bins(train_counts, edges)
    if truth.min() < 0 or truth.max() >= len(bins):
        raise CurationError(f"test labels reach {truth.max()} but train_counts has {len(bins)} classes")
    correct = (predicted == truth).astype(np.float64)
    tested = np.unique(truth)
    found = {
        name: bootstrap(class_mean(correct, truth, tested[bins[tested] == b]), len(truth), **options)
        for b, name in enumerate(BINS)
        if (bins[tested] == b).any()
    }
    found["all"] = bootstrap(class_mean(correct, truth, tested), len(truth), **options)
    if len(found) > 2:
        parts = [class_mean(correct, truth, tested[bins[tested] == b]) for b in range(3) if (bins[tested] == b).any()]

        def spread(counts: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
            return np.std([part(counts) for part in parts], axis=0)

        found["spread"] = bootstrap(spread, len(truth), **options)
    return found


def class_mean(
    correct: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"], classes: Int[np.ndarray, "c"]
) -> Statistic:
    """Mean over classes of the accuracy within a class; classes that a resample lost are left out of it."""
    rows = np.flatnonzero(np.isin(labels, classes))
    position = np.searchsorted(classes, labels[rows])
    order = np.argsort(position, kind="stable")
    rows, starts = rows[order], np.searchsorted(position[order], np.arange(len(classes)))

    def statistic(counts: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
        drawn = counts[:, rows]
        total = np.add.reduceat(drawn, starts, axis=1)
        hits = np.add.reduceat(drawn * correct[rows], starts, axis=1)
        present = total > 0
        share = np.divide(hits, total, out=np.zeros(hits.shape), where=present)
        n_present = present.sum(1)
        return np.divide(share.sum(1), n_present, out=np.full(len(counts), np.nan), where=n_present > 0)

    return statistic
