"""The report: a page that does not open, or that flatters the subset, convinces nobody."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import entropy
from sklearn.neighbors import KernelDensity

from curation import CurationError, HierarchicalKMeans, Subset
from curation.balance import (
    balance_table,
    effective_number,
    gini,
    kde_kl_to_uniform,
    kl_to_uniform,
    normalised_entropy,
    rarest_decile_coverage,
)
from curation.report import write_report

COUNTS = np.array([100, 50, 3, 1, 0, 7])


def test_entropy_measures_agree_with_scipy():
    uniform = np.full(6, 1 / 6)
    assert kl_to_uniform(COUNTS) == pytest.approx(entropy(COUNTS / COUNTS.sum(), uniform))
    assert effective_number(COUNTS) == pytest.approx(np.exp(entropy(COUNTS)))
    assert normalised_entropy(COUNTS) == pytest.approx(entropy(COUNTS) / np.log(6))
    assert kl_to_uniform(np.full(9, 4)) == pytest.approx(0)
    assert kl_to_uniform(np.array([5, 0, 0])) == pytest.approx(np.log(3))


def test_gini_agrees_with_its_definition():
    differences = np.abs(COUNTS[:, None] - COUNTS[None]).mean()
    assert gini(COUNTS) == pytest.approx(differences / (2 * COUNTS.mean()))


def test_rarest_decile_is_that_of_the_pool():
    pool = np.arange(1, 41)
    subset = np.zeros(40, int)
    subset[[0, 2, 30]] = 1
    assert rarest_decile_coverage(pool, subset) == (0.5, 2 / 10)


def test_density_measure_agrees_with_scikit_learn():
    points = np.random.default_rng(0).normal(size=(400, 2))
    grid = np.arange(-3, 3 + 0.05, 0.1)
    mesh = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.exp(KernelDensity(bandwidth=0.5).fit(points).score_samples(mesh))
    density /= density.sum()
    assert kde_kl_to_uniform(points, step=0.1) == pytest.approx(np.sum(density * np.log(density * len(mesh))), rel=1e-6)


def test_table_has_the_pool_first():
    table = balance_table(np.array(["a", "a", "b"]), {"one": np.array([2])})
    assert [row["name"] for row in table] == ["pool", "one"]
    assert table[1]["concepts"] == 1


@pytest.fixture(scope="module")
def curated():
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    labels = rng.choice(8, 300, p=np.array([120, 60, 20, 10, 5, 3, 2, 1]) / 221)
    colours = rng.integers(0, 255, (8, 3))
    images = [Image.new("RGB", (20, 20), tuple(int(c) for c in colours[label])) for label in labels]
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    pool = Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
    x = (colours[labels] + rng.normal(size=(300, 3))).astype(np.float32)
    tree = HierarchicalKMeans([60, 10], n_resamples=2, progress=False).fit(x)
    return pool, tree, Subset.from_rows(tree.sample(60), tree, seed=0, method="balanced")


def test_a_subset_of_another_tree_is_refused(curated, tmp_path: Path):
    _pool, tree, subset = curated
    other = HierarchicalKMeans([50, 10], progress=False).fit(np.random.default_rng(1).normal(size=(300, 3)))
    with pytest.raises(CurationError, match="another tree"):
        write_report(other, subset, tmp_path / "report.html")
    with pytest.raises(CurationError, match="no label column 'kind'"):
        write_report(tree, subset, tmp_path / "report.html", pool=curated[0], labels="kind")
    assert not list(tmp_path.iterdir())


def test_without_labels_the_page_says_that_the_measure_is_circular(curated, tmp_path: Path):
    _pool, tree, subset = curated
    write_report(tree, subset, tmp_path / "report.html", progress=False)
    page = (tmp_path / "report.html").read_text()
    assert "No labels were given" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_the_page_opens_in_a_browser_without_errors(curated, tmp_path: Path, assert_opens):
    pool, tree, subset = curated
    write_report(tree, subset, tmp_path / "report.html", pool=pool, labels="label", title="<b>a & b", progress=False)
    page = assert_opens(tmp_path / "report.html")
    assert page.find_element("tag name", "h1").text == "<b>a & b"
    assert len(page.find_elements("tag name", "img")) > 20
    assert len(page.find_elements("tag name", "svg")) == 4
