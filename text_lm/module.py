"""The Lightning module: wiring of model, loss, optimiser and learning rate. The parts are plain functions elsewhere."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from foundation.errors import CurationError
from text_lm.loss import language_model_loss
from text_lm.model import build_model, next_token_logits
from text_lm.schedules import schedule
from text_lm.settings import TrainSettings
from text_lm.tokenizer import Tokenizer
from training.checkpoints import count_batches_anew


class LanguageModel(lightning.LightningModule):
    """Next-token prediction with a Hugging Face causal language model.

    Attributes:
        model: the Hugging Face model.
        step_loss: cross-entropy in nats per target, summed over this process's micro-batches of the current step.
        gradient_norm: norm before clipping at the last step.
    """

    def __init__(self, settings: TrainSettings, tokenizer: Tokenizer):
        super().__init__()
        self.settings, self.tokenizer = settings, tokenizer
        self.model: Any = None
        self.factor = schedule(
            settings.schedule, settings.steps, settings.warmup_steps, settings.final_lr, settings.decay_steps
        )
        self.loss: Callable[..., tuple[Tensor, Tensor]] = language_model_loss
        self.step_loss: Tensor | None = None
        self.gradient_norm: Tensor | None = None

    def configure_model(self) -> None:
        if self.model is not None:  # Lightning calls this again for every stage
            return
        speed = self.settings.speed
        self.model = build_model(self.settings.model, self.tokenizer, self.settings.seed, speed.attention)
        self.model.train()
        self.vectors = {name for name, parameter in self.model.named_parameters() if parameter.ndim < 2}
        if speed.checkpoint_activations:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if speed.compile:
            self.model.compile()  # in place: the names in the checkpoint stay those of the plain model
            self.loss = torch.compile(language_model_loss)  # spares the float32 copy of the logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.settings
        return torch.optim.AdamW(
            parameter_groups(self.model.named_parameters(), self.vectors, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            fused=self.device.type == "cuda"
            and settings.precision != "16-mixed",  # scaled gradients are unscaled twice
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        count_batches_anew(checkpoint, self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = self.settings.learning_rate * self.factor(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.step_loss = torch.zeros((), device=self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        cross = self.settings.cross_documents
        logits = next_token_logits(
            self.model,
            batch["inputs"],
            None if cross else batch["documents"],
            None if cross else batch["positions"],
        )
        total, cross_entropy = self.loss(logits, batch["targets"], self.settings.z_loss)
        assert self.step_loss is not None
        self.step_loss += cross_entropy / batch["n_targets"]
        # processes are averaged and Lightning divides by the micro-batches: undo both, for the mean over all targets
        share = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return total * (share / batch["n_targets"])

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        limit = self.settings.clip or float("inf")
        wrapped: Any = self.trainer.strategy.model
        if hasattr(wrapped, "clip_grad_norm_"):  # FSDP holds pieces of the gradient and adds up their norms
            self.gradient_norm = wrapped.clip_grad_norm_(limit)
        else:
            self.gradient_norm = nn.utils.clip_grad_norm_(self.parameters(), limit)

    def check_finite(self) -> None:
        """Stop at a loss or gradient that is not finite; called where the log synchronises anyway."""
        for name, value in (("loss", self.step_loss), ("gradient norm", self.gradient_norm)):
            if value is not None and not bool(torch.isfinite(value)):
                raise CurationError(
                    f"the {name} is {float(value)} at step {self.global_step}; lower learning_rate (now "
                    f"{self.settings.learning_rate}), or set z_loss=1e-4 and clip=1"
                )


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], vectors: set[str], decay: float
) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors (norms), which do not.

    Args:
        named: names and parameters, wrapped or not.
        vectors: names of the vectors, taken before wrapping: FSDP flattens every parameter.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        for wrapper in ("_fsdp_wrapped_module.", "_orig_mod."):
            name = name.replace(wrapper, "")
        groups[name in vectors].append(parameter)
    return [{"params": groups[False], "weight_decay": decay}, {"params": groups[True], "weight_decay": 0.0}]
