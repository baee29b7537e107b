"""The model (backbone and head) and the Lightning module that trains it."""

from dataclasses import replace
from typing import Any

import lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.errors import CurationError
from pretrain.schedules import ScheduleSettings, in_steps, schedule
from satellite.backbone import open_backbone
from satellite.head import make_head
from satellite.losses import height_loss
from satellite.settings import TrainSettings
from training.checkpoints import count_batches_anew


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


class CanopyTraining(lightning.LightningModule):
    """Regression of heights.

    Attributes:
        model: see `CanopyModel`.
        step_loss: summed over the micro-batches of the current step.
    """

    def __init__(self, settings: TrainSettings, n_bands: int, image_size: int):
        super().__init__()
        self.settings, self.n_bands, self.image_size = settings, n_bands, image_size
        self.model: Any = None
        self.step_loss: Tensor | None = None
        self.loss = replace(settings.loss, sig_warmup=in_steps(settings.loss.sig_warmup, settings.steps))
        self.rate = schedule(ScheduleSettings(0.0, 1.0, 0.0, settings.warmup), settings.steps, "warmup")

    def configure_model(self) -> None:
        if self.model is not None:  # Lightning calls this again for every stage
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.model = CanopyModel(self.settings, self.n_bands, self.image_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.settings
        groups = [{"params": list(self.model.head.parameters()), "factor": 1.0}]
        if settings.backbone.trainable:
            groups.append({"params": list(self.model.backbone.parameters()), "factor": settings.backbone_rate})
        return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        count_batches_anew(checkpoint, self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = self.settings.learning_rate * self.rate(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["factor"]
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.step_loss = torch.zeros((), device=self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        heights = batch["heights"]
        valid = torch.isfinite(heights)
        loss = height_loss(self.model(batch["images"]), heights, valid, self.loss, self.global_step)
        assert self.step_loss is not None
        self.step_loss += loss.detach() / self.trainer.accumulate_grad_batches
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | int | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), self.settings.clip or float("inf"))

    def check_finite(self) -> None:
        """Stop at a loss that is not finite."""
        if self.step_loss is not None and not bool(torch.isfinite(self.step_loss)):
            raise CurationError(
                f"the loss is {float(self.step_loss)} at step {self.global_step}; lower learning_rate (now "
                f"{self.settings.learning_rate})"
            )
