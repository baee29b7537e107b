"""Pools unequal over land cover: sizes as asked, test ground apart, every class of the test weighing the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")
pytest.importorskip("lightning")

from eval.canopy import CanopySettings
from experiments.engine.compare import Row
from experiments.engine.experiment import build
from experiments.engine.settings import compose
from experiments.engine.zipf import rank_sizes
from experiments.launch import run_experiment
from experiments.satellite.annotation import HandmadeMaps
from experiments.satellite.cover import (
    COVERS,
    cover_classes,
    cover_signs,
    draw_unequal,
    even_metrics,
    overlap_of,
)
from experiments.satellite.cover_report import by_rank, cover_rows, effect_figure, power_sentence, render_cover
from experiments.satellite.scenes import Scene, save_scene
from foundation.errors import CurationError
from foundation.files import load_json
from satellite.ridge import fit_ridge

SMALL = [
    "experiment=satellite_cover",
    "scale=lab",
    "seeds=[0]",
    "arms=[raw,oracle]",
    "science.pool.image=colour.tif",
    "science.pool.heights=height.tif",
    "science.pool.stride=64",
    "science.pool.block=64",
    "science.pool.margin=0",
    "science.pool.n_folds=2",
    "science.pool.rows=30",
    "science.pool.labelled=20",
    "science.pool.zipf=0.5",
    "science.curation.size=10",
    "tracking.wandb=off",
    "speed.threads=1",
]
SETTINGS = CanopySettings(0.5, pool_pixels=10, pool_metres=5.0, n_resamples=5)


def test_the_classes_of_a_pool_fall_as_a_power_of_their_rank_and_the_head_goes_in_turns():
    classes = np.repeat(np.arange(5), 300)
    tiles = np.arange(len(classes)) + 7
    for seed in range(5):
        drawn = draw_unequal(tiles, classes, 400, 1.5, seed)
        counts = np.bincount(classes[drawn - 7], minlength=5)
        assert len(np.unique(drawn)) == 400 == counts.sum()
        assert counts.argmax() == seed
        np.testing.assert_allclose(np.sort(counts)[::-1], 400 * np.arange(1, 6) ** -1.5 / 1.7604, atol=1)
    assert rank_sizes(5, 11, 0.0).tolist() in ([2, 2, 3, 2, 2], [2, 2, 2, 3, 2], [3, 2, 2, 2, 2])
    with pytest.raises(
        CurationError, match="of forest, but the train side of seed 0 has 300; lower rows, zipf or stride"
    ):
        draw_unequal(tiles, classes, 1200, 1.5, 0)


def test_the_class_of_a_tile_follows_its_trees_then_its_colours():
    shape = (3, 8, 8)
    grey = [np.full(shape, value, np.float32) for value in (40, 60, 150, 200)]
    green = [np.stack([np.full(shape[1:], v, np.float32) for v in (60, 120, 60)]) for _ in range(3)]
    flat, nothing = np.zeros((8, 8)), np.full((8, 8), np.nan)
    some, wood = flat.copy(), flat.copy()
    some[:2], wood[:6] = 9, 20
    wood[6:] = np.nan
    tiles = (
        [(c, flat) for c in grey]
        + [(c, flat) for c in green[:2]]
        + [(green[2], nothing), (grey[0], some), (grey[3], wood)]
    )
    found = cover_classes(cover_signs(colour, heights) for colour, heights in tiles)
    assert [COVERS[kind].split()[0] for kind in found[-2:]] == ["single", "forest"]
    assert set(found[4:7]) == {2}
    assert found[:4].tolist() == [4, 4, 3, 3]


def test_ground_that_pool_and_test_share_is_refused_with_its_count():
    seen = np.array([[0.0, 0, 32, 32], [100, 0, 132, 32]])
    test = np.array([[60.0, 0, 92, 32], [0, 60, 32, 92]])
    assert overlap_of(seen, test, 8.0) == {"least_gap": 8.0}
    with pytest.raises(
        CurationError, match="1 of 2 test tiles share ground with pool or labels, or lie nearer than 9 m"
    ):
        overlap_of(seen, test, 9.0)


def test_every_class_weighs_the_same_however_many_test_tiles_it_has():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(5), 2)
    truth = np.abs(rng.normal(4 + 3 * classes[:, None, None], 2, (10, 32, 32)))
    truth[:, :3] = np.nan
    predicted = truth + rng.normal(0, 1 + classes[:, None, None], truth.shape)
    predicted[:, :3] = 5.0
    found = even_metrics(predicted, truth, classes, [9, 7, 5, 3, 1], SETTINGS)
    more = np.concatenate([np.arange(10), np.repeat([8, 9], 6)])
    again = even_metrics(predicted[more], truth[more], classes[more], [9, 7, 5, 3, 1], SETTINGS)
    for name in ("even_r2", "even_block_r2", "even_mae", "even_rmse", "rare_mae"):
        assert again[name] == pytest.approx(found[name], abs=1e-9), name
    squares = np.array([np.nanmean((predicted - truth)[classes == kind] ** 2) for kind in range(5)])
    assert found["even_rmse"] == pytest.approx(np.sqrt(squares).mean())
    # as many known pixels in every class: the even R2 is the plain one
    error = np.nansum((predicted - truth) ** 2)
    assert found["even_r2"] == pytest.approx(1 - error / np.nansum((truth - np.nanmean(truth)) ** 2))
    assert found["frequent_mae"] < found["rare_mae"]
    with pytest.raises(CurationError, match="no test tile is dark ground"):
        even_metrics(predicted[:8], truth[:8], classes[:8], [1] * 5, SETTINGS)


def test_a_cell_sees_its_tile_and_no_other():
    torch.manual_seed(0)
    images = torch.rand(3, 3, 32, 32)
    whole = HandmadeMaps()(images)[0][0]
    assert whole.shape == (3, 36, 4, 4)
    torch.testing.assert_close(whole[1:2], HandmadeMaps()(images[1:2])[0][0])
    torch.testing.assert_close(whole[:, :3], torch.nn.functional.avg_pool2d(images, 8))
    heights = (20 * images[:, 0]).clone()
    heights[0] = float("nan")
    head = fit_ridge(HandmadeMaps(), [(images[i : i + 1], heights[i : i + 1]) for i in range(3)])
    new = torch.rand(4, 3, 32, 32)
    error = torch.nn.functional.avg_pool2d(head(HandmadeMaps(), new) - 20 * new[:, 0], 8)
    assert float(error.abs().mean()) < 1.0


def patchwork(folder: Path) -> None:
    """A survey of 12 x 12 squares of a tile each, their land cover drawn: colour.tif and height.tif."""
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(144) % 5).reshape(12, 12).repeat(64, 0).repeat(64, 1)
    height = np.where(rng.random((768, 768)) < np.array([0.8, 0.3, 0, 0, 0])[classes], 12.0, 0.3)
    colour = np.array([(40, 70, 40), (90, 95, 80), (80, 150, 70), (200, 200, 190), (60, 60, 70)])[classes]
    colour = (colour - 2 * height[..., None] + rng.normal(0, 5, colour.shape)).clip(1, 255).astype(np.uint8)
    scene = Scene(colour.transpose(2, 0, 1), height.astype(np.float32), height, classes.astype(np.uint8))
    save_scene(scene, folder, 0.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    patchwork(root)
    (root / "results").mkdir()
    (root / "results/satellite_plan.md").write_text("## Plan\n\nfixed before\n")
    config = compose([*SMALL, f"output.runs={root}/runs", f"output.report={root / 'results'}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATED_SSL_DATA", str(root))
        assert run_experiment(config, "the command", lambda _line: None, False) == 0
    return root


def found_of(seed: int, gain: float) -> dict:
    """``metrics.json`` of an evaluation, made up."""
    names = ["even_rmse", "even_mae", "even_r2", "even_block_r2", "rare_mae", "frequent_mae", "r2"]
    names += [f"{measure}_{kind}" for measure in ("rmse", "mae", "r2", "block_r2") for kind in range(5)]
    pool = {"test_cover": [3, 4, 5, 6, 7], "least_gap": 16.0, "near_test": 1, "rows": 250}
    return {"metrics": dict.fromkeys(names, 1.0) | {"even_r2": 0.1 + seed / 100 + gain}, "pool": pool}


def test_a_turn_of_five_seeds_is_one_value_and_a_part_of_one_is_none():
    metrics = {
        (arm, seed): found_of(seed, gain) for arm, gain in (("raw", 0.0), ("oracle", 0.1)) for seed in range(10, 27)
    }
    balance = {
        key: {"measures": {"kl": 0.3}, "pool_counts": [9, 5, 3, 2, 1], "subset_counts": [2] * 5} for key in metrics
    }
    rows = [row for row in cover_rows(metrics, balance) if row.metric == "even_r2" and row.arm == "raw"]
    assert [(row.seed, round(row.value, 6)) for row in rows] == [(2, 0.22), (3, 0.27), (4, 0.32)]
    config = compose(["experiment=satellite_cover", "scale=lab"])
    made = [{"commit": "abc", "changed": [], "device": "a CPU", "versions": {"numpy": "2"}}]
    page = render_cover(metrics, balance, config, made)
    assert page.index("## Results") < page.index("**Power**") < page.index("By land cover")
    assert all(cover in page for cover in COVERS)
    assert "Which tiles are worth a survey?" in page
    assert "+0.100 [+0.100, +0.100], better" in page
    few = {key: found for key, found in metrics.items() if key[1] < 13}
    assert "No unit of 5 seeds is whole yet" in render_cover(few, balance, config, made)
    assert effect_figure(cover_rows(metrics, balance)).startswith(b"\x89PNG")


def test_several_turns_are_one_unit_and_the_page_says_so():
    metrics = {(arm, seed): found_of(seed, gain) for arm, gain in (("raw", 0.0), ("oracle", 0.1)) for seed in range(40)}
    balance = {
        key: {"measures": {"kl": 0.3}, "pool_counts": [9, 5, 3, 2, 1], "subset_counts": [2] * 5} for key in metrics
    }
    rows = [row for row in cover_rows(metrics, balance, 4) if row.metric == "even_r2" and row.arm == "raw"]
    assert [(row.seed, round(row.value, 6)) for row in rows] == [(0, 0.195), (1, 0.395)]
    config = compose(["experiment=satellite_cover", "scale=lab", "science.studies.turns=4"])
    made = [{"commit": "abc", "changed": [], "device": "a CPU", "versions": {"numpy": "2"}}]
    page = render_cover(metrics, balance, config, made)
    assert "4 turns are one unit: 2 units here" in page
    assert "deviations of the paired difference between units of 4 turns" in page or "is not known" in page
    assert "three units of 4 turns" in page


def test_every_arm_learns_from_its_own_tiles_of_the_pool_and_no_other(finished: Path):
    pool = np.load(next((finished / "runs/shared/seed0").glob("prepare-*")) / "pool_rows.npy")
    learnt = {
        arm: np.load(next((finished / "runs" / arm / "seed0").glob("train-*")) / "labelled.npy")
        for arm in ("raw", "oracle")
    }
    page = (finished / "results/satellite_cover.md").read_text()
    assert page.index("fixed before") < page.index("## Results")
    assert str(finished) not in page
    for rows in learnt.values():
        assert len(rows) == 10
        assert set(rows) <= set(pool)
    assert set(learnt["raw"]) != set(learnt["oracle"])
    counts = load_json(next((finished / "runs/shared/seed0").glob("prepare-*")) / "pool.json")
    assert counts["least_gap"] >= 0
    assert (
        counts["cover"]
        == np.bincount(
            np.load(next((finished / "runs/shared/seed0").glob("prepare-*")) / "labels.npy"), minlength=5
        ).tolist()
    )


def test_the_question_decides_the_key_and_pretraining_keeps_its_own():
    stages = {
        judge: build(compose([*SMALL, f"science.train.judge={judge}"])).stages for judge in ("features", "labels")
    }
    keys = {judge: [stage.key for stage in found if stage.name == "evaluate"] for judge, found in stages.items()}
    assert not set(keys["features"]) & set(keys["labels"])
    plain = next(stage for stage in stages["features"] if stage.name == "evaluate").upstream[1]
    assert plain.decides is not None
    assert "judge" not in plain.decides


def test_without_power_the_page_says_so():
    def rows(effects: list[float]) -> list[Row]:
        found = [Row("raw", seed, "even_r2", 0.2) for seed in range(len(effects))]
        return found + [Row("oracle", seed, "even_r2", 0.2 + effect) for seed, effect in enumerate(effects)]

    assert "so it can tell" in power_sentence(rows([0.1, 0.11, 0.09]))
    assert "no method can be judged" in power_sentence(rows([0.1, -0.01, 0.09]))
    assert "no method can be judged" in power_sentence(rows([-0.1, -0.11, -0.09]))
    assert "not known" in power_sentence(rows([0.1]))


def test_ranks_are_of_the_pool():
    balance = {("raw", 0): {"pool_counts": [1, 2, 3, 4, 50], "subset_counts": [0, 1, 0, 0, 9]}}
    assert [line.split("|")[2].strip() for line in by_rank(balance, ["raw"]).splitlines()[2:]] == ["50", "9"]
