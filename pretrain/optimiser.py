"""Parameters in groups: layer-wise learning rates, no decay of vectors, a last layer that can be frozen."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


def layer_ids(model: Any) -> tuple[dict[str, int], int]:
    """Layer of each parameter of a timm model (0 is the patch embedding), and the number of layers."""
    from timm.models import group_parameters

    found = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return found, max(found.values()) + 1


@dataclass(frozen=True)
class Kind:
    """How a parameter is stepped.

    Attributes:
        factor: of the learning rate.
        decays: weight decay holds for it.
        last_layer: prototypes of a head, frozen at first.
    """

    factor: float
    decays: bool
    last_layer: bool


def parameter_kinds(student: Any, layer_decay: float = 1.0, patch_embed_factor: float = 1.0) -> dict[str, Kind]:
    """Name -> kind of each parameter, for `parameter_groups`.

    A parameter of layer i of L (0 is the patch embedding) gets the learning rate times ``layer_decay`` ** (L - i);
    heads and the final norm get it whole; the patch embedding another factor besides. Biases, norms and LayerScale do
    not decay (DINOv2).
    """
    layers, n_layers = layer_ids(student.backbone.model)
    kinds = {}
    for name, parameter in student.named_parameters():
        factor = 1.0
        inner = name.removeprefix("backbone.model.")
        if name == "backbone.mask_token":
            factor = layer_decay**n_layers
        elif inner != name and not inner.startswith("norm."):  # timm counts the final norm with the last block
            factor = layer_decay ** (n_layers - layers[inner])
            if "patch_embed" in inner:
                factor *= patch_embed_factor
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        kinds[name] = Kind(factor, decays, "last_layer" in name)
    return kinds


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], kinds: dict[str, Kind]) -> list[dict[str, Any]]:
    """Groups of the optimiser, one for each kind."""
    groups: dict[Kind, list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault(kinds[name], []).append(parameter)
    return [{"params": parameters, **asdict(kind)} for kind, parameters in groups.items()]


def set_rates(optimiser: torch.optim.Optimizer, rate: float, decay: float, freeze_last: bool) -> None:
    """Learning rate and weight decay of every group for the next step."""
    for group in optimiser.param_groups:
        group["lr"] = 0.0 if freeze_last and group["last_layer"] else rate * group["factor"]
        group["weight_decay"] = decay if group["decays"] else 0.0
