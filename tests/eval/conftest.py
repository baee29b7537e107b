"""A tiny labelled image folder and a model that sees its colours, shared by the tests of this folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from eval.models import FrozenModel

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def colour_features(images: torch.Tensor) -> dict:
    """The mean colour of the image and of each 8 x 8 patch, before and after a fixed mixing."""
    patches = torch.nn.functional.avg_pool2d(images, 8)
    grid = tuple(patches.shape[2:])
    tokens = patches.flatten(2).transpose(1, 2)
    mean = tokens.mean(1)
    return {"cls": [mean.flip(1), mean], "patches": tokens, "grid": grid}


@pytest.fixture
def colour_model() -> FrozenModel:
    return FrozenModel(
        colour_features, lambda image: to_tensor(image.resize((32, 32))), "colours", (0, 0, 0), (1, 1, 1), 32
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with a folder of noisy one-colour images per class."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("val", 8)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(np.array(colour) + rng.normal(scale=60, size=(24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root
