"""The dataset card: a subset that cannot say where it came from cannot be drawn again."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard

from curation.pages.card import dataset_card
from curation.pipeline import sample_folder
from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.subset import Subset


def test_the_card_beside_a_subset_names_its_tree_and_loads_as_a_dataset(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    tree = HierarchicalKMeans([20, 5], n_resamples=0, max_iterations=3, progress=False).fit(x)
    subset, _ = sample_folder(tree, tmp_path / "subset", 60, strategy="random", method="balanced", max_copies=2, seed=3)
    card = DatasetCard.load(tmp_path / "subset/README.md")
    assert card.data.to_dict()["configs"] == [{"config_name": "default", "data_files": "subset.parquet"}]
    assert card.data.license == "unknown"
    assert "balanced sampling from a tree of hierarchical k-means (Vo" in card.text
    for line in (
        f"| rows | 60, of which {len(subset.ids)} are distinct |",
        f"| tree checksum | {tree.checksum} |",
        "| method | balanced |",
        "| seed | 3 |",
    ):
        assert line in card.text
    found = datasets.load_dataset(str(tmp_path / "subset"), cache_dir=str(tmp_path / "cache"), split="train")
    assert found["id"][:] == subset.ids.tolist()
    again = Subset.load(tmp_path / "subset")  # a card, edited or not, is no part of what the checksum guards
    assert again.rows().tolist() == subset.rows().tolist()


def test_counts_of_the_clusters_are_those_of_the_rows():
    subset = Subset(np.arange(4), np.array([1, 1, 3, 1]), {"level_1": np.array([0, 0, 2, 5])})
    assert "| `level_1` | 3 | 1, 2, 3 |" in dataset_card(subset)


@pytest.mark.parametrize(
    ("method", "upper", "said"),
    [
        ("balanced", "communities", ", arXiv:2405.15613) from a tree of k-means clusters and communities of neighbour"),
        ("flat", None, "equally from the finest clusters of a tree of hierarchical k-means"),
        ("random", "communities", "Curated SSL: at random."),
    ],
)
def test_the_card_names_the_tree_that_was_made_and_how_it_was_asked(method: str, upper: str | None, said: str):
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    tree = HierarchicalKMeans([8], progress=False).fit(x)
    tree.settings |= {"upper_levels": upper} if upper else {}
    assert said in dataset_card(Subset.from_rows(np.arange(5), tree, method=method))


@pytest.mark.parametrize("n", [0, 999, 1000, 2_000_000])
def test_any_size_has_a_card(n: int):
    size = {0: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 2_000_000: "1M<n<10M"}[n]
    assert f"- {size}\n" in dataset_card(Subset.from_rows(np.arange(n)))
