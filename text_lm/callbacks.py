"""A log of numbers and speed around training steps."""

import json
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from tqdm import tqdm

from text_lm.model import flops_per_token
from text_lm.module import LanguageModel
from training.devices import peak_of
from training.run_folder import LOG, forget_after


class RunLog(lightning.Callback):
    """Loss, learning rate and speed, one line of ``metrics.jsonl`` every so many steps, and a progress bar.

    The loss of a line is the mean over the steps since the line before; the sum so far lies in the checkpoint, so
    that a resumed run writes the same numbers (but for those of speed) as an uninterrupted one.
    """

    def __init__(self, folder: Path, every: int, progress: bool):
        self.folder, self.every, self.progress = folder, every, progress
        self.loss_sum, self.n_losses = torch.zeros(()), 0
        self.last_loss = float("nan")
        self.seconds, self.timed_steps = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"loss_sum": self.loss_sum.cpu(), "n_losses": self.n_losses, "last_loss": self.last_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss_sum, self.n_losses = state_dict["loss_sum"], state_dict["n_losses"]
        self.last_loss = state_dict["last_loss"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.loss_sum = self.loss_sum.to(pl_module.device)
        if trainer.is_global_zero:
            forget_after(self.folder / LOG, trainer.global_step)
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit=" steps",
            desc="train",
            disable=not (self.progress and trainer.is_global_zero),
        )
        self.started, self.first_step, self.wait = time.perf_counter(), trainer.global_step, 0.0
        self.batch_ended = self.started

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.wait += time.perf_counter() - self.batch_ended

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batch_ended = time.perf_counter()
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(pl_module, LanguageModel)
        assert pl_module.step_loss is not None
        self.loss_sum += pl_module.step_loss
        self.n_losses += 1
        self.bar.update(1)
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._line(trainer, pl_module)
            self.batch_ended = time.perf_counter()

    def _line(self, trainer: lightning.Trainer, module: LanguageModel) -> None:
        module.check_finite()
        mean = trainer.strategy.reduce(self.loss_sum.clone(), reduce_op="sum") / self.n_losses
        self.last_loss = float(mean)
        self.loss_sum.zero_()
        self.n_losses = 0
        assert module.gradient_norm is not None
        elapsed = time.perf_counter() - self.started
        steps = trainer.global_step - self.first_step
        self.seconds, self.timed_steps = self.seconds + elapsed, self.timed_steps + steps
        settings, step = module.settings, trainer.global_step
        rate = steps * settings.tokens_per_step / elapsed
        line: dict[str, Any] = {
            "step": step,
            "tokens": step * settings.tokens_per_step,
            "loss": self.last_loss,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": float(module.gradient_norm),
            "tokens_per_second": rate,
            "mfu": utilisation(rate, module, trainer.world_size),
            "data_wait": self.wait / elapsed,
        }
        if trainer.is_global_zero:
            with open(self.folder / LOG, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self.bar.set_postfix(loss=f"{self.last_loss:.3f}", tokens_per_s=f"{rate:,.0f}", refresh=False)
        self.started, self.first_step, self.wait = time.perf_counter(), step, 0.0

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar.close()


def utilisation(tokens_per_second: float, module: LanguageModel, devices: int) -> float | None:
    """Share of the devices' bfloat16 peak that goes into the model (MFU); None where the peak is unknown."""
    peak = peak_of(module.device, module.settings.speed.peak_flops)
    if not peak:
        return None
    shape = module.settings.model
    return tokens_per_second * flops_per_token(shape, module.tokenizer.vocab_size, shape.context) / (peak * devices)
