"""What `pretrain` computes beside the formulas of `reference`, in float64: the rows of docs/parity.md.

``python tests/pretrain/parity.py`` prints them as a table; `test_parity` holds each below its bound.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # run by itself, and from pytest

import reference  # noqa: E402

from pretrain.backbone import build_backbone, resized_positions  # noqa: E402
from pretrain.centring import SoftmaxCentre, sinkhorn  # noqa: E402
from pretrain.ema import ema_update  # noqa: E402
from pretrain.heads import PROTOTYPES, Prototypes  # noqa: E402
from pretrain.losses import dino_loss, gram_loss, ibot_loss, koleo_loss, patch_weights  # noqa: E402
from pretrain.network import build_networks  # noqa: E402
from pretrain.optimiser import parameter_groups, parameter_kinds, set_rates  # noqa: E402
from pretrain.settings import load_settings  # noqa: E402
from training.schedules import ScheduleSettings, schedule  # noqa: E402

TEMPERATURE = 0.1
TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 0.5}  # LayerScale large enough to matter


@dataclass(frozen=True)
class Comparison:
    """A row of the table.

    Attributes:
        what, tensors: in words.
        ours, formula: of equal shape.
        bound: of the largest difference, relative to the formula's largest number.
    """

    what: str
    tensors: str
    ours: np.ndarray
    formula: np.ndarray
    bound: float

    @property
    def difference(self) -> float:
        return float(np.abs(self.ours - self.formula).max() / np.abs(self.formula).max())


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float()


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def comparisons() -> Iterator[Comparison]:
    """All rows, in the order of a training step."""
    rng = np.random.default_rng(0)
    for part in (_backbones, _heads, _targets, _losses, _steps):
        yield from part(rng)


def _backbones(rng: np.random.Generator) -> Iterator[Comparison]:
    recipes = ("vitl16_short", 16, 4), ("vitl14_long", 14, 5.375), ("dinov3_vitl16_im1k", 16, 4)
    for name, patch, ratio in recipes:
        given = load_settings(ROOT / f"configs/pretrain/{name}.yaml").backbone
        args = {**given.args, **TINY, "mlp_ratio": ratio}
        torch.manual_seed(0)
        backbone = build_backbone(replace(given, args=args), 4 * patch).eval()
        with torch.no_grad():
            for weight in backbone.parameters():  # larger than at the start, so that every term matters
                weight.add_(0.2 * torch.randn_like(weight))
        weights = {key: array(value) for key, value in backbone.model.state_dict().items()}
        for crop, side in (("global", 4 * patch), ("local", 2 * patch)):
            image = rng.normal(size=(3, side, side))
            cls, patches = backbone(tensor(image)[None])
            ours = np.concatenate([array(cls), array(patches[0])])
            formula = reference.vit(weights, image, patch, TINY["num_heads"], TINY["depth"])
            yield Comparison(
                f"backbone of `{name}`, {crop} crop",
                f"{len(ours)} tokens x {TINY['embed_dim']}, {TINY['depth']} blocks",
                ours,
                formula,
                2e-5,
            )
    grid = rng.normal(size=(16, 16, 8))
    given = np.concatenate([np.zeros((1, 8)), grid.reshape(-1, 8)])[None]
    ours = array(resized_positions(tensor(given), (16, 16), (7, 7), 1))[0, 1:]
    formula = reference.resized_positions(grid, (7, 7)).reshape(-1, 8)
    yield Comparison("positions of a local crop", "16 x 16 to 7 x 7, 8 dimensions", ours, formula, 1e-5)


def _heads(rng: np.random.Generator) -> Iterator[Comparison]:
    for kind in PROTOTYPES:
        layer = Prototypes(24, 512, kind)
        with torch.no_grad():
            if layer.norms is not None:
                layer.norms.copy_(tensor(rng.uniform(0.5, 2, (512, 1))))
        x = rng.normal(size=(64, 24))
        norms = None if layer.norms is None else array(layer.norms)
        ours = array(layer(torch.nn.functional.normalize(tensor(x), dim=1)))
        formula = reference.prototypes(x, array(layer.weight), norms, kind)
        yield Comparison(f"prototypes `{kind}`", "64 features x 512 prototypes of 24", ours, formula, 2e-6)


def _targets(rng: np.random.Generator) -> Iterator[Comparison]:
    logits = rng.uniform(-1, 1, size=(64, 128))
    for temperature in (0.04, 0.07):
        ours = array(sinkhorn(tensor(logits), temperature, 3))
        formula = reference.sinkhorn(logits, temperature, 3)
        yield Comparison(f"Sinkhorn, temperature {temperature}", "64 samples x 128 prototypes", ours, formula, 2e-5)
    centring = SoftmaxCentre(128, momentum=0.9)
    centring(tensor(logits), 0.04)
    other = rng.uniform(-1, 1, size=(64, 128))
    formula = np.stack([reference.softmax((row - 0.1 * logits.mean(0)) / 0.04) for row in other])
    ours = array(centring(tensor(other), 0.04))
    yield Comparison("softmax of centred logits, second batch", "64 samples x 128 prototypes", ours, formula, 2e-5)


def _losses(rng: np.random.Generator) -> Iterator[Comparison]:
    def distributions(*shape: int) -> np.ndarray:
        x = rng.random(shape)
        return x / x.sum(-1, keepdims=True)

    globals_, locals_, targets = rng.normal(size=(2, 6, 64)), rng.normal(size=(8, 6, 64)), distributions(2, 6, 64)
    a, b = tensor(globals_).requires_grad_(), tensor(locals_).requires_grad_()
    loss = dino_loss(a, b, tensor(targets), TEMPERATURE)
    loss.backward()
    formula = reference.dino(globals_, locals_, targets, TEMPERATURE)
    yield Comparison("DINO loss", "2 + 8 views x 6 images x 64", array(loss), np.array(formula), 2e-6)
    formula = reference.dino_gradient(globals_, locals_, targets, TEMPERATURE)
    ours = np.concatenate([array(a.grad), array(b.grad)])
    yield Comparison("its gradient", "the same", ours, formula, 2e-6)

    logits, targets, crop_of = rng.normal(size=(40, 64)), distributions(40, 64), np.sort(rng.integers(0, 6, 40))
    x = tensor(logits).requires_grad_()
    loss = ibot_loss(x, tensor(targets), patch_weights(torch.from_numpy(crop_of), 8), 8, TEMPERATURE)
    loss.backward()
    formula = reference.ibot(logits, targets, crop_of, 8, TEMPERATURE)
    yield Comparison("iBOT loss", "40 masked patches of 8 crops x 64", array(loss), np.array(formula), 2e-6)
    formula = reference.ibot_gradient(logits, targets, crop_of, 8, TEMPERATURE)
    yield Comparison("its gradient", "the same", array(x.grad), formula, 2e-6)

    features = rng.normal(size=(24, 16))
    x = tensor(features).requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    yield Comparison("KoLeo loss", "24 features x 16", array(loss), np.array(reference.koleo(features)), 2e-6)
    formula = reference.difference_quotient(reference.koleo, features)
    yield Comparison("its gradient", "the same", array(x.grad), formula, 2e-5)

    student, teacher = rng.normal(size=(3, 16, 12)), rng.normal(size=(3, 16, 12))
    x = tensor(student).requires_grad_()
    loss = gram_loss(x, tensor(teacher))
    loss.backward()
    yield Comparison("Gram loss", "3 x 16 patches x 12", array(loss), np.array(reference.gram(student, teacher)), 2e-6)
    formula = reference.difference_quotient(lambda z: reference.gram(z, teacher), student)
    yield Comparison("its gradient", "the same", array(x.grad), formula, 2e-5)


def _steps(rng: np.random.Generator) -> Iterator[Comparison]:
    shape = ScheduleSettings(0.0, 2.0, 0.5, warmup=30)
    value = schedule(shape, 200)
    formula = np.array(reference.cosine_schedule(0.0, 2.0, 0.5, 30, 200))
    yield Comparison("cosine after a warm-up", "200 steps", np.array([value(i) for i in range(200)]), formula, 1e-12)

    small = ["backbone.args={patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}", "crops.global_size=16"]
    small += ["crops.local_size=8", "loss.dino_head={n_prototypes: 16, hidden: 16, bottleneck: 8}"]
    small += ["loss.dino_head.prototypes=weight_norm", "optimiser.layer_decay=0.9", "optimiser.patch_embed_factor=0.2"]
    settings = load_settings(None, ["backbone.name=vit_tiny_patch16_224", *small])
    student, teacher = build_networks(settings)
    kinds = parameter_kinds(student, 0.9, 0.2)
    optimiser = torch.optim.AdamW(parameter_groups(student.named_parameters(), kinds), betas=(0.9, 0.999))
    set_rates(optimiser, 1e-3, 0.04, freeze_last=False)
    before = {name: array(weight) for name, weight in student.named_parameters()}
    for weight in student.parameters():
        weight.grad = tensor(rng.normal(size=weight.shape))
    gradients = {name: array(weight.grad) for name, weight in student.named_parameters()}
    optimiser.step()
    moved = {name: array(weight) for name, weight in student.named_parameters()}
    formula, ours = [], []
    for name, weight in before.items():
        rate, decay = 1e-3 * published_factor(name, 2, 0.9, 0.2), 0.04 * published_decay(name)
        formula.append(reference.adamw_step(weight, gradients[name], rate, decay, (0.9, 0.999)).ravel())
        ours.append(moved[name].ravel())
    moves = [np.concatenate(x) - np.concatenate([w.ravel() for w in before.values()]) for x in (ours, formula)]
    yield Comparison("first step of every parameter", f"{len(before)} parameters", *moves, 1e-3)

    old = {name: array(weight) for name, weight in teacher.named_parameters()}
    ema_update(student, teacher, 0.992)
    now = [
        np.concatenate([x[name].ravel() for name in old])
        for x in (
            {n: array(w) for n, w in teacher.named_parameters()},
            {name: 0.992 * old[name] + 0.008 * moved[name] for name in old},
        )
    ]
    yield Comparison("teacher after it", f"{len(old)} parameters", *now, 1e-6)


def published_factor(name: str, depth: int, layer_decay: float, patch_factor: float) -> float:
    """Of the learning rate: layer 0 is what comes before the blocks, block i is layer i + 1, the rest comes after."""
    layer = depth + 1
    if any(word in name for word in ("pos_embed", "patch_embed", "mask_token", "cls_token", "reg_token")):
        layer = 0
    elif "blocks." in name:
        layer = int(name.split("blocks.")[1].split(".")[0]) + 1
    return layer_decay ** (depth + 1 - layer) * (patch_factor if "patch_embed" in name else 1.0)


def published_decay(name: str) -> float:
    """Biases, norms and LayerScale do not decay; prototypes and their norms do."""
    return 0.0 if name.endswith("bias") or ("norm" in name and "norms" not in name) or "gamma" in name else 1.0


def table(found: Iterable[Comparison]) -> list[str]:
    """Lines of the table in docs/parity.md."""
    lines = ["| what | on which tensors | largest difference |", "|---|---|---|"]
    return lines + [f"| {item.what} | {item.tensors} | {item.difference:.0e} |" for item in found]


if __name__ == "__main__":
    print("\n".join(table(comparisons())))
