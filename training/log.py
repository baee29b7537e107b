"""What is written down while it trains: losses, rates and speed, one line every so many steps, and a progress bar."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from tqdm import tqdm

from training.module import StepModule
from training.peaks import peak_of
from training.run_folder import LOG, forget_after


@dataclass(frozen=True)
class Work:
    """What a run counts.

    Attributes:
        total: how a line calls what was seen so far ("samples", "tokens").
        unit: of which so many a second are made ("images", "tokens").
        per_step: units of an optimiser step.
        flops: floating-point operations of training on one unit; 0: not known.
    """

    total: str
    unit: str
    per_step: int
    flops: float = 0.0


class RunLog(lightning.Callback):
    """One line of ``metrics.jsonl`` every so many steps.

    Losses of a line are means over the steps since the line before; their sums lie in the checkpoint, so that a
    resumed run writes the same numbers (but for those of speed) as an uninterrupted one.

    Args:
        folder: of the run.
        work: what it counts.
        name: in front of the progress bar.
        progress: show it.
        averaged: steps that a line averages, the last ones; 0: all since the line before.

    Attributes:
        last: losses of the last line.
        rate: units a second of this call, checkpoints included; None where it did no step.
    """

    def __init__(self, folder: Path, work: Work, name: str, progress: bool, averaged: int = 0):
        self.path, self.work, self.averaged = folder / LOG, work, averaged
        self.name, self.progress = name, progress
        self.sums: dict[str, torch.Tensor] = {}
        self.n_summed = 0
        self.last: dict[str, float] = {}
        self.seconds, self.timed_steps = 0.0, 0

    @property
    def rate(self) -> float | None:
        return self.timed_steps * self.work.per_step / self.seconds if self.seconds else None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        # one sum for each process: the first writes the checkpoint for all
        gather: Any = self._trainer.strategy.all_gather
        sums = {name: gather(self.sums[name]).reshape(-1).cpu() for name in sorted(self.sums)}
        return {"sums": sums, "n_summed": self.n_summed, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_summed, self.last = state_dict["n_summed"], state_dict["last"]
        trainer, n = self._trainer, self._trainer.world_size
        for name, given in state_dict["sums"].items():  # of another number of processes: their mean, which a line takes
            self.sums[name] = (given[trainer.global_rank] if given.shape == (n,) else given.mean()).clone()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.sums = {name: value.to(pl_module.device) for name, value in self.sums.items()}
        if trainer.is_global_zero:
            forget_after(self.path, trainer.global_step)
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit=" steps",
            desc=self.name,
            disable=not (self.progress and trainer.is_global_zero),
        )
        self._measure_from(trainer.global_step)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.wait += time.perf_counter() - self.batch_ended

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batch_ended = time.perf_counter()
        step_is_done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._take(pl_module.logged(step_is_done))
        if step_is_done:
            self.bar.update(1)
        if step_is_due(trainer, batch_idx, pl_module.settings.speed.log_every):
            self._line(trainer, pl_module)

    def _take(self, values: dict[str, torch.Tensor]) -> None:
        if not values:
            return
        if self.averaged and self.n_summed >= self.averaged:
            self.sums, self.n_summed = {}, 0
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.n_summed += 1

    def _line(self, trainer: lightning.Trainer, module: StepModule) -> None:
        module.check_finite()
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.n_summed
        means = trainer.strategy.reduce(means, reduce_op="mean")
        self.last = dict(zip(names, means.tolist(), strict=True))
        self.sums, self.n_summed = {}, 0
        elapsed, step, work = time.perf_counter() - self.started, trainer.global_step, self.work
        steps = step - self.first_step
        self.seconds, self.timed_steps = self.seconds + elapsed, self.timed_steps + steps
        rate = steps * work.per_step / elapsed
        peak = peak_of(module.device, module.settings.speed.peak_flops)
        line = {
            "step": step,
            work.total: step * work.per_step,
            **self.last,
            **module.rates(step - 1),
            "gradient_norm": float(module.gradient_norm) if module.gradient_norm is not None else 0.0,
            f"{work.unit}_per_second": rate,
            "mfu": rate * work.flops / (peak * trainer.world_size) if peak and work.flops else None,
            "data_wait": self.wait / elapsed,
        }
        if trainer.is_global_zero:
            append_line(self.path, line)
        self.bar.set_postfix({"loss": f"{self.last['loss']:.3f}", f"{work.unit}_per_s": f"{rate:,.0f}"}, refresh=False)
        self._measure_from(step)

    def _measure_from(self, step: int) -> None:
        self.started = self.batch_ended = time.perf_counter()
        self.first_step, self.wait = step, 0.0

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def step_is_due(trainer: lightning.Trainer, batch_idx: int, every: int) -> bool:
    """Whether this micro-batch ends a step that is a multiple of ``every``, or the last."""
    if (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    return trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON to a log."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
