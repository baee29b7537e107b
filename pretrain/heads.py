"""Projection heads: from features to logits over prototypes."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Prototypes(nn.Module):
    """Cosine to weight-normalised prototypes whose norm is fixed at one (DINO, appendix C)."""

    def __init__(self, dim: int, n_prototypes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_prototypes, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... k"]:
        return F.linear(x, F.normalize(self.weight, dim=1))


class Head(nn.Module):
    """MLP, unit sphere, prototypes: the head of DINO and iBOT.

    Args:
        dim: of the features.
        n_prototypes: logits.
        n_layers: of the MLP; the last has no activation.
        hidden: width between the layers.
        bottleneck: dimension of the sphere on which the prototypes lie.
    """

    def __init__(self, dim: int, n_prototypes: int, n_layers: int = 3, hidden: int = 2048, bottleneck: int = 256):
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
        self.last_layer = Prototypes(bottleneck, n_prototypes)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... k"]:
        x = self.mlp(x)
        # in half precision 1e-12 is zero
        return self.last_layer(F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12))
