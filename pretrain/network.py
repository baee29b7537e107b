"""Student and teacher: a backbone and its projection heads."""

from typing import Any

import torch
from torch import nn

from foundation.errors import CurationError
from pretrain.backbone import Backbone, build_backbone
from pretrain.backbone_check import check_features, check_graph
from pretrain.centring import Sinkhorn, SoftmaxCentre
from pretrain.ema import copy_weights
from pretrain.heads import Head
from pretrain.settings import HeadSettings, LossSettings, PretrainSettings


class Network(nn.Module):
    """Backbone and heads: the student, and the teacher, have one each.

    Attributes:
        backbone: class token and patches.
        dino_head, ibot_head: may be the same module, or absent where the loss is off.
    """

    def __init__(self, backbone: Backbone, loss: LossSettings):
        super().__init__()
        self.backbone = backbone
        self.dino_head = _head(backbone.dim, loss.dino_head)
        self.ibot_head = self.dino_head
        if loss.ibot and loss.ibot_head is not None:
            self.ibot_head = _head(backbone.dim, loss.ibot_head)
        # what no loss reaches is no parameter: several processes would wait for its gradient
        if backbone.has_patches and not loss.ibot:
            backbone.mask_token.requires_grad_(False)
        if not loss.dino and self.ibot_head is not self.dino_head:
            self.dino_head.requires_grad_(False)

    def parts(self) -> list[nn.Module]:
        """Modules whose gradients are clipped one by one (DINOv2)."""
        heads = [self.dino_head] if self.ibot_head is self.dino_head else [self.dino_head, self.ibot_head]
        return [self.backbone, *heads]


def _head(dim: int, settings: HeadSettings) -> Head:
    return Head(
        dim, settings.n_prototypes, settings.n_layers, settings.hidden, settings.bottleneck, settings.prototypes
    )


def build_networks(settings: PretrainSettings) -> tuple[Network, Network]:
    """Student and teacher of equal weights, drawn from the seed.

    Raises:
        CurationError: the backbone does not take crops of these sizes, has no patches for a loss that needs them, or
            would train another feature than it exports (`pretrain.backbone_check`).
    """
    size, given = settings.crops.global_size, settings.backbone
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            shape = build_backbone(given, size)
        check_crops(shape, settings)
        check_graph(shape, given, settings.crops, masked=bool(settings.loss.ibot))
        torch.manual_seed(settings.seed)
        student = Network(build_backbone(given, size, given.drop_path), settings.loss)
    check_features(student.backbone, given, settings.crops)
    teacher = Network(build_backbone(given, size), settings.loss)
    copy_weights(student, teacher)
    return student, teacher.requires_grad_(False)


def check_crops(backbone: Backbone, settings: PretrainSettings) -> None:
    """Raise where the crops do not fit the backbone, before any time is spent."""
    name, crops, loss = settings.backbone.name, settings.crops, settings.loss
    if not backbone.has_patches:
        for part, weight in (("ibot", loss.ibot), ("gram.weight", loss.gram.weight)):
            if weight:
                raise CurationError(f"{name} has no patch tokens: set loss.{part}=0 (DINO and KoLeo need none)")
        return
    patch = backbone.model.patch_embed.patch_size
    sizes = {"global_size": crops.global_size} | ({"local_size": crops.local_size} if crops.n_local else {})
    for which, size in sizes.items():
        if size % patch[0] or size % patch[1]:
            near = max(round(size / patch[0]), 1) * patch[0]
            raise CurationError(
                f"crops.{which} {size} is no multiple of the {patch[0]}-pixel patches of {name}; {near} is"
            )


def build_targets(loss: LossSettings) -> tuple[Any, Any]:
    """Centring of the class tokens' logits and of the masked patches' logits; each keeps its own centre."""

    def centring(head: HeadSettings) -> nn.Module:
        if loss.centring == "sinkhorn":
            return Sinkhorn(loss.sinkhorn_iterations)
        return SoftmaxCentre(head.n_prototypes, loss.centre_momentum)

    return centring(loss.dino_head), centring(loss.ibot_head or loss.dino_head)
