"""What is written down while it trains: losses, speed, unreadable images, and looks at the features."""

import json
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from tqdm import tqdm

from foundation.errors import CurationError
from pretrain.data import Batch
from pretrain.module import Pretraining
from pretrain.probe import Probe
from training.devices import peak_of
from training.run_folder import LOG, forget_after

BAD_IMAGES = "bad_images.jsonl"
LOOKS = 3  # in a row with a collapsed teacher before the run stops


class RunLog(lightning.Callback):
    """One line of ``metrics.jsonl`` every so many steps, and a progress bar.

    Losses of a line are means over the steps since the line before; their sums lie in the checkpoint, so that a
    resumed run writes the same numbers (but for those of speed) as an uninterrupted one.
    """

    def __init__(self, folder: Path, flops_per_image: float, progress: bool):
        self.folder, self.flops, self.progress = folder, flops_per_image, progress
        self.sums: dict[str, torch.Tensor] = {}
        self.n_summed, self.collapsed = 0, 0
        self.last: dict[str, float] = {}
        self.seconds, self.timed_steps = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        sums = {name: value.cpu() for name, value in self.sums.items()}
        return {"sums": sums, "n_summed": self.n_summed, "collapsed": self.collapsed, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums, self.n_summed = state_dict["sums"], state_dict["n_summed"]
        self.collapsed, self.last = state_dict["collapsed"], state_dict["last"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.sums = {name: value.to(pl_module.device) for name, value in self.sums.items()}
        if trainer.is_global_zero:
            forget_after(self.folder / LOG, trainer.global_step)
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit=" steps",
            desc="pretrain",
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
        assert isinstance(pl_module, Pretraining)
        assert pl_module.information is not None
        self.batch_ended = time.perf_counter()
        for name, value in {**pl_module.losses, "information": pl_module.information}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.n_summed += 1
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.bar.update(1)
        if trainer.global_step % pl_module.settings.speed.log_every == 0 or trainer.global_step == trainer.max_steps:
            self._line(trainer, pl_module)
            self.batch_ended = time.perf_counter()

    def _line(self, trainer: lightning.Trainer, module: Pretraining) -> None:
        module.check_finite()
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.n_summed
        means = trainer.strategy.reduce(means, reduce_op="mean")
        self.last = dict(zip(names, means.tolist(), strict=True))
        self.sums, self.n_summed = {}, 0
        elapsed, step = time.perf_counter() - self.started, trainer.global_step
        steps, settings = step - self.first_step, module.settings
        self.seconds, self.timed_steps = self.seconds + elapsed, self.timed_steps + steps
        rate = steps * settings.batch_size / elapsed
        peak = peak_of(module.device, settings.speed.peak_flops)
        now = step - 1
        line = {
            "step": step,
            "samples": step * settings.batch_size,
            **self.last,
            "learning_rate": settings.peak_rate * module.schedules["rate"](now),
            "weight_decay": module.schedules["weight_decay"](now),
            "teacher_momentum": module.schedules["teacher_momentum"](now),
            "teacher_temperature": module.schedules["teacher_temperature"](now),
            "gradient_norm": float(module.gradient_norm) if module.gradient_norm is not None else 0.0,
            "images_per_second": rate,
            "mfu": rate * self.flops / (peak * trainer.world_size) if peak else 0.0,
            "data_wait": self.wait / elapsed,
        }
        if trainer.is_global_zero:
            with open(self.folder / LOG, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self.bar.set_postfix(loss=f"{self.last['loss']:.3f}", images_per_s=f"{rate:,.0f}", refresh=False)
        self.started, self.first_step, self.wait = time.perf_counter(), step, 0.0
        self._check_collapse(module, step)

    def _check_collapse(self, module: Pretraining, step: int) -> None:
        least = module.settings.collapse
        self.collapsed = self.collapsed + 1 if self.last["information"] < least else 0
        if least and self.collapsed >= LOOKS:
            raise CurationError(
                f"the teacher has collapsed at step {step}: its assignments tell {self.last['information']:.4f} nats "
                f"about a sample (collapse={least}). Look at information and koleo in {self.folder / LOG}; a lower "
                "learning rate, loss.centring=sinkhorn, a higher teacher momentum or a lower teacher temperature help"
            )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar.close()


class BadImages(lightning.Callback):
    """Counts unreadable images, logs each once with its row, and stops the run when there are too many."""

    def __init__(self, folder: Path, n_rows: int, max_share: float):
        self.path, self.limit = folder / BAD_IMAGES, max_share * n_rows
        self.n_rows = n_rows
        self.seen: set[int] = set()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.path.exists():
            self.seen = {json.loads(line)["row"] for line in self.path.read_text().splitlines() if line.endswith("}")}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(batch, Batch)
        new = {row: reason for row, reason in batch.bad.items() if row not in self.seen}
        if not new:
            return
        self.seen |= new.keys()
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"row": row, "reason": reason}) + "\n" for row, reason in new.items())
        if len(self.seen) > self.limit:
            row, reason = next(iter(new.items()))
            raise CurationError(
                f"{len(self.seen)} of {self.n_rows} images cannot be read, more than max_bad allows; the last is row "
                f"{row} ({reason}). All are in {self.path}; raise max_bad or leave them out of the subset"
            )


class Looks(lightning.Callback):
    """Looks at the teacher every so many steps: lines of ``probe.jsonl``."""

    def __init__(self, folder: Path, probe: Probe | None):
        self.path, self.probe = folder / "probe.jsonl", probe
        self.last: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = state_dict["last"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            forget_after(self.path, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or self.probe is None:
            return
        step = trainer.global_step
        if step % self.probe.settings.every and step != trainer.max_steps:
            return
        assert isinstance(pl_module, Pretraining)
        pl_module.check_finite()
        # all processes look, since a sharded model needs them all; one writes
        backbone = pl_module.teacher.backbone.eval()
        self.last = self.probe.look(backbone, pl_module.device)
        backbone.train()
        if trainer.is_global_zero:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **self.last}) + "\n")
