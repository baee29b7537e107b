"""Recipes, peaks of the schedules, groups of the optimiser: what decides a run without ever showing in its loss."""

from pathlib import Path

import pytest

from foundation.errors import CurationError
from pretrain.network import build_networks
from pretrain.optimiser import parameter_groups, parameter_kinds
from pretrain.settings import load_settings, settings_from

RECIPES = Path(__file__).parents[2] / "configs/pretrain"
TINY = ["backbone.name=test_vit", "crops.global_size=32", "crops.local_size=16", "loss.dino_head.n_prototypes=16"]


def test_a_warmup_longer_than_the_run_is_refused_with_its_name():
    with pytest.raises(CurationError, match=r"optimiser\.rate\.warmup is 12500 steps, but the run has 1000"):
        settings_from({"steps": 1000, "optimiser": {"rate": {"warmup": 12500}}})


def test_a_learning_rate_is_scaled_by_the_root_of_the_batch_and_by_nothing_else():
    given = {"optimiser": {"learning_rate": 4e-3}, "batch_size": 4096}
    assert settings_from(given).peak_rate == pytest.approx(8e-3)
    assert settings_from({**given, "optimiser": {"learning_rate": 4e-3, "reference_batch": 0}}).peak_rate == 4e-3


@pytest.mark.parametrize(
    ("name", "rate", "steps", "weight_decay", "momentum", "prototypes"),
    [
        ("vitl16_short", 4e-3 * 2**0.5, 125_000, 0.4, 0.992, 65_536),
        ("vitl14_long", 2e-4 * 3**0.5, 625_000, 0.2, 0.994, 131_072),
        ("dinov3_vitl16_im1k", 4e-3 * 2**0.5, 125_000, 0.4, 0.992, 65_536),
    ],
)
def test_published_recipes_are_exact(
    name: str, rate: float, steps: int, weight_decay: float, momentum: float, prototypes: int
):
    settings = load_settings(RECIPES / f"{name}.yaml")
    values = settings.schedules()
    assert settings.steps == steps
    assert settings.peak_rate == pytest.approx(rate)  # the hidden factor 4 of DINOv3 is written out
    assert settings.peak_rate * values["rate"](steps) == pytest.approx(1e-6)
    assert values["weight_decay"](0) == 0.04
    assert values["weight_decay"](steps) == pytest.approx(weight_decay)
    assert values["teacher_momentum"](0) == momentum
    assert values["teacher_momentum"](steps) == pytest.approx(1)
    assert values["teacher_temperature"](0) == pytest.approx(0.04)
    assert values["teacher_temperature"](37_500) == pytest.approx(0.07)
    assert settings.loss.dino_head.n_prototypes == prototypes
    assert settings.crops.n_local == 8


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_builds(path: Path):
    from pretrain.flops import meta_network

    settings = load_settings(path)
    network = meta_network(settings)
    assert network.backbone.dim > 0


def test_settings_of_the_wrong_kind_or_name_are_refused():
    for given, words in [
        ({"steps": "many"}, "steps"),
        ({"crops": {"n_locals": 3}}, r"crops\.n_locals is no setting; did you mean 'n_local'"),
        ({"loss": {"centring": "none"}}, "centring"),
        ({"loss": {"dino": 0, "ibot": 0}}, "both 0"),
        ({"crops": 3}, "key: value"),
        ({"backbone": {"skip_dropped": 1}}, "skip_dropped"),
    ]:
        with pytest.raises(CurationError, match=words):
            settings_from(given)
    with pytest.raises(CurationError, match="does not exist"):
        load_settings("nowhere.yaml")


def test_layers_vectors_and_prototypes_get_their_own_rates():
    student, _ = build_networks(load_settings(None, TINY))
    kinds = parameter_kinds(student, layer_decay=0.5, patch_embed_factor=0.2)
    depth = len(student.backbone.model.blocks)
    assert kinds["backbone.model.patch_embed.proj.weight"].factor == pytest.approx(0.2 * 0.5 ** (depth + 1))
    assert kinds["backbone.model.blocks.0.attn.qkv.weight"].factor == pytest.approx(0.5**depth)
    assert kinds[f"backbone.model.blocks.{depth - 1}.attn.qkv.weight"].factor == pytest.approx(0.5)
    assert kinds["backbone.model.norm.weight"].factor == 1
    assert kinds["dino_head.mlp.0.weight"].factor == 1
    assert not kinds["backbone.model.norm.weight"].decays
    assert not kinds["dino_head.mlp.0.bias"].decays
    assert kinds["backbone.model.blocks.0.mlp.fc1.weight"].decays
    assert kinds["dino_head.last_layer.weight"].last_layer
    groups = parameter_groups(student.named_parameters(), kinds)
    assert sum(len(group["params"]) for group in groups) == len(list(student.parameters()))
