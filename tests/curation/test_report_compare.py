"""Side by side: two subsets on different measures or maps would be compared in vain."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from curation import CurationError, HierarchicalKMeans, Subset
from curation.cli import main
from curation.pages.comparison import Candidate, open_candidates, write_comparison
from curation.soundness import check_subset
from curation.trees.tree import ClusterTree


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trees of one set of embeddings, one of other rows, and subsets of them; a text pool with labels."""
    folder = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    concept = rng.choice(5, 400, p=[0.6, 0.2, 0.1, 0.06, 0.04])
    x = (rng.normal(size=(5, 6))[concept] * 5 + rng.normal(size=(400, 6))).astype(np.float32)
    pool = Dataset.from_dict({"text": [f"row {i}" for i in range(400)], "kind": [f"kind {c}" for c in concept]})
    pool.to_parquet(folder / "pool.parquet")
    for name, levels, rows in (("a", [40, 8], x), ("b", [30], x), ("other", [20], x[:300])):
        tree = HierarchicalKMeans(levels, progress=False).fit(rows)
        tree.save(folder / f"tree_{name}")
        Subset.from_rows(tree.sample(60), tree, method="balanced").save(folder / f"subset_{name}")
        if name == "a":
            Subset.from_rows(tree.sample(50, method="random"), tree, method="random").save(folder / "random_a")
    Subset(np.arange(10), np.ones(10)).save(folder / "hand_made")
    return folder


def test_each_subset_finds_its_tree(folders: Path):
    names = ["subset_b", "tree_a", "random_a", "subset_a", "hand_made", "tree_b"]
    found = open_candidates([folders / name for name in names])
    levels = {Path(item.name).name: item.tree.n_levels for item in found}
    assert levels == {"subset_b": 1, "random_a": 2, "subset_a": 2, "hand_made": 2}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tree_a", "subset_a", "subset_b"], "subset_b was drawn from a tree that is not given"),
        (["tree_a", "subset_a"], "give 2 to 12 subsets and their trees"),
        (["tree_a", "subset_a", "pool.parquet"], "holds neither a tree nor a subset"),
        (["tree_a", "subset_a", "subset_a"], "two subsets have one name"),
    ],
)
def test_what_cannot_be_compared_is_one_line(folders: Path, tmp_path: Path, names, message):
    with pytest.raises(CurationError, match=message):
        write_comparison(open_candidates([folders / name for name in names]), tmp_path / "c.html")
    assert not list(tmp_path.iterdir())


def test_a_baseline_has_no_checks_and_no_clusters_of_a_tree(folders: Path, tmp_path: Path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    tree = HierarchicalKMeans([40, 8], progress=False).fit(x)
    own = Subset.from_rows(tree.sample(60), tree, method="balanced")
    findings = [check_subset(tree, subset, x) for subset in (own, Subset.load(folders / "hand_made"))]
    assert len(findings[0]) > len(findings[1]) == 3
    assert not any("level 1" in finding.sentence or "seed" in finding.sentence for finding in findings[1])
    both = [Candidate("own", tree, own), Candidate("hand", tree, Subset.load(folders / "hand_made"))]
    verdict = write_comparison(both, tmp_path / "c.html", findings=findings).verdict
    assert (verdict.tone, "than a baseline" in verdict.sentence) == ("none", True)
    page = html.unescape((tmp_path / "c.html").read_text())
    assert "<tr><td>clusters of level 2</td><td>8, largest" in page
    assert "of one row</td><td>-</td></tr>" in page
    assert "adjusted Rand" not in page


def test_trees_of_different_pools_are_refused(folders: Path, tmp_path: Path):
    one, other = open_candidates([folders / name for name in ("tree_a", "tree_b", "subset_a", "subset_b")])
    one.tree.settings["pool_fingerprint"], other.tree.settings["pool_fingerprint"] = "x", "y"
    with pytest.raises(CurationError, match="different pools"):
        write_comparison([one, other], tmp_path / "c.html")


@pytest.mark.parametrize("names", [["tree_a", "subset_a", "random_a"], ["tree_a", "tree_b", "subset_a", "subset_b"]])
def test_the_page_opens_with_measures_overlap_and_maps(folders: Path, tmp_path: Path, names, assert_opens, monkeypatch):
    paths = [str(folders / name) for name in names]
    output = tmp_path / "compare.html"
    options = ["-o", str(output), "--pool", str(folders / "pool.parquet"), "--labels", "kind"]
    monkeypatch.setattr("sys.argv", ["curate", "compare", *paths, *options])
    main()
    page = html.unescape(output.read_text())
    one, two = open_candidates(paths)
    assert "is the most even over your labels" in page
    mine, theirs = (set(item.subset.ids.tolist()) for item in (one, two))
    shared, chance = len(mine & theirs), len(theirs) / 400
    assert f"<td>{shared:,}, {shared / len(mine):.1%} (by chance {chance:.1%})</td>" in page
    assert ("adjusted Rand index" in page) == (one.tree.checksum != two.tree.checksum)
    browser = assert_opens(output)
    for number, item in enumerate((one, two), 1):
        dots = browser.find_elements("css selector", f"#map-{number} circle")
        assert len(dots) == np.count_nonzero(item.tree.row_counts(0))
    assert len(browser.find_elements("css selector", "table.shares tbody tr")) == 5


def test_without_labels_the_checks_of_soundness_judge(folders: Path, tmp_path: Path):
    """One subset whose tree is torn in single rows beside one of a sound tree: the page must say which."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(4, 6))[rng.integers(0, 4, 400)] * 9 + rng.normal(size=(400, 6))).astype(np.float32)
    found = []
    for name, levels in (("sound", [40, 8]), ("torn", [390])):
        tree = HierarchicalKMeans(levels, progress=False).fit(x)
        found.append(Candidate(name, tree, Subset.from_rows(tree.sample(60), tree)))
    checks = [check_subset(item.tree, item.subset, x) for item in found]
    write_comparison(found, tmp_path / "c.html", findings=checks)
    page = html.unescape((tmp_path / "c.html").read_text())
    assert "the checks of soundness find least to say against sound (" in page
    for finding in [finding for one in checks for finding in one]:
        assert finding.sentence in page
    without_rows = [check_subset(item.tree, item.subset) for item in found]
    write_comparison(found, tmp_path / "c.html", findings=without_rows)
    assert "do not rank subsets" in html.unescape((tmp_path / "c.html").read_text())


def test_the_command_checks_each_subset_unless_told_not_to(folders: Path, tmp_path: Path, monkeypatch):
    names = ["tree_a", "subset_a", "random_a"]
    for output, options in ((tmp_path / "a.html", []), (tmp_path / "b.html", ["--no-check"])):
        monkeypatch.setattr(
            "sys.argv", ["curate", "compare", *[str(folders / name) for name in names], "-o", str(output), *options]
        )
        main()
    assert "Are they sound?" in (tmp_path / "a.html").read_text()
    assert "Are they sound?" not in (tmp_path / "b.html").read_text()


def test_names_and_figures_for_programs(folders: Path, tmp_path: Path, monkeypatch, capsys):
    paths = [str(folders / name) for name in ("tree_a", "subset_a", "random_a")]
    options = ["--pool", str(folders / "pool.parquet"), "--labels", "kind", "--names", "default, random", "--json"]
    monkeypatch.setattr("sys.argv", ["curate", "compare", *paths, "-o", str(tmp_path / "a.html"), *options])
    main()
    found = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in found["subsets"]] == ["default", "random"]
    assert [item["rows"] for item in found["subsets"]] == [60, 50]
    kl = [item["measures"]["kl"] for item in found["subsets"]]
    assert kl[0]["value"] < kl[0]["low"] <= kl[0]["random"] <= kl[0]["high"]
    assert kl[1]["low"] <= kl[1]["value"] <= kl[1]["high"]
    assert sum(found["subsets"][0]["findings"].values()) == 3  # of the clusters alone
    for empty in ("", "default,", " , "):
        with pytest.raises(CurationError, match="a name of a subset is empty"):
            open_candidates(paths, [name.strip() for name in empty.split(",")])
    with pytest.raises(CurationError, match="1 names for 2 subsets; give one for each"):
        open_candidates([folders / name for name in ("tree_a", "subset_a", "random_a")], ["one"])


def test_a_tree_that_lacks_rows_of_a_concept_is_measured_over_all_concepts(folders: Path, tmp_path: Path):
    """The same concepts for all, or the KL of one is not that of the other."""
    found = open_candidates([folders / name for name in ("tree_a", "subset_a", "tree_other", "subset_other")])
    labels = np.minimum(np.arange(400) // 100, 3)
    named = [Candidate(name, item.tree, item.subset) for name, item in zip("ab", found, strict=True)]
    write_comparison(named, tmp_path / "c.html", labels=labels)
    page = (tmp_path / "c.html").read_text()
    assert "Balance over the 4 labels" in page
    assert "all taken" not in page


def test_a_difference_that_chance_makes_is_not_sold_as_one(folders: Path, tmp_path: Path):
    """Two draws of the same method differ; the page must not crown one of them without a word."""
    tree = ClusterTree.load(folders / "tree_a")
    draws = [Candidate(f"seed {seed}", tree, Subset.from_rows(tree.sample(60, seed=seed), tree)) for seed in (1, 2)]
    labels = np.random.default_rng(0).choice(6, 400, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    write_comparison(draws, tmp_path / "c.html", labels=labels)
    assert "compare several seeds" in (tmp_path / "c.html").read_text()
