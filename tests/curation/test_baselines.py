"""Baselines and duplicates: a comparison is only fair if each baseline does what its paper says."""

import numpy as np
import pytest
import torch
from PIL import Image

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
from curation.duplicates import embedding_duplicates, exact_duplicates, held_out_duplicates, perceptual_duplicates

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
        (lambda: embedding_duplicates(POOL, threshold=1.5), "cosine similarity"),
        (lambda: held_out_duplicates(POOL, np.ones((2, 3), np.float32)), "held-out set 3"),
    ],
)
def test_bad_settings_are_named(call, message: str):
    with pytest.raises(CurationError, match=message):
        call()


def test_embedding_duplicates_agree_with_all_pairs():
    x = np.concatenate([POOL[:200], 3 * POOL[:50] + 1e-4])
    report = embedding_duplicates(x, threshold=0.98, progress=False)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n_groups, groups = connected_components(csr_array(unit @ unit.T >= 0.98), directed=False)
    assert len(report.keep) == n_groups
    assert (groups[report.dropped] == groups[report.duplicate_of]).all()
    assert (report.duplicate_of < report.dropped).all()


def test_rows_of_the_test_set_are_found():
    held_out = POOL[[5, 17]] * 2
    report = held_out_duplicates(POOL, held_out, threshold=0.9999, progress=False)
    assert {5, 17} <= set(report.dropped)
    assert report.duplicate_of[list(report.dropped).index(17)] == 1


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def pool_of(pictures: list[Image.Image]):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    return Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature()}))


def test_exact_and_perceptual_duplicates():
    pytest.importorskip("imagehash")
    pictures = [picture(i) for i in range(6)]
    pool = pool_of([*pictures, pictures[2], pictures[4].resize((48, 48))])
    exact = exact_duplicates(pool, progress=False)
    assert list(exact.dropped) == [6]
    assert list(exact.duplicate_of) == [2]
    looks = perceptual_duplicates(pool, progress=False)
    assert dict(zip(looks.dropped, looks.duplicate_of, strict=True)) == {6: 2, 7: 4}
    assert str(looks).startswith("6 of 8 rows kept")
