"""Losses, centring, moving average: a wrong factor here trains another method under the paper's name."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foundation.errors import CurationError
from pretrain.backbone import build_backbone
from pretrain.centring import Sinkhorn, SoftmaxCentre, assignment_information, sinkhorn
from pretrain.ema import ema_update
from pretrain.heads import Head, Prototypes
from pretrain.losses import dino_loss, gram_loss, ibot_loss, koleo_loss, patch_weights
from pretrain.network import Network
from pretrain.optimiser import parameter_kinds
from pretrain.settings import load_settings

spec = importlib.util.spec_from_file_location("reference", Path(__file__).parent / "reference.py")
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

RNG = np.random.default_rng(0)


def distributions(*shape: int) -> np.ndarray:
    x = RNG.random(shape)
    return x / x.sum(-1, keepdims=True)


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float()


@pytest.mark.parametrize("n_local", [0, 1, 3])
def test_dino_loss_is_the_mean_over_all_pairs_of_the_paper(n_local: int):
    globals_, locals_ = RNG.normal(size=(2, 5, 7)), RNG.normal(size=(n_local, 5, 7))
    targets = distributions(2, 5, 7)
    found = dino_loss(tensor(globals_), tensor(locals_), tensor(targets), 0.1)
    assert float(found) == pytest.approx(reference.dino(globals_, locals_, targets, 0.1), rel=1e-5)


def test_ibot_loss_weighs_every_masked_crop_alike_however_many_patches_it_hides():
    logits, targets, crop_of = RNG.normal(size=(9, 6)), distributions(9, 6), np.array([0, 0, 0, 0, 0, 0, 2, 3, 3])
    weights = patch_weights(torch.from_numpy(crop_of), 5)
    found = ibot_loss(tensor(logits), tensor(targets), weights, 5, 0.1)
    assert float(found) == pytest.approx(reference.ibot(logits, targets, crop_of, 5, 0.1), rel=1e-5)


def test_ibot_loss_of_no_masked_patch_is_zero():
    empty = torch.zeros(0, 6)
    assert float(ibot_loss(empty, empty, torch.zeros(0), 4)) == 0.0


def test_koleo_is_the_formula_of_the_paper():
    x = RNG.normal(size=(12, 5))
    assert float(koleo_loss(tensor(x))) == pytest.approx(reference.koleo(x), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_koleo_of_exact_duplicates_and_of_one_image_stays_finite_with_its_gradient(n: int):
    x = torch.ones(n, 4).requires_grad_(True)
    loss = koleo_loss(x)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_gram_loss_compares_the_similarities_of_patches():
    x, y = RNG.normal(size=(3, 8, 5)), RNG.normal(size=(3, 8, 5))
    assert float(gram_loss(tensor(x), tensor(y))) == pytest.approx(reference.gram(x, y), rel=1e-5)
    turned = torch.linalg.qr(torch.randn(5, 5)).Q
    assert float(gram_loss(tensor(x), tensor(x) @ turned)) < 1e-10  # a rotation of the features changes nothing


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_sinkhorn_is_the_alternation_of_the_paper(iterations: int):
    logits = RNG.normal(size=(10, 4))
    found = sinkhorn(tensor(logits), 0.5, iterations)
    np.testing.assert_allclose(found, reference.sinkhorn(logits, 0.5, iterations), rtol=2e-4)


def test_sinkhorn_uses_all_prototypes_alike_and_survives_extreme_logits():
    found = sinkhorn(torch.randn(64, 8) * 2, 0.05, 200)
    torch.testing.assert_close(found.sum(1), torch.ones(64), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.sum(0), torch.full((8,), 8.0), rtol=0.05, atol=0.05)
    extreme = sinkhorn(torch.tensor([[1e4, 0.0], [1e4, 0.0]]), 0.04)
    assert bool(torch.isfinite(extreme).all())


def test_softmax_centring_uses_the_centre_of_the_batches_before():
    centring = SoftmaxCentre(3, momentum=0.9)
    first, second = RNG.normal(size=(6, 3)), RNG.normal(size=(4, 3))
    found = centring(tensor(first), 0.5)
    np.testing.assert_allclose(found[0], reference.softmax(first[0] / 0.5), rtol=1e-5)
    found = centring(tensor(second), 0.5)
    centre = 0.1 * first.mean(0)
    np.testing.assert_allclose(found[1], reference.softmax((second[1] - centre) / 0.5), rtol=1e-5)
    np.testing.assert_allclose(centring.centre, 0.9 * centre + 0.1 * second.mean(0), rtol=1e-5)
    assert len(Sinkhorn()(torch.zeros(0, 3), 0.1)) == 0


def test_information_tells_a_collapsed_teacher_of_either_kind():
    uniform = torch.full((16, 8), 1 / 8)
    one_hot = nn.functional.one_hot(torch.full((16,), 3), 8).float()
    spread = nn.functional.one_hot(torch.arange(16) % 8, 8).float()
    assert float(assignment_information(uniform)) == pytest.approx(0, abs=1e-6)
    assert float(assignment_information(one_hot)) == pytest.approx(0, abs=1e-6)
    assert float(assignment_information(spread)) == pytest.approx(math.log(8), rel=1e-5)


def test_teacher_is_the_moving_average_of_the_student():
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = 0.9 * teacher.weight.double() + 0.1 * student.weight.double()
    ema_update(student, teacher, 0.9)
    torch.testing.assert_close(teacher.weight.double(), expected, rtol=1e-6, atol=1e-7)
    ema_update(student, teacher, 0.0)
    torch.testing.assert_close(teacher.weight, student.weight)


def test_norms_of_prototypes_are_trained_and_decay_only_where_dinov2_does():
    layer = Prototypes(256, 4000, "weight_norm")
    assert float(layer.weight.detach().abs().max()) == pytest.approx(
        1 / 16, rel=1e-3
    )  # uniform, as torch starts a layer
    assert float(layer.weight.detach().std()) == pytest.approx(1 / 16 / math.sqrt(3), rel=0.01)
    x = torch.randn(5, 256)
    twin = nn.utils.parametrizations.weight_norm(nn.Linear(256, 4000, bias=False))
    with torch.no_grad():
        twin.parametrizations.weight.original0.copy_(layer.norms)
        twin.parametrizations.weight.original1.copy_(layer.weight)
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-4, atol=1e-5)
    given = ["backbone.name=test_vit", "crops.global_size=32", "crops.local_size=16"]
    given += ["loss.dino_head={n_prototypes: 16, hidden: 16, bottleneck: 8, prototypes: weight_norm}"]
    settings = load_settings(None, given)
    kinds = parameter_kinds(Network(build_backbone(settings.backbone, 32), settings.loss))
    assert kinds["dino_head.last_layer.norms"].decays
    assert kinds["dino_head.last_layer.norms"].last_layer
    with pytest.raises(CurationError, match=r"loss\.dino_head\.prototypes is 'round'; it must be one of cosine"):
        load_settings(None, ["loss.dino_head.prototypes=round"])


def test_logits_of_the_head_are_cosines_to_unit_prototypes():
    head = Head(6, 11, hidden=16, bottleneck=5)
    with torch.no_grad():
        head.last_layer.weight.mul_(100)  # the norm of a prototype must not matter
    logits = head(torch.randn(4, 6) * 1000).detach()
    assert logits.shape == (4, 11)
    assert float(logits.abs().max()) <= 1 + 1e-5
    assert sum(isinstance(layer, nn.Linear) for layer in head.mlp) == 3
