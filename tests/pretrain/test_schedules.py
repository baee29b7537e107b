"""Schedules, order of the data, groups of the optimiser: what decides a run without ever showing in its loss."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import CurationError
from pretrain.network import build_networks
from pretrain.optimiser import parameter_groups, parameter_kinds
from pretrain.order import Order, permuted
from pretrain.schedules import ScheduleSettings, schedule
from pretrain.settings import load_settings, settings_from
from training.batches import BatchPlan

spec = importlib.util.spec_from_file_location("reference", Path(__file__).parent / "reference.py")
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

RECIPES = Path(__file__).parents[2] / "configs/pretrain"
TINY = ["backbone.name=test_vit", "crops.global_size=32", "crops.local_size=16", "loss.dino_head.n_prototypes=16"]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (3, 10), (9, 10), (0, 1)])
def test_cosine_with_warmup_is_the_formula(warmup: int, steps: int):
    value = schedule(ScheduleSettings(0.0, 2.0, 0.5, warmup), steps)
    found = [value(step) for step in range(steps)]
    assert found == pytest.approx(reference.cosine_schedule(0.0, 2.0, 0.5, warmup, steps))
    assert value(steps + 100) == pytest.approx(found[-1])


def test_linear_and_constant():
    linear = schedule(ScheduleSettings(0.0, 1.0, 0.0, 0, "linear"), 5)
    assert [linear(step) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    constant = schedule(ScheduleSettings(0.04, 0.07, 0.0, 0.3, "constant"), 10)
    assert [constant(step) for step in (0, 3, 9)] == pytest.approx([0.04, 0.07, 0.07])


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
    with pytest.raises(CurationError, match="cannot be read"):
        load_settings("nowhere.yaml")


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 4097])
def test_an_epoch_is_a_permutation_and_epochs_differ(n: int):
    first = permuted(np.arange(n), n, seed=0, epoch=0)
    assert np.array_equal(np.sort(first), np.arange(n))
    if n >= 1000:
        second = permuted(np.arange(n), n, seed=0, epoch=1)
        assert (first != second).mean() > 0.9
        assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 4 / np.sqrt(n)
        assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / np.sqrt(n)


def test_a_billion_rows_are_permuted_without_a_list_of_them():
    found = permuted(np.arange(1000), 10**9, seed=1, epoch=0)
    assert len(np.unique(found)) == 1000
    assert 0 <= found.min() < found.max() < 10**9


def test_coverage_counts_distinct_rows_and_repetitions():
    order = Order(np.array([5, 5, 7, 9]), seed=0)  # row 5 is taken twice
    assert sorted(order.sample(np.arange(4))) == [5, 5, 7, 9]
    assert order.coverage(8) == {"samples": 8, "epochs": 2.0, "unique_samples": 3, "times_seen": 8 / 3}
    assert order.coverage(1)["unique_samples"] == 1


def test_processes_and_micro_batches_share_a_batch_without_overlap_or_loss():
    plans = [BatchPlan(24, 4, rank, 3) for rank in range(3)]
    places = [place for plan in plans for micro in range(plan.accumulate) for place in plan.within_step(micro)]
    assert sorted(places) == list(range(24))
    with pytest.raises(CurationError, match="multiple"):
        BatchPlan(10, 4, 0, 3)


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
