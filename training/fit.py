"""The one path of every training: from a claimed folder through Lightning's loop to an export."""

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from foundation.errors import CurationError
from foundation.files import CHECKSUMS, RESULT, save_json
from training.checkpoints import Checkpoints, ResumePoint, remove_checkpoints, signals_restored
from training.data import Slot, StepData
from training.devices import SameKind, few_threads, make_trainer
from training.log import RunLog
from training.module import StepModule
from training.run_folder import checksums_of, is_first_process


@dataclass(frozen=True)
class Fitted:
    """A model after `fit`.

    Attributes:
        trainer: Lightning's.
        folder: of the run.
        step: optimiser steps so far.
        finished: all of them; False after SIGTERM.
    """

    trainer: lightning.Trainer
    folder: Path
    step: int
    finished: bool

    def export(
        self, write: Callable[[dict[str, Tensor]], None], result: dict[str, Any], left: Sequence[str] = ()
    ) -> None:
        """Leave what a finished run leaves: process zero writes the model, then ``result.json``; checkpoints go.

        Args:
            write: takes the whole state of the module, gathered where it is sharded.
            result: content of ``result.json``.
            left: files and folders that ``write`` makes, whose checksums go with the result.

        Raises:
            CurationError: a weight is not finite.
        """
        state = self.trainer.strategy.lightning_module_state_dict()
        broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
        if broken:
            module: Any = self.trainer.lightning_module
            raise CurationError(f"{broken[0]} is not finite after step {self.step}; {module.advice()}")
        if self.trainer.is_global_zero:
            write(state)
            save_json(self.folder / RESULT, {**result, CHECKSUMS: checksums_of(self.folder, left)}, seal=True)
            remove_checkpoints(self.folder)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # Lightning makes an empty one
        self.trainer.strategy.barrier("export")


def fit(
    module: StepModule,
    make: Callable[[Slot], Any],
    folder: Path,
    start: ResumePoint,
    log: RunLog,
    watchers: Sequence[lightning.Callback] = (),
) -> Fitted:
    """Train a module to its last step, or to where SIGTERM stops it; it goes on from ``start``.

    Args:
        module: with the settings of the run.
        make: the micro-batch of a slot.
        folder: of the run, claimed.
        start: of `find_checkpoint`.
        log: of losses and speed.
        watchers: further callbacks; they see a step after the log and before its checkpoint.

    Raises:
        CurationError: devices are not there, the batch cannot be shared among them, the checkpoint is not of this run,
            or a loss is not finite.
        KeyboardInterrupt: Ctrl-C.
    """
    settings = module.settings
    if start.step > settings.steps:
        raise CurationError(f"{start.path} is of step {start.step}, but the run has {settings.steps}; delete it")
    # the log first: its sums must be up to date when the checkpoint takes them
    callbacks = [SameKind(), log, *watchers, Checkpoints(folder, settings.speed.checkpoint_every, start)]
    trainer = make_trainer(settings, folder, callbacks)
    data = StepData(make, settings, start.step)
    with warnings.catch_warnings(), signals_restored(), few_threads(log.work.per_step * log.work.flops, trainer):
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers, none of it true here
        try:
            trainer.fit(module, datamodule=data, ckpt_path=start.path, weights_only=True)
        except SystemExit as stop:
            # Lightning's answer to Ctrl-C, after it has ended the other processes; one of them all says so
            if isinstance(stop.__context__, KeyboardInterrupt) and is_first_process():
                raise KeyboardInterrupt from None
            raise
    return Fitted(trainer, folder, trainer.global_step, trainer.global_step >= settings.steps)
