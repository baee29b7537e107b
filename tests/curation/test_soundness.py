"""Soundness without labels: a silent check lets a user train on a subset that is worse than random rows."""

import sys

import numpy as np
import pytest

from curation import CurationError, HierarchicalKMeans
from curation.cli import main
from curation.soundness import AS_WELL, check_tree, find_embeddings, rows_of_tree
from curation.trees.community_tree import CommunityTree
from curation.trees.dimension import likely_dimension, two_nearest_dimension
from curation.trees.levels import grow_levels
from curation.trees.neighbours import nearest
from curation.trees.tree import ClusterTree, Level


def tree_of(x: np.ndarray, *assignments: np.ndarray, **settings: object) -> ClusterTree:
    """A tree with these clusters: of the rows, then of the clusters below."""
    levels, points = [], x
    for assignment in assignments:
        k = int(assignment.max()) + 1
        centroids = np.stack([points[assignment == i].mean(axis=0) for i in range(k)]).astype(np.float32)
        distance = ((points - centroids[assignment]) ** 2).sum(axis=1).astype(np.float32)
        levels.append(Level(centroids, assignment, distance))
        points = centroids
    made = {"levels": [len(level.centroids) for level in levels], "n_resamples": [0] * len(levels), "metric": "l2"}
    return ClusterTree(levels, made | settings)


def blobs(sizes: list[int], dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    concept = np.repeat(np.arange(len(sizes)), sizes)
    return (rng.normal(size=(len(sizes), dim))[concept] * 20 + rng.normal(size=(len(concept), dim))).astype(
        np.float32
    ), concept


def found(findings: list, text: str):
    """The finding that speaks of something."""
    return next(finding for finding in findings if text in finding.sentence)


@pytest.mark.parametrize("dimension", [1, 2, 5, 9])
def test_intrinsic_dimension_of_gaussians(dimension: int):
    x = np.random.default_rng(dimension).normal(size=(4000, dimension)).astype(np.float32)
    distances, _ = nearest(x, 20)
    assert two_nearest_dimension(distances[:, :2]) == pytest.approx(dimension, rel=0.2)
    assert likely_dimension(distances) == pytest.approx(dimension, rel=0.2)


def test_intrinsic_dimension_of_a_bent_surface_is_not_that_of_its_space():
    t = np.random.default_rng(0).uniform(0, 4, (4000, 2))
    x = np.stack([t[:, 0] * np.cos(t[:, 0]), t[:, 0] * np.sin(t[:, 0]), t[:, 1], t[:, 1] ** 2 / 8], 1)
    distances, _ = nearest(x.astype(np.float32), 12)
    assert two_nearest_dimension(distances[:, :2]) == pytest.approx(2, rel=0.2)
    assert likely_dimension(distances) == pytest.approx(2, rel=0.2)


def test_dimension_of_rows_all_alike_is_not_known():
    distances, _ = nearest(np.ones((50, 3), np.float32), 5)
    assert np.isnan(two_nearest_dimension(distances[:, :2]))
    assert np.isnan(likely_dimension(distances))


def test_even_separate_blobs_are_sound():
    x, _ = blobs([50] * 12)
    tree = grow_levels(HierarchicalKMeans([75], progress=False).fit(x), x, progress=False)
    findings = check_tree(tree, x)
    assert {finding.severity for finding in findings} == {"ok"}
    assert [finding.remedy for finding in findings if finding.remedy] == [AS_WELL], "the pool is even already"


def test_one_giant_cluster_is_bad_and_comes_first():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(950, 6)), rng.normal(size=(50, 6)) * 30]).astype(np.float32)
    fine = np.arange(1000) // 5
    tree = tree_of(x, fine, np.r_[np.zeros(191, int), 1 + np.arange(9)])
    findings = check_tree(tree)
    assert findings[0].severity == "bad"
    assert "holds 96% of the rows" in findings[0].sentence
    assert "--levels auto" in findings[0].remedy
    # communities give a large concept one cluster on purpose
    tree.settings["upper_levels"] = "communities"
    assert "bad" not in {finding.severity for finding in check_tree(tree)}


def test_singletons_that_eat_the_budget_are_bad():
    x, _ = blobs([900, 100])
    fine = np.r_[np.arange(900) // 90, 10 + np.arange(100)]
    bad = found(check_tree(tree_of(x, fine)), "single row")
    assert bad.severity == "bad"
    assert bad.value == pytest.approx(100 / 250, abs=0.01)  # a quarter of 1,000 rows, all 100 singletons in it
    assert found(check_tree(tree_of(x, np.arange(1000) // 50)), "single row").severity == "ok"


def test_a_subset_that_is_less_even_than_random_rows_is_bad_whatever_the_tree():
    x, concept = blobs([200] * 10)
    tree = tree_of(x, np.arange(2000) // 20)
    one_sided = np.flatnonzero(concept < 2)
    assert found(check_tree(tree, x, one_sided), "did not see").severity == "bad"
    even = np.flatnonzero(np.arange(2000) % 5 == 0)
    as_random = found(check_tree(tree, x, even), "did not see")
    assert (as_random.severity, as_random.remedy) == ("ok", AS_WELL)
    assert as_random.sentence.endswith("about as even as random rows.")


@pytest.mark.parametrize("seed", range(6))
def test_random_rows_are_about_as_even_as_random_rows(seed: int):
    """Chance of few rows is no finding, even where it is more than the limit."""
    rng = np.random.default_rng(seed)
    sizes = (600 / np.arange(1, 15)).astype(int)
    x, _concept = blobs(sizes.tolist(), seed=seed)
    rows = np.sort(rng.choice(len(x), 120, replace=False))
    told = found(check_tree(tree_of(x, np.arange(len(x)) // 20), x, rows, seed), "did not see")
    assert told.severity == "ok"


def test_a_subset_that_is_more_even_than_random_rows_is_called_so():
    x, concept = blobs([1500, 300, 100, 60, 40])
    tree = tree_of(x, np.arange(2000) // 20)
    chosen = np.concatenate([np.flatnonzero(concept == i)[:40] for i in range(5)])
    balanced = found(check_tree(tree, x, chosen), "did not see")
    assert (balanced.severity, balanced.remedy) == ("ok", "")
    assert balanced.sentence.endswith("more even than random rows.")


def test_outliers_in_the_subset_are_found_but_rare_concepts_are_none():
    x, _ = blobs([1500, 300, 150, 50])
    rng = np.random.default_rng(1)
    x[rng.choice(1500, 40, replace=False)] += rng.normal(size=(40, 8)).astype(np.float32) * 6
    far = np.flatnonzero(np.linalg.norm(x - np.median(x[:1500], axis=0), axis=1)[:1500] > 9)
    tree = tree_of(x, np.arange(2000) // 200)
    ordinary = np.r_[rng.choice(1500, 100, replace=False), np.arange(1800, 2000)]
    assert found(check_tree(tree, x, ordinary), "isolated").severity == "ok"
    assert found(check_tree(tree, x, np.r_[ordinary[:60], far]), "isolated").severity == "bad"


def test_seeds_that_disagree_are_told():
    # one Gaussian has no concepts: where its few clusters go is chance
    x = np.random.default_rng(0).normal(size=(600, 24)).astype(np.float32)
    fitted = HierarchicalKMeans([80, 20, 5], n_resamples=2, progress=False).fit(x)
    y, _ = blobs([100] * 5)
    sound = HierarchicalKMeans([5], progress=False).fit(y)
    loose, firm = (found(check_tree(t, r), "Another seed").value for t, r in ((fitted, x), (sound, y)))
    assert firm < 0.1 < loose


def test_beliefs_that_disagree_are_told():
    x, _ = blobs([100] * 4)
    tree = tree_of(x, np.arange(400) // 8, upper_levels="communities", belief_distance=0.7)
    assert found(check_tree(tree), "do not agree").severity == "bad"
    tree.settings["belief_distance"] = 0.1
    assert found(check_tree(tree), "agree on what").severity == "ok"


def test_a_tree_without_evidence_is_told():
    """It is no fault: an even pool has none."""
    x, labels = blobs([200, 200])
    little, much = (found(check_tree(tree_of(x, labels, evidence=share)), "in common") for share in (0.3, 0.8))
    assert (little.severity, much.severity) == ("ok", "ok")
    assert "little more even than random rows" in little.sentence
    assert "little" not in much.sentence


def test_a_pool_whose_concepts_nothing_tells_apart_is_told():
    """A wide crowd and a dense one within it: communities share edges, and density is not frequency."""
    rng = np.random.default_rng(0)
    scatter = np.exp(rng.uniform(-3, 1, size=(1200, 1)))
    x = (rng.normal(size=(1200, 20)) * scatter + 1).astype(np.float32)
    tree = CommunityTree(progress=False).fit(x)
    assert found(check_tree(tree), "no more even").severity == "warn"
    apart, _ = blobs([100] * 4)
    assert found(check_tree(CommunityTree(progress=False).fit(apart)), "they are apart").severity == "ok"


@pytest.mark.parametrize(
    "x",
    [np.ones((300, 4)), np.ones((2, 4)), np.eye(3), np.repeat(np.eye(4), 40, axis=0)],
    ids=["alike", "two rows", "three rows", "four different rows"],
)
def test_degenerate_rows_are_answered(x: np.ndarray):
    x = x.astype(np.float32)
    findings = check_tree(tree_of(x, np.zeros(len(x), int)), x)
    assert findings
    assert all(finding.sentence.endswith(".") and np.isfinite(finding.value) for finding in findings)


def test_other_rows_are_refused_and_left_out_ones_are_found_again(tmp_path):
    x, _ = blobs([60, 60])
    x[5] = np.nan
    np.save(tmp_path / "embeddings.npy", x)
    tree = HierarchicalKMeans([6], bad_rows="drop", progress=False).fit(x)
    assert rows_of_tree(tree, x).n_rows == tree.n_rows == 119
    assert check_tree(tree, rows_of_tree(tree, x))
    with pytest.raises(CurationError, match="the embeddings 120"):
        check_tree(tree, x)
    clean = np.delete(x, 5, axis=0)
    whole = HierarchicalKMeans([6], progress=False).fit(clean)
    with pytest.raises(CurationError, match="other embeddings"):
        rows_of_tree(whole, clean + 1)
    assert find_embeddings(whole, tmp_path / "tree") is None
    (tmp_path / "embeddings").mkdir()
    np.save(tmp_path / "embeddings" / "x.npy", clean)
    assert find_embeddings(whole, tmp_path / "tree").n_rows == 119


def test_commands_tell_the_user_unless_asked_not_to(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(580, 6)), rng.normal(size=(20, 6)) * 40]).astype(np.float32)
    (tmp_path / "embeddings").mkdir()
    np.save(tmp_path / "embeddings" / "x.npy", x)

    def curate(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
        main()
        return capsys.readouterr().err

    tree, subset, page = tmp_path / "tree", tmp_path / "subset", tmp_path / "report.html"
    cluster = ["cluster", tmp_path / "embeddings", "-o", tree, "--levels", "60,12", "--metric", "l2"]
    told = curate(*cluster)
    assert "BAD: The largest of the 12 clusters of level 2 holds 9" in told
    assert "BAD" not in curate(*cluster, "--overwrite", "--no-check")
    told = curate("sample", tree, "-o", subset, "--size", 100)
    assert "BAD: The largest" in told
    assert "isolated" in told  # which takes the embeddings beside the tree
    curate("report", tree, subset, "-o", page)
    assert "The largest of the 12 clusters of level 2 holds" in page.read_text()
