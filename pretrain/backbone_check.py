"""Is a timm model fit to be trained: the feature that is trained, exported and evaluated must be one tensor.

timm's models pool in several ways: one that averages patches through a norm of its own would leave that norm without
a gradient, train the class token without a last norm, and export what nobody trained.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.errors import CurationError, one_line
from pretrain.backbone import Backbone, build_backbone
from pretrain.multicrop import CropSettings
from pretrain.settings import BackboneSettings

MENDS = (
    {"global_pool": "token"},
    {"fc_norm": False},
    {"use_fc_norm": False},
    {"global_pool": "avg", "fc_norm": False},
    {"global_pool": "avg", "use_fc_norm": False},
)
TOLERANCE = 1e-3  # of the feature's own scale: two ways through the same layers


def check_graph(backbone: Backbone, settings: BackboneSettings, crops: CropSettings, masked: bool) -> None:
    """Raise where a parameter would get no gradient, or timm pools otherwise; nothing is computed on the meta device.

    Args:
        backbone: on the meta device.
        masked: patches are masked (iBOT).

    Raises:
        CurationError: names the setting that mends it, where one of timm's does.
    """
    problem = _problem(backbone, crops, masked)
    if problem is None:
        return
    for extra in MENDS:
        changed = replace(settings, args={**settings.args, **extra})
        try:
            with torch.device("meta"):
                other = build_backbone(changed, crops.global_size)
        except CurationError:  # this model has no such argument
            continue
        if _problem(other, crops, masked) is None:
            advice = " ".join(f"backbone.args.{key}={str(value).lower()}" for key, value in extra.items())
            raise CurationError(f"{settings.name} {problem}; set {advice}")
    raise CurationError(f"{settings.name} {problem}; no argument of timm mends it, choose another backbone.name")


def _problem(backbone: Backbone, crops: CropSettings, masked: bool) -> str | None:
    outputs: list[Tensor] = []
    backbone.eval()  # norms over a batch refuse a single image while they train
    for size in _sizes(crops):
        images = torch.empty(1, 3, size, size, device="meta")
        rows, columns = backbone.grid(size)
        masks = images.new_zeros(1, rows * columns, dtype=torch.bool) if masked and backbone.has_patches else None
        try:
            cls, patches = backbone(images, masks)
        except Exception as error:  # timm: AssertionError, RuntimeError, ...
            reason = one_line(error)
            return f"takes no crops of {size} pixels ({reason})"
        if patches.shape[1] != rows * columns:
            return f"gives {patches.shape[1]} tokens for {rows} x {columns} patches, which cannot be masked"
        if cls.shape != (1, backbone.dim):
            return f"gives a feature of shape {tuple(cls.shape[1:])} where timm promises {backbone.dim} numbers"
        outputs += [cls, patches]
    unused = [name for name in unused_parameters(backbone, outputs) if masked or name != "mask_token"]
    if unused:
        return f"would leave {len(unused)} parameters without a gradient ({', '.join(unused[:2])})"
    pool, wanted = getattr(backbone.model, "global_pool", None), "token" if backbone.has_class_token else "avg"
    if backbone.has_patches and pool != wanted:
        return f"would train the {wanted} feature and export the one of global_pool={pool}"
    return None


def _sizes(crops: CropSettings) -> list[int]:
    """Sides of the crops, the smallest first."""
    return sorted({crops.global_size} | ({crops.local_size} if crops.n_local else set()))


def unused_parameters(module: nn.Module, outputs: list[Tensor]) -> list[str]:
    """Names of the trainable parameters from which no output comes, found in the graph without a backward pass."""
    seen: set[Any] = set()
    used: set[int] = set()
    waiting = [output.grad_fn for output in outputs if output.numel()]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the leaf of a parameter
            used.add(id(node.variable))
        waiting += [parent for parent, _ in node.next_functions]
    return [
        name for name, parameter in module.named_parameters() if parameter.requires_grad and id(parameter) not in used
    ]


@torch.no_grad()
def check_features(backbone: Backbone, settings: BackboneSettings, crops: CropSettings) -> None:
    """Compare one image's feature here with that of timm's own forward, and its patches with timm's intermediates.

    Nothing is drawn at random, and nothing is compared on the meta device, where there are no values.

    Raises:
        CurationError: they differ.
    """
    first = next(backbone.parameters())
    if first.is_meta:
        return
    size, was_training = _sizes(crops)[0], backbone.training
    images = torch.linspace(-2, 2, 3 * size * size, device=first.device, dtype=first.dtype).view(1, 3, size, size)
    backbone.eval()
    cls, patches = backbone(images)
    found = {"exported": (cls, backbone.model(images))}
    if backbone.has_patches and hasattr(backbone.model, "forward_intermediates"):
        last = backbone.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True
        )[-1]
        found["evaluated"] = (patches, last)
    backbone.train(was_training)
    for what, (ours, theirs) in found.items():
        if ours.shape != theirs.shape or _difference(ours, theirs) > TOLERANCE:
            raise CurationError(
                f"{settings.name}: the {what} features are others than those that are trained "
                f"(global_pool={getattr(backbone.model, 'global_pool', None)}); choose another backbone.name"
            )


def _difference(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> float:
    return float((x - y).abs().max() / y.abs().max().clamp_min(1e-12))
