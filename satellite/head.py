"""Heads: one linear layer, or the decoder of DPT (Ranftl et al. 2021); heights as an expectation over bins, or plain.

An expectation over bins (Bhat et al. 2021, with fixed bins) trains more steadily than one number per pixel and keeps
heights between the bins at both ends. Tolan et al. 2024: 256 linear bins; CHMv2: bins between linear and logarithmic.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from satellite.backbone import Maps
from satellite.settings import HeadSettings

UPSAMPLE = 4  # of the linear head before its layer: patches are coarse


def bin_heights(settings: HeadSettings) -> Float[Tensor, "k"]:
    """Heights of the bins, metres, rising.

    Mixed-log: the logarithmic series near the ground passes over into the linear one at the top.
    """
    linear = torch.linspace(settings.lowest, settings.highest, settings.n_bins, dtype=torch.float64)
    if settings.output == "linear_bins":
        return linear.float()
    low, high = torch.tensor([settings.lowest, settings.highest], dtype=torch.float64).log()
    logarithmic = torch.linspace(float(low), float(high), settings.n_bins, dtype=torch.float64).exp()
    share = torch.linspace(0, 1, settings.n_bins, dtype=torch.float64)
    return ((1 - share) * logarithmic + share * linear).float()


class Heights(nn.Module):
    """From channels to metres, pixel by pixel: (b, d, h, w) to (b, h, w)."""

    def __init__(self, d: int, settings: HeadSettings):
        super().__init__()
        self.is_plain = settings.output == "regression"
        self.out = nn.Conv2d(d, 1 if self.is_plain else settings.n_bins, 1)
        assert self.out.bias is not None
        self.highest = settings.highest
        if not self.is_plain:
            self.register_buffer("bins", bin_heights(settings), persistent=False)
            nn.init.ones_(self.out.bias)  # every bin starts alive: a relu that is 0 for all pixels never learns

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
        logits = self.out(x).float()
        if self.is_plain:
            return F.softplus(logits[:, 0]).clamp_max(self.highest)
        weights = logits.relu() + 0.1  # never zero everywhere: the gradient would be lost
        return torch.einsum("bkhw,k->bhw", weights, self.bins) / weights.sum(1)


class LinearHead(nn.Module):
    """One linear layer on the features of the blocks side by side, normalised over the batch."""

    def __init__(self, channels: list[int], settings: HeadSettings):
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(channels))
        self.heights = Heights(sum(channels), settings)

    def forward(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        largest = maps[0][0].shape[2:]
        x = torch.cat([resize(features, tuple(largest)) for features, _ in maps], 1)
        x = resize(self.norm(x), tuple(min(UPSAMPLE * n, full) for n, full in zip(largest, size, strict=True)))
        return resize(self.heights(x)[:, None], size)[:, 0]


class Residual(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return x + self.second(self.first(x.relu()).relu())


class Readout(nn.Module):
    """The class token joined to every patch and projected ("project" of DPT, section 3)."""

    def __init__(self, d: int):
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(2 * d, d, 1), nn.GELU())

    def forward(self, features: Float[Tensor, "b d h w"], token: Float[Tensor, "b d"]) -> Float[Tensor, "b d h w"]:
        return self.project(torch.cat([features, token[:, :, None, None].expand_as(features)], 1))


class DPTHead(nn.Module):
    """Maps of up to four blocks, brought to four scales and fused from coarse to fine."""

    def __init__(self, channels: list[int], settings: HeadSettings, has_token: bool):
        super().__init__()
        width = settings.width
        readout = settings.readout and has_token
        self.readouts = nn.ModuleList([Readout(d) for d in channels] if readout else [])
        # frozen features of different blocks differ in size by orders of magnitude
        self.norms = nn.ModuleList([nn.BatchNorm2d(d) for d in channels])
        self.reassemble = nn.ModuleList([nn.Conv2d(d, width, 3, padding=1) for d in channels])
        self.lateral = nn.ModuleList([Residual(width) for _ in channels])
        self.fuse = nn.ModuleList([Residual(width) for _ in channels])
        self.last = nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU())
        self.heights = Heights(width // 2, settings)

    def forward(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        levels = []
        # the maps of a transformer are alike: the shallowest becomes the finest; a convolutional model has scales
        same = len({features.shape[2:] for features, _ in maps}) == 1 and len(maps) > 1
        for i, (features, token) in enumerate(maps):
            if self.readouts and token is not None:
                features = self.readouts[i](features, token)
            x = self.norms[i](features)
            if same:
                factor = 2.0 ** (2 - i)
                x = resize(
                    x, tuple(min(max(1, int(n * factor)), full) for n, full in zip(x.shape[2:], size, strict=True))
                )
            levels.append(self.reassemble[i](x))
        x = self.fuse[-1](self.lateral[-1](levels[-1]))
        for i in range(len(levels) - 2, -1, -1):
            x = self.fuse[i](resize(x, tuple(levels[i].shape[2:])) + self.lateral[i](levels[i]))
        x = resize(x, tuple(min(2 * n, full) for n, full in zip(x.shape[2:], size, strict=True)))
        return resize(self.heights(self.last(x))[:, None], size)[:, 0]


def make_head(channels: list[int], settings: HeadSettings, has_token: bool) -> nn.Module:
    """The head of the settings; called with the maps and the size (h, w) of the picture."""
    if settings.kind == "linear":
        return LinearHead(channels, settings)
    return DPTHead(channels, settings, has_token)


def resize(x: Float[Tensor, "b d h w"], size: tuple[int, ...]) -> Float[Tensor, "b d H W"]:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
