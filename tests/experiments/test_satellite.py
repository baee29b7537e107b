"""The satellite experiment: test ground apart from all that was seen, equal budgets, and the closed-form head right."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")
pytest.importorskip("lightning")

from experiments.engine.experiment import build
from experiments.engine.settings import compose
from experiments.launch import run_experiment
from experiments.satellite.pool import cover_class
from experiments.satellite.scenes import COVERS, forest_scene
from foundation.errors import CurationError
from foundation.files import load_json
from satellite.backbone import open_backbone
from satellite.ridge import features, fit_ridge, pooled
from satellite.settings import BackboneSettings
from satellite.tiles import footprints, load_tiles

SMALL = [
    "experiment=satellite",
    "seeds=[0,1]",
    "science.pool.scene=[448,448]",
    "science.pool.block=64",
    "science.pool.margin=4",
    "science.pool.rows=40",
    "science.pool.labelled=20",
    "science.curation.size=16",
    "science.curation.levels=[12,6,3]",
    "science.curation.n_resamples=1",
    "science.curation.max_iterations=5",
    "science.train.recipe.steps=2",
    "science.train.recipe.batch_size=8",
    "tracking.wandb=off",
    "speed.threads=1",
]


def small(root: Path, *more: str) -> dict:
    return compose([*SMALL, f"output.runs={root}", f"output.report={root / 'results'}", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    assert run_experiment(small(root), "the command", lambda _line: None, False) == 0
    return root


def test_the_test_ground_is_apart_from_pool_and_labels(finished: Path):
    for seed in (0, 1):
        prepared = next((finished / "shared" / f"seed{seed}").glob("prepare-*"))
        boxes = footprints(load_tiles(prepared / "tiles.parquet")[0])
        rows = {name: np.load(prepared / f"{name}.npy") for name in ("pool_rows", "labelled", "test")}
        seen = boxes[np.concatenate([rows["pool_rows"], rows["labelled"]])][:, None]
        test = boxes[rows["test"]][None]
        gap_x = np.maximum(seen[..., 0] - test[..., 2], test[..., 0] - seen[..., 2])
        gap_y = np.maximum(seen[..., 1] - test[..., 3], test[..., 1] - seen[..., 3])
        assert np.maximum(gap_x, gap_y).min() >= 4 - 1e-6
        assert len(np.load(prepared / "labels.npy")) == 40


def test_the_page_is_written_and_calls_generated_scenes_synthetic(finished: Path):
    page = (finished / "results" / "satellite.md").read_text()
    assert "synthetic" in page
    assert "hierarchical_resampled" in page
    assert str(finished) not in page
    found = load_json(next((finished / "raw/seed0").glob("evaluate-*")) / "metrics.json")
    assert {"r2", "block_r2", "mae", "iou_5m", "edge_error", "mae_0_2"} <= set(found["metrics"])
    low, high = found["intervals"]["mae"]
    assert low <= found["metrics"]["mae"] <= high


def test_a_trained_decoder_can_judge_too(finished: Path):
    head = "{steps:4,batch_size:4,backbone:{blocks:[1,2,3,4]},head:{width:8,n_bins:16}}"
    more = ["seeds=[0]", "arms=[raw]", f"+science.evaluate.head={head}"]
    assert run_experiment(small(finished, *more), "the command", lambda _line: None, False) == 0
    assert len(list((finished / "raw/seed0").glob("evaluate-*/head/model/model.safetensors"))) == 1


@pytest.mark.parametrize("scale", ["demo", "lab", "paper"])
def test_every_scale_builds_with_equal_budgets(scale: str, tmp_path: Path):
    config = compose(["experiment=satellite", f"scale={scale}", f"output.runs={tmp_path}"])
    experiment = build(config)
    assert {"raw", "hierarchical_resampled"} <= set(config["arms"])
    assert len(set(experiment.rows.values())) == 1
    if scale == "lab":
        assert len(config["seeds"]) >= 5


def test_missing_rasters_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(tmp_path))
    config = small(tmp_path / "run", "science.pool.image=none.tif", "+science.pool.heights=chm.tif", "seeds=[0]")
    with pytest.raises(CurationError, match=r"none.tif is not there; set CURATED_SSL_DATA"):
        run_experiment(config, "the command", lambda _line: None, False)
    assert not (tmp_path / "run").exists()


UNLABELLED = ["science.pool={labelled: false, largest: 0, bursts: 0, rows: 9000}", "science.evaluate.suite=small"]


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["experiment=text", "science.pool.trusted=0", "arms=[raw,retrieval]"], "trusted set"),
        (["experiment=satellite", "arms=[raw,retrieval]"], "trusted set"),
        (["experiment=visual_domains", "arms=[raw,manual]"], "hand-curated set"),
        (["experiment=web_images", *UNLABELLED, "arms=[raw,oracle]"], "labels"),
    ],
)
def test_an_arm_whose_pool_lacks_what_it_needs_is_refused_before_the_others_run(words: list[str], needed: str):
    with pytest.raises(CurationError, match=f"needs {needed}"):
        build(compose([*words, "scale=demo"]))


@pytest.mark.parametrize("embedder", ["nope", "timm:nope", "torchvision:nope", "timm:resnet18?x=1", "checkpoint:"])
def test_an_embedder_that_there_is_not_is_refused_by_the_dry_run(embedder: str, tmp_path: Path):
    for name in ("satellite", "web_images", "visual_domains"):
        words = [f"experiment={name}", "scale=demo", f"output.runs={tmp_path}", f"science.pool.embedder='{embedder}'"]
        with pytest.raises(CurationError, match=r"embedder|has no"):
            build(compose(words))


def test_generated_land_is_unbalanced_and_tall_trees_are_rare():
    scene = forest_scene(400, 400, seed=2)
    shares = np.bincount(scene.cover.ravel(), minlength=len(COVERS)) / scene.cover.size
    np.testing.assert_allclose(shares, [cover[0] for cover in COVERS], atol=0.01)
    assert 0 < (scene.height > 20).mean() < 0.02 < (scene.height > 2).mean() < 0.2
    np.testing.assert_array_equal(forest_scene(400, 400, seed=2).colour, scene.colour)
    assert cover_class(scene.height[:64, :64]) in range(5)
    assert cover_class(np.full((8, 8), np.nan)) == -1


def test_ridge_is_the_weighted_least_squares_of_the_pooled_heights():
    torch.manual_seed(0)
    backbone = open_backbone(BackboneSettings("resnet10t", blocks=[1, 2]), 3, 32)
    images = torch.randn(12, 3, 32, 32)
    weights = None
    batches = []
    for part in images.split(4):
        x = features(backbone, part)
        weights = (
            torch.randn(x.shape[3], dtype=torch.float64) / (x.std((0, 1, 2)) + 0.01) if weights is None else weights
        )
        coarse = x @ weights + 9 + 0.1 * torch.randn(x.shape[:3], dtype=torch.float64)
        factor = 32 // x.shape[1]
        heights = coarse.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        heights[:, :10, :10] = float("nan")
        batches.append((part, heights))
    head = fit_ridge(backbone, batches)
    x = torch.cat([features(backbone, part) for part, _ in batches])
    y, share = pooled(torch.cat([heights for _, heights in batches]), tuple(x.shape[1:3]))
    z = ((x - head.mean) / head.scale).flatten(0, 2)
    w = share.flatten().sqrt()[:, None]
    n = float(share.sum())
    # the penalty as rows of data
    rows = torch.cat([z * w, (n * head.penalty) ** 0.5 * torch.eye(z.shape[1], dtype=torch.float64)])
    target = torch.cat([(y.flatten() - head.offset)[:, None] * w, torch.zeros(z.shape[1], 1, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, target).solution[:, 0]
    torch.testing.assert_close(head.weights, expected, rtol=1e-4, atol=1e-5)
    assert head.penalty < 1e-2
    error = (head(backbone, images) - torch.cat([h for _, h in batches]).clamp_min(0)).abs()
    assert float(torch.nanmedian(error)) < 2.0
    with pytest.raises(CurationError, match="at least two batches"):
        fit_ridge(backbone, batches[:1])
