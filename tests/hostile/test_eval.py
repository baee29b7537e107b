"""`python -m eval` under bent settings and files."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.datasets import open_table
from eval.results import load_rows
from eval.retrieval import read_ground_truth
from eval.robustness import read_class_map
from foundation.errors import CurationError

sys.path.insert(0, str(Path(__file__).parent))
from hostile_engine import Command, Hostile, bend_calls


def results_are_whole(folder: Path) -> None:
    found = load_rows(folder / "out")
    assert found.rows
    assert all(np.isfinite(value).all() for value in found.per_row.values())


SMALL = ("model=random:resnet10t", "image_size=32", "train=images", "test=images", "-o", "out", "progress=false")
RUN = ("image_size=", "batch_size=", "n_workers=", "max_bad=", "resamples=", "seed=")
KNN = ("knn", "ks=1,2", *SMALL)
LOGISTIC = ("logistic", "max_iterations=5", "resamples=10", *SMALL)
NGRAM = ("ngram", "train=train.jsonl", "test=test.jsonl", "resamples=10", "-o", "out")
COMMANDS = {
    "knn": Command(
        "eval.cli", KNN, ("ks=", "temperature=", "blocks=", *RUN), ("images/a/0.png",), valid=results_are_whole
    ),
    "logistic": Command("eval.cli", LOGISTIC, ("max_iterations=", "blocks=", *RUN)),
    "ngram": Command(
        "eval.cli", NGRAM, ("order=", "train_bytes=", "resamples=", "seed="), ("train.jsonl", "test.jsonl")
    ),
    "suite": Command("eval.cli", ("suite", "suite.yaml", "-o", "out"), (), ("suite.yaml",)),
    "compare": Command(
        "eval.cli", ("compare", "one", "one"), (), ("one/metrics.json", "one/per_row.safetensors"), writes=()
    ),
}
SLOW = ("knn", "logistic", "suite")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "images" / name)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    for name in ("train", "test"):
        texts = [" ".join(rng.choice(words, 12)) + f" {name} {i}" for i in range(20)]
        rows = [{"text": text, "domain": f"d{i % 2}", "source": f"{name} {i}"} for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = dict(word.split("=") for word in SMALL if "=" in word and not word.startswith(("train", "test")))
    lines = [f"{key}: {value}" for key, value in given.items()]
    (folder / "suite.yaml").write_text("tasks:\n  - knn: {ks: [1], train: images}\n" + "\n".join(lines) + "\n")
    tools = Hostile(folder, folder)
    ended = tools.call(COMMANDS["knn"], (*KNN, "-o", "one", "max_bad=1"))
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def hostile(world: Path, tmp_path: Path) -> Hostile:
    return Hostile(world, tmp_path)


bend = partial(bend_calls, COMMANDS)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.numbers])
def test_bent_settings(hostile: Hostile, name: str):
    bend(3 if name in SLOW else 6, "bend_settings")(hostile, name)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.files])
def test_bent_files(hostile: Hostile, name: str):
    bend(3 if name in SLOW else 6, "bend_file")(hostile, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.numbers])
def test_many_bent_settings(hostile: Hostile, name: str):
    bend(40 if name in SLOW else 150, "bend_settings")(hostile, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.files])
def test_many_bent_files(hostile: Hostile, name: str):
    bend(40 if name in SLOW else 150, "bend_file")(hostile, name)


CANARY = "import pathlib\n\ndef touch(path='canary'):\n    pathlib.Path(path).touch()\n\ndef model():\n    touch()\n"


@pytest.mark.parametrize(
    "model", ["os:system", "os:getcwd", "subprocess:run", "shutil:rmtree", "canary_module:touch", "canary_module:model"]
)
def test_nothing_but_a_maker_of_models_is_called(
    hostile: Hostile, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "canary_module.py").write_text(CANARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    hostile.fresh(COMMANDS["knn"])
    ended = hostile.call(COMMANDS["knn"], (*(word for word in KNN if not word.startswith("model=")), f"model={model}"))
    assert ended.code == 2
    assert "FrozenModel" in ended.err
    assert not (tmp_path / "canary").exists()


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("name", "at"), [("metrics.json", -40), ("per_row.safetensors", -1)])
def test_results_that_changed_are_not_compared(hostile: Hostile, name: str, at: int):
    hostile.fresh(COMMANDS["compare"])
    _flip(hostile.work / "one" / name, at)
    assert hostile.check(COMMANDS["compare"], COMMANDS["compare"].words, name).code == 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("root=nan", "which is no folder"),
        ("cache=~/x", "only a shell knows"),
        ("cache=train.jsonl", "is no folder"),
        ("seed=1:30", "another number"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(hostile: Hostile, word: str, said: str):
    """A folder "~" was made, and a root that is not there was passed over."""
    hostile.fresh(COMMANDS["knn"])
    ended = hostile.check(COMMANDS["knn"], (*KNN, word), word)
    assert (ended.code, said in ended.err) == (2, True), ended.err


def test_cached_features_that_changed_are_not_used(hostile: Hostile):
    words = (*KNN, "cache=cache")
    hostile.fresh(COMMANDS["knn"])
    assert hostile.call(COMMANDS["knn"], words).code == 0
    cached = sorted((hostile.work / "cache").rglob("*.safetensors"))
    assert cached
    for path in cached:
        _flip(path, -1)
    ended = hostile.call(COMMANDS["knn"], words)
    assert (ended.code, "delete the file" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(
    "change", [{"easy": [0.7]}, {"easy": [True]}, {"easy": "01"}, {"easy": None}, {"bbx": [float("nan"), 0, 1, 1]}]
)
def test_ground_truth_holds_whole_numbers_and_a_box(tmp_path: Path, change: dict):
    """0.7 was image 0, and the text "01" images 0 and 1."""
    entry = {"bbx": [0, 0, 1, 1], "easy": [0], "hard": [], "junk": [], **change}
    (tmp_path / "gnd.json").write_text(json.dumps({"imlist": ["a", "b"], "qimlist": ["c"], "gnd": [entry]}))
    with pytest.raises(CurationError, match=rf"gnd\[0\]\.{next(iter(change))}"):
        read_ground_truth(tmp_path / "gnd.json")


@pytest.mark.parametrize(
    ("change", "said"), [({"junk": [0]}, "in two of easy, hard and junk"), ({"hard": [-1]}, "names image -1")]
)
def test_an_image_of_the_ground_truth_is_in_one_list(tmp_path: Path, change: dict, said: str):
    """Relevant and left out at once, nothing was found: a traceback."""
    entry = {"bbx": [0, 0, 1, 1], "easy": [0], "hard": [], "junk": [], **change}
    (tmp_path / "gnd.json").write_text(json.dumps({"imlist": ["a", "b"], "qimlist": ["c"], "gnd": [entry]}))
    with pytest.raises(CurationError, match=said):
        read_ground_truth(tmp_path / "gnd.json")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("map.json", '{"x": ["a"], "x": ["b"]}', "the key 'x' is there twice"),
        ("map.csv", "x,a\nx,b\n", "the key 'x' is there twice"),
        ("map.csv", "x,a,b\n", "3 cells"),
        ("map.csv", "x\n", "1 cells"),
        ("map.json", '{"x": [0.0]}', "neither a training class"),
    ],
)
def test_a_class_map_says_one_thing_of_a_class(tmp_path: Path, name: str, content: str, said: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(CurationError, match=said):
        read_class_map(tmp_path / name, ["x"], ["a", "b"])


def test_a_table_whose_head_names_a_column_twice_is_refused(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,label,label,group\na.png,one,two,g\n")
    with pytest.raises(CurationError, match="2 columns 'label'"):
        open_table(tmp_path / "t.csv")


SEGMENTATION = ("segmentation", "model=random:vit_tiny_patch16_224", "image_size=32", "train=pairs", "size=32")
SEGMENTATION += ("n_classes=3", "steps=1", "train_batch=2", "resamples=10", "-o", "out", "progress=false")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((8, 8), 1.5), "no whole numbers"),
        (np.full((8, 8), np.nan), "no whole numbers"),
        (np.full((8, 8), 9), "value 8"),
        (np.full((8, 40), 1), "cut both alike"),
    ],
)
def test_a_mask_holds_classes_or_is_named(hostile: Hostile, values: np.ndarray, said: str):
    """1.5 was class 1, and a mask of another shape was stretched."""
    for split in ("train", "test"):
        for kind in ("images", "annotations"):
            (hostile.work / "pairs" / kind / split).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(hostile.work / f"pairs/images/{split}/x.png")
        np.save(hostile.work / f"pairs/annotations/{split}/x.npy", values)
    ended = hostile.call(Command("eval.cli", SEGMENTATION), SEGMENTATION)
    assert (ended.code, ended.err.count(": error: "), "x.npy" in ended.err) == (2, 1, True), ended.err
    assert said in ended.err
