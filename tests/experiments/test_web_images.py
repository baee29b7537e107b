"""The image experiment: what an arm sees, what it is judged on, and that nothing it is judged on was in the pool."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image

from curation.pools.pool import open_pool
from experiments.engine.experiment import build, open_domain
from experiments.engine.settings import compose
from experiments.launch import plan_table, run_experiment
from experiments.web_images.faults import junk, near_duplicate
from experiments.web_images.pool import PoolSettings, class_sizes, held_out, long_tail, open_source, pool_rows
from experiments.web_images.training import TrainSettings, budget
from foundation.errors import CurationError
from foundation.files import load_json
from foundation.settings import fill


def pool(**changes: object) -> str:
    settings = {"source": "pool.parquet", "test_rows": 6, "bank_rows": 6, "least": 2, "largest": 20, "imbalance": 4.0}
    settings |= {"bursts": 0.2, "junk": 0.2, "image_size": 32, "dim": 96, "classes": 4}
    settings["embedder"] = '"timm:test_resnet?pretrained=false"'
    return "science.pool=" + str({**settings, **changes}).replace("'", "").replace(" ", "")


SMALL = [
    "experiment=web_images",
    "science.curation.size=24",
    "science.curation.levels=[12,5]",
    "science.curation.n_resamples=1",
    "science.curation.max_iterations=5",
    "science.curation.semdedup_clusters=5",
    "science.train.recipe={steps:3,batch_size:8,collapse:0.0,probe:{every:2},backbone:{name:test_resnet,args:null},"
    "loss:{ibot:0.0,dino_head:{n_prototypes:8}},crops:{global_size:32,n_local:0}}",
    "science.evaluate.steps=20",
    "science.evaluate.corruptions=[brightness]",
    "science.evaluate.corrupted_rows=10",
    "tracking.wandb=off",
    "speed.threads=1",
]
LABELS = {0: 80, 1: 70, 2: 60, 3: 50}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes that differ in colour; every two rows in a row are one group."""
    rng, rows = np.random.default_rng(0), []
    for label, n in LABELS.items():
        for _ in range(n):
            pixels = rng.normal(60 + 50 * label, 30, (24, 24, 3)).clip(0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            rows.append(
                {"image": {"bytes": stream.getvalue(), "path": None}, "label": label, "duplicate_group": len(rows) // 2}
            )
    folder = tmp_path_factory.mktemp("data")
    Dataset.from_list(rows).to_parquet(str(folder / "pool.parquet"))
    return folder


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATED_SSL_DATA", str(images))
        config = compose(
            [
                *SMALL,
                pool(),
                "arms=[raw,hierarchical_resampled,oracle]",
                "seeds=[0,1]",
                f"output.runs={root}",
                f"output.report={root / 'results'}",
            ]
        )
        run_experiment(config, "test")
    return root, config


def of_stage(root: Path, name: str) -> list[Path]:
    return sorted(path for path in root.rglob(f"{name}-*") if path.is_dir())


def test_every_arm_sees_the_same_number_of_images_and_is_judged_alike(finished: tuple[Path, dict]):
    found = [load_json(folder / "metrics.json") for folder in of_stage(finished[0], "evaluate")]
    assert len(found) == 6
    assert {item["data"]["samples"] for item in found} == {24}
    names = {metric.name for metric in open_domain("web_images").metrics}
    for item in found:
        assert names <= item["metrics"].keys()
        assert 0 <= item["metrics"]["linear"] <= 1
        assert item["data"]["share_image"] + item["data"]["share_near_duplicate"] + item["data"][
            "share_junk"
        ] == pytest.approx(1)


def test_the_pool_has_the_faults_of_the_web_in_their_shares(finished: tuple[Path, dict]):
    for folder in of_stage(finished[0], "prepare"):
        counts = load_json(folder / "pool.json")
        assert max(counts["images"]) == 20
        assert min(counts["images"]) == 5
        kinds = counts["kinds"]
        assert kinds["junk"] / counts["rows"] == pytest.approx(0.2, abs=0.02)
        assert kinds["near_duplicate"] / counts["rows"] == pytest.approx(0.2, abs=0.02)
        labels = np.load(folder / "labels.npy")
        assert (labels == -1).sum() == kinds["junk"]


def test_nothing_that_is_tested_lies_in_the_pool_or_the_bank(finished: tuple[Path, dict]):
    for folder in of_stage(finished[0], "prepare"):
        pixels = {}
        for name in ("pool", "bank", "test"):
            pixels[name] = {np.asarray(row["image"]).tobytes() for row in open_pool(folder / f"{name}.parquet")}
        assert not pixels["test"] & pixels["pool"]
        assert not pixels["test"] & pixels["bank"]
        assert not pixels["bank"] & pixels["pool"]


def test_classes_take_their_frequencies_in_turns(finished: tuple[Path, dict]):
    counts = [load_json(folder / "pool.json")["images"] for folder in of_stage(finished[0], "prepare")]
    assert sorted(counts[0]) == sorted(counts[1])
    assert counts[0] != counts[1]


def test_the_page_says_what_the_numbers_say(finished: tuple[Path, dict]):
    page = (finished[0] / "results/web_images.md").read_text()
    assert "no verdict" not in page
    assert "| hierarchical_resampled |" in page
    assert "seeds=[0,1]" in page


def test_an_embedder_trained_on_the_pool_itself(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(images))
    ssl = {"steps": 2, "batch_size": 8, "collapse": 0.0, "backbone": {"name": "test_resnet"}, "probe": {"every": 0}}
    ssl |= {"loss": {"ibot": 0.0, "dino_head": {"n_prototypes": 8}}, "crops": {"global_size": 32, "n_local": 0}}
    config = compose(
        [
            *SMALL,
            pool(largest=0, rows=300, embedder="ssl", image_size=0, dim=96, ssl=ssl),
            "arms=[raw]",
            "seeds=[0]",
            f"output.runs={tmp_path}",
            f"output.report={tmp_path / 'results'}",
        ]
    )
    run_experiment(config, "test")
    (prepared,) = of_stage(tmp_path, "prepare")
    assert load_json(prepared / "embeddings/embeddings.json")["dim"] == 96


@pytest.mark.parametrize("scale", ["demo", "lab", "paper"])
def test_the_plan_of_every_scale_is_known_before_it_runs(scale: str):
    config = compose(["experiment=web_images", f"scale={scale}", "seeds=[0]", "tracking.wandb=off"])
    experiment = build(config)
    assert experiment.samples > 0
    assert "train raw seed 0" in plan_table(experiment)


def test_all_that_is_missing_is_said_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Data and weights: else they are found out one by one, the weights after the pool was embedded."""
    monkeypatch.setenv("CURATED_SSL_DATA", str(tmp_path))
    words = ["science.pool.source=none.parquet", "science.pool.test=", "science.pool.embedder=checkpoint:gone"]
    words += ["science.train.recipe.init_from=no_run", "speed.hardware=h100", f"output.runs={tmp_path / 'run'}"]
    lines: list[str] = []
    config = compose(["experiment=web_images", "scale=lab", *words])
    assert run_experiment({**config, "dry_run": True}, "", lines.append) == 0
    for line, missing in zip(lines[:3], ("none.parquet", "gone", "no_run/state.safetensors"), strict=True):
        assert line.startswith("note: it cannot run here yet: "), line
        assert missing in line
    assert lines[3].startswith("stage ")
    with pytest.raises(CurationError, match=r"none\.parquet"):
        run_experiment(config, "", lines.append)


def test_sizes_of_the_classes_and_of_the_pool():
    pool = PoolSettings("x", largest=1000, imbalance=100, bursts=0.2, junk=0.3)
    sizes = class_sizes(pool, 10)
    assert (sizes[0], sizes[-1]) == (1000, 10)
    assert pool_rows(pool) == pytest.approx(2 * sizes.sum())
    with pytest.raises(CurationError, match="how many rows"):
        PoolSettings("x", largest=0)
    with pytest.raises(CurationError, match="below 1"):
        PoolSettings("x", bursts=0.6, junk=0.5)


def test_the_paper_scale_is_the_published_recipe():
    science = compose(["experiment=web_images", "scale=paper", "tracking.wandb=off"])["science"]
    samples, steps, flops = budget(fill(TrainSettings, science["train"]), 0)
    assert (samples, steps) == (1.92e9, 625_000)
    assert flops == pytest.approx(2.06e12 * 1.92e9, rel=0.01)


def test_faults_look_like_what_they_are():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    copy = near_duplicate(image, rng)
    difference = np.abs(np.asarray(copy, float) - np.asarray(image, float)).mean()
    assert 0 < difference < 40
    assert len({junk(32, rng).tobytes() for _ in range(20)}) == 20


def test_a_source_that_is_not_there_or_has_no_labels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from experiments.web_images.pool import open_source

    monkeypatch.delenv("CURATED_SSL_DATA", raising=False)
    with pytest.raises(CurationError, match="set CURATED_SSL_DATA"):
        open_source("cifar10/nothing.parquet", False)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(CurationError, match="no column label"):
        open_source(str(tmp_path), False)


def test_the_pool_of_the_demo_has_classes_to_test_on():
    """The pictures that ship with the project, with the settings of ``scale=demo``."""
    settings = PoolSettings(**compose(["experiment=web_images", "scale=demo"])["science"]["pool"])
    source, rng = open_source(settings.source, settings.top_level), np.random.default_rng(0)
    free = np.ones(len(source.labels), bool)
    test = held_out(source, settings.test_rows, rng, free)
    held_out(source, settings.bank_rows, rng, free)
    rows, kept = long_tail(source, settings, free, 0, rng)
    assert len(kept) >= 15
    assert len(rows) >= settings.rows
    assert not set(rows) & set(test)


def test_a_pool_without_classes_is_judged_by_a_suite(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The web has no labels; a suite decides, and no row of the pool is asked for its class."""
    monkeypatch.setenv("CURATED_SSL_DATA", str(images))
    stored = pq.read_table(images / "pool.parquet")
    pq.write_table(stored.select(["image"]), tmp_path / "web.parquet")
    for split, rows in (("train", slice(0, None, 4)), ("test", slice(1, None, 4))):
        for i, row in enumerate(stored.to_pylist()[rows]):
            path = tmp_path / "set" / split / f"class{row['label']}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"]["bytes"])
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        f"tasks:\n- knn: {{train: {tmp_path}/set, ks: [3, 5]}}\n- logistic: {{train: {tmp_path}/set, cs: [1.0]}}\n"
    )
    own = [*SMALL, "arms=[raw,hierarchical_resampled]", "seeds=[0]", f"output.runs={tmp_path}/run"]
    own += [f"output.report={tmp_path}/results"]
    web = pool(source=str(tmp_path / "web.parquet"), labelled="false", largest=0, bursts=0.0, rows=300)
    with pytest.raises(CurationError, match=r"nothing judges the models; set science\.evaluate\.suite"):
        build(compose([*own, web]))
    with pytest.raises(CurationError, match="without classes none can be made frequent"):
        build(compose([*own, pool(labelled="false")]))
    config = compose([*own, web, f"science.evaluate.suite={suite}"])
    assert run_experiment(config, "test", progress=False) == 0
    prepared = of_stage(tmp_path / "run", "prepare")[0]
    assert not (prepared / "labels.npy").exists()
    counts = load_json(prepared / "pool.json")
    assert counts["kinds"] == {"image": 260, "near_duplicate": 0, "junk": 65}
    for folder in of_stage(tmp_path / "run", "evaluate"):
        metrics = load_json(folder / "metrics.json")["metrics"]
        of_suite = {key.rpartition("/set/")[2]: value for key, value in metrics.items() if key.startswith("knn")}
        assert metrics["knn"] == max(of_suite["accuracy k=3"], of_suite["accuracy k=5"])
        logistic = next(value for key, value in metrics.items() if key.endswith("/set/accuracy"))
        assert metrics["linear"] == logistic > 0.3  # colours tell the classes
    page = (tmp_path / "results/web_images.md").read_text()
    assert "whose classes nobody knows" in page
    assert f"of the suite {suite}" in page
