"""Baselines: a comparison is only fair if each baseline does what its paper says."""

import numpy as np
import pytest
import torch

from curation import CurationError
from curation.baselines import (
    d4_subset,
    flat_kmeans_subset,
    oracle_subset,
    random_subset,
    retrieval_subset,
    semdedup_scores,
    semdedup_subset,
)

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(12, 16))
LABELS = RNG.choice(12, 900, p=np.arange(1, 13)[::-1] / 78)
POOL = (DIRECTIONS[LABELS] + 0.3 * RNG.normal(size=(900, 16))).astype(np.float32)


def test_every_baseline_gives_its_size_and_no_row_twice():
    subsets = {
        "random": random_subset(900, 200, seed=1),
        "oracle": oracle_subset(LABELS, 200, seed=1),
        "flat": flat_kmeans_subset(POOL, 20, 200, seed=1, progress=False),
        "semdedup": semdedup_subset(POOL, 10, size=200, seed=1, progress=False),
        "d4": d4_subset(POOL, 10, 200, seed=1, progress=False),
        "retrieval": retrieval_subset(POOL, POOL[:7], 200, progress=False),
    }
    for name, subset in subsets.items():
        assert len(subset) == len(subset.ids) == 200, name
        assert subset.copies.max() == 1, name


def test_oracle_is_balanced_over_labels():
    counts = np.bincount(LABELS[oracle_subset(LABELS, 120).ids], minlength=12)
    assert np.ptp(counts[np.bincount(LABELS, minlength=12) > 12]) <= 1


def test_semdedup_score_is_the_similarity_to_an_earlier_member():
    scores, found = semdedup_scores(POOL, 8, keep="far", progress=False)
    unit = POOL / np.linalg.norm(POOL, axis=1, keepdims=True)
    for cluster in range(8):
        rows = np.flatnonzero(found.labels == cluster)
        rows = rows[np.argsort(-found.distances[rows], kind="stable")]
        for position, row in enumerate(rows):
            expected = (unit[rows[:position]] @ unit[row]).max() if position else -1
            assert scores[row] == pytest.approx(expected, abs=1e-5)


def test_semdedup_drops_copies_first():
    x = np.concatenate([POOL[:300], POOL[:100]])
    kept = semdedup_subset(x, 5, size=300, progress=False).ids
    assert len(np.unique(kept % 300)) == 300
    assert len(semdedup_subset(x, 5, epsilon=1e-4, progress=False).ids) == 300


def test_d4_drops_the_prototypical_rows():
    kept = d4_subset(POOL, 12, 300, dedup_share=1.0, progress=False).ids
    unit = torch.nn.functional.normalize(torch.from_numpy(POOL), dim=1)
    centre = torch.nn.functional.normalize(torch.from_numpy(DIRECTIONS).float(), dim=1)
    nearness = (unit @ centre.T).max(dim=1).values.numpy()
    assert nearness[kept].mean() < np.delete(nearness, kept).mean()


def test_retrieval_takes_the_nearest_neighbours():
    trusted = DIRECTIONS[[3, 11]].astype(np.float32)
    kept = retrieval_subset(POOL, trusted, 20, progress=False).ids
    unit, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (POOL, trusted))
    expected = {row for query in queries for row in np.argsort(-(unit @ query))[:10]}
    assert len(set(kept) & expected) >= 19  # half precision may swap the last


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_subset(5, 6), "between 1 and the 5 rows"),
        (lambda: semdedup_subset(POOL, 5), "either size or epsilon"),
        (lambda: semdedup_subset(POOL, 5, size=3, keep="best", progress=False), "keep 'best'"),
        (lambda: retrieval_subset(POOL, np.ones((2, 3), np.float32), 5), "trusted set 3"),
    ],
)
def test_bad_settings_are_named(call, message: str):
    with pytest.raises(CurationError, match=message):
        call()
