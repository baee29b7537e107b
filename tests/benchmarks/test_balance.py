"""The benchmark of balance: a wrong measure, or a result of other data, would crown a bad default."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from warm import Server

from benchmarks.balance import benchmark, measure, pools
from benchmarks.balance.benchmark import available, chosen, parse_seeds, run_benchmark
from benchmarks.balance.measure import share_of_way, subset_measures, tabulate
from benchmarks.balance.methods import METHODS, balanced_draw
from benchmarks.balance.page import headline, percent
from benchmarks.balance.pools import CELLS, Pool, zipf_rows
from curation import CurationError

ROOT = Path(__file__).parents[2]


def pool_of(concepts: list[int], duplicate: list[int] = ()) -> Pool:
    n = len(concepts)
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    return Pool(x, np.array(concepts), np.isin(np.arange(n), duplicate))


def test_measures_by_hand():
    pool = pool_of([0, 0, 0, 0, 1, 1, 2, -1], duplicate=[2, 3])
    found = subset_measures(pool, np.array([0, 2, 4, 7]))
    # two rows of concept 0, one of 1, none of 2; junk does not count
    assert found["kl"] == pytest.approx(2 / 3 * np.log(2 / 3 * 3) + 1 / 3 * np.log(1 / 3 * 3))
    assert (found["junk"], found["duplicates"]) == (0.25, 0.25)
    assert (found["rare_concepts"], found["rare_rows"]) == (0.0, 0.0)
    assert subset_measures(pool, np.array([6]))["rare_rows"] == 1.0
    # nothing but junk is as bad as one concept, not an error
    assert subset_measures(pool, np.array([7]))["kl"] == pytest.approx(np.log(3))


def test_share_of_the_way_runs_from_random_rows_to_true_labels():
    assert share_of_way(0.8, 0.8, 0.1) == 0
    assert share_of_way(0.1, 0.8, 0.1) == 1
    assert share_of_way(1.5, 0.8, 0.1) == pytest.approx(-1)
    assert percent(-0.001) == "0"


def test_table_pairs_seeds_and_takes_even_pools_apart():
    def record(cell: str, method: str, seed: int, kl: float) -> dict:
        return {"study": cell, "row": method, "seed": seed, "result": {"kl": kl, "junk": seed / 10}}

    records = [
        *(record("rings", "random", seed, kl) for seed, kl in ((1, 1.0), (2, 0.5))),
        *(record("rings", "labels", seed, 0.0) for seed in (1, 2)),
        *(record("rings", "paper", seed, kl) for seed, kl in ((1, 0.5), (2, 0.5))),
        *(record("cifar_even", name, 1, kl) for name, kl in (("random", 0.002), ("labels", 0.0), ("paper", 0.052))),
    ]
    table = tabulate(records)
    assert table.even == ["cifar_even"]
    assert table.uneven == ["rings"]
    entry = table.entries["rings"]["paper"]
    assert entry.way == [0.5, 0.0]
    assert entry.mean == 0.25
    assert entry.spread == pytest.approx(np.std([0.5, 0.0], ddof=1))
    assert entry.means["junk"] == pytest.approx(0.15)
    assert table.entries["cifar_even"]["paper"].mean == pytest.approx(0.05)
    assert headline(table, "paper") == (
        "paper goes 25 % of the way on average and 25 % in the worst cell (toy: rings); never below 0."
    )
    assert headline(table, "flat") == ""


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_pools_have_the_sizes_that_were_asked_for(exponent: float):
    concept = np.repeat(np.arange(6), 1000)
    rows = zipf_rows(concept, 900, exponent, np.random.default_rng(3), head=4)
    sizes = np.bincount(concept[rows], minlength=6)
    assert len(np.unique(rows)) == len(rows)
    wanted = np.arange(1, 7) ** -exponent
    np.testing.assert_allclose(np.sort(sizes)[::-1], 900 * wanted / wanted.sum(), atol=1)
    assert sizes[4] == sizes.max()


def test_a_concept_with_too_few_rows_does_not_lead():
    concept = np.repeat(np.arange(3), (30, 500, 200))
    sizes = np.bincount(concept[zipf_rows(concept, 600, 1.0, np.random.default_rng(0), head=0)])
    assert sizes.tolist() == [30, 327, 164]


def test_balanced_draw_gives_each_child_the_same():
    coarse = np.repeat([0, 1], (900, 100))
    fine = np.repeat([0, 1, 2], (800, 100, 100))
    rows = balanced_draw([fine, coarse], 80, 0)
    assert np.bincount(fine[rows]).tolist() == [20, 20, 40]


@pytest.mark.parametrize("name", [name for name in METHODS if "paper_" not in name and name != "former"])
def test_every_method_gives_distinct_rows_and_repeats_itself(name: str):
    pool = pools.CELLS["clutter"]
    pool = replace(pool, settings={"kind": "clutter", "rows": 800}).pool(None, 0)
    rows = METHODS[name].draw(pool, 100, 0)
    assert len(np.unique(rows)) == len(rows) == 100
    assert rows.max() < len(pool.x)
    if name in ("communities", "halving", "one_graph", "random", "labels"):
        assert sorted(METHODS[name].draw(pool, 100, 0)) == sorted(rows)


def test_tiny_run_writes_page_figures_and_picture_and_goes_on(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("CURATED_SSL_DATA", str(tmp_path / "nowhere"))
    cells = {name: CELLS[name] for name in ("rings", "clutter", "cifar_even")}
    cells["rings"] = replace(cells["rings"], settings={"kind": "rings", "rows": 1200})
    cells["clutter"] = replace(cells["clutter"], settings={"kind": "clutter", "rows": 800})
    monkeypatch.setattr(benchmark, "CELLS", cells)
    monkeypatch.setattr(measure, "CELLS", cells)
    output = tmp_path / "docs" / "balance.md"
    methods = ["flat", "one_graph", "paper_prepared"]
    run_benchmark(output, tmp_path / "work", list(cells), methods, "3,4", "the command")
    text = output.read_text()
    assert "CIFAR-10, even (train.parquet)" in text
    assert "`the command`" in text
    assert "seeds: 3, 4" in text
    found = json.loads(output.with_suffix(".json").read_text())
    assert set(found["cells"]) == {"rings", "clutter"}
    assert set(found["cells"]["rings"]) == {"random", "labels", "flat", "one_graph"}
    assert found["cells"]["rings"]["labels"]["way"] == [1, 1]
    assert (output.parent / "images" / "balance.png").stat().st_size > 10_000
    capsys.readouterr()

    # a killed run computes the one result that it lost, to the same page
    next((tmp_path / "work").rglob("flat-seed3-*.json")).unlink()
    run_benchmark(output, tmp_path / "work", list(cells), methods, "3,4", "the command")
    assert "1 to compute" in capsys.readouterr().out
    assert output.read_text() == text


def test_what_is_not_there_is_named(monkeypatch, tmp_path: Path, warm: Server):
    monkeypatch.setenv("CURATED_SSL_DATA", str(tmp_path))
    here, missing = available(["rings", "land"])
    assert here == ["rings"]
    assert "rgb.tif" in missing[0]
    assert "canopy_height.tif" in missing[0]
    with pytest.raises(CurationError, match="rings"):
        chosen("ring", CELLS, "cell")
    for seeds in ("", "a", "-1"):
        with pytest.raises(CurationError, match="--seeds"):
            parse_seeds(seeds)
    failed = warm.run(ROOT / "scripts/bench_balance.py", "-o", tmp_path / "b.md", "--cells", "rungs")
    assert failed.returncode == 2
    assert failed.stderr.startswith("bench_balance: error: there is no cell 'rungs'")
