"""Operations of a training step, counted from the model on the meta device: no memory, no guess."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.network import Network, build_networks
from pretrain.settings import PretrainSettings


def forward_flops(backbone: Any, size: int) -> float:
    """FLOPs (two for a multiplication and addition) of one image through a backbone on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.eval()(torch.empty(1, 3, size, size, device="meta"))
    return float(counter.get_total_flops())


def flops_per_image(settings: PretrainSettings) -> dict[str, float]:
    """Nominal FLOPs of training on one image: what stochastic depth skips is counted, recomputation is not.

    Backward costs twice the forward. Heads see the class token of every crop and the masked patches on average.

    Returns:
        ``student``, ``teacher``, ``heads`` and their sum ``total``.
    """
    network = meta_network(settings)
    crops, loss = settings.crops, settings.loss
    globals_ = 2 * forward_flops(network.backbone, crops.global_size)
    locals_ = crops.n_local * forward_flops(network.backbone, crops.local_size) if crops.n_local else 0.0
    rows, columns = network.backbone.grid(crops.global_size)
    mask = settings.mask
    masked = 2 * rows * columns * mask.probability * (mask.low + mask.high) / 2 if loss.ibot else 0.0
    dino, ibot = 2.0 * _weights(network.dino_head), 2.0 * _weights(network.ibot_head)
    heads = 3 * (crops.n_crops * dino + masked * ibot) + (2 * dino + masked * ibot)
    found = {"student": 3 * (globals_ + locals_), "teacher": globals_, "heads": heads}
    return {**found, "total": sum(found.values())}


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if len(parameter) < parameter.numel())


def meta_network(settings: PretrainSettings) -> Network:
    """The student without memory for its weights."""
    with torch.device("meta"):
        return build_networks(settings)[0]


def count_parameters(settings: PretrainSettings) -> dict[str, int]:
    """Weights of the backbone and of the heads of one network."""
    network = meta_network(settings)
    backbone = sum(parameter.numel() for parameter in network.backbone.parameters())
    return {"backbone": backbone, "heads": sum(parameter.numel() for parameter in network.parameters()) - backbone}
