"""Projection heads: from features to logits over prototypes."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PROTOTYPES = ("cosine", "weight_norm", "linear")


class Prototypes(nn.Module):
    """From a point on the sphere to one logit for each prototype.

    Attributes:
        weight: (k, d) directions, or the prototypes themselves.
        norms: (k, 1) of weight_norm, else None.

    Args:
        dim: of the sphere.
        n_prototypes: logits.
        kind: "cosine": the norms are fixed at one (DINO, appendix C), directions start as a truncated normal of
            deviation 0.02; "weight_norm": norms start at one, are trained and decay, directions start uniform within
            1 / sqrt(dim) (DINOv2's code); "linear": no norm is taken, a truncated normal of 0.02 (DINOv3's code).
    """

    def __init__(self, dim: int, n_prototypes: int, kind: str = "cosine"):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(n_prototypes, dim))
        self.norms: nn.Parameter | None = None
        if kind == "weight_norm":
            self.norms = nn.Parameter(torch.ones(n_prototypes, 1))
            nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)
        else:
            nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... k"]:
        weight = self.weight if self.kind == "linear" else F.normalize(self.weight, dim=1)
        return F.linear(x, weight if self.norms is None else self.norms * weight)


class Head(nn.Module):
    """MLP, unit sphere, prototypes: the head of DINO and iBOT.

    Args:
        dim: of the features.
        n_prototypes: logits.
        n_layers: of the MLP; the last has no activation.
        hidden: width between the layers.
        bottleneck: dimension of the sphere on which the features lie.
        prototypes: see `Prototypes`.
    """

    def __init__(
        self,
        dim: int,
        n_prototypes: int,
        n_layers: int = 3,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: str = "cosine",
    ):
        super().__init__()
        widths = [dim] + [hidden] * (n_layers - 1) + [bottleneck]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck, n_prototypes, prototypes)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... k"]:
        x = self.mlp(x)
        # in half precision 1e-12 is zero
        return self.last_layer(F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12))
