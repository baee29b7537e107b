"""Whole evaluations on a tiny folder, through the same functions and commands that a user calls."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from warm import Server

from eval.models import FrozenModel
from eval.results import compare
from eval.run import evaluate, make_task, read_suite, run
from eval.settings import RunSettings
from eval.tasks import TASKS
from foundation.errors import CurationError

SETTINGS = RunSettings(device="cpu", resamples=50, progress=False)


def values(model: FrozenModel, name: str, output: Path | None = None, **settings) -> dict[str, float]:
    return {row.metric: row.value for row in evaluate(model, [make_task(name, settings)], SETTINGS, output).rows}


@pytest.mark.parametrize(
    ("name", "settings", "metric"),
    [
        ("knn", {"ks": "1,5"}, "accuracy k=5"),
        ("linear", {"steps": 60, "train_batch": 32, "learning_rates": "0.1,2"}, "accuracy"),
        ("linear", {"steps": 60, "train_batch": 32, "learning_rates": "0.1,2", "refit": True}, "accuracy"),
        ("linear", {"steps": 30, "train_batch": 32, "learning_rates": "0.5,2", "augment": True}, "accuracy"),
        ("logistic", {"cs": "0.1,10"}, "accuracy"),
        ("few_shot", {"shots": "1,3", "draws": 2}, "accuracy 3-shot"),
        ("long_tail", {"edges": "5,10", "head": "knn", "k": 5}, "accuracy head"),
        ("corruptions", {"head": "logistic", "corruptions": "contrast,jpeg", "severities": "1"}, "accuracy jpeg"),
    ],
)
def test_a_model_that_sees_colour_solves_colours(colour_model, folder: Path, name: str, settings: dict, metric: str):
    assert values(colour_model, name, train=str(folder), **settings)[metric] > 0.9


def test_test_images_of_the_pretraining_are_counted(colour_model: FrozenModel, folder: Path, tmp_path: Path):
    seen = tmp_path / "seen"
    seen.mkdir()
    (folder / "val/blue/0.png").rename(seen / "0.png")
    (folder / "val/blue/0.png").symlink_to(seen / "0.png")  # a test image that lies in the pool
    try:
        for pool, said in [
            (seen, ["1 of the 24 test images"]),
            (folder, ["24 of the 24"]),
            (folder / "train", []),
            ("", []),
        ]:
            model = replace(colour_model, pool=str(pool))
            found = evaluate(model, [make_task("knn", {"train": str(folder), "ks": k}) for k in "12"], SETTINGS)
            assert [line.split(": ")[1][: len(word)] for line, word in zip(found.warnings, said, strict=True)] == said
    finally:
        (seen / "0.png").replace(folder / "val/blue/0.png")


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the images, which a test may change."""
    return shutil.copytree(folder, tmp_path / "own")


def test_results_of_data_that_changed_are_not_replaced(colour_model: FrozenModel, own: Path, tmp_path: Path):
    """Under the same name: earlier figures would silently become those of other images."""
    tasks = [make_task("knn", {"train": str(own), "ks": "1"})]
    evaluate(colour_model, tasks, SETTINGS, tmp_path / "r", overwrite=False)
    for path in own.rglob("*.png"):
        os.utime(path)  # copied again: the same data
    evaluate(colour_model, tasks, SETTINGS, tmp_path / "r", overwrite=False)
    before = (tmp_path / "r/metrics.json").read_bytes()
    shutil.copy(own / "train/red/0.png", own / "val/red/0.png")
    with pytest.raises(CurationError, match="own has changed since the results that are there were measured"):
        evaluate(colour_model, tasks, SETTINGS, tmp_path / "r", overwrite=False)
    assert (tmp_path / "r/metrics.json").read_bytes() == before
    evaluate(colour_model, tasks, SETTINGS, tmp_path / "r", overwrite=True)


def test_two_models_are_compared_on_the_same_images_alone(colour_model: FrozenModel, own: Path, tmp_path: Path):
    other = replace(colour_model, identity="other")
    tasks = [make_task("knn", {"train": str(own), "ks": "1"})]
    evaluate(colour_model, tasks, SETTINGS, tmp_path / "a")
    evaluate(other, tasks, SETTINGS, tmp_path / "b")
    assert len(compare(tmp_path / "a", tmp_path / "b")) == 1
    red, blue = own / "val/red/0.png", own / "val/blue/0.png"
    content = red.read_bytes()
    red.write_bytes(blue.read_bytes())  # another label
    blue.write_bytes(content)
    evaluate(other, tasks, SETTINGS, tmp_path / "b")
    with pytest.raises(CurationError, match="no figure of the same test rows"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_copy_of_the_training_images_is_no_test(colour_model: FrozenModel, folder: Path, tmp_path: Path):
    shutil.copytree(folder / "train", tmp_path / "copy")
    tasks = [make_task("knn", {"train": str(folder / "train"), "test": str(tmp_path / "copy"), "ks": "1"})]
    assert "are the training images" in evaluate(colour_model, tasks, SETTINGS).warnings[0]


def test_retrieval_and_statistics(colour_model: FrozenModel, folder: Path):
    assert values(colour_model, "retrieval", test=str(folder))["mAP"] > 0.9
    assert values(colour_model, "retrieval", test=str(folder), database=str(folder))["mAP"] > 0.9
    found = values(colour_model, "feature_stats", test=str(folder))
    assert 1 <= found["effective rank"] <= 3
    assert found["uniformity"] < 0 <= found["alignment"]


def test_revisited_retrieval_from_a_folder(colour_model: FrozenModel, tmp_path: Path):
    (tmp_path / "jpg").mkdir()
    colours = {"r1": "red", "r2": "red", "b1": "blue", "b2": "blue", "q": "blue"}
    for name, colour in colours.items():
        Image.new("RGB", (40, 40), colour).save(tmp_path / "jpg" / f"{name}.jpg")
    query = Image.new("RGB", (40, 40), "blue")
    query.paste(Image.new("RGB", (20, 40), "red"), (0, 0))  # the box holds the red half only
    query.save(tmp_path / "jpg" / "q.jpg", quality=95)
    entry = {"bbx": [0, 0, 16, 40], "easy": [0], "hard": [1], "junk": []}
    truth = {"imlist": ["r1", "r2", "b1", "b2"], "qimlist": ["q"], "gnd": [entry]}
    (tmp_path / "gnd.json").write_text(json.dumps(truth))
    found = values(colour_model, "retrieval", test=str(tmp_path))
    assert found["mAP medium"] == found["mAP hard"] == 1
    (tmp_path / "jpg" / "b2.jpg").unlink()
    with pytest.raises(CurationError, match="b2"):
        evaluate(colour_model, [make_task("retrieval", {"test": str(tmp_path)})], RunSettings(max_bad=0.9))


def test_robustness_needs_the_right_map(colour_model: FrozenModel, folder: Path, tmp_path: Path):
    for new, old in (("sky", "blue"), ("grass", "green")):
        (tmp_path / "test").mkdir(exist_ok=True)
        (tmp_path / "test" / new).symlink_to(folder / "val" / old)
    settings = {"train": str(folder), "tests": str(tmp_path), "head": "logistic"}
    with pytest.raises(CurationError, match="class-map file"):
        values(colour_model, "robustness", **settings)
    class_map = tmp_path / "map.json"
    class_map.write_text(json.dumps({"sky": "blue", "grass": ["green", "red"]}))
    assert values(colour_model, "robustness", class_map=str(class_map), **settings)["accuracy logistic"] > 0.9
    with pytest.raises(CurationError, match="one test set"):
        values(colour_model, "robustness", class_map="x", train=str(folder), tests="a,b")
    with pytest.raises(CurationError, match="restrict"):
        values(colour_model, "robustness", restrict="maybe", **settings)


def test_fairness_from_a_table(colour_model: FrozenModel, folder: Path, tmp_path: Path):
    lines = ["path,label,income"]
    for name in ("blue", "green", "red"):
        for i in range(8):
            # wrong labels for the poor: their accuracy must be 0, and the gap 1
            poor = i % 2
            label = {"blue": "green", "green": "red", "red": "blue"}[name] if poor else name
            lines.append(f"{folder}/val/{name}/{i}.png,{label},{'low' if poor else 'high'}")
    table = tmp_path / "test.csv"
    table.write_text("\n".join(lines))
    settings = {"train": str(folder), "test": str(table), "group": "income", "min_rows": 5, "head": "knn", "k": 3}
    found = values(colour_model, "fairness", **settings)
    assert found["gap over income"] == pytest.approx(1, abs=0.1)
    assert values(colour_model, "fairness", top=3, **settings)["accuracy"] == 1
    with pytest.raises(CurationError, match="CSV table"):
        values(colour_model, "fairness", train=str(folder), test=str(folder))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two-coloured images with the colour's class (1 or 2; 0 unlabelled) and a depth that follows it."""
    root = tmp_path_factory.mktemp("scenes")
    for split, n in (("train", 12), ("test", 6)):
        for kind in ("images", "annotations", "depth"):
            (root / kind / split).mkdir(parents=True)
        for i in range(n):
            classes = np.ones((32, 32), np.uint8)
            classes[:, 8 * (i % 3 + 1) :] = 2
            pixels = np.where(classes[..., None] == 1, np.array([220, 40, 40]), np.array([40, 60, 220]))
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{i}.png")
            depth = (classes.astype(np.uint16) * 2000).astype(np.uint16)
            classes[:2], depth[:2] = 0, 0
            Image.fromarray(classes).save(root / "annotations" / split / f"{i}.png")
            Image.fromarray(depth).save(root / "depth" / split / f"{i}.png")
    return root


def test_segmentation_and_depth_from_folders(colour_model: FrozenModel, scenes: Path):
    settings = {"train": str(scenes), "steps": 80, "train_batch": 4, "learning_rate": 0.05}
    assert values(colour_model, "segmentation", n_classes=2, **settings)["mIoU"] > 0.8
    assert values(colour_model, "depth", **settings)["rmse"] < 0.6
    few = {**settings, "steps": 2}
    for scale, said in ((1000.0, []), (1e6, [f"{scenes}: half of the depths are below"])):  # files of millimetres
        found = evaluate(colour_model, [make_task("depth", {**few, "scale": scale})], SETTINGS)
        assert [line[: len(word)] for line, word in zip(found.warnings, said, strict=True)] == said
    with pytest.raises(CurationError, match="value 1"):  # class 2 of the files is class 1 here
        values(colour_model, "segmentation", n_classes=1, **settings)
    no_patches = FrozenModel(lambda x: x.mean((2, 3)), colour_model.transform, "no patches", image_size=32)
    with pytest.raises(CurationError, match="no patch tokens"):
        values(no_patches, "depth", **settings)


def test_results_are_tidy_and_compared_by_pairs(colour_model: FrozenModel, folder: Path, tmp_path: Path):
    blind = FrozenModel(
        lambda x: torch.randn(len(x), 4, generator=torch.Generator().manual_seed(int(x[0, 0, 0, 0] * 255))),
        colour_model.transform,
        "blind",
    )
    for model, output in ((colour_model, tmp_path / "good"), (blind, tmp_path / "bad")):
        evaluate(model, [make_task("knn", {"train": str(folder), "ks": "5"})], SETTINGS, output)
    content = json.loads((tmp_path / "good" / "metrics.json").read_text())
    assert content["model"] == "colours"
    (row,) = content["rows"]
    assert content["metrics"] == {f"knn/{folder}/accuracy k=5": row["value"]}
    assert row["low"] <= row["value"] <= row["high"]
    assert row["n"] == 24
    assert content["seconds"]["knn"] >= content["seconds"]["features"] > 0
    assert content["settings"]["knn"][0]["ks"] == [5]
    (found,) = compare(tmp_path / "good", tmp_path / "bad", n_resamples=200)
    assert found.verdict == "higher"
    assert found.difference.value == pytest.approx(found.value - found.base)
    (same,) = compare(tmp_path / "good", tmp_path / "good")
    assert same.verdict == "no significant difference"
    evaluate(colour_model, [make_task("retrieval", {"test": str(folder)})], SETTINGS, tmp_path / "other")
    with pytest.raises(CurationError, match="no figure of the same test rows"):
        compare(tmp_path / "good", tmp_path / "other")
    with pytest.raises(CurationError, match="does not exist; evaluate again"):
        compare(tmp_path / "good", tmp_path / "nothing")


def test_features_are_computed_once_for_several_tasks(colour_model: FrozenModel, folder: Path):
    seen = []

    def count(images: torch.Tensor):
        seen.append(len(images))
        return colour_model.features(images)

    model = FrozenModel(count, colour_model.transform, "counting", image_size=32)
    tasks = [
        make_task("knn", {"train": str(folder), "ks": "3"}),
        make_task("few_shot", {"train": str(folder), "shots": "2"}),
    ]
    evaluate(model, tasks, SETTINGS)
    assert sum(seen) == 84


def test_a_bad_image_is_reported_and_the_rest_is_judged(colour_model: FrozenModel, folder: Path, tmp_path: Path):
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(folder / split)
    broken = tmp_path / "broken" / "val"
    for name in ("blue", "green", "red"):
        (broken / name).mkdir(parents=True)
        for path in (folder / "val" / name).iterdir():
            (broken / name / path.name).write_bytes(path.read_bytes())
    (broken / "red" / "3.png").write_bytes(b"not an image")
    task = make_task("knn", {"train": str(folder), "test": str(tmp_path / "broken"), "ks": "3"})
    results = evaluate(colour_model, [task], RunSettings(max_bad=0.1, resamples=20))
    assert results.rows[0].n == 23
    assert list(results.skipped[str(tmp_path / "broken")]) == ["red/3.png"]


@pytest.mark.parametrize(
    ("tasks", "shared", "message"),
    [
        ([("knn", {"kss": "1"})], {"model": "random:resnet18"}, "kss is no setting; did you mean 'ks'"),
        ([("knn", {"temperature": "warm"})], {"model": "random:resnet18"}, "temperature"),
        ([("nothing", {})], {"model": "random:resnet18"}, "there are knn"),
        ([("knn", {})], {}, "no model"),
        ([("knn", {})], {"model": "random:test_vit", "device": "cpu"}, "train"),
    ],
)
def test_bad_settings_are_named(tasks: list, shared: dict, message: str, tmp_path: Path):
    with pytest.raises(CurationError, match=message):
        run(tasks, shared, tmp_path)


def test_suites_are_read_and_mistakes_named(tmp_path: Path):
    path = tmp_path / "suite.yaml"
    path.write_text("seed: 3\ntasks:\n- knn: {ks: [5]}\n- feature_stats\n")
    assert read_suite(path) == ([("knn", {"ks": [5]}), ("feature_stats", {})], {"seed": 3})
    for text in ("tasks: 3", "tasks: []", "tasks: [3]", "tasks: [{knn: 3}]", "[", "tasks:\n- {a: {}, b: {}}"):
        path.write_text(text)
        with pytest.raises(CurationError, match=r"suite\.yaml"):
            read_suite(path)


def test_one_figure_does_not_hide_another(colour_model: FrozenModel, folder: Path, tmp_path: Path):
    tasks = [make_task("knn", {"train": str(folder), "ks": [3], "temperature": t}) for t in (0.07, 0.5)]
    with pytest.raises(CurationError, match=r"two evaluations both measure knn/.*accuracy k=3"):
        evaluate(colour_model, tasks, RunSettings(device="cpu", resamples=20), tmp_path)
    assert len(json.loads((tmp_path / "metrics.json").read_text())["rows"]) == 1


def test_the_command_runs_a_suite_and_prints_one_line_on_a_mistake(folder: Path, tmp_path: Path, warm: Server):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"tasks:\n- knn: {{train: {folder}, ks: [3]}}\n- feature_stats: {{test: {folder}, views: false}}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    model = ["model=random:test_vit", "image_size=32", "device=cpu", "resamples=20"]
    command = [sys.executable, "-m", "eval", "suite", str(suite), *model, "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "accuracy k=3" in done.stdout
    assert len(json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]) == 3
    kept = (tmp_path / "out/metrics.json").read_bytes()
    knn = ["-m", "eval", "knn", f"train={folder}", "ks=3", *model, "-o", str(tmp_path / "out")]
    others = warm.run(*knn)
    assert (others.returncode, "metrics.json holds results of other settings" in others.stderr) == (2, True)
    assert (tmp_path / "out/metrics.json").read_bytes() == kept
    assert warm.run(*knn, "--overwrite").returncode == 0
    assert warm.run(*knn, "batch_size=3").returncode == 0  # the same figures, measured again
    assert warm.run(*command[1:]).returncode == 0  # they begin with those that are there
    failed = warm.run("-m", "eval", "knn", "train=nowhere", *model)
    assert failed.returncode == 2
    assert failed.stderr.startswith("eval: error: dataset 'nowhere'")
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_setting_has_a_comment(name: str):
    from dataclasses import fields

    assert all(len(entry.metadata["help"]) > 5 for entry in (*fields(TASKS[name]), *fields(RunSettings)))
    assert TASKS[name].__doc__
    assert not TASKS[name].__doc__.startswith(f"{TASKS[name].__name__}(")  # what dataclasses write


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "eval" / "suites").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_suite_names_real_tasks_settings_and_datasets(path: Path):
    from eval.registry import REGISTRY
    from foundation.settings import fill

    tasks, shared = read_suite(path)
    fill(RunSettings, shared)
    for name, settings in tasks:
        task = make_task(name, settings)
        used = [getattr(task, key, "") for key in ("train", "test")] + getattr(task, "tests", [])
        assert all(dataset in REGISTRY for dataset in used if dataset)
