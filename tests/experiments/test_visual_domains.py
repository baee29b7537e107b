"""The experiment on visual domains: nothing held out is in the pool, every arm is judged alike, results say so."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from curation.embedding.embedders import Embedder
from experiments.engine.settings import compose
from experiments.engine.stages import StageRun
from experiments.launch import run_experiment
from experiments.pages.verdict import read_values
from experiments.visual_domains import pool as pools
from experiments.visual_domains import sources
from experiments.visual_domains.pool import Pictures, PoolSettings, split_domain
from experiments.visual_domains.sources import encoded, file_of, picture_pool, thumbnails
from foundation.errors import CurationError
from foundation.files import load_array, load_json

FOLDERS = ("stripes", "blobs", "grain")


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    side = np.arange(24)
    if kind == "stripes":
        pixels = 128 + 110 * np.sin(side * rng.uniform(0.4, 1.2) + rng.uniform(0, 6))[None].repeat(24, axis=0)
    elif kind == "blobs":
        y, x = rng.uniform(4, 20, 2)
        pixels = 255 * np.exp(-((side[:, None] - y) ** 2 + (side[None] - x) ** 2) / 30)
    else:
        pixels = rng.integers(0, 256, (24, 24)).astype(float)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 4, (24, 24)), 0, 255).astype(np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def clip_art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of pictures, 90 of each, in the layout of the clip art; the last ten of each repeat the first."""
    rng = np.random.default_rng(0)
    rows = []
    for label, kind in enumerate(FOLDERS):
        mine = [encoded(picture(kind, rng)) for _ in range(80)]
        rows += [{"image": image, "group": label} for image in mine + mine[:10]]
    path = tmp_path_factory.mktemp("clip art") / "clipart.parquet"
    Dataset.from_list(
        rows, features=Features({"image": ImageFeature(), "group": ClassLabel(names=list(FOLDERS))})
    ).to_parquet(path)
    return path


@pytest.fixture
def small(clip_art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of an experiment of seconds, on thumbnails instead of a network."""
    monkeypatch.setitem(sources.PICTURES, "clipart", str(clip_art))
    monkeypatch.setattr(pools, "open_embedder", lambda *_: named_thumbnails())
    domains = ",".join(f"clipart/{name}" for name in FOLDERS)
    pool = {"domains": f"[{domains}]", "rows": 100, "zipf": 1.2, "test_rows": 12, "trusted": 2}
    return [
        "experiment=visual_domains", "scale=demo", "tracking.wandb=off", "speed.threads=1", "speed.hardware=h100",
        f"output.runs={tmp_path}/runs", f"output.report={tmp_path}/report",
        *(f"science.pool.{key}={value}" for key, value in pool.items()),
        "science.pool.dim=768",
        "science.curation.size=40", "science.curation.levels=[12,6,3]", "seeds=[0,1,2]",
    ]  # fmt: skip


def named_thumbnails() -> Embedder:
    found = thumbnails()
    found.identity["embedder"] = "a network"
    return found


def test_an_experiment_from_pictures_to_the_page(small: list[str], tmp_path: Path):
    arms = [
        "arms=[raw,all,communities,hierarchical_resampled,retrieval,oracle,manual]",
        "+science.pool.manual=clipart/grain",
    ]
    assert run_experiment(compose([*small, *arms]), "command") == 0
    page = (tmp_path / "report/visual_domains.md").read_text()
    rows, about = read_values(tmp_path / "report/visual_domains.json")
    value = {(row.arm, row.seed, row.metric): row.value for row in rows}
    sizes = []
    for seed in range(3):
        prepared = next((tmp_path / f"runs/shared/seed{seed}").glob("prepare-*"))
        shared = pools.pictures_of(prepared)
        pool, test = load_array(prepared / "rows.npy"), load_array(prepared / "test.npy")
        assert len(np.unique(pool)) == 100
        grey = load_array(shared / "grey.npy")
        both = np.concatenate([grey[pool], grey[test]]).reshape(len(pool) + len(test), -1)
        # the ten copies of each folder are on one side, or left out
        distinct = len(np.unique(grey[test].reshape(len(test), -1), axis=0)) + len(
            np.unique(grey[pool].reshape(len(pool), -1), axis=0)
        )
        assert len(np.unique(both, axis=0)) == distinct
        assert sum(load_json(prepared / "pool.json")["in_pool_of"].values()) > 0
        sizes.append(list(load_json(prepared / "pool.json")["rows_of"].values()))
    assert np.all(np.sort(sizes, axis=0) == np.sort(sizes[0])[:, None])  # every domain has every rank once
    assert {seed for _, seed, _ in value} == {0}  # the three seeds are one round
    assert value["oracle", 0, "kl"] < value["raw", 0, "kl"]
    assert value["all", 0, "bpp_macro"] < value["raw", 0, "bpp_macro"] < 4
    # a hand-curated set is of its own domain alone, better on it and worse on the others
    assert value["manual", 0, "kl"] == pytest.approx(np.log(3))
    assert value["manual", 0, "bpp_own"] < value["raw", 0, "bpp_own"]
    assert value["manual", 0, "bpp_apart"] > value["raw", 0, "bpp_apart"]
    assert "| domain of the hand-curated set | the other domains |" in page
    assert "Untrained, the model needs 4.00 bits per pixel" in page
    assert "| rank in the pool |" in page
    assert about["experiment"] == "visual_domains"
    assert (tmp_path / "report/images/visual_domains_balance.png").stat().st_size > 1000


def test_a_domain_is_named_and_a_missing_file_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CURATED_SSL_DATA", str(tmp_path))
    with pytest.raises(CurationError, match=r"photos.*CURATED_SSL_DATA"):
        picture_pool("photos")
    with pytest.raises(CurationError, match=r"'painting' is unknown; use photos, cifar"):
        PoolSettings(["painting", "photos"], 10)
    with pytest.raises(CurationError, match="two or more different"):
        PoolSettings(["photos", "photos"], 10)
    with pytest.raises(CurationError, match=r"no folder 'painting'; it has"):
        picture_pool("clipart/painting")
    assert file_of("cifar", "test") != file_of("cifar")


def test_tiles_of_test_ground_keep_their_margin_to_the_pool():
    starts = np.stack(np.meshgrid(np.arange(0, 1600, 40), np.arange(0, 1600, 40)), axis=-1).reshape(-1, 2)
    n = len(starts)
    pictures = Pictures(Path(), np.zeros(n, int), np.zeros(n, bool), starts, np.zeros((n, 1, 1), np.uint8))
    settings = PoolSettings(["land", "photos"], 10, margin=32)
    tested = set()
    for seed in range(5):
        train, test = split_domain(pictures, 0, settings, seed)
        apart = np.abs(starts[train][:, None] - starts[test][None]).max(axis=2)
        assert apart.min() >= 64 + 32
        tested |= set(test.tolist())
    assert len(tested) > n / 3  # the seeds go through the ground


def test_pictures_are_gathered_once_for_all_seeds(small: list[str], tmp_path: Path):
    settings = compose(small)["science"]["pool"]
    made = []
    for seed in (0, 1):
        folder = tmp_path / f"runs/shared/seed{seed}/prepare-x"
        folder.mkdir(parents=True)
        pools.prepare(StageRun(folder, settings, seed, [], {"device": "cpu"}, progress=False))
        made.append((pools.pictures_of(folder), load_array(folder / "rows.npy").tolist()))
    assert made[0][0] == made[1][0]
    assert made[0][1] != made[1][1]
    assert json.loads((made[0][0] / "embeddings/embeddings.json").read_text())["complete"]
