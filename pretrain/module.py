"""The Lightning module: the training step of DINOv2 from crops to loss. Its parts are plain functions elsewhere."""

import copy
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from foundation.errors import CurationError
from pretrain.centring import assignment_information
from pretrain.data import Batch
from pretrain.ema import copy_weights, ema_update
from pretrain.losses import dino_loss, gram_loss, ibot_loss, koleo_loss
from pretrain.multicrop import multi_crop
from pretrain.network import build_networks, build_targets
from pretrain.optimiser import parameter_groups, parameter_kinds, set_rates
from pretrain.schedules import in_steps
from pretrain.settings import PretrainSettings
from training.checkpoints import count_batches_anew


class Pretraining(lightning.LightningModule):
    """Student and teacher (DINOv2, section 4).

    Attributes:
        student, teacher: networks; the teacher gets no gradient.
        anchor: earlier teacher of Gram anchoring, or None.
        losses: name -> value of the last micro-batch, detached.
        information: see `assignment_information`, of the last micro-batch's class tokens.
        gradient_norm: of the backbone before clipping, at the last step.
    """

    def __init__(self, settings: PretrainSettings):
        super().__init__()
        self.settings = settings
        self.schedules = settings.schedules()
        self.student: Any = None
        self.teacher: Any = None
        self.anchor: Any = None
        self.losses: dict[str, Tensor] = {}
        self.information: Tensor | None = None
        self.gradient_norm: Tensor | None = None

    def configure_model(self) -> None:
        if self.student is not None:  # Lightning calls this again for every stage
            return
        settings = self.settings
        self.student, self.teacher = build_networks(settings)
        if not self.student.backbone.has_patches and settings.speed.strategy != "fsdp":
            # convolutions are faster so; what goes in takes the layout of the weights
            for network in (self.student, self.teacher):
                network.backbone.to(memory_format=torch.channels_last)
        if settings.loss.gram.weight:
            self.anchor = copy.deepcopy(self.teacher.backbone)
        self.dino_targets, self.ibot_targets = build_targets(settings.loss)
        given = settings.optimiser
        self.kinds = parameter_kinds(self.student, given.layer_decay, given.patch_embed_factor)
        if settings.speed.checkpoint_activations:
            self.student.backbone.model.set_grad_checkpointing(True)
        if settings.speed.compile:
            for network in (self.student, self.teacher):
                network.backbone.compile()  # in place: the names in the checkpoint stay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        given = self.settings.optimiser
        groups = parameter_groups(self.student.named_parameters(), self.kinds)
        # scaled gradients would be unscaled twice by a fused step
        fused = self.device.type in ("cpu", "cuda") and self.settings.precision != "16-mixed"
        return torch.optim.AdamW(groups, lr=self.settings.peak_rate, betas=given.betas, fused=fused)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        count_batches_anew(checkpoint, self.trainer.accumulate_grad_batches)

    def train(self, mode: bool = True) -> "Pretraining":
        super().train(mode)
        # the teacher stays as it is set: it has no stochastic depth, and its batch norms, if any, see its own crops
        if self.anchor is not None:
            self.anchor.eval()
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step, values = batch.step, self.schedules
        rate = self.settings.peak_rate * values["rate"](step)
        frozen = step < self.settings.frozen_steps
        set_rates(self.trainer.optimizers[0], rate, values["weight_decay"](step), frozen)
        # stochastic depth: drawn anew for every micro-batch, so that a resumed run draws the same
        draw = np.random.SeedSequence([self.settings.seed, step, batch.micro, self.global_rank])
        torch.manual_seed(int(draw.generate_state(1, np.uint64)[0]))
        if self.anchor is not None and batch.micro == 0:
            self._move_anchor(step)

    def _move_anchor(self, step: int) -> None:
        gram = self.settings.loss.gram
        since = step - in_steps(gram.start, self.settings.steps)
        if since == 0 or (since > 0 and gram.refresh and since % gram.refresh == 0):
            copy_weights(self.teacher.backbone, self.anchor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        settings, loss = self.settings, self.settings.loss
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            views, local_views = multi_crop(batch.canvases, batch.sizes, batch.draws, settings.crops)
        b, n_local = len(batch.canvases), settings.crops.n_local
        masks = batch.masks if batch.masks.shape[1] else None
        temperature = self.schedules["teacher_temperature"](batch.step)

        with torch.no_grad():
            cls, patches = self.teacher.backbone(views)
            targets = self.dino_targets(self.teacher.dino_head(cls), temperature)
            self.information = assignment_information(targets)
            if masks is not None:
                hidden = patches.flatten(0, 1)[batch.masked]
                patch_targets = self.ibot_targets(self.teacher.ibot_head(hidden), temperature)

        cls, patches = self.student.backbone(views, masks)
        tokens = cls
        if n_local:
            tokens = torch.cat([cls, self.student.backbone(local_views)[0]])
        logits = self.student.dino_head(tokens)
        losses = {}
        if loss.dino:
            pairs, locals_ = logits[: 2 * b].unflatten(0, (2, b)), logits[2 * b :].unflatten(0, (n_local, b))
            losses["dino"] = dino_loss(pairs, locals_, targets.unflatten(0, (2, b)), loss.student_temperature)
        if masks is not None:
            logits = self.student.ibot_head(patches.flatten(0, 1)[batch.masked])
            losses["ibot"] = ibot_loss(logits, patch_targets, batch.weights, 2 * b, loss.student_temperature)
        if loss.koleo:
            # each global crop by itself: the two crops of an image are meant to be close
            losses["koleo"] = koleo_loss(cls[:b]) + koleo_loss(cls[b:])
        weights = {"dino": loss.dino, "ibot": loss.ibot, "koleo": loss.koleo, "gram": loss.gram.weight}
        if self.anchor is not None and batch.step >= in_steps(loss.gram.start, settings.steps):
            with torch.no_grad():
                anchors = self.anchor(views)[1]
            losses["gram"] = gram_loss(patches, anchors)
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        self.losses = {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}
        return total

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        limit = self.settings.optimiser.clip or float("inf")
        wrapped: Any = self.trainer.strategy.model
        if hasattr(wrapped, "clip_grad_norm_"):  # FSDP holds pieces of the gradient: one norm for all
            self.gradient_norm = wrapped.clip_grad_norm_(limit)
            return
        norms = [nn.utils.clip_grad_norm_(part.parameters(), limit) for part in self.student.parts()]
        self.gradient_norm = norms[0]

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        step = self.global_step
        super().optimizer_step(*args, **options)
        # here and not at the end of the batch: checkpoints are written before the module hears of that
        ema_update(self.student, self.teacher, self.schedules["teacher_momentum"](step))

    def check_finite(self) -> None:
        """Stop at a loss or gradient that is not finite; called where the log synchronises anyway."""
        values = {**self.losses, "gradient norm": self.gradient_norm}
        for name, value in values.items():
            if value is not None and not bool(torch.isfinite(value)):
                raise CurationError(
                    f"{name} is {float(value)} at step {self.global_step}; look at the learning rate (peak "
                    f"{self.settings.peak_rate:.2g}), its warm-up and optimiser.clip, and try precision=bf16-mixed "
                    "in place of 16-mixed. The last checkpoint is from before"
                )
