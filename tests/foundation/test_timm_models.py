"""Models of timm: one that is asked for a size must take it, whatever its name looks like."""

import pytest
import timm
import torch

from foundation.errors import CurationError
from foundation.timm_models import create_timm_model

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "num_classes": 0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", TINY),
        ("eva02_tiny_patch14_224", TINY),  # a transformer whose name says neither
        ("deit_tiny_patch16_224", TINY),
        ("test_resnet", {"num_classes": 0}),  # takes any size, and refuses the argument
    ],
)
def test_a_model_runs_at_the_size_that_was_asked_for(name: str, options: dict):
    model = create_timm_model(name, 48, **options).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 48, 48)).shape[0] == 1
    if hasattr(model, "patch_embed"):
        assert model.patch_embed.grid_size == (6, 6)


def test_without_a_size_a_model_keeps_its_own_and_a_given_one_wins():
    assert create_timm_model("vit_tiny_patch16_224", **TINY).patch_embed.img_size == (224, 224)
    assert create_timm_model("vit_tiny_patch16_224", 48, img_size=32, **TINY).patch_embed.img_size == (32, 32)


def test_the_constructor_is_asked_and_other_refusals_are_passed_on(monkeypatch: pytest.MonkeyPatch):
    """The question is put to the constructor: a fake one answers for both kinds."""
    asked = []

    def create(name: str, **options: object) -> str:
        asked.append(options)
        if "img_size" in options and name == "fixed":
            raise TypeError("Net.__init__() got an unexpected keyword argument 'img_size'")
        if "depht" in options:
            raise TypeError("Net.__init__() got an unexpected keyword argument 'depht'")
        return name

    monkeypatch.setattr(timm, "create_model", create)
    assert create_timm_model("sized", 48, depth=3) == "sized"
    assert create_timm_model("fixed", 48, depth=3) == "fixed"
    assert asked == [{"img_size": 48, "depth": 3}, {"img_size": 48, "depth": 3}, {"depth": 3}]
    with pytest.raises(CurationError, match=r"timm cannot make 'sized': .*depht"):
        create_timm_model("sized", 48, depht=3)


def test_an_unknown_model_is_one_line():
    with pytest.raises(CurationError, match="timm cannot make 'no_such_net'"):
        create_timm_model("no_such_net", 48)
