"""Datasets: labels that mean what they say, and a message that gets a user to the data."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

from eval.datasets import check_same_classes, open_labelled, open_table
from eval.pairs import open_pairs, read_target
from eval.registry import REGISTRY
from foundation.errors import CurationError


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_missing_dataset_says_where_to_get_it(name: str, tmp_path: Path):
    opened = open_pairs if REGISTRY[name].layout == "pairs" else open_labelled
    with pytest.raises(CurationError) as error:
        opened(name, "test", *(["annotations"] if opened is open_pairs else []), root=tmp_path)
    assert REGISTRY[name].page in str(error.value)
    assert REGISTRY[name].page.startswith("http")
    assert str(tmp_path / name) in str(error.value)


def test_registered_names_are_found_below_the_root(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "imagenet-1k").symlink_to(folder)
    images = open_labelled("imagenet-1k", "test", tmp_path)
    assert (len(images), images.class_names) == (24, ["blue", "green", "red"])
    monkeypatch.setenv("EVAL_DATA", str(tmp_path))
    assert len(open_labelled("imagenet-1k", "train")) == 60
    (tmp_path / "imagenet-a").symlink_to(folder / "val")
    assert len(open_labelled("imagenet-a", "test")) == 24
    with pytest.raises(CurationError, match="no train split"):
        open_labelled("imagenet-a", "train")


def test_other_files_at_the_same_names_have_another_digest(folder: Path, tmp_path: Path):
    images = open_labelled(str(folder), "test")
    assert images.digest == open_labelled(str(folder), "test").digest
    for name in images.class_names:
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(8):
            Pillow.new("RGB", (4, 4)).save(tmp_path / "val" / name / f"{i}.png")
    assert open_labelled(str(tmp_path), "test").digest != images.digest


def test_parquet_and_hugging_face_columns(tmp_path: Path):
    def encoded(value: int) -> dict:
        stream = io.BytesIO()
        Pillow.new("RGB", (4, 4), (value, 0, 0)).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    rows = {"image": [encoded(10), encoded(20), encoded(30)], "label": [1, 0, 1]}
    kinds = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "test.parquet")
    for name in (str(tmp_path / "test.parquet"), str(tmp_path)):
        images = open_labelled(name, "test")
        assert images.class_names == ["cat", "dog"]
        assert images.labels.tolist() == [1, 0, 1]
        assert images.open(2).getpixel((0, 0)) == (30, 0, 0)
    plain = Features({"image": Image(), "label": Value("int64"), "class": Value("string")})
    Dataset.from_dict({**rows, "class": ["dog", "cat", "dog"]}, features=plain).to_parquet(tmp_path / "plain.parquet")
    assert open_labelled(str(tmp_path / "plain.parquet"), "test").class_names == ["cat", "dog"]
    Dataset.from_dict({"image": rows["image"], "label": [1, None, 0]}).to_parquet(tmp_path / "holes.parquet")
    with pytest.raises(CurationError, match="row 1 has no label"):
        open_labelled(str(tmp_path / "holes.parquet"), "test")
    Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(CurationError, match="it has x"):
        open_labelled(str(tmp_path / "other.parquet"), "test")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(CurationError, match="parquet"):
        open_labelled(str(tmp_path / "broken.parquet"), "test")


def test_train_and_test_of_different_classes_are_refused(folder: Path, tmp_path: Path):
    train = open_labelled(str(folder), "train")
    for name in ("blue", "green", "pink"):
        (tmp_path / name).mkdir()
        Pillow.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    test = open_labelled(str(tmp_path), "test")
    with pytest.raises(CurationError, match="pink, red"):
        check_same_classes(train, test)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CurationError, match="has no images"):
        open_labelled(str(tmp_path), "test")


def test_tables_of_groups(tmp_path: Path):
    Pillow.new("RGB", (4, 4)).save(tmp_path / "a.png")
    table = tmp_path / "test.csv"
    table.write_text("path,label,income\na.png,stove,low\na.png,bed,high\n")
    images = open_table(table, group_column="income")
    assert (images.class_names, images.groups) == (["bed", "stove"], ["low", "high"])
    assert images.labels.tolist() == [1, 0]
    with pytest.raises(CurationError, match="it has path, label, income"):
        open_table(table, group_column="region")
    table.write_text("path,label,group\n,stove,low\n")
    with pytest.raises(CurationError, match="line 2"):
        open_table(table)


def test_pairs_and_targets(tmp_path: Path):
    for kind in ("images", "annotations"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Pillow.new("RGB", (4, 4)).save(tmp_path / "images/train/x.jpg")
    with pytest.raises(CurationError, match=r"x\.jpg has no target"):
        open_pairs(str(tmp_path), "train", "annotations")
    Pillow.new("L", (4, 4), 2).save(tmp_path / "annotations/train/x.png")
    pairs = open_pairs(str(tmp_path), "train", "annotations")
    assert read_target(pairs.targets[0]).tolist() == [[2] * 4] * 4
    np.save(tmp_path / "depth.npy", np.full((2, 2), 3000, np.uint16))
    assert read_target(tmp_path / "depth.npy", scale=1000).tolist() == [[3.0, 3.0], [3.0, 3.0]]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CurationError, match="cannot be read"):
        read_target(tmp_path / "objects.npy")
    with pytest.raises(CurationError, match="one channel"):
        read_target(tmp_path / "images/train/x.jpg")
    np.save(tmp_path / "empty.npy", np.ones((0, 4)))
    with pytest.raises(CurationError, match="and pixels"):
        read_target(tmp_path / "empty.npy")
    np.save(tmp_path / "annotations/train/x.npy", np.ones((4, 4)))
    with pytest.raises(CurationError, match="targets of one image"):
        open_pairs(str(tmp_path), "train", "annotations")


@pytest.mark.parametrize(("name", "message"), [("nowhere", "neither a path"), ("hub:no-such/data", "cannot be loaded")])
def test_unknown_datasets_are_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(CurationError, match=message):
        open_labelled(name, "test")
