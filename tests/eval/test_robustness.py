"""Class maps and corruptions: a wrong map gives a plausible and wrong figure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.corruptions import CORRUPTIONS, corrupt
from eval.robustness import (
    ClassMap,
    map_by_index,
    map_by_name,
    mapped_correct,
    mean_corruption_error,
    read_class_map,
)
from foundation.errors import CurationError


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    y, x = np.mgrid[:64, :64] / 64
    pixels = np.stack([x, y, 0.5 + 0.4 * np.sin(90 * x) * np.cos(60 * y)], 2)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_corruption_changes_the_picture_more_when_severe_and_repeats(picture: Image.Image, name: str):
    copies = [corrupt(picture, name, severity, seed=3) for severity in (1, 5)]
    assert all(copy.size == picture.size and copy.mode == "RGB" for copy in copies)
    assert distance(picture, copies[0]) > 0.2
    if name != "saturate":  # its first two severities take colour out, the others put colour in
        assert distance(picture, copies[0]) < distance(picture, copies[1])
    assert distance(copies[1], corrupt(picture, name, 5, seed=3)) == 0


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic"])
def test_another_seed_gives_another_corruption(picture: Image.Image, name: str):
    assert distance(corrupt(picture, name, 3, seed=1), corrupt(picture, name, 3, seed=2)) > 0.1


def test_noise_has_the_published_strength():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    x = np.asarray(corrupt(grey, "gaussian_noise", 1, seed=0), dtype=float) / 255
    assert x.std() == pytest.approx(0.08, rel=0.02)
    x = np.asarray(corrupt(grey, "shot_noise", 2, seed=0), dtype=float) / 255
    assert x.std() == pytest.approx(np.sqrt(128 / 255 / 25), rel=0.05)
    assert (np.asarray(corrupt(grey, "impulse_noise", 3, seed=0)) != 128).mean() == pytest.approx(0.09, abs=0.005)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_tiny_and_black_images_survive(name: str, size: tuple[int, int]):
    assert corrupt(Image.new("RGB", size), name, 5, seed=0).size == size


def test_unknown_corruptions_are_named(picture: Image.Image):
    with pytest.raises(CurationError, match="gaussian_noise"):
        corrupt(picture, "rust", 1, 0)
    with pytest.raises(CurationError, match="1 to 5"):
        corrupt(picture, "fog", 6, 0)


def test_folders_of_numbers_are_indices_not_places_in_a_sorted_list():
    folders = sorted(str(i) for i in range(12))  # "0", "1", "10", "11", "2", ...
    found = map_by_index(folders, 12)
    scores = torch.eye(12)[[int(name) for name in folders]]
    correct, judged = mapped_correct(scores, torch.arange(12), found)
    assert correct.all()
    assert len(judged) == 12
    with pytest.raises(CurationError, match="'n01'"):
        map_by_index(["n01"], 12)
    with pytest.raises(CurationError, match="below 5"):
        map_by_index(folders, 5)


def test_predictions_are_restricted_to_the_classes_of_the_set():
    class_map = map_by_name(["n3", "n1"], ["n0", "n1", "n2", "n3"])
    scores = torch.tensor([[9.0, 1.0, 0.0, 2.0], [9.0, 1.0, 0.0, 2.0]])
    assert mapped_correct(scores, torch.tensor([0, 1]), class_map)[0].tolist() == [True, False]
    assert not mapped_correct(scores, torch.tensor([0, 1]), class_map, restrict=False)[0].any()
    with pytest.raises(CurationError, match="1 of 2 classes"):
        map_by_name(["n3", "n9"], ["n0", "n1", "n2", "n3"])


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_class_map_file_takes_names_and_indices_and_many_to_one(tmp_path: Path, kind: str):
    path = tmp_path / f"map.{kind}"
    if kind == "json":
        path.write_text(json.dumps({"chair": ["n1", 2], "lamp": 0, "tent": []}))
    else:
        path.write_text("chair,n1;2\nlamp,0\ntent,\n")
    found = read_class_map(path, ["chair", "lamp", "tent"], ["n0", "n1", "n2"])
    assert found == ClassMap([(1, 2), (0,), ()], 3)
    correct, judged = mapped_correct(torch.eye(3)[[2, 1, 0]], torch.tensor([0, 1, 2]), found)
    assert judged.tolist() == [0, 1]
    assert correct.tolist() == [True, False]
    with pytest.raises(CurationError, match="'sofa'"):
        read_class_map(path, ["sofa"], ["n0", "n1", "n2"])
    with pytest.raises(CurationError, match="neither a training class"):
        read_class_map(path, ["chair"], ["n0", "n1"])


def test_labels_outside_the_map_and_other_heads_are_refused():
    class_map = ClassMap([(0,), (1,)], 3)
    with pytest.raises(CurationError, match="label 2"):
        mapped_correct(torch.eye(3), torch.tensor([0, 1, 2]), class_map)
    with pytest.raises(CurationError, match="2 columns"):
        mapped_correct(torch.eye(2), torch.tensor([0, 1]), class_map)


def test_mean_corruption_error_is_relative_to_its_baseline():
    errors, baseline = {"fog": [0.2, 0.4], "jpeg": [0.1, 0.2]}, {"fog": [0.6, 0.6], "jpeg": [0.6, 0.6]}
    assert mean_corruption_error(errors)["mean"] == pytest.approx((0.3 + 0.15) / 2)
    assert mean_corruption_error(errors, baseline)["mean"] == pytest.approx((0.5 + 0.25) / 2)
    with pytest.raises(CurationError, match="jpeg"):
        mean_corruption_error(errors, {"fog": [0.6, 0.6]})
