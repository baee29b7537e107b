"""The model: backbone and head, from pictures to heights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from satellite.backbone import open_backbone
from satellite.head import make_head
from satellite.settings import TrainSettings


class CanopyModel(nn.Module):
    """Normalised pictures (b, c, h, w) to heights in metres (b, h, w)."""

    def __init__(self, settings: TrainSettings, n_bands: int, image_size: int):
        super().__init__()
        blocks = 4 if settings.head.kind == "dpt" else 1
        self.is_trainable = settings.backbone.trainable
        self.backbone = open_backbone(settings.backbone, n_bands, image_size, blocks)
        self.head = make_head(self.backbone.channels, settings.head, self.backbone.has_token)
        self.backbone.requires_grad_(self.is_trainable)

    def train(self, mode: bool = True) -> "CanopyModel":
        super().train(mode)
        self.backbone.train(mode and self.is_trainable)  # a frozen one keeps its running means
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        with torch.set_grad_enabled(self.is_trainable and torch.is_grad_enabled()):
            maps = self.backbone(images)
        return self.head(maps, (images.shape[2], images.shape[3]))
