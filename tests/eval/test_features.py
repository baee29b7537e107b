"""Models, images and features: what a user loses is a crash at hour 20, or figures of the wrong model."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from eval.features import extract
from eval.images import LabelledImages
from eval.models import FrozenModel, block_features, from_timm, open_model
from foundation.errors import CurationError


def table(paths: list[Path], labels: list[int] | None = None) -> LabelledImages:
    labels = labels or [0] * len(paths)
    names = [f"class {i}" for i in range(max(labels) + 1)]
    return LabelledImages("some", paths, torch.tensor(labels), names, [path.name for path in paths])


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """One file of every kind that real folders hold."""
    kinds = {
        "grey": Image.new("L", (20, 10), 7), "rgba": Image.new("RGBA", (20, 10), (255, 0, 0, 0)),
        "cmyk": Image.new("CMYK", (20, 10)), "palette": Image.new("P", (20, 10)), "pixel": Image.new("RGB", (1, 1)),
        "sixteen": Image.fromarray(np.full((10, 20), 256 * 100, dtype=np.uint16)),
    }  # fmt: skip
    paths = {}
    for name, image in kinds.items():
        paths[name] = tmp_path / f"{name}.{'tif' if name in ('cmyk', 'sixteen') else 'png'}"
        image.save(paths[name])
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
    for name, content in {"truncated": whole.read_bytes()[:600], "text": b"no image", "empty": b""}.items():
        paths[name] = tmp_path / f"{name}.jpg"
        paths[name].write_bytes(content)
    paths["missing"] = tmp_path / "missing.jpg"
    paths["strip"] = tmp_path / "strip.png"
    Image.new("RGB", (2, 900)).save(paths["strip"])
    return paths


def test_odd_images_are_read_and_broken_ones_skipped_and_named(odd: dict[str, Path], colour_model: FrozenModel):
    features = extract(colour_model, table(list(odd.values())), max_bad=0.9, batch_size=3)
    assert set(features.skipped) == {f"{name}.jpg" for name in ("truncated", "text", "empty", "missing")} | {
        "strip.png"
    }
    assert len(features) == 6
    with pytest.raises(CurationError, match="more than max_bad"):
        extract(colour_model, table(list(odd.values())), max_bad=0.2)


def test_a_decompression_bomb_is_a_bad_image(tmp_path: Path, colour_model, monkeypatch: pytest.MonkeyPatch):
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    Image.new("L", (10, 10)).save(tmp_path / "good.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    features = extract(colour_model, table([tmp_path / "bomb.png", tmp_path / "good.png"]), max_bad=0.5)
    assert "DecompressionBomb" in features.skipped["bomb.png"]


def test_cache_returns_the_same_and_is_not_shared_between_models(odd, colour_model: FrozenModel, tmp_path: Path):
    images = table([odd["grey"], odd["text"], odd["cmyk"]], [0, 1, 2])
    first = extract(colour_model, images, tmp_path / "cache", max_bad=0.5)
    again = extract(colour_model, images, tmp_path / "cache", max_bad=0.5)
    assert all(torch.equal(a, b) for a, b in zip(first.cls, again.cls, strict=True))
    assert torch.equal(first.mean_patch, again.mean_patch)
    assert again.labels.tolist() == [0, 2]
    assert again.skipped == first.skipped
    other = FrozenModel(lambda x: torch.ones(len(x), 4), colour_model.transform, "ones")
    assert extract(other, images, tmp_path / "cache", max_bad=0.5).pooled().shape == (2, 4)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CurationError, match="delete the file"):
        extract(colour_model, images, tmp_path / "cache", max_bad=0.5)


def test_inputs_are_those_of_the_sweep(odd, colour_model: FrozenModel):
    features = extract(colour_model, table([odd["grey"], odd["cmyk"]]))
    inputs = features.inputs(torch.tensor([1]))
    assert {name: x.shape[1] for name, x in inputs.items()} == {
        "cls of 1": 3, "cls of 1 + patches": 6, "cls of 2": 6, "cls of 2 + patches": 9
    }  # fmt: skip
    assert torch.equal(inputs["cls of 1"][0], features.cls[-1][1])
    with pytest.raises(CurationError, match="3 blocks"):
        features.pooled(3)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"patches": torch.zeros(2, 4, 3)}, "'cls'"),
        ({"cls": torch.zeros(3, 4)}, "for 2 images"),
        ({"cls": torch.zeros(2, 4), "patches": torch.zeros(2, 5, 3)}, "5 patches"),
        ({"cls": torch.zeros(2, 4), "patches": torch.zeros(2, 3)}, "'patches'"),
        ([1, 2], "list"),
    ],
)
def test_feature_functions_that_break_the_contract_are_named(output, message: str):
    with pytest.raises(CurationError, match=message):
        block_features(output, 2)


def test_a_model_that_gives_nan_stops_with_the_image(odd):
    broken = FrozenModel(lambda x: torch.full((len(x), 2), torch.nan), lambda image: torch.zeros(3, 4, 4), "broken")
    with pytest.raises(CurationError, match=r"grey\.png"):
        extract(broken, table([odd["grey"]]))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto"])
def test_timm_models_give_tokens_and_maps(name: str):
    size = 64
    options = {"img_size": size} if name.startswith("vit") else {}
    network = timm.create_model(name, num_classes=0, **options).eval()
    model = from_timm(network, name, size)
    x = torch.randn(2, 3, size, size)
    found = block_features(model.features(x), 2)
    torch.testing.assert_close(found.cls[-1], network(x).detach(), atol=1e-4, rtol=1e-4)
    assert found.map.shape[:3] == (2, *found.grid)
    assert model.transform(Image.new("RGB", (100, 80))).shape == (3, size, size)


def test_a_folder_carries_its_architecture_and_other_weights_are_refused(tmp_path: Path):
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0)
    arguments = {"img_size": 32, "patch_size": 8}
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 0, "num_features": 192, "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "num_classes": 0},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CurationError, match=r"model\.safetensors does not exist"):
        open_model(str(tmp_path), device="cpu")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    model = open_model(str(tmp_path), device="cpu")
    assert (model.image_size, model.mean) == (32, (0.1, 0.2, 0.3))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.features(x)["cls"][-1], network.eval()(x).detach(), atol=1e-4, rtol=1e-4)
    larger = open_model(str(tmp_path), image_size=64, device="cpu")
    assert larger.features(torch.randn(1, 3, 64, 64))["grid"] == (8, 8)
    assert larger.identity != model.identity
    other = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=3)
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CurationError):
        open_model(str(tmp_path), device="cpu")
    with pytest.raises(CurationError, match="another architecture"):
        open_model("timm:resnet18", weights=tmp_path / "model.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "neither a folder"), ("timm:no_such_net", "no_such_net"), ("no.module:f", "cannot be imported"),
     ("os:getcwd", "FrozenModel")],
)  # fmt: skip
def test_unknown_models_are_named(name: str, message: str):
    with pytest.raises(CurationError, match=message):
        open_model(name, device="cpu")
